import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np
import pytest
import zarr
from some_bags import assert_same, make_bag

from anlage.bags import zarr_store
from anlage.bags.crc32c import crc32c
from anlage.bags.store import (
    bag_place,
    feature_blocks,
    has_bag,
    list_bags,
    read_bag,
    read_bag_header,
    write_bag,
)
from anlage.errors import BagError
from anlage.slides.storage.remote_objects import put_object

MARKER, SHARD, COORDS = "zarr.json", "features/c/0/0", "coords/c/0/0"


def test_crc32c_of_the_published_examples():
    """RFC 3720, appendix B.4, and the usual check value."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.fixture(params=["here", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "here" else request.getfixturevalue("bucket")


@pytest.mark.parametrize("n_tiles", [0, 1, 50, 512, 1300])
def test_read_returns_what_was_written(folder, n_tiles):
    place = bag_place(folder, "slide 7", store="zarr")
    assert not has_bag(place)
    bag = make_bag(n_tiles=n_tiles)
    write_bag(place, bag)
    assert has_bag(place)
    assert_same(read_bag(place), bag)
    header, blocks = feature_blocks(place, n_rows=400)
    assert header.content_sha256 == read_bag_header(place).content_sha256
    streamed = [np.empty((0, 12), np.float16), *blocks]
    np.testing.assert_array_equal(np.concatenate(streamed), bag.features)


@pytest.mark.parametrize("n_tiles", [0, 1, 700])
def test_zarr_python_reads_the_same(tmp_path, n_tiles):
    """The oracle: zarr-python, which knows nothing of bags."""
    bag = make_bag(n_tiles=n_tiles)
    write_bag(tmp_path / "a.zarr", bag)
    for consolidated in (True, False):
        group = zarr.open_group(tmp_path / "a.zarr", mode="r", use_consolidated=consolidated)
        np.testing.assert_array_equal(group["features"][:], bag.features)
        np.testing.assert_array_equal(group["coords"][:], bag.coords)
        assert group.attrs["encoder_fingerprint"] == "e" * 64
        assert group["coords"].attrs["patch_size_level0"] == 443
        assert group["features"].attrs["encoder"] == "anlage-tiny"
    features = group["features"]
    assert (features.metadata.zarr_format, features.dtype) == (3, np.float16)
    if n_tiles == 700:
        assert features.shards == (1024, 12)
        assert features.chunks == (512, 12)
        np.testing.assert_array_equal(features[513:515], bag.features[513:515])
    shards = list((tmp_path / "a.zarr").rglob("features/c/*/*"))
    assert len(shards) == min(n_tiles, 1)


def test_attributes_are_those_of_the_hdf5_bag(tmp_path):
    for name in ("a.h5", "a.zarr"):
        write_bag(tmp_path / name, make_bag())
    one, other = (read_bag_header(tmp_path / name) for name in ("a.h5", "a.zarr"))
    assert one.attributes == other.attributes
    assert one.content_sha256 == other.content_sha256


def test_a_bag_is_replaced_and_nothing_else_is_left(folder):
    place = bag_place(folder, "a", store="zarr")
    write_bag(place, make_bag("a", 1300))
    write_bag(place, make_bag("a", 20, seed=1))
    assert_same(read_bag(place), make_bag("a", 20, seed=1))
    assert list_bags(folder) == {"a": place}


def test_a_bag_whose_writer_died_is_not_there(bucket):
    place = bag_place(bucket, "a")
    write_bag(place, make_bag("a"))
    lost = zarr_store.zarr_objects(make_bag("a", seed=1))
    zarr_store.delete_object(f"{place}/{MARKER}")
    for name in list(lost)[:2]:  # and here it was killed
        put_object(f"{place}/{name}", lost[name])
    assert not has_bag(place)
    assert list_bags(bucket) == {"a": place}
    with pytest.raises(BagError, match=r"no finished bag is there: it has no zarr\.json"):
        read_bag(place)
    write_bag(place, make_bag("a"))
    assert_same(read_bag(place), make_bag("a"))


def test_the_marker_is_put_last(bucket, monkeypatch):
    put: list[str] = []

    def noted(location, data):
        put.append(location.removeprefix(f"{bucket}/a.zarr/"))
        return put_object(location, data)

    monkeypatch.setattr(zarr_store, "put_object", noted)
    write_bag(bag_place(bucket, "a"), make_bag("a"))
    assert put[-1] == MARKER
    assert len(put) == 5


def test_a_bag_that_another_process_writes_at_the_same_time(bucket, monkeypatch):
    """Its shard lands between ours and our marker; the bag is then all ours."""
    place, theirs = bag_place(bucket, "a"), zarr_store.zarr_objects(make_bag("a", seed=1))
    interferences = [SHARD, COORDS]

    def interfered(location, data):
        version = put_object(location, data)
        if location == f"{place}/{MARKER}" and interferences:
            name = interferences.pop()
            put_object(f"{place}/{name}", theirs[name])
        return version

    monkeypatch.setattr(zarr_store, "put_object", interfered)
    write_bag(place, make_bag("a"))
    assert_same(read_bag(place), make_bag("a"))


WRITER = """
import sys
from some_bags import make_bag
from anlage.bags.store import write_bag
for _ in range(int(sys.argv[3])):
    write_bag(sys.argv[1], make_bag("a", 1500, seed=int(sys.argv[2])))
"""


def start_writer(place: str, seed: int, n_times: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, place, str(seed), str(n_times)]
    return subprocess.Popen(command, env=environment)


@pytest.mark.parametrize("store", ["hdf5", "zarr"])
def test_two_processes_writing_one_bag_leave_one_whole(tmp_path, store):
    place = bag_place(tmp_path, "a", store=store)
    writers = [start_writer(place, seed, 15) for seed in (1, 2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    found = read_bag(place)
    seed = 1 if np.array_equal(found.coords, make_bag("a", 1500, seed=1).coords) else 2
    assert_same(found, make_bag("a", 1500, seed=seed))
    assert [path.name for path in tmp_path.iterdir()] == [Path(place).name]


def test_writer_killed_half_way_leaves_the_bag_before_it(tmp_path):
    place = tmp_path / "a.zarr"
    write_bag(place, make_bag("a"))
    code = (
        "import os, signal\n"
        "from anlage.bags import zarr_store\n"
        "zarr_store.rename_folder_over = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code + WRITER, str(place), "1", "1"]
    ended = subprocess.run(command, env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert_same(read_bag(place), make_bag("a"))


def test_a_full_disk_is_a_plain_error_that_names_the_bag(tmp_path):
    place = tmp_path / "a.zarr"
    write_bag(place, make_bag("a"))
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code + WRITER, str(place), "1", "1"]
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    told = ended.stderr.splitlines()[-1]
    assert told == f"OSError: [Errno 27] write_bag: File too large: '{place}'"
    assert_same(read_bag(place), make_bag("a"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def cut_shard(place):
    path = place / SHARD
    path.write_bytes(path.read_bytes()[:-50])


def cut_coords(place):
    path = place / COORDS
    path.write_bytes(path.read_bytes()[:-16])


def lose_shard(place):
    (place / SHARD).unlink()


def cut_marker(place):
    path = place / MARKER
    path.write_bytes(path.read_bytes()[:-50])


def chunk_anew(place):
    path = place / MARKER
    path.write_text(path.read_text().replace('"end"', '"start"'))


def change_format(place):
    path = place / MARKER
    path.write_text(path.read_text().replace("bag/1", "bag/9"))


def lose_attribute(place):
    found = json.loads((place / MARKER).read_text())
    del found["attributes"]["tile_px"]
    (place / MARKER).write_text(json.dumps(found))


def change_features(place):
    path = place / SHARD
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_shard, "its shard is cut short"),
        (cut_coords, "its coords need 800 bytes; got 784"),
        (lose_shard, "has no features/c/0/0: part of it was deleted"),
        (cut_marker, r"its zarr\.json is damaged"),
        (chunk_anew, "not laid out as a bag"),
        (change_format, "needs format 'bag/1'; got 'bag/9'"),
        (lose_attribute, "tile_px"),
        (change_features, "does not match its checksum"),
    ],
)
def test_what_is_damaged_is_refused(tmp_path, damage, says):
    place = tmp_path / "a.zarr"
    write_bag(place, make_bag())
    damage(place)
    with pytest.raises(BagError, match=says):
        read_bag(place)
    with pytest.raises(BagError):
        list(feature_blocks(place)[1])


def test_places_that_cannot_be(tmp_path, bucket):
    with pytest.raises(BagError, match=r"a\.zarr: no such bag"):
        read_bag(tmp_path / "a.zarr")
    with pytest.raises(BagError, match="Zarr bags only"):
        bag_place(bucket, "a", store="hdf5")
    for name in ("", "..", "a/b", "a\\b"):
        with pytest.raises(ValueError, match="can be a file name"):
            bag_place(tmp_path, name)
    with pytest.raises(BagError, match="cannot be written to. Name a folder, or one of s3://"):
        write_bag("https://127.0.0.1:1/a.zarr", make_bag())
    with pytest.raises(BagError, match="no such folder of bags"):
        list_bags(tmp_path / "none")


def test_a_slide_with_two_bags_is_refused(tmp_path):
    for name in ("a.h5", "a.zarr", "b.h5"):
        write_bag(tmp_path / name, make_bag(name[0]))
    with pytest.raises(BagError, match=r"two bags of a slide: a\.h5 and a\.zarr"):
        list_bags(tmp_path)


def test_a_bucket_that_refuses(bucket, endpoint, monkeypatch):
    with pytest.raises(BagError, match="cannot be|may not be|does not exist"):
        write_bag("s3://nobody/a.zarr", make_bag())
    monkeypatch.setenv("ANLAGE_REMOTE_SECONDS", "0.5")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BagError, match="cannot be (deleted|written)"):
        write_bag(bag_place(bucket, "b"), make_bag())


def test_the_whole_shard_is_one_object(bucket, endpoint):
    write_bag(bag_place(bucket, "a"), make_bag("a", 1300))
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    found = client.list_objects_v2(Bucket="bags")["Contents"]
    names = sorted(entry["Key"].removeprefix("study 1/a.zarr/") for entry in found)
    assert names == [COORDS, "coords/zarr.json", SHARD, "features/zarr.json", MARKER]
