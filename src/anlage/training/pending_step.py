"""A step that the device may still be working on, and what is said of it afterwards.

Shape suffixes: B tiles of a rank, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anlage.distributed import ALONE
from anlage.errors import TrainingError
from anlage.models.layers.packing import SequenceShape
from anlage.probes.unsupervised import rankme
from anlage.tiles.stream import TileBatch
from anlage.training.forensics import Finding, first_non_finite, packed_tiles
from anlage.training.lesson import Part
from anlage.training.parallel import Layout
from anlage.training.passes import run_passes
from anlage.training.replay import save_replay
from anlage.training.step_views import cut_parts
from anlage.training.training_state import Training

LOGGER = logging.getLogger(__name__)
STOP = "wants_stop"


class PendingStep:
    """One step as it was begun; its numbers are on their way to the host.

    Args:
        training: The run; remembered as it was at this step.
        step: Number of the step, from 0.
        batch: This rank's tiles.
        per_tile_B: First loss term of each of them.
        known: Metrics that the host knows.
        measured: Metrics that the device knows, scalars, the same on all ranks.
        embedding_BD: Embeddings of the teacher whose effective rank is told; None for none.
    """

    def __init__(
        self,
        training: Training,
        *,
        step: int,
        batch: TileBatch,
        per_tile_B: Tensor,
        known: Mapping[str, float],
        measured: Mapping[str, Tensor],
        embedding_BD: Tensor | None,
    ) -> None:
        self.step, self.batch = step, batch
        self._training, self._config, self._per_tile_B = training, training.config, per_tile_B
        self._known, self._names = known, (*measured, "sound")
        values = [*measured.values(), training.sound]
        self._values = _on_its_way(torch.stack([value.detach().float() for value in values]))
        self._embedding = None if embedding_BD is None else _on_its_way(embedding_BD)
        self._arrived: torch.cuda.Event | None = None
        if training.device.type == "cuda":
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        self._wants_stop = False

    @property
    def wants_stop(self) -> bool:
        """Whether any rank was asked to stop when this step began; known once it is read."""
        return self._wants_stop

    def read(self) -> dict[str, float]:
        """Wait for the step.

        Returns:
            Its metrics, over all ranks.

        Raises:
            TrainingError: If its loss or its gradient is not finite on any rank; no weight was
                changed in it, nor since.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        told = dict(zip(self._names, self._values.tolist(), strict=True))
        self._wants_stop = told.pop(STOP) > 0
        if not told.pop("sound"):
            self._stop(told)
        metrics = {"loss": told.pop("loss"), **told, **self._known}
        if self._embedding is not None:
            metrics["rankme"] = rankme(self._embedding.numpy())
            if metrics["rankme"] == 0:
                said = "the teacher's embeddings are all zero at step %d: it has collapsed"
                LOGGER.warning(said, self.step)
        return metrics

    def _stop(self, told: Mapping[str, float]) -> None:
        """Refuse to go on: which term, which module first, which tiles; the state saved for replay.

        Raises:
            TrainingError: Always.
        """
        training = self._training
        training.step, training.config = self.step, self._config
        terms = {n.removeprefix("loss_"): v for n, v in told.items() if n.startswith("loss_")}
        norms = {n: v for n, v in told.items() if n.startswith("gradient_norm_")}
        broken = [n.removeprefix("gradient_norm_") for n, v in norms.items() if not _is_finite(v)]
        what = f"the gradient of the {', '.join(broken)} is not finite (the loss is)"
        if not _is_finite(told["loss"]):
            what = "the loss is not finite"
        finite = torch.isfinite(self._per_tile_B).tolist()
        guilty = [r for r, ok in zip(self.batch.requests, finite, strict=True) if not ok]
        finding = first_fault(training, cut_parts(training, self.batch))
        saved = save_replay(
            training.run_dir,
            step=self.step,
            tensors={"pixels": self.batch.pixels, "g": torch.as_tensor(self.batch.g)},
            facts={
                "terms": terms,
                "per_tile": self._per_tile_B,
                "finding": finding,
                "tiles": self.batch.requests,
            },
            state=training.state(),
            ranks=training.ranks,
            is_sharded=training.layout.is_sharded,
        )
        first = "" if finding is None else f" First: {finding}."
        named = tile_names(self.batch, guilty or None)
        if not training.ranks.is_alone:
            own = (bool(guilty), f"rank {training.ranks.rank}: {first.strip()} {named}")
            of_all = training.ranks.objects(own)
            chosen = [text for is_guilty, text in of_all if is_guilty] or [t for _, t in of_all]
            first, named = "", "; ".join(chosen)
        listed = ", ".join(f"{name}={value:.4g}" for name, value in terms.items())
        raise TrainingError(
            training.run_dir,
            f"{what} at step {self.step} ({listed}); no weight was changed.{first} "
            f"Tiles: {named}. {saved}. Look at these tiles, lower optimizer.peak_lr or use "
            "precision=fp32 in a new run (init.run begins it at this one's last checkpoint), or "
            "--resume as it is.",
        )


def _on_its_way(values: Tensor) -> Tensor:
    """A copy on the host that is whole once the device has come to it."""
    values = values.detach()
    if values.device.type != "cuda":
        return values.clone()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def first_fault(training: Training, parts: Sequence[Part]) -> Finding | None:
    """What was not finite first; None too where the step cannot be run once more.

    So it is on sharded networks, whose modules cannot be looked at one by one.
    """
    if training.layout.is_sharded:
        return None
    # Each rank looks on its own, with its own tiles: others may have found it before they ran.
    layout, run_student = training.layout, training.run_student
    training.layout, training.run_student = Layout("single", ALONE), training.student

    def again() -> None:
        with torch.compiler.set_stance("force_eager"):  # hooks in compiled blocks do not fire
            run_passes(training, parts)

    try:
        return first_non_finite(
            {"student": training.student, "teacher": training.teacher},
            again,
            inputs=_inputs(parts),
            tiles_of_rows=packed_tiles(_shapes(training, parts[0]), parts[0].n_tiles)
            if len(parts) == 1
            else None,  # rows count from the first tile of a part, and it is not told which
        )
    except Exception as error:  # noqa: BLE001 - no memory, say: must not hide what led here
        LOGGER.warning("what was not finite first could not be found: %s", error)
        return None
    finally:
        training.layout, training.run_student = layout, run_student


def _inputs(parts: Sequence[Part]) -> dict[str, torch.Tensor]:
    """What a step was given, by name, and by its tiles where it is taken in parts."""
    named: dict[str, torch.Tensor] = {}
    for part in parts:
        of = f" of tiles {part.tiles.start} to {part.tiles.stop - 1}" if len(parts) > 1 else ""
        named |= {f"global views{of}": part.global_crops, f"local views{of}": part.local_crops}
    return named


def _shapes(training: Training, part: Part) -> list[SequenceShape]:
    encoder = training.student.encoder
    shapes = []
    for images in (part.global_crops, part.local_crops):
        if len(images):
            n_patches = (images.shape[-1] // encoder.patch_px) ** 2
            shapes.append(SequenceShape(len(images), 1 + encoder.n_registers + n_patches))
    return shapes


def tile_names(batch: TileBatch, requests: list[Any] | None = None) -> str:
    """Tiles of a batch in words; all of them if none is named."""
    chosen = batch.requests if requests is None else requests
    named = [f"{r.slide_id} at ({r.x}, {r.y}), {r.mpp:g} mpp, g={r.g}" for r in chosen]
    more = f" and {len(named) - 8} more" if len(named) > 8 else ""
    return "; ".join(named[:8]) + more
