"""The two stains of a slide found from its pixels, and pixels brought to other stains.

Light passes two dyes one after the other, so their optical densities add up:
``density = concentration @ vectors``, with ``density = -log(light / white)``.

Shape suffixes: L tiles, P pixels, 2 stains, 3 channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anlage.errors import StainError
from anlage.slides.levels import read_tile
from anlage.slides.masks import TissueMask
from anlage.slides.reader import SlideReader
from anlage.tiles.grid import tile_grid
from anlage.tiles.spec import TileSpec

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

WHITE = 240  # light that no tissue stops, of 255
LEAST_DENSITY = 0.15  # of every channel; less is glass
ANGLE_PERCENTILE = 1.0
STRONGEST_PERCENTILE = 99.0
LEAST_PIXELS = 1_000
LEAST_ANGLE_DEG = 5.0  # haematoxylin and eosin lie about 30 degrees apart
LEAST_IN_PLANE = 0.9  # share of the mean density that two stains explain
LEAST_COMPONENT = -0.2  # a dye takes light away from every channel; noise may turn a little
SLIDE_TILES, SLIDE_TILE_PX, SLIDE_MPP = 64, 256, 1.0


@dataclass(frozen=True, slots=True, eq=False)
class StainVectors:
    """How two stains colour a slide.

    Attributes:
        vectors_23: Optical density of one unit of each stain in red, green and blue; unit length,
            the one that takes more red first (haematoxylin before eosin).
        strongest_2: Concentration of each that 99 % of the tissue's pixels do not exceed.
    """

    vectors_23: Floats
    strongest_2: Floats


# The target that Macenko normalisers are by custom given.
REFERENCE = StainVectors(
    np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]]), np.array([1.9705, 1.0308])
)


def estimate_stains(pixels: Pixels, *, path: str = "pixels") -> StainVectors:
    """Find the two stains of an H&E picture by the extreme directions of its optical density.

    The densities of all tissue pixels lie near a plane, that of the two greatest eigenvectors of
    their covariance; the first and the last percentile of their angle in it are the stains.

    Args:
        pixels: (..., 3) uint8 RGB; at least 1,000 pixels of tissue. A few dozen tiles from all
            over a slide say more than its thumbnail, whose pixels mix nuclei and stroma.
        path: Whose pixels they are, for the error.

    Raises:
        StainError: If there is too little tissue, or it does not have two colours.
        ValueError: If the pixels are not (..., 3) uint8.

    Source: Macenko et al. 2009, A method for normalizing histology slides for quantitative
    analysis, ISBI. As its common implementations do, with the natural logarithm, white at 240 and
    the covariance's eigenvectors. Differences from them: angles are taken from the mean density,
    so that none wraps around, and the strongest concentration is that of tissue, not of glass too.
    """
    _refuse_unless_rgb(pixels, "estimate_stains")
    density_P3 = _density(pixels.reshape(-1, 3))
    tissue_P3 = density_P3[(density_P3 >= LEAST_DENSITY).all(axis=1)]
    if len(tissue_P3) < LEAST_PIXELS:
        raise StainError(
            path,
            f"estimate_stains: needs {LEAST_PIXELS} pixels of tissue; got {len(tissue_P3)}. "
            "Give more tiles of the slide, or leave its stains as they are.",
        )
    vectors_23 = _extremes(tissue_P3, path)
    strongest_2 = np.percentile(_unmixed(tissue_P3, vectors_23), STRONGEST_PERCENTILE, axis=0)
    if not (strongest_2 > 0).all():
        raise _not_two_stains(path, f"concentrations reach only {strongest_2.round(3).tolist()}")
    return StainVectors(vectors_23, strongest_2)


def slide_stains(slide: SlideReader, tissue: TissueMask) -> StainVectors:
    """The stains of a slide, from 64 tiles at 1 mpp spread evenly over the order of its grid.

    Args:
        slide: An open slide with a resolution.
        tissue: Where its tissue is.

    Raises:
        StainError: If there is too little tissue, or it does not have two colours.
        SlideError: If a tile cannot be read.
    """
    mpp = max(SLIDE_MPP, slide.mpp)
    spec = TileSpec(size_px=SLIDE_TILE_PX, mpp=mpp, stride_px=SLIDE_TILE_PX, min_tissue=0.5)
    corners_L2 = tile_grid(
        tissue.mask, mask_mpp=tissue.mpp, slide_mpp=slide.mpp, spec=spec, slide_size=slide.size
    )
    if len(corners_L2) == 0:
        msg = "slide_stains: needs a tile that is half tissue; got none. Look at its tissue mask."
        raise StainError(slide.path, msg)
    chosen = np.unique(np.linspace(0, len(corners_L2) - 1, SLIDE_TILES).round().astype(int))
    tiles = [
        read_tile(slide, x, y, size_px=SLIDE_TILE_PX, mpp=mpp)
        for x, y in corners_L2[chosen].tolist()
    ]
    return estimate_stains(np.stack(tiles), path=slide.path)


class MacenkoNormaliser:
    """Gives pixels the stains of a target: the same concentrations, other colours and strengths.

    Args:
        target: The stains wanted; by default those that published normalisers share.

    Source: Macenko et al. 2009, as ``estimate_stains``.
    """

    def __init__(self, target: StainVectors = REFERENCE) -> None:
        self.target = target

    def __call__(self, pixels: Pixels, source: StainVectors) -> Pixels:
        """The pixels as the target's stains would show them.

        Args:
            pixels: (..., 3) uint8 RGB.
            source: Their own stains; best of the whole slide, so that its tiles stay comparable.

        Returns:
            Pixels of the same shape, uint8. What neither stain explains is left out.

        Raises:
            ValueError: If the pixels are not (..., 3) uint8.
        """
        _refuse_unless_rgb(pixels, "MacenkoNormaliser")
        gain_2 = self.target.strongest_2 / source.strongest_2
        change_33 = np.linalg.pinv(source.vectors_23) * gain_2 @ self.target.vectors_23
        density = _density(pixels) @ change_33.astype(np.float32)
        shown = np.rint(np.clip(WHITE * np.exp(-density), 0, 255))
        return np.asarray(shown, np.uint8)


_DENSITY_OF_BYTE = -np.log((np.arange(256, dtype=np.float64) + 1) / WHITE).astype(np.float32)


def _density(pixels: Pixels) -> NDArray[np.float32]:
    return _DENSITY_OF_BYTE[pixels]


def _unmixed(density_P3: NDArray[np.float32], vectors_23: Floats) -> Floats:
    """Concentrations, (P, 2), that explain the densities best (least squares)."""
    unmixed: Floats = density_P3 @ np.linalg.pinv(vectors_23)
    return unmixed


def _extremes(tissue_P3: NDArray[np.float32], path: str) -> Floats:
    _, axes = np.linalg.eigh(np.cov(tissue_P3.T, dtype=np.float64))
    plane_32 = axes[:, 1:]
    mean_3 = tissue_P3.mean(axis=0, dtype=np.float64)
    ahead_2 = mean_3 @ plane_32
    if np.linalg.norm(ahead_2) < LEAST_IN_PLANE * np.linalg.norm(mean_3):
        raise _not_two_stains(path, "colours vary in other ways")
    ahead_2 /= np.linalg.norm(ahead_2)
    turn_22 = np.array([ahead_2, (-ahead_2[1], ahead_2[0])])
    along_P, across_P = (tissue_P3 @ (plane_32 @ turn_22.T).astype(np.float32)).T
    angles = np.percentile(
        np.arctan2(across_P, along_P), [ANGLE_PERCENTILE, 100 - ANGLE_PERCENTILE]
    )
    between = np.degrees(angles[1] - angles[0])
    if between < LEAST_ANGLE_DEG:
        raise _not_two_stains(path, f"they lie {between:.1f} degrees apart")
    vectors_23 = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ turn_22 @ plane_32.T
    if vectors_23.min() < LEAST_COMPONENT:
        raise _not_two_stains(path, f"their densities would be {vectors_23.round(2).tolist()}")
    return np.asarray(vectors_23[np.argsort(-vectors_23[:, 0])], np.float64)


def _not_two_stains(path: str, found: str) -> StainError:
    return StainError(
        path,
        f"estimate_stains: needs the colours of two stains; {found}. "
        "Take more of the slide, or leave its stains as they are.",
    )


def _refuse_unless_rgb(pixels: Pixels, who: str) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim < 2 or pixels.shape[-1] != 3:
        msg = f"{who}: needs (..., 3) uint8 RGB; got {pixels.shape} {pixels.dtype}."
        raise ValueError(msg)
