"""A folder that timm opens: ``config.json`` and ``model.safetensors`` in timm's names."""

from __future__ import annotations

import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from anlage.encoders.encoder_sizes import EncoderSizes
from anlage.encoders.export.written import (
    Written,
    largest_difference,
    n_heads_of,
    norm_eps_of,
    normalised,
    pooled,
    positions_of_tiles,
    refuse_what_cannot_be_said,
    sizes_of,
    trial_tiles,
)
from anlage.encoders.tile_encoder import TileEncoder

LIBRARY = "timm"
TIMM_EPS = 1e-6
PLAIN, SCALED = "vit_small_patch16_224", "vit_small_patch14_reg4_dinov2"
GATED = "vit_giant_patch14_reg4_dinov2"
USAGE = """\
import timm
from timm.data import create_transform, resolve_model_data_config

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = create_transform(**resolve_model_data_config(model), is_training=False)
"""
CLS = "embedding = model(transform(tile)[None])  # tile: a PIL picture; (1, {width})\n"
CLS_MEAN = """\
tokens = model.forward_features(transform(tile)[None])  # tile: a PIL picture
patches = tokens[:, model.num_prefix_tokens :]
embedding = torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1)  # (1, {width})
"""


def write_timm(encoder: TileEncoder, folder: Path) -> Written:
    """Write what ``timm.create_model("local-dir:FOLDER", pretrained=True)`` opens.

    A file cannot tell timm the class of the feed-forward layer, and older versions not that there
    is no LayerScale, so the folder names one of timm's models that has these, and every size. Its
    models with SwiGLU all have a LayerScale; one that is missing becomes one of gain 1.

    Args:
        encoder: In float32, on the CPU.
        folder: Empty folder to write to.

    Returns:
        What was written.

    Raises:
        EncoderError: If timm cannot express the encoder, or opens it to other embeddings.
    """
    sizes = sizes_of(encoder)
    reasons = []
    if sizes.has_dual_patch_norm:
        reasons.append("timm has no norm before the patch projection (dual patch norm)")
    if norm_eps_of(encoder) != TIMM_EPS:
        eps = norm_eps_of(encoder)
        reasons.append(f"timm's LayerNorms have an epsilon of {TIMM_EPS:g}, these {eps:g}")
    refuse_what_cannot_be_said(LIBRARY, reasons)
    weights = _weights(encoder, sizes)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(_config(encoder, sizes), indent=2, allow_nan=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    is_cls = encoder.config.pooling == "cls"
    return Written(
        library=LIBRARY,
        usage=USAGE + (CLS if is_cls else CLS_MEAN).format(width=encoder.width),
        notes=_notes(encoder, sizes),
        checked=_checked(encoder, folder),
    )


def _notes(encoder: TileEncoder, sizes: EncoderSizes) -> tuple[str, ...]:
    notes = []
    if encoder.config.pooling == "cls+mean":
        notes.append(
            "timm pools the class token alone; this encoder's embedding also holds the mean of the "
            "patch tokens, which your code must add as shown."
        )
    if _has_no_gain(sizes):
        notes.append("A LayerScale of gain 1 was added, which timm's models with SwiGLU have.")
    if not encoder.model.antialias:
        notes.append(
            f"Positions were resampled to those of {encoder.config.tile_px} px tiles; at other "
            "sizes timm resamples them with antialiasing, and anlage without."
        )
    return tuple(notes)


def _has_no_gain(sizes: EncoderSizes) -> bool:
    """Whether timm's model has a LayerScale that the encoder has not."""
    return sizes.feed_forward == "swiglu" and not sizes.has_layer_scale


def _weights(encoder: TileEncoder, sizes: EncoderSizes) -> dict[str, Tensor]:
    """In timm's names, which are ours; timm resamples positions with antialiasing alone."""
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in encoder.model.state_dict().items()
        if name != "mask_token"
    }
    if _has_no_gain(sizes):
        gain = torch.ones(sizes.width)
        names = [f"blocks.{block}.ls{k}.gamma" for block in range(sizes.depth) for k in (1, 2)]
        weights |= {name: gain.clone() for name in names}
    if not encoder.model.antialias:
        weights["pos_embed"] = positions_of_tiles(encoder).contiguous()
    return weights


def _config(encoder: TileEncoder, sizes: EncoderSizes) -> dict[str, Any]:
    tile_px = encoder.config.tile_px
    architecture = SCALED if sizes.has_layer_scale else PLAIN
    if sizes.feed_forward == "swiglu":
        architecture = GATED
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": sizes.width,
        "global_pool": "token",
        "model_args": _model_args(encoder, sizes),
        "pretrained_cfg": {
            "architecture": architecture,
            "input_size": [3, tile_px, tile_px],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(encoder.config.mean),
            "std": list(encoder.config.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": encoder.config.provenance.get("licence"),
        },
    }


def _model_args(encoder: TileEncoder, sizes: EncoderSizes) -> dict[str, Any]:
    fc1 = sizes.hidden * (2 if sizes.feed_forward == "swiglu" else 1)
    grid_px = encoder.model.grid[0] * sizes.patch_px
    return {
        "img_size": grid_px if encoder.model.antialias else encoder.config.tile_px,
        "patch_size": sizes.patch_px,
        "embed_dim": sizes.width,
        "depth": sizes.depth,
        "num_heads": n_heads_of(encoder),
        "mlp_ratio": ratio_for(fc1, width=sizes.width),
        "qk_norm": sizes.has_qk_norm,
        "reg_tokens": sizes.n_registers,
        "no_embed_class": True,
        "dynamic_img_size": True,
        "num_classes": 0,
        "global_pool": "token",
    }


def ratio_for(hidden: int, *, width: int) -> float:
    """A ratio for which ``int(width * ratio)`` is the hidden width, whole where it can be."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _checked(encoder: TileEncoder, folder: Path) -> str:
    if find_spec("timm") is None:
        return "Not opened with timm, which was not installed where it was written."
    import timm

    theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels_B3HW = trial_tiles(encoder)
    with torch.inference_mode():
        tokens_BSD = theirs.forward_features(normalised(encoder, pixels_B3HW))
    found_BD = pooled(encoder, tokens_BSD)
    return largest_difference(
        encoder.embed(pixels_B3HW), found_BD, reader=f"timm {version('timm')}"
    )
