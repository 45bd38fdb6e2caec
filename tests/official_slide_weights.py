"""Weights in the format of Prov-GigaPath's ``slide_encoder.pth``, and bags to run them on.

Names and shapes are written down here once more; ``tests/golden/regenerate_slide_encoder.py`` loads
them strictly into the official code. Values come from no random generator.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden.inputs import wave
from torch import Tensor

N_COLUMNS = 90  # of the grid that the tiles of a bag lie on


def official_shapes(*, input_width: int, width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a published file."""
    norm = {"weight": (width,), "bias": (width,)}
    square = {"weight": (width, width), "bias": (width,)}
    hidden = 4 * width
    layer = {
        "self_attn.k_proj": square,
        "self_attn.v_proj": square,
        "self_attn.q_proj": square,
        "self_attn.out_proj": square,
        "self_attn.inner_attn_ln": norm,
        "self_attn_layer_norm": norm,
        "ffn.fc1": {"weight": (hidden, width), "bias": (hidden,)},
        "ffn.fc2": {"weight": (width, hidden), "bias": (width,)},
        "ffn.ffn_layernorm": {"weight": (hidden,), "bias": (hidden,)},
        "final_layer_norm": norm,
    }
    parts = {"patch_embed.proj": {"weight": (width, input_width), "bias": (width,)}}
    for index in range(depth):
        parts |= {f"encoder.layers.{index}.{name}": shapes for name, shapes in layer.items()}
    parts |= {"encoder.layer_norm": norm, "norm": norm}
    named = {
        f"{part}.{kind}": shape for part, shapes in parts.items() for kind, shape in shapes.items()
    }
    return {"cls_token": (1, 1, width), **named}


def official_weights(*, input_width: int, width: int, depth: int) -> dict[str, Tensor]:
    """A state dict that keeps the size of what passes, with gains near 1 and biases that count."""
    weights = {}
    shapes = official_shapes(input_width=input_width, width=width, depth=depth)
    for index, (name, shape) in enumerate(shapes.items()):
        values = torch.from_numpy(wave(*shape, phase=0.01 * index))
        if len(shape) == 2:
            weights[name] = values * (2 / shape[1]) ** 0.5
        elif name.endswith("weight"):
            weights[name] = 1 + 0.1 * values
        else:
            weights[name] = 0.1 * values
    return weights


def write_official_file(folder: Path, **sizes: int) -> Path:
    """A ``slide_encoder.pth`` of these sizes."""
    path = folder / "slide_encoder.pth"
    torch.save({"model": official_weights(**sizes)}, path)
    return path


def bag_of(n_tiles: int, *, input_width: int) -> tuple[Tensor, Tensor]:
    """Tile embeddings (T, I), and their cells (T, 2) row by row with gaps."""
    place = np.arange(n_tiles) + np.arange(n_tiles) // 3
    cell_T2 = np.stack([place % N_COLUMNS, place // N_COLUMNS], axis=1)
    features_TI = wave(n_tiles, input_width, phase=0.3 + n_tiles)
    return torch.from_numpy(features_TI), torch.from_numpy(cell_T2)
