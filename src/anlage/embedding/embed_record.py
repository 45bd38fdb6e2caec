"""``embedding.json``: by what the bags of a folder were made, over all the runs that made them."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from anlage.bags.store import list_bags
from anlage.embedding.claims import Claims
from anlage.embedding.encoder_facts import EncoderFacts
from anlage.embedding.settings import EmbedSettings, departures
from anlage.embedding.slide_plan import Grid, Plan
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import BagError, SlideError
from anlage.files import write_json_whole
from anlage.provenance import git_commit, machine, versions
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.found_slide import Refused
from anlage.slides.storage.location import is_remote
from anlage.slides.storage.remote_objects import get_object, put_object

LOGGER = logging.getLogger(__name__)
RECORD = "embedding.json"
OF_A_RUN = (
    *("started", "seconds", "wait_s", "forward_s", "batch_size", "device", "workers", "shard"),
    *("done", "empty", "n_tiles", "catalogue_fingerprint", "versions", "commit", "machine"),
)
SINCE_SHARDS: dict[str, Any] = {
    "shard": None,
    "elsewhere": [],
    "forward_s": None,
    "patch_tokens": None,
    "workers": None,
}


class Embedded(Protocol):
    """Slides in the hands of one encoder, here or on other machines: what a record tells of."""

    @property
    def output(self) -> str | Path:
        """Folder of the bags, or a URL."""

    @property
    def encoder(self) -> TileEncoder | EncoderFacts:
        """The encoder, or what is known of it."""

    @property
    def devices(self) -> str:
        """Where it runs."""

    @property
    def grid(self) -> Grid:
        """The tiles it gets."""

    @property
    def with_tokens(self) -> bool:
        """Whether patch tokens are written as well."""

    @property
    def token_shape(self) -> tuple[int, int]:
        """(N, E) of a tile's patch tokens."""

    @property
    def claims(self) -> Claims:
        """On the slides of the output."""

    @property
    def plan(self) -> Plan:
        """What was to be done."""

    @property
    def done(self) -> list[str]:
        """Slides embedded by this run."""

    @property
    def empty(self) -> list[str]:
        """Slides that this run found to have no tile."""

    @property
    def elsewhere(self) -> list[str]:
        """Slides that another run is embedding."""

    @property
    def refused(self) -> list[Refused]:
        """Slides without a bag, with the reason."""

    @property
    def n_tiles(self) -> int:
        """Tiles embedded by this run."""


def record_of(
    target: Embedded, catalogue: Catalogue, settings: EmbedSettings, *, skipped: list[str]
) -> dict[str, Any]:
    """A run's provenance: what was embedded, by what, with what, where.

    Args:
        target: The encoder, and what became of the slides.
        catalogue: All slides, also those of other shards.
        settings: How they were embedded.
        skipped: Slides whose bag was there.
    """
    encoder, grid = target.encoder, target.grid
    return {
        "format": "embedding/1",
        "encoder_fingerprint": encoder.fingerprint,
        "encoder": encoder.config.model_dump(mode="json"),
        "departures": departures(encoder.config, grid.spec, grid.colour),
        "catalogue": catalogue.path.name,
        "catalogue_fingerprint": catalogue.fingerprint,
        "tiles": asdict(grid.spec),
        "colour": grid.colour,
        "patch_tokens": list(target.token_shape) if target.with_tokens else None,
        "precision": encoder.precision,
        "device": target.devices,
        "workers": None,
        "batch_size": settings.batch_size,
        "shard": None if settings.shard is None else str(settings.shard),
        "done": target.done,
        "skipped": skipped,
        "empty": target.empty,
        "elsewhere": target.elsewhere,
        "refused": [{"uri": slide.uri, "reason": slide.reason} for slide in target.refused],
        "n_tiles": target.n_tiles,
        "versions": versions(),
        "commit": git_commit(),
        "machine": machine(),
    }


def write_embed_record(
    target: Embedded, record: Mapping[str, Any], *, whole: Catalogue, part: Catalogue
) -> None:
    """Write a run's record, joined to that of the runs before it; keep that if nothing was to do.

    ``done``, ``empty`` and ``n_tiles`` then tell of all of them, ``skipped`` of the bags that no
    record tells of, and ``runs`` of each one: its slides, catalogue, commit and machine. Runs that
    end at the same time wait for each other. A shard also leaves its own record beside it.

    Args:
        target: Where the bags are.
        record: What this run did, and by what.
        whole: All slides.
        part: Those that this run looked at.
    """
    record = {**record, "runs": [{name: record[name] for name in OF_A_RUN}]}
    if record["shard"] is not None:
        own = f"embedding.shard-{record['shard'].replace('/', '-of-')}.json"
        _write(target.output, own, record)
    with target.claims.of_the_record():
        earlier = _earlier(target.output, record)
        if earlier is None:
            _write(target.output, RECORD, record)
            return
        had_work = bool(target.plan.todo)
        if had_work or earlier["catalogue_fingerprint"] != record["catalogue_fingerprint"]:
            standing = _standing(target.output, whole)
            uris = set(part.column("uri").to_pylist()) if earlier["refused"] else set()
            _write(target.output, RECORD, _joined(earlier, record, standing, uris))


def _write(output: str | Path, name: str, record: Mapping[str, Any]) -> None:
    if not is_remote(str(output)):
        write_json_whole(Path(output) / name, record)
        return
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        put_object(f"{output}/{name}", text.encode())
    except SlideError as error:
        raise BagError(error.path, error.message) from error


def _read(output: str | Path, name: str) -> str | None:
    if not is_remote(str(output)):
        path = Path(output) / name
        return path.read_text(encoding="utf-8") if path.exists() else None
    try:
        found = get_object(f"{output}/{name}")
    except SlideError as error:
        raise BagError(error.path, error.message) from error
    return None if found is None else found[0].decode()


def _standing(output: str | Path, catalogue: Catalogue) -> set[str]:
    """Slides of a catalogue whose bag is there."""
    return {slide_id for slide_id in list_bags(output) if slide_id in catalogue}


def _earlier(output: str | Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record there, if it is of this encoder and grid; None if there is none to go on from."""
    text = _read(output, RECORD)
    if text is None:
        return None
    try:
        earlier = json.loads(text)
    except ValueError as error:
        LOGGER.warning("%s/%s: is not JSON and is written anew: %s", output, RECORD, error)
        return None
    must_equal = ("format", "encoder_fingerprint", "tiles", "colour")
    if not isinstance(earlier, dict) or any(earlier.get(k) != record[k] for k in must_equal):
        return None
    earlier = SINCE_SHARDS | earlier
    return earlier if earlier.keys() >= record.keys() - {"departures"} else None


def _joined(
    earlier: Mapping[str, Any],
    record: Mapping[str, Any],
    standing: Collection[str],
    looked_at: Collection[str],
) -> dict[str, Any]:
    """Both records as one.

    Args:
        earlier: Of the runs before.
        record: Of this one.
        standing: Slides whose bag is there; one that was deleted since is no longer theirs.
        looked_at: URIs of the slides of this run: what was refused of others stays refused.
    """
    lists = {}
    for name in ("done", "empty"):
        now = set(record[name])
        lists[name] = [s for s in earlier[name] if s in standing and s not in now] + record[name]
    told = set(lists["done"]) | set(lists["empty"])
    others = [slide for slide in earlier["refused"] if slide["uri"] not in looked_at]
    return {
        **record,
        **lists,
        "skipped": sorted(set(standing) - told),
        "refused": [*others, *record["refused"]],
        "n_tiles": earlier["n_tiles"] + record["n_tiles"],
        "runs": [*earlier["runs"], *record["runs"]],
    }
