"""Published sizes: the layers of timm's models with the published arguments, and their counts."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from torch import nn

from anlage.models.flops import parameter_count
from anlage.models.sizes import SIZES, size_arguments
from anlage.models.vit import VisionTransformer
from anlage.models.without_weights import without_weights

SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
OURS_ALONE = {"mask_token", "patch_embed.norm_in.weight", "patch_embed.norm_in.bias"}
# The arguments of timm.create_model: those of the models' cards where they have one (Virchow2:
# huggingface.co/paige-ai/Virchow2; UNI, UNI2-h: huggingface.co/MahmoodLab; GigaPath: config.json
# of huggingface.co/prov-gigapath/prov-gigapath).
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit-ti16": ("vit_tiny_patch16_224", {}),
    "vit-s16": ("vit_small_patch16_224", {}),
    "vit-s8": ("vit_small_patch8_224", {}),
    "vit-b16": ("vit_base_patch16_224", {}),
    "vit-b8": ("vit_base_patch8_224", {}),
    "vit-s14-mini": ("vit_small_patch16_224", {"patch_size": 14}),
    "vit-s14": ("vit_small_patch14_dinov2", {"img_size": 224}),
    "vit-s14-reg4": ("vit_small_patch14_reg4_dinov2", {"img_size": 224}),
    "vit-l16": ("vit_large_patch16_224", {"init_values": 1e-5}),
    "vit-l14-reg4": ("vit_large_patch14_reg4_dinov2", {"img_size": 224}),
    "vit-g14": ("vit_giant_patch14_dinov2", {"img_size": 224}),
    "vit-g14-reg4": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224}),
    "vit-g16": ("vit_giant_patch14_dinov2", {"img_size": 224, "patch_size": 16}),
    "vit-h14-reg4": (
        "vit_huge_patch14_224",
        {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375, **SWIGLU},
    ),
    "vit-h14-reg8-uni2": (
        "vit_giant_patch14_224",
        {
            **{"img_size": 224, "depth": 24, "num_heads": 24, "embed_dim": 1536},
            **{"init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "reg_tokens": 8, **SWIGLU},
            "no_embed_class": True,
        },
    ),
    # No card: timm's G with the SwiGLU that DINOv2's rounding gives for a hidden width of 8192.
    "vit-bigg14-reg8": (
        "vit_gigantic_patch14_224",
        {
            **{"init_values": 1e-5, "mlp_ratio": 2 * 5464 / 1664, "reg_tokens": 8, **SWIGLU},
            **{"qk_norm": True, "no_embed_class": True, "embed_norm_layer": nn.LayerNorm},
        },
    ),
}
# Parameters as printed, and by how much the count may differ.
PRINTED: dict[str, tuple[dict[str, Any], float, float]] = {
    # timm's model cards, "Params (M)": half of the last digit; DINOv2's are at 518 px.
    "vit-s16": ({}, 21.7e6, 0.05e6),
    "vit-s8": ({}, 21.7e6, 0.05e6),
    "vit-b16": ({}, 85.8e6, 0.05e6),
    "vit-b8": ({}, 85.8e6, 0.05e6),
    "vit-s14": ({"image_px": 518}, 22.1e6, 0.05e6),
    "vit-s14-reg4": ({"image_px": 518}, 22.1e6, 0.05e6),
    "vit-l14-reg4": ({"image_px": 518}, 304.4e6, 0.05e6),
    # Touvron et al. 2021, DeiT, arXiv:2012.12877, table 1: 5.7 million with a classifier.
    "vit-ti16": ({}, 5.7e6 - 1000 * 193, 0.05e6),
    # Zimmermann et al. 2024, arXiv:2408.00738v3: "22 million", "632 million" (ViT-H with an MLP,
    # Dosovitskiy et al. 2021, table 1; SwiGLU's rounding takes 0.8 million off).
    "vit-s14-mini": ({}, 22e6, 0.5e6),
    "vit-h14-reg4": ({}, 632e6, 1e6),
    # Zhai et al. 2021, arXiv:2106.04560, table 2: 1,843 million. The Virchow2 paper says 1.85
    # billion (version 1) and 1.9 (version 3); nothing published says what the rest would be.
    "vit-bigg14-reg8": ({}, 1843e6, 1e6),
}
# Numbers in the released weights, as public code that loads them checks or prints them, and how
# ours differ: our mask token, and the positions of class and register tokens that ours lacks.
RELEASED: dict[str, tuple[dict[str, Any], int, int]] = {
    "vit-l16": ({}, 303_350_784, 1024 - 1024),  # UNI
    "vit-g16": ({}, 1_134_953_984, 1536 - 1536),  # GigaPath
    "vit-h14-reg4": ({}, 631_239_424, 1280 - 5 * 1280),  # Virchow2
    "vit-h14-reg8-uni2": ({}, 681_394_176, 1536),  # UNI2-h
    "vit-g14-reg4": ({}, 1_134_774_272, 1536),  # H-optimus-0
    "vit-g14": ({"image_px": 518}, 1_136_480_768, -1536),  # Midnight; it has a mask token
}


@pytest.mark.parametrize("name", SIZES)
def test_layers_are_those_of_timm(name: str) -> None:
    timm_name, options = TIMM[name]
    arguments = size_arguments(name)
    with without_weights():
        model = VisionTransformer(**arguments)
        timms = timm.create_model(timm_name, num_classes=0, **options)
    ours, theirs = model.state_dict(), timms.state_dict()
    n_lead = 0 if timms.no_embed_class else timms.num_prefix_tokens  # their positions have these
    assert theirs.pop("pos_embed").shape[1] == ours.pop("pos_embed").shape[1] + n_lead
    found = {key: tuple(value.shape) for key, value in ours.items() if key not in OURS_ALONE}
    assert found == {key: tuple(value.shape) for key, value in theirs.items()}
    block = timms.blocks[0]
    assert arguments["n_heads"] == block.attn.num_heads
    gain = None if isinstance(block.ls1, nn.Identity) else block.ls1.init_values
    assert arguments["layer_scale"] == gain


@pytest.mark.parametrize("name", PRINTED)
def test_counts_are_the_printed_ones(name: str) -> None:
    other, printed, tolerance = PRINTED[name]
    assert abs(parameter_count(size_arguments(name) | other) - printed) <= tolerance


@pytest.mark.parametrize("name", RELEASED)
def test_counts_are_those_of_released_weights(name: str) -> None:
    other, released, ours_more = RELEASED[name]
    assert parameter_count(size_arguments(name) | other) == released + ours_more


def test_every_size_has_a_published_count() -> None:
    assert PRINTED.keys() | RELEASED.keys() == SIZES.keys()


def test_the_count_is_that_of_a_real_network() -> None:
    arguments = size_arguments("vit-ti16")
    model = VisionTransformer(**arguments)
    assert parameter_count(arguments) == sum(p.numel() for p in model.parameters())


def test_networks_without_weights_take_no_memory_and_draw_no_number() -> None:
    before = torch.get_rng_state()
    with without_weights():
        model = VisionTransformer(**size_arguments("vit-g14"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_names_can_be_typed_and_stored_anywhere() -> None:
    assert all(name == name.lower() and name.startswith("vit-") for name in SIZES)
    assert len({str(dict(size)) for size in SIZES.values()}) == len(SIZES)


def test_the_table_cannot_be_changed_through_what_it_gives() -> None:
    size_arguments("vit-s16")["depth"] = 1
    assert size_arguments("vit-s16")["depth"] == 12
    with pytest.raises(TypeError):
        SIZES["vit-s16"]["depth"] = 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("vit_l16", "vit-l16"), ("ViT-H14-reg4", "vit-h14-reg4"), ("vit-G14-reg8", "vit-bigg14-reg8")],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"got '{wrong}'. The nearest is '{near}'"):
        size_arguments(wrong)


@pytest.mark.parametrize("wrong", [5, None, ["vit-s16"]])
def test_a_name_that_is_no_text_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"size_arguments: needs one of vit-ti16"):
        size_arguments(wrong)  # type: ignore[arg-type]
