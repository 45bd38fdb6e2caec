"""Tissue masks that the user brings: a folder of PNG or GeoJSON files named after their slides."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anlage.errors import TissueError
from anlage.geometry import Size
from anlage.slides.masks import TissueMask, bounded_mask_mpp, mask_shape
from anlage.slides.tissue.geojson import read_geojson

SUFFIXES = (".geojson", ".json", ".png")
MAX_PNG_PX = 2**28  # 16,384 squared
MAX_STRETCH = 0.01  # of a side, by which a picture's shape may differ from its slide's
RESAVE = "Save it as a PNG of the whole slide, tissue not zero."


def user_mask(
    folder: str | Path, slide_id: str, *, slide_size: Size, slide_mpp: float, mask_mpp: float
) -> TissueMask | None:
    """The mask that the user gave for a slide: ``<slide_id>.geojson``, ``.json`` or ``.png``.

    Args:
        folder: Where the files lie.
        slide_id: The slide.
        slide_size: Of its level 0, pixels.
        slide_mpp: Resolution of level 0, micrometres per pixel.
        mask_mpp: Resolution of the mask to make, micrometres per pixel; coarser where the slide is,
            or where the mask would have more than 64 million pixels.

    Returns:
        The mask; None if there is no such file.

    Raises:
        TissueError: If the folder is missing, more than one file is meant, or the file cannot be
            used (``read_geojson``, ``read_png``).
    """
    masks = Path(folder)
    if not masks.is_dir():
        raise TissueError(folder, "is no folder. Give the one with <slide_id>.geojson or .png.")
    files = [file for suffix in SUFFIXES if (file := masks / f"{slide_id}{suffix}").is_file()]
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise TissueError(
            folder, f"needs one mask of {slide_id!r}; got {names}. Remove the others."
        )
    if not files:
        return None
    mpp = bounded_mask_mpp(slide_size, slide_mpp=slide_mpp, mask_mpp=mask_mpp)
    read = read_png if files[0].suffix == ".png" else read_geojson
    return read(files[0], slide_size=slide_size, slide_mpp=slide_mpp, mask_mpp=mpp)


def read_png(
    path: str | Path, *, slide_size: Size, slide_mpp: float, mask_mpp: float
) -> TissueMask:
    """A mask from a picture of the whole slide at any scale; tissue is what is not black.

    A picture of exactly the mask's size is taken as it is; any other is looked up at the centre of
    each mask pixel. Transparent is not tissue.

    Args:
        path: A PNG, grey, palette, RGB or RGBA, 1 to 16 bits.
        slide_size: Of level 0, pixels; the picture has the same shape, to a pixel or 1 %.
        slide_mpp: Resolution of level 0, micrometres per pixel.
        mask_mpp: Resolution of the mask to make, micrometres per pixel.

    Raises:
        TissueError: If the file is no picture, has above 268 million pixels, another shape than the
            slide, or no tissue.
    """
    drawn = _not_black(Path(path))
    height, width = drawn.shape
    seen_height = width * slide_size.height / slide_size.width
    seen_width = height * slide_size.width / slide_size.height
    is_near = abs(seen_height - height) <= max(1, MAX_STRETCH * height)
    if not is_near and abs(seen_width - width) > max(1, MAX_STRETCH * width):
        raise TissueError(
            path,
            f"needs the shape of its slide ({slide_size.width} x {slide_size.height}); got "
            f"{width} x {height}. It must cover the whole slide, unturned.",
        )
    if not drawn.any():
        raise TissueError(path, f"is black all over: no tissue. {RESAVE}")
    shape = mask_shape(slide_size, slide_mpp=slide_mpp, mask_mpp=mask_mpp)
    if drawn.shape == shape:
        return TissueMask(drawn, mask_mpp)
    per_slide_px = mask_mpp / slide_mpp
    rows, columns = (
        np.minimum(
            ((np.arange(n) + 0.5) * per_slide_px * drawn_px / slide_px).astype(int), drawn_px - 1
        )
        for n, drawn_px, slide_px in zip(shape, drawn.shape, slide_size[::-1], strict=True)
    )
    return TissueMask(drawn[np.ix_(rows, columns)], mask_mpp)


def _not_black(path: Path) -> NDArray[np.bool_]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is below
            with Image.open(path, formats=["PNG"]) as header:
                n_px = header.width * header.height
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise TissueError(path, f"is no PNG that can be read: {error}. {RESAVE}") from error
    if n_px > MAX_PNG_PX:
        message = f"has {n_px // 10**6} million pixels; at most {MAX_PNG_PX // 10**6} are read."
        raise TissueError(path, f"{message} A mask at 8 µm per pixel is enough.")
    pixels = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise TissueError(path, f"is damaged. {RESAVE}")
    if pixels.ndim == 2:
        return np.asarray(pixels > 0)
    is_colour = pixels.shape[2] > 2
    is_drawn = (pixels[..., :3] if is_colour else pixels[..., :1]).any(axis=2)
    has_alpha = pixels.shape[2] in (2, 4)
    return np.asarray(is_drawn & (pixels[..., -1] > 0) if has_alpha else is_drawn)


def unmatched_masks(masks: Path, slide_ids: Collection[str]) -> list[str]:
    """Names of the files in a folder of drawn masks that no slide is named by, sorted.

    A mask under a misspelt name would otherwise be left out in silence, and the slide keep what a
    method finds.
    """
    taken = {f"{slide_id}{suffix}" for slide_id in slide_ids for suffix in SUFFIXES}
    drawn = (f.name for f in masks.iterdir() if f.suffix.lower() in SUFFIXES)
    return sorted(name for name in drawn if name not in taken)
