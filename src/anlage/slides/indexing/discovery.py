"""Find the slides that paths, URLs, folders and globs mean; a slide of many files counts once."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from anlage.slides.formats.dicom_series import group_by_series
from anlage.slides.formats.reader_table import plug_in_suffixes
from anlage.slides.indexing.found_slide import FoundSlide, Refused
from anlage.slides.storage.location import REMOTE_SCHEMES, is_remote

DEEP_ZOOM = ".dzi"
SLIDE_SUFFIXES = {
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".dcm", ".vms", ".vmu", ".czi"),
    *(".svslide", ".btf", ".qptiff", DEEP_ZOOM),
}
NOT_UTF8 = "its name or a folder's is not UTF-8, which a catalogue cannot store. Rename it."
GLOB_CHARACTERS = frozenset("*?[")
COMPANION_SUFFIXES = {".mrxs": "", DEEP_ZOOM: "_files"}  # the folder beside, named by the stem


def find_slides(paths: Sequence[str | Path]) -> tuple[list[FoundSlide], list[Refused]]:
    """The slides that ``paths`` mean, each once, in the order of ``paths``, then by name.

    A folder means every file of a slide format below it (links are followed), except hidden ones
    and those in the data folder of an MRXS or Deep Zoom slide; a URL without a file's ending means
    every such object whose name begins with it. PNG and JPEG are slides only when named or matched
    by a glob.

    Args:
        paths: Files, folders, patterns with ``*``, ``?``, ``[...]`` (``**`` for any depth), URLs.

    Returns:
        Slides, and what can be refused unopened: a path that does not exist, a pattern, folder or
        bucket without a slide, a name that is not UTF-8. The refused carry absolute paths.
    """
    files: dict[str, FoundSlide | None] = {}
    refused: dict[str, Refused] = {}
    for path in paths:
        found, reason = _remote(str(path)) if is_remote(str(path)) else _expand(path)
        if not found:
            named = path if "://" in str(path) else _absolute(path) if str(path) else "(empty)"
            refused[str(path)] = Refused(_shown(named), reason)
        files.update(found)
    local = [Path(file) for file, remote in files.items() if remote is None]
    # realpath, since Path.resolve raises where a link leads to itself
    once = list({os.path.realpath(file): file for file in reversed(local)}.values())[::-1]
    refused |= {str(f): Refused(_shown(f), NOT_UTF8) for f in once if _shown(f) != str(f)}
    slides = {s.location: s for s in _slides_of(f for f in once if str(f) not in refused)}
    in_order = (remote or slides.get(file) for file, remote in files.items())
    return [slide for slide in in_order if slide is not None], list(refused.values())


def _shown(path: str | Path) -> str:
    """A path as text that can be printed and stored; bytes that are not UTF-8 come escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _absolute(path: str | Path) -> Path:
    """The path from the root on; the same one whichever way ``..`` led to it."""
    absolute = Path(path).absolute()
    return absolute.resolve() if ".." in absolute.parts else absolute


def _remote(url: str) -> tuple[dict[str, FoundSlide | None], str]:
    """The slides that a URL means; if none, the second value says why."""
    from anlage.slides.indexing.remote_discovery import find_remote_slides

    suffixes = SLIDE_SUFFIXES | plug_in_suffixes()
    slides, reason = find_remote_slides(url, suffixes, companions=COMPANION_SUFFIXES)
    return {slide.location: slide for slide in slides}, reason


def _expand(path: str | Path) -> tuple[dict[str, FoundSlide | None], str]:
    """Absolute files that a path means; if none, the second value says why."""
    if not str(path):  # a variable that a script has not set; pathlib would read "here"
        return {}, "an empty name means no slide. Name a folder; '.' is this one."
    absolute = _absolute(path)
    if absolute.is_dir():
        reason = "holds no slide. Name the files if they are PNG or JPEG."
        return dict.fromkeys(map(str, _scan(absolute))), reason
    if absolute.exists() or not GLOB_CHARACTERS & set(str(path)):
        # a named file that is missing is refused here; one that is there, opened or refused later
        there = [str(absolute)] if absolute.exists() else []
        return dict.fromkeys(there), _why_missing(str(path))
    matches = (Path(match) for match in sorted(glob.glob(str(absolute), recursive=True)))  # noqa: PTH207
    files = (f for match in matches for f in (_scan(match) if match.is_dir() else [match]))
    return dict.fromkeys(map(str, files)), "matches no file. Check the pattern."


def _why_missing(path: str) -> str:
    scheme, mark, _ = path.partition("://")
    if mark and scheme.isalnum():
        read = ", ".join(REMOTE_SCHEMES)
        return f"{scheme}:// cannot be read. Copy it here, or name it by {read}."
    return "does not exist. Check the path."


def _scan(folder: Path) -> Iterator[Path]:
    """Files of slide formats below a folder, sorted, each folder visited once."""
    suffixes = SLIDE_SUFFIXES | plug_in_suffixes()
    visited: set[Path] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := Path(root).resolve()) in visited:
            folders.clear()
            continue
        visited.add(real)
        companions = _companions(names)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in companions)
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
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
    """Slides from files: DICOM gathered by series in its folder, others with their data folder."""
    every = list(files)
    together: dict[Path, list[Path]] = defaultdict(list)
    for file in every:
        if _is_dicom(file):
            together[file.parent].append(file)
    series = {group[0]: group for dicom in together.values() for group in group_by_series(dicom)}
    for file in every:
        if file in series:
            yield FoundSlide(str(file), tuple(map(str, series[file])))
        elif not _is_dicom(file):
            yield FoundSlide(str(file), (str(file), *map(str, _data_of(file))))


def _data_of(file: Path) -> list[Path]:
    """The files in the data folder that belongs to a slide, sorted."""
    ending = COMPANION_SUFFIXES.get(file.suffix.lower())
    if ending is None:
        return []
    return sorted(p for p in file.with_name(file.stem + ending).rglob("*") if p.is_file())


def _is_dicom(file: Path) -> bool:
    return file.suffix.lower() == ".dcm"
