"""Which tensors are the encoder's, and what is refused rather than guessed."""

import pytest
import torch

from anlage.encoders.published_names import in_our_names, without_wrappers
from anlage.errors import EncoderError


def weights(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"cls_token": torch.ones(1, 1, 4), "pos_embed": torch.ones(1, 10, 4), **more}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("module.blocks.0.norm1.weight", "blocks.0.norm1.weight"),
        ("_orig_mod.module.norm.bias", "norm.bias"),
        ("a._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.x", "a.blocks.0.x"),
        ("submodule.weight", "submodule.weight"),
    ],
)
def test_wrappers_are_taken_off_wherever_they_stand(name, plain):
    assert without_wrappers(name) == plain


def test_the_position_of_the_class_token_is_folded():
    position = torch.arange(40.0).reshape(1, 10, 4)
    named = in_our_names(weights(pos_embed=position), path="p").weights
    assert named["cls_token"].tolist() == [[[1.0, 2.0, 3.0, 4.0]]]
    assert torch.equal(named["pos_embed"], position[:, 1:])


def test_positions_of_patches_alone_stay():
    named = in_our_names(weights(pos_embed=torch.ones(1, 9, 4)), path="p")
    assert torch.equal(named.weights["cls_token"], torch.ones(1, 1, 4))
    assert named.notes == ()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"x": torch.ones(1)}, "needs one vision transformer with a cls_token; found none"),
        (
            {"a.cls_token": torch.ones(1, 1, 4), "b.cls_token": torch.ones(1, 1, 4)},
            "found 2 of them",
        ),
        (
            {"backbone.cls_token": torch.ones(1, 1, 4), "decoder.weight": torch.ones(1)},
            r"holds 'decoder.weight' beside the encoder's backbone\.\*",
        ),
        (
            weights(
                **{"blocks.0.3.norm1.bias": torch.ones(4), "blocks.3.norm1.bias": torch.ones(4)}
            ),
            "both stand for 'blocks.3.norm1.bias'",
        ),
        (weights(**{"module.cls_token": torch.ones(1, 1, 4)}), "both stand for 'cls_token'"),
        (weights(cls_token=torch.ones(1, 1, 1)), "'cls_token' needs 4 values a token"),
        (weights(cls_token=torch.ones(4)), r"'cls_token' .* got shape \(4,\)"),
        (weights(reg_token=torch.ones(4)), "'reg_token' needs 4 values a token"),
        (weights(pos_embed=torch.ones(1, 10, 3)), "'cls_token' needs 3 values a token"),
    ],
)
def test_what_is_not_one_encoder_is_refused(given, says):
    with pytest.raises(EncoderError, match=says) as refusal:
        in_our_names(given, path="a.pth")
    assert refusal.value.path == "a.pth"
