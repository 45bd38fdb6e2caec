"""What a folder holds of the chain: each part is found, opened and checked, or said to be missing.

A demo's folder has every part in its place; the folder of one stage alone is understood as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from anlage.encoders.folder import CONFIG, load_encoder
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import AnlageError
from anlage.evaluation.result import EvaluationResult, read_result
from anlage.folder_replacement import whole_folder
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.found_slide import Refused, read_refused
from anlage.training.log import read_metrics
from anlage.training.run_record import read_record

Part = TypeVar("Part")

FOLDERS_OF_A_PATH = re.compile(r"(?<![\w.)\]])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:;,'\"<>]+)*[/\\](?=\w)")


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
    problems: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Names of the parts that are not there, in the order of the chain."""
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
    catalogue_path = _first(folder / "slides.parquet")
    run_path = _first(folder / "run" / "run.json", folder / "run.json")
    run_dir = run_path.parent if run_path else folder
    metrics_path = _first(run_dir / "metrics.jsonl")
    encoder_path = _encoder_folder(run_dir / "encoder", folder)
    result_path = _first(folder / "scores" / "result.json", folder / "result.json")
    embedding_path = _first(folder / "bags" / "embedding.json", folder / "embedding.json")
    contents = Contents(
        demo=_opened("demo.json", _first(folder / "demo.json"), _read_json, problems),
        catalogue=_opened("slides.parquet", catalogue_path, Catalogue.open, problems),
        refused=tuple(_opened("slides", catalogue_path, read_refused, problems) or ()),
        run=_opened("run.json", run_path, _read_run, problems),
        metrics=tuple(_opened("metrics.jsonl", metrics_path, read_metrics, problems) or ()),
        encoder=_opened("encoder", encoder_path, _load_encoder, problems),
        bags=_bags(folder),
        embedding=_opened("embedding.json", embedding_path, _read_json, problems),
        result=_opened("result.json", result_path, read_result, problems),
        predictions=_first(result_path.parent / "predictions.parquet") if result_path else None,
        problems=tuple(problems),
    )
    _refuse_nothing(folder, contents)
    return contents


def without_folders(text: str) -> str:
    """A text with every absolute path cut to its file name, since a report travels."""
    return FOLDERS_OF_A_PATH.sub("", text)


def _first(*candidates: Path) -> Path | None:
    return next((path for path in candidates if path.is_file()), None)


def _opened(
    name: str, path: Path | None, read: Callable[[Path], Part], problems: list[str]
) -> Part | None:
    """The part, None if it is not there; a damaged one becomes a line in ``problems``."""
    if path is None:
        return None
    try:
        return read(path)
    except AnlageError as error:
        problems.append(f"{name}: {without_folders(error.message)}")
    except (OSError, ValueError) as error:
        problems.append(f"{name}: cannot be read ({type(error).__name__})")
    return None


def _read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _read_run(path: Path) -> dict[str, Any] | None:
    record = read_record(path.parent)
    lacking = {"config", "slides", "catalogue", "versions"} - (record or {}).keys()
    if lacking:
        raise AnlageError(path, f"lacks {', '.join(sorted(lacking))}")
    return record


def _encoder_folder(*candidates: Path) -> Path | None:
    is_there = (folder for folder in candidates if (whole_folder(folder) / CONFIG).is_file())
    return next(is_there, None)


def _load_encoder(folder: Path) -> TileEncoder:
    return load_encoder(folder, device="auto")


def _bags(folder: Path) -> dict[str, Path]:
    files = sorted((folder / "bags").glob("*.h5")) or sorted(folder.glob("*.h5"))
    return {path.stem: path for path in files}


def _refuse_nothing(folder: Path, contents: Contents) -> None:
    if len(contents.missing) < 5:
        return
    found = f"; found but unusable: {'; '.join(contents.problems)}" if contents.problems else ""
    message = (
        "needs something to report; looked for slides.parquet, run.json (also in run/), an encoder "
        "(config.json in run/encoder/ or encoder/), *.h5 (also in bags/) and result.json (also in "
        f"scores/){found}. Name the folder of a demo, a run, bags or scores."
    )
    raise AnlageError(folder, message)
