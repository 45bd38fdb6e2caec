"""Bags to and from the files of other tools, a folder at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

from anlage.bags.anndata_file import read_anndata, write_anndata
from anlage.bags.bag import Bag, as_stored
from anlage.bags.clam_tensors import read_tensor, write_tensor
from anlage.bags.foreign import FoundTiles, Given, bag_of
from anlage.bags.parquet_file import is_other_table, read_parquet, write_parquet
from anlage.bags.peer_hdf5 import (
    is_stamp,
    opened_hdf5,
    read_features_hdf5,
    read_stamp,
    write_clam_hdf5,
    write_stamp,
)
from anlage.bags.spatialdata_store import read_spatialdata, write_spatialdata
from anlage.bags.store import FORMAT, bag_place, list_bags, read_bag, write_bag
from anlage.errors import BagError
from anlage.progress import meter
from anlage.slides.storage.location import is_remote

Target = Literal["hdf5", "zarr", "clam", "stamp", "anndata", "spatialdata", "parquet"]
TARGETS: tuple[Target, ...] = get_args(Target)
SUFFIXES = (".h5", ".pt", ".zarr", ".h5ad", ".parquet")
TRIDENT_PLACES = "_patches"  # TRIDENT's file of coordinates: ID_patches.h5


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What became of the files of a folder.

    Attributes:
        output: Folder that was written to.
        done: slide_ids that were converted.
        refused: Files that were not, with the reason.
    """

    output: str
    done: list[str] = field(default_factory=list)
    refused: list[BagError] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One slide's file of another tool, or of ours.

    Attributes:
        place: The file or Zarr folder, or the URL of a bag of ours.
        slide_id: By its name.
    """

    place: str
    slide_id: str

    @property
    def path(self) -> Path:
        """The place, where it is not a URL."""
        return Path(self.place)


def convert_bags(
    source: str | Path,
    output: str | Path,
    *,
    to: Target,
    given: Given,
    coords: Path | None = None,
    table: str | None = None,
) -> ConvertResult:
    """Convert a bag, or all of a folder.

    What a source lacks is taken from ``given`` and ``coords``, or the slide is refused; nothing is
    made up. A target that is there is replaced.

    Args:
        source: A file, or a folder with one a slide (CLAM's with ``pt_files`` or ``h5_files``), or
            the URL of a folder of bags.
        output: Folder, or for Zarr a URL, to write to.
        to: What to write.
        given: What the user adds.
        coords: Folder with CLAM's or TRIDENT's HDF5 files of coordinates.
        table: Which table of SpatialData.

    Raises:
        BagError: If there is nothing to convert, or a URL cannot take the target.
        OSError: If the disk is full or refuses.
        ValueError: If the target is not known.
    """
    if to not in TARGETS:
        msg = f"convert_bags: needs a target of {', '.join(TARGETS)}; got {to!r}."
        raise ValueError(msg)
    if is_remote(str(output)) and to != "zarr":
        raise BagError(output, f"takes Zarr bags only; {to} was asked for. Name a folder.")
    files = source_files(source)
    result = ConvertResult(str(output))
    with meter("convert", total=len(files), unit="bags") as progress:
        for file in files:
            try:
                found = read_any(file, given, coords=coords, table=table)
                _write(output, as_stored(file.place, found), to)
                result.done.append(file.slide_id)
            except BagError as error:
                result.refused.append(error)
            progress.advance()
    return result


def source_files(source: str | Path) -> list[SourceFile]:
    """The files to convert, sorted by name: of a folder, or the one that ``source`` is.

    Raises:
        BagError: If there are none, or two of one slide.
    """
    if is_remote(str(source)):
        return [SourceFile(place, slide_id) for slide_id, place in list_bags(source).items()]
    source = Path(source)
    if source.is_file() or source.suffix == ".zarr":
        return [SourceFile(str(source), source.stem)]
    if not source.is_dir():
        raise BagError(source, "no such file or folder. Check the path.")
    for name in ("h5_files", "pt_files"):  # CLAM's; the first has coordinates
        if (source / name).is_dir() and any((source / name).iterdir()):
            return source_files(source / name)
    found = sorted(filter(_may_be_bag, source.iterdir()), key=lambda path: (path.stem, path.name))
    if not found:
        msg = f"holds no file that ends in {', '.join(SUFFIXES)}. Name the folder with the bags."
        raise BagError(source, msg)
    for path, other in pairwise(found):
        if path.stem == other.stem:
            msg = f"holds two files of slide {path.stem!r}: {path.name} and {other.name}. "
            raise BagError(source, f"{msg}Move one of them away.")
    return [SourceFile(str(path), path.stem) for path in found]


def _may_be_bag(path: Path) -> bool:
    if path.suffix not in SUFFIXES or path.name.startswith("."):
        return False
    return path.suffix != ".parquet" or not is_other_table(path)  # the catalogue beside bags


def read_any(
    file: SourceFile, given: Given, *, coords: Path | None = None, table: str | None = None
) -> Bag:
    """The bag that a file of ours or of another tool holds; see ``convert_bags``.

    Raises:
        BagError: If it is damaged, of no known kind, or lacks what nobody gave.
    """
    if is_remote(file.place) or _is_ours(file.path):
        return read_bag(file.place)
    return bag_of(file.path, read_foreign(file, coords=coords, table=table), given)


def _is_ours(path: Path) -> bool:
    if path.suffix == ".h5":
        with opened_hdf5(path) as file:
            return bool(file.attrs.get("format") == FORMAT)
    if path.suffix != ".zarr":
        return False
    try:
        marker = json.loads((path / "zarr.json").read_bytes())
        return bool(marker["attributes"].get("format") == FORMAT)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # read_spatialdata says what is wrong with it


def read_foreign(
    file: SourceFile, *, coords: Path | None = None, table: str | None = None
) -> FoundTiles:
    """What a file of another tool says; see ``convert_bags``.

    Raises:
        BagError: If it is damaged or of no known kind.
    """
    path, slide_id = file.path, file.slide_id
    match path.suffix:
        case ".pt":
            return read_tensor(path, slide_id, places=find_places(path, slide_id, coords))
        case ".h5" if is_stamp(path):
            return read_stamp(path, slide_id)
        case ".h5":
            places = find_places(path, slide_id, coords)
            return read_features_hdf5(path, slide_id, places=places)
        case ".h5ad":
            return read_anndata(path, slide_id)
        case ".parquet":
            return read_parquet(path, slide_id)
        case ".zarr":
            return read_spatialdata(path, slide_id, table=table)
    raise BagError(path, f"is of no known kind. Its name has to end in {', '.join(SUFFIXES)}.")


def find_places(path: Path, slide_id: str, coords: Path | None) -> Path | None:
    """The file with the coordinates of a slide's features, where their tool keeps it.

    Args:
        path: The features.
        slide_id: The slide.
        coords: The folder that the user named; else ``patches`` beside that of the features.

    Raises:
        BagError: If the folder that was named has no such file.
    """
    folder = coords or path.parent.parent / "patches"
    for name in (f"{slide_id}.h5", f"{slide_id}{TRIDENT_PLACES}.h5"):
        if (folder / name).is_file():
            return folder / name
    if coords is not None:
        msg = f"has no coordinates of slide {slide_id!r} ({slide_id}.h5, {slide_id}_patches.h5)."
        raise BagError(coords, f"{msg} Name the folder that has them.")
    return None


def _write(output: str | Path, bag: Bag, to: Target) -> None:
    if to in {"hdf5", "zarr"}:
        store: Literal["hdf5", "zarr"] = "zarr" if to == "zarr" else "hdf5"
        write_bag(bag_place(output, bag.slide_id, store=store), bag)
        return
    for path, write in _writers(Path(output), bag.slide_id, to):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, bag)


def _writers(
    output: Path, slide_id: str, to: Target
) -> Iterator[tuple[Path, Callable[[Path, Bag], None]]]:
    if to == "clam":
        yield output / "h5_files" / f"{slide_id}.h5", write_clam_hdf5
        yield output / "pt_files" / f"{slide_id}.pt", write_tensor
        return
    suffix, write = {
        "stamp": (".h5", write_stamp),
        "anndata": (".h5ad", write_anndata),
        "spatialdata": (".zarr", write_spatialdata),
        "parquet": (".parquet", write_parquet),
    }[to]
    yield output / f"{slide_id}{suffix}", partial(write)
