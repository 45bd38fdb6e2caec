"""A bag of ours, read as TRIDENT and CLAM read theirs: in a few lines that ask what they ask.

Each test names the file whose reading it follows (TRIDENT and CLAM of 2026).
"""

import h5py
import numpy as np
import pytest
import torch
from some_bags import make_bag

from anlage.bags.store import write_bag


@pytest.fixture
def path(tmp_path):
    write_bag(tmp_path / "a.h5", make_bag("a"))
    return tmp_path / "a.h5"


def test_slide_encoders_of_trident(path):
    """trident/wsi_objects/WSI.py, extract_slide_features."""
    with h5py.File(path, "r") as file:
        coords, features = file["coords"][:], file["features"][:]
        attributes = dict(file["coords"].attrs)
    assert features.shape[0] > 0
    assert torch.from_numpy(features).float().unsqueeze(0).shape == (1, 50, 12)
    assert torch.from_numpy(coords).to(torch.int64).unsqueeze(0).shape == (1, 50, 2)
    assert int(attributes["patch_size_level0"]) == 443


def test_patches_of_trident(path):
    """trident/IO.py, read_coords; WSI.py, extract_patch_features and visualize_coords."""
    with h5py.File(path, "r") as file:
        attributes, coords = dict(file["coords"].attrs), file["coords"][:]
    needed = ("patch_size", "level0_magnification", "target_magnification")
    assert None not in [attributes.get(name) for name in needed]
    downsample = (10 / attributes["target_magnification"]) / (
        10 / attributes["level0_magnification"]
    )
    assert round(attributes["patch_size"] * downsample) == 448  # its own rounding of 443
    assert attributes.get("overlap", "NA") == 112
    assert coords.dtype == np.int64


def test_names_that_trident_looks_up(path):
    """trident/wsi_objects/WSI.py writes these beside the features."""
    with h5py.File(path, "r") as file:
        assert file["features"].attrs["encoder"] == "anlage-tiny"
        assert file["features"].attrs["name"] == "a"


def test_an_empty_bag_of_trident(tmp_path):
    """trident/wsi_objects/WSI.py, extract_slide_features: no features, no embedding."""
    write_bag(tmp_path / "a.h5", make_bag("a", 0))
    with h5py.File(tmp_path / "a.h5", "r") as file:
        features = file["features"][:]
    assert features.ndim > 0
    assert features.shape[0] == 0


def test_bags_of_clam(path):
    """dataset_modules/dataset_generic.py with use_h5; extract_features_fp.py reads the same."""
    with h5py.File(path, "r") as file:
        features, coords = file["features"][:], file["coords"][:]
    assert torch.from_numpy(features).shape == (50, 12)
    assert coords.shape == (50, 2)


def test_coordinates_of_clam_only_where_it_would_read_the_same_pixels(path, tmp_path):
    """dataset_modules/dataset_h5.py, Whole_Slide_Bag_FP: patch_size pixels of patch_level."""
    with h5py.File(path, "r") as file:
        assert "patch_level" not in file["coords"].attrs  # 224 px of level 0 would be half a tile
    write_bag(tmp_path / "b.h5", make_bag("b", mpp=0.2528))
    with h5py.File(tmp_path / "b.h5", "r") as file:
        attributes = file["coords"].attrs
        assert (attributes["patch_level"], attributes["patch_size"]) == (0, 224)
        assert attributes["name"] == "b"  # which wsi_core/wsi_utils.py, StitchCoords, prints
