"""Weights of transformers' ViTModel and Dinov2Model in timm's names, queries to values in one.

Shape suffixes: D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from anlage.errors import EncoderError

PREFIX = re.compile(
    r"^(?:vit|dinov2|dinov2_with_registers)\.(?=embeddings\.|encoder\.|layernorm\.)"
)
RENAMED = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
IN_A_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
QKV = ("query", "key", "value")
BLOCK = re.compile(r"^encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias|)$")
ATTENTION = re.compile(r"^attention\.attention\.(query|key|value)$")


def is_of_transformers(names: Mapping[str, Tensor]) -> bool:
    """Whether tensors are named as transformers names a vision transformer's."""
    return any(PREFIX.sub("", name) == "embeddings.cls_token" for name in names)


def from_transformers(weights: Mapping[str, Tensor], *, path: str | Path) -> dict[str, Tensor]:
    """The tensors in timm's names.

    The pooler of ViTModel, which is no part of what these encoders give, is left out; a name that
    is not known stays as it is, for whoever loads the tensors to refuse.

    Args:
        weights: Tensors by transformers' names.
        path: Where they came from, for errors.

    Raises:
        EncoderError: If a block lacks one of its queries, keys and values.
    """
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for published, tensor in weights.items():
        name = PREFIX.sub("", published)
        if name.startswith("pooler."):
            continue
        if found := BLOCK.match(name):
            number, inside, kind = found.groups()
            if one := ATTENTION.match(inside):
                parts.setdefault(f"blocks.{number}.attn.qkv{kind}", {})[one[1]] = tensor
                continue
            if inside in IN_A_BLOCK:
                renamed[f"blocks.{number}.{IN_A_BLOCK[inside]}{kind}"] = tensor
                continue
        renamed[_outside(name)] = tensor
    for name, three in parts.items():
        if set(three) != set(QKV):
            msg = f"has {sorted(three)} for {name!r}, and needs query, key and value. "
            raise EncoderError(path, msg + "Copy or download it again.")
        renamed[name] = torch.cat([three[part] for part in QKV])
    if "mask_token" in renamed and renamed["mask_token"].ndim == 3:  # ViTModel's is (1, 1, D)
        renamed["mask_token"] = renamed["mask_token"][0]
    return renamed


def _outside(name: str) -> str:
    stem, dot, kind = name.rpartition(".")
    if name in RENAMED:
        return RENAMED[name]
    return f"{RENAMED[stem]}{dot}{kind}" if stem in RENAMED else name
