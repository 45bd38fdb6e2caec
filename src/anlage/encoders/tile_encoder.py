"""A tile encoder: a vision transformer with the transform and the pooling it is used with.

Shape suffixes: B tiles, 3 channels, H and W pixels, N patch tokens, D embedding width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from anlage.errors import DeviceError
from anlage.models.vit import TokenOutput, VisionTransformer
from anlage.provenance import sha256_of_json

FORMAT: Final = "encoder/1"
Precision = Literal["auto", "fp32", "bf16"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class EncoderConfig(BaseModel):
    """All of a tile encoder but its weights; the ``config.json`` of an encoder folder.

    Attributes:
        format: Format and version of the folder.
        architecture: Keyword arguments of ``VisionTransformer``.
        tile_px: Edge of the tiles it was made for, pixels at ``mpp``.
        mpp: Resolution it was made for, micrometres per pixel.
        mean: Mean taken off each channel of pixels in [0, 1].
        std: Standard deviation each channel is divided by.
        colour: Colours of the tiles it was made for: as ``stored``, or in ``srgb`` by their slide's
            profile. Bags are made with it unless another is asked for.
        pooling: ``cls``, the class token; ``cls+mean``, it and the mean of the patch tokens.
        provenance: What made it: recipe, run, step, catalogue and slide fingerprints, versions.
        weights_sha256: Checksum of the weights; ``save_encoder`` fills it in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["encoder/1"] = FORMAT
    architecture: dict[str, Any]
    tile_px: int = Field(gt=0)
    mpp: Positive
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    colour: Literal["stored", "srgb"] = "stored"
    pooling: Literal["cls", "cls+mean"] = "cls"
    provenance: dict[str, Any] = Field(default_factory=dict)
    weights_sha256: str | None = None


class TileEncoder:
    """Tiles in, embeddings out: normalises, runs the transformer, pools its tokens.

    Takes the model over: moves it to the device and switches it to evaluation.

    Args:
        config: Architecture, transform, pooling and provenance.
        model: The transformer that ``config.architecture`` describes.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for CUDA where there is one.
        precision: ``fp32``; ``bf16`` (autocast, CUDA only); ``auto`` is bf16 on CUDA devices that
            compute in it and fp32 elsewhere.

    Attributes:
        config: As given.
        model: The transformer, on ``device``, in evaluation mode.
        device: Where it runs.
        precision: ``fp32`` or ``bf16``.

    Raises:
        ValueError: If the device cannot compute in the precision asked for.
    """

    def __init__(
        self,
        config: EncoderConfig,
        model: VisionTransformer,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
    ) -> None:
        self.config = config
        self.device = torch_device(device)
        self.precision = _resolved(precision, self.device)
        self.model = model.to(self.device).eval()
        transform = torch.tensor([config.mean, config.std], dtype=torch.float32) * 255
        self._mean, self._std = transform.to(self.device).view(2, 3, 1, 1)

    @property
    def width(self) -> int:
        """Embedding width D."""
        return self.model.width * (2 if self.config.pooling == "cls+mean" else 1)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over what decides an embedding: architecture, transform, pooling and weights."""
        decides = {"format", "architecture", "tile_px", "mpp", "mean", "std", "pooling"}
        weights = weights_sha256(self.model.state_dict())
        return sha256_of_json([self.config.model_dump(mode="json", include=decides), weights])

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        """Embed tiles.

        Args:
            pixels_B3HW: (B, 3, H, W) uint8 RGB at the encoder's mpp, on any device; H and W are
                multiples of the patch edge, by custom ``tile_px``. B may be 0.

        Returns:
            (B, D) float32 embeddings on the encoder's device.

        Raises:
            ValueError: If the pixels are not (B, 3, H, W) uint8.
        """
        _check_pixels(pixels_B3HW)
        if len(pixels_B3HW) == 0:
            return torch.empty(0, self.width, device=self.device)
        with torch.inference_mode():
            tokens = self._tokens(pixels_B3HW)
            pooled_BD = tokens.cls_BD.float()
            if self.config.pooling == "cls+mean":
                mean_BD = tokens.patches_BND.float().mean(dim=1)
                pooled_BD = torch.cat([pooled_BD, mean_BD], dim=1)
        return pooled_BD.clone()  # an ordinary tensor, which a probe may differentiate

    def patch_tokens(self, pixels_B3HW: Tensor) -> Tensor:
        """Patch tokens of tiles, row by row of the patch grid: (B, N, D) float32, no registers."""
        _check_pixels(pixels_B3HW)
        with torch.inference_mode():
            patches_BND = self._tokens(pixels_B3HW).patches_BND.float()
        return patches_BND.clone()

    def untrained(self, seed: int) -> TileEncoder:
        """An encoder of the same architecture and transform with random weights: a floor.

        The same seed gives the same weights everywhere; the global generators are left alone.
        """
        with torch.random.fork_rng(devices=[]):
            model = VisionTransformer(**self.config.architecture)
        model.initialise(torch.Generator().manual_seed(seed))
        provenance = {"untrained": True, "seed": seed}
        config = self.config.model_copy(update={"provenance": provenance, "weights_sha256": None})
        return TileEncoder(config, model, device=self.device, precision=self.precision)

    def _tokens(self, pixels_B3HW: Tensor) -> TokenOutput:
        pixels_B3HW = pixels_B3HW.to(self.device, non_blocking=True)
        normal_B3HW = pixels_B3HW.float().sub_(self._mean).div_(self._std)
        is_bf16 = self.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_bf16):
            return self.model.embed(normal_B3HW)


def torch_device(name: str | torch.device) -> torch.device:
    """The device of a name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        DeviceError: If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(str(name), "is no device. Name auto, cpu, cuda or cuda:N.") from error
    n_found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_found:
        message = f"is not there: {n_found} CUDA devices found. Name auto or cpu."
        raise DeviceError(str(name), message)
    return device


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values of weights, whatever their order and device."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)};".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _resolved(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    on_cuda = device.type == "cuda"
    if precision == "auto":
        has_bf16 = on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_bf16 else "fp32"
    if precision not in {"fp32", "bf16"} or (precision == "bf16" and not on_cuda):
        msg = (
            "TileEncoder: needs precision auto, fp32, or on CUDA bf16; "
            f"got {precision!r} on {device.type}. Leave it at auto."
        )
        raise ValueError(msg)
    return precision


def _check_pixels(pixels_B3HW: Tensor) -> None:
    if pixels_B3HW.ndim != 4 or pixels_B3HW.shape[1] != 3 or pixels_B3HW.dtype != torch.uint8:
        msg = (
            "TileEncoder: needs (B, 3, H, W) uint8 pixels; got "
            f"{tuple(pixels_B3HW.shape)} {pixels_B3HW.dtype}. "
            "Stack RGB tiles channels first; the encoder normalises them itself."
        )
        raise ValueError(msg)
