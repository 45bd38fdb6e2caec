"""What an index has to read: which slides are new or changed, and what is known of the others."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.examine import Task, TissueSettings
from anlage.slides.indexing.found_slide import FoundSlide, Refused, slide_id_of
from anlage.slides.indexing.labels import LabelRow, Labels
from anlage.slides.mask_packs import packs_of
from anlage.slides.mask_store import masks_path
from anlage.slides.sorted_ids import SortedIds
from anlage.slides.storage.location import is_remote

LOGGER = logging.getLogger(__name__)
KEY_FORMAT = 1  # changes when slides have to be examined anew, since we measure otherwise


@dataclass(slots=True)
class Entry:
    """A slide that is to be in the catalogue.

    Attributes:
        location: Absolute path or URL.
        uri: As the catalogue writes it.
        slide_id: Its name.
        label: What the labels say about it, or None.
        earlier: Its row in the earlier catalogue, or None.
        task: What is to be read; None if the earlier row holds.
        key: What is read and how (``index_key``); empty if that cannot be said.
        is_found: Whether it was named now, rather than kept.
    """

    location: str
    uri: str
    slide_id: str
    label: LabelRow | None
    earlier: int | None
    task: Task | None = None
    key: str = ""
    is_found: bool = False


class Earlier:
    """The catalogue that an index adds to or renews, by uri.

    Attributes:
        catalogue: It.
        uris: Of its rows.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.uris = SortedIds(catalogue.column("uri"))
        names = ("slide_id", "index_key", "mpp", "mpp_source", "mask_pack", "mask_offset")
        self._columns = {name: catalogue.column(name).combine_chunks() for name in names}
        packs = packs_of(masks_path(catalogue.path))
        self._pack_bytes = {pack.name: pack.stat().st_size for pack in packs}

    def slide_id(self, row: int) -> str:
        """The name of a row's slide."""
        return str(self._columns["slide_id"][row].as_py())

    def key(self, row: int) -> str:
        """What was read for a row, and how; empty if its pictures are gone."""
        pack, offset = (self._columns[n][row].as_py() for n in ("mask_pack", "mask_offset"))
        is_there = offset < self._pack_bytes.get(pack, 0)
        return str(self._columns["index_key"][row].as_py()) if is_there else ""

    def given_mpp(self, row: int) -> float | None:
        """A row's mpp if labels gave it, not the file; else None."""
        is_given = self._columns["mpp_source"][row].as_py() == "catalogue"
        return float(self._columns["mpp"][row].as_py()) if is_given else None


def plan_index(
    found: Sequence[FoundSlide],
    earlier: Earlier | None,
    *,
    folder: Path,
    keep: Sequence[str],
    means: Mapping[str, LabelRow],
    gives_mpp: bool,
    settings: TissueSettings,
) -> list[Entry]:
    """The slides that are to be in a catalogue, in its order, and what has to be read for each.

    Args:
        found: The slides that were named.
        earlier: The catalogue as it is.
        folder: The catalogue's folder.
        keep: Beginnings of the uris of earlier rows that stay although they were not found.
        means: What the labels say, by location.
        gives_mpp: Whether the labels have a column mpp.
        settings: How tissue is found.

    Returns:
        The earlier rows that stay without being found, or all in their order if every one does;
        then the others in the order in which they were found.
    """
    method = settings.name()
    by_uri = {uri_of(slide.location, folder): slide for slide in found}
    kept = [] if earlier is None or not keep else _kept(earlier, by_uri, keep)
    entries = []
    for uri, row in [*kept, *((uri, None) for uri in by_uri)]:
        slide = by_uri.get(uri) if row is None else by_uri.pop(uri, None)
        if slide is None and row is None:
            continue  # stands among the kept
        location = located(uri, folder) if slide is None else slide.location
        label = means.get(location)
        before = earlier.uris.find(uri) if earlier is not None and row is None else row
        entry = Entry(location, uri, _name(location, label, before, earlier), label, before)
        if slide is None:
            _tell_if_mpp_stays(entry, earlier)
        else:
            entry.is_found = True
            mpp = None if label is None else label.mpp
            if earlier is not None and before is not None and (label is None or not gives_mpp):
                mpp = earlier.given_mpp(before)
            entry.key = _key(uri, slide, mpp, settings=settings, method=method, name=entry.slide_id)
            was = "" if earlier is None or before is None else earlier.key(before)
            if not entry.key or entry.key != was:
                entry.task = Task(slide, entry.slide_id, mpp)
        entries.append(entry)
    return entries


def _kept(
    earlier: Earlier, by_uri: Mapping[str, FoundSlide], keep: Sequence[str]
) -> list[tuple[str, int | None]]:
    """Earlier rows that stay where they are: all if ``keep`` has the empty beginning."""
    uris = enumerate(earlier.uris.names.to_pylist())
    beginnings = tuple(keep)
    return [
        (uri, row)
        for row, uri in uris
        if uri.startswith(beginnings) and ("" in beginnings or uri not in by_uri)
    ]


def _tell_if_mpp_stays(entry: Entry, earlier: Earlier | None) -> None:
    """Log that labels give a resolution to a slide that, not being named, is not examined."""
    mpp = None if entry.label is None else entry.label.mpp
    if mpp is None or earlier is None or entry.earlier is None:
        return
    if mpp != earlier.given_mpp(entry.earlier):
        told = "%s keeps its mpp: name it among the slides to have it examined at %g mpp"
        LOGGER.warning(told, entry.location, mpp)


def _name(location: str, label: LabelRow | None, row: int | None, earlier: Earlier | None) -> str:
    if label is not None and label.slide_id is not None:
        return label.slide_id
    if earlier is not None and row is not None:
        return earlier.slide_id(row)
    return slide_id_of(location)


def _key(
    uri: str,
    slide: FoundSlide,
    mpp: float | None,
    *,
    settings: TissueSettings,
    method: str,
    name: str,
) -> str:
    """Hash of all that a row was measured from: if it is the same, nothing has to be read again."""
    try:
        state = (
            [(slide.size, slide.version)]
            if is_remote(slide.location)
            else [(s.st_size, s.st_mtime_ns) for s in map(os.stat, slide.files)]
        )
        drawn = [
            (f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in settings.drawn_files(name)
        ]
    except OSError:
        return ""  # reading it will tell
    told = [KEY_FORMAT, uri, state, mpp, settings.mask_mpp, method, drawn]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def labels_by_location(
    labels: Labels | None,
    found: Sequence[FoundSlide],
    refused: Sequence[Refused],
    others: Sequence[str],
) -> dict[str, LabelRow]:
    """Which row means which of the files found, usable or not, and of slides known before."""
    if labels is None:
        return {}
    files = [file for slide in found for file in (slide.location, *slide.companions)]
    files = list(dict.fromkeys([*files, *(entry.uri for entry in refused), *others]))
    folders: dict[str, set[str]] = defaultdict(set)
    for file in files:
        folders[slide_id_of(file)].add(os.path.dirname(file))  # noqa: PTH120 - of URLs too
    rows = {f: labels.of(f, is_only=len(folders[slide_id_of(f)]) == 1) for f in files}
    return {file: row for file, row in rows.items() if row is not None}


def uri_of(location: str, folder: Path) -> str:
    """A location relative to the catalogue's folder when below it, else absolute; URLs as is."""
    if is_remote(location):
        return location
    file = Path(location)
    return (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()


def located(uri: str, folder: Path) -> str:
    """The absolute path or URL that a uri of a catalogue in this folder means."""
    return uri if is_remote(uri) else str(folder / PurePosixPath(uri))
