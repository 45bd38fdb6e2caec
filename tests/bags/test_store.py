import json
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from anlage.bags.store import Bag, BagAttributes, read_bag, read_bag_header, write_bag
from anlage.errors import BagError

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
    versions={"anlage": "0.1.0", "torch": "2.13.0"},
    created_by="anlage 0.1.0",
)


def make_bag(n_tiles: int = 50, width: int = 12, seed: int = 0) -> Bag:
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((n_tiles, width)).astype(np.float32)
    coords = generator.integers(0, 100_000, (n_tiles, 2))
    return Bag("slide 7", features, coords, ATTRIBUTES)


@pytest.mark.parametrize("n_tiles", [0, 1, 50])
def test_read_returns_what_was_written(tmp_path, n_tiles):
    bag = make_bag(n_tiles)
    write_bag(tmp_path / "a.h5", bag)
    found = read_bag(tmp_path / "a.h5")
    assert found.slide_id == "slide 7"
    assert found.features.dtype == np.float16
    np.testing.assert_array_equal(found.features, bag.features.astype(np.float16))
    assert found.coords.dtype == np.int64
    np.testing.assert_array_equal(found.coords, bag.coords)
    assert found.attributes == ATTRIBUTES
    assert found.features.shape == (n_tiles, 12)


def test_a_bag_that_was_read_can_be_written(tmp_path):
    write_bag(tmp_path / "a.h5", make_bag())
    write_bag(tmp_path / "b.h5", read_bag(tmp_path / "a.h5"))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_header_is_the_bag_without_its_features(tmp_path):
    bag = make_bag()
    write_bag(tmp_path / "a.h5", bag)
    header = read_bag_header(tmp_path / "a.h5")
    assert (header.slide_id, header.width, header.attributes) == ("slide 7", 12, ATTRIBUTES)
    np.testing.assert_array_equal(header.coords, bag.coords)


def test_equal_bags_are_equal_files(tmp_path):
    for name in ("a.h5", "b.h5"):
        write_bag(tmp_path / name, make_bag())
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_layout_is_the_one_trident_and_clam_read(tmp_path):
    """Read with h5py alone, as those tools do; the attribute names are TRIDENT's."""
    write_bag(tmp_path / "a.h5", make_bag())
    with h5py.File(tmp_path / "a.h5", "r") as file:
        features, coords = file["features"], file["coords"]
        assert features[:].shape == (50, 12)
        for data in (features, coords):
            assert data.chunks is None
            assert data.compression is None
        attributes = dict(coords.attrs)
        assert file.attrs["format"] == "bag/1"
        assert file.attrs["tile_level0_px"] == pytest.approx(443.0380)
        assert file.attrs["encoder_fingerprint"] == "e" * 64
        assert json.loads(file.attrs["versions"]) == {"anlage": "0.1.0", "torch": "2.13.0"}
    assert attributes["patch_size"] == 224
    assert attributes["patch_size_level0"] == 443  # 224 * 0.5 / 0.2528 = 443.04
    assert attributes["overlap"] == 112
    assert attributes["target_magnification"] == 20
    assert attributes["level0_magnification"] == 40
    assert (attributes["level0_width"], attributes["level0_height"]) == (4000, 3000)
    assert attributes["name"] == "slide 7"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_file_cut_short_is_refused_by_name(tmp_path, share):
    path = tmp_path / "cut.h5"
    write_bag(path, make_bag(400))
    whole = path.read_bytes()
    path.write_bytes(whole[: min(int(len(whole) * share), len(whole) - 1)])
    for read in (read_bag, read_bag_header):
        with pytest.raises(BagError, match=r"cut\.h5: .* embed the slide again"):
            read(path)


def test_a_changed_byte_anywhere_is_refused_or_harmless(tmp_path):
    path = tmp_path / "a.h5"
    bag = make_bag(20)
    write_bag(path, bag)
    whole = path.read_bytes()
    for place in np.random.default_rng(3).integers(0, len(whole), 60):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        try:
            found = read_bag(path)
        except BagError:
            continue
        np.testing.assert_array_equal(found.features, bag.features.astype(np.float16))
        np.testing.assert_array_equal(found.coords, bag.coords)


def test_changed_features_are_refused(tmp_path):
    path = tmp_path / "a.h5"
    write_bag(path, make_bag())
    with h5py.File(path, "r+") as file:
        file["features"][3, 4] = np.nan
    with pytest.raises(BagError, match="does not match its checksum"):
        read_bag(path)
    assert np.isnan(read_bag(path, verify=False).features[3, 4])


def damage_coords_length(file):
    del file["coords"]
    file["coords"] = np.zeros((49, 2), np.int64)


def damage_coords_dtype(file):
    coords = file["coords"][()]
    del file["coords"]
    file["coords"] = coords.astype(np.int32)


def damage_features_missing(file):
    del file["features"]


def damage_features_dtype(file):
    del file["features"]
    file["features"] = np.zeros((50, 12), np.float32)


def damage_features_shape(file):
    del file["features"]
    file["features"] = np.zeros((50, 12, 1), np.float16)


def damage_features_group(file):
    del file["features"]
    file.create_group("features")


def damage_format(file):
    file.attrs["format"] = "bag/2"


def damage_attribute(file):
    del file.attrs["stride_px"]


def damage_attribute_type(file):
    file.attrs["mpp"] = "half"


def damage_versions(file):
    file.attrs["versions"] = "{"


def damage_slide_id(file):
    del file.attrs["slide_id"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_coords_length, r"needs coords \(50, 2\).* got \(49, 2\)"),
        (damage_coords_dtype, "'coords' of int64; got .* int32"),
        (damage_features_missing, "'features' of float16; got nothing"),
        (damage_features_dtype, "'features' of float16; got .* float32"),
        (damage_features_shape, r"got \(50, 12, 1\)"),
        (damage_features_group, "'features' of float16; got nothing"),
        (damage_format, "needs format 'bag/1'; got 'bag/2'"),
        (damage_attribute, "stride_px"),
        (damage_attribute_type, "half"),
        (damage_versions, "incomplete or unreadable"),
        (damage_slide_id, "needs attributes slide_id"),
    ],
)
def test_what_is_not_a_bag_is_refused(tmp_path, damage, says):
    path = tmp_path / "a.h5"
    write_bag(path, make_bag())
    with h5py.File(path, "r+") as file:
        damage(file)
    for read in (read_bag, read_bag_header):
        with pytest.raises(BagError, match=says) as refusal:
            read(path)
        assert refusal.value.path == str(path)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(BagError, match="no such bag"):
        read_bag(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(BagError, match="not a whole HDF5 file"):
        read_bag(tmp_path / "text.h5")
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["features"] = np.zeros((1, 2))
    with pytest.raises(BagError, match="needs format 'bag/1'; got None"):
        read_bag(tmp_path / "theirs.h5")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(tmp_path, value):
    bag = make_bag()
    bag.features[7, 3] = value
    with pytest.raises(BagError, match=f"needs finite features; got {value} in tile 7"):
        write_bag(tmp_path / "a.h5", bag)
    assert list(tmp_path.iterdir()) == []


def test_features_beyond_float16_are_refused_with_the_remedy(tmp_path):
    bag = make_bag()
    bag.features[9, 3] = -65520.0  # the smallest magnitude that rounds to an infinity
    with pytest.raises(BagError, match=r"65504; got -65520.0 in tile 9.*scale its output"):
        write_bag(tmp_path / "a.h5", bag)
    bag.features[9, 3] = 65519.0
    write_bag(tmp_path / "a.h5", bag)
    assert read_bag(tmp_path / "a.h5").features[9, 3] == 65504


@pytest.mark.parametrize(
    ("features", "coords", "says"),
    [
        (np.zeros((3, 2), np.int8), np.zeros((3, 2), int), "features"),
        (np.zeros(3, np.float32), np.zeros((3, 2), int), "features"),
        (np.zeros((3, 2), np.float32), np.zeros((2, 2), int), r"coords \(3, 2\)"),
        (np.zeros((3, 2), np.float32), np.zeros((3, 2)), "integers"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, features, coords, says):
    with pytest.raises(ValueError, match=says):
        write_bag(tmp_path / "a.h5", Bag("a", features, coords, ATTRIBUTES))


def test_differences_leave_out_how_it_was_made():
    same = replace(ATTRIBUTES, versions={}, created_by="x", precision="bf16")
    assert ATTRIBUTES.differences(same) == []
    other = replace(ATTRIBUTES, encoder_fingerprint="0" * 64, stride_px=224)
    assert ATTRIBUTES.differences(other) == ["encoder_fingerprint", "stride_px"]


WRITER = """
import os, resource, signal, sys
import numpy as np
from anlage.bags.store import Bag, write_bag
from test_store import ATTRIBUTES
path, limit = sys.argv[1], int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
else:
    def half(number):
        os.ftruncate(number, os.fstat(number).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    os.fsync = half
try:
    write_bag(path, Bag("a", np.ones((9000, 64), np.float16), np.ones((9000, 2), int), ATTRIBUTES))
except OSError as error:
    print(type(error).__name__, error.errno, error.filename)
"""


def run_writer(path: Path, *, limit_bytes: int = 0) -> subprocess.CompletedProcess[str]:
    """Write to ``path`` under a limit of file size; without one, die when half is written."""
    search = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", WRITER, str(path), str(limit_bytes)]
    environment = os.environ | {"PYTHONPATH": search}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_full_disk_is_a_plain_error_that_names_the_file(tmp_path):
    path = tmp_path / "a.h5"
    write_bag(path, make_bag())
    before = path.read_bytes()
    writer = run_writer(path, limit_bytes=100_000)
    assert writer.returncode == 0
    assert writer.stdout.split() == ["OSError", "27", str(path)]  # EFBIG, the limit's ENOSPC
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


def test_writer_killed_half_way_leaves_the_bag_before_it(tmp_path):
    path = tmp_path / "a.h5"
    assert run_writer(path).returncode == -signal.SIGKILL
    assert not path.exists()
    write_bag(path, make_bag())
    assert run_writer(path).returncode == -signal.SIGKILL
    np.testing.assert_array_equal(read_bag(path).coords, make_bag().coords)


def test_writing_takes_no_memory_for_features_that_are_stored_as_they_are(tmp_path):
    features = np.random.default_rng(0).normal(size=(20_000, 256)).astype(np.float16)  # 10 MB
    bag = Bag("a", features, np.arange(40_000).reshape(-1, 2), ATTRIBUTES)
    tracemalloc.start()
    try:
        write_bag(tmp_path / "a.h5", bag)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.75 * features.nbytes  # the coordinates, and what is checked at a time
    np.testing.assert_array_equal(read_bag(tmp_path / "a.h5").features, features)


def test_a_bag_from_before_colours_were_said_is_of_stored_ones(tmp_path):
    write_bag(tmp_path / "a.h5", replace(make_bag(), attributes=replace(ATTRIBUTES, colour="srgb")))
    assert read_bag(tmp_path / "a.h5").attributes.colour == "srgb"
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file.attrs["colour"], file.attrs["icc_profile"]
    older = read_bag(tmp_path / "a.h5").attributes
    assert (older.colour, older.icc_profile) == ("stored", "")
    assert older.differences(replace(ATTRIBUTES, icc_profile="none")) == []
    assert older.differences(replace(ATTRIBUTES, colour="srgb")) == ["colour"]
