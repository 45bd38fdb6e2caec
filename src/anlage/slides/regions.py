"""Many tiles of one slide, of which every touched native tile is read and decoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from anlage.errors import SlideError
from anlage.geometry import level_px
from anlage.slides.colour import Colour, slide_converter
from anlage.slides.levels import Decode, TileSource, TileWindow, choose_source, resample
from anlage.slides.reader import SlideReader
from anlage.slides.rectangle import Outcome, Rectangle

Reads = Callable[[], Iterator[tuple[int, Outcome]]]


class PendingTiles:
    """Tiles whose bytes are on their way; ``read`` once gives their pixels.

    Args:
        slide: The slide they are of.
        windows: The tiles.
        decode: As for ``read_tile``.
        colour: "stored", or "srgb" by the slide's own profile, where it has one.
    """

    def __init__(
        self, slide: SlideReader, windows: Sequence[TileWindow], *, decode: Decode, colour: Colour
    ) -> None:
        self._windows = windows
        self._tiles: dict[int, Outcome] = {}
        self._convert = slide_converter(slide, colour)
        self._reads = [
            (sources, _start(slide, windows, sources))
            for sources in self._sources_by_level(slide, decode)
        ]

    def read(self) -> list[Outcome]:
        """Each tile, (size_px, size_px, 3) uint8 RGB, or the SlideError that it alone met."""
        for sources, read in self._reads:
            numbers = list(sources)
            for found, outcome in read():
                number = numbers[found]
                self._tiles[number] = (
                    outcome
                    if isinstance(outcome, SlideError)
                    else self._tile(outcome, sources[number], self._windows[number])
                )
        return [self._tiles[number] for number in range(len(self._windows))]

    def _tile(
        self, pixels: NDArray[np.uint8], source: TileSource, window: TileWindow
    ) -> NDArray[np.uint8]:
        tile = resample(pixels, ratio=source.ratio, size_px=window.size_px)
        return tile if self._convert is None else self._convert(tile)

    def _sources_by_level(self, slide: SlideReader, decode: Decode) -> list[dict[int, TileSource]]:
        """Number and source of the windows that share a level, hence its finest reduction."""
        by_level: dict[int, dict[int, TileSource]] = {}
        for number, window in enumerate(self._windows):
            try:
                source = choose_source(slide, size_px=window.size_px, mpp=window.mpp, decode=decode)
            except SlideError as error:
                self._tiles[number] = error
            else:
                by_level.setdefault(source.level, {})[number] = source
        for sources in by_level.values():
            finest = min(source.reduce for source in sources.values())
            for number, source in sources.items():
                if source.reduce != finest:
                    window = self._windows[number]
                    sources[number] = choose_source(
                        slide,
                        size_px=window.size_px,
                        mpp=window.mpp,
                        decode=decode,
                        reduce=finest,
                    )
        return list(by_level.values())


def _start(
    slide: SlideReader, windows: Sequence[TileWindow], sources: dict[int, TileSource]
) -> Reads:
    level, reduce = next((source.level, source.reduce) for source in sources.values())
    downsample = slide.levels[level].downsample * reduce
    places = [
        Rectangle(
            level_px(windows[number].x, downsample=downsample),
            level_px(windows[number].y, downsample=downsample),
            source.edge_px,
            source.edge_px,
        )
        for number, source in sources.items()
    ]
    return slide.start_regions(places, level=level, reduce=reduce)


def start_tiles(
    slide: SlideReader,
    windows: Sequence[TileWindow],
    *,
    decode: Decode = "scaled",
    colour: Colour = "stored",
) -> PendingTiles:
    """Begin to read tiles of one slide: the bytes of a remote one are on their way at once.

    Args:
        slide: Open slide that knows its resolution.
        windows: The tiles, of any places, sizes and resolutions.
        decode: As for ``read_tile``.
        colour: "stored" leaves the pixels as they are; "srgb" converts them by the slide's own
            colour profile, where it has one.

    Returns:
        What is to be read: each tile as ``read_tile`` gives it, bit for bit, unless tiles of
        several resolutions come from one level; then the finest reduction serves them all.

    Raises:
        ValueError: If a window's size or resolution is not above 0.
        SlideError: If the slide has been closed, or the colour profile to be used is damaged.
    """
    return PendingTiles(slide, windows, decode=decode, colour=colour)


def read_tiles(
    slide: SlideReader,
    windows: Sequence[TileWindow],
    *,
    decode: Decode = "scaled",
    colour: Colour = "stored",
) -> list[Outcome]:
    """``start_tiles`` and then ``PendingTiles.read``.

    Returns:
        For each window its tile, (size_px, size_px, 3) uint8 RGB, or the SlideError it met:
        a damaged native tile costs the windows that touch it, and no others.
    """
    return start_tiles(slide, windows, decode=decode, colour=colour).read()
