"""Where the frames of a DICOM slide lie in its files, parsed once, by wsidicom.

wsidicom reads the data sets and the tables of frames; the frames themselves are read and decoded
by our own tile reader, as a TIFF's tiles are: strictly, without a lock, and after a fork too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import Size
from anlage.slides.formats.dicom_series import is_dicom, series_uid
from anlage.slides.formats.tiff_index import TiffIndex
from anlage.slides.formats.tiff_pages import MAX_TILE_PX
from anlage.slides.formats.tile_codec import TileCodec, jpeg_head
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.reader import UnknownFormatError
from anlage.slides.resolution import Stated
from anlage.slides.storage.joined_bytes import JoinedBytes

JPEG, JPEG_LS, JPEG_2000 = "jpeg", "jpegls", "jpeg2000"
CODECS = {
    "1.2.840.10008.1.2": "none",
    "1.2.840.10008.1.2.1": "none",
    "1.2.840.10008.1.2.4.50": JPEG,
    "1.2.840.10008.1.2.4.80": JPEG_LS,
    "1.2.840.10008.1.2.4.81": JPEG_LS,
    "1.2.840.10008.1.2.4.90": JPEG_2000,
    "1.2.840.10008.1.2.4.91": JPEG_2000,
}
# What the codec's decoder turns into RGB. A JPEG 2000 says itself how it is transformed.
COLOURS = {
    "none": {"RGB"},
    JPEG: {"RGB", "YBR_FULL", "YBR_FULL_422"},
    JPEG_LS: {"RGB"},
    JPEG_2000: {"RGB", "YBR_RCT", "YBR_ICT"},
}
OPTICAL_PATHS = 0x00480105  # the last tag that is needed of a file's head
ASSOCIATED = {"LABEL": "label", "OVERVIEW": "macro", "THUMBNAIL": "thumbnail"}  # as in OpenSlide
MAX_TILES = 2**23  # a slide of 200,000 x 150,000 pixels in tiles of 64 has 7 million
UM_PER_MM = 1000.0
INSTALL = "Install what reads DICOM: pip install 'anlage[dicom]'."


def read_dicom_index(path: str) -> tuple[TiffIndex, JoinedBytes]:
    """Parse the files of the series that one file belongs to.

    Args:
        path: Any file of the series; the others are looked for beside it, by the same ending
            if it has one of letters.

    Returns:
        The slide's pictures, and its files as one, in which they have their places.

    Raises:
        UnknownFormatError: If it is no DICOM whole-slide image, its compression is not read
            here, or wsidicom is not installed.
        SlideError: If a file of the series is damaged or missing, or its pixels are not one
            plane of 8-bit RGB.
    """
    if not is_dicom(path):
        raise UnknownFormatError(path, "not a DICOM file.")
    series = series_uid(Path(path))
    if series is None:
        raise UnknownFormatError(path, "a DICOM file, but not one of a whole-slide image.")
    try:
        import wsidicom  # noqa: F401 - is it there?
    except ModuleNotFoundError as error:
        raise UnknownFormatError(
            path, f"a DICOM file, and wsidicom is missing. {INSTALL}"
        ) from error
    ending = Path(path).suffix
    ending = ending if ending[1:].isalpha() else ""  # a file may be named by its UID alone
    beside = sorted(Path(path).parent.glob(f"*{ending}"))
    files = [path, *(str(file) for file in beside if _is_another(file, path, series))]
    joined = JoinedBytes(path, files)
    with ExitStack() as opened:
        parts = [_Part(opened, *place) for place in zip(files, joined.starts, strict=True)]
        # Files of one instance are copies of each other, of which the first is the opened one.
        once = {str(part.dataset.uids.instance): part for part in reversed(parts)}
        try:
            return _index(path, list(once.values())), joined
        except SlideError:
            raise
        except Exception as error:  # what wsidicom reads only now may be damaged as well
            raise _damaged(path, error) from error


def _is_another(file: Path, path: str, series: str) -> bool:
    return series_uid(file) == series and not file.samefile(path)


class _Part:
    """One file: what it says of itself, and where its frames are.

    Args:
        opened: Holds the file open while it is parsed.
        path: The file.
        start: Where the file begins in all of them joined, bytes.

    Attributes:
        head: pydicom's data set up to the optical paths.
        dataset: wsidicom's view of the whole data set.
        syntax: Transfer syntax, by its UID.
        size: Pixels of the picture.
        tile: Pixels of a frame.
        places: (N, 2) int64 first byte, in all the files joined, and length of each frame.
    """

    def __init__(self, opened: ExitStack, path: str, start: int) -> None:
        from pydicom.filereader import read_partial
        from upath import UPath
        from wsidicom.errors import WsiDicomNotSupportedError
        from wsidicom.file.io import WsiDicomReader, WsiDicomReadIO

        self.path = path
        try:
            file = opened.enter_context(open(path, "rb"))  # noqa: PTH123, SIM115 - closed by it
            self.head: Any = read_partial(file, stop_when=lambda tag, *_: tag > OPTICAL_PATHS)
            self.syntax = str(self.head.file_meta.TransferSyntaxUID)
            _refuse_unless_rgb(path, self.head)
            columns, rows = self.head.TotalPixelMatrixColumns, self.head.TotalPixelMatrixRows
            self.size, self.tile = Size(columns, rows), Size(self.head.Columns, self.head.Rows)
            _refuse_absurd_grid(path, self.size, self.tile)
            file.seek(0)
            reader = WsiDicomReader(WsiDicomReadIO(file, UPath(path)))
            self.dataset: Any = reader.dataset
            places = np.array(list(reader.frame_index), np.int64).reshape(-1, 2)
        except SlideError:
            raise
        except WsiDicomNotSupportedError as error:
            raise UnknownFormatError(path, f"wsidicom does not read it: {error}") from error
        except Exception as error:  # damage makes the parsers fail in any way
            raise _damaged(path, error) from error
        self.places = places + np.array([start, 0])
        if len(places) != self.dataset.frame_count:
            rule = f"needs {self.dataset.frame_count} frames"
            raise SlideError(path, f"{rule}; got {len(places)}. Copy it again from its source.")


def _refuse_absurd_grid(path: str, size: Size, tile: Size) -> None:
    """Before anybody takes memory for each of the tiles that a damaged number makes of a slide."""
    n_tiles = 0
    if min(*size, *tile) > 0:
        n_tiles = -(-size.width // tile.width) * -(-size.height // tile.height)
    if not 0 < n_tiles <= MAX_TILES:
        raise SlideError(
            path,
            f"needs 1 to {MAX_TILES} tiles; got {size.width} x {size.height} pixels in tiles of "
            f"{tile.width} x {tile.height}. It is damaged; copy it again from its source.",
        )


def _damaged(path: str, error: Exception) -> SlideError:
    return SlideError(path, f"is damaged: wsidicom ended with {type(error).__name__}: {error}.")


def _refuse_unless_rgb(path: str, head: Any) -> None:  # noqa: ANN401
    bits, samples = head.BitsAllocated, head.SamplesPerPixel
    colour = head.PhotometricInterpretation
    if (bits, samples, head.get("PixelRepresentation", 0)) != (8, 3, 0):
        raise SlideError(
            path,
            f"needs 8-bit RGB; got {samples} sample(s) of {bits} bits, {colour}. "
            "Convert it to 8-bit RGB.",
        )
    syntax = head.file_meta.TransferSyntaxUID
    kind = CODECS.get(str(syntax))
    is_interleaved = kind != "none" or head.get("PlanarConfiguration", 0) == 0
    if kind is None or colour not in COLOURS[kind] or not is_interleaved:
        raise UnknownFormatError(
            path,
            "needs RGB pixel by pixel, without compression or in JPEG, JPEG-LS or JPEG 2000; "
            f"got {colour} in {syntax.name}.",
        )


def _index(path: str, parts: Sequence[_Part]) -> TiffIndex:
    levels: dict[Size, list[_Part]] = defaultdict(list)
    beside: dict[str, list[_Part]] = defaultdict(list)
    for part in parts:
        kind = str(part.dataset.image_type.name)
        if kind == "VOLUME":
            levels[part.size].append(part)
        elif kind in ASSOCIATED:
            beside[ASSOCIATED[kind]].append(part)
    if not levels:
        raise SlideError(path, "needs a file with the slide itself; got only pictures beside it.")
    sizes = sorted(levels, key=lambda size: -size.width)
    pictures = [_picture(path, f"level {i}", levels[size]) for i, size in enumerate(sizes)]
    finest = levels[sizes[0]][0]
    optics = finest.head.get("OpticalPathSequence") or [{}]
    return TiffIndex(
        levels=tuple(pictures),
        associated=_associated(path, beside),
        vendor="dicom",
        stated=_stated(finest.dataset.pixel_spacing, optics[0].get("ObjectiveLensPower")),
        icc_profile=optics[0].get("ICCProfile"),
    )


def _associated(path: str, beside: dict[str, list[_Part]]) -> dict[str, TiledPicture]:
    """The pictures beside the pyramid; one that does not fit its frames is left out."""
    found = {}
    for name in sorted(beside):
        try:
            found[name] = _picture(path, name, beside[name])
        except SlideError:
            continue
    return found


def _stated(spacing: Any, power: Any) -> Stated:  # noqa: ANN401
    axes = None
    if spacing is not None:
        axes = (float(spacing.width) * UM_PER_MM, float(spacing.height) * UM_PER_MM)
    return Stated(vendor=axes, objective=None if power is None else float(power))


def _picture(path: str, name: str, parts: Sequence[_Part]) -> TiledPicture:
    """One picture from its file, or from the files that it was cut into (a concatenation)."""
    parts = sorted(parts, key=lambda part: part.dataset.frame_offset)
    first = parts[0]
    _refuse_unless_one_plane(path, name, parts)
    size, tile = first.size, first.tile
    if tile.width * tile.height > MAX_TILE_PX:
        got = f"{tile.width} x {tile.height}"
        raise SlideError(path, f"needs frames of at most {MAX_TILE_PX} pixels; {name} has {got}.")
    places = np.concatenate([part.places for part in parts])
    places = np.vstack([places, [[0, 0]]])[_frame_of_tile(path, name, parts)]
    kind = CODECS[first.syntax]
    is_rgb = kind == JPEG and first.head.PhotometricInterpretation == "RGB"
    return TiledPicture(
        name=name,
        size=size,
        tile=tile,
        offsets=np.ascontiguousarray(places[:, 0]),
        counts=np.ascontiguousarray(places[:, 1]),
        codec=TileCodec(kind, jpeg_head=jpeg_head(None, is_rgb=is_rgb)),
    )


def _refuse_unless_one_plane(path: str, name: str, parts: Sequence[_Part]) -> None:
    pictures = {str(part.dataset.uids.identifier) for part in parts}
    optics = {tuple(part.dataset.optical_path_identifiers) for part in parts}
    planes = max(part.dataset.number_of_focal_planes for part in parts)
    if len(pictures) > 1 or len(optics) > 1 or len(min(optics)) > 1 or planes > 1:
        raise SlideError(
            path,
            f"needs one focal plane and one optical path; {name} has {len(pictures)} pictures of "
            f"one size, {planes} planes and optical paths {sorted(optics)}. "
            "Keep the files of one plane and path in a folder of their own.",
        )
    total = parts[0].head.get("InConcatenationTotalNumber", len(parts))
    ends = np.cumsum([len(part.places) for part in parts])
    starts = [part.dataset.frame_offset for part in parts]
    if starts != [0, *ends[:-1].tolist()] or total != len(parts):
        raise SlideError(
            path,
            f"needs every file of {name}, which was cut into parts; got {len(parts)} of {total}. "
            "Copy the whole series into one folder.",
        )


def _frame_of_tile(path: str, name: str, parts: Sequence[_Part]) -> NDArray[np.int64]:
    """(N,) int64 frame of each tile, row by row; -1 where a sparse picture has none."""
    from wsidicom.geometry import Point
    from wsidicom.instance.dataset import TileType
    from wsidicom.instance.tile_index.sparse_tile_index import SparseTileIndex

    first = parts[0]
    across, down = (-(-a // b) for a, b in zip(first.size, first.tile, strict=True))
    n_frames = sum(len(part.places) for part in parts)
    if first.dataset.tile_type != TileType.SPARSE:
        if n_frames != across * down:
            rule = f"needs {across * down} frames for {name}"
            raise SlideError(path, f"{rule}; got {n_frames}. Copy it again from its source.")
        return np.arange(n_frames)
    index = SparseTileIndex([part.dataset for part in parts])
    (plane,), (optics,) = index.focal_planes, index.optical_paths
    tiles = ((column, row) for row in range(down) for column in range(across))
    return np.array(
        [index.get_frame_index(Point(*tile), plane, optics) for tile in tiles], np.int64
    )
