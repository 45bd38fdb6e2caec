"""A folder of ours to pass on: the tensors in our names, without the names of patients."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from anlage.encoders.export.provenance_in_public import without_names
from anlage.encoders.export.written import Written, largest_difference, trial_tiles
from anlage.encoders.folder import CONFIG, WEIGHTS, load_encoder
from anlage.encoders.tile_encoder import TileEncoder, weights_sha256

USAGE = """\
import torch
from anlage.encoders.folder import load_encoder

encoder = load_encoder("FOLDER")
embedding = encoder.embed(pixels)  # pixels: (B, 3, {px}, {px}) uint8 RGB; (B, {width})
"""


def write_safetensors(encoder: TileEncoder, folder: Path) -> Written:
    """Write an encoder folder that also says in the weights' header how they are used.

    Args:
        encoder: In float32, on the CPU.
        folder: Empty folder to write to.

    Returns:
        What was written.

    Raises:
        EncoderError: If the folder opens to other embeddings.
    """
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in encoder.model.state_dict().items()
    }
    provenance = without_names(encoder.config.provenance)
    update = {"provenance": provenance, "weights_sha256": weights_sha256(weights)}
    told = encoder.config.model_copy(update=update).model_dump(mode="json")
    header = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in told.items()
        if key != "provenance"
    }
    save_file(weights, folder / WEIGHTS, metadata=header)
    text = json.dumps(told, indent=2, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    pixels_B3HW = trial_tiles(encoder)
    found_BD = load_encoder(folder).embed(pixels_B3HW)
    return Written(
        library="anlage",
        usage=USAGE.format(px=encoder.config.tile_px, width=encoder.width),
        notes=(
            "Ids of slides and patients are left out of the provenance, so a leakage check by name "
            "needs the encoder folder it was made of.",
        ),
        checked=largest_difference(encoder.embed(pixels_B3HW), found_BD, reader="anlage"),
    )
