"""Bags of random features, for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anlage.bags.store import Bag, BagAttributes

ATTRIBUTES = BagAttributes(
    encoder_fingerprint="e" * 64,
    slide_fingerprint="s" * 64,
    mpp=0.5,
    slide_mpp=0.2528,
    slide_width_px=4000,
    slide_height_px=3000,
    tile_px=224,
    stride_px=112,
    min_tissue=0.25,
    mean=(0.707223, 0.578729, 0.703617),
    std=(0.211883, 0.230117, 0.177517),
    encoder_name="anlage-tiny",
    versions={"anlage": "0.1.0", "torch": "2.13.0"},
    created_by="anlage 0.1.0",
)


def make_bag(
    slide_id: str = "slide 7", n_tiles: int = 50, width: int = 12, *, seed: int = 0, **changes
) -> Bag:
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((n_tiles, width)).astype(np.float16)
    coords = generator.integers(0, 2500, (n_tiles, 2))
    return Bag(slide_id, features, coords, replace(ATTRIBUTES, **changes))


def assert_same(found: Bag, wanted: Bag) -> None:
    assert found.slide_id == wanted.slide_id
    assert found.attributes == wanted.attributes
    assert found.features.dtype == np.float16
    assert found.coords.dtype == np.int64
    np.testing.assert_array_equal(found.features, wanted.features)
    np.testing.assert_array_equal(found.coords, wanted.coords)
