"""Sizes of slide encoders by name: arguments of ``SlideEncoder`` but the width of its input."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from anlage.models.dilated_attention import gigapath_branches


def _size(width: int, depth: int, n_heads: int) -> Mapping[str, Any]:
    branches = gigapath_branches()
    return MappingProxyType(
        {
            "width": width,
            "depth": depth,
            "n_heads": n_heads,
            "segments": tuple(branch.segment for branch in branches),
            "dilations": tuple(branch.dilation for branch in branches),
        }
    )


SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tiny": _size(128, 4, 4),
        "base": _size(384, 8, 8),
        # gigapath_slide_enc12l768d: Xu et al. 2024, Prov-GigaPath, and its official code.
        "gigapath": _size(768, 12, 16),
    }
)
