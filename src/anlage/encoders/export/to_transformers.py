"""A folder that transformers opens, as Dinov2 or Dinov2WithRegisters.

Shape suffixes: N patches, D width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
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

LIBRARY = "transformers"
LARGEST_RATIO = 16
RENAMED = (
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
)
GATED = ((r"\.mlp\.fc1\.", ".mlp.weights_in."), (r"\.mlp\.fc2\.", ".mlp.weights_out."))
USAGE = """\
import torch
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("FOLDER").eval()
processor = AutoImageProcessor.from_pretrained("FOLDER")
tokens = model(**processor(tile, return_tensors="pt")).last_hidden_state  # tile: a PIL picture
"""
CLS = "embedding = tokens[:, 0]  # (1, {width})\n"
CLS_MEAN = """\
embedding = torch.cat([tokens[:, 0], tokens[:, {first}:].mean(dim=1)], dim=1)  # (1, {width})
"""


def write_transformers(encoder: TileEncoder, folder: Path) -> Written:
    """Write what transformers' ``AutoModel.from_pretrained(FOLDER)`` opens.

    Positions are brought to the grid of the encoder's tiles. A missing LayerScale becomes one of
    gain 1, and the class token gets a position of 0: the same function.

    Args:
        encoder: In float32, on the CPU.
        folder: Empty folder to write to.

    Returns:
        What was written.

    Raises:
        EncoderError: If Dinov2 cannot express the encoder, or transformers opens it to other
            embeddings.
    """
    sizes = sizes_of(encoder)
    reasons = []
    if sizes.has_dual_patch_norm:
        reasons.append("Dinov2 has no norm before the patch projection (dual patch norm)")
    if sizes.has_qk_norm:
        reasons.append("Dinov2 has no norm of queries and keys (QK norm)")
    if whole_ratio(sizes) is None:
        reasons.append(
            f"Dinov2 has whole mlp ratios alone, and no such one makes its {sizes.feed_forward} "
            f"{sizes.hidden} wide"
        )
    refuse_what_cannot_be_said(LIBRARY, reasons)
    weights = _weights(encoder, sizes)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, value in (
        ("config.json", _config(encoder, sizes)),
        ("preprocessor_config.json", _processor(encoder)),
    ):
        text = json.dumps(value, indent=2, allow_nan=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    first = 1 + sizes.n_registers
    usage = CLS if encoder.config.pooling == "cls" else CLS_MEAN
    return Written(
        library=LIBRARY,
        usage=USAGE + usage.format(width=encoder.width, first=first),
        notes=_notes(encoder, sizes),
        checked=_checked(encoder, folder),
    )


def in_their_names(weights: Mapping[str, Tensor], *, sizes: EncoderSizes) -> dict[str, Tensor]:
    """Tensors of our transformer in the names of transformers' Dinov2.

    Args:
        weights: State dict of our transformer, without dual patch norm and QK norm.
        sizes: Its sizes.

    Returns:
        Contiguous copies; ``qkv`` in three, a position of 0 for the class token, gains of 1 where
        there was no LayerScale.
    """
    renamed = (*RENAMED, *(GATED if sizes.feed_forward == "swiglu" else ()))
    theirs: dict[str, Tensor] = {}
    for ours, tensor in weights.items():
        name = ours
        for pattern, replacement in renamed:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                theirs[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = rows
        elif name == "pos_embed":
            none_11D = torch.zeros_like(tensor[:, :1])
            theirs["embeddings.position_embeddings"] = torch.cat([none_11D, tensor], dim=1)
        else:
            theirs[name] = tensor
    if not sizes.has_layer_scale:
        for block in range(sizes.depth):
            for branch in (1, 2):
                name = f"encoder.layer.{block}.layer_scale{branch}.lambda1"
                theirs[name] = torch.ones(sizes.width)
    form = torch.contiguous_format
    return {name: tensor.clone(memory_format=form) for name, tensor in theirs.items()}


def whole_ratio(sizes: EncoderSizes) -> int | None:
    """The whole mlp ratio from which Dinov2 computes the hidden width; None if there is none."""
    for ratio in range(1, LARGEST_RATIO + 1):
        hidden = ratio * sizes.width
        if sizes.feed_forward == "swiglu":
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        if hidden == sizes.hidden:
            return ratio
    return None


def _weights(encoder: TileEncoder, sizes: EncoderSizes) -> dict[str, Tensor]:
    state = {name: tensor.detach().cpu() for name, tensor in encoder.model.state_dict().items()}
    state["pos_embed"] = positions_of_tiles(encoder)
    return in_their_names(state, sizes=sizes)


def _config(encoder: TileEncoder, sizes: EncoderSizes) -> dict[str, Any]:
    kind = "Dinov2WithRegisters" if sizes.n_registers else "Dinov2"
    registers = {"num_register_tokens": sizes.n_registers} if sizes.n_registers else {}
    return {
        "architectures": [f"{kind}Model"],
        "model_type": "dinov2_with_registers" if sizes.n_registers else "dinov2",
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": n_heads_of(encoder),
        "mlp_ratio": whole_ratio(sizes),
        "hidden_act": "gelu",
        "layer_norm_eps": norm_eps_of(encoder),
        "image_size": encoder.config.tile_px,
        "patch_size": sizes.patch_px,
        "num_channels": 3,
        "qkv_bias": True,
        "layerscale_value": 1.0,
        "drop_path_rate": 0.0,
        "use_swiglu_ffn": sizes.feed_forward == "swiglu",
        "torch_dtype": "float32",
        **registers,
    }


def _processor(encoder: TileEncoder) -> dict[str, Any]:
    edge = encoder.config.tile_px
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": edge},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": edge, "width": edge},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.config.mean),
        "image_std": list(encoder.config.std),
        "do_convert_rgb": True,
    }


def _notes(encoder: TileEncoder, sizes: EncoderSizes) -> tuple[str, ...]:
    notes = []
    if encoder.config.tile_px != sizes.grid[0] * sizes.patch_px:
        notes.append(
            f"Positions were resampled from {sizes.grid[0]} x {sizes.grid[1]} patches to those of "
            f"{encoder.config.tile_px} px tiles; other sizes of tile differ a little from anlage's."
        )
    if encoder.config.pooling == "cls+mean":
        notes.append(
            "transformers gives the class token alone as `pooler_output`; the mean of the patch "
            "tokens must be added as shown."
        )
    return tuple(notes)


def _checked(encoder: TileEncoder, folder: Path) -> str:
    if find_spec("transformers") is None:
        return "Not opened with transformers, which was not installed where it was written."
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(str(folder), local_files_only=True).eval()
    pixels_B3HW = trial_tiles(encoder)
    with torch.inference_mode():
        tokens_BSD = theirs(normalised(encoder, pixels_B3HW)).last_hidden_state
    found_BD = pooled(encoder, tokens_BSD)
    return largest_difference(
        encoder.embed(pixels_B3HW), found_BD, reader=f"transformers {version('transformers')}"
    )
