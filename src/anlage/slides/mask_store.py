"""Tissue masks and thumbnails of many slides, fetched one at a time from where their row says."""

from __future__ import annotations

import os
import tarfile
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from anlage.errors import CatalogueError
from anlage.slides.mask_packs import MASK, THUMBNAIL, member_name, read_member
from anlage.slides.masks import TissueMask, decode_mask

N_CACHED_MASKS = 16
N_OPEN_PACKS = 8
REMEDY = "Index the slides again with `anlage index`."


def masks_path(catalogue: Path) -> Path:
    """The folder of a catalogue's masks: ``slides.masks`` beside ``slides.parquet``."""
    return catalogue.with_name(f"{catalogue.stem}.masks")


class MaskStore:
    """Reads pictures of slides; safe to share between threads.

    Attributes:
        path: The folder of packs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()
        weakref.finalize(self, _close_all, self._files)
        self._masks: OrderedDict[tuple[str, int], TissueMask] = OrderedDict()
        _STORES.add(self)

    def forget(self) -> None:
        """In a forked child: the lock may be held, and a file's position is the parent's too."""
        self.__init__(self.path)  # type: ignore[misc]

    def mask(
        self, slide_id: str, *, fingerprint: str, mask_pack: str, mask_offset: int, mask_mpp: float
    ) -> TissueMask:
        """A slide's mask, from the cache of the last 16 or from its pack.

        Args:
            slide_id: The slide, for the message of an error.
            fingerprint: Of its file, as the catalogue has it; the mask must be of the same.
            mask_pack: The pack that holds it.
            mask_offset: Where in the pack the slide begins, bytes.
            mask_mpp: Resolution of the mask, micrometres per pixel.

        Raises:
            CatalogueError: If the pack is missing, damaged, or does not belong to the catalogue.
        """
        place = (mask_pack, mask_offset)
        with self._lock:
            found = self._masks.get(place)
        if found is None:
            png = self._content(slide_id, fingerprint, place, [MASK])[MASK]
            found = TissueMask(self._decoded(png, place), mask_mpp)
            found.mask.setflags(write=False)
        with self._lock:
            self._masks[place] = found
            self._masks.move_to_end(place)
            while len(self._masks) > N_CACHED_MASKS:
                self._masks.popitem(last=False)
        return found

    def thumbnail(
        self, slide_id: str, *, fingerprint: str, mask_pack: str, mask_offset: int
    ) -> NDArray[np.uint8]:
        """A slide's thumbnail, (height, width, 3) uint8 RGB; as ``mask``."""
        place = (mask_pack, mask_offset)
        jpeg = self._content(slide_id, fingerprint, place, [MASK, THUMBNAIL])[THUMBNAIL]
        buffer = np.frombuffer(jpeg, dtype=np.uint8)
        picture = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if buffer.size else None
        if picture is None:
            message = f"holds no thumbnail of {slide_id!r}. {REMEDY}"
            raise CatalogueError(self.path / mask_pack, message)
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def _decoded(self, png: bytes, place: tuple[str, int]) -> NDArray[np.bool_]:
        try:
            return decode_mask(png)
        except ValueError as error:
            message = f"is damaged: {error} {REMEDY}"
            raise CatalogueError(self.path / place[0], message) from error

    def _content(
        self, slide_id: str, fingerprint: str, place: tuple[str, int], endings: list[str]
    ) -> dict[str, bytes]:
        """The bytes of a slide's first members."""
        pack, offset = place
        members = {}
        try:
            with self._lock:
                file = self._opened(pack)
                for ending in endings:
                    name, members[ending], offset = read_member(file, offset)
                    if name != member_name(fingerprint, ending):
                        message = f"holds the mask of another slide than {slide_id!r}. {REMEDY}"
                        raise CatalogueError(self.path / pack, message)
        except FileNotFoundError as error:
            message = f"does not exist; it belongs beside the catalogue. {REMEDY}"
            raise CatalogueError(self.path / pack, message) from error
        except (EOFError, OSError, tarfile.HeaderError) as error:
            reason = str(error) or "it ends too early"
            raise CatalogueError(self.path / pack, f"is damaged: {reason}. {REMEDY}") from error
        return members

    def _opened(self, pack: str) -> BinaryIO:
        """The pack's file, one of the eight used last; called with the lock held."""
        file = self._files.pop(pack, None) or (self.path / pack).open("rb")
        self._files[pack] = file
        while len(self._files) > N_OPEN_PACKS:
            self._files.popitem(last=False)[1].close()
        return file


_STORES: weakref.WeakSet[MaskStore] = weakref.WeakSet()


def _forget_all() -> None:
    for store in list(_STORES):
        store.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _close_all(files: dict[str, BinaryIO]) -> None:
    for file in files.values():
        file.close()
