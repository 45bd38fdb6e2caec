import json
import os
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest
import zarr
from some_bags import assert_same, make_bag

from anlage.bags import zarr_store
from anlage.bags.store import (
    bag_place,
    clear_half_written,
    feature_blocks,
    half_written,
    has_bag,
    list_bags,
    read_bag,
    read_bag_header,
    write_bag,
)
from anlage.bags.zarr_group import zarr_objects
from anlage.errors import BagError
from anlage.folder_replacement import whole_folder
from anlage.slides.storage.remote_objects import put_object

MARKER, SHARD, COORDS = "zarr.json", "features/c/0/0", "coords/c/0/0"


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


def crc32c(data: bytes) -> int:
    """RFC 3720, appendix B.4, a bit at a time."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def decode_shard(data: bytes, shape: tuple[int, int], rows: int) -> np.ndarray:
    """The chunks of a shard by its index, as the text of the specification has it."""
    count = -(-shape[0] // rows)
    index, checksum = data[-16 * count - 4 : -4], data[-4:]
    assert int.from_bytes(checksum, "little") == crc32c(index)
    chunks = [data[at : at + n] for at, n in np.frombuffer(index, "<u8").reshape(count, 2)]
    assert {len(chunk) for chunk in chunks} == {rows * shape[1] * 2}
    return np.frombuffer(b"".join(chunks), "<f2").reshape(-1, shape[1])[: shape[0]]


@pytest.mark.parametrize(("n_tiles", "rows"), [(1, 1), (50, 50), (700, 512), (1024, 512)])
@pytest.mark.parametrize("is_zero", [False, True])
def test_the_objects_are_those_of_the_specification(tmp_path, n_tiles, rows, is_zero):
    """The oracle: Zarr 3.0 and its sharding by hand; chunks of zeros are there too."""
    bag, place = make_bag(n_tiles=n_tiles), tmp_path / "a.zarr"
    if is_zero:
        bag.features[-rows:] = 0
    write_bag(place, bag)
    marker = json.loads((place / MARKER).read_text())
    for name in ("features", "coords"):
        alone = json.loads((place / name / "zarr.json").read_text())
        assert marker["consolidated_metadata"]["metadata"][name] == alone
    assert alone["codecs"] == [{"name": "bytes", "configuration": {"endian": "little"}}]
    found = decode_shard((place / SHARD).read_bytes(), bag.features.shape, rows)
    np.testing.assert_array_equal(found, bag.features)
    coords = np.fromfile(place / COORDS, "<i8").reshape(-1, 2)
    np.testing.assert_array_equal(coords, bag.coords)


@pytest.mark.parametrize("n_tiles", [0, 1, 700])
def test_any_program_with_zarr_opens_it(tmp_path, n_tiles):
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
    lost = zarr_objects(make_bag("a", seed=1))
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
    place, theirs = bag_place(bucket, "a"), zarr_objects(make_bag("a", seed=1))
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
    writers = [start_writer(place, seed, 5) for seed in (1, 2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    found = read_bag(place)
    seed = 1 if np.array_equal(found.coords, make_bag("a", 1500, seed=1).coords) else 2
    assert_same(found, make_bag("a", 1500, seed=seed))
    assert [path.name for path in tmp_path.iterdir()] == [Path(place).name]


KILLED = """
import os, signal
def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
from anlage import folder_replacement
"""
BEFORE_THE_SWAP = "folder_replacement._swap_in = killed\n"
WITHIN_THE_SWAP = """
set_aside = folder_replacement._set_aside
folder_replacement._set_aside = lambda target: (set_aside(target), killed())
"""


@pytest.mark.parametrize("moment", [BEFORE_THE_SWAP, WITHIN_THE_SWAP])
def test_writer_killed_half_way_leaves_the_bag_before_it(tmp_path, moment):
    place = tmp_path / "a.zarr"
    write_bag(place, make_bag("a"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED + moment + WRITER, str(place), "1", "1"]
    ended = subprocess.run(command, env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert has_bag(place)
    assert list_bags(tmp_path) == {"a": str(place)}
    assert_same(read_bag(place), make_bag("a"))
    assert len(half_written(tmp_path)) == 1
    write_bag(place, make_bag("a", 1300))
    clear_half_written(tmp_path, older_than_s=-1)
    assert_same(read_bag(place), make_bag("a", 1300))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_bag_is_there_at_every_instant_while_it_is_replaced(tmp_path):
    place = bag_place(tmp_path, "a", store="zarr")
    write_bag(place, make_bag("a", 1500, seed=1))
    bag = make_bag("a", 1500, seed=1)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [write_bag(place, bag) for _ in range(15)])
        while not writing.done():
            assert has_bag(place)
            assert list_bags(tmp_path) == {"a": place}
            assert read_bag_header(place).slide_id == "a"
    assert len(writing.result()) == 15


def test_a_folder_that_moves_between_looking_and_opening(tmp_path, monkeypatch):
    place, aside = tmp_path / "a.zarr", tmp_path / ".a.zarr.replaced"
    write_bag(place, make_bag("a"))
    moves: list[tuple[Path, Path]] = []

    def moved(folder):
        found = whole_folder(folder)
        if moves:
            old, new = moves.pop(0)
            old.rename(new)
        return found

    monkeypatch.setattr(zarr_store, "whole_folder", moved)
    for look in (has_bag, read_bag_header):
        moves += [(place, aside), (aside, place)]
        assert look(place)
        assert not moves


def test_what_a_replacement_left_behind_is_cleared(tmp_path):
    for name in ("a.zarr", ".a.zarr.replaced"):
        write_bag(tmp_path / name / "x.zarr", make_bag("x"))
    assert half_written(tmp_path) == [tmp_path / ".a.zarr.replaced"]
    clear_half_written(tmp_path, older_than_s=-1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


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


def move_index(place):
    path = place / MARKER
    path.write_text(path.read_text().replace('"end"', '"start"'))


def transpose_coords(place):
    path = place / MARKER
    found = json.loads(path.read_text())
    found["consolidated_metadata"]["metadata"]["coords"]["shape"] = [2, 50]
    path.write_text(json.dumps(found))


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
        (cut_coords, "its coords are cut short"),
        (lose_shard, "has no features/c/0/0: part of it was deleted"),
        (cut_marker, r"its zarr\.json is damaged"),
        (move_index, "its shard is cut short or was changed"),
        (transpose_coords, r"not laid out as a bag: features \(50, 12\)"),
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


@pytest.mark.parametrize("kept", [0, 1, 3, 19, 20, 1000, 1200, 1219])
def test_a_shard_of_any_length_but_its_own_is_refused(folder, kept):
    bag, place = make_bag("a"), bag_place(folder, "a", store="zarr")
    write_bag(place, bag)
    shard = bytes(zarr_objects(bag)[SHARD])
    assert len(shard) == 50 * 24 + 16 + 4
    for damaged in (shard[:kept], shard + shard[:kept] + b"0"):
        if "://" in place:
            put_object(f"{place}/{SHARD}", damaged)
        else:
            (Path(place) / SHARD).write_bytes(damaged)
        for read in (read_bag, lambda place: list(feature_blocks(place, n_rows=20)[1])):
            with pytest.raises(BagError, match=r"a\.zarr: its shard is cut short or was changed"):
                read(place)


def test_a_bag_that_zarr_wrote_anew_in_other_chunks(tmp_path):
    bag = make_bag("a", 700)
    write_bag(tmp_path / "a.zarr", bag)
    old = zarr.open_group(tmp_path / "a.zarr", mode="r")
    new = zarr.create_group(tmp_path / "b.zarr", attributes=dict(old.attrs))
    for name in ("features", "coords"):
        new.create_array(name, data=old[name][:], chunks=(100, 2), compressors="auto")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(tmp_path / "b.zarr")
    assert_same(read_bag(tmp_path / "b.zarr"), bag)
    (tmp_path / "b.zarr" / "features" / "c" / "3" / "2").unlink()
    with pytest.raises(BagError, match="has no features/c/3/2"):
        read_bag(tmp_path / "b.zarr")


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
    with pytest.raises(BagError, match=r"b\.zarr: cannot be read: cannot connect. Tried"):
        read_bag(bag_place(bucket, "b"))


def test_the_whole_shard_is_one_object(bucket, endpoint):
    write_bag(bag_place(bucket, "a"), make_bag("a", 1300))
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    found = client.list_objects_v2(Bucket="bags")["Contents"]
    names = sorted(entry["Key"].removeprefix("study 1/a.zarr/") for entry in found)
    assert names == [COORDS, "coords/zarr.json", SHARD, "features/zarr.json", MARKER]
