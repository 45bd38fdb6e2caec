"""One fold of a fine-tuning run: training patients in, a model and its predictions out.

Shape suffixes: N slides, K numbers of a target, P numbers of a prediction, C outputs.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anlage.bags.loader import BagBatch, TileChoice, step_draws
from anlage.encoders.slide_model_folder import (
    OpenSlideModel,
    SlideModelConfig,
    load_slide_model,
    save_slide_model,
)
from anlage.errors import TrainingError
from anlage.files import write_json_whole
from anlage.probes.splits.split import Split
from anlage.progress import meter
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.material import Draw, Material, chunks
from anlage.training.finetuning.network import fold_objective, fresh_model, set_training_mode
from anlage.training.finetuning.optimizer import (
    build_finetune_optimizer,
    rate_at,
    set_finetune_rate,
)
from anlage.training.finetuning.predictions import FoldPredictions, write_predictions
from anlage.training.finetuning.scores import first_score
from anlage.training.finetuning.state import CHECKPOINT, FoldState
from anlage.training.finetuning.step import Part, StepSettings, named_slides, take_step
from anlage.training.log import MetricsLog
from anlage.training.precision import autocast_dtype
from anlage.training.stopping import StopRequest

LOGGER = logging.getLogger(__name__)
FORMAT = "finetune-fold/1"
RECORD, MODEL, PREDICTIONS = "fold.json", "model", "predictions.parquet"
MOST_DRAWS = 2**32  # of torch's generator in a fold; the one after them draws the weights


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldEnd:
    """How a fold ended.

    Attributes:
        folder: The fold's folder: ``model/``, ``metrics.jsonl``, ``predictions.parquet``.
        is_finished: False if a signal stopped it; the same call goes on from its checkpoint.
        steps: Finished steps.
        kept_step: Finished steps of the model that is kept.
        value: What it was chosen by, larger is better; None of the last one.
        ended_early: Whether patience ended it.
    """

    folder: Path
    is_finished: bool
    steps: int = 0
    kept_step: int | None = None
    value: float | None = None
    ended_early: bool = False


def train_fold(
    config: FinetuneConfig,
    material: Material,
    split: Split,
    folder: str | Path,
    *,
    number: int = 0,
    stop: StopRequest | None = None,
) -> FoldEnd:
    """Train a model on the training side of a split and predict its other sides.

    All random choices (weights, order of bags and tiles, dropout) are functions of the seed, the
    number of the fold and that of the step, so that on CPU a fold that was killed and goes on ends
    in the same bits. A fold that is finished is left as it is. The test side is read once, by the
    model that is kept, as it was stored.

    Args:
        config: The recipe.
        material: Bags and targets.
        split: Rows of ``material.targets``: training, validation (may be empty), test.
        folder: The fold's folder; what is in it of the same fold is gone on with.
        number: Number of the fold.
        stop: Asked after each step.

    Returns:
        How it ended.

    Raises:
        BagError: If a bag is damaged.
        CatalogueError: If the training side does not allow the task's loss.
        CheckpointError: If a checkpoint is damaged or of another model.
        RecipeError: If the parts of the model do not fit each other.
        TrainingError: If a loss or an output is not finite.
    """
    folder = Path(folder)
    done = finished_fold(folder)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    return _Fold(config, material, split, folder=folder, number=number).run(stop or StopRequest())


def finished_fold(folder: Path) -> FoldEnd | None:
    """How the fold of a folder ended, if it is finished."""
    if not (folder / RECORD).exists():
        return None
    stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    names = ("steps", "kept_step", "value", "ended_early")
    return FoldEnd(folder=folder, is_finished=True, **{name: stored[name] for name in names})


class _Fold:
    """A fold while it runs."""

    def __init__(
        self,
        config: FinetuneConfig,
        material: Material,
        split: Split,
        *,
        folder: Path,
        number: int,
    ) -> None:
        self.config, self.material, self.split = config, material, split
        self.folder, self.number = folder, number
        objective = fold_objective(material.targets, split)
        self.objective = objective.on(material.device)
        fresh = fresh_model(
            config,
            objective,
            input_width=material.bags.width,
            encoder=material.encoder,
            seed=self._seed(MOST_DRAWS),
        )
        self.architecture = fresh.architecture
        network = fresh.network.to(material.device)
        self.state = FoldState(network, build_finetune_optimizer(network, config.optimizer))
        self.dtype = autocast_dtype(config.precision, material.device)
        self.tiles = TileChoice(
            seed=config.seed, max_tiles=config.tiles.most, is_shuffled=config.tiles.shuffle
        )
        self.n_slides = len(split.train)
        self.steps = math.ceil(config.epochs * self.n_slides / config.batch_size)

    @property
    def told(self) -> str:
        """What messages call it."""
        return f"{self.folder.parent.name}/fold {self.split.name}"

    def run(self, stop: StopRequest) -> FoldEnd:
        state = self.state
        if state.restore(self.folder):
            LOGGER.info("%s: goes on after step %d of %d", self.told, state.step, self.steps)
        is_over = self._is_over()
        draws, read_ahead = tee(self._draws())
        parts, title = self._parts(read_ahead), f"fold {self.split.name}"
        with (
            closing(parts),
            MetricsLog(self.folder, first_step=state.step) as log,
            meter(title, total=self.steps, unit="steps", done=state.step) as shown,
        ):
            while not is_over:
                row = self._step(next(draws), parts)
                is_epoch = self._ends_an_epoch()
                row |= self._look() if is_epoch else {}
                log.write(state.step - 1, row)
                shown.advance(note=f"loss {row['loss']:.3f}")
                is_over = self._is_over()
                is_stopped = bool(stop) and not is_over
                if is_epoch or is_stopped:
                    log.sync()
                    state.save(self.folder)
                if is_stopped:
                    return FoldEnd(folder=self.folder, is_finished=False, steps=state.step)
        return self._finish()

    def _is_over(self) -> bool:
        patience = self.config.choice.patience
        waited = patience is not None and self.state.standing.looks_since >= patience
        return waited or self.state.step >= self.steps

    def _seed(self, draw: int) -> int:
        """Of torch's generator: another for each fold, and for each part of a step."""
        return ((self.config.seed * 1009 + self.number) * (MOST_DRAWS + 1) + draw) % 2**63

    def _seed_of_part(self, step: int, part: int) -> int:
        return self._seed(step * self.config.accumulate + part)

    def _draws(self) -> Iterator[list[Draw]]:
        """The bags of each step that is left."""
        config = self.config
        return step_draws(
            [self.material.targets.slide_ids[row] for row in self.split.train],
            seed=config.seed,
            batch_size=config.batch_size,
            first_step=self.state.step,
            last_step=self.steps,
            is_distinct=self.objective.compares_bags,
        )

    def _parts(self, draws: Iterator[list[Draw]]) -> Generator[BagBatch]:
        parts = (part for step in draws for part in chunks(step, self.config.part_size))
        return self.material.batches(parts, choice=self.tiles)

    def _step(self, draws: Sequence[Draw], parts: Iterator[BagBatch]) -> dict[str, float]:
        config, state = self.config, self.state
        epoch = state.step * config.batch_size / self.n_slides
        rates = config.optimizer
        lr = rate_at(rates, epoch, epochs=config.epochs, batch_size=config.batch_size)
        set_finetune_rate(state.optimizer, lr)
        set_training_mode(state.network)
        row = take_step(
            state.network,
            state.optimizer,
            map(self._part, parts),
            StepSettings(
                objective=self.objective,
                sizes=tuple(len(part) for part in chunks(draws, config.part_size)),
                dtype=self.dtype,
                instance_weight=config.model.instance_weight,
                recompute=config.recompute,
                clip_norm=rates.clip_norm,
                seed_of=partial(self._seed_of_part, state.step),
                told=f"{self.told}, step {state.step}",
            ),
        )
        state.step += 1
        facts = self.material.bags.facts
        n_tiles = sum(self.tiles.n_taken(facts[slide_id].n_tiles) for _, slide_id in draws)
        return row | {"lr": lr, "tiles": n_tiles}

    def _part(self, batch: BagBatch) -> Part:
        return Part(batch, self.material.target(batch))

    def _ends_an_epoch(self) -> bool:
        bags = self.state.step * self.config.batch_size
        before = (bags - self.config.batch_size) // self.n_slides
        return bags // self.n_slides > before or self.state.step == self.steps

    def _look(self) -> dict[str, float]:
        """Measure the validation side, and keep the model if it is the best so far."""
        rows, choice, state = self.split.validation, self.config.choice, self.state
        if not len(rows):
            return {}
        logits_NC = self._logits()
        self._refuse_not_finite(logits_NC, rows, "validation")
        try:
            loss = float(self.objective.of_step(logits_NC, self.material.target_of(rows)))
        except ValueError as error:  # such as thresholds of grades that met
            where = f"{self.told}, after step {state.step - 1}"
            raise TrainingError(where, str(error)) from error
        score_NP = self.objective.reads.scores(logits_NC).numpy()
        name, score, sign = first_score(self.material.targets, rows, score_NP)
        if choice.keep == "best":
            value = -loss if choice.by == "loss" else sign * score
            if not math.isnan(value):  # a look that says nothing is not waited for
                state.standing = state.standing.after(state.step, value)
            if state.standing.step == state.step:
                self._save_model()
        return {"val_loss": loss, f"val_{name}": score}

    def _refuse_not_finite(
        self, value_NP: torch.Tensor, rows: NDArray[np.int64], side: str
    ) -> None:
        is_bad_N = ~torch.isfinite(value_NP).all(dim=1).cpu().numpy()
        if is_bad_N.any():
            where = f"{self.told}, after step {self.state.step - 1}"
            named = named_slides([self.material.targets.slide_ids[row] for row in rows[is_bad_N]])
            message = f"outputs of {side} slides are not finite: {named}. Lower the learning rate, "
            raise TrainingError(where, f"{message}or set precision=fp32, in a new run folder.")

    @torch.no_grad()
    def _logits(self) -> torch.Tensor:
        network, device = self.state.network.eval(), self.material.device
        found = []
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None):
            for batch in self.material.whole_bags(
                self.split.validation, size=self.config.part_size
            ):
                output = network(batch.features_TD, batch.cell_T2, batch.lengths)
                found.append(output.logits_BC.float())
        return torch.cat(found)

    def _save_model(self) -> None:
        patient_N = self.material.targets.patient_N
        fold = {
            "fold": self.split.name,
            "step": self.state.step,
            "trained_on": sorted(set(patient_N[self.split.train].tolist())),
            "chosen_on": sorted(set(patient_N[self.split.validation].tolist())),
        }
        config = SlideModelConfig(
            architecture=self.architecture,
            task=self.objective.reads,
            tile_encoder=self.material.tile_encoder,
            grid_um=self.material.grid_um,
            provenance={**self.material.provenance, **fold},
        )
        save_slide_model(self.folder / MODEL, self.state.network, config)

    def _finish(self) -> FoldEnd:
        standing = self.state.standing
        choice = self.config.choice
        if choice.keep == "best" and standing.step is None and len(self.split.validation):
            LOGGER.warning("%s: no epoch has a %s: the last is kept", self.told, choice.by)
        if choice.keep == "last" or standing.step is None:
            self._save_model()
        model = load_slide_model(
            self.folder / MODEL,
            device=self.material.device,
            precision=self.config.precision,
        )
        write_predictions(self.folder / PREDICTIONS, self._predicted(model))
        end = FoldEnd(
            folder=self.folder,
            is_finished=True,
            steps=self.state.step,
            kept_step=int(model.config.provenance["step"]),
            value=None if standing.step is None else standing.value,
            ended_early=self.state.step < self.steps,
        )
        self._record(end)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return end

    def _predicted(self, model: OpenSlideModel) -> FoldPredictions:
        sides = {"val": self.split.validation, "test": self.split.test}
        rows = np.concatenate(list(sides.values()))
        scores = [
            model.predict(batch.features_TD, batch.cell_T2, batch.lengths).score_BP
            for batch in self.material.whole_bags(rows, size=self.config.part_size)
        ]
        score_NP = torch.cat(scores)
        self._refuse_not_finite(score_NP, rows, "tested")
        return FoldPredictions(
            fold=self.split.name,
            targets=self.material.targets,
            rows=rows,
            side_N=np.repeat(list(sides), [len(of_side) for of_side in sides.values()]),
            score_NP=score_NP.numpy(),
            score_names=model.config.task.score_names,
            edges=model.config.task.edges,
        )

    def _record(self, end: FoldEnd) -> None:
        """Say that the fold is finished: its last file."""
        sides = {name: len(rows) for name, rows in self.split.sides.items()}
        facts = {"fold": self.split.name, "slides": sides, "steps": end.steps}
        facts |= {"kept_step": end.kept_step, "value": end.value, "ended_early": end.ended_early}
        write_json_whole(self.folder / RECORD, {"format": FORMAT, **facts})
