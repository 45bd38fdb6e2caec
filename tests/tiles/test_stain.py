"""Stain vectors: known mixtures, a slow version, torchstain's numbers, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stained_pixels import bundled_tissue, mixed, two_stained
from synthetic_slides import ArraySlide

from anlage.errors import StainError
from anlage.slides.masks import TissueMask
from anlage.tiles.stain import (
    REFERENCE,
    MacenkoNormaliser,
    StainVectors,
    estimate_stains,
    slide_stains,
)
from reference.macenko import stains

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "macenko.json").read_text())
OTHER = np.array([[0.72, 0.61, 0.33], [0.12, 0.93, 0.35]])
OTHER /= np.linalg.norm(OTHER, axis=1, keepdims=True)


def degrees_apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


@pytest.mark.parametrize("vectors", [REFERENCE.vectors_23, OTHER], ids=["reference", "other"])
@pytest.mark.parametrize("swapped", [False, True], ids=["haematoxylin first", "eosin first"])
def test_known_stains_are_found_again(vectors: np.ndarray, swapped: bool) -> None:
    concentration = two_stained(20_000, seed=3)
    pixels = mixed(concentration, vectors[::-1] if swapped else vectors)
    found = estimate_stains(pixels.reshape(100, 200, 3))
    for ours, known in zip(found.vectors_23, vectors, strict=True):
        assert degrees_apart(ours, known / np.linalg.norm(known)) < 1.5
    np.testing.assert_allclose(np.linalg.norm(found.vectors_23, axis=1), 1)
    known_strongest = np.percentile(concentration[:, ::-1] if swapped else concentration, 99, 0)
    np.testing.assert_allclose(found.strongest_2, known_strongest, rtol=0.05)


def test_equals_the_slow_version() -> None:
    pixels = bundled_tissue().reshape(-1, 3)[::40]
    with_glass = np.concatenate([pixels, np.full((500, 3), 245, np.uint8)])
    found = estimate_stains(with_glass)
    vectors, strongest = stains(with_glass.tolist())
    np.testing.assert_allclose(found.vectors_23, vectors, atol=1e-5)
    np.testing.assert_allclose(found.strongest_2, strongest, rtol=1e-5)


def test_equals_torchstain() -> None:
    pixels = bundled_tissue()
    found = estimate_stains(pixels)
    np.testing.assert_allclose(found.vectors_23, GOLDEN["vectors_23"], atol=2e-3)
    np.testing.assert_allclose(found.strongest_2, GOLDEN["strongest_2"], rtol=2e-3)
    shown = MacenkoNormaliser()(pixels, found)
    sparse = shown.reshape(-1, 3)[:: GOLDEN["every"]].astype(int)
    assert np.abs(sparse - GOLDEN["normalised"]).max() <= 3  # torchstain cuts decimals off
    np.testing.assert_allclose(shown.mean((0, 1)), np.array(GOLDEN["mean"]) + 0.5, atol=0.3)


def test_normalising_gives_the_targets_stains_to_the_same_concentrations() -> None:
    concentration = two_stained(6_000, seed=4)
    source = StainVectors(OTHER, np.array([1.2, 0.8]))
    target = StainVectors(REFERENCE.vectors_23, np.array([1.8, 1.2]))
    shown = MacenkoNormaliser(target)(mixed(concentration, OTHER), source)
    expected = mixed(concentration * 1.5, REFERENCE.vectors_23).astype(int)
    bright = expected.min(axis=1) > 30  # in the dark one unit of the source is many
    assert np.abs(shown.astype(int) - expected - 1)[bright].max() <= 4


def test_the_own_stains_as_target_change_nothing() -> None:
    pixels = mixed(two_stained(3_000, seed=5), OTHER)
    own = StainVectors(OTHER, np.array([1.0, 1.0]))
    shown = MacenkoNormaliser(own)(pixels, own)
    assert np.abs(shown.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((200, 200, 3), 250, np.uint8), "needs 1000 pixels of tissue; got 0"),
        (mixed(two_stained(900, seed=1), OTHER), "needs 1000 pixels of tissue; got"),
        (np.full((100, 100, 3), 120, np.uint8), "colours of two stains"),
        (np.tile(np.arange(40, 200, dtype=np.uint8)[:, None], (20, 3)), "colours of two stains"),
        (mixed(two_stained(5_000, seed=2)[:, :1], OTHER[:1]), "colours of two stains"),
        (np.random.default_rng(0).integers(0, 200, (5000, 3), np.uint8), "colours of two stains"),
        (np.zeros((64, 64, 3), np.uint8), "colours of two stains"),
    ],
    ids=["glass", "little", "flat", "grey", "one stain", "noise", "black"],
)
def test_what_holds_no_two_stains_is_refused(pixels: np.ndarray, reason: str) -> None:
    with pytest.raises(StainError, match=f"a.svs: estimate_stains: .*{reason}"):
        estimate_stains(pixels, path="a.svs")


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((9, 9, 3), np.float32), np.zeros((9, 9, 4), np.uint8), np.zeros(3, np.uint8)],
    ids=["floats", "four channels", "one pixel"],
)
def test_other_arrays_are_a_callers_error(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"needs \(\.\.\., 3\) uint8 RGB; got"):
        estimate_stains(pixels)
    with pytest.raises(ValueError, match=r"needs \(\.\.\., 3\) uint8 RGB; got"):
        MacenkoNormaliser()(pixels, REFERENCE)


def test_a_slides_stains_come_from_all_over_its_tissue() -> None:
    picture = mixed(two_stained(1024 * 1024, seed=6), OTHER).reshape(1024, 1024, 3)
    picture = picture.swapaxes(0, 1).copy()  # one stain at the left, the other in the middle
    picture[:512] = 245
    slide = ArraySlide([picture], mpp=1.0)
    tissue = TissueMask(np.repeat([False, True], 64)[:, None].repeat(128, axis=1), 8.0)
    found = slide_stains(slide, tissue)
    for ours, known in zip(found.vectors_23, OTHER, strict=True):
        assert degrees_apart(ours, known) < 1.5
    with pytest.raises(StainError, match="tile that is half tissue; got none"):
        slide_stains(slide, TissueMask(np.zeros((128, 128), bool), 8.0))
