"""A tile encoder: a network with the transform and the pooling it is used with.

Shape suffixes: B tiles, 3 channels, H and W pixels, X values of a row of pixels, N patch tokens, D
embedding width, E width of a patch token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from anlage.encoders.other_network import OtherNetwork
from anlage.encoders.precision import DTYPES, Precision, resolved_precision
from anlage.encoders.untrained import untrained_network
from anlage.errors import DeviceError, EncoderError
from anlage.models.vit import TokenOutput, VisionTransformer
from anlage.provenance import sha256_of_json

FORMAT: Final = "encoder/1"
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class EncoderConfig(BaseModel):
    """All of a tile encoder but its weights; the ``config.json`` of an encoder folder.

    Attributes:
        format: Format and version of the folder.
        architecture: Keyword arguments of ``VisionTransformer``; of a network that is not ours,
            what it is, such as ``{"timm": "resnet50"}``.
        tile_px: Edge of the tiles it was made for, pixels at ``mpp``.
        mpp: Resolution it was made for, micrometres per pixel.
        mean: Mean taken off each channel of pixels in [0, 1].
        std: Standard deviation each channel is divided by.
        colour: Colours of the tiles it was made for: as ``stored``, or in ``srgb`` by their slide's
            profile. Bags are made with it unless another is asked for.
        pooling: ``cls``, the class token; ``cls+mean``, it and the mean of the patch tokens;
            ``own``, whatever a network that is not ours gives.
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
    pooling: Literal["cls", "cls+mean", "own"] = "cls"
    provenance: dict[str, Any] = Field(default_factory=dict)
    weights_sha256: str | None = None


class TileEncoder:
    """Tiles in, embeddings out: normalises, runs the network, pools its tokens.

    Takes the network over: moves it to the device and switches it to evaluation.

    Args:
        config: Architecture, transform, pooling and provenance.
        network: The transformer that ``config.architecture`` describes, or an ``OtherNetwork``.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for CUDA where there is one.
        precision: ``fp32``; ``bf16`` and ``fp16`` (autocast; fp16 on CUDA only, bf16 where the
            device has it); ``auto`` is bf16 on CUDA devices that have it and fp32 elsewhere.

    Attributes:
        config: As given.
        network: On ``device``, in evaluation mode.
        device: Where it runs.
        precision: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        ValueError: If the device cannot compute in the precision asked for.
    """

    def __init__(
        self,
        config: EncoderConfig,
        network: VisionTransformer | OtherNetwork,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
    ) -> None:
        self.config = config
        self.device = torch_device(device)
        self.precision = resolved_precision(precision, self.device)
        self.network = network.to(self.device).eval()
        transform = torch.tensor([config.mean, config.std], dtype=torch.float32) * 255
        self._mean, self._std = transform.to(self.device).view(2, 3, 1, 1)

    @property
    def model(self) -> VisionTransformer:
        """Our transformer, for what looks inside it or trains it.

        Raises:
            EncoderError: If the encoder is of another kind.
        """
        if isinstance(self.network, VisionTransformer):
            return self.network
        msg = (
            "does not run on anlage's vision transformer, which this needs. "
            "Choose a preset that does (`anlage encoders`), or an encoder folder."
        )
        raise EncoderError(str(self.config.architecture), msg)

    @property
    def width(self) -> int:
        """Embedding width D."""
        return self.network.width * (2 if self.config.pooling == "cls+mean" else 1)

    @property
    def token_width(self) -> int:
        """Width E of a patch token."""
        if isinstance(self.network, OtherNetwork):
            return self.network.token_width
        return self.network.width

    @property
    def patch_px(self) -> int | None:
        """Edge of a patch, pixels; None if the network has no patch tokens."""
        return self.network.patch_px

    @property
    def n_parameters(self) -> int:
        """Weights of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over what decides an embedding: architecture, transform, pooling and weights.

        Not over the precision, which a bag notes beside it.
        """
        decides = {"format", "architecture", "tile_px", "mpp", "mean", "std", "pooling"}
        weights = weights_sha256(self.network.state_dict())
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
            pooled_BD = self._pooled(self._tokens(pixels_B3HW))
        return pooled_BD.clone()  # an ordinary tensor, which a probe may differentiate

    def patch_tokens(self, pixels_B3HW: Tensor) -> Tensor:
        """Patch tokens of tiles, row by row of the patch grid, without class or register tokens.

        Args:
            pixels_B3HW: As ``embed`` takes them.

        Returns:
            (B, N, E) float32 on the encoder's device.

        Raises:
            EncoderError: If the network has no patch tokens (``patch_px`` is None).
            ValueError: If the pixels are not (B, 3, H, W) uint8.
        """
        return self.embed_with_patches(pixels_B3HW)[1]

    def embed_with_patches(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """What ``embed`` and ``patch_tokens`` give, of one forward pass; raises as they do."""
        _check_pixels(pixels_B3HW)
        if self.patch_px is None:
            msg = "gives no patch tokens. Choose a vision transformer (`anlage encoders`)."
            raise EncoderError(str(self.config.architecture), msg)
        with torch.inference_mode():
            tokens = self._tokens(pixels_B3HW)
            pooled_BD, patches_BNE = self._pooled(tokens), tokens.patches_BND.float()
        return pooled_BD.clone(), patches_BNE.clone()

    def untrained(self, seed: int) -> TileEncoder:
        """An encoder of the same architecture and transform with random weights: a floor.

        The same seed gives the same weights everywhere; the global generators are left alone.

        Raises:
            EncoderError: If the network has no weights to draw.
        """
        network = untrained_network(self.network, self.config.architecture, seed=seed)
        provenance = {"untrained": True, "seed": seed}
        config = self.config.model_copy(update={"provenance": provenance, "weights_sha256": None})
        return TileEncoder(config, network, device=self.device, precision=self.precision)

    def _pooled(self, tokens: TokenOutput) -> Tensor:
        pooled_BD = tokens.cls_BD.float()
        if self.config.pooling == "cls+mean":
            mean_BD = tokens.patches_BND.float().mean(dim=1)
            pooled_BD = torch.cat([pooled_BD, mean_BD], dim=1)
        return pooled_BD

    def _normalised(self, pixels_B3HW: Tensor) -> Tensor:
        if not pixels_B3HW.is_contiguous(memory_format=torch.channels_last):
            return pixels_B3HW.float().sub_(self._mean).div_(self._std)
        # Row by row, as they lie in memory: half the time of three channels at a time on the CPU.
        n_tiles, _, height, width = pixels_B3HW.shape
        mean_X, std_X = (each.flatten().repeat(width) for each in (self._mean, self._std))
        rows_BHX = pixels_B3HW.permute(0, 2, 3, 1).reshape(n_tiles, height, 3 * width)
        normal_BHX = rows_BHX.float().sub_(mean_X).div_(std_X)
        return normal_BHX.view(n_tiles, height, width, 3).permute(0, 3, 1, 2)

    def _tokens(self, pixels_B3HW: Tensor) -> TokenOutput:
        normal_B3HW = self._normalised(pixels_B3HW.to(self.device, non_blocking=True))
        dtype = DTYPES.get(self.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            return self.network.embed(normal_B3HW)


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


def _check_pixels(pixels_B3HW: Tensor) -> None:
    if pixels_B3HW.ndim != 4 or pixels_B3HW.shape[1] != 3 or pixels_B3HW.dtype != torch.uint8:
        msg = (
            "TileEncoder: needs (B, 3, H, W) uint8 pixels; got "
            f"{tuple(pixels_B3HW.shape)} {pixels_B3HW.dtype}. "
            "Stack RGB tiles channels first; the encoder normalises them itself."
        )
        raise ValueError(msg)
