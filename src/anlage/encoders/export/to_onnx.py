"""One ONNX graph from uint8 pixels to the pooled embedding.

Shape suffixes: B tiles, 3 channels, H and W pixels, D embedding width.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from anlage.encoders.export.written import (
    Written,
    largest_difference,
    pooled,
    positions_of_tiles,
    trial_tiles,
)
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import EncoderError

GRAPH = "model.onnx"
NEEDS = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
LARGEST_ONE_FILE = 1_900_000_000  # bytes of weights; protobuf ends at 2 GiB
USAGE = """\
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
(embedding,) = session.run(["embedding"], {{"pixels": pixels}})
# pixels: (B, 3, {px}, {px}) uint8 RGB; embedding: (B, {width}) float32
"""


class PooledEncoder(nn.Module):
    """Tiles of one size to embeddings: transform, transformer and pooling in one module.

    Args:
        encoder: Copied; its positions are brought to the grid of its tiles, so that the graph
            holds no resampling.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: TileEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.model = copy.deepcopy(encoder.model).cpu().eval()
        edge = encoder.config.tile_px // self.model.patch_px
        self.model.pos_embed = nn.Parameter(positions_of_tiles(encoder))
        self.model.grid = (edge, edge)
        transform = torch.tensor([encoder.config.mean, encoder.config.std]) * 255
        mean, std = transform.view(2, 1, 3, 1, 1)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Embed (B, 3, H, W) uint8 tiles of ``tile_px``: (B, D) float32."""
        tokens = self.model.embed((pixels_B3HW.float() - self.mean) / self.std)
        parts = [tokens.cls_BD[:, None], tokens.registers_BRD, tokens.patches_BND]
        return pooled(self.encoder, torch.cat(parts, dim=1))


def write_onnx(encoder: TileEncoder, folder: Path) -> Written:
    """Write ``model.onnx``: ``pixels`` (batch, 3, tile_px, tile_px) uint8 to ``embedding``.

    The transform is in the graph, so that nobody can feed it with another mean. Weights of more
    than 1.9 GB go to ``model.onnx.data`` beside it.

    Args:
        encoder: In float32, on the CPU.
        folder: Empty folder to write to.

    Returns:
        What was written.

    Raises:
        EncoderError: If onnx, onnxscript or onnxruntime is not installed, or onnxruntime gives
            other embeddings.
    """
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        msg = f"needs {', '.join(missing)}, not installed here. Run: pip install 'anlage[onnx]'."
        raise EncoderError(GRAPH, msg)
    _export(encoder, folder / GRAPH)
    _describe(encoder, folder / GRAPH)
    return Written(
        library="onnx",
        usage=USAGE.format(px=encoder.config.tile_px, width=encoder.width),
        notes=(
            f"The graph takes uint8 RGB tiles of {encoder.config.tile_px} px and normalises them "
            "itself: pass pixels as they are. The batch may have any size.",
            "Its metadata says mpp, tile size, mean, std and pooling.",
        ),
        checked=_checked(encoder, folder / GRAPH),
    )


def _export(encoder: TileEncoder, path: Path) -> None:
    n_bytes = sum(4 * parameter.numel() for parameter in encoder.model.parameters())
    with _quiet():
        program = torch.export.export(
            PooledEncoder(encoder).eval(),
            (trial_tiles(encoder),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            strict=True,  # without it, len(tensor) in the model would fix the batch
        )
        torch.onnx.export(
            program,
            f=path,
            input_names=["pixels"],
            output_names=["embedding"],
            opset_version=OPSET,
            external_data=n_bytes > LARGEST_ONE_FILE,
            dynamo=True,
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on its own workings from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _describe(encoder: TileEncoder, path: Path) -> None:
    """Write into the graph how it is used."""
    import onnx

    config = encoder.config
    graph = onnx.load(path, load_external_data=False)
    told = {
        "tile_px": config.tile_px,
        "mpp": config.mpp,
        "mean": config.mean,
        "std": config.std,
        "pooling": config.pooling,
        "pixels": "uint8 RGB, channels first; normalised by the graph",
        "encoder_fingerprint": encoder.fingerprint,
    }
    text = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()
    }
    onnx.helper.set_model_props(graph, text)
    onnx.save(graph, path)


def _checked(encoder: TileEncoder, path: Path) -> str:
    """Compare at two sizes of batch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pixels_B3HW = trial_tiles(encoder)
    parts = [
        session.run(["embedding"], {"pixels": part.numpy()})[0]
        for part in (pixels_B3HW[:1], pixels_B3HW[1:])
    ]
    found_BD = torch.cat([torch.from_numpy(part) for part in parts])
    reader = f"onnxruntime {version('onnxruntime')}"
    return largest_difference(encoder.embed(pixels_B3HW), found_BD, reader=reader)
