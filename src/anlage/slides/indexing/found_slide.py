"""A slide that was found but not opened yet, a file that was refused, and the list of these."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anlage.errors import CatalogueError
from anlage.files import write_text_whole
from anlage.slides.storage.location import file_name


@dataclass(frozen=True, slots=True)
class FoundSlide:
    """A slide's files, not opened yet.

    Attributes:
        location: What to open it by: an absolute path or a URL.
        files: All its files that were found, ``location`` first.
        size: Of a remote slide, bytes; None of a local one.
        version: Of a remote slide, its ETag; None of a local one.
    """

    location: str
    files: tuple[str, ...]
    size: int | None = None
    version: str | None = None

    @property
    def companions(self) -> list[str]:
        """Its further files in its own folder (of a DICOM series, not MRXS data)."""
        folder = Path(self.location).parent
        return [file for file in self.files[1:] if Path(file).parent == folder]


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that is not in the catalogue.

    Attributes:
        uri: The file: relative to the catalogue's folder when below it, else absolute; or a URL.
        reason: Why, and what to do about it.
    """

    uri: str
    reason: str


def slide_id_of(location: str) -> str:
    """The file's name without its suffix; ``.ome.tif`` counts as one suffix."""
    name = PurePosixPath(file_name(location))
    return name.stem.removesuffix(".ome") if name.suffix in {".tif", ".tiff"} else name.stem


def read_refused(catalogue: str | Path) -> list[Refused]:
    """The refused slides listed beside a catalogue; none if there is no list.

    Raises:
        CatalogueError: If the list is damaged.
    """
    path = _refused_path(Path(catalogue))
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [Refused(row["uri"], row["reason"]) for row in csv.DictReader(file)]
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        message = f"is not the list that `anlage index` writes: {error!r}. Index again."
        raise CatalogueError(path, message) from error


def write_refused(catalogue: Path, refused: Sequence[Refused]) -> None:
    """Write the list of refused slides beside a catalogue, ``slides.refused.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["uri", "reason"])
    writer.writerows([r.uri, r.reason] for r in refused)
    write_text_whole(_refused_path(catalogue), text.getvalue())


def _refused_path(catalogue: Path) -> Path:
    return catalogue.with_name(f"{catalogue.stem}.refused.csv")
