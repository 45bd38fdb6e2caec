"""What a folder holds of the chain: each part is found, opened and checked, or said to be missing.

A demo's folder has every part in its place; the folder of one stage alone is understood as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anlage.encoders.folder import load_encoder
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import AnlageError
from anlage.evaluation.result import EvaluationResult, read_result
from anlage.report.found_files import first_file, network_folder, opened, read_json, stage_of
from anlage.report.slide_parts import SlideParts, open_slide_parts
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.found_slide import Refused, read_refused
from anlage.training.log import read_metrics
from anlage.training.run_record import read_record

N_PARTS = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """The parts of the chain that a folder holds.

    Attributes:
        demo: Settings of the demo that made the folder; None if none did.
        catalogue: The slides.
        refused: Slides that could not be indexed.
        run: ``run.json`` of the pretraining.
        metrics: Its metrics, one row a step.
        encoder: The tile encoder.
        bags: Bag file of each slide, by the file's stem.
        embedding: ``embedding.json`` beside the bags.
        result: The scores.
        predictions: The file of predictions beside them.
        over_slides: Slide encoder, slide embeddings and fine-tuned models.
        problems: Parts that are there but cannot be used, with the reason.
    """

    demo: dict[str, Any] | None = None
    catalogue: Catalogue | None = None
    refused: tuple[Refused, ...] = ()
    run: dict[str, Any] | None = None
    metrics: tuple[dict[str, Any], ...] = ()
    encoder: TileEncoder | None = None
    bags: dict[str, Path] = field(default_factory=dict)
    embedding: dict[str, Any] | None = None
    result: EvaluationResult | None = None
    predictions: Path | None = None
    over_slides: SlideParts = field(default_factory=SlideParts)
    problems: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Names of the parts over tiles that are not there, in the order of the chain.

        None of a folder that holds one stage over slides alone, which may be anywhere.
        """
        return [] if self._are_over_slides_alone else self._absent

    @property
    def holds_nothing(self) -> bool:
        """Whether no part is there."""
        return self.over_slides.are_none and len(self._absent) == N_PARTS

    @property
    def _are_over_slides_alone(self) -> bool:
        return not self.over_slides.are_none and len(self._absent) == N_PARTS

    @property
    def _absent(self) -> list[str]:
        parts = {
            "slides (slides.parquet)": self.catalogue is not None,
            "pretraining run (run.json)": self.run is not None,
            "encoder (config.json)": self.encoder is not None,
            "tile embeddings (bags/*.h5)": bool(self.bags),
            "scores (result.json)": self.result is not None,
        }
        return [name for name, is_there in parts.items() if not is_there]

    @property
    def n_steps(self) -> int:
        """Finished pretraining steps that the metrics tell of."""
        return int(self.metrics[-1]["step"]) + 1 if self.metrics else 0


def open_contents(folder: Path) -> Contents:
    """Find and open what a folder holds.

    Args:
        folder: Of a demo, or of one stage: a run, an encoder, bags, scores or a catalogue.

    Raises:
        AnlageError: If nothing usable is there.
    """
    problems: list[str] = []
    catalogue_path = first_file(folder / "slides.parquet")
    is_tuned = stage_of(folder / "run.json") == "finetune"
    runs = (folder / "run" / "run.json", folder / "run.json")
    run_path = first_file(*(path for path in runs if stage_of(path) == "tile"))
    run_dir = run_path.parent if run_path else folder
    metrics_path = first_file(run_dir / "metrics.jsonl") if run_path else None
    encoder_path = network_folder("", run_dir / "encoder", folder)
    scores = (folder / "scores" / "result.json", folder / "result.json")
    result_path = first_file(*(scores[:1] if is_tuned else scores))
    embedding_path = first_file(folder / "bags" / "embedding.json", folder / "embedding.json")
    contents = Contents(
        demo=opened("demo.json", first_file(folder / "demo.json"), read_json, problems),
        catalogue=opened("slides.parquet", catalogue_path, Catalogue.open, problems),
        refused=tuple(opened("slides", catalogue_path, read_refused, problems) or ()),
        run=opened("run.json", run_path, _read_run, problems),
        metrics=tuple(opened("metrics.jsonl", metrics_path, read_metrics, problems) or ()),
        encoder=opened("encoder", encoder_path, _load_encoder, problems),
        bags=_bags(folder),
        embedding=opened("embedding.json", embedding_path, read_json, problems),
        result=opened("result.json", result_path, read_result, problems),
        predictions=first_file(result_path.parent / "predictions.parquet") if result_path else None,
        over_slides=open_slide_parts(folder, problems),
        problems=tuple(problems),
    )
    _refuse_nothing(folder, contents)
    return contents


def _read_run(path: Path) -> dict[str, Any] | None:
    record = read_record(path.parent)
    lacking = {"config", "slides", "catalogue", "versions"} - (record or {}).keys()
    if lacking:
        raise AnlageError(path, f"lacks {', '.join(sorted(lacking))}")
    return record


def _load_encoder(folder: Path) -> TileEncoder:
    return load_encoder(folder, device="auto")


def _bags(folder: Path) -> dict[str, Path]:
    files = sorted((folder / "bags").glob("*.h5")) or sorted(folder.glob("*.h5"))
    return {path.stem: path for path in files}


def _refuse_nothing(folder: Path, contents: Contents) -> None:
    if not contents.holds_nothing:
        return
    found = f"; found but unusable: {'; '.join(contents.problems)}" if contents.problems else ""
    message = (
        "needs something to report; looked for slides.parquet, run.json (also in run/), an encoder "
        "(config.json in run/encoder/ or encoder/), *.h5 (also in bags/), result.json (also in "
        "scores/), and over slides slide_run/, slide_embeddings.parquet and finetune*/"
        f"{found}. Name the folder of a demo, a run, bags or scores."
    )
    raise AnlageError(folder, message)
