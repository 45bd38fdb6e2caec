"""One encoder, on one or several devices, and the folder that its bags go to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anlage.bags.store import Bag, BagAttributes, bag_place, write_bag
from anlage.embedding.claims import Claims
from anlage.embedding.encoder_facts import token_shape
from anlage.embedding.growing_bag import GrowingBag, SlideJob
from anlage.embedding.patch_token_file import SUFFIX, PatchTokenFile
from anlage.embedding.slide_plan import (
    Grid,
    Plan,
    bag_attributes,
    bag_made_before,
)
from anlage.encoders.embed_batch import QueuedTiles, queue_tiles
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import BagError, EncoderError
from anlage.slides.catalogue import Catalogue, SlideRow
from anlage.slides.indexing.found_slide import Refused
from anlage.slides.storage.location import is_remote

LOGGER = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class BagTarget:
    """What becomes of the slides in the hands of one encoder.

    Attributes:
        name: The encoder's, for messages; empty where there is only one.
        replicas: The encoder, once a device.
        output: Folder of its bags, or a URL.
        grid: The tiles it gets.
        with_tokens: Whether patch tokens are written as well.
        claims: On the slides of ``output``.
        plan: What is to be done in it.
        done: Slides embedded by this run.
        empty: Slides that this run found to have no tile; their bag is there and empty.
        elsewhere: Slides that another run is embedding.
        refused: Slides without a bag, with the reason.
        n_tiles: Tiles embedded by this run.
    """

    name: str
    replicas: Sequence[TileEncoder]
    output: str | Path
    grid: Grid
    with_tokens: bool
    claims: Claims
    plan: Plan = field(default_factory=Plan)
    done: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    n_tiles: int = 0

    def __post_init__(self) -> None:
        encoder, size_px = self.encoder, self.grid.spec.size_px
        if self.with_tokens and is_remote(str(self.output)):
            raise BagError(
                self.output, "cannot take patch tokens. Name a folder, or leave them out."
            )
        if self.with_tokens and encoder.patch_px is None:
            message = "has no patch tokens. Leave out --patch-tokens, or choose a transformer."
            raise EncoderError(self.name or "the encoder", message)
        if size_px == encoder.config.tile_px:
            return
        try:  # before a slide is read: not every network takes every size
            encoder.embed(torch.zeros((1, 3, size_px, size_px), dtype=torch.uint8))
        except (ValueError, RuntimeError, AssertionError) as error:
            message = f"cannot take tiles of {size_px} px: {error} Leave out --tile-px."
            raise EncoderError(self.name or "the encoder", message) from error

    @property
    def encoder(self) -> TileEncoder:
        """The encoder on its first device."""
        return self.replicas[0]

    @property
    def token_shape(self) -> tuple[int, int]:
        """(N, E) of a tile's patch tokens."""
        return token_shape(self.encoder, tile_px=self.grid.spec.size_px)

    @property
    def devices(self) -> str:
        """Where the encoder runs, for the record."""
        return ",".join(str(replica.device) for replica in self.replicas)

    def queue(self, device: int, pixels_B3SS: Tensor, *, batch_size: int) -> QueuedTiles:
        """Begin to embed a batch on a device."""
        encoder = self.replicas[device]

        def compute(pixels: Tensor) -> tuple[Tensor, ...]:
            if not self.with_tokens:
                return (encoder.embed(pixels),)
            embedding_BD, patches_BNE = encoder.embed_with_patches(pixels)
            return embedding_BD, patches_BNE.half()

        return queue_tiles(compute, pixels_B3SS, device=encoder.device, batch_size=batch_size)

    def begin(self, catalogue: Catalogue, row: SlideRow) -> bool:
        """Claim a slide; False if another run has it now, or has made its bag since the plan."""
        if not self.claims.take(row.slide_id):
            self.elsewhere.append(row.slide_id)
            return False
        header = bag_made_before(
            self.output,
            self.attributes(row),
            catalogue,
            row,
            self.grid,
            with_tokens=self.with_tokens,
        )
        if header is None:
            return True
        self.claims.give_back(row.slide_id)
        (self.plan.skipped if len(header.coords) else self.plan.empty).append(row.slide_id)
        return False

    def growing_bag(self, row: SlideRow, n_tiles: int) -> GrowingBag:
        """An empty bag of a slide that ``begin`` has claimed."""
        features_LD = np.empty((n_tiles, self.encoder.width), np.float16)
        if not self.with_tokens:
            return GrowingBag(self, features_LD)
        path = Path(self.output) / f"{row.slide_id}{SUFFIX}"
        return GrowingBag(self, features_LD, PatchTokenFile(path, n_tiles))

    def attributes(self, row: SlideRow, *, icc_profile: str = "") -> BagAttributes:
        """What the bag of a slide says about itself."""
        return bag_attributes(row, self.encoder, self.grid, icc_profile=icc_profile)

    def write(self, job: SlideJob, growing: GrowingBag) -> None:
        """Write a complete bag; its patch tokens before it, so that a bag never lacks them."""
        if growing.tokens is not None:
            growing.tokens.finish(self.token_shape)
        elif not is_remote(str(self.output)):  # those of an earlier bag may be of other tiles
            (Path(self.output) / f"{job.row.slide_id}{SUFFIX}").unlink(missing_ok=True)
        attributes = self.attributes(job.row, icc_profile=job.icc_profile)
        bag = Bag(job.row.slide_id, growing.features_LD, job.corners, attributes)
        write_bag(bag_place(self.output, job.row.slide_id), bag)

    def settle(self, job: SlideJob, growing: GrowingBag, reason: str | None) -> None:
        """Note what became of a slide, and end the claim on it."""
        slide_id, n_tiles = job.row.slide_id, len(job.corners)
        if reason is not None:
            self.refused.append(Refused(job.row.uri, reason))
            of = f" of {self.name}" if self.name else ""
            LOGGER.warning("%s: no bag%s: %s", job.row.uri, of, reason)
        else:
            (self.done if n_tiles else self.empty).append(slide_id)
            self.n_tiles += n_tiles
        growing.discard()
        self.claims.give_back(slide_id)
