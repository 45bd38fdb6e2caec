"""Examine one slide: what its file says, its tissue, its pictures; or why it is refused."""

from __future__ import annotations

import hashlib
import logging
import traceback
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from anlage.errors import AnlageError, SlideError, TissueError
from anlage.slides.indexing.fingerprint import slide_fingerprint
from anlage.slides.indexing.found_slide import FoundSlide
from anlage.slides.mask_packs import Pictures
from anlage.slides.masks import TissueMask, encode_mask, tissue_area_mm2
from anlage.slides.overview import read_overview, shrink, thumbnail_mpp
from anlage.slides.reader import SlideReader, open_slide
from anlage.slides.storage.location import is_remote
from anlage.slides.tissue.finder import TissueFinder
from anlage.slides.tissue.methods import tissue_method
from anlage.slides.tissue.on_slide import SlideTissue, find_slide_tissue
from anlage.slides.tissue.user_masks import SUFFIXES, user_mask

LOGGER = logging.getLogger(__name__)
THUMBNAIL_QUALITY = 85
BY_USER = "user"
State = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class TissueSettings:
    """How tissue is found.

    Attributes:
        mask_mpp: Wanted resolution of the masks, micrometres per pixel.
        method: Name of the method.
        weights: What the method takes them from, or None.
        masks: Folder of masks that users drew, by slide_id, which come first; None without.
    """

    mask_mpp: float = 8.0
    method: str = "otsu"
    weights: Path | None = None
    masks: Path | None = None

    def drawn_files(self, slide_id: str) -> list[Path]:
        """The files that may hold a user's mask of a slide, and are there."""
        if self.masks is None:
            return []
        files = (self.masks / f"{slide_id}{ending}" for ending in SUFFIXES)
        return [file for file in files if file.exists()]

    def name(self) -> str:
        """The method's name, with a hash of its weights if it has any.

        Raises:
            TissueError: If there is no such method, its weights are missing or not wanted, or the
                folder of masks is missing.
        """
        if self.masks is not None and not self.masks.is_dir():
            raise TissueError(
                self.masks, "is no folder. Give the one with SLIDE_ID.geojson or .png."
            )
        finder = _finder(self.method, self.weights)
        if self.weights is None:
            return finder.name
        return f"{finder.name}@{_hash_of(_state_of(self.weights))}"


@dataclass(frozen=True, slots=True)
class Task:
    """A slide to examine.

    Attributes:
        slide: Its files.
        slide_id: Its name.
        mpp: Resolution in place of what its file says, micrometres per pixel; None to take that.
    """

    slide: FoundSlide
    slide_id: str
    mpp: float | None


@dataclass(frozen=True, slots=True)
class Examined:
    """What a slide's file says.

    Attributes:
        row: Its measured columns of the catalogue.
        pictures: Its mask and its thumbnail.
        warning: What a person should look at; None if there is nothing.
    """

    row: dict[str, Any]
    pictures: Pictures
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a slide is refused.

    Attributes:
        reason: For the list of refused slides.
        traceback: Of an error that nobody foresaw, for the log; else empty.
    """

    reason: str
    traceback: str = ""


def examine(task: Task, settings: TissueSettings) -> Examined | Unusable:
    """What a slide's file says, or why it is refused; never an exception."""
    try:
        return _examine(task, settings)
    except SlideError as error:
        return Unusable(error.message)
    except AnlageError as error:
        return Unusable(str(error))
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}. Check the file and its permissions."
        return Unusable(reason)
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises costs one slide
        reason = f"cannot be read: {type(error).__name__}: {error}. The log has the traceback."
        return Unusable(reason, traceback.format_exc())


def _examine(task: Task, settings: TissueSettings) -> Examined:
    found = task.slide
    with _open(found, task.mpp) as slide:
        tissue, thumbnail, method, warning = _look(slide, task.slide_id, settings)
        row = _measure(slide) | {
            "version": found.version,
            "n_bytes": Path(found.location).stat().st_size if found.size is None else found.size,
            "tissue_area_mm2": tissue_area_mm2(tissue),
            "tissue_method": method,
            "mask_mpp": tissue.mpp,
        }
    row["fingerprint"] = slide_fingerprint(found.files, version=found.version)
    return Examined(row, _pictures(tissue, thumbnail), warning)


def _look(
    slide: SlideReader, slide_id: str, settings: TissueSettings
) -> tuple[TissueMask, NDArray[np.uint8], str, str | None]:
    """A slide's tissue, its thumbnail, what found the tissue, and what should be looked at."""
    if settings.masks is not None:
        size, mpp = slide.size, slide.mpp
        wanted = max(settings.mask_mpp, mpp)
        drawn = user_mask(settings.masks, slide_id, slide_size=size, slide_mpp=mpp, mask_mpp=wanted)
        if drawn is not None:
            return drawn, read_overview(slide, mpp=thumbnail_mpp(slide))[0], BY_USER, None
    finder = _finder(settings.method, settings.weights)
    seen = find_slide_tissue(slide, finder, mask_mpp=settings.mask_mpp)
    if not seen.tissue.mask.any():
        raise SlideError(
            slide.path,
            f"no tissue found at {seen.tissue.mpp:g} mpp by {settings.method!r}. Leave it out, "
            f"draw its mask (--masks), or check its mpp ({slide.mpp:g}).",
        )
    return seen.tissue, _thumbnail(slide, seen), settings.name(), seen.warning


def _open(found: FoundSlide, mpp: float | None) -> SlideReader:
    if is_remote(found.location):
        return open_slide(found.location, mpp=mpp, version=found.version, size=found.size)
    return open_slide(found.location, mpp=mpp)


def _thumbnail(slide: SlideReader, seen: SlideTissue) -> NDArray[np.uint8]:
    mpp = thumbnail_mpp(slide)
    if mpp >= seen.overview_mpp:
        return shrink(seen.overview, mpp=seen.overview_mpp, target_mpp=mpp)
    return read_overview(slide, mpp=mpp)[0]


def _pictures(tissue: TissueMask, thumbnail: NDArray[np.uint8]) -> Pictures:
    """Compress a mask without loss and an RGB thumbnail as JPEG."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY]
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(thumbnail, cv2.COLOR_RGB2BGR), quality)
    return Pictures(encode_mask(tissue.mask), jpeg.tobytes())


def _measure(slide: SlideReader) -> dict[str, Any]:
    assert slide.resolution is not None  # its mpp was read
    tiles = [slide.native_tile(level) for level in range(len(slide.levels))]
    return {
        "width": slide.size.width,
        "height": slide.size.height,
        "n_levels": len(slide.levels),
        "level_downsamples": [level.downsample for level in slide.levels],
        "level_tile_width": [0 if tile is None else tile.width for tile in tiles],
        "level_tile_height": [0 if tile is None else tile.height for tile in tiles],
        "mpp": slide.mpp,
        "mpp_source": slide.resolution.source,
        "vendor": slide.vendor,
        "reader": slide.reader,
    }


def _finder(method: str, weights: Path | None) -> TissueFinder:
    """The method, loaded once a process, and again when its weights have changed."""
    return _loaded(method, weights, _state_of(weights))


@lru_cache(maxsize=1)
def _loaded(method: str, weights: Path | None, state: State) -> TissueFinder:
    del state
    return tissue_method(method, weights=weights)


@lru_cache(maxsize=1)
def _hash_of(state: State) -> str:
    """Short hash of the weights' files."""
    digest = hashlib.sha256()
    for file, _, _ in state:
        with Path(file).open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:12]


def _state_of(weights: Path | None) -> State:
    """Path, size and time of change of every file of the weights."""
    if weights is None:
        return ()
    files = sorted(p for p in weights.rglob("*") if p.is_file()) if weights.is_dir() else [weights]
    return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists())
