"""The links of the chain over slides: pretraining, slide encoder, embeddings, fine-tuned models."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anlage.bags.store import read_bag_header
from anlage.encoders.slide_encoder import TileEncoderFacts
from anlage.encoders.slide_model_folder import load_slide_model
from anlage.errors import AnlageError, BagError
from anlage.provenance import sha256_of_json
from anlage.report.chain_link import (
    MOST_CHECKED,
    SHORT,
    Check,
    Link,
    all_are,
    short_commit,
)
from anlage.report.contents import Contents
from anlage.report.slide_parts import TunedRun

SAME_RUN = ("config", "bags", "slides", "tile_encoder")


def slide_links(contents: Contents) -> Iterator[Link]:
    """Every link over slides that is there, in the order of the chain."""
    bags = _Bags(contents)
    if contents.over_slides.run is not None:
        yield _run_link(contents.over_slides.run, bags)
    if contents.over_slides.encoder is not None:
        yield _encoder_link(contents, bags)
    if contents.over_slides.table is not None:
        yield _table_link(contents, bags)
    for tuned in contents.over_slides.tuned:
        yield _tuned_link(tuned, contents, bags)


class _Bags:
    """What the headers of the folder's bags say now; those that cannot be read say nothing.

    Args:
        contents: The folder's.
    """

    def __init__(self, contents: Contents) -> None:
        self._places = contents.bags

    @cached_property
    def checksums(self) -> Mapping[str, str]:
        """Checksum of each bag's content, as stored; the bags' own link computes it again."""
        return {name: header[0] for name, header in self._headers.items()}

    @cached_property
    def tile_encoders(self) -> set[str]:
        """Fingerprints of the tile encoders that made them."""
        return {header[1] for header in self._headers.values()}

    @cached_property
    def _headers(self) -> Mapping[str, tuple[str, str]]:
        found = {}
        for name, place in self._places.items():
            try:
                header = read_bag_header(place)
            except BagError:
                continue
            found[name] = (header.content_sha256, header.attributes.encoder_fingerprint)
        return found

    def hold(self, checksums: Mapping[str, str], *, what: str) -> Check:
        """Whether bags of these checksums are still there."""
        other = [name for name, known in checksums.items() if self.checksums.get(name) != known]
        return all_are(what, sorted(other), len(checksums))

    def are_of(self, fingerprint: str | None, *, what: str) -> Iterator[Check]:
        """Whether the tile encoder that is named made the bags; nothing without bags."""
        if not self._headers:
            return
        if fingerprint is None:
            yield Check(holds=None, text=f"{what}: known by name alone")
        else:
            yield Check(holds=self.tile_encoders == {fingerprint}, text=what)


def _run_link(run: Mapping[str, Any], bags: _Bags) -> Link:
    recipe = sha256_of_json(run["config"])
    facts = (
        ("Seed", str(run["config"].get("seed", ""))),
        ("Commit", short_commit(run.get("commit"))),
        ("Trained on", f"{run.get('n_slides', len(run['slides']))} bags"),
        ("Held out", f"{len(run.get('held_out', []))}"),
    )
    checks = list(bags.are_of(_tile_encoder_of(run), what="names the tile encoder of the bags"))
    if bags.checksums and run["slides"]:
        checks.append(bags.hold(run["slides"], what="bags it was trained on are as it read them"))
    return Link(
        title="Slide pretraining run",
        short=recipe[:SHORT],
        full=recipe,
        facts=facts,
        checks=tuple(checks),
        hashes=tuple(list(run["slides"].items())[:MOST_CHECKED]),
    )


def _tile_encoder_of(run: Mapping[str, Any]) -> str | None:
    found = (run.get("tile_encoder") or {}).get("fingerprint")
    return None if found is None else str(found)


def _encoder_link(contents: Contents, bags: _Bags) -> Link:
    encoder, run = contents.over_slides.encoder, contents.over_slides.run
    assert encoder is not None
    made_by, made_for = encoder.config.provenance, encoder.config.tile_encoder
    facts = [("Takes", f"{called(made_for)}, {made_for.width} wide at {made_for.mpp:g} µm/px")]
    if "step" in made_by:
        facts.append(("Step", f"{made_by['step']:,}"))
    checks = [Check(holds=True, text="weights have the checksum of their config.json")]
    if run is not None:
        same = all(made_by.get(name) == run.get(name) for name in SAME_RUN)
        checks.append(Check(holds=same, text="its provenance is this run: recipe and bags"))
    if contents.encoder is not None and made_for.fingerprint is not None:
        same = made_for.fingerprint == contents.encoder.fingerprint
        checks.append(Check(holds=same, text="names this tile encoder by its fingerprint"))
    elif contents.encoder is None:
        checks += bags.are_of(made_for.fingerprint, what="names the tile encoder of the bags")
    fingerprint = encoder.fingerprint
    return Link(
        title="Slide encoder",
        short=fingerprint[:SHORT],
        full=fingerprint,
        facts=tuple(facts),
        checks=tuple(checks),
    )


def called(made_for: TileEncoderFacts) -> str:
    """The tile encoder's name; the beginning of its fingerprint where that is its name."""
    return made_for.name[:SHORT] if made_for.name == made_for.fingerprint else made_for.name


def _table_link(contents: Contents, bags: _Bags) -> Link:
    table, encoder = contents.over_slides.table, contents.over_slides.encoder
    assert table is not None
    about, made_by = table.about, table.about.get("slide_encoder") or {}
    checks = []
    if encoder is not None and made_by:
        same = made_by.get("fingerprint") == encoder.fingerprint
        checks.append(Check(holds=same, text="were made by this slide encoder"))
    names, sums = (table.rows[name].to_pylist() for name in ("slide_id", "bag_sha256"))
    if bags.checksums:
        of_bags = dict(zip(names, sums, strict=True))
        checks.append(bags.hold(of_bags, what="rows were made from the bag as it is"))
    facts = [("Slides", f"{len(names)}"), ("Pooling", str(about.get("pooling", "")))]
    facts.append(("Commit", short_commit(about.get("commit"))))
    return Link(
        title="Slide embeddings",
        facts=tuple(facts),
        checks=tuple(checks),
        hashes=tuple(list(zip(names, sums, strict=True))[:MOST_CHECKED]),
    )


def _tuned_link(tuned: TunedRun, contents: Contents, bags: _Bags) -> Link:
    record, encoder = tuned.record, contents.over_slides.encoder
    recipe = sha256_of_json(record["config"])
    checks = list(
        bags.are_of(record.get("tile_encoder"), what="names the tile encoder of the bags")
    )
    named = record.get("slide_encoder")
    if encoder is not None and named is not None:
        same = named == encoder.fingerprint
        checks.append(Check(holds=same, text="began with this slide encoder"))
    folders = sorted(path.parent.parent for path in tuned.folder.glob("fold-*/model/config.json"))
    models, other = {}, []
    for folder in folders[:MOST_CHECKED]:
        try:
            model = load_slide_model(folder / "model")
        except AnlageError:
            other.append(folder.name)
            continue
        models[folder.name] = model.fingerprint
        if any(model.config.provenance.get(k) != record.get(k) for k in ("config", "bags")):
            other.append(folder.name)
    checks.append(all_are("models are whole and of this run", other, len(folders[:MOST_CHECKED])))
    if tuned.result is not None:
        same = all(tuned.result.data.get(k) == record.get(k) for k in ("bags", "labels", "splits"))
        checks.append(Check(holds=same, text="the result is of the run's bags, labels and folds"))
    checks += _file_checks(tuned)
    facts = (
        ("Seed", str(record["config"].get("seed", ""))),
        ("Commit", short_commit(record.get("commit"))),
    )
    given = {"labels": "labels", "splits": "folds", "slide encoder": "slide_encoder"}
    hashes = [(name, str(record[key])) for name, key in given.items() if record.get(key)]
    return Link(
        title="Fine-tuning",
        short=recipe[:SHORT],
        full=recipe,
        facts=facts,
        checks=tuple(checks),
        hashes=(*hashes, *models.items()),
    )


def _file_checks(tuned: TunedRun) -> Iterator[Check]:
    """Whether the tables beside the record are those of the run."""
    folds = tuned.folder / "splits.csv"
    if folds.is_file():
        same = hashlib.sha256(folds.read_bytes()).hexdigest() == tuned.record.get("splits")
        yield Check(holds=same, text="splits.csv hashes to what the run recorded")
    predictions = tuned.folder / "predictions.parquet"
    if tuned.result is None or not predictions.is_file():
        return
    told = {(fold.name, fold.slides["test"]) for fold in tuned.result.folds}
    same = set(_tested(predictions).items()) == told
    yield Check(holds=same, text="predictions are of as many slides a fold as were tested")


def _tested(predictions: Path) -> Counter[str]:
    """How many slides each fold predicts of its test side; none of a file that is damaged."""
    try:
        rows = pq.read_table(predictions, columns=["fold", "side"]).to_pylist()
    except (OSError, ValueError, pa.ArrowException):
        return Counter()
    return Counter(str(row["fold"]) for row in rows if row["side"] == "test")
