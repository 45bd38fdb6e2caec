"""Models of timm: loaded with its weights, and run by its own code.

Shape suffixes: B images, 3 channels, H and W pixels, N patch tokens, D embedding width.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from anlage.encoders.other_network import OtherNetwork
from anlage.encoders.precision import Precision
from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder
from anlage.errors import EncoderError

TIMM = "timm:"


def timm_encoder(
    name: str,
    *,
    mpp: float,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
) -> TileEncoder:
    """Any model of timm's, at its own input size, mean and deviation, pooled by itself.

    Args:
        name: ``timm.list_pretrained()`` has them; ``hf-hub:OWNER/MODEL`` for any on the hub.
        mpp: Resolution to use it at, micrometres per pixel, which timm does not know.
        device: See ``TileEncoder``.
        precision: See ``TileEncoder``.

    Raises:
        EncoderError: If timm is not installed, cannot load it, or it takes other than square RGB.
    """
    source = f"{TIMM}{name}"
    model: Any = timm_model(name)  # at its own classes: timm loads a changed model leniently
    model.reset_classifier(0)
    from timm.data.config import resolve_model_data_config

    told = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    channels, height, width = told["input_size"]
    if channels != 3 or height != width:
        msg = f"takes images of {channels} channels, {height} x {width} px. "
        raise EncoderError(source, msg + "Choose a model of square RGB images.")
    patch_px = _patch_px(model)
    network = OtherNetwork(
        model,
        run=_run,
        width=int(getattr(model, "head_hidden_size", None) or model.num_features),
        token_width=int(model.num_features),
        patch_px=patch_px,
    )
    config = EncoderConfig(
        architecture={"timm": name},
        tile_px=height,
        mpp=mpp,
        mean=told["mean"],
        std=told["std"],
        pooling="own",
        provenance={"source": source, "timm": version("timm"), **published(model)},
    )
    return TileEncoder(config, network, device=device, precision=precision)


def timm_model(name: str) -> nn.Module:
    """A model of timm's with its weights, all of them, in evaluation mode.

    Args:
        name: Its name in timm.

    Raises:
        EncoderError: If timm is not installed or cannot load it.
    """
    source = f"{TIMM}{name}"
    try:
        import timm
    except ImportError as error:
        msg = "needs timm, which is not installed. Run: pip install 'anlage[timm]', or name a file."
        raise EncoderError(source, msg) from error
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # of timm, the hub, the network or the file
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        msg = (
            f"timm cannot load it ({reason}). Check the name with `timm.list_pretrained()` and the "
            "network, or download the weights elsewhere and name the file."
        )
        raise EncoderError(source, msg) from error
    return model.eval()


def published(model: nn.Module) -> dict[str, Any]:
    """What timm says of where the weights come from."""
    told = getattr(model, "pretrained_cfg", None) or {}
    return {key: told[key] for key in ("hf_hub_id", "url", "tag", "license") if told.get(key)}


def _run(model: Any, image_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401 - timm's
    features = model.forward_features(image_B3HW)
    embedding_BD = model.forward_head(features)
    if _patch_px(model) is None:
        return embedding_BD, None
    return embedding_BD, features[:, model.num_prefix_tokens :]


def _patch_px(model: Any) -> int | None:  # noqa: ANN401 - timm's
    """Edge of a patch of a vision transformer that keeps one token a patch."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer | Eva):
        return None
    rows, columns = model.patch_embed.patch_size
    return int(rows) if rows == columns else None
