from __future__ import annotations

import logging
import weakref
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anlage.errors import TrainingError
from anlage.slides.masks import TissueMask
from anlage.tiles.sampling import (
    SampledSlide,
    TileSampler,
    batch_indices,
    sampler_from_catalogue,
)
from reference.tile_tissue import tissue_of_tile

MAGNIFICATIONS = {0.5: 2.0, 1.0: 1.0}


def slide(name: str, *, weight: float = 1.0, **changed: Any) -> SampledSlide:
    generator = np.random.default_rng(sum(map(ord, name)))
    coarse = generator.random((10, 13)) < 0.5
    mask = np.kron(coarse, np.ones((8, 8), bool))
    fields = {"width": 3290, "height": 2530, "mpp": 0.25, "mask": mask, "mask_mpp": 8.0}
    return SampledSlide(slide_id=name, weight=weight, **{**fields, **changed})


def sampler(*slides: SampledSlide, **changed: Any) -> TileSampler:
    arguments: dict[str, Any] = {
        "seed": 5,
        "size_px": 64,
        "magnifications": MAGNIFICATIONS,
        "min_tissue": 0.6,
        **changed,
    }
    return TileSampler(slides or (slide("a"), slide("b")), **arguments)


def test_same_seed_same_tiles_in_any_order() -> None:
    forwards, backwards = sampler(), sampler()
    expected = [forwards.draw(g) for g in range(50)]
    assert [backwards.draw(g) for g in reversed(range(50))] == expected[::-1]
    assert [sampler(seed=6).draw(g) for g in range(50)] != expected


def test_ranks_and_micro_batches_partition_the_same_samples() -> None:
    whole = batch_indices(7, batch_size=24).tolist()
    for world_size in (1, 2, 3, 4, 8):
        parts = [
            batch_indices(7, batch_size=24 // world_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert np.concatenate(parts).tolist() == whole
    assert whole == list(range(168, 192))


def test_every_tile_lies_inside_and_holds_enough_tissue() -> None:
    slides = [slide("a"), slide("b", mpp=0.2521), slide("c", mask_mpp=8.3)]
    drawing = sampler(*slides)
    seen = set()
    for g in range(600):
        tile = drawing.draw(g)
        source = slides[tile.slide]
        assert tile.slide_id == source.slide_id == drawing.slide_ids[tile.slide]
        per_um = 1 / Fraction(str(source.mpp))
        edge = 64 * Fraction(str(tile.mpp)) * per_um
        assert min(tile.x, tile.y) >= 0
        assert tile.x + edge <= source.width
        assert tile.y + edge <= source.height
        per_mask_px = Fraction(str(source.mask_mpp)) * per_um
        tissue = tissue_of_tile(source.mask, tile.x, tile.y, edge=edge, per_mask_px=per_mask_px)
        assert tissue >= Fraction(6, 10)
        seen.add((tile.slide, tile.mpp))
    assert len(seen) == 6


def chi_square(counts: list[int], shares: list[float]) -> float:
    expected = np.array(shares) / np.sum(shares) * np.sum(counts)
    return float((((np.array(counts) - expected) ** 2) / expected).sum())


def test_weights_are_honoured() -> None:
    sparse = slide("little tissue")
    only_corner = np.zeros_like(sparse.mask)
    only_corner[:10, :10] = True
    slides = (slide("a", weight=3), replace(sparse, mask=only_corner, weight=2), slide("c"))
    drawing = sampler(*slides)
    tiles = [drawing.draw(g) for g in range(6000)]
    by_slide = [sum(t.slide == i for t in tiles) for i in range(3)]
    assert chi_square(by_slide, [3, 2, 1]) < 13.8  # 2 degrees, p = 0.001
    by_mpp = [sum(t.mpp == mpp for t in tiles) for mpp in (0.5, 1.0)]
    assert chi_square(by_mpp, [2, 1]) < 10.8  # 1 degree, p = 0.001


def test_a_slide_without_weight_is_never_drawn() -> None:
    drawing = sampler(slide("a", weight=0), slide("b"))
    assert {drawing.draw(g).slide_id for g in range(100)} == {"b"}


def test_another_attempt_is_another_tile_and_stays_the_same() -> None:
    drawing = sampler()
    attempts = [drawing.draw(9, attempt=k) for k in range(20)]
    assert len({(t.slide, t.x, t.y, t.mpp) for t in attempts}) == 20
    assert [t.attempt for t in attempts] == list(range(20))
    assert {t.slide for t in attempts} == {0, 1}
    assert [sampler().draw(9, attempt=k) for k in range(20)] == attempts


def test_unusable_slides_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    empty = replace(slide("empty"), mask=np.zeros((80, 104), bool))
    small = slide("small", width=200, height=300, mask=np.ones((10, 7), bool))
    coarse = slide("coarse", mpp=0.6, mask=np.ones((190, 247), bool))
    cut = replace(slide("cut"), mask=np.ones((80, 50), bool))
    with caplog.at_level(logging.WARNING):
        drawing = sampler(slide("a"), empty, small, coarse, cut)
    named = {(u.slide_id, u.mpp): u.reason for u in drawing.unusable}
    assert set(named) == {
        *(("empty", 0.5), ("empty", 1.0), ("small", 1.0), ("coarse", 0.5)),
        *(("cut", 0.5), ("cut", 1.0)),
    }
    assert "no place holds 0.6 tissue" in named["empty", 0.5]
    assert "256 pixels wide, the slide 200 x 300" in named["small", 1.0]
    assert "coarser, 0.6 mpp" in named["coarse", 0.5]
    assert "covers the slide" in named["cut", 0.5]
    assert all(name in caplog.text for name in ("empty", "small", "coarse", "cut"))
    drawn = {(drawing.draw(g).slide_id, drawing.draw(g).mpp) for g in range(200)}
    assert drawn == {("a", 0.5), ("a", 1.0), ("small", 0.5), ("coarse", 1.0)}


def test_a_slide_slightly_coarser_than_asked_is_used() -> None:
    assert sampler(slide("a", mpp=0.509, mask=np.ones((180, 220), bool))).unusable == []


def test_no_usable_slide_is_refused_with_the_reason() -> None:
    empty = replace(slide("empty"), mask=np.zeros((80, 104), bool))
    with pytest.raises(TrainingError, match=r"empty: needs a slide .*no place holds.*Lower min_ti"):
        sampler(empty)


@pytest.mark.parametrize(
    ("slides", "changed"),
    [
        ([slide("a"), slide("a")], {}),
        ([slide("a", weight=-1)], {}),
        ([slide("a", weight=0)], {}),
        ([slide("a", weight=float("nan"))], {}),
        ([slide("a")], {"size_px": 0}),
        ([slide("a")], {"min_tissue": 1.5}),
        ([slide("a")], {"magnifications": {}}),
        ([slide("a")], {"magnifications": {0.5: 0.0}}),
        ([slide("a")], {"magnifications": {-0.5: 1.0}}),
    ],
)
def test_settings_out_of_range_are_refused(
    slides: list[SampledSlide], changed: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"TileSampler: needs .*; got .*\. Correct"):
        sampler(*slides, **changed)


def test_no_slide_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slide; got 0"):
        TileSampler([], seed=0, size_px=4, magnifications={0.5: 1.0}, min_tissue=0)


class FakeCatalogue:
    def rows(self) -> list[Any]:
        names = ("slide_id", "width", "height", "mpp")
        rows = [{n: getattr(slide(name), n) for n in names} for name in ("a", "b")]
        return [SimpleNamespace(**row) for row in rows]

    def mask(self, slide_id: str) -> TissueMask:
        return TissueMask(slide(slide_id).mask, 8.0)


def from_catalogue(**changed: Any) -> TileSampler:
    settings = {"seed": 5, "size_px": 64, "magnifications": MAGNIFICATIONS, "min_tissue": 0.6}
    return sampler_from_catalogue(FakeCatalogue(), **settings, **changed)  # type: ignore[arg-type]


def test_a_catalogue_gives_the_same_tiles() -> None:
    assert [from_catalogue().draw(g) for g in range(30)] == [sampler().draw(g) for g in range(30)]
    weighted = from_catalogue(weights={"b": 0.0})
    assert {weighted.draw(g).slide_id for g in range(30)} == {"a"}


class LongCatalogue(FakeCatalogue):
    """Twenty slides, which notes how many of their masks are alive whenever one is asked for."""

    def __init__(self) -> None:
        self.masks: list[weakref.ref[Any]] = []
        self.n_alive: list[int] = []

    def rows(self) -> list[Any]:
        rows = super().rows()
        return [SimpleNamespace(**vars(rows[0]) | {"slide_id": f"s{k}"}) for k in range(20)]

    def mask(self, slide_id: str) -> TissueMask:
        self.n_alive.append(sum(mask() is not None for mask in self.masks))
        tissue = super().mask(slide_id)
        self.masks.append(weakref.ref(tissue.mask))
        return tissue


def test_masks_are_let_go_slide_by_slide() -> None:
    """A thousand masks of 10 MB each need not fit into memory together."""
    catalogue = LongCatalogue()
    settings = {"seed": 5, "size_px": 64, "magnifications": MAGNIFICATIONS, "min_tissue": 0.6}
    drawing = sampler_from_catalogue(catalogue, **settings)  # type: ignore[arg-type]
    assert len(drawing.slide_ids) == 20
    assert max(catalogue.n_alive) <= 1


def test_a_weight_for_an_unknown_slide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \['z'\], which are not"):
        from_catalogue(weights={"z": 1.0})


def test_draws_are_pinned() -> None:
    """A silent change of the stream would make resumed runs wrong and others incomparable."""
    drawing = TileSampler(
        [slide("a"), slide("b")],
        seed=42,
        size_px=64,
        magnifications=MAGNIFICATIONS,
        min_tissue=0.6,
    )
    drawn = [drawing.draw(g, attempt=k) for g, k in ((0, 0), (1, 0), (1, 1), (10**12, 3))]
    assert [(t.slide_id, t.x, t.y, t.mpp) for t in drawn] == [
        ("a", 637, 1852, 1.0),
        ("b", 2909, 1073, 0.5),
        ("a", 2464, 1571, 0.5),
        ("a", 294, 1817, 0.5),
    ]
