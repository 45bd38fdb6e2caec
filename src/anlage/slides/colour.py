"""A slide's own colours turned into sRGB by its ICC profile, on request."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from anlage.errors import SlideError
from anlage.slides.reader import SlideReader

LOGGER = logging.getLogger(__name__)
Colour = Literal["stored", "srgb"]
Converter = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

PROFILES_KEPT = 64  # a scanner writes one profile into all its slides
PROBE_STEP = 5  # 52 values a channel, 0 and 255 among them
LEAST_CONTRAST = 64  # a profile that brings white nearer to black than this is damaged
MAX_NAMED = 1_000  # slides without a profile that the log names, each once
PICTURE_CLASSES = ("scnr", "mntr", "prtr", "spac")

_NAMED: dict[str, object] = {}  # by path; no lock, which a forked child might find held


class _UnusableError(Exception):
    """Why a profile cannot be used."""


def srgb_converter(profile: bytes | None, *, path: str = "ICC profile") -> Converter | None:
    """What turns pixels of a profile's colour space into sRGB.

    Relative colorimetric, without black point compensation: the profile's white becomes sRGB
    white, every other colour keeps its measured relation to it, and what sRGB cannot show is cut
    off. Perceptual tables would add the scanner maker's taste, which differs between makers, and
    a profile of matrix and curves has none: there both give the same numbers. The arithmetic is
    lcms's own, 8 bits in and out; it lets go of the GIL. The converter may be called by many
    threads at once and does not change its argument.

    Args:
        profile: ICC profile as it stands in a slide's file.
        path: Whose it is, for the error.

    Returns:
        A function from (H, W, 3) uint8 RGB to the same in sRGB; None if there is no profile, or
        it leaves every colour as it is (it is sRGB itself).

    Raises:
        SlideError: If the profile is damaged, or does not describe RGB pictures.

    Source: ICC.1:2022, section 6.2 (rendering intents); Pillow ``ImageCms`` over Little CMS 2.
    """
    if profile is None:
        return None
    try:
        return _converter(bytes(profile))
    except _UnusableError as error:
        remedy = "Read the slide with colour 'stored', or give the file a sound profile."
        raise SlideError(path, f"{error} {remedy}") from error


def slide_converter(slide: SlideReader, colour: Colour) -> Converter | None:
    """What brings pixels of this slide into the colours that were asked for; None: nothing to do.

    A slide without a profile keeps its pixels as stored, which the log says once a slide.

    Args:
        slide: An open slide.
        colour: "stored" for the file's own numbers, "srgb" for what its profile says they mean.

    Raises:
        SlideError: If the slide's profile is damaged, or not one of RGB pictures.
        ValueError: If ``colour`` is neither.
    """
    if colour not in get_args(Colour):
        msg = f"slide_converter: needs colour 'stored' or 'srgb'; got {colour!r}. Choose one."
        raise ValueError(msg)
    if colour == "stored":
        return None
    profile = slide.icc_profile
    if profile is None:
        _name_slide_without_profile(slide.path)
    return srgb_converter(profile, path=slide.path)


def profile_digest(profile: bytes | None) -> str:
    """SHA-256 of a profile, for the record of what was read; "none" where there is none."""
    return "none" if profile is None else hashlib.sha256(profile).hexdigest()


def _name_slide_without_profile(path: str) -> None:
    if path in _NAMED or len(_NAMED) >= MAX_NAMED:
        return
    mine = object()
    if _NAMED.setdefault(path, mine) is not mine:  # of two threads one comes first
        return
    LOGGER.info("%s: no ICC profile; its pixels stay as they are stored", path)
    if len(_NAMED) == MAX_NAMED:
        LOGGER.info("further slides without an ICC profile are not named")


@lru_cache(PROFILES_KEPT)
def _converter(profile: bytes) -> Converter | None:
    transform = _transform(profile)

    def convert(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.array(transform.apply(Image.fromarray(pixels)), np.uint8)

    probe = _probe()
    shown = convert(probe)
    contrast = shown[-1, -1].astype(int) - shown[0, 0]  # white less black
    if contrast.min() < LEAST_CONTRAST:
        white, black = shown[-1, -1].tolist(), shown[0, 0].tolist()
        msg = f"its ICC profile is damaged: it shows white as {white} and black as {black}."
        raise _UnusableError(msg)
    return None if np.array_equal(shown, probe) else convert


def _transform(profile: bytes) -> ImageCms.ImageCmsTransform:
    stated = int.from_bytes(profile[:4], "big")  # lcms takes a profile that lost its last tags
    if stated > len(profile):
        msg = f"its ICC profile is cut off: it has {len(profile)} of {stated} bytes."
        raise _UnusableError(msg)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        kind = source.profile.device_class.strip()
        if space != "RGB" or kind not in PICTURE_CLASSES:
            msg = (
                f"its ICC profile needs to describe RGB pictures; got one of {space} pixels "
                f"(class {kind})."
            )
            raise _UnusableError(msg)
        return ImageCms.ImageCmsTransform(
            source,
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            "RGB",
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError) as error:
        msg = f"its ICC profile of {len(profile)} bytes is damaged ({error})."
        raise _UnusableError(msg) from error


def _probe() -> NDArray[np.uint8]:
    """Every colour of a fine lattice, from black to white, as a picture."""
    value = np.arange(0, 256, PROBE_STEP, dtype=np.uint8)
    lattice = np.stack(np.meshgrid(value, value, value, indexing="ij"), axis=-1)
    return np.ascontiguousarray(lattice.reshape(len(value), -1, 3))
