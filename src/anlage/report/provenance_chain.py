"""The chain from slides to scores, every link checked anew as the page is written."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anlage.bags.store import content_sha256, read_bag
from anlage.errors import BagError, CatalogueError
from anlage.provenance import sha256_of_json
from anlage.report.chain_link import (
    MOST_CHECKED,
    SHORT,
    Check,
    Link,
    all_are,
    short_commit,
    some_of,
)
from anlage.report.contents import Contents
from anlage.report.found_files import without_folders
from anlage.report.slide_provenance import slide_links
from anlage.slides.catalogue import Catalogue, SlideRow
from anlage.slides.indexing.discovery import find_slides
from anlage.slides.indexing.fingerprint import slide_fingerprint
from anlage.slides.storage.location import file_name, is_remote


def provenance_chain(contents: Contents) -> tuple[Link, ...]:
    """Every link that is there, slides first, each with its checks."""
    links = [
        _slides_link(contents),
        _catalogue_link(contents),
        _run_link(contents),
        _encoder_link(contents),
        _bags_link(contents),
        *slide_links(contents),
        _scores_link(contents),
    ]
    broken = tuple(Check(holds=False, text=problem) for problem in contents.problems)
    damaged = [Link(title="Cannot be read", checks=broken)] if broken else []
    return tuple(link for link in [*links, *damaged] if link is not None)


def run_slides(contents: Contents) -> Catalogue | None:
    """The part of the catalogue that the run says it trained on."""
    if contents.catalogue is None or contents.run is None:
        return None
    split = (contents.run["config"].get("tiles") or {}).get("split")
    return contents.catalogue.select(split=split) if split else contents.catalogue


def trained_on(contents: Contents) -> Container[str]:
    """The slide_ids that the run trained on: as it lists them, or those that its recipe chooses."""
    if contents.run is None:
        return ()
    if contents.run["slides"] or not contents.run.get("n_slides"):
        return set(contents.run["slides"])
    return run_slides(contents) or ()


def _slides_link(contents: Contents) -> Link | None:
    if contents.catalogue is None:
        return None
    rows = list(islice(contents.catalogue.iter_rows(), MOST_CHECKED))
    n_slides = len(contents.catalogue)
    changed, absent = [], []
    for row in rows:
        now = _fingerprint_now(contents.catalogue, row)
        if now is None:
            absent.append(row.slide_id)
        elif now != row.fingerprint:
            changed.append(row.slide_id)
    n_same = len(rows) - len(changed) - len(absent)
    checks = [
        Check(
            holds=not changed if n_same or changed else None,
            text=f"{n_same} of {n_slides} slide files hashed again: as indexed"
            + (f"; changed: {some_of(changed)}" if changed else ""),
        )
    ]
    if absent:
        text = f"{len(absent)} slide files are no longer where they were: {some_of(absent)}"
        checks.append(Check(holds=None, text=text))
    hashes = tuple((row.slide_id, row.fingerprint) for row in rows)
    return Link(title=f"{n_slides} slides", checks=tuple(checks), hashes=hashes)


def _fingerprint_now(catalogue: Catalogue, row: SlideRow) -> str | None:
    """The slide's fingerprint from its files as they are; None if they are gone or not here."""
    location = catalogue.location(row.slide_id)
    if is_remote(location) or not Path(location).is_file():
        return None
    path = Path(location)
    place = path.parent if path.suffix.lower() == ".dcm" else path
    found = (slide for slide in find_slides([place])[0] if file_name(slide.location) == path.name)
    slide = next(found, None)
    try:
        return slide_fingerprint(slide.files) if slide else None
    except OSError:
        return None


def _catalogue_link(contents: Contents) -> Link | None:
    if contents.catalogue is None:
        return None
    fingerprint = contents.catalogue.fingerprint
    area = pc.sum(contents.catalogue.column("tissue_area_mm2")).as_py() or 0.0
    facts = (("Slides", f"{len(contents.catalogue)}"), ("Tissue", f"{area:,.1f} mm²"))
    return Link(
        title="Catalogue",
        short=fingerprint[:SHORT],
        full=fingerprint,
        facts=facts,
        checks=(_masks_check(contents.catalogue),),
    )


def _masks_check(catalogue: Catalogue) -> Check:
    """Whether the masks beside the table are of the same slides."""
    other = []
    chosen = catalogue.column("slide_id")[:MOST_CHECKED].to_pylist()
    for slide_id in chosen:
        try:
            catalogue.mask(slide_id)
        except CatalogueError:
            other.append(slide_id)
    return all_are("tissue masks are of these slides", other, len(chosen))


def _run_link(contents: Contents) -> Link | None:
    run = contents.run
    if run is None:
        return None
    recipe = sha256_of_json(run["config"])
    versions = ", ".join(f"{name} {value}" for name, value in run["versions"].items())
    facts = (
        ("Seed", str(run["config"].get("seed", ""))),
        ("Commit", short_commit(run.get("commit"))),
        ("Versions", versions),
    )
    slides = run_slides(contents)
    checks = list(_run_checks(run, slides)) if slides is not None else []
    return Link(
        title="Pretraining run",
        short=recipe[:SHORT],
        full=recipe,
        facts=facts,
        checks=tuple(checks),
        hashes=tuple(list(run["slides"].items())[:MOST_CHECKED]),
    )


def _run_checks(run: dict[str, Any], slides: Catalogue) -> Iterator[Check]:
    yield Check(
        holds=slides.fingerprint == run["catalogue"],
        text="the catalogue's rows that the recipe chooses hash to what the run recorded",
    )
    if not run["slides"]:  # so many that their fingerprint above stands for them
        return
    names = ("slide_id", "fingerprint")
    now = dict(zip(*(slides.column(name).to_pylist() for name in names), strict=True))
    other = sorted(
        k for k in run["slides"].keys() | now.keys() if run["slides"].get(k) != now.get(k)
    )
    named = f"; not so: {some_of(other)}" if other else ""
    yield Check(
        holds=not other,
        text=f"{len(run['slides'])} slide fingerprints are those of the catalogue{named}",
    )


def _encoder_link(contents: Contents) -> Link | None:
    encoder = contents.encoder
    if encoder is None:
        return None
    made_by = encoder.config.provenance
    facts = [("Tile", f"{encoder.config.tile_px} px at {encoder.config.mpp:g} µm/px")]
    if "step" in made_by:
        facts.append(("Step", f"{made_by['step']:,}"))
    checks = [Check(holds=True, text="weights have the checksum of their config.json")]
    if contents.run is not None:
        same = all(made_by.get(k) == contents.run.get(k) for k in ("config", "catalogue", "slides"))
        checks.append(Check(holds=same, text="its provenance is this run: recipe and slides"))
    fingerprint = encoder.fingerprint
    return Link(
        title="Tile encoder",
        short=fingerprint[:SHORT],
        full=fingerprint,
        facts=tuple(facts),
        checks=tuple(checks),
    )


def _bags_link(contents: Contents) -> Link | None:
    if not contents.bags:
        return None
    slides = contents.catalogue
    damaged, other_encoder, other_slide, hashes, n_tiles = [], [], [], [], 0
    chosen = list(contents.bags.items())[:MOST_CHECKED]
    for name, path in chosen:
        try:
            bag = read_bag(path)
        except BagError as error:
            damaged.append(f"{name} ({without_folders(error.message).rstrip('.')})")
            continue
        made = bag.attributes
        n_tiles += len(bag.coords)
        hashes.append((name, content_sha256(bag.features, bag.coords)))
        if contents.encoder and made.encoder_fingerprint != contents.encoder.fingerprint:
            other_encoder.append(name)
        if slides is not None and not _is_of(bag.slide_id, made.slide_fingerprint, slides):
            other_slide.append(name)
    checks = [all_are("bags match their own checksum", damaged, len(chosen))]
    if contents.encoder is not None:
        checks.append(all_are("were made by this encoder", other_encoder, len(hashes)))
    if slides is not None:
        checks.append(
            all_are("were made from the slides of the catalogue", other_slide, len(hashes))
        )
    facts = [("Bags", f"{len(contents.bags)}"), ("Tiles", f"{n_tiles:,}")]
    if contents.embedding is not None:
        facts.append(("Commit", short_commit(contents.embedding.get("commit"))))
        if contents.catalogue is not None:
            same = contents.embedding.get("catalogue_fingerprint") == contents.catalogue.fingerprint
            checks.append(Check(holds=same, text="embedding.json names this catalogue"))
    return Link(
        title="Tile embeddings", facts=tuple(facts), checks=tuple(checks), hashes=tuple(hashes)
    )


def _is_of(slide_id: str, fingerprint: str, slides: Catalogue) -> bool:
    return slide_id in slides and slides.row(slide_id).fingerprint == fingerprint


def _scores_link(contents: Contents) -> Link | None:
    result = contents.result
    if result is None:
        return None
    checks = []
    if contents.encoder is not None:
        same = result.encoder_fingerprint == contents.encoder.fingerprint
        checks.append(Check(holds=same, text="were made with this encoder"))
    if contents.predictions is not None:
        stored = _predictions_metadata(contents.predictions)
        wanted = {
            b"anlage.encoder": result.encoder_fingerprint.encode(),
            b"anlage.data": result.data.fingerprint.encode(),
        }
        same = all(stored.get(name) == value for name, value in wanted.items())
        checks.append(
            Check(holds=same, text="every tile's prediction is of the same encoder and data")
        )
    seed = str(result.settings.get("seed", ""))
    facts = (
        ("Data", f"{result.data.name}, {result.data.fingerprint[:SHORT]}"),
        ("Seed", seed),
        ("Commit", short_commit(result.commit)),
    )
    fingerprint = sha256_of_json(result.model_dump(mode="json"))
    return Link(
        title="Scores",
        short=fingerprint[:SHORT],
        full=fingerprint,
        facts=facts,
        checks=tuple(checks),
        hashes=(("encoder", result.encoder_fingerprint), ("data", result.data.fingerprint)),
    )


def _predictions_metadata(path: Path) -> dict[bytes, bytes]:
    try:
        return dict(pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return {}
