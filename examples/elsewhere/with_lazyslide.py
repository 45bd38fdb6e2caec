"""An exported encoder in LazySlide: a model and its transform, passed to feature extraction.

anlage export RUN timm_folder --to timm
pip install lazyslide timm
python with_lazyslide.py timm_folder SLIDE -o embeddings.npz --mpp 0.5
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lazyslide
import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from torchvision.transforms import v2
from wsidata import open_wsi


def main(folder: Path, slide: Path, output: Path, *, mpp: float) -> None:
    """Embed the tissue tiles of a slide; save corners (level-0 pixels) and embeddings."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    told = resolve_model_data_config(model)
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(told["mean"], told["std"]),
        ]
    )
    wsi = open_wsi(slide)
    lazyslide.pp.find_tissues(wsi)
    lazyslide.pp.tile_tissues(wsi, told["input_size"][1], mpp=mpp)
    embedding = lazyslide.tl.feature_extraction(
        wsi, model, transform=transform, model_name="mine", device="cpu", return_features=True
    )
    corners = wsi.shapes["tiles"].bounds[["minx", "miny"]].to_numpy()
    np.savez(output, corners=corners, embedding=embedding)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("slide", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--mpp", type=float, required=True, help="the encoder's, see its README")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.slide, arguments.output, mpp=arguments.mpp)
