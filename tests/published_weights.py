"""Stand-ins for published encoders: timm's own models, small and with random weights."""

from __future__ import annotations

import re

import timm
import torch
from torch import Tensor, nn

from anlage.models.vit import VisionTransformer

SIZES = {"embed_dim": 96, "depth": 3, "num_heads": 3}
KINDS = {
    "vit_small_patch16_224.dino": {"img_size": 64, "patch_px": 16},
    "vit_small_patch8_224.dino": {"img_size": 32, "patch_px": 8},
    "vit_base_patch16_224": {"img_size": 64, "patch_px": 16},  # with a classifier
    "vit_small_patch14_dinov2": {"img_size": 56, "patch_px": 14, "layer_scale": 1e-5},
    "vit_large_patch14_reg4_dinov2": {
        "img_size": 56, "patch_px": 14, "layer_scale": 1e-5, "n_registers": 4,
    },
    "vit_giant_patch14_dinov2": {
        "img_size": 56, "patch_px": 14, "layer_scale": 1e-5, "feed_forward": "swiglu",
    },
    "vit_giant_patch14_reg4_dinov2": {
        "img_size": 56, "patch_px": 14, "layer_scale": 1e-5, "feed_forward": "swiglu",
        "n_registers": 4,
    },
}  # fmt: skip


def theirs(kind: str, seed: int = 0, **options: object) -> nn.Module:
    """Timm's model with weights of ordinary size everywhere."""
    options = {"img_size": KINDS[kind]["img_size"], **SIZES, **options}
    return randomised(timm.create_model(kind, pretrained=False, **options), seed)


def architecture(kind: str, **changes: object) -> dict:
    """Arguments of our transformer for the same encoder."""
    told = {key: value for key, value in KINDS[kind].items() if key != "img_size"}
    ours = {"image_px": KINDS[kind]["img_size"], "width": 96, "depth": 3, "n_heads": 3}
    return {**ours, "layer_scale": None, **told, **changes}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.ndim == 1 and not name.endswith("bias")
            parameter.copy_(1 + 0.1 * noise if is_gain else 0.05 * noise)
    return model.eval()


def hub_named(weights: dict[str, Tensor], chunk: int | None = None) -> dict[str, Tensor]:
    """Timm's tensors as dinov2 names them; ``chunk`` blocks go under one more number."""
    fc1, fc2 = (weights[f"blocks.0.mlp.fc{i}.weight"].shape for i in (1, 2))
    renamed = {"reg_token": "register_tokens"}
    if fc1[0] == 2 * fc2[1]:
        renamed |= {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    named = {"mask_token": torch.full((1, fc2[0]), 0.25)}
    for timms, tensor in weights.items():
        hubs = timms
        for old, new in renamed.items():
            hubs = hubs.replace(old, new)
        if chunk is not None and (block := re.match(r"blocks\.(\d+)\.(.*)", hubs)):
            hubs = f"blocks.{int(block[1]) // chunk}.{block[1]}.{block[2]}"
        named[hubs] = tensor
    n_patches = weights["pos_embed"].shape[1]
    if "register_tokens" in named and int(n_patches**0.5) ** 2 == n_patches:
        lead = torch.full_like(named["cls_token"], 0.125)  # dinov2 keeps the class position apart
        named["cls_token"] = named["cls_token"] - lead
        named["pos_embed"] = torch.cat([lead, named["pos_embed"]], dim=1)
    return named


def loaded(weights: dict[str, Tensor], arguments: dict) -> VisionTransformer:
    model = VisionTransformer(**arguments)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def tokens(model: VisionTransformer, image_B3HW: Tensor) -> Tensor:
    output = model.embed(image_B3HW)
    return torch.cat([output.cls_BD[:, None], output.registers_BRD, output.patches_BND], dim=1)


@torch.no_grad()
def assert_same_function(ours: VisionTransformer, model: nn.Module, size_px: int) -> None:
    image = torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(7))
    wanted = model.forward_features(image)
    torch.testing.assert_close(tokens(ours, image), wanted, atol=1e-5, rtol=1e-5)
