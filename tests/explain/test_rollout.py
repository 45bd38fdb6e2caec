"""Rollout equals the whole product of timm's own attention matrices."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

from anlage.explain import rollout
from anlage.explain.rollout import attention_rollout
from anlage.models.vit import VisionTransformer
from reference.slow_rollout import slow_rollout

SETTINGS = {"image_px": 32, "patch_px": 8, "width": 48, "depth": 4, "n_heads": 3}


def pair(*, qk_norm: bool, n_registers: int):
    theirs = TimmVisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=4,
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
    ours = VisionTransformer(**SETTINGS, n_registers=n_registers, layer_scale=0.5, qk_norm=qk_norm)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    return ours.eval(), theirs.eval()


def images(n: int, *size: int) -> torch.Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def matrices(theirs: TimmVisionTransformer, image: torch.Tensor) -> list[np.ndarray]:
    """Each layer's softmax, (B, H, S, S), out of timm's unfused attention."""
    seen = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, given, out: seen.append(out.numpy()))
    theirs.forward_features(image)
    return seen


@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
@pytest.mark.parametrize(("qk_norm", "n_registers"), [(False, 2), (True, 0)])
def test_equals_the_product_of_whole_matrices(size, qk_norm, n_registers) -> None:
    ours, theirs = pair(qk_norm=qk_norm, n_registers=n_registers)
    image = images(2, *size)
    found = attention_rollout(ours, image)
    assert found.shape == (2, size[0] // 8, size[1] // 8)
    layers = matrices(theirs, image)
    for number in range(2):
        rolled = slow_rollout([layer[number] for layer in layers])
        wanted = rolled[0, 1 + n_registers :].reshape(found.shape[1:])
        assert wanted.std() > 0.05 * wanted.mean()  # the weights tell patches apart
        np.testing.assert_allclose(found[number].numpy(), wanted, atol=1e-7, rtol=1e-5)


def test_chunks_do_not_change_it(monkeypatch) -> None:
    ours, _ = pair(qk_norm=False, n_registers=2)
    whole = attention_rollout(ours, images(1, 32, 32))
    monkeypatch.setattr(rollout, "CHUNK", 3 * 19 * 5)  # five rows of attention at a time
    torch.testing.assert_close(attention_rollout(ours, images(1, 32, 32)), whole)


def test_a_share_is_left_to_class_and_register_tokens() -> None:
    ours, _ = pair(qk_norm=False, n_registers=2)
    total = attention_rollout(ours, images(3, 32, 32)).sum(dim=(-2, -1))
    assert ((total > 0) & (total < 1 - 0.5**4)).all()  # the class token keeps 0.5 a layer at least


def test_a_model_that_attends_evenly_spreads_evenly() -> None:
    """Queries of zero make every row 1 / S; the product is then known."""
    ours, _ = pair(qk_norm=False, n_registers=0)
    with torch.no_grad():
        for block in ours.blocks:
            block.attn.qkv.weight[:48] = 0
            block.attn.qkv.bias[:48] = 0
    share = attention_rollout(ours, images(1, 32, 32))
    torch.testing.assert_close(share, torch.full((1, 4, 4), (1 - 0.5**4) / 17))


def test_refuses_a_model_in_training() -> None:
    ours, _ = pair(qk_norm=False, n_registers=2)
    with pytest.raises(ValueError, match=r"attention_rollout: needs a model in evaluation mode"):
        attention_rollout(ours.train(), images(1, 32, 32))
    assert not any(module._forward_pre_hooks for module in ours.modules())
