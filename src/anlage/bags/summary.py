"""What a folder of bags holds, by their headers: slides, tiles, encoders, bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anlage.bags.store import list_bags, read_bag_header
from anlage.errors import BagError, SlideError
from anlage.slides.storage.location import is_remote
from anlage.slides.storage.remote_request import list_objects


@dataclass(frozen=True, slots=True)
class BagSummary:
    """One bag of a folder.

    Attributes:
        slide_id: The slide.
        place: Where the bag is.
        n_bytes: On disk, or in the bucket.
        n_tiles: Tiles L.
        width: Embedding width D.
        encoder: Its name, and the first digits of its fingerprint.
        mpp: Resolution of the tiles, micrometres per pixel.
        tile_px: Their edge, pixels.
        created_by: The program that wrote it.
    """

    slide_id: str
    place: str
    n_bytes: int
    n_tiles: int
    width: int
    encoder: str
    mpp: float
    tile_px: int
    created_by: str


@dataclass(frozen=True, slots=True)
class FolderSummary:
    """The bags of a folder.

    Attributes:
        folder: Their folder or URL.
        bags: Those that can be read, by slide_id.
        refused: The others, with the reason.
    """

    folder: str
    bags: list[BagSummary] = field(default_factory=list)
    refused: list[BagError] = field(default_factory=list)

    @property
    def n_tiles(self) -> int:
        """Tiles of all bags."""
        return sum(bag.n_tiles for bag in self.bags)

    @property
    def n_bytes(self) -> int:
        """Bytes of all bags."""
        return sum(bag.n_bytes for bag in self.bags)

    @property
    def encoders(self) -> list[str]:
        """What made them, without repetition."""
        return sorted({bag.encoder for bag in self.bags})

    def as_json(self) -> dict[str, Any]:
        """All of it, for ``--json``."""
        return {
            "folder": self.folder,
            "n_slides": len(self.bags),
            "n_tiles": self.n_tiles,
            "n_bytes": self.n_bytes,
            "encoders": self.encoders,
            "bags": [asdict(bag) for bag in self.bags],
            "refused": [{"place": e.path, "reason": e.message} for e in self.refused],
        }


def summarise_bags(folder: str | Path) -> FolderSummary:
    """Summarise the bags of a folder or URL by their headers; their content is not checked.

    Raises:
        BagError: If there is no such folder, or it cannot be listed.
    """
    summary = FolderSummary(str(folder))
    for slide_id, place in list_bags(folder).items():
        try:
            header = read_bag_header(place)
            n_bytes = _n_bytes(place)
        except BagError as error:
            summary.refused.append(error)
            continue
        made = header.attributes
        summary.bags.append(
            BagSummary(
                slide_id=slide_id,
                place=place,
                n_bytes=n_bytes,
                n_tiles=len(header.coords),
                width=header.width,
                encoder=encoder_of(made.encoder_name, made.encoder_fingerprint),
                mpp=made.mpp,
                tile_px=made.tile_px,
                created_by=made.created_by,
            )
        )
    return summary


def encoder_of(name: str, fingerprint: str) -> str:
    """An encoder in a word: its name and the first digits of its fingerprint, where there are."""
    if fingerprint.startswith("named:"):
        return fingerprint
    return f"{name} {fingerprint[:12]}".strip()


def _n_bytes(place: str) -> int:
    if is_remote(place):
        try:
            return sum(meta["size"] for meta in list_objects(f"{place}/"))
        except SlideError as error:
            raise BagError(place, error.message) from error
    path = Path(place)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
