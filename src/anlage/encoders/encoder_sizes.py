"""The sizes of a vision transformer, read from the shapes of its tensors in our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from anlage.errors import EncoderError

HEAD_WIDTH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSizes:
    """What the shapes tell; the number of attention heads is not among it.

    Attributes:
        width: Token width.
        depth: Blocks.
        patch_px: Edge of a patch.
        grid: Rows and columns of the position embedding.
        n_registers: Register tokens.
        hidden: Width that the feed-forward layer's last projection takes.
        feed_forward: ``mlp`` or ``swiglu``.
        has_layer_scale: Residual branches have a gain a channel.
        has_qk_norm: Queries and keys are normalised.
        has_dual_patch_norm: Patches are normalised before their projection.
    """

    width: int
    depth: int
    patch_px: int
    grid: tuple[int, int]
    n_registers: int
    hidden: int
    feed_forward: Literal["mlp", "swiglu"]
    has_layer_scale: bool
    has_qk_norm: bool
    has_dual_patch_norm: bool


def encoder_sizes(weights: Mapping[str, Tensor], *, path: str | Path) -> EncoderSizes:
    """Read the sizes from shapes.

    Args:
        weights: Tensors in our names; may be on the meta device.
        path: Where they came from, for errors.

    Raises:
        EncoderError: If a tensor that tells a size is missing or of an unknown shape.
    """
    width = _shape(weights, "cls_token", 3, path)[2]
    patch = _shape(weights, "patch_embed.proj.weight", 4, path)
    n_patches = _shape(weights, "pos_embed", 3, path)[1]
    fc1 = _shape(weights, "blocks.0.mlp.fc1.weight", 2, path)[0]
    fc2 = _shape(weights, "blocks.0.mlp.fc2.weight", 2, path)[1]
    if patch[1] != 3 or patch[2] != patch[3]:
        msg = f"needs a patch projection of 3 channels and square patches; got shape {patch}. "
        raise EncoderError(path, msg + "Choose an encoder of RGB images.")
    if fc1 not in {fc2, 2 * fc2}:
        msg = f"needs a feed-forward layer that is an MLP or SwiGLU; got fc1 {fc1} to fc2 {fc2}. "
        raise EncoderError(path, msg + "Choose an encoder with one of the two.")
    blocks = {int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d+)\.", name))}
    return EncoderSizes(
        width=width,
        depth=max(blocks) + 1,
        patch_px=patch[2],
        grid=(isqrt(n_patches), isqrt(n_patches)),
        n_registers=_shape(weights, "reg_token", 3, path)[1] if "reg_token" in weights else 0,
        hidden=fc2,
        feed_forward="mlp" if fc1 == fc2 else "swiglu",
        has_layer_scale="blocks.0.ls1.gamma" in weights,
        has_qk_norm="blocks.0.attn.q_norm.weight" in weights,
        has_dual_patch_norm="patch_embed.norm_in.weight" in weights,
    )


def architecture_of(
    sizes: EncoderSizes, *, path: str | Path, n_heads: int | None = None
) -> dict[str, Any]:
    """Arguments of ``VisionTransformer`` with these sizes.

    Args:
        sizes: As ``encoder_sizes`` gives them.
        path: Where they came from, for errors.
        n_heads: Attention heads; None for heads 64 wide, as in every published DINO and DINOv2.

    Raises:
        EncoderError: If the heads do not divide the width, or no ``mlp_ratio`` gives the hidden
            width.
    """
    heads = sizes.width // HEAD_WIDTH if n_heads is None else n_heads
    if heads < 1 or sizes.width % heads or (n_heads is None and sizes.width % HEAD_WIDTH):
        asked = f"heads {HEAD_WIDTH} wide" if n_heads is None else f"{n_heads} heads"
        msg = f"needs a width that its heads divide; got {sizes.width} for {asked}. Give n_heads."
        raise EncoderError(path, msg)
    return {
        "image_px": sizes.grid[0] * sizes.patch_px,
        "patch_px": sizes.patch_px,
        "width": sizes.width,
        "depth": sizes.depth,
        "n_heads": heads,
        "n_registers": sizes.n_registers,
        "mlp_ratio": mlp_ratio_of(sizes, path),
        "feed_forward": sizes.feed_forward,
        "layer_scale": 1e-5 if sizes.has_layer_scale else None,
        "dual_patch_norm": sizes.has_dual_patch_norm,
        "qk_norm": sizes.has_qk_norm,
    }


def mlp_ratio_of(sizes: EncoderSizes, path: str | Path) -> float:
    """The plainest ``mlp_ratio`` from which the model computes this hidden width.

    Args:
        sizes: As ``encoder_sizes`` gives them.
        path: Where they came from, for errors.

    Raises:
        EncoderError: If there is none.
    """
    whole = sizes.hidden * (1.5 if sizes.feed_forward == "swiglu" else 1) / sizes.width
    for ratio in (4.0, round(whole, 2), whole, whole + 0.5 / sizes.width):
        hidden = int(sizes.width * ratio)
        if sizes.feed_forward == "swiglu":
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        if hidden == sizes.hidden:
            return ratio
    msg = (
        f"needs a SwiGLU hidden width that is a multiple of 8; got {sizes.hidden}. "
        "Choose another encoder."
    )
    raise EncoderError(path, msg)


def _shape(
    weights: Mapping[str, Tensor], name: str, n_axes: int, path: str | Path
) -> tuple[int, ...]:
    if name not in weights or weights[name].ndim != n_axes or not all(weights[name].shape):
        found = f"shape {tuple(weights[name].shape)}" if name in weights else "none"
        msg = f"needs a tensor {name!r} of {n_axes} axes, none empty; got {found}. "
        raise EncoderError(path, msg + "Choose a vision transformer of timm, DINO or DINOv2.")
    return tuple(weights[name].shape)
