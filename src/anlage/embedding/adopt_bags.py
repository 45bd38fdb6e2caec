"""Take over features that TRIDENT or CLAM made, after embedding some of the tiles again.

Shape suffixes: K tiles compared, D embedding width, S tile edge.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anlage.bags.bag import Bag, as_stored
from anlage.bags.convert import SourceFile
from anlage.bags.foreign import EncoderIdentity, Given, bag_of
from anlage.bags.peer_folders import PeerFolder, open_peer_folder
from anlage.bags.store import Store, bag_place, write_bag
from anlage.embedding.settings import departures
from anlage.encoders.embed_batch import embed_batches
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import AnlageError, SlideError
from anlage.geometry import Size
from anlage.progress import meter
from anlage.slides.levels import TileWindow
from anlage.slides.masks import SummedArea
from anlage.slides.regions import read_tiles
from anlage.slides.tissue.user_masks import user_mask
from anlage.tiles.spec import TileSpec

LOGGER = logging.getLogger(__name__)
MEDIAN_AT_LEAST, WORST_AT_LEAST = 0.99, 0.95  # cosines; see docs/how_to/convert_and_adopt_bags.md
CHECK_BATCH = 16
FEWEST = 2  # tiles that a verdict needs


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near embeddings made anew are to those in the files.

    Attributes:
        cosines_K: (K,) cosine of each tile's two embeddings.
        apart: Median cosine of the embeddings in the files of two different tiles: what the numbers
            above would be if places or slides were mixed up.
        slide_ids: (K) whose tiles they are.
        reason: Why nothing could be compared; None if it could.
    """

    cosines_K: NDArray[np.float64]
    apart: float
    slide_ids: list[str]
    reason: str | None = None

    @property
    def median(self) -> float:
        """Median cosine; 0 where there is none."""
        return float(np.median(self.cosines_K)) if len(self.cosines_K) else 0.0

    @property
    def worst(self) -> float:
        """Lowest cosine; 0 where there is none."""
        return float(self.cosines_K.min(initial=1.0)) if len(self.cosines_K) else 0.0

    @property
    def agrees(self) -> bool:
        """Whether it is the same encoder on the same tiles, as far as this can tell."""
        is_near = self.median >= MEDIAN_AT_LEAST and self.worst >= WORST_AT_LEAST
        return self.reason is None and is_near and self.median > self.apart

    def as_line(self) -> str:
        """The numbers and the verdict in a sentence."""
        verdict = "they agree" if self.agrees else "they do NOT agree"
        if self.reason is not None:
            return f"{verdict}: {self.reason}"
        numbers = f"cosine median {self.median:.4f}, worst {self.worst:.4f}"
        apart = f"different tiles {self.apart:.4f}"
        slides = f"{len(self.cosines_K)} tiles of {len(set(self.slide_ids))} slides"
        return f"{verdict}: {numbers} over {slides} ({apart})"


@dataclass(frozen=True, slots=True)
class AdoptResult:
    """What became of another tool's features.

    Attributes:
        tool: TRIDENT or CLAM.
        agreement: The comparison; None if no encoder was named.
        done: Slides whose bag was written.
        refused: Files without a bag, with the reason.
        outside: By slide_id, how many of its tiles touch none of the contours beside them.
    """

    tool: str
    agreement: Agreement | None = None
    done: list[str] = field(default_factory=list)
    refused: list[AnlageError] = field(default_factory=list)
    outside: dict[str, int] = field(default_factory=dict)


def adopt_bags(
    folder: str | Path,
    output: str | Path,
    *,
    given: Given,
    encoder: TileEncoder | None = None,
    coords: Path | None = None,
    n_tiles: int = 50,
    seed: int = 0,
    store: Store | None = None,
) -> AdoptResult:
    """Write bags of what TRIDENT or CLAM made, if an encoder named gives the same embeddings.

    With ``encoder``, tiles spread over the slides are read and embedded again; unless the cosines'
    median is at least 0.99 and their worst 0.95, nothing is written. The bags then carry the
    encoder's fingerprint. Without one they carry the name that the files or the user give.

    Args:
        folder: Output of TRIDENT (job, grid or features folder) or CLAM.
        output: Folder or URL for the bags.
        given: The catalogue, and what the files leave out; its encoder is filled in here.
        encoder: What should have made the features.
        coords: Folder with the files of coordinates, where they are elsewhere.
        n_tiles: Tiles to embed again, at least 1.
        seed: Chooses them.
        store: Format of the bags; HDF5 in folders and Zarr at URLs if None.

    Raises:
        BagError: If there is nothing to adopt, or the output cannot take it.
        OSError: If the disk is full or refuses.
    """
    peer = open_peer_folder(folder, coords=coords)
    result = AdoptResult(peer.tool)
    if encoder is not None:
        name = given.encoder_name or peer.encoder_name or ""
        given = replace(given, encoder=_identity(encoder, name))
        agreement = _compare(peer, given, encoder, n_tiles=n_tiles, seed=seed)
        result = replace(result, agreement=agreement)
        if not agreement.agrees:
            return result
    with meter("adopt", total=len(peer.files), unit="bags") as progress:
        for file in peer.files:
            try:
                bag = _bag(peer, file, given, encoder)
                _note_outside(peer, bag, result)
                write_bag(bag_place(output, file.slide_id, store=store), bag)
                result.done.append(file.slide_id)
            except AnlageError as error:
                result.refused.append(error)
            progress.advance()
    return result


def _identity(encoder: TileEncoder, name: str) -> EncoderIdentity:
    config = encoder.config
    return EncoderIdentity(
        fingerprint=encoder.fingerprint,
        name=name,
        mean=config.mean,
        std=config.std,
        colour=config.colour,
        tile_px=config.tile_px,
    )


def _bag(peer: PeerFolder, file: SourceFile, given: Given, encoder: TileEncoder | None) -> Bag:
    bag = as_stored(file.place, bag_of(file.path, peer.read(file), given))
    if encoder is None:
        return bag
    made = bag.attributes
    spec = TileSpec(size_px=made.tile_px, mpp=made.mpp, stride_px=made.stride_px or made.tile_px)
    told = "; ".join(departures(encoder.config, spec, encoder.config.colour))
    return replace(bag, attributes=replace(made, departures=told))


def _compare(
    peer: PeerFolder, given: Given, encoder: TileEncoder, *, n_tiles: int, seed: int
) -> Agreement:
    """Embed tiles of some slides again, and compare."""
    theirs: list[NDArray[np.float64]] = []
    ours: list[NDArray[np.float64]] = []
    slide_ids: list[str] = []
    faults: list[AnlageError] = []
    for bag, rows in _chosen(peer, given, encoder, faults=faults, n_tiles=n_tiles, seed=seed):
        if bag.features.shape[1] != encoder.width:
            reason = f"{peer.tool}'s embeddings have width {bag.features.shape[1]}"
            return _nothing(f"{reason}, the encoder's {encoder.width}")
        try:
            made = _embedded(bag, rows, given, encoder)
        except AnlageError as error:
            faults.append(error)
            continue
        theirs.append(bag.features[rows].astype(np.float64))
        ours.append(made.astype(np.float64))
        slide_ids += [bag.slide_id] * len(rows)
    if len(slide_ids) < FEWEST:  # of one tile alone it cannot be told whether places are mixed up
        return _nothing(str(faults[0]) if faults else "there are no two tiles to compare")
    theirs_KD, ours_KD = _unit(np.concatenate(theirs)), _unit(np.concatenate(ours))
    among = theirs_KD @ theirs_KD.T
    others = among[~np.eye(len(among), dtype=bool)]
    apart = float(np.median(others)) if len(others) else -1.0
    return Agreement((theirs_KD * ours_KD).sum(axis=1), apart, slide_ids)


def _nothing(reason: str) -> Agreement:
    return Agreement(np.empty(0), -1.0, [], reason)


def _unit(rows_KD: NDArray[np.float64]) -> NDArray[np.float64]:
    length_K1 = np.linalg.norm(rows_KD, axis=1, keepdims=True)
    return np.asarray(rows_KD / np.maximum(length_K1, 1e-12))


def _chosen(
    peer: PeerFolder,
    given: Given,
    encoder: TileEncoder,
    *,
    faults: list[AnlageError],
    n_tiles: int,
    seed: int,
) -> Iterator[tuple[Bag, NDArray[np.int64]]]:
    """Bags and the rows of them to compare: as many slides as may be, until there are enough."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(peer.files))
    left = n_tiles
    for k, number in enumerate(order.tolist()):
        try:
            bag = _bag(peer, peer.files[number], given, encoder)
        except AnlageError as error:
            faults.append(error)
            continue
        share = -(-left // (len(order) - k))
        rows = generator.permutation(len(bag.coords))[: min(share, left)]
        if len(rows):
            left -= len(rows)
            yield bag, np.sort(rows)
        if left <= 0:
            return


def _embedded(
    bag: Bag, rows: NDArray[np.int64], given: Given, encoder: TileEncoder
) -> NDArray[Any]:
    """Embeddings, (K, D), of tiles that are read from the slide again."""
    assert given.slides is not None  # bag_of has refused it otherwise
    made = bag.attributes
    windows = [
        TileWindow(x, y, size_px=made.tile_px, mpp=made.mpp) for x, y in bag.coords[rows].tolist()
    ]
    with given.slides.open_slide(bag.slide_id) as slide:
        tiles = read_tiles(slide, windows, colour=encoder.config.colour)
    pixels = torch.from_numpy(np.stack([_pixels(tile) for tile in tiles]))
    pixels_K3SS = pixels.permute(0, 3, 1, 2).contiguous()
    batches = torch.split(pixels_K3SS, CHECK_BATCH)
    return torch.cat(list(embed_batches(encoder, batches, batch_size=CHECK_BATCH))).numpy()


def _pixels(tile: NDArray[np.uint8] | SlideError) -> NDArray[np.uint8]:
    if isinstance(tile, SlideError):
        raise tile
    return tile


def _note_outside(peer: PeerFolder, bag: Bag, result: AdoptResult) -> None:
    """Count the tiles that touch none of the tissue in the contours that came with them."""
    if peer.contours is None or not len(bag.coords):
        return
    made = bag.attributes
    edge = made.tile_level0_px
    size = Size(made.slide_width_px, made.slide_height_px)
    mask_mpp = edge * made.slide_mpp / 16  # of which a tile has 16 across
    tissue = user_mask(
        peer.contours,
        bag.slide_id,
        slide_size=size,
        slide_mpp=made.slide_mpp,
        mask_mpp=mask_mpp,
    )
    if tissue is None:
        return
    left, top = (bag.coords * made.slide_mpp / tissue.mpp).T
    edge_mask_px = edge * made.slide_mpp / tissue.mpp
    share = SummedArea(tissue.mask).fraction(left, top, left + edge_mask_px, top + edge_mask_px)
    n_outside = int((share == 0).sum())
    if n_outside:
        result.outside[bag.slide_id] = n_outside


def verdict_lines(result: AdoptResult) -> Sequence[str]:
    """What to tell of a result, one line each, the slides that were refused left out."""
    lines = []
    if result.agreement is None:
        lines.append("not compared with an encoder: name one with --encoder to have that done")
    else:
        lines.append(result.agreement.as_line())
    for slide_id, n_outside in result.outside.items():
        lines.append(f"{slide_id}: {n_outside} tiles touch none of the contours beside them")
    return lines
