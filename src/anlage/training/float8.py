"""Linear layers that multiply in float8, by torchao: for wide networks on GPUs that can.

Not verified on such a GPU: on a CPU the rounding to float8 is tested, products are emulated.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace

import torch
from torch import nn

from anlage.errors import DeviceError, RecipeError
from anlage.models.vit import VisionTransformer

LOGGER = logging.getLogger(__name__)
SETTING = "engine.linears=float8"
MULTIPLE = 16
"""What both sides of a weight have to be a multiple of."""
LEAST_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs with float8 products."""


def use_float8(encoder: VisionTransformer, *, emulate: bool = False) -> None:
    """Have the linear layers of all blocks multiply in float8, in place.

    Those with a side that is no multiple of 16 are left as they are, and named in the log.

    Each row of tokens and of weights, and of gradients on the way back, is scaled by itself and
    rounded to E4M3; products with them give bf16. Gradients of weights are products in bf16, which
    is more exact, and works with any number of tokens (torchao's ``rowwise_with_gw_hp``). The
    weights themselves stay as they are, under the same names, so that a run may go on without it.
    Call it before the blocks are compiled and before the network is sharded.

    Args:
        encoder: The transformer.
        emulate: Round to float8, but multiply in the tokens' own format, on any device.

    Raises:
        RecipeError: If torchao is not installed, or every layer would be left as it is.

    Source: Micikevicius et al. 2022, FP8 formats, arXiv:2209.05433 (E4M3; gradients in it too, as
        each row has its own scale).
    """
    if importlib.util.find_spec("torchao") is None:
        msg = "needs the package torchao, which is not installed. pip install 'anlage[float8]'"
        raise RecipeError(SETTING, msg)
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    linears = {n: m for n, m in encoder.blocks.named_modules() if isinstance(m, nn.Linear)}
    left = {name for name, linear in linears.items() if not _fits(linear)}
    if len(left) == len(linears):
        msg = (
            f"needs linear layers whose sides are multiples of {MULTIPLE}; got none among those of "
            f"blocks {encoder.width} wide. Choose another model.width, or engine.linears=plain."
        )
        raise RecipeError(SETTING, msg)
    how = Float8LinearConfig.from_recipe_name("rowwise_with_gw_hp")
    convert_to_float8_training(
        encoder.blocks,
        module_filter_fn=lambda _, name: name in linears and name not in left,
        config=replace(how, emulate=emulate),
    )
    if left:
        kinds = sorted({name.partition(".")[2] for name in left})
        LOGGER.info(
            "%s: %s of each block have a side that is no multiple of %d and stay plain",
            SETTING,
            ", ".join(kinds),
            MULTIPLE,
        )


def _fits(linear: nn.Linear) -> bool:
    return all(side % MULTIPLE == 0 for side in linear.weight.shape)


def refuse_without_float8(device: torch.device, dtype: torch.dtype | None) -> None:
    """Refuse devices and formats that have no float8 products.

    Args:
        device: Where the network trains.
        dtype: From ``autocast_dtype``.

    Raises:
        DeviceError: If it is no NVIDIA GPU of compute capability 8.9 or more.
        RecipeError: If the run is not in bf16.
    """
    found = device.type
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) >= LEAST_CAPABILITY:
            found = ""
        else:
            found = f"{torch.cuda.get_device_name(device)} ({major}.{minor})"
    if found:
        msg = (
            "has no float8 products: they need an NVIDIA GPU of compute capability 8.9 or more. "
            "Take engine.linears=plain; a run may go on with it."
        )
        raise DeviceError(found, msg)
    if dtype != torch.bfloat16:
        msg = "needs precision=bf16; got float32. Set it, or take engine.linears=plain."
        raise RecipeError(SETTING, msg)
