"""kaiko-eva's own head training, timed: the other side of linear_eva.py, run by eva's interpreter.

Trains eva's HeadModule (one Linear, cross-entropy, AdamW 3e-4) by eva's Trainer, DataModule and
DataLoader, one run after another, as its configuration of CRC does. Reads orders from standard
input, one JSON object a line, and answers each with one line: seconds per training step after the
warm-up, measured inside the loop, so that start-up and checkpoints do not count.

An order: {"setting": NAME, "steps": N, "warm_up": N}. Settings:
    shipped        a .pt file an embedding, 4 workers, training metrics, progress bar, TensorBoard
    memory         embeddings in memory, no worker, no bar, no logger, 1 torch thread
    memory-2t      the same with 2 torch threads
    memory-2w      the same with 2 workers and 1 torch thread
    bare           "memory" without training metrics, which eva's configurations have
    bare-2w        "memory-2w" without training metrics
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from eva.core.data.dataloaders import DataLoader
from eva.core.data.datamodules import DataModule
from eva.core.data.datamodules.schemas import DataloadersSchema, DatasetsSchema
from eva.core.data.datasets import Dataset
from eva.core.data.datasets.classification import EmbeddingsClassificationDataset
from eva.core.metrics import AverageLoss
from eva.core.metrics.defaults import MulticlassClassificationMetrics
from eva.core.metrics.structs import MetricsSchema
from eva.core.models.modules.head import HeadModule
from eva.core.trainers import Trainer, functional
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

SETTINGS = {
    "shipped": {"is_file": True, "workers": 4, "threads": 2, "has_metrics": True},
    "memory": {"is_file": False, "workers": 0, "threads": 1, "has_metrics": True},
    "memory-2t": {"is_file": False, "workers": 0, "threads": 2, "has_metrics": True},
    "memory-2w": {"is_file": False, "workers": 2, "threads": 1, "has_metrics": True},
    "bare": {"is_file": False, "workers": 0, "threads": 1, "has_metrics": False},
    "bare-2w": {"is_file": False, "workers": 2, "threads": 1, "has_metrics": False},
}


class EmbeddingsInMemory(Dataset):
    """What EmbeddingsClassificationDataset gives, without a file an embedding."""

    def __init__(self, embedding: torch.Tensor, label: torch.Tensor) -> None:
        self.embedding, self.label = embedding, label

    def prepare_data(self) -> None:
        """Nothing to fetch."""

    def setup(self) -> None:
        """Nothing to read."""

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.embedding[index], self.label[index]


class StepClock(Callback):
    """Time from the end of the warm-up to the end of the last step."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.seen = warm_up, {}

    def __deepcopy__(self, _: dict) -> StepClock:
        return self  # eva clones its trainer for every run

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Note when the step ended."""
        self.seen[trainer.global_step] = time.perf_counter()

    def seconds_a_step(self) -> float:
        """Mean over the steps after the warm-up."""
        last = max(self.seen)
        return (self.seen[last] - self.seen[self.warm_up]) / (last - self.warm_up)


def write_files(embedding: torch.Tensor, label: torch.Tensor, folder: Path) -> None:
    """A .pt file an embedding and the manifest, as eva's ClassificationEmbeddingsWriter does."""
    lines = ["origin,embeddings,target,split"]
    for i, (row, code) in enumerate(zip(embedding, label.tolist(), strict=True)):
        torch.save([row.clone()[None]], folder / f"{i}.pt")
        lines.append(f"{i},{i}.pt,{code},train")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def train(dataset: Dataset, *, n_classes: int, width: int, order: dict, folder: Path) -> float:
    """Seconds a step of one run."""
    setting = SETTINGS[order["setting"]]
    torch.set_num_threads(setting["threads"])
    metrics = [AverageLoss(), MulticlassClassificationMetrics(n_classes)]
    head = {"in_features": width, "out_features": n_classes}
    model = HeadModule(
        head={"class_path": "torch.nn.Linear", "init_args": head},
        criterion=torch.nn.CrossEntropyLoss(),
        optimizer=functools.partial(torch.optim.AdamW, lr=3e-4),
        metrics=MetricsSchema(common=metrics) if setting["has_metrics"] else None,
    )
    workers = setting["workers"]
    loader = DataLoader(
        batch_size=256,
        shuffle=True,
        num_workers=workers,
        pin_memory=False,
        prefetch_factor=2 if workers else None,
        persistent_workers=bool(workers),
    )
    clock = StepClock(order["warm_up"])
    is_shipped = setting["is_file"]
    trainer = Trainer(
        max_steps=order["steps"],
        accelerator="cpu",
        default_root_dir=str(folder),
        callbacks=[clock, *([TQDMProgressBar(refresh_rate=1)] if is_shipped else [])],
        logger=TensorBoardLogger(str(folder), name="") if is_shipped else False,
        enable_progress_bar=is_shipped,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    data = DataModule(
        datasets=DatasetsSchema(train=dataset), dataloaders=DataloadersSchema(train=loader)
    )
    functional.run_evaluation(trainer, model, data, run_id=0, stages=["fit"])
    return clock.seconds_a_step()


def main() -> None:
    """Answer orders until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # eva prints tables
    with np.load(sys.argv[1]) as arrays:
        embedding, label = torch.from_numpy(arrays["X"]), torch.from_numpy(arrays["y"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets: dict[bool, Dataset] = {False: EmbeddingsInMemory(embedding, label)}
        for line in sys.stdin:
            order = json.loads(line)
            is_file = SETTINGS[order["setting"]]["is_file"]
            if is_file and True not in datasets:
                write_files(embedding, label, folder)
                datasets[True] = EmbeddingsClassificationDataset(name, "manifest.csv", "train")
            seconds = train(
                datasets[is_file],
                n_classes=int(label.max()) + 1,
                width=embedding.shape[1],
                order=order,
                folder=folder / "logs",
            )
            answer = {"s": seconds, "version": importlib.metadata.version("kaiko-eva")}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
