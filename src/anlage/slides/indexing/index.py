"""Index slides: find them, examine each that is new or changed, write the catalogue."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from pathlib import Path

from anlage.errors import CatalogueError
from anlage.folder_lock import lock_folder
from anlage.slides.catalogue import Catalogue
from anlage.slides.catalogue_table import REMEDY, UnreadableTableError
from anlage.slides.indexing.discovery import find_slides
from anlage.slides.indexing.examine import TissueSettings
from anlage.slides.indexing.found_slide import Refused, read_refused
from anlage.slides.indexing.index_plan import Earlier
from anlage.slides.indexing.index_run import IndexResult, IndexRun
from anlage.slides.indexing.labels import read_labels
from anlage.slides.mask_store import masks_path
from anlage.slides.storage.location import is_remote

LOGGER = logging.getLogger(__name__)
MASK_MPP_RANGE = (0.5, 100.0)
SUFFIX = ".parquet"


def index_slides(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    labels: str | Path | None = None,
    add: bool = False,
    workers: int | None = None,
    mask_mpp: float = 8.0,
    tissue: str = "otsu",
    tissue_weights: Path | None = None,
    masks: Path | None = None,
) -> IndexResult:
    """Make a catalogue of slides, or renew one.

    Each slide is opened, measured, hashed, and searched for tissue. One that cannot be used is
    listed with its reason and costs nothing else. What has been examined is kept at once, so that
    the same call goes on after ``kill -9``; and a slide that has not changed since it was examined
    in the same way is not read again. Of slides that stay, columns that others have added stay
    too; the table and ``slides.refused.csv`` are replaced, each whole.

    Args:
        paths: Files, folders, globs or URLs (``find_slides``).
        output: Parquet file to write, ``.parquet``, on this machine.
        labels: CSV to join (``read_labels``). What it says of a slide replaces what was there.
        add: Keep the catalogue's slides that ``paths`` do not mean.
        workers: Processes that examine slides, so that one which a damaged file ends costs that
            slide only; None for two threads of this process.
        mask_mpp: Resolution of the tissue masks, micrometres per pixel, 0.5 to 100.
        tissue: Method that finds the tissue (``tissue_methods()``).
        tissue_weights: What it takes its weights from, if it has any.
        masks: Folder of masks that users drew, GeoJSON or PNG named by slide_id, which are taken
            instead.

    Returns:
        The catalogue and what was refused or not matched.

    Raises:
        CatalogueError: If the labels are unusable, another process writes this catalogue, there
            is none that could be added to, or ``output`` is a table of something else.
        TissueError: If there is no such method, or its weights are not what it needs.
        ValueError: If ``mask_mpp`` or ``workers`` is out of range.
    """
    if not MASK_MPP_RANGE[0] <= mask_mpp <= MASK_MPP_RANGE[1]:
        low, high = MASK_MPP_RANGE
        msg = f"index_slides needs mask_mpp from {low} to {high}; got {mask_mpp}. 8 suits most."
        raise ValueError(msg)
    if workers is not None and workers < 1:
        msg = f"index_slides needs workers >= 1; got {workers}. Take the number of cores."
        raise ValueError(msg)
    _refuse_unfit_name(output)
    output = Path(output).absolute()
    settings = TissueSettings(mask_mpp, tissue, tissue_weights, masks)
    settings.name()  # an unknown method is told before anything is looked for
    known = None if labels is None else read_labels(Path(labels))
    told = "is being written by another `anlage index`. Wait for it, or name another output."
    with lock_folder(masks_path(output), held=CatalogueError(output, told)):
        _clear_parts(output)
        earlier = _earlier(output, add=add)
        found, refused = find_slides(paths)
        run = IndexRun(output, settings, labels=known, earlier=earlier, is_adding=add)
        return run.run(found, refused, workers=workers)


def _refuse_unfit_name(output: str | Path) -> None:
    """Refuse what is no catalogue's name: two names that share a stem would share their masks."""
    scheme, colon, _ = str(output).partition(":/")
    if colon and scheme.isalnum() and len(scheme) > 1:
        raise CatalogueError(output, "is no file of this machine, where catalogues are written.")
    if Path(output).suffix != SUFFIX:
        msg = f"needs a name that ends in {SUFFIX}. Name it {Path(output).stem}{SUFFIX}."
        raise CatalogueError(output, msg)


def _clear_parts(output: Path) -> None:
    """Remove what an index that was killed left half-written; its lock is ours now."""
    for part in output.parent.glob(f".{glob.escape(output.name)}.*.part"):
        part.unlink(missing_ok=True)


def _earlier(output: Path, *, add: bool) -> Earlier | None:
    """The catalogue that is there already; one that cannot be read is made anew, unless added to.

    Raises:
        CatalogueError: If there is nothing to add to, or what is there holds what would be lost.
    """
    if not (add or output.exists()):
        return None
    try:
        return Earlier(Catalogue.open(output))
    except UnreadableTableError as error:
        if add:
            raise
        LOGGER.warning("making it anew: %s", error)
        return None
    except CatalogueError as error:
        if not output.exists():
            raise
        told = error.message.removesuffix(REMEDY).strip()
        remedy = "Move it away, or put it back as it was (docs/formats.md), so that nothing is lost"
        raise CatalogueError(output, f"is there and cannot be renewed: {told} {remedy}.") from error


def kept_catalogue(output: Path) -> tuple[Catalogue, tuple[Refused, ...]] | None:
    """The catalogue that an earlier call finished, and what it refused; None if there is none."""
    if output.exists():  # it is written last
        return Catalogue.open(output), tuple(read_refused(output))
    return None


def catalogue_of(
    slides: str | Path, *, folder: str | Path, keep: bool = False, tissue: str | None = None
) -> tuple[Catalogue, tuple[Refused, ...]]:
    """Open a catalogue, or index a folder, file, glob or URL of slides on the way.

    Args:
        slides: A catalogue (``.parquet``), or what ``index_slides`` takes.
        folder: Where ``slides.parquet`` is written if slides have to be indexed.
        keep: Take the one an earlier call wrote there, if there is one, rather than index again.
        tissue: Method that finds the tissue; None for a catalogue's own, or Otsu's.

    Returns:
        The catalogue, and the slides refused while indexing.

    Raises:
        CatalogueError: If the catalogue is unusable or has masks of another method, or no slide
            is usable.
        TissueError: If there is no such method.
    """
    if Path(slides).suffix == ".parquet":
        if is_remote(str(slides)):
            msg = "is a URL; a catalogue is read from this machine. Copy it here, masks too."
            raise CatalogueError(str(slides), msg)
        catalogue = Catalogue.open(Path(slides))
        _refuse_other_tissue(catalogue, tissue)
        return catalogue, ()
    output = Path(folder) / "slides.parquet"
    kept = kept_catalogue(output) if keep else None
    if kept is not None:
        LOGGER.info("going on with the slides of %s", output)
        return kept
    result = index_slides([slides], output, tissue=tissue or "otsu")
    if result.catalogue is None:
        told = "; ".join(f"{refused.uri}: {refused.reason}" for refused in result.refused[:3])
        raise CatalogueError(slides, f"needs a usable slide; got none ({told or 'none found'}).")
    return result.catalogue, tuple(result.refused)


def _refuse_other_tissue(catalogue: Catalogue, tissue: str | None) -> None:
    """Refuse a catalogue whose masks another method made; those that users drew are fine."""
    found = set(catalogue.column("tissue_method").to_pylist()) - {"user"}
    if tissue is not None and found - {tissue}:
        other = ", ".join(sorted(found - {tissue}))
        msg = f"has masks made by {other}; asked for {tissue}. Index with --tissue {tissue} first."
        raise CatalogueError(catalogue.path, msg)
