"""Recompute eva_probe.json by training kaiko-eva's own head.

    uv venv VENV --python 3.11 && uv pip install --python VENV 'kaiko-eva==0.4.5' torch==2.13.0
    VENV/bin/python tests/golden/regenerate_eva_probe.py

eva's HeadModule and Trainer, with its learning-rate schedule, checkpoint by balanced accuracy of
the validation side and early stopping, given our first weights and our order of rows.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from eva.core.data.dataloaders import DataLoader
from eva.core.data.datamodules import DataModule
from eva.core.data.datamodules.schemas import DataloadersSchema, DatasetsSchema
from eva.core.metrics.defaults import BinaryClassificationMetrics, MulticlassClassificationMetrics
from eva.core.metrics.structs import MetricsSchema
from eva.core.models.modules.head import HeadModule
from eva.core.trainers import Trainer
from inputs import wave
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import Sampler, TensorDataset

N_ROWS, WIDTH, BATCH, N_STEPS, PATIENCE, SEED = 83, 6, 16, 300, 8, 4


class OurOrder(Sampler):
    """A permutation an epoch, from one generator of the run's seed."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(SEED)

    def __len__(self) -> int:
        return N_ROWS

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(N_ROWS, generator=self.generator).tolist())


def train(n_classes: int, folder: str) -> dict:
    """Weights of the best checkpoint and its step."""
    is_binary = n_classes == 2
    embedding = torch.from_numpy(wave(N_ROWS, WIDTH, phase=0.1))
    code = torch.from_numpy(wave(N_ROWS, phase=0.2) + 0.5 * embedding[:, 0].numpy())
    code = ((code + 1.5) / 3 * n_classes).long()
    held, held_code = embedding[:40].flip(1), code[:40]
    torch.manual_seed(SEED)
    head = torch.nn.Linear(WIDTH, 1 if is_binary else n_classes)
    kind = (
        BinaryClassificationMetrics() if is_binary else MulticlassClassificationMetrics(n_classes)
    )
    name = "val/BinaryBalancedAccuracy" if is_binary else "val/MulticlassAccuracy"
    target = (lambda codes: codes.float()) if is_binary else (lambda codes: codes)
    best = ModelCheckpoint(filename="best", save_top_k=1, monitor=name, mode="max")
    model = HeadModule(
        head=head,
        criterion=torch.nn.BCEWithLogitsLoss() if is_binary else torch.nn.CrossEntropyLoss(),
        optimizer=functools.partial(torch.optim.AdamW, lr=3e-4),
        metrics=MetricsSchema(common=kind),
    )
    loader = functools.partial(
        DataLoader, num_workers=0, prefetch_factor=None, persistent_workers=False
    )
    data = DataModule(
        datasets=DatasetsSchema(
            train=TensorDataset(embedding, target(code)), val=TensorDataset(held, target(held_code))
        ),
        dataloaders=DataloadersSchema(
            train=loader(batch_size=BATCH, sampler=OurOrder()), val=loader(batch_size=BATCH)
        ),
    )
    trainer = Trainer(
        max_steps=N_STEPS,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[best, EarlyStopping(min_delta=0, patience=PATIENCE, monitor=name, mode="max")],
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, datamodule=data)
    state = torch.load(best.best_model_path, weights_only=False)
    weights = {name.removeprefix("head."): value for name, value in state["state_dict"].items()}
    return {
        "embedding": embedding.tolist(),
        "code": code.tolist(),
        "held": held.tolist(),
        "held_code": held_code.tolist(),
        "weight": weights["weight"].tolist(),
        "bias": weights["bias"].tolist(),
        "step": state["global_step"],
        "stopped_at": trainer.global_step,
    }


def main() -> None:
    """Write the file."""
    golden = {
        "package": f"kaiko-eva {importlib.metadata.version('kaiko-eva')}",
        "torch": torch.__version__,
        "settings": {"batch": BATCH, "n_steps": N_STEPS, "patience": PATIENCE, "seed": SEED},
    }
    with tempfile.TemporaryDirectory() as folder:
        golden |= {"softmax": train(3, folder), "sigmoid": train(2, folder)}
    path = Path(__file__).with_name("eva_probe.json")
    path.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
