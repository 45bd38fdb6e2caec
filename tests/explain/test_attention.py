"""Attention maps equal timm's own softmax, taken out of its unfused attention."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

from anlage.explain.attention import attention_maps
from anlage.models.vit import VisionTransformer

SETTINGS = {"image_px": 32, "patch_px": 8, "width": 48, "depth": 3, "n_heads": 3}


def pair(*, qk_norm: bool, n_registers: int):
    theirs = TimmVisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=0,
        no_embed_class=True,
        dynamic_img_size=True,
        reg_tokens=n_registers,
        init_values=0.5,
        qk_norm=qk_norm,
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.ndim == 1 and not name.endswith("bias")
            parameter.copy_(1 + 0.1 * noise if is_gain else 0.2 * noise)
    ours = VisionTransformer(
        **SETTINGS, n_registers=n_registers, layer_scale=0.5, qk_norm=qk_norm, stochastic_depth=0.4
    )
    ours.load_state_dict(theirs.state_dict(), strict=False)
    return ours.eval(), theirs.eval()


def images(n: int, *size: int) -> torch.Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def timm_maps(theirs: TimmVisionTransformer, image: torch.Tensor, block: int) -> torch.Tensor:
    attention = theirs.blocks[block].attn
    attention.fused_attn = False
    seen = []
    attention.attn_drop.register_forward_hook(lambda _, given, out: seen.append(out))
    theirs.forward_features(image)
    grid = [edge // 8 for edge in image.shape[2:]]
    return seen[0][:, :, 0, theirs.num_prefix_tokens :].unflatten(-1, grid)


@pytest.mark.parametrize("block", [-1, 0, 1])
@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
@pytest.mark.parametrize(("qk_norm", "n_registers"), [(False, 2), (True, 0)])
def test_equals_timms_softmax(block, size, qk_norm, n_registers) -> None:
    ours, theirs = pair(qk_norm=qk_norm, n_registers=n_registers)
    image = images(2, *size)
    maps = attention_maps(ours, image, block=block)
    assert maps.shape == (2, 3, size[0] // 8, size[1] // 8)
    assert maps.std() > 0.1 * maps.mean()  # the weights tell patches apart
    torch.testing.assert_close(maps, timm_maps(theirs, image, block), atol=1e-6, rtol=1e-5)


def test_shares_are_of_all_tokens_not_of_patches_alone() -> None:
    ours, _ = pair(qk_norm=False, n_registers=2)
    total = attention_maps(ours, images(2, 32, 32)).sum(dim=(-2, -1))
    assert ((total > 0) & (total < 1)).all()


def test_leaves_no_hook_and_gives_ordinary_tensors() -> None:
    ours, _ = pair(qk_norm=False, n_registers=2)
    maps = attention_maps(ours, images(1, 32, 32))
    assert not maps.is_inference()
    assert not any(module._forward_pre_hooks for module in ours.modules())
    with pytest.raises(ValueError, match="multiples? of"):
        attention_maps(ours, images(1, 30, 30))
    assert not any(module._forward_pre_hooks for module in ours.modules())


@pytest.mark.parametrize("block", [3, -4])
def test_refuses_a_block_that_is_not_there(block) -> None:
    ours, _ = pair(qk_norm=False, n_registers=2)
    with pytest.raises(ValueError, match=f"block needs to be -3 to 2; got {block}"):
        attention_maps(ours, images(1, 32, 32), block=block)


def test_refuses_a_model_in_training() -> None:
    ours, _ = pair(qk_norm=False, n_registers=2)
    with pytest.raises(ValueError, match="evaluation mode; got one in training"):
        attention_maps(ours.train(), images(1, 32, 32))
