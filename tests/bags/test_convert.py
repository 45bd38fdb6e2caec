import pickle
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from small_catalogue import make_catalogue
from some_bags import assert_same, make_bag

from anlage.bags.convert import TARGETS, convert_bags
from anlage.bags.foreign import Given
from anlage.bags.store import read_bag, write_bag
from anlage.errors import BagError
from anlage.slides.catalogue import Catalogue

HERE = [target for target in TARGETS if target != "spatialdata"]
SUFFIX = {"stamp": ".h5", "anndata": ".h5ad", "parquet": ".parquet", "hdf5": ".h5", "zarr": ".zarr"}
EDGE = 64  # of tiles at the slides' own 1 mpp; a slide is 256 x 192 px


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return make_catalogue(tmp_path / "slides", 2)


@pytest.fixture
def tiles() -> tuple[np.ndarray, np.ndarray]:
    """Features and corners of a slide's tiles."""
    features = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    corners = np.array([(x, y) for y in (0, 64) for x in (0, 64, 128)])
    return features, corners


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("n_tiles", [0, 20])
def test_there_and_back_is_the_same_bag(tmp_path, target, n_tiles):
    """Nothing else need be said, as our attributes go with the file."""
    bags = {slide_id: make_bag(slide_id, n_tiles, seed=k) for k, slide_id in enumerate("ab")}
    for slide_id, bag in bags.items():
        write_bag(tmp_path / "bags" / f"{slide_id}.h5", bag)
    there = convert_bags(tmp_path / "bags", tmp_path / "there", to=target, given=Given())
    back = convert_bags(tmp_path / "there", tmp_path / "back", to="hdf5", given=Given())
    assert (there.done, back.done, there.refused, back.refused) == (["a", "b"], ["a", "b"], [], [])
    for slide_id, bag in bags.items():
        assert_same(read_bag(tmp_path / "back" / f"{slide_id}.h5"), bag)


def test_to_a_bucket_and_back(tmp_path, bucket):
    write_bag(tmp_path / "a.h5", make_bag("a"))
    convert_bags(tmp_path / "a.h5", bucket, to="zarr", given=Given())
    convert_bags(bucket, tmp_path / "back", to="hdf5", given=Given())
    assert_same(read_bag(tmp_path / "back" / "a.h5"), make_bag("a"))
    with pytest.raises(BagError, match="takes Zarr bags only; parquet was asked for"):
        convert_bags(tmp_path / "a.h5", bucket, to="parquet", given=Given())


def test_clam_loads_what_we_write(tmp_path):
    """By the lines of CLAM's dataset_modules/dataset_generic.py: both ways that it has."""
    bag = make_bag("a")
    write_bag(tmp_path / "a.h5", bag)
    convert_bags(tmp_path / "a.h5", tmp_path / "clam", to="clam", given=Given())
    features = torch.load(tmp_path / "clam" / "pt_files" / "a.pt")
    assert features.dtype == torch.float32  # of its models' weights
    np.testing.assert_array_equal(features.numpy(), bag.features)
    with h5py.File(tmp_path / "clam" / "h5_files" / "a.h5", "r") as file:
        np.testing.assert_array_equal(file["features"][:], bag.features)
        np.testing.assert_array_equal(file["coords"][:], bag.coords)


def test_stamp_loads_what_we_write(tmp_path):
    """By what get_coords of STAMP's src/stamp/modeling/data.py asks for."""
    bag = make_bag("a")
    write_bag(tmp_path / "a.h5", bag)
    convert_bags(tmp_path / "a.h5", tmp_path / "stamp", to="stamp", given=Given())
    with h5py.File(tmp_path / "stamp" / "a.h5", "r") as file:
        np.testing.assert_array_equal(file["feats"][()], bag.features)
        np.testing.assert_allclose(file["coords"][:], bag.coords * 0.2528, atol=1e-3)
        assert file.attrs["tile_size_um"] / file.attrs["tile_size_px"] == 0.5
        assert (file.attrs["unit"], file.attrs["feat_type"]) == ("um", "tile")
        assert file.attrs["stamp_version"] == "2.1.0"
        assert file.attrs["extractor"] == "anlage-tiny"


def write_stamp(path: Path, features, corners, **changes):
    with h5py.File(path, "w") as file:
        file["feats"] = features.astype(np.float16)
        file["coords"] = (corners * 1.0).astype(np.float32)  # micrometres, of a slide at 1 mpp
        attributes = {
            "stamp_version": "2.5.0",
            "extractor": "uni",
            "unit": "um",
            "tile_size_um": 64.0,
            "tile_size_px": 32,
            "code_hash": "12345678",
            "feat_type": "tile",
        }
        for name, value in (attributes | changes).items():
            if value is not None:
                file.attrs[name] = value


def test_from_stamp(tmp_path, catalogue, tiles):
    write_stamp(tmp_path / "a.h5", *tiles)
    result = convert_bags(
        tmp_path / "a.h5", tmp_path / "bags", to="hdf5", given=Given(slides=catalogue)
    )
    assert result.refused == []
    bag, row = read_bag(tmp_path / "bags" / "a.h5"), catalogue.row("a")
    np.testing.assert_array_equal(bag.coords, tiles[1])
    made = bag.attributes
    assert (made.tile_px, made.mpp, made.stride_px, made.tile_level0_px) == (32, 2.0, 32, 64)
    assert made.encoder_fingerprint == "named:uni"
    assert made.slide_fingerprint == row.fingerprint
    assert (made.min_tissue, made.mean, made.std) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tile_size_um": None}, "from before STAMP 2"),
        ({"feat_type": "slide"}, "needs tile embeddings; got slide embeddings"),
        ({"tile_size_px": None}, "how many pixels a tile has. Give --tile-px"),
        ({"extractor": None}, "which encoder made it. Give --encoder-name"),
        ({"anlage": "{"}, "'anlage' is not JSON"),
        ({"anlage": "[]"}, "'anlage' is no JSON object"),
    ],
)
def test_what_stamp_does_not_say_is_asked_for(tmp_path, catalogue, tiles, changes, says):
    write_stamp(tmp_path / "a.h5", *tiles, **changes)
    result = convert_bags(
        tmp_path / "a.h5", tmp_path / "bags", to="hdf5", given=Given(slides=catalogue)
    )
    (error,) = result.refused
    assert says in error.message
    assert result.done == []
    assert not (tmp_path / "bags").exists()


def write_clam(folder: Path, features, corners, *, with_h5: bool = False) -> None:
    for name in ("pt_files", "patches"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(features), folder / "pt_files" / "a.pt")
    with h5py.File(folder / "patches" / "a.h5", "w") as file:
        file["coords"] = corners.astype(np.int32)
        file["coords"].attrs.update(
            {"patch_size": 32, "patch_level": 1, "downsample": (2.0, 2.0), "name": "a"}
        )
    if with_h5:
        (folder / "h5_files").mkdir()
        with h5py.File(folder / "h5_files" / "a.h5", "w") as file:
            file["features"], file["coords"] = features, corners


@pytest.mark.parametrize("with_h5", [False, True])
def test_from_clam(tmp_path, catalogue, tiles, with_h5):
    write_clam(tmp_path / "clam", *tiles, with_h5=with_h5)
    given = Given(slides=catalogue, encoder_name="uni")
    convert_bags(tmp_path / "clam", tmp_path / "bags", to="hdf5", given=given)
    bag = read_bag(tmp_path / "bags" / "a.h5")
    np.testing.assert_array_equal(bag.coords, tiles[1])
    np.testing.assert_array_equal(bag.features, tiles[0].astype(np.float16))
    made = bag.attributes
    assert (made.tile_px, made.mpp, made.stride_px) == (32, 2.0, None)  # CLAM keeps no step


def test_a_tensor_without_coordinates_is_refused(tmp_path, catalogue, tiles):
    torch.save(torch.from_numpy(tiles[0]), tmp_path / "a.pt")
    given = Given(slides=catalogue, encoder_name="uni", tile_px=32, mpp=2)
    (error,) = convert_bags(tmp_path / "a.pt", tmp_path / "out", to="hdf5", given=given).refused
    assert "has no coordinates, and none are made up" in error.message
    assert "--coords" in error.message
    write_clam(tmp_path / "clam", *tiles)
    result = convert_bags(
        *(tmp_path / "a.pt", tmp_path / "out"),
        to="hdf5",
        given=given,
        coords=tmp_path / "clam" / "patches",
    )
    assert result.done == ["a"]


class Attack:
    """What a pickle can do to whoever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path, catalogue):
    torch.save(Attack(tmp_path / "was here"), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Attack(tmp_path / "was here")))
    for name in ("a.pt", "b.pt"):
        given = Given(slides=catalogue, encoder_name="x")
        (error,) = convert_bags(tmp_path / name, tmp_path / "out", to="hdf5", given=given).refused
        assert "code, which is not run" in error.message
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"features": torch.zeros(2, 2)}, "needs one tensor of features; got a dict"),
        (torch.zeros(2, 2, 2), r"got (2, 2, 2) float32"),
        (torch.zeros(2, 2, dtype=torch.int64), "got (2, 2) int64"),
        (torch.full((2, 2), torch.nan), "needs finite features; got nan in tile 0"),
        (torch.zeros(3, 2), "holds 3 tiles"),
    ],
)
def test_tensors_that_are_no_bag(tmp_path, catalogue, content, says):
    write_clam(tmp_path, np.zeros((2, 2), np.float32), np.zeros((2, 2), int))
    torch.save(content, tmp_path / "pt_files" / "a.pt")
    given = Given(slides=catalogue, encoder_name="x")
    (error,) = convert_bags(tmp_path, tmp_path / "out", to="hdf5", given=given).refused
    assert says in error.message


def test_a_tensor_cut_short(tmp_path, catalogue, tiles):
    write_clam(tmp_path, *tiles)
    path = tmp_path / "pt_files" / "a.pt"
    path.write_bytes(path.read_bytes()[:-300])
    given = Given(slides=catalogue, encoder_name="x")
    (error,) = convert_bags(tmp_path, tmp_path / "out", to="hdf5", given=given).refused
    assert "not a whole file of torch.save" in error.message


def test_places_and_features_that_are_not_of_one_run(tmp_path, catalogue, tiles):
    write_clam(tmp_path, *tiles, with_h5=True)
    with h5py.File(tmp_path / "patches" / "a.h5", "r+") as file:
        file["coords"][2] = (7, 7)
    given = Given(slides=catalogue, encoder_name="x")
    (error,) = convert_bags(tmp_path, tmp_path / "out", to="hdf5", given=given).refused
    assert "has other coordinates than" in error.message


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"encoder_name": "x"}, "Give its catalogue (--slides)"),
        ({"encoder_name": "x", "tile_px": 40}, "says 32, where --tile-px says 40"),
        ({"encoder_name": "x", "mpp": 0.5}, "says 2, where --mpp says 0.5"),
        ({}, "Give --encoder-name"),
    ],
)
def test_what_is_missing_or_contradicts_is_refused(tmp_path, catalogue, tiles, given, says):
    write_clam(tmp_path / "clam", *tiles)
    slides = None if "--slides" in says else catalogue
    result = convert_bags(
        *(tmp_path / "clam", tmp_path / "out"), to="hdf5", given=Given(slides=slides, **given)
    )
    (error,) = result.refused
    assert says in error.message


def test_tiles_of_another_slide_are_refused(tmp_path, catalogue, tiles):
    given = Given(slides=catalogue)
    write_stamp(tmp_path / "a.h5", tiles[0], tiles[1] + 200)
    write_stamp(tmp_path / "zzz.h5", *tiles)
    errors = convert_bags(tmp_path, tmp_path / "out", to="zarr", given=given).refused
    assert "tile 0 is at (200, 200), outside the slide's (256, 192) px" in errors[0].message
    assert "is of slide 'zzz', which" in errors[1].message


def test_anndata_opens_with_coordinates(tmp_path):
    """anndata and scanpy alone, with wsidata's names (accessors/fetch.py, features_anndata)."""
    bag = make_bag("a")
    write_bag(tmp_path / "a.h5", bag)
    convert_bags(tmp_path / "a.h5", tmp_path, to="anndata", given=Given())
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(data.X, bag.features.astype(np.float32))
    np.testing.assert_array_equal(data.obsm["spatial"], bag.coords)
    assert list(data.obs.columns) == ["tile_id", "x", "y", "library_id"]
    spec = data.uns["tile_spec"]
    assert (spec["width"], spec["stride_width"], spec["mpp"]) == (224, 112, 0.5)
    assert spec["base_downsample"] == pytest.approx(0.5 / 0.2528)
    assert list(data.uns["slide_properties"]["shape"]) == [3000, 4000]


def test_from_anndata_that_lazyslide_made(tmp_path, catalogue, tiles):
    spec = {"width": 32, "height": 32, "stride_width": 32, "stride_height": 32}
    obs, var = (pd.DataFrame(index=pd.Index(list("abcdefgh")[:n], dtype=object)) for n in (6, 8))
    data = anndata.AnnData(
        X=tiles[0],
        obs=obs,
        var=var,
        obsm={"spatial": tiles[1].astype(float)},
        uns={
            "tile_spec": spec | {"base_downsample": 2.0},
            "slide_properties": {"shape": [192, 256], "mpp": 1.0},
        },
    )
    data.write_h5ad(tmp_path / "a.h5ad")
    given = Given(slides=catalogue, encoder_name="uni")
    assert convert_bags(tmp_path / "a.h5ad", tmp_path, to="hdf5", given=given).done == ["a"]
    bag = read_bag(tmp_path / "a.h5")
    np.testing.assert_array_equal(bag.coords, tiles[1])
    assert (bag.attributes.tile_px, bag.attributes.mpp, bag.attributes.stride_px) == (32, 2.0, 32)
    del data.obsm["spatial"]
    data.write_h5ad(tmp_path / "a.h5ad")
    (error,) = convert_bags(tmp_path / "a.h5ad", tmp_path, to="zarr", given=given).refused
    assert 'has no obsm["spatial"]' in error.message
    (tmp_path / "a.h5ad").write_bytes(b"no")
    (error,) = convert_bags(tmp_path / "a.h5ad", tmp_path, to="zarr", given=given).refused
    assert "is no whole .h5ad file" in error.message


def test_parquet_is_a_plain_table(tmp_path):
    bag = make_bag("a")
    write_bag(tmp_path / "a.h5", bag)
    convert_bags(tmp_path / "a.h5", tmp_path, to="parquet", given=Given())
    frame = pq.read_table(tmp_path / "a.parquet").to_pandas()
    assert set(frame["slide_id"]) == {"a"}
    np.testing.assert_array_equal(frame[["x", "y"]].to_numpy(), bag.coords)
    np.testing.assert_array_equal(np.stack(frame["features"]), bag.features.astype(np.float32))


def test_tables_that_are_no_bag(tmp_path):
    write_bag(tmp_path / "a.h5", make_bag("a"))
    convert_bags(tmp_path / "a.h5", tmp_path, to="parquet", given=Given())
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.drop_columns(["x"]), tmp_path / "a.parquet")
    (error,) = convert_bags(tmp_path / "a.parquet", tmp_path, to="zarr", given=Given()).refused
    assert "needs columns slide_id, x, y, features" in error.message
    pq.write_table(table, tmp_path / "b.parquet")
    (error,) = convert_bags(tmp_path / "b.parquet", tmp_path, to="zarr", given=Given()).refused
    assert "needs tiles of slide 'b' alone; got 'a'" in error.message
    pq.write_table(table.replace_schema_metadata(), tmp_path / "a.parquet")
    (error,) = convert_bags(tmp_path / "a.parquet", tmp_path, to="zarr", given=Given()).refused
    assert "Give its catalogue (--slides)" in error.message


def test_a_catalogue_beside_the_bags_is_left_alone(tmp_path):
    """Where `embed tiles` was given a folder, it leaves the catalogue with the bags."""
    folder = make_catalogue(tmp_path / "bags", 1).path.parent
    write_bag(folder / "a.h5", make_bag("a"))
    result = convert_bags(folder, tmp_path / "out", to="parquet", given=Given())
    assert (result.done, result.refused) == (["a"], [])


def test_two_files_of_a_slide_are_refused(tmp_path):
    write_bag(tmp_path / "a.h5", make_bag("a"))
    convert_bags(tmp_path, tmp_path, to="parquet", given=Given())
    with pytest.raises(BagError, match=r"two files of slide 'a': a\.h5 and a\.parquet\. Move"):
        convert_bags(tmp_path, tmp_path / "out", to="zarr", given=Given())


def test_nothing_to_convert(tmp_path):
    with pytest.raises(BagError, match="no such file or folder"):
        convert_bags(tmp_path / "none", tmp_path, to="hdf5", given=Given())
    with pytest.raises(BagError, match="holds no file that ends in"):
        convert_bags(tmp_path, tmp_path, to="hdf5", given=Given())
    with pytest.raises(ValueError, match="needs a target of hdf5, zarr"):
        convert_bags(tmp_path, tmp_path, to="npz", given=Given())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["else"] = [1]
    (error,) = convert_bags(tmp_path, tmp_path / "out", to="hdf5", given=Given()).refused
    assert "needs a dataset 'features'; it holds else" in error.message
