"""SpatialData, where that package is installed, which other pins of this project keep out.

With wsidata beside it the tests open the store as LazySlide does. Tried with spatialdata 0.7.3 and
wsidata 0.12.0.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from small_catalogue import make_catalogue
from some_bags import assert_same, make_bag

from anlage.bags.convert import convert_bags
from anlage.bags.foreign import Given
from anlage.bags.store import read_bag, write_bag

IS_THERE = importlib.util.find_spec("spatialdata") is not None
needs_spatialdata = pytest.mark.skipif(not IS_THERE, reason="needs the package spatialdata")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    bag = make_bag("a", mpp=2.0, slide_mpp=1.0, tile_px=32, stride_px=32)
    bag.coords[:] %= 128
    write_bag(tmp_path / "a.h5", bag)
    return tmp_path / "a.h5"


@pytest.mark.skipif(IS_THERE, reason="spatialdata is installed")
def test_without_the_package_it_is_asked_for(tmp_path, stored):
    (error,) = convert_bags(stored, tmp_path, to="spatialdata", given=Given()).refused
    assert "needs the package spatialdata. Install it" in error.message


def test_what_spatialdata_cannot_say_is_refused(tmp_path):
    write_bag(tmp_path / "a.h5", make_bag("a", stride_px=None))
    write_bag(tmp_path / "b.h5", make_bag("b", 0))
    errors = convert_bags(tmp_path, tmp_path / "out", to="spatialdata", given=Given()).refused
    assert "does not know the step between its tiles" in errors[0].message
    assert "has no tiles" in errors[1].message


@needs_spatialdata
def test_there_and_back_is_the_same_bag(tmp_path, stored):
    done = convert_bags(stored, tmp_path / "there", to="spatialdata", given=Given())
    assert done.refused == []
    convert_bags(tmp_path / "there", tmp_path / "back", to="hdf5", given=Given())
    assert_same(read_bag(tmp_path / "back" / "a.h5"), read_bag(stored))


@needs_spatialdata
def test_wsidata_opens_it_beside_the_slide(tmp_path, stored):
    wsidata = pytest.importorskip("wsidata", reason="needs the package spatialdata")
    make_catalogue(tmp_path / "slides", 1)
    convert_bags(stored, tmp_path / "there", to="spatialdata", given=Given())
    slide = wsidata.open_wsi(tmp_path / "slides" / "a.tif", store=tmp_path / "there" / "a.zarr")
    bag = read_bag(stored)
    data = slide.fetch.features_anndata("anlage-tiny", "tiles")
    np.testing.assert_array_equal(data.X, bag.features.astype(np.float32))
    np.testing.assert_array_equal(data.obsm["spatial"], bag.coords)
    spec = slide.tile_spec("tiles")
    assert (spec.width, spec.stride_width, spec.base_width, spec.mpp) == (32, 32, 64, 2.0)
    tile = next(iter(slide.iter.tile_images("tiles")))
    assert tile.image.shape == (32, 32, 3)


@needs_spatialdata
def test_a_store_that_wsidata_made_is_read(tmp_path):
    """Its tiles carry none of our attributes: the catalogue says the rest."""
    wsidata = pytest.importorskip("wsidata", reason="needs the package spatialdata")
    catalogue = make_catalogue(tmp_path / "slides", 1)
    slide = wsidata.open_wsi(tmp_path / "slides" / "a.tif", store=tmp_path / "a.zarr")
    corners = np.array([(0, 0), (64, 0), (128, 64)])
    spec = wsidata.TileSpec.from_wsidata(slide, 32, mpp=2.0, slide_mpp=1.0)
    wsidata.io.add_tiles(slide, "tiles", corners, tile_spec=spec, tissue_ids=[0, 0, 0])
    features = np.arange(12, dtype=np.float32).reshape(3, 4)
    wsidata.io.add_features(slide, "uni_tiles", "tiles", features)
    slide.write()
    given = Given(slides=catalogue)
    result = convert_bags(tmp_path / "a.zarr", tmp_path / "bags", to="hdf5", given=given)
    assert result.refused == []
    bag = read_bag(tmp_path / "bags" / "a.h5")
    np.testing.assert_array_equal(bag.coords, corners)
    np.testing.assert_array_equal(bag.features, features)
    made = bag.attributes
    assert (made.tile_px, made.mpp, made.encoder_fingerprint) == (32, 2.0, "named:uni")
