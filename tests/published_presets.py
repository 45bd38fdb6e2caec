"""What stands in for each preset: the published architecture, built by timm or transformers.

Arguments are those of the model cards and of the loaders that ``Preset.verified`` names. Weights
are random, saved under the published names in the published kind of file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from published_weights import hub_named
from safetensors.torch import load_file, save_file
from timm.layers import SwiGLUPacked
from torch import Tensor, nn

from anlage.encoders.presets import Preset
from anlage.models.without_weights import without_weights

SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
VIRCHOW = {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", **SWIGLU}
H_OPTIMUS = {"img_size": 224, "init_values": 1e-5, "global_pool": "token"}
UNI2 = {
    "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5,
    "embed_dim": 1536, "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, **SWIGLU,
}  # fmt: skip
GIGAPATH = {
    "img_size": 224, "in_chans": 3, "patch_size": 16, "embed_dim": 1536, "depth": 40,
    "num_heads": 24, "mlp_ratio": 5.33334,
}  # fmt: skip
H0_MINI = {"img_size": 224, "mlp_ratio": 2.66667 * 2, **SWIGLU}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "uni": ("vit_large_patch16_224", {"img_size": 224, "patch_size": 16, "init_values": 1e-5}),
    "uni2-h": ("vit_giant_patch14_224", UNI2),
    "virchow": ("vit_huge_patch14_224", VIRCHOW),
    "virchow2": ("vit_huge_patch14_224", {**VIRCHOW, "reg_tokens": 4}),
    "prov-gigapath": ("vit_giant_patch14_dinov2", GIGAPATH),
    "kaiko-vits16": ("vit_small_patch16_224", {}),
    "kaiko-vits8": ("vit_small_patch8_224", {}),
    "kaiko-vitb16": ("vit_base_patch16_224", {}),
    "kaiko-vitb8": ("vit_base_patch8_224", {}),
    "kaiko-vitl14": ("vit_large_patch14_reg4_dinov2", {}),
    "h-optimus-0": ("vit_giant_patch14_reg4_dinov2", H_OPTIMUS),
    "h-optimus-1": ("vit_giant_patch14_reg4_dinov2", H_OPTIMUS),
    "h0-mini": ("vit_base_patch14_reg4_dinov2", H0_MINI),
    "lunit-vits8": ("vit_small_patch8_224", {}),
    "lunit-vits16": ("vit_small_patch16_224", {}),
    "openmidnight": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224}),
    "dinov2-s": ("vit_small_patch14_dinov2", {}),
    "dinov2-b": ("vit_base_patch14_dinov2", {}),
    "dinov2-l": ("vit_large_patch14_dinov2", {}),
    "dinov2-g": ("vit_giant_patch14_dinov2", {}),
}
SWIGLU_14 = {"patch_size": 14, "use_swiglu_ffn": True}
HIBOU = {**SWIGLU_14, "num_register_tokens": 4}


def sized(width: int, depth: int, n_heads: int) -> dict[str, int]:
    """Sizes of a model of transformers."""
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": n_heads}
    return {**sizes, "intermediate_size": 4 * width}


TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "midnight-12k": ("Dinov2", {**sized(1536, 40, 24), **SWIGLU_14}),
    "phikon": ("ViT", {**sized(768, 12, 12), "patch_size": 16, "layer_norm_eps": 1e-12}),
    "phikon-v2": ("Dinov2", {**sized(1024, 24, 16), "patch_size": 16}),
    "hibou-b": ("Dinov2WithRegisters", {**sized(768, 12, 12), **HIBOU}),
    "hibou-l": ("Dinov2WithRegisters", {**sized(1024, 24, 16), **HIBOU}),
}
N_LEAD = {  # tokens before those of the patches, where the mean of these is part of the embedding
    "virchow": 1, "virchow2": 5, "midnight-12k": 1, "h0-mini": 5,
}  # fmt: skip


@dataclass(frozen=True)
class StandIn:
    """A published network with random weights, and its weight file.

    Attributes:
        tokens: (B, 3, H, W) normalised images to (B, S, D) tokens after the last norm.
        file: Where its weights lie, under the published names.
    """

    tokens: Callable[[Tensor], Tensor]
    file: Path

    @torch.no_grad()
    def embed(self, preset: Preset, pixels: Tensor) -> Tensor:
        """As the card says: normalise, run, take CLS, or CLS and the mean of the patches."""
        shape = (1, 3, 1, 1)
        unit = pixels.numpy().astype(np.float64) / 255
        normal = (unit - np.reshape(preset.mean, shape)) / np.reshape(preset.std, shape)
        tokens = self.tokens(torch.from_numpy(normal.astype(np.float32)))
        if preset.name not in N_LEAD:
            return tokens[:, 0]
        return torch.cat([tokens[:, 0], tokens[:, N_LEAD[preset.name] :].mean(1)], dim=1)


def smaller(preset: Preset, *, depth: int, narrow: bool = False) -> Preset:
    """A preset of fewer blocks and, if narrow, of two heads as wide as its own."""
    sizes = {**preset.architecture, "depth": depth}
    width = preset.width
    if narrow:
        sizes |= {"n_heads": 2, "width": 2 * sizes["width"] // sizes["n_heads"]}
        width = sizes["width"] * (2 if preset.pooling == "cls+mean" else 1)
    return preset.model_copy(update={"architecture": sizes, "width": width})


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Weights that keep the size of what passes, gains near 1, positions that count."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 and not name.endswith("bias"):
            parameter.copy_(1 + 0.1 * noise)
        elif parameter.ndim in {2, 4} and "token" not in name:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.1 * noise)
    return model.eval()


def stand_in(preset: Preset, folder: Path, *, grid_px: int | None = None) -> StandIn:
    """The published network of a preset, in the size of that preset, saved in a folder.

    Args:
        preset: As it is published, or a ``smaller`` one.
        folder: Where its weight file goes.
        grid_px: Image size of its positions, where transformers builds it; None for 224.
    """
    file = folder / preset.files[-1]
    if preset.name in TIMM:
        return _of_timm(preset, file)
    return _of_transformers(preset, file, grid_px=grid_px or 224)


def published_sizes(name: str) -> tuple[int, int, int, int]:
    """Width, depth, heads and patch edge of the whole network, from what is published alone."""
    if name in TRANSFORMERS:
        told = TRANSFORMERS[name][1]
        keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")
        return tuple(told[key] for key in keys)
    kind, options = TIMM[name]
    with without_weights():
        model = timm.create_model(kind, pretrained=False, **options)
    heads, patch = model.blocks[0].attn.num_heads, model.patch_embed.patch_size[0]
    return model.embed_dim, len(model.blocks), heads, patch


def _of_timm(preset: Preset, file: Path) -> StandIn:
    sizes = preset.architecture
    kind, options = TIMM[preset.name]
    options = {"num_classes": 0, "dynamic_img_size": True, **options, "depth": sizes["depth"]}
    if sizes["n_heads"] == 2:  # a narrow one
        options |= {"embed_dim": sizes["width"], "num_heads": 2}
        if sizes.get("feed_forward") == "swiglu":  # its ratio is for its own width
            gated = (int(sizes["width"] * 4 * 2 / 3) + 7) // 8 * 8
            options["mlp_ratio"] = (2 * gated + 0.5) / sizes["width"]
    model = randomised(timm.create_model(kind, pretrained=False, **options))
    weights = dict(model.state_dict())
    if preset.name == "openmidnight":
        weights = hub_named(weights)
    save(weights, file)
    return StandIn(model.forward_features, file)


def _of_transformers(preset: Preset, file: Path, *, grid_px: int) -> StandIn:
    import transformers  # seconds to import

    sizes = preset.architecture
    kind, options = TRANSFORMERS[preset.name]
    options = {**options, "num_hidden_layers": sizes["depth"], "image_size": grid_px}
    if sizes["n_heads"] == 2:  # a narrow one
        options |= sized(sizes["width"], sizes["depth"], 2)
    config = getattr(transformers, f"{kind}Config")(**options)
    more = {"add_pooling_layer": False} if kind == "ViT" else {}
    model = randomised(getattr(transformers, f"{kind}Model")(config, **more))
    model.save_pretrained(file.parent)  # under the names of the files on the hub
    if file.name != "model.safetensors":
        torch.save(load_file(file.with_name("model.safetensors")), file)
    return StandIn(lambda image: model(pixel_values=image).last_hidden_state, file)


def save(weights: dict[str, Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        whole = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
        save_file(whole, file, metadata={"format": "pt"})
    else:
        torch.save(weights, file)
