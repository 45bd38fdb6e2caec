"""Published sizes of tile encoders, by name."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any


def size_arguments(name: str) -> dict[str, Any]:
    """Arguments of ``VisionTransformer`` that make a published size.

    Args:
        name: A key of ``SIZES``, such as ``vit-l16``.

    Returns:
        Keyword arguments, a copy of the table's.

    Raises:
        ValueError: If no size has this name.
    """
    if not isinstance(name, str) or name not in SIZES:
        typed = str(name).replace("-G", "-bigg").lower()
        near = get_close_matches(typed, SIZES, n=1, cutoff=0)[0]
        msg = (
            f"size_arguments: needs one of {', '.join(SIZES)}; got {name!r}. "
            f"The nearest is {near!r}."
        )
        raise ValueError(msg)
    return dict(SIZES[name])


def _size(shape: tuple[int, int, int], *, patch_px: int, **unlike: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """One row of the table: width, depth and heads, and what is unlike DINOv2's S, B and L."""
    width, depth, n_heads = shape
    usual = {
        "image_px": 224,
        "patch_px": patch_px,
        "width": width,
        "depth": depth,
        "n_heads": n_heads,
        "n_registers": 0,
        "mlp_ratio": 4.0,
        "feed_forward": "mlp",
        "layer_scale": 1e-5,
        "dual_patch_norm": False,
        "qk_norm": False,
    }
    return MappingProxyType(usual | unlike)


# Width, depth, heads.
_TI = (192, 12, 3)
_S = (384, 12, 6)
_B = (768, 12, 12)
_L = (1024, 24, 16)
_H = (1280, 32, 16)
_G = (1536, 40, 24)  # "giant", written g
_BIG_G = (1664, 48, 16)  # "gigantic", written G

SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # DINO and kaiko's S and B, without LayerScale: Caron et al. 2021, arXiv:2104.14294.
        "vit-ti16": _size(_TI, patch_px=16, layer_scale=None),
        "vit-s16": _size(_S, patch_px=16, layer_scale=None),
        "vit-s8": _size(_S, patch_px=8, layer_scale=None),
        "vit-b16": _size(_B, patch_px=16, layer_scale=None),
        "vit-b8": _size(_B, patch_px=8, layer_scale=None),
        # Virchow2G Mini: neither LayerScale nor registers, says its model card.
        "vit-s14-mini": _size(_S, patch_px=14, layer_scale=None),
        # DINOv2: Oquab et al. 2023, arXiv:2304.07193; registers: Darcet et al. 2023,
        # arXiv:2309.16588.
        "vit-s14": _size(_S, patch_px=14),
        "vit-s14-reg4": _size(_S, patch_px=14, n_registers=4),
        "vit-l16": _size(_L, patch_px=16),  # UNI
        "vit-l14-reg4": _size(_L, patch_px=14, n_registers=4),  # kaiko
        "vit-g14": _size(_G, patch_px=14, feed_forward="swiglu"),  # Midnight
        "vit-g14-reg4": _size(_G, patch_px=14, feed_forward="swiglu", n_registers=4),
        "vit-g16": _size(_G, patch_px=16, feed_forward="swiglu"),  # GigaPath
        # Virchow2. Its mlp_ratio of 5.3375 in timm counts gate and value: two thirds of 4 each.
        "vit-h14-reg4": _size(_H, patch_px=14, feed_forward="swiglu", n_registers=4),
        # UNI2-h: the width of g at the depth of L.
        "vit-h14-reg8-uni2": _size(
            (1536, 24, 24), patch_px=14, feed_forward="swiglu", n_registers=8
        ),
        # Virchow2G: G of Zhai et al. 2021, arXiv:2106.04560, whose MLP is 8192 wide; SwiGLU and
        # LayerScale because the model card of Virchow2G Mini says that the Mini leaves them out.
        "vit-bigg14-reg8": _size(
            _BIG_G,
            patch_px=14,
            n_registers=8,
            mlp_ratio=8192 / 1664,
            feed_forward="swiglu",
            dual_patch_norm=True,
            qk_norm=True,
        ),
    }
)
