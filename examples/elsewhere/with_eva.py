"""An exported encoder as a backbone of eva, by its documented wrapper.

    anlage export RUN timm_folder --to timm
    pip install 'kaiko-eva[vision]'
    python with_eva.py timm_folder TILE... -o embeddings.npy

In a configuration of eva's the same backbone reads:

    backbone:
      class_path: eva.vision.models.wrappers.TimmModel
      init_args: {model_name: "local-dir:timm_folder", pretrained: true}

with NORMALIZE_MEAN and NORMALIZE_STD set to those in timm_folder/config.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from eva.vision.models.wrappers import TimmModel
from PIL import Image
from torchvision.transforms import v2


def main(folder: Path, tiles: list[Path], output: Path) -> None:
    """Embed tile pictures with eva's backbone and save (B, D) float32."""
    told = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(told["mean"], told["std"]),
        ]
    )
    backbone = TimmModel(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.stack([transform(Image.open(tile).convert("RGB")) for tile in tiles])
    with torch.inference_mode():
        np.save(output, backbone(images).numpy())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("tiles", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.tiles, arguments.output)
