"""What a folder holds of the stages over slides: pretraining, embeddings, fine-tuned models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anlage.embedding.slide_table import FORMAT
from anlage.encoders.slide_encoder import OpenSlideEncoder, load_slide_encoder
from anlage.errors import AnlageError
from anlage.report.found_files import first_file, network_folder, opened, stage_of
from anlage.training.finetuning.result import FinetuneResult, read_result
from anlage.training.log import read_metrics
from anlage.training.run_record import read_record

RUN, TABLE, TUNED = "slide_run", "slide_embeddings.parquet", "finetune*"
LEAST = {"slide": {"config", "bags", "slides", "versions"}, "finetune": {"config", "bags"}}


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideTable:
    """A table of slide embeddings.

    Attributes:
        rows: One row a slide.
        about: What made them.
    """

    rows: pa.Table
    about: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedRun:
    """A fine-tuning run.

    Attributes:
        folder: Where it is.
        record: Its ``run.json``.
        result: Its ``result.json``; None if it is not finished.
    """

    folder: Path
    record: dict[str, Any]
    result: FinetuneResult | None


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideParts:
    """The parts over slides that a folder holds.

    Attributes:
        run: ``run.json`` of the pretraining.
        metrics: Its metrics, one row a step.
        encoder: The slide encoder.
        table: The slide embeddings.
        tuned: Fine-tuning runs, by name.
    """

    run: dict[str, Any] | None = None
    metrics: tuple[dict[str, Any], ...] = ()
    encoder: OpenSlideEncoder | None = None
    table: SlideTable | None = None
    tuned: tuple[TunedRun, ...] = ()

    @property
    def are_none(self) -> bool:
        """Whether there is nothing."""
        return not (self.run or self.encoder or self.table or self.tuned)

    @property
    def n_steps(self) -> int:
        """Finished pretraining steps that the metrics tell of."""
        return int(self.metrics[-1]["step"]) + 1 if self.metrics else 0


def open_slide_parts(folder: Path, problems: list[str]) -> SlideParts:
    """Find and open the parts over slides.

    Args:
        folder: Of a demo, or of one stage: a slide run, a slide encoder, a fine-tuning run.
        problems: Takes a line for each part that is there but cannot be used.
    """
    run_path = next((p for p in _runs(folder, RUN) if stage_of(p) == "slide"), None)
    run_dir = run_path.parent if run_path else folder / RUN
    encoder_path = network_folder("slide-encoder", run_dir / "encoder", folder)
    metrics_path = first_file(run_dir / "metrics.jsonl") if run_path else None
    tuned = [p.parent for p in _runs(folder, TUNED) if stage_of(p) == "finetune"]
    return SlideParts(
        run=opened("slide run.json", run_path, partial(_read_run, stage="slide"), problems),
        metrics=tuple(opened("slide metrics.jsonl", metrics_path, read_metrics, problems) or ()),
        encoder=opened("slide encoder", encoder_path, _load, problems),
        table=opened(TABLE, first_file(folder / TABLE), _read_table, problems),
        tuned=tuple(run for place in tuned if (run := _tuned(place, problems)) is not None),
    )


def _runs(folder: Path, below: str) -> list[Path]:
    candidates = [folder / "run.json", *sorted(folder.glob(f"{below}/run.json"))]
    return [path for path in candidates if path.is_file()]


def _read_run(path: Path, *, stage: str) -> dict[str, Any] | None:
    record = read_record(path.parent)
    lacking = LEAST[stage] - (record or {}).keys()
    if lacking:
        raise AnlageError(path, f"lacks {', '.join(sorted(lacking))}")
    return record


def _load(folder: Path) -> OpenSlideEncoder:
    return load_slide_encoder(folder, device="auto")


def _tuned(folder: Path, problems: list[str]) -> TunedRun | None:
    read = partial(_read_run, stage="finetune")
    record = opened(f"{folder.name}/run.json", folder / "run.json", read, problems)
    if record is None:
        return None
    path = first_file(folder / "result.json")
    result = opened(f"{folder.name}/result.json", path, read_result, problems)
    return TunedRun(folder=folder, record=record, result=result)


def _read_table(path: Path) -> SlideTable:
    try:
        rows = pq.read_table(path)
        about = json.loads((rows.schema.metadata or {})[b"anlage"])
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise AnlageError(path, f"is no table of slide embeddings ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise AnlageError(path, f"needs format {FORMAT!r}. Embed the slides again.")
    return SlideTable(rows=rows, about=about)
