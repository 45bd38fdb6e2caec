"""An exported encoder as a custom patch encoder of TRIDENT.

    anlage export RUN timm_folder --to timm

and then, in your script of TRIDENT's Processor:

    encoder = custom_encoder(Path("timm_folder"))
    processor.run_patch_feature_extraction_job(patch_encoder=encoder, ...)

TRIDENT pins timm 0.9.16, which has no "local-dir:", so the model is built from the folder's words.
Written against TRIDENT's source of June 2026 (a91fa84); TRIDENT itself was not run, since it is on
no package index. `exported_model` was run with timm 0.9.16.
"""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from torchvision import transforms


def exported_model(folder: Path) -> torch.nn.Module:
    """The model of an export, with any timm from 0.9.16 on."""
    told = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    model: torch.nn.Module = timm.create_model(
        told["architecture"], checkpoint_path=str(weights), **told["model_args"]
    )
    return model.eval()


def custom_encoder(folder: Path) -> torch.nn.Module:
    """TRIDENT's encoder of an export: model, transform and precision."""
    from trident.patch_encoder_models import CustomInferenceEncoder

    told = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(told["mean"], told["std"])]
    )
    return CustomInferenceEncoder(
        enc_name=folder.resolve().name,
        model=exported_model(folder),
        transforms=transform,
        precision=torch.float32,
    )
