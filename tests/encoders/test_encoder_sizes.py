"""Sizes read from shapes are those the shapes were made with."""

import pytest
import torch

from anlage.encoders.encoder_sizes import architecture_of, encoder_sizes
from anlage.errors import EncoderError
from anlage.models.sizes import SIZES
from anlage.models.vit import VisionTransformer
from anlage.models.without_weights import without_weights


def shapes(**arguments: object) -> dict[str, torch.Tensor]:
    with without_weights():
        return VisionTransformer(**arguments).state_dict()


def small(**changes: object) -> dict:
    return {"image_px": 28, "patch_px": 14, "width": 64, "depth": 2, "n_heads": 1, **changes}


@pytest.mark.parametrize("name", SIZES)
def test_every_published_size_is_read_back(name):
    given = dict(SIZES[name])
    weights = shapes(**given)
    told = architecture_of(encoder_sizes(weights, path="p"), path="p", n_heads=given["n_heads"])
    again = shapes(**told)
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in weights.items()}
    assert told == given | {"mlp_ratio": told["mlp_ratio"]}


@pytest.mark.parametrize("feed_forward", ["mlp", "swiglu"])
@pytest.mark.parametrize("mlp_ratio", [4.0, 2.5, 3.123, 5.33334])
def test_the_hidden_width_comes_back_whatever_the_ratio(feed_forward, mlp_ratio):
    given = shapes(**small(feed_forward=feed_forward, mlp_ratio=mlp_ratio))
    told = architecture_of(encoder_sizes(given, path="p"), path="p")
    again = shapes(**told)
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in given.items()}


def test_heads_are_64_wide_unless_told():
    sizes = encoder_sizes(shapes(**small(width=128, n_heads=2)), path="p")
    assert architecture_of(sizes, path="p")["n_heads"] == 2
    assert architecture_of(sizes, path="p", n_heads=4)["n_heads"] == 4


@pytest.mark.parametrize("n_heads", [None, 7])
def test_heads_that_do_not_divide_the_width_are_refused(n_heads):
    sizes = encoder_sizes(shapes(**small(width=96, n_heads=3)), path="p")
    with pytest.raises(EncoderError, match=r"got 96 for .* Give n_heads"):
        architecture_of(sizes, path="p", n_heads=n_heads)


def test_a_hidden_width_we_cannot_have_is_refused():
    weights = shapes(**small(feed_forward="swiglu"))
    with torch.device("meta"):
        weights["blocks.0.mlp.fc1.weight"] = torch.empty(2 * 171, 64)
        weights["blocks.0.mlp.fc2.weight"] = torch.empty(64, 171)
    with pytest.raises(EncoderError, match="a multiple of 8; got 171"):
        architecture_of(encoder_sizes(weights, path="p"), path="p")
