"""An exported encoder as a registered tile encoder of slide2vec.

anlage export RUN timm_folder --to timm
pip install slide2vec
python with_slide2vec.py timm_folder SLIDE -o embeddings.npz --mpp 0.5
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from slide2vec import ExecutionOptions, Model
from slide2vec.encoders import TimmTileEncoder, register_encoder


def register(folder: Path, *, mpp: float) -> None:
    """Make the folder known to slide2vec as ``mine``, for tiles of its size at ``mpp``."""
    told = json.loads((folder / "config.json").read_text())

    @register_encoder(
        "mine",
        output_variants={"default": {"encode_dim": told["num_features"]}},
        default_output_variant="default",
        input_size=told["pretrained_cfg"]["input_size"][1],
        supports_variable_input_size=True,
        patch_size=told["model_args"]["patch_size"],
        supported_spacing_um=mpp,
        precision="fp32",
        source=str(folder),
    )
    class Mine(TimmTileEncoder):
        def __init__(self, *, output_variant: str | None = None) -> None:
            super().__init__(f"local-dir:{folder}", output_variant=output_variant)


def main(folder: Path, slide: Path, output: Path, *, mpp: float) -> None:
    """Embed the tissue tiles of a slide; save corners (level-0 pixels) and embeddings."""
    register(folder, mpp=mpp)
    found = Model.from_preset("mine", device="cpu").embed_slide(
        slide, execution=ExecutionOptions(num_gpus=1, precision="fp32")
    )
    corners = np.stack([found.x, found.y], axis=1)
    np.savez(output, corners=corners, embedding=np.asarray(found.tile_embeddings))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("slide", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--mpp", type=float, required=True, help="the encoder's, see its README")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.slide, arguments.output, mpp=arguments.mpp)
