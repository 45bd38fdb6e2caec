"""Find the slides that paths, folders and globs mean; a slide of many files counts once."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anlage.slides.dicom_series import group_by_series

SLIDE_SUFFIXES = {
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".dcm", ".vms", ".vmu", ".czi"),
    *(".svslide", ".btf", ".qptiff"),
}
DEEP_ZOOM = ".dzi"
NO_DEEP_ZOOM = "no reader for Deep Zoom yet. Give the slide it was made from."
NOT_UTF8 = "its name or a folder's is not UTF-8, which a catalogue cannot store. Rename it."
GLOB_CHARACTERS = frozenset("*?[")
COMPANION_SUFFIXES = {".mrxs": "", ".dzi": "_files"}  # the folder beside, named by the stem


@dataclass(frozen=True, slots=True)
class FoundSlide:
    """A slide's files, not opened yet.

    Attributes:
        path: The file to open it by.
        files: All its files that were found, ``path`` first.
    """

    path: Path
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that is not in the catalogue.

    Attributes:
        uri: The file: relative to the catalogue's folder when below it, else absolute.
        reason: Why, and what to do about it.
    """

    uri: str
    reason: str


def slide_id_of(path: Path) -> str:
    """The file's name without its suffix; ``.ome.tif`` counts as one suffix."""
    return path.stem.removesuffix(".ome") if path.suffix in {".tif", ".tiff"} else path.stem


def find_slides(paths: Sequence[str | Path]) -> tuple[list[FoundSlide], list[Refused]]:
    """The slides that ``paths`` mean, each once, in the order of ``paths``, then by name.

    A folder means every file of a slide format below it (links are followed), except hidden ones
    and those in the data folder of an MRXS or Deep Zoom slide. PNG and JPEG are slides only when
    named or matched by a glob.

    Args:
        paths: Files, folders, or patterns with ``*``, ``?``, ``[...]`` (``**`` for any depth).

    Returns:
        Slides, and what can be refused unopened: a path that does not exist, a pattern or folder
        without a slide, a Deep Zoom file, a name that is not UTF-8. The refused carry absolute
        paths.
    """
    files: dict[Path, None] = {}
    refused: dict[str, Refused] = {}
    for path in paths:
        found, reason = _expand(path)
        if not found:
            refused[str(path)] = Refused(_shown(os.path.abspath(path)), reason)  # noqa: PTH100 - globs too
        files.update(dict.fromkeys(found))
    # realpath, since Path.resolve raises where a link leads to itself
    once = list({os.path.realpath(file): file for file in reversed(files)}.values())[::-1]
    for file in once:
        if _shown(file) != str(file):
            refused[str(file)] = Refused(_shown(file), NOT_UTF8)
        elif file.suffix.lower() == DEEP_ZOOM:
            refused[str(file)] = Refused(str(file), NO_DEEP_ZOOM)
    return list(_slides_of(f for f in once if str(f) not in refused)), list(refused.values())


def _shown(path: str | Path) -> str:
    """A path as text that can be printed and stored; bytes that are not UTF-8 come escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _expand(path: str | Path) -> tuple[list[Path], str]:
    """Absolute files that a path means; if none, the second value says why."""
    absolute = Path(path).absolute()
    if absolute.is_dir():
        return list(_scan(absolute)), "holds no slide. Name the files if they are PNG or JPEG."
    if absolute.exists() or not GLOB_CHARACTERS & set(str(path)):
        # a named file that is missing is refused here; one that is there, opened or refused later
        return ([absolute] if absolute.exists() else []), "does not exist. Check the path."
    matches = (Path(match) for match in sorted(glob.glob(str(absolute), recursive=True)))  # noqa: PTH207
    files = [f for match in matches for f in (_scan(match) if match.is_dir() else [match])]
    return files, "matches no file. Check the pattern."


def _scan(folder: Path) -> Iterator[Path]:
    """Files of slide formats below a folder, sorted, each folder visited once."""
    visited: set[Path] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := Path(root).resolve()) in visited:
            folders.clear()
            continue
        visited.add(real)
        companions = _companions(names)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in companions)
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if not name.startswith(".") and suffix in SLIDE_SUFFIXES | {DEEP_ZOOM}:
                yield Path(root) / name


def _companions(names: Iterable[str]) -> set[str]:
    """Folders that belong to a file beside them."""
    found = set()
    for name in map(Path, names):
        ending = COMPANION_SUFFIXES.get(name.suffix.lower())
        if ending is not None:
            found.add(name.stem + ending)
    return found


def _slides_of(files: Iterable[Path]) -> Iterator[FoundSlide]:
    """Slides from files: DICOM gathered by series in its folder, MRXS with its data folder."""
    every = list(files)
    together: dict[Path, list[Path]] = defaultdict(list)
    for file in every:
        if _is_dicom(file):
            together[file.parent].append(file)
    series = {group[0]: group for dicom in together.values() for group in group_by_series(dicom)}
    for file in every:
        if file in series:
            yield FoundSlide(file, series[file])
        elif not _is_dicom(file):
            data = file.parent / file.stem
            parts = sorted(p for p in data.rglob("*") if p.is_file()) if _is_mrxs(file) else []
            yield FoundSlide(file, (file, *parts))


def _is_dicom(file: Path) -> bool:
    return file.suffix.lower() == ".dcm"


def _is_mrxs(file: Path) -> bool:
    return file.suffix.lower() == ".mrxs"
