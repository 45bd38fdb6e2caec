"""Folders that TRIDENT and CLAM leave behind: where in them features and coordinates are.

TRIDENT   ``JOB/20x_256px_0px_overlap/{patches,features_NAME}/*.h5``, ``JOB/contours_geojson``
CLAM      ``FEATURES/{h5_files,pt_files}``, ``PATCHES/patches/*.h5``
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from anlage.bags.convert import SourceFile, read_foreign, source_files
from anlage.bags.foreign import FoundTiles
from anlage.errors import BagError

FEATURES, SLIDE_FEATURES, CONTOURS = "features_", "slide_features_", "contours_geojson"


@dataclass(frozen=True, slots=True)
class PeerFolder:
    """The features that another tool made of many slides.

    Attributes:
        tool: Whose they are.
        files: One a slide.
        encoder_name: By the folder's name, where that says it.
        coords: Folder of coordinates that the user named; else they are where the tool puts them.
        contours: Folder of ``<slide_id>.geojson`` with the tissue found; None if there is none.
    """

    tool: Literal["TRIDENT", "CLAM"]
    files: list[SourceFile]
    encoder_name: str | None = None
    coords: Path | None = None
    contours: Path | None = None

    def read(self, file: SourceFile) -> FoundTiles:
        """What a file says, and the folder of the encoder's name.

        Raises:
            BagError: If it is damaged.
        """
        found = read_foreign(file, coords=self.coords)
        return replace(found, encoder_name=found.encoder_name or self.encoder_name)


def open_peer_folder(folder: str | Path, *, coords: Path | None = None) -> PeerFolder:
    """Find the features in a folder of TRIDENT (a job, one grid of it, one encoder) or CLAM.

    Args:
        folder: Where to look.
        coords: Folder with the files of coordinates, where they are elsewhere.

    Raises:
        BagError: If there are none, or features of several encoders or grids.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BagError(folder, "no such folder. Name the output folder of TRIDENT or CLAM.")
    if any((folder / name).is_dir() for name in ("h5_files", "pt_files")):
        return PeerFolder("CLAM", source_files(folder), coords=coords)
    found = [folder] if _is_features(folder) else []
    found = found or sorted(p for p in folder.glob("features_*") if _is_features(p))
    found = found or sorted(p for p in folder.glob("*/features_*") if _is_features(p))
    if not found:
        msg = "holds neither features_* (TRIDENT) nor h5_files or pt_files (CLAM). Name the folder "
        raise BagError(folder, f"{msg}that one of them wrote.")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise BagError(folder, f"holds features of several encoders or grids: {names}. Name one.")
    contours = found[0].parent.parent / CONTOURS
    return PeerFolder(
        "TRIDENT",
        source_files(found[0]),
        encoder_name=found[0].name.removeprefix(FEATURES),
        coords=coords,
        contours=contours if contours.is_dir() else None,
    )


def _is_features(path: Path) -> bool:
    return path.is_dir() and path.name.startswith(FEATURES)
