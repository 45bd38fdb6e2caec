"""The transformer equals timm's on random weights: the oracle, and what we export to."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from anlage.models.vit import VisionTransformer

OURS_ALONE = {"mask_token"}  # the only parameter timm has no place for


def strictly_loaded(ours: VisionTransformer, theirs: nn.Module) -> VisionTransformer:
    """Load timm's weights; every name and shape must fit, but for the mask token."""
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert set(result.missing_keys) == OURS_ALONE
    assert not result.unexpected_keys
    return ours.eval()


def randomise(model: nn.Module) -> nn.Module:
    """Weights of ordinary size everywhere, so that no branch hides behind a small LayerScale."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.ndim == 1 and not name.endswith("bias")
            parameter.copy_(1 + 0.1 * noise if is_gain else 0.05 * noise)
    return model.eval()


def tokens(model: VisionTransformer, image: Tensor) -> Tensor:
    output = model.embed(image)
    return torch.cat([output.cls_BD[:, None], output.registers_BRD, output.patches_BND], dim=1)


@torch.no_grad()
def assert_equal(ours: VisionTransformer, theirs: nn.Module, *shape: int) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    wanted = theirs.forward_features(image)
    torch.testing.assert_close(tokens(ours, image), wanted, atol=1e-5, rtol=1e-5)


def small_pair(depth: int) -> tuple[VisionTransformer, nn.Module]:
    theirs = timm.create_model("vit_small_patch14_reg4_dinov2", dynamic_img_size=True, depth=depth)
    ours = VisionTransformer(
        image_px=518, patch_px=14, width=384, depth=depth, n_heads=6, n_registers=4
    )
    return strictly_loaded(ours, randomise(theirs)), theirs


@pytest.mark.parametrize("size", [(224, 224), (98, 168)])
def test_vit_small_dinov2_with_registers(size: tuple[int, int]) -> None:
    assert_equal(*small_pair(depth=12), 1, 3, *size)


def test_vit_small_dinov2_with_registers_at_its_own_size() -> None:
    assert_equal(*small_pair(depth=3), 1, 3, 518, 518)  # fewer blocks: 1,374 tokens are slow


@pytest.mark.slow
def test_vit_small_dinov2_with_registers_at_its_own_size_and_depth() -> None:
    assert_equal(*small_pair(depth=12), 2, 3, 518, 518)


TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
TINY |= {"num_classes": 0, "global_pool": "", "no_embed_class": True, "dynamic_img_size": True}
VARIANTS = {
    "swiglu": (
        {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 2 * 128 / 48},
        {"feed_forward": "swiglu"},  # 48 x 4 x 2/3 = 128
    ),
    "qk_norm": ({"qk_norm": True}, {"qk_norm": True}),
    "registers": ({"reg_tokens": 2, "init_values": 0.5}, {"n_registers": 2, "layer_scale": 0.5}),
    "narrow_mlp": ({"mlp_ratio": 2.5}, {"mlp_ratio": 2.5}),
    "epsilon": ({"norm_layer": partial(nn.LayerNorm, eps=0.1)}, {"norm_eps": 0.1}),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("edge_px", [32, 56])
def test_every_architecture_option(variant: str, edge_px: int) -> None:
    theirs_options, ours_options = VARIANTS[variant]
    theirs = randomise(TimmVisionTransformer(**TINY, **theirs_options))
    options = {"layer_scale": None, **ours_options}
    ours = VisionTransformer(image_px=32, patch_px=8, width=48, depth=3, n_heads=3, **options)
    assert_equal(strictly_loaded(ours, theirs), theirs, 2, 3, edge_px, edge_px)


def test_a_norm_after_the_patch_projection_is_named_as_timms() -> None:
    theirs = TimmVisionTransformer(**TINY, embed_norm_layer=partial(nn.LayerNorm, eps=1e-6))
    ours = VisionTransformer(
        image_px=32, patch_px=8, width=48, depth=3, n_heads=3, layer_scale=None,
        dual_patch_norm=True,
    )  # fmt: skip
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) == OURS_ALONE | {
        "patch_embed.norm_in.weight",
        "patch_embed.norm_in.bias",
    }


def test_gradients_equal_timms() -> None:
    theirs = randomise(TimmVisionTransformer(**TINY, reg_tokens=2, init_values=0.5))
    ours = VisionTransformer(
        image_px=32, patch_px=8, width=48, depth=3, n_heads=3, n_registers=2, layer_scale=0.5
    )
    strictly_loaded(ours, theirs)
    image = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(7))
    weight = torch.randn(2, 52, 48, generator=torch.Generator().manual_seed(8))
    (theirs.forward_features(image) * weight).sum().backward()
    (tokens(ours, image) * weight).sum().backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if name not in OURS_ALONE:
            torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-4, rtol=1e-4)
