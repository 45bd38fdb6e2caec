"""The transformer's parts against slow versions and formulas written out."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from anlage.models.layers.attention import SelfAttention
from anlage.models.layers.feed_forward import GeluMlp, SwiGlu
from anlage.models.layers.packing import SequenceShape, pack, unpack
from anlage.models.layers.patch_embedding import PatchEmbedding, patchify
from anlage.models.layers.position_embedding import resize_positions
from anlage.models.layers.stochastic_depth import keep_sequences
from reference.attention import layer_norm, slow_attention


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_equals_the_loops(qk_norm: bool) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(width=12, n_heads=3, qk_norm=qk_norm).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    tokens, shapes = pack([numbers(2, 5, 12).double(), numbers(3, 4, 12, seed=1).double()])
    weights = {name: value.numpy() for name, value in layer.state_dict().items()}
    mixed = unpack(layer(tokens, shapes).detach(), shapes)
    for before, after in zip(unpack(tokens, shapes), mixed, strict=True):
        for sequence, result in zip(before.numpy(), after.numpy(), strict=True):
            np.testing.assert_allclose(result, slow_attention(sequence, weights, 3), atol=1e-10)


def test_attention_of_one_token_is_its_value() -> None:
    layer = SelfAttention(width=12, n_heads=3)
    token = numbers(4, 1, 12)
    packed, shapes = pack([token])
    value = functional.linear(token[:, 0], layer.qkv.weight[24:], layer.qkv.bias[24:])
    torch.testing.assert_close(layer(packed, shapes), layer.proj(value))


def test_pack_and_unpack_are_inverse() -> None:
    parts = [numbers(2, 5, 3), numbers(1, 1, 3), numbers(4, 2, 3)]
    packed, shapes = pack(parts)
    assert packed.shape == (19, 3)
    assert shapes == [(2, 5), (1, 1), (4, 2)]
    for part, again in zip(parts, unpack(packed, shapes), strict=True):
        torch.testing.assert_close(part, again, rtol=0, atol=0)


def test_gelu_mlp_equals_the_formula() -> None:
    layer, x = GeluMlp(width=3, hidden=5).double(), numbers(4, 3).double()
    hidden = layer.fc1(x)
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(layer(x), gelu @ layer.fc2.weight.T + layer.fc2.bias)


def test_swiglu_equals_the_formula_gate_first() -> None:
    layer, x = SwiGlu(width=6, hidden=24).double(), numbers(4, 6).double()
    both = layer.fc1(x)
    gate, value = both[:, :16], both[:, 16:]
    wanted = (gate / (1 + torch.exp(-gate)) * value) @ layer.fc2.weight.T + layer.fc2.bias
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize(("width", "gated"), [(1536, 4096), (48, 128), (384, 1024), (5, 16)])
def test_swiglu_is_two_thirds_wide_rounded_up_to_eight(width: int, gated: int) -> None:
    with torch.device("meta"):
        assert SwiGlu(width=width, hidden=4 * width).fc2.in_features == gated


def test_patchify_is_row_major_then_channel_row_column() -> None:
    image = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    patches = patchify(image, patch_px=2)
    assert patches.shape == (2, 6, 12)
    for patch in range(6):
        row, column = divmod(patch, 3)
        block = image[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert patches[1, patch].tolist() == block.flatten().tolist()


def test_patch_embedding_equals_the_convolution_it_stores() -> None:
    layer, image = PatchEmbedding(patch_px=4, width=10), numbers(2, 3, 8, 12)
    torch.testing.assert_close(layer(image), layer.proj(image).flatten(2).transpose(1, 2))


def test_dual_patch_norm_equals_the_formula() -> None:
    torch.manual_seed(3)
    layer = PatchEmbedding(patch_px=4, width=10, dual_norm=True).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    image = numbers(1, 3, 8, 8).double()
    weights = {name: value.numpy() for name, value in layer.state_dict().items()}
    kernel = weights["proj.weight"].reshape(10, -1)
    for patch, token in zip(patchify(image, patch_px=4)[0].numpy(), layer(image)[0], strict=True):
        inner = layer_norm(patch, weights["norm_in.weight"], weights["norm_in.bias"])
        outer = kernel @ inner + weights["proj.bias"]
        wanted = layer_norm(outer, weights["norm.weight"], weights["norm.bias"])
        np.testing.assert_allclose(token.detach().numpy(), wanted, atol=1e-10)


def test_dual_patch_norm_does_not_see_brightness_and_contrast() -> None:
    layer, image = PatchEmbedding(patch_px=4, width=10, dual_norm=True), numbers(1, 3, 8, 8)
    torch.testing.assert_close(layer(3 * image + 5), layer(image), atol=1e-4, rtol=1e-4)


def test_positions_of_the_same_grid_are_the_parameter_itself() -> None:
    positions = numbers(1, 6, 4)
    assert resize_positions(positions, from_grid=(2, 3), to_grid=(2, 3)) is positions


def test_positions_without_antialiasing_are_plain_bicubic() -> None:
    positions = torch.randn(1, 36, 2, generator=torch.Generator().manual_seed(0))
    image = positions.reshape(1, 6, 6, 2).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(image, size=(3, 3), mode="bicubic")
    plain = resize_positions(positions, from_grid=(6, 6), to_grid=(3, 3), antialias=False)
    torch.testing.assert_close(plain, wanted.flatten(2).transpose(1, 2))
    assert not torch.allclose(plain, resize_positions(positions, from_grid=(6, 6), to_grid=(3, 3)))


def test_resized_positions_keep_a_constant_and_the_orientation() -> None:
    constant = torch.full((1, 16, 2), 0.3)
    resized = resize_positions(constant, from_grid=(4, 4), to_grid=(3, 7))
    torch.testing.assert_close(resized, torch.full((1, 21, 2), 0.3))
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    ramp = torch.stack([rows, columns], dim=-1).view(1, 16, 2)
    grid = resize_positions(ramp, from_grid=(4, 4), to_grid=(2, 8)).view(2, 8, 2)
    torch.testing.assert_close(grid[0, :, 0], grid[0, :1, 0].expand(8))  # rows do not vary along x
    assert (grid[0, 1:, 1] > grid[0, :-1, 1]).all()
    assert grid[1, 0, 0] > grid[0, 0, 0]


SHAPES = [SequenceShape(10, 3), SequenceShape(4, 2), SequenceShape(1, 5)]


def kept(rate: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return keep_sequences(SHAPES, rate=rate, device=torch.device("cpu"), generator=generator)


def test_stochastic_depth_keeps_whole_sequences_and_never_none() -> None:
    subset = kept(0.9)
    assert subset.shapes == [(1, 3), (1, 2), (1, 5)]
    first, second, third = subset.row_K.split([3, 2, 5])
    assert first[0] % 3 == 0
    assert (first.diff() == 1).all()
    assert (second[0] - 30) % 2 == 0
    assert third.tolist() == [38, 39, 40, 41, 42]
    assert subset.scale_K1.flatten().tolist() == [10.0] * 3 + [4.0] * 2 + [1.0] * 5


def test_stochastic_depth_rounds_to_the_nearest_count() -> None:
    assert [shape.n_sequences for shape in kept(0.3).shapes] == [7, 3, 1]
    assert len(kept(0.3).row_K.unique()) == 7 * 3 + 3 * 2 + 5


def test_stochastic_depth_leaves_the_expectation_as_it_is() -> None:
    total = torch.zeros(43)
    for seed in range(600):
        subset = kept(0.4, seed)
        total.index_add_(0, subset.row_K, subset.scale_K1.flatten())
    torch.testing.assert_close(total / 600, torch.ones(43), atol=0.2, rtol=0)


def test_attention_refuses_a_width_its_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="got width=10, n_heads=3"):
        SelfAttention(width=10, n_heads=3)


def test_patchify_refuses_an_empty_image() -> None:
    with pytest.raises(ValueError, match="needs images whose edges are multiples of patch_px=8"):
        patchify(torch.zeros(1, 3, 0, 8), patch_px=8)
