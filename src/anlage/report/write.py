"""Write the report: gather what a folder holds, make each section, fill one static page."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from anlage import __version__
from anlage.errors import AnlageError
from anlage.files import write_text_whole
from anlage.progress import meter
from anlage.report.contents import Contents, open_contents
from anlage.report.finetune_section import finetune_sections
from anlage.report.neighbours import neighbours_section
from anlage.report.patch_map import patch_map_section
from anlage.report.provenance_chain import provenance_chain
from anlage.report.score_tables import scores_section
from anlage.report.slide_cards import slides_section
from anlage.report.slide_embeddings_section import slide_embeddings_section
from anlage.report.slide_training_section import slide_duration_s, slide_training_section
from anlage.report.training_section import duration_s, time_in_words, training_section
from anlage.report.verdicts import verdicts

LOGGER = logging.getLogger(__name__)
TEMPLATE = "report.html.jinja"
SCRIPT = "report.js"

Section = TypeVar("Section")


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write one static HTML page of what a folder holds; it opens offline and fetches nothing.

    Parts that are not there are left out and named. Every hash of the chain is computed again, so
    the page says what is true now, not what was once.

    Args:
        folder: Of a demo, a run, an encoder, bags, scores or a catalogue.
        output: The page; ``report.html`` in the folder if None.

    Returns:
        Where the page is.

    Raises:
        AnlageError: If the folder holds nothing to report.
    """
    folder = Path(folder)
    page = folder / "report.html" if output is None else Path(output)
    contents = open_contents(folder)
    for problem in contents.problems:
        LOGGER.warning("%s", problem)
    write_text_whole(page, _rendered(_sections(contents)))
    return page


def _sections(contents: Contents) -> dict[str, Any]:
    """Every section by the template's name for it; None for those without data."""
    seed = _seed(contents)
    makers: dict[str, Callable[[], Any]] = {
        "chain": lambda: provenance_chain(contents),
        "slides": lambda: slides_section(contents),
        "training": lambda: training_section(contents),
        "patches": lambda: patch_map_section(contents),
        "neighbours": lambda: neighbours_section(contents, seed=seed or 0),
        "slide_training": lambda: slide_training_section(contents),
        "slide_embeddings": lambda: slide_embeddings_section(contents),
        "finetune": lambda: finetune_sections(contents),
        "scores": lambda: scores_section(contents),
    }
    made: dict[str, Any] = {}
    with meter("report", total=len(makers), unit="sections") as progress:
        for name, make in makers.items():
            made[name] = _made(name, make)
            progress.advance(note=name)
    chain = made["chain"] or ()
    return made | {
        "title": "Demo" if contents.demo else "Report",
        "subtitle": _subtitle(contents, seed),
        "figures": _figures(contents, made),
        "verdicts": verdicts(contents, chain),
        "missing": contents.missing,
    }


def _made(name: str, make: Callable[[], Section]) -> Section | None:
    """One section; a damaged file costs its section, not the page."""
    try:
        return make()
    except AnlageError as error:
        LOGGER.warning("section %s is left out: %s", name, error)
        return None


def _rendered(sections: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("anlage.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = files("anlage.report").joinpath("templates", SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(TEMPLATE).render(
        **sections,
        script=Markup(script),  # noqa: S704 - our own file; the only script the page may run
        script_hash=digest,
        version=__version__,
        written=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
    )


def _seed(contents: Contents) -> int | None:
    parts = contents.over_slides
    runs = [contents.run, parts.run, *(tuned.record for tuned in parts.tuned[:1])]
    for settings in (*((run or {}).get("config") for run in runs), contents.demo):
        if settings and isinstance(settings.get("seed"), int):
            return int(settings["seed"])
    return int(contents.result.settings.get("seed", 0)) if contents.result else None


def _subtitle(contents: Contents, seed: int | None) -> str:
    """What was run, in one sentence."""
    done = []
    if contents.run:
        n_slides = contents.run.get("n_slides", len(contents.run["slides"]))
        done.append(f"a tile encoder pretrained on {n_slides} slides")
    elif contents.encoder:
        done.append("a tile encoder")
    if contents.catalogue and not contents.run:
        done.append(f"{len(contents.catalogue)} slides indexed")
    if contents.bags:
        done.append(f"{len(contents.bags)} slides embedded")
    done += _done_over_slides(contents)
    if contents.result:
        done.append(
            f"scored on {contents.result.data.n_groups} cases of {contents.result.data.name}"
        )
    text = ", ".join(done)
    return text[:1].upper() + text[1:] + (f". Seed {seed}." if seed is not None else ".")


def _done_over_slides(contents: Contents) -> list[str]:
    parts, done = contents.over_slides, []
    if parts.run:
        n_bags = parts.run.get("n_slides", len(parts.run["slides"]))
        done.append(f"a slide encoder pretrained on bags of {n_bags} slides")
    elif parts.encoder:
        done.append("a slide encoder")
    if parts.table:
        done.append(f"{len(parts.table.rows)} slide embeddings")
    tasks = [tuned.result.task_name for tuned in parts.tuned if tuned.result]
    if tasks:
        done.append(f"slide models fine-tuned on {', '.join(tasks)}")
    return done


def _figures(contents: Contents, made: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers at the top: value and what it counts."""
    shown: list[tuple[str, str]] = []
    if contents.catalogue:
        area = pc.sum(contents.catalogue.column("tissue_area_mm2")).as_py() or 0.0
        shown.append((f"{len(contents.catalogue):,}", "slides"))
        shown.append((f"{area:,.0f} mm²", "tissue"))
    if contents.encoder:
        n = sum(p.numel() for p in contents.encoder.model.parameters())
        shown.append((f"{n / 1e6:.2f} M" if n >= 1e5 else f"{n:,}", "parameters"))
    if contents.metrics:
        shown.append((f"{contents.n_steps:,}", "training steps"))
        seconds = duration_s(contents)
        if seconds:
            shown.append((time_in_words(seconds), "training time"))
    shown += _figures_over_slides(contents)
    if made["neighbours"]:
        shown.append((f"{made['neighbours'].n_tiles:,}", "tiles embedded"))
    if contents.result:
        shown.append((f"{contents.result.data.n_groups:,}", "cases tested"))
    return shown


def _figures_over_slides(contents: Contents) -> list[tuple[str, str]]:
    """Those of the slide encoder, where there is no tile encoder to tell of; of the patients."""
    parts, shown = contents.over_slides, []
    if parts.encoder and not contents.encoder:
        n = sum(p.numel() for p in parts.encoder.network.parameters())
        shown.append((f"{n / 1e6:.2f} M", "parameters"))
    if parts.metrics and not contents.metrics:
        shown.append((f"{parts.n_steps:,}", "training steps"))
        seconds = slide_duration_s(parts)
        if seconds:
            shown.append((time_in_words(seconds), "training time"))
    for result in (tuned.result for tuned in parts.tuned[:1]):
        if result is not None and contents.catalogue is None:
            shown.append((f"{result.n_slides:,}", "slides of the task"))
            shown.append((f"{result.n_patients:,}", "patients"))
            shown.append((f"{len(result.folds):,}", "folds"))
    return shown
