"""Nystrom attention against full attention and torch's own inverse."""

import pytest
import torch
from torch.nn import functional

from anlage.models.layers.nystrom_attention import NystromAttention, moore_penrose, segment_means


def full_attention(layer: NystromAttention, tokens: torch.Tensor) -> torch.Tensor:
    """Softmax attention of the same weights, and the convolution of values, head by head."""
    query, key, value = layer.qkv(tokens).chunk(3, dim=-1)
    width = query.shape[1] // layer.n_heads
    heads = []
    for h in range(layer.n_heads):
        q, k, v = (part[:, h * width : (h + 1) * width] for part in (query, key, value))
        attention = (q @ k.T / width**0.5).softmax(dim=-1)
        kernel = layer.value_conv.weight[h : h + 1].expand(width, 1, -1)
        mixed = functional.conv1d(v.T[None], kernel, padding=kernel.shape[-1] // 2, groups=width)
        heads.append(attention @ v + mixed[0].T)
    return layer.proj(torch.cat(heads, dim=1))


@pytest.mark.parametrize("pad", ["zero", "none"])
def test_with_a_landmark_for_each_token_it_is_full_attention(pad: str) -> None:
    torch.manual_seed(0)
    layer = NystromAttention(
        width=8, n_heads=2, n_landmarks=6, pinv_steps=30, conv_tokens=3, pad=pad
    ).double()
    tokens = torch.randn(6, 8, dtype=torch.float64)
    found, expected = layer(tokens), full_attention(layer, tokens)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_both_ways_to_pad_agree_where_landmarks_divide_the_tokens() -> None:
    torch.manual_seed(1)
    zero = NystromAttention(width=8, n_heads=2, n_landmarks=5, pad="zero")
    none = NystromAttention(width=8, n_heads=2, n_landmarks=5, pad="none")
    none.load_state_dict(zero.state_dict())
    for n_tokens, are_equal in ((20, True), (21, False)):
        tokens = torch.randn(n_tokens, 8)
        assert torch.allclose(zero(tokens), none(tokens), atol=1e-6) == are_equal


def test_segments_hold_each_token_once() -> None:
    tokens = torch.arange(11.0)[None, :, None]
    means = segment_means(tokens, 3).flatten()
    expected = [sum(part) / len(part) for part in ([0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10])]
    torch.testing.assert_close(means, torch.tensor(expected))


def test_the_inverse_converges_to_torchs() -> None:
    torch.manual_seed(2)
    matrix = torch.randn(3, 7, 7, dtype=torch.float64).mul(3).softmax(dim=-1)
    errors = [
        (moore_penrose(matrix, n_steps) - torch.linalg.pinv(matrix)).abs().max().item()
        for n_steps in (6, 12, 24)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-8


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="heads that divide the width and an odd kernel"):
        NystromAttention(width=10, n_heads=4)
    with pytest.raises(ValueError, match="odd kernel; got width=8, n_heads=2, conv_tokens=4"):
        NystromAttention(width=8, n_heads=2, conv_tokens=4)
    with pytest.raises(ValueError, match="pad 'zero' or 'none'; got 'mask'"):
        NystromAttention(width=8, n_heads=2, pad="mask")
