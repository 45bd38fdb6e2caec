"""The bags of a run: which are trained on, which are held out, and in what parts they come."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from anlage.bags.loader import BagBatch, BagCache, BagSet, bag_batches, step_draws
from anlage.bags.slide_labels import SlideLabels
from anlage.distributed import ALONE, Ranks
from anlage.errors import BagError, CatalogueError
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.networks import MaskedBags, masked_bags
from anlage.training.slide_pretraining.state import SlideTraining
from anlage.training.slide_pretraining.views import FEWEST, draw_view

LOGGER = logging.getLogger(__name__)
SPLIT = "split"


@dataclass(frozen=True, eq=False)
class ChosenBags:
    """The bags of a run.

    Attributes:
        bags: All that could be opened.
        train: Slides that are trained on, sorted.
        held_out: Slides that the masked error is measured on, of no patient of ``train``.
        patient_of: Whose each slide is; the slide itself where nobody said.
        grid_um: Edge of a cell, micrometres.
        n_small: Bags left out because they have fewer than two tiles.
        cache: Bags in memory, for training and looks.
        others: Slides that are neither trained on nor measured, with two tiles or more.
        lost: Of bags among all these that are not there any more, the content hash.
    """

    bags: BagSet
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    patient_of: Mapping[str, str]
    grid_um: float
    n_small: int
    cache: BagCache
    others: tuple[str, ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def usable(self) -> tuple[str, ...]:
        """Those of ``train`` that are there."""
        return tuple(slide for slide in self.train if slide not in self.lost)

    @property
    def measured(self) -> tuple[str, ...]:
        """Those of ``held_out`` that are there."""
        return tuple(slide for slide in self.held_out if slide not in self.lost)

    def in_place_of(self, slide: str, *, seed: int, g: int) -> str:
        """The slide that draw g takes: itself, or any other where it is lost."""
        if slide not in self.lost:
            return slide
        return self.usable[int(_hash(seed, f"draw {g}"), 16) % len(self.usable)]

    def content_of(self, slide: str) -> str:
        """The content hash of a bag, lost or not."""
        return self.lost.get(slide) or self.bags.facts[slide].content_sha256

    def batches(
        self, draws: Iterable[Sequence[tuple[int, str]]], *, threads: int
    ) -> Generator[BagBatch]:
        """The bags of draws, packed."""
        return bag_batches(
            self.bags, draws, grid_um=self.grid_um, threads=threads, cache=self.cache
        )

    @property
    def n_tiles(self) -> dict[str, int]:
        """Tiles of each bag."""
        return dict(zip(self.bags.slide_ids, self.bags.n_tiles, strict=True))


def choose_bags(
    config: SlidePretrainConfig,
    bags: BagSet,
    table: SlideLabels | None = None,
    *,
    lost: Mapping[str, str] | None = None,
    ranks: Ranks = ALONE,
) -> ChosenBags:
    """Part bags into those that are trained on and those that are held out, by patient.

    Args:
        config: The recipe.
        bags: The bags.
        table: Whose the slides are, and their ``split``; without it each is a patient of its own.
        lost: Bags that the run began with and that are not among ``bags``: the choice is still the
            one that it began with.
        ranks: Processes of this machine share the memory for bags.

    Returns:
        The choice: a function of seed, slides and patients.

    Raises:
        BagError: If no bag is left to train on, or the held-out share leaves none.
        CatalogueError: If a split is asked for and the table is not there, or has no such column or
            value, or has slides of a patient inside and outside a split.
    """
    sizes = dict(zip(bags.slide_ids, bags.n_tiles, strict=True))
    lost = {} if lost is None else lost
    large = sorted({*lost, *(slide for slide, n_tiles in sizes.items() if n_tiles >= FEWEST)})
    if small := sorted(sizes.keys() - set(large)):
        told = "%d bags have fewer than %d tiles and are left out: %s"
        LOGGER.warning(told, len(small), FEWEST, ", ".join(small[:5]))
    known = {} if table is None else table.patient_of
    patient_of = {slide: known.get(slide, slide) for slide in large}
    split_of = _splits(config, bags, table, large)
    held = _held_out(config, patient_of, split_of)
    wanted = config.bags.split
    train = tuple(s for s in large if s not in held and (wanted is None or split_of[s] == wanted))
    inside = {*train} if wanted is None else {s for s in large if split_of[s] == wanted}
    outside = held if wanted is None else {*large} - inside
    _refuse_shared_patients(bags, patient_of, inside, outside)
    if not set(train) - lost.keys():
        told = f"{len(bags.slide_ids)} bags, {len(small)} of them too small, {len(held)} held out"
        msg = f"needs a bag to train on; got {told}. Embed more slides, or change bags.split."
        raise BagError(bags.folder, msg)
    measured = sorted(held, key=lambda slide: _hash(config.seed, slide))[: config.held_out.most]
    return ChosenBags(
        bags=bags,
        train=train,
        held_out=tuple(sorted(measured)),
        patient_of=patient_of,
        grid_um=_grid_um(config, bags),
        n_small=len(small),
        cache=BagCache(bags, ranks=ranks),
        others=tuple(sorted({*large} - {*train, *measured})),
        lost=lost,
    )


def _splits(
    config: SlidePretrainConfig, bags: BagSet, table: SlideLabels | None, slides: Sequence[str]
) -> dict[str, str | None]:
    """The split of each slide, where the recipe asks for one; None of a slide without a row."""
    asked = [value for value in (config.bags.split, config.held_out.split) if value is not None]
    if not asked:
        return {}
    if table is None:
        msg = f"needs a table with the column {SPLIT!r}, as split={asked[0]!r} is asked for; got "
        raise CatalogueError(bags.folder, f"{msg}none. Name it with --watch.")
    found = dict(zip(table.slide_ids, table.column(SPLIT), strict=True))
    there = set(found.values())
    for value in asked:
        if value not in there:
            known = ", ".join(sorted(str(split) for split in there))
            raise CatalogueError(table.path, f"needs slides of split {value!r}; got {known}.")
    return {slide: found.get(slide) for slide in slides}


def _held_out(
    config: SlidePretrainConfig,
    patient_of: Mapping[str, str],
    split_of: Mapping[str, str | None],
) -> set[str]:
    asked = config.held_out
    if asked.split is not None:
        return {slide for slide in patient_of if split_of[slide] == asked.split}
    wanted = config.bags.split
    free = [slide for slide in patient_of if wanted is None or split_of[slide] == wanted]
    patients = sorted({patient_of[slide] for slide in free}, key=lambda p: _hash(config.seed, p))
    n_held = round(asked.share * len(patients))
    if asked.share > 0 and len(patients) > 1:
        n_held = min(max(n_held, 1), len(patients) - 1)
    chosen = set(patients[:n_held])
    return {slide for slide in free if patient_of[slide] in chosen}


def _refuse_shared_patients(
    bags: BagSet, patient_of: Mapping[str, str], inside: set[str], outside: set[str]
) -> None:
    shared = {patient_of[s] for s in inside} & {patient_of[s] for s in outside}
    if shared:
        msg = f"needs each patient in one split; got {len(shared)} in both, such as {min(shared)}. "
        raise CatalogueError(bags.folder, f"{msg}Correct the column {SPLIT!r}.")


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\t{name}".encode()).hexdigest()


def _grid_um(config: SlidePretrainConfig, bags: BagSet) -> float:
    made = bags.attributes
    step_px = made.tile_px if made.stride_px is None else made.stride_px
    return config.bags.grid_um or step_px * made.mpp


def step_parts(
    config: SlidePretrainConfig,
    chosen: ChosenBags,
    *,
    first_step: int,
    last_step: int,
    ranks: Ranks,
) -> Iterator[list[tuple[int, str]]]:
    """This rank's draws, part after part: ``accumulate`` of them a step."""
    size = config.batch_size // (ranks.world_size * config.accumulate)
    for draws in step_draws(
        chosen.train,
        seed=config.seed,
        batch_size=config.batch_size,
        first_step=first_step,
        last_step=last_step,
    ):
        for number in range(config.accumulate):
            start = (ranks.rank * config.accumulate + number) * size
            yield [
                (g, chosen.in_place_of(slide, seed=config.seed, g=g))
                for g, slide in draws[start : start + size]
            ]


def drawn_parts(
    training: SlideTraining, chosen: ChosenBags, *, threads: int
) -> Generator[MaskedBags]:
    """The parts of the steps that are left, cropped, moved, mirrored and masked."""
    config = training.config
    draws = step_parts(
        config, chosen, first_step=training.step, last_step=training.steps, ranks=training.ranks
    )
    for batch in chosen.batches(draws, threads=threads):
        yield viewed(config, batch, is_pinned=training.device.type == "cuda")


def step_again(training: SlideTraining, chosen: ChosenBags) -> Iterator[MaskedBags]:
    """The parts of the step that the run is at, once more."""
    with closing(drawn_parts(training, chosen, threads=1)) as drawn:
        yield from islice(drawn, training.config.accumulate)


def viewed(config: SlidePretrainConfig, batch: BagBatch, *, is_pinned: bool = False) -> MaskedBags:
    """A batch as its draws see it, in pinned memory or not."""
    firsts = [0]
    for length in batch.lengths[:-1]:
        firsts.append(firsts[-1] + length)
    cell_T2 = batch.cell_T2.numpy()
    views = [
        draw_view(
            cell_T2[first : first + length],
            seed=config.seed,
            g=g,
            views=config.views,
            mask_ratio=config.mask_ratio,
            max_tiles=config.bags.max_tiles,
        )
        for g, first, length in zip(batch.numbers, firsts, batch.lengths, strict=True)
    ]
    return masked_bags(batch, views, is_pinned=is_pinned)
