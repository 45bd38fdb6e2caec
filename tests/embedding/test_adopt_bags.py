"""TRIDENT's and CLAM's outputs of the bundled slides, by anlage-tiny, taken over."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from peer_outputs import grid, write_clam, write_trident

from anlage.bags.foreign import Given
from anlage.bags.store import list_bags, read_bag
from anlage.embedding.adopt_bags import adopt_bags, verdict_lines
from anlage.encoders.folder import load_encoder
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import BagError
from anlage.samples import slides_folder
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides

NAMES = ("erosion__HE", "hodgkin__HE")
FEATURES = "10x_128px_0px_overlap/features_anlage-tiny"
SLIDES = [slides_folder() / f"{name}.tiff" for name in NAMES]  # 768 x 1024 px at 1 mpp


@pytest.fixture(scope="module")
def encoder() -> TileEncoder:
    return load_encoder("anlage-tiny")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Catalogue:
    folder = tmp_path_factory.mktemp("catalogue")
    found = index_slides([str(path) for path in SLIDES], folder / "slides.parquet").catalogue
    assert found is not None
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory, encoder) -> Path:
    job = tmp_path_factory.mktemp("trident")
    write_trident(job, SLIDES, encoder, tile_px=128)
    return job


@pytest.fixture
def job(tmp_path, made) -> Path:
    return Path(shutil.copytree(made, tmp_path / "job"))


@pytest.mark.parametrize("at", [".", "10x_128px_0px_overlap", FEATURES])
def test_what_trident_made_is_taken_over(tmp_path, job, catalogue, encoder, at):
    result = adopt_bags(job / at, tmp_path / "bags", given=Given(slides=catalogue), encoder=encoder)
    assert (result.tool, result.done, result.refused) == ("TRIDENT", list(NAMES), [])
    agreement = result.agreement
    assert agreement is not None
    assert agreement.agrees
    assert len(agreement.cosines_K) == 50
    assert set(agreement.slide_ids) == set(NAMES)
    assert agreement.median > 0.999
    bag, row = read_bag(tmp_path / "bags" / f"{NAMES[0]}.h5"), catalogue.row(NAMES[0])
    np.testing.assert_array_equal(bag.coords, grid(SLIDES[0], level0_px=128))
    attributes = bag.attributes
    assert attributes.encoder_fingerprint == encoder.fingerprint
    assert attributes.encoder_name == "anlage-tiny"
    assert attributes.slide_fingerprint == row.fingerprint
    assert attributes.mean == encoder.config.mean
    # 128 px of 1 um were resized to the 112 px that the encoder takes
    assert (attributes.tile_px, attributes.stride_px) == (112, 112)
    assert attributes.mpp == pytest.approx(128 / 112)
    assert attributes.tile_level0_px == pytest.approx(128)
    assert "1.14" in attributes.departures


def test_contours_that_tiles_lie_outside_of_are_told(tmp_path, job, catalogue):
    result = adopt_bags(job, tmp_path / "bags", given=Given(slides=catalogue))
    assert result.agreement is None
    corners = grid(SLIDES[0], level0_px=128)
    assert result.outside == dict.fromkeys(NAMES, int((corners[:, 0] >= 2 * 768 // 3).sum()))
    lines = verdict_lines(result)
    assert "not compared with an encoder" in lines[0]
    assert "16 tiles touch none of the contours" in lines[1]
    bag = read_bag(tmp_path / "bags" / f"{NAMES[0]}.h5")
    assert bag.attributes.encoder_fingerprint == "named:anlage-tiny"
    assert (bag.attributes.tile_px, bag.attributes.mpp) == (128, 1.0)


def test_what_clam_made_is_taken_over(tmp_path, catalogue, encoder):
    folder = write_clam(tmp_path / "clam", SLIDES, encoder, tile_px=128)
    given = Given(slides=catalogue, encoder_name="tiny")
    result = adopt_bags(folder, tmp_path / "one", given=given, encoder=encoder, n_tiles=10)
    assert (result.tool, result.done) == ("CLAM", list(NAMES))
    shutil.rmtree(folder / "h5_files")  # tensors alone, with the coordinates elsewhere
    places = folder.rename(tmp_path / "moved") / "patches"
    places = places.rename(tmp_path / "places")
    without = adopt_bags(tmp_path / "moved", tmp_path / "two", given=given)
    assert "no coordinates, and none are made up" in without.refused[0].message
    result = adopt_bags(
        *(tmp_path / "moved", tmp_path / "two"),
        given=given,
        encoder=encoder,
        coords=places,
        n_tiles=10,
    )
    assert result.done == list(NAMES)
    one, two = (read_bag(tmp_path / name / f"{NAMES[1]}.h5") for name in ("one", "two"))
    np.testing.assert_array_equal(one.features, two.features)
    assert one.attributes == two.attributes


def mix_up_rows(file: h5py.File) -> None:
    file["features"][:] = np.roll(file["features"][:], 1, axis=0)


def spoil_one_tile_in_five(file: h5py.File) -> None:
    file["features"][::5] = -file["features"][::5]


@pytest.mark.parametrize("change", [mix_up_rows, spoil_one_tile_in_five])
def test_features_that_are_not_of_their_tiles_are_refused(
    tmp_path, job, catalogue, encoder, change: Callable[[h5py.File], None]
):
    for path in (job / FEATURES).glob("*.h5"):
        with h5py.File(path, "r+") as file:
            change(file)
    result = adopt_bags(job, tmp_path / "bags", given=Given(slides=catalogue), encoder=encoder)
    assert result.agreement is not None
    assert not result.agreement.agrees
    assert verdict_lines(result)[0].startswith("they do NOT agree: cosine median")
    assert not (tmp_path / "bags").exists()


def test_another_encoder_is_refused(tmp_path, job, catalogue, encoder):
    given = Given(slides=catalogue)
    other = adopt_bags(
        job, tmp_path / "bags", given=given, encoder=encoder.untrained(0), n_tiles=10
    )
    assert other.agreement is not None
    assert not other.agreement.agrees
    assert abs(other.agreement.median) < 0.5
    config = encoder.config.model_copy(update={"mean": (0.485, 0.456, 0.406)})
    shifted = TileEncoder(config, encoder.model)
    wrong = adopt_bags(job, tmp_path / "bags", given=given, encoder=shifted, n_tiles=10)
    assert wrong.agreement is not None
    assert not wrong.agreement.agrees


def test_another_width_is_refused_before_any_tile_is_read(tmp_path, job, catalogue, encoder):
    for path in (job / FEATURES).glob("*.h5"):
        with h5py.File(path, "r+") as file:
            del file["features"]
            file["features"] = np.ones((48, 384), np.float32)
    given = Given(slides=catalogue)
    result = adopt_bags(job, tmp_path / "bags", given=given, encoder=encoder)
    assert "embeddings have width 384, the encoder's 192" in verdict_lines(result)[0]
    assert list(tmp_path.glob("bags/*")) == []


def test_one_tile_decides_nothing(tmp_path, job, catalogue, encoder):
    """Alone it would agree whichever place it came from."""
    given = Given(slides=catalogue)
    result = adopt_bags(job, tmp_path / "bags", given=given, encoder=encoder, n_tiles=1)
    assert "there are no two tiles to compare" in verdict_lines(result)[0]
    assert list(tmp_path.glob("bags/*")) == []


def test_slides_that_cannot_be_taken_over_are_named(tmp_path, job, catalogue, encoder):
    features = job / FEATURES
    shutil.copy(features / f"{NAMES[0]}.h5", features / "stranger.h5")
    (features / "torn.h5").write_bytes(b"no")
    with h5py.File(features / f"{NAMES[1]}.h5", "r+") as file:
        file["coords"].attrs["level0_width"] = 999
    result = adopt_bags(
        job, tmp_path / "bags", given=Given(slides=catalogue), encoder=encoder, n_tiles=4
    )
    assert result.done == [NAMES[0]]
    told = {Path(error.path).stem: error.message for error in result.refused}
    assert sorted(told) == [NAMES[1], "stranger", "torn"]
    assert "is of a slide of (999, 1024) px" in told[NAMES[1]]
    assert "which" in told["stranger"]
    assert "not a whole HDF5 file" in told["torn"]


def test_a_slide_without_tiles_becomes_an_empty_bag(tmp_path, job, catalogue, encoder):
    with h5py.File(job / FEATURES / f"{NAMES[1]}.h5", "r+") as file:
        attributes = dict(file["coords"].attrs)
        del file["features"], file["coords"]
        file["features"] = np.empty((0, 192), np.float32)
        file["coords"] = np.empty((0, 2), np.int64)
        file["coords"].attrs.update(attributes)
    with h5py.File(next(job.glob(f"*/patches/{NAMES[1]}_patches.h5")), "r+") as file:
        del file["coords"]
        file["coords"] = np.empty((0, 2), np.int64)
    given = Given(slides=catalogue)
    result = adopt_bags(job, tmp_path / "bags", given=given, encoder=encoder, n_tiles=8)
    assert result.done == list(NAMES)
    assert read_bag(tmp_path / "bags" / f"{NAMES[1]}.h5").features.shape == (0, 192)


def test_folders_with_nothing_or_too_much(tmp_path, job, catalogue):
    given = Given(slides=catalogue)
    with pytest.raises(BagError, match="no such folder"):
        adopt_bags(tmp_path / "none", tmp_path / "bags", given=given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match=r"neither features_\* \(TRIDENT\) nor h5_files"):
        adopt_bags(tmp_path / "empty", tmp_path / "bags", given=given)
    shutil.copytree(job / FEATURES, (job / FEATURES).with_name("features_uni"))
    with pytest.raises(BagError, match="of several encoders or grids: .*features_uni"):
        adopt_bags(job, tmp_path / "bags", given=given)


def test_trident_saved_as_tensors(tmp_path, job, catalogue, encoder):
    for path in sorted((job / FEATURES).glob("*.h5")):
        with h5py.File(path, "r") as file:
            torch.save(torch.from_numpy(file["features"][:]).half(), path.with_suffix(".pt"))
        path.unlink()
    given = Given(slides=catalogue)
    result = adopt_bags(job, tmp_path / "bags", given=given, encoder=encoder, n_tiles=6)
    assert result.done == list(NAMES)
    assert list(list_bags(tmp_path / "bags")) == list(NAMES)


def test_the_output_may_be_a_bucket_or_zarr(tmp_path, job, catalogue):
    given = replace(Given(slides=catalogue), encoder_name="mine")
    adopt_bags(job, tmp_path / "bags", given=given, store="zarr")
    bag = read_bag(tmp_path / "bags" / f"{NAMES[0]}.zarr")
    assert bag.attributes.encoder_fingerprint == "named:mine"
