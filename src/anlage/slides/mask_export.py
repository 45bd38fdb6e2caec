"""Masks of a catalogue as files of their own: GeoJSON for QuPath, or PNG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from anlage.errors import CatalogueError
from anlage.files import replace_whole
from anlage.progress import meter
from anlage.slides.catalogue import Catalogue
from anlage.slides.masks import encode_mask
from anlage.slides.tissue.geojson import write_geojson

MaskFormat = Literal["geojson", "png"]


@dataclass(frozen=True, slots=True)
class MaskExport:
    """What became of the masks.

    Attributes:
        n_written: Files written.
        n_kept: Files that were there before, and were left alone.
    """

    n_written: int
    n_kept: int


def export_masks(
    catalogue: Catalogue,
    folder: str | Path,
    *,
    mask_format: MaskFormat = "geojson",
    force: bool = False,
) -> MaskExport:
    """Write every mask of a catalogue as ``<slide_id>.geojson`` or ``<slide_id>.png``.

    A file that is there already is left alone: somebody may have corrected it. Files are written
    whole or not at all, so an export that was stopped goes on where it was.

    Args:
        catalogue: An open catalogue.
        folder: Where the files go; made if it is missing.
        mask_format: GeoJSON (level-0 pixels, ``write_geojson``), or 1-bit PNG at the mask's
            resolution; ``user_mask`` reads both.
        force: Write over files that are there.

    Raises:
        CatalogueError: If the catalogue's masks are missing or damaged, or a slide_id leads out of
            the folder.
        OSError: If a file cannot be written.
    """
    target = Path(folder)
    n_written = n_kept = 0
    with meter("export", total=len(catalogue), unit="masks") as progress:
        for row in catalogue.iter_rows():
            path = target / f"{row.slide_id}.{mask_format}"
            if row.slide_id.startswith("/") or ".." in PurePath(row.slide_id).parts:
                msg = f"needs names of files; got slide_id {row.slide_id!r}. Rename it by labels."
                raise CatalogueError(catalogue.path, msg)
            if path.exists() and not force:
                n_kept += 1
            else:
                tissue = catalogue.mask(row.slide_id)
                if mask_format == "geojson":
                    write_geojson(path, tissue, slide_mpp=row.mpp)
                else:
                    with replace_whole(path) as beside:
                        beside.write_bytes(encode_mask(tissue.mask))
                n_written += 1
            progress.advance(note=row.slide_id)
    return MaskExport(n_written, n_kept)
