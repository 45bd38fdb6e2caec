"""Index slides: find them, open each, find its tissue, write the catalogue; refuse with reasons."""

from __future__ import annotations

import csv
import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anlage.errors import CatalogueError, SlideError
from anlage.files import write_text_whole
from anlage.progress import meter
from anlage.slides.catalogue import Catalogue
from anlage.slides.catalogue_table import write_table
from anlage.slides.discovery import FoundSlide, Refused, find_slides, slide_id_of
from anlage.slides.fingerprint import slide_fingerprint
from anlage.slides.labels import LabelRow, Labels, read_labels
from anlage.slides.mask_store import MaskWriter, Pictures, encode_pictures, masks_path, write_masks
from anlage.slides.masks import TissueMask, tissue_area_mm2
from anlage.slides.overview import read_overview, shrink, thumbnail_mpp
from anlage.slides.reader import SlideReader, open_slide
from anlage.slides.tissue import MIN_AREA_MM2, find_tissue

LOGGER = logging.getLogger(__name__)
N_THREADS = 2
MASK_MPP_RANGE = (0.5, 100.0)


@dataclass(frozen=True)
class IndexResult:
    """What became of the slides.

    Attributes:
        catalogue: The catalogue written; None if no slide was accepted (nothing is written then).
        n_accepted: Slides in it.
        refused: Files that are not, with the reason; also in ``slides.refused.csv``.
        unmatched_labels: Rows of the labels file for which no slide was found.
        slides_without_labels: Accepted slides that the labels file does not name.
    """

    catalogue: Catalogue | None
    n_accepted: int
    refused: list[Refused]
    unmatched_labels: list[str]
    slides_without_labels: list[str]


def index_slides(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    labels: str | Path | None = None,
    mask_mpp: float = 8.0,
) -> IndexResult:
    """Make a catalogue of slides.

    Each slide is opened, measured, hashed, and searched for tissue. One that cannot be used is
    listed with its reason and costs nothing else. The catalogue, its masks and
    ``slides.refused.csv`` replace older ones of the same name, each whole.

    Args:
        paths: Files, folders or globs (``find_slides``).
        output: Parquet file to write.
        labels: CSV to join (``read_labels``).
        mask_mpp: Resolution of the tissue masks, micrometres per pixel, 0.5 to 100.

    Returns:
        The catalogue and what was refused or not matched.

    Raises:
        CatalogueError: If the labels are unusable.
        ValueError: If ``mask_mpp`` is out of range.
    """
    if not MASK_MPP_RANGE[0] <= mask_mpp <= MASK_MPP_RANGE[1]:
        low, high = MASK_MPP_RANGE
        msg = f"index_slides needs mask_mpp from {low} to {high}; got {mask_mpp}. 8 suits most."
        raise ValueError(msg)
    output = Path(output).absolute()
    known = None if labels is None else read_labels(Path(labels))
    found, refused = find_slides(paths)
    means = {} if known is None else _rows_of_files(known, found, refused)
    work = [_Work(slide, means.get(slide.path)) for slide in found]
    unmatched = None if known is None else _unmatched(known, means)
    intake = _Intake(output, refused)
    masks = masks_path(output)
    waiting = masks.with_name(f".{masks.name}.new")  # named last, after the table
    with write_masks(waiting) as writer:
        for item, outcome in _examine_all(work, mask_mpp):
            intake.take(item, outcome, writer)
    _write_refused(output, intake.refused)
    if intake.rows:
        write_table(output, intake.rows, () if known is None else known.columns)
        waiting.replace(masks)
    else:
        waiting.unlink()
    return _result(output, intake, work, unmatched)


def kept_catalogue(output: Path) -> tuple[Catalogue, tuple[Refused, ...]] | None:
    """The catalogue that an earlier call finished, and what it refused; None if there is none."""
    if output.exists() and masks_path(output).exists():  # the masks are named last
        return Catalogue.open(output), tuple(read_refused(output))
    return None


def catalogue_of(
    slides: str | Path, *, folder: str | Path, keep: bool = False
) -> tuple[Catalogue, tuple[Refused, ...]]:
    """Open a catalogue, or index a folder, file or glob of slides on the way.

    Args:
        slides: A catalogue (``.parquet``), or what ``index_slides`` takes.
        folder: Where ``slides.parquet`` is written if slides have to be indexed.
        keep: Take the one an earlier call wrote there, if there is one, rather than index again.

    Returns:
        The catalogue, and the slides refused while indexing.

    Raises:
        CatalogueError: If the catalogue is unusable, or no slide is.
    """
    if Path(slides).suffix == ".parquet":
        return Catalogue.open(Path(slides)), ()
    output = Path(folder) / "slides.parquet"
    kept = kept_catalogue(output) if keep else None
    if kept is not None:
        LOGGER.info("going on with the slides of %s", output)
        return kept
    result = index_slides([slides], output)
    if result.catalogue is None:
        told = "; ".join(f"{refused.uri}: {refused.reason}" for refused in result.refused[:3])
        raise CatalogueError(slides, f"needs a usable slide; got none ({told or 'none found'}).")
    return result.catalogue, tuple(result.refused)


def read_refused(catalogue: str | Path) -> list[Refused]:
    """The refused slides listed beside a catalogue; none if there is no list.

    Raises:
        CatalogueError: If the list is damaged.
    """
    path = _refused_path(Path(catalogue))
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [Refused(row["uri"], row["reason"]) for row in csv.DictReader(file)]
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        message = f"is not the list that `anlage index` writes: {error!r}. Index again."
        raise CatalogueError(path, message) from error


@dataclass(frozen=True, slots=True)
class _Work:
    """A slide to examine, and its labels."""

    slide: FoundSlide
    label: LabelRow | None

    @property
    def slide_id(self) -> str:
        given = None if self.label is None else self.label.slide_id
        return given or slide_id_of(self.slide.path)


@dataclass(frozen=True, slots=True)
class _Examined:
    """What a slide's file says."""

    measured: dict[str, Any]
    pictures: Pictures


class _Intake:
    """What was accepted and refused so far, in the order in which slides were found."""

    def __init__(self, output: Path, refused: Sequence[Refused]) -> None:
        self.output = output
        self.rows: list[dict[str, Any]] = []
        self.refused = [Refused(_uri(r.uri, output), r.reason) for r in refused]
        self.taken: dict[str, Path] = {}

    def take(self, work: _Work, outcome: _Examined | str, masks: MaskWriter) -> None:
        """Accept an examined slide, or refuse it for the reason that stands in its place."""
        path = work.slide.path
        if not isinstance(outcome, str) and work.slide_id in self.taken:
            outcome = (
                f"slide_id {work.slide_id!r} is taken by {self.taken[work.slide_id]}. Rename one "
                "file, or give both an id in a labels file with columns path and slide_id."
            )
        if isinstance(outcome, str):
            outcome += _companions(work.slide)
            LOGGER.warning("refused %s: %s", path, outcome)
            self.refused.append(Refused(_uri(path, self.output), outcome))
            return
        self.taken[work.slide_id] = path
        labels = {} if work.label is None else dict(work.label.values)
        labels["patient_id"] = labels.get("patient_id") or work.slide_id
        named = {"slide_id": work.slide_id, "uri": _uri(path, self.output)}
        self.rows.append(labels | named | outcome.measured)
        masks.add(work.slide_id, outcome.measured["fingerprint"], outcome.pictures)


def _examine_all(work: Sequence[_Work], mask_mpp: float) -> Iterator[tuple[_Work, _Examined | str]]:
    """Examine slides in two threads (the decoders let go of the lock); give them in order."""
    with (
        meter("index", total=len(work), unit="slides") as progress,
        ThreadPoolExecutor(N_THREADS) as pool,
    ):
        outcomes = pool.map(lambda item: _examine_or_refuse(item, mask_mpp), work)
        try:
            for item, outcome in zip(work, outcomes, strict=True):
                yield item, outcome
                progress.advance(note=item.slide_id)
        finally:  # a full disk is told at once, not after all slides were examined
            pool.shutdown(wait=False, cancel_futures=True)


def _examine_or_refuse(work: _Work, mask_mpp: float) -> _Examined | str:
    """What a slide's file says, or why it is refused; never an exception."""
    try:
        return _examine(work, mask_mpp)
    except SlideError as error:
        return error.message
    except OSError as error:
        return f"cannot be read: {error.strerror or error}. Check the file and its permissions."
    except Exception as error:  # one slide must not end the run, whatever its decoder raises
        LOGGER.exception("%s: unexpected error while indexing", work.slide.path)
        return f"cannot be read: {type(error).__name__}: {error}. The log has the traceback."


def _examine(work: _Work, mask_mpp: float) -> _Examined:
    path = work.slide.path
    with open_slide(path, mpp=None if work.label is None else work.label.mpp) as slide:
        pixels, pixels_mpp = read_overview(slide, mpp=mask_mpp)
        tissue = TissueMask(find_tissue(pixels, mpp=pixels_mpp), pixels_mpp)
        if not tissue.mask.any():
            raise SlideError(
                path,
                f"no tissue found at {pixels_mpp:g} mpp: nothing differs enough from the glass "
                f"over {MIN_AREA_MM2:g} mm². Leave it out, or check its mpp ({slide.mpp:g}).",
            )
        small_mpp = thumbnail_mpp(slide)
        if small_mpp >= pixels_mpp:
            small = shrink(pixels, mpp=pixels_mpp, target_mpp=small_mpp)
        else:
            small, small_mpp = read_overview(slide, mpp=small_mpp)
        measured = _measure(slide) | {
            "fingerprint": slide_fingerprint(work.slide.files),
            "n_bytes": path.stat().st_size,
            "tissue_area_mm2": tissue_area_mm2(tissue),
        }
    return _Examined(measured, encode_pictures(tissue, small, small_mpp))


def _measure(slide: SlideReader) -> dict[str, Any]:
    assert slide.resolution is not None  # its mpp was read
    return {
        "width": slide.size.width,
        "height": slide.size.height,
        "n_levels": len(slide.levels),
        "level_downsamples": [level.downsample for level in slide.levels],
        "mpp": slide.mpp,
        "mpp_source": slide.resolution.source,
        "vendor": slide.vendor,
        "reader": slide.reader,
    }


def _result(
    output: Path, intake: _Intake, work: Sequence[_Work], unmatched: list[str] | None
) -> IndexResult:
    labelled = {
        item.slide_id
        for item in work
        if item.label is not None and intake.taken.get(item.slide_id) == item.slide.path
    }
    accepted = [str(row["slide_id"]) for row in intake.rows]
    n_own = sum(row["patient_id"] == row["slide_id"] for row in intake.rows)
    if n_own:
        LOGGER.info("%d of %d slides count as a patient of their own", n_own, len(accepted))
    return IndexResult(
        catalogue=Catalogue.open(output) if accepted else None,
        n_accepted=len(accepted),
        refused=intake.refused,
        unmatched_labels=unmatched or [],
        slides_without_labels=[] if unmatched is None else sorted(set(accepted) - labelled),
    )


def _companions(slide: FoundSlide) -> str:
    """Names of the files that went with a refused one, so that none goes unnamed."""
    names = ", ".join(file.name for file in _beside(slide))
    return f" Of the same slide: {names}." if names else ""


def _beside(slide: FoundSlide) -> list[Path]:
    """The slide's further files in its own folder (of a DICOM series, not MRXS data)."""
    return [file for file in slide.files[1:] if file.parent == slide.path.parent]


def _rows_of_files(
    labels: Labels, found: Sequence[FoundSlide], refused: Sequence[Refused]
) -> dict[Path, LabelRow]:
    """Which row means which of the files found, usable or not."""
    files = [file for slide in found for file in (slide.path, *_beside(slide))]
    files += [Path(entry.uri) for entry in refused]
    folders: dict[str, set[Path]] = defaultdict(set)
    for file in files:
        folders[slide_id_of(file)].add(file.parent)
    rows = {f: labels.of(f, is_only=len(folders[slide_id_of(f)]) == 1) for f in files}
    return {file: row for file, row in rows.items() if row is not None}


def _unmatched(labels: Labels, means: Mapping[Path, LabelRow]) -> list[str]:
    """Names of the rows that mean none of the files found."""
    matched = {row.name for row in means.values()}
    return [row.name for row in labels.rows if row.name not in matched]


def _refused_path(catalogue: Path) -> Path:
    return catalogue.with_name(f"{catalogue.stem}.refused.csv")


def _write_refused(output: Path, refused: Sequence[Refused]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["uri", "reason"])
    writer.writerows([r.uri, r.reason] for r in refused)
    write_text_whole(_refused_path(output), text.getvalue())


def _uri(path: str | Path, output: Path) -> str:
    """Relative to the catalogue's folder when below it, else absolute; always with slashes."""
    file = Path(path)
    folder = output.parent
    return (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()
