"""Bytes turned or zeroed where a file says what it holds: pixels or a ``SlideError``, no other end.

Whether the pixels are the right ones cannot be asked here: a turned byte may well make another
valid file. That damage within a tile is found is asked where tiles are damaged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from dicom_slides import DicomWriter
from faults.reading_child import outcomes
from synthetic_slides import pyramid, tissue_like, write_tiff
from tiff_dialects import write_cog, write_philips, write_svs

N_DAMAGES = 60
BESIDE: dict[str, Any] = {"label": tissue_like(30, 20), "macro": tissue_like(40, 20)}


def svs(folder: Path) -> Path:
    levels = pyramid(240, 180)
    thumbnail = tissue_like(24, 18)
    return write_svs(folder / "a.svs", levels, thumbnail=thumbnail, compression="jpeg", **BESIDE)


def philips(folder: Path) -> Path:
    levels = [tissue_like(256, 192), tissue_like(128, 96), tissue_like(64, 48)]
    return write_philips(folder / "a.tiff", levels, compression="jpeg", **BESIDE)


def ome(folder: Path) -> Path:
    levels = pyramid(240, 180, n_levels=2)
    path = folder / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as writer:
        how: dict[str, Any] = {"photometric": "rgb", "tile": (64, 112), "compression": "deflate"}
        writer.write(levels[0], subifds=1, metadata={"axes": "YXS"}, **how)
        writer.write(levels[1], subfiletype=1, **how)
    return path


def cog(folder: Path) -> Path:
    return write_cog(folder / "a.tif", pyramid(240, 180), compression="lzw")


def generic(folder: Path) -> Path:
    return write_tiff(folder / "a.tiff", pyramid(240, 180), compression="webp")


def dicom(folder: Path) -> Path:
    return DicomWriter(folder).write("a.dcm", tissue_like(240, 180))


def heads(path: Path) -> np.ndarray:
    """Where a TIFF's numbers are: its header and all its page indexes, not its pixels."""
    pages = [np.arange(4, 16)]
    with tifffile.TiffFile(path) as tiff:
        for page in tiff.pages:
            every = [page, *(page.pages or [])]
            pages += [np.arange(p.offset, p.offset + 12 * len(p.tags) + 8) for p in every]
    return np.concatenate(pages)


def damaged(path: Path, *, places: np.ndarray, seed: int) -> list[Path]:
    """Copies of a file, each with a few bytes turned, zeroed or raised at one of the places."""
    draw, data, copies = np.random.default_rng(seed), path.read_bytes(), []
    for number in range(N_DAMAGES):
        at, n_bytes = int(draw.choice(places)), int(draw.integers(1, 5))
        piece = [draw.bytes(n_bytes), bytes(n_bytes), b"\xff" * n_bytes][number % 3]
        changed = data[:at] + piece + data[at + n_bytes :]
        folder = path.parent / str(number)
        folder.mkdir()
        copies.append(folder / path.name)
        copies[-1].write_bytes(changed[: len(data)])
    return copies


@pytest.mark.parametrize("make", [svs, philips, ome, cog, generic])
def test_a_damaged_index_of_a_tiff(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    whole, *found = outcomes([path, *damaged(path, places=heads(path), seed=11)])
    assert whole.error == ""
    assert {outcome.error for outcome in found} <= {"", "SlideError"}, found
    assert sum(bool(outcome.error) for outcome in found) > N_DAMAGES // 10


@pytest.mark.slow
def test_a_damaged_head_of_a_dicom(tmp_path: Path) -> None:
    path = dicom(tmp_path)
    places = np.arange(128, path.read_bytes().find(b"\xe0\x7f\x10\x00"))
    whole, *found = outcomes([path, *damaged(path, places=places, seed=12)[::2]])
    assert (whole.error, whole.reader) == ("", "dicom")
    assert {outcome.error for outcome in found} <= {"", "SlideError"}, found
    assert sum(bool(outcome.error) for outcome in found) > N_DAMAGES // 20


def test_a_damaged_description_of_a_deep_zoom(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "slides" / "dzi"
    path = tmp_path / "a.dzi"
    path.write_bytes((source / "glycogenstorage_PAS.dzi").read_bytes())
    copies = damaged(path, places=np.arange(path.stat().st_size), seed=13)
    shutil.copytree(source / "glycogenstorage_PAS_files", tmp_path / "a_files")
    for copy in copies:
        (copy.parent / "a_files").symlink_to(tmp_path / "a_files")
    whole, *found = outcomes([path, *copies])
    assert (whole.error, whole.reader) == ("", "deep-zoom")
    assert {outcome.error for outcome in found} <= {"", "SlideError"}, found
    assert sum(bool(outcome.error) for outcome in found) > N_DAMAGES // 4
