"""Strict conversion of Prov-GigaPath's published slide encoder to ours.

Shape suffixes: D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anlage.encoders.weight_files import as_float32
from anlage.encoders.weights import Conversion
from anlage.errors import EncoderError
from anlage.models.grid_positions import grid_positions
from anlage.models.slide_encoder import SlideEncoder
from anlage.models.without_weights import without_weights

PUBLISHED = {  # what stands before ``.weight`` and ``.bias``, ours to theirs
    "tile_embed": "patch_embed.proj",
    "norm1": "self_attn_layer_norm",
    "attn.inner_norm": "self_attn.inner_attn_ln",
    "attn.proj": "self_attn.out_proj",
    "norm2": "final_layer_norm",
    "mlp.fc1": "ffn.fc1",
    "mlp.inner_norm": "ffn.ffn_layernorm",
    "mlp.fc2": "ffn.fc2",
    "encoder_norm": "encoder.layer_norm",
    "norm": "norm",
}
QUERIES_KEYS_VALUES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LEFT_OUT = re.compile(r"^(?:mask_token$|decoder)")
POSITIONS = "pos_embed"


def convert_slide_weights(
    weights: Mapping[str, Tensor], architecture: Mapping[str, Any], *, path: str | Path
) -> Conversion:
    """A published state dict as that of our ``SlideEncoder``; nothing is lost unsaid.

    Queries, keys and values become one layer. A decoder and a mask token, which pretraining alone
    uses, are left out, and so is a table of positions that holds what ours are computed to be; the
    notes say so. Every other tensor is used.

    Args:
        weights: Tensors by the names of ``gigapath.slide_encoder.LongNetViT``.
        architecture: Keyword arguments of ``SlideEncoder``.
        path: Where the weights came from; errors carry it.

    Returns:
        The whole state dict in float32, and notes.

    Raises:
        EncoderError: If a tensor is unknown, missing, misshapen or not finite, or positions are
            not the fixed ones.
    """
    with without_weights():
        wanted = SlideEncoder(**architecture).state_dict()
    unused = {name for name in weights if LEFT_OUT.match(name)}
    notes = [f"Left out {_listed(sorted(unused))}: used in pretraining alone."] if unused else []
    if POSITIONS in weights:
        _refuse_other_positions(weights[POSITIONS], path)
        unused.add(POSITIONS)
        notes.append(f"Left out {POSITIONS}: fixed positions, computed from cells.")
    found = as_float32({n: t for n, t in weights.items() if n not in unused}, path=path)
    sources = {name: _published(name) for name in wanted}
    _refuse_misfits(found, wanted, sources, path)
    ours = {
        name: torch.cat([found[source] for source in sources[name]]).reshape(tensor.shape)
        for name, tensor in wanted.items()
    }
    return Conversion(ours, tuple(notes))


def _published(name: str) -> tuple[str, ...]:
    """The published tensors that one of ours is made of."""
    if name == "slide_token":
        return ("cls_token",)
    part, _, kind = name.rpartition(".")
    block = re.match(r"blocks\.(\d+)\.(.+)", part)
    if block is None:
        return (f"{PUBLISHED[part]}.{kind}",)
    inside = QUERIES_KEYS_VALUES if block[2] == "attn.qkv" else (PUBLISHED[block[2]],)
    return tuple(f"encoder.layers.{block[1]}.{each}.{kind}" for each in inside)


def _refuse_misfits(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    sources: Mapping[str, tuple[str, ...]],
    path: str | Path,
) -> None:
    shapes = {
        source: _shape_of_part(name, tensor, len(sources[name]))
        for name, tensor in wanted.items()
        for source in sources[name]
    }
    misfits = [
        *(f"no tensor {name!r}" for name in sorted(shapes.keys() - found.keys())),
        *(f"an unknown tensor {name!r}" for name in sorted(found.keys() - shapes.keys())),
        *(
            f"tensor {name!r} of shape {tuple(found[name].shape)} for {shape}"
            for name, shape in shapes.items()
            if name in found and tuple(found[name].shape) != shape
        ),
    ]
    if misfits:
        told = "; ".join(misfits[:3]) + (f"; and {len(misfits) - 3} more" if misfits[3:] else "")
        msg = f"does not fit this slide encoder: {told}. Name the file of this encoder."
        raise EncoderError(path, msg)


def _shape_of_part(name: str, tensor: Tensor, n_parts: int) -> tuple[int, ...]:
    if name == "slide_token":
        return (1, *tensor.shape)
    return (tensor.shape[0] // n_parts, *tensor.shape[1:])


def _refuse_other_positions(table_1ND: Tensor, path: str | Path) -> None:
    """Refuse a table that, at its corners or at the slide token, does not hold the fixed ones.

    Row ``1 + n x + y`` is cell (x, y), n the cells of a side.
    """
    fits = table_1ND.ndim == 3 and table_1ND.shape[2] % 4 == 0
    n_cells = isqrt(max(table_1ND.shape[1] - 1, 0)) if fits else 0
    if n_cells and table_1ND.shape[1] == 1 + n_cells**2:
        end_2 = torch.tensor([0, n_cells - 1])
        cell_42 = torch.cartesian_prod(end_2, end_2)
        row_4 = 1 + n_cells * cell_42[:, 0] + cell_42[:, 1]
        fixed_4D = grid_positions(cell_42, width=table_1ND.shape[2])
        at_corners = torch.allclose(table_1ND[0, row_4].float(), fixed_4D, atol=1e-3)
        if at_corners and not table_1ND[0, 0].any():
            return
    msg = (
        f"tensor {POSITIONS!r} of shape {tuple(table_1ND.shape)} does not hold the fixed sines and "
        "cosines of GigaPath. Learned positions cannot be converted."
    )
    raise EncoderError(path, msg)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
