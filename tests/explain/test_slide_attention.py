"""The slide token's attention against numpy, and what of it the architecture decides."""

import numpy as np
import pytest
import torch

from anlage.explain.slide_attention import (
    NotedBlock,
    as_name,
    pooling_scores,
    slide_token_scores,
)
from anlage.models.slide_encoder import SlideEncoder

N_TILES, N_HEADS = 90, 4


def make_encoder(segments=(512,), dilations=(1,), pad="masked"):
    torch.manual_seed(3)
    return SlideEncoder(
        input_width=6,
        width=16,
        depth=2,
        n_heads=N_HEADS,
        segments=segments,
        dilations=dilations,
        pad=pad,
    ).eval()


def make_bag(n_tiles=N_TILES):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(n_tiles, 6, generator=generator)
    cells = torch.stack([torch.arange(n_tiles) % 10, torch.arange(n_tiles) // 10], 1)
    return features, cells


def noted_attention(network, layer):
    features, cells = make_bag()
    with NotedBlock(network, layer) as noted, torch.no_grad():
        network(features, cells, [N_TILES])
    return noted.share_HR.numpy()


@pytest.mark.parametrize("layer", [1, 2])
def test_one_branch_is_softmax_by_numpy(layer) -> None:
    network = make_encoder()
    features, cells = make_bag()
    with torch.no_grad():
        states = list(network.states(features, cells, [N_TILES]))
    block = network.blocks[layer - 1]
    x = states[layer - 1].numpy().astype(np.float64)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + block.norm1.eps)
    qkv = x @ block.attn.qkv.weight.detach().numpy().astype(np.float64).T
    query, key, _ = (part.reshape(N_TILES + 1, N_HEADS, 4) for part in np.split(qkv, 3, axis=1))
    logit = np.einsum("he,rhe->hr", query[0], key) / 2
    wanted = np.exp(logit) / np.exp(logit).sum(1, keepdims=True)
    found = noted_attention(network, layer)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_only_the_first_segment_and_heads_of_its_first_token() -> None:
    network = make_encoder(segments=(16, 64), dilations=(1, 2))
    seen = noted_attention(network, 1) > 0
    # torchscale's phases at dilation 2: heads 0 and 1 begin at the slide token, 2 and 3 after it
    within = np.zeros(N_TILES + 1, bool)
    within[:16] = True
    every_second = np.zeros(N_TILES + 1, bool)
    every_second[:64:2] = True
    for head in range(N_HEADS):
        np.testing.assert_array_equal(seen[head], within | every_second if head < 2 else within)


@pytest.mark.parametrize("segment", [7, 50, 90, 91, 4096])
def test_zeros_that_fill_segments_take_nothing_from_the_slide_token(segment) -> None:
    """The first segment is full, and the heads that hold its first token lack none there."""
    network = make_encoder(segments=(9, segment), dilations=(1, 4), pad="zero")
    np.testing.assert_allclose(noted_attention(network, 1).sum(1), 1, atol=1e-6)


def test_scores_are_the_heads_and_their_mean() -> None:
    share = torch.rand(N_HEADS, 8, generator=torch.Generator().manual_seed(0))
    mean, *heads = slide_token_scores(share, layer=7)
    assert mean.name == "layer_07_mean"
    assert not mean.is_of_head
    assert [head.name for head in heads] == [f"layer_07_head_0{head}" for head in range(N_HEADS)]
    assert all(head.is_of_head for head in heads)
    np.testing.assert_array_equal(heads[2].weight_L, share[2, 1:].numpy())
    np.testing.assert_allclose(mean.weight_L, share[:, 1:].numpy().mean(0), rtol=1e-6)


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_that_is_not_there(layer) -> None:
    with pytest.raises(ValueError, match=f"layer from 1 to 2; got {layer}"):
        NotedBlock(make_encoder(), layer)


def test_nothing_is_left_on_the_network() -> None:
    network = make_encoder()
    noted_attention(network, 1)
    assert not network.blocks[0]._forward_pre_hooks


def test_branches_of_a_pooling_are_called_by_number_and_class() -> None:
    attention = torch.softmax(torch.randn(9, 3), 0)
    named = list(pooling_scores(attention, classes=["LUAD", "LUSC (sq.)", "none"]))
    assert [score.name for score in named] == [
        *("attention_0_luad", "attention_1_lusc_sq", "attention_2_none"),
    ]
    assert named[1].title == "Pooling's attention for LUSC (sq.)"
    np.testing.assert_array_equal(named[1].weight_L, attention[:, 1].numpy())
    numbered = list(pooling_scores(attention, classes=["a", "b"]))
    assert [score.name for score in numbered] == ["attention_0", "attention_1", "attention_2"]
    (only,) = pooling_scores(attention[:, :1], classes=["a", "b"])
    assert only.name == "attention"


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["HER2-", "HER2+"], ["attention_0_her2", "attention_1_her2"]),
        (["<2", ">=2"], ["attention_0_2", "attention_1_2"]),
        (["陰性", "陽性"], ["attention_0", "attention_1"]),
        (
            ["a" * 300 + "1", "a" * 300 + "2"],
            ["attention_0_" + 40 * "a", "attention_1_" + 40 * "a"],
        ),
    ],
)
def test_classes_that_are_spelt_alike_stay_apart(classes, names) -> None:
    scores = list(pooling_scores(torch.softmax(torch.randn(9, 2), 0), classes=classes))
    assert [score.name for score in scores] == names
    assert [score.title for score in scores] == [f"Pooling's attention for {c}" for c in classes]


def test_names_are_fit_for_files() -> None:
    assert as_name("ER+/HER2-") == "er_her2"
    assert as_name("../x") == "x"
    assert as_name("++") == ""
