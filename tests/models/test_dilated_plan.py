"""What sequences dilated attention is planned over, and what it refuses."""

import pytest
import torch

from anlage.models import dilated_plan
from anlage.models.dilated_groups import GatheredGroup, SegmentRun
from anlage.models.dilated_plan import Branch, gigapath_branches, head_phases, plan_dilated


def plan(lengths, branches, n_heads=4, pad="masked"):
    return plan_dilated(
        lengths,
        branches=[Branch(*branch) for branch in branches],
        n_heads=n_heads,
        head_phase="torchscale",
        pad=pad,
        device="cpu",
    )


@pytest.mark.parametrize(
    ("max_slide_px", "segments"),
    [
        (262144, [1024, 5792, 32768, 185363, 1048576]),
        (250000, [1024, 4870, 23170, 110217, 524288]),  # of the official PANDA script
    ],
)
def test_branches_of_gigapath(max_slide_px, segments):
    assert gigapath_branches(max_slide_px) == tuple(zip(segments, [1, 2, 4, 8, 16], strict=True))


def test_phases_of_heads():
    assert head_phases(6, 4, rule="paper").tolist() == [0, 1, 2, 3, 0, 1]
    assert head_phases(6, 4, rule="torchscale").tolist() == [0, 0, 1, 1, 2, 2]
    assert head_phases(3, 16, rule="torchscale").tolist() == [0, 1, 2]
    assert head_phases(16, 1, rule="torchscale").tolist() == [0] * 16


@pytest.mark.parametrize("pad", ["zero", "masked"])
def test_a_branch_holds_a_row_at_most_once(pad):
    planned = plan([37, 1, 64, 5], [(16, 1), (10, 3), (100, 8)], n_heads=5, pad=pad)
    for groups in planned.branches:
        rows = []
        for group in groups:
            if isinstance(group, SegmentRun):
                end = group.first + group.n_segments * group.n_tokens
                rows.extend(range(group.first * 5, end * 5))
            else:
                rows.extend(group.row_O.tolist())
        assert 0 < len(rows) == len(set(rows))


def test_segments_of_a_bag_are_views_where_heads_see_all():
    (groups,) = plan([50], [(16, 1)], pad="zero").branches
    assert [(own.first, own.n_segments, own.n_tokens) for own in groups] == [(0, 3, 16), (48, 1, 2)]
    assert groups[0].zeros is None
    assert float(groups[1].zeros) == 14
    qkv = torch.randn(50, 3, 4, 2)
    query, _, value = groups[0].heads(qkv)
    assert query.data_ptr() == qkv.data_ptr()
    torch.testing.assert_close(value[1, 2], qkv[16:32, 2, 2])


def test_small_bags_share_a_call():
    lengths = [64, 51, 70, 40, 77, 58, 66, 61]
    planned = plan(lengths, [(1024, 1), (5792, 2), (32768, 16)], n_heads=16)
    n_calls = [len(groups) for groups in planned.branches]
    assert max(n_calls) <= 2
    assert all(isinstance(own, GatheredGroup) for groups in planned.branches for own in groups)


def test_a_long_sequence_is_not_padded_to_a_longer_one():
    (groups,) = plan([3001], [(4096, 2)], n_heads=2).branches
    assert [tuple(own.query_GN.shape) for own in groups] == [(1, 1501), (1, 1500)]
    assert all(own.bias_GN is None for own in groups)


def test_a_call_takes_so_many_sequences(monkeypatch):
    monkeypatch.setattr(dilated_plan, "MOST_SEQUENCES", 6)
    (groups,) = plan([40], [(8, 2)], n_heads=4).branches
    assert [len(own.query_GN) for own in groups] == [6, 6, 6, 2]


@pytest.mark.parametrize("lengths", [[], [3, 0], [-1]])
def test_empty_bags_are_refused(lengths):
    with pytest.raises(ValueError, match="bags of at least one token"):
        plan(lengths, [(4, 1)])


@pytest.mark.parametrize(
    ("branches", "n_heads"), [([], 4), ([(0, 1)], 4), ([(4, 0)], 4), ([(4, 1)], 0)]
)
def test_branches_of_nothing_are_refused(branches, n_heads):
    with pytest.raises(ValueError, match="at least 1"):
        plan([3], branches, n_heads=n_heads)


def test_torchscale_misplaces_where_the_dilation_does_not_divide_a_segment():
    """Segment 1 of 10 tokens is laid out from token 12 on: 12 has what token 10 asked for."""
    for pad in ("masked", "zero"):
        (groups,) = plan([30], [(10, 4)], n_heads=1, pad=pad).branches
        of_10, of_12 = (
            [own for group in groups for own in group.sequences_of(token, 1)] for token in (10, 12)
        )
        assert [own.asked for own in of_12] == ([] if pad == "masked" else [10])
        assert [own.asked for own in of_10] == ([10] if pad == "masked" else [])
