"""Slides behind HTTP in a catalogue: found, indexed once, opened by their version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from faulty_server import FaultyServer, serve
from moto.server import ThreadedMotoServer
from small_catalogue import write_labels, write_slide

from anlage.errors import SlideError
from anlage.slides.indexing.discovery import find_slides
from anlage.slides.indexing.index import index_slides
from anlage.slides.storage.object_store import RemoteFile


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANLAGE_CACHE", str(tmp_path / "cache"))


def test_a_remote_slide_is_indexed_like_a_local_one(server: FaultyServer, tmp_path: Path) -> None:
    file = write_slide(server.root / "a.tif", seed=1)
    url = server.url("a.tif")
    result = index_slides([url], tmp_path / "slides.parquet")
    assert result.refused == []
    assert result.catalogue is not None
    row = result.catalogue.row("a")
    local = index_slides([file], tmp_path / "local.parquet").catalogue
    assert local is not None
    same = ("width", "height", "mpp", "tissue_area_mm2", "level_tile_width", "n_bytes")
    assert [getattr(row, n) for n in same] == [getattr(local.row("a"), n) for n in same]
    assert row.uri == url == result.catalogue.location("a")
    assert row.version
    assert row.fingerprint == f"etag:{row.version}"
    assert (result.catalogue.mask("a").mask == local.mask("a").mask).all()
    with result.catalogue.open_slide("a") as slide, local.open_slide("a") as there:
        here = slide.read_region(30, 30, 60, 50)
        assert (here == there.read_region(30, 30, 60, 50)).all()
    assert index_slides([url], tmp_path / "slides.parquet").n_read == 0


def test_a_remote_slide_that_was_replaced_is_named_and_indexed_again(
    server: FaultyServer, tmp_path: Path
) -> None:
    write_slide(server.root / "a.tif", seed=1)
    output = tmp_path / "slides.parquet"
    before = index_slides([server.url("a.tif")], output).catalogue
    assert before is not None
    write_slide(server.root / "a.tif", seed=2)
    told = r"a\.tif: has changed since it was opened or indexed"
    with pytest.raises(SlideError, match=told), before.open_slide("a") as slide:
        slide.read_region(0, 0, 64, 64)
    again = index_slides([server.url("a.tif")], output)
    assert again.n_read == 1
    assert again.catalogue is not None
    assert again.catalogue.row("a").fingerprint != before.row("a").fingerprint
    with again.catalogue.open_slide("a") as slide:
        assert slide.read_region(0, 0, 64, 64).any()


def test_an_address_that_gives_no_slide_is_refused_with_its_reason(
    server: FaultyServer, tmp_path: Path
) -> None:
    (server.root / "a.svs").write_bytes(b"no slide" * 100)
    result = index_slides([server.url("a.svs"), server.url("gone.svs")], tmp_path / "s.parquet")
    told = {Path(entry.uri).name: entry.reason for entry in result.refused}
    assert set(told) == {"a.svs", "gone.svs"}
    assert "404" in told["gone.svs"] or "does not exist" in told["gone.svs"]


def test_slides_of_an_address_that_does_not_answer_stay(
    server: FaultyServer, tmp_path: Path
) -> None:
    write_slide(server.root / "a.tif", seed=1)
    local = write_slide(tmp_path / "b.tif", seed=2)
    paths, output = [server.url("a.tif"), local], tmp_path / "slides.parquet"
    index_slides(paths, output)
    server.faults.always = 403
    result = index_slides(paths, output)
    assert [entry.uri for entry in result.refused] == [server.url("a.tif")]
    assert result.catalogue is not None
    assert sorted(result.catalogue.column("slide_id").to_pylist()) == ["a", "b"]
    assert index_slides([local], output).n_accepted == 1


def test_a_prefix_means_the_slides_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("b/c.svs", "a.SVS", "notes.txt", "d.png", "m.mrxs", "m/Data0000.tif", "e%20f.tif")
    listed = [RemoteFile(f"s3://bucket/x/{name}", 7, "v") for name in names]
    asked = []

    def listing(prefix: str) -> list[RemoteFile]:
        asked.append(prefix)
        return listed

    monkeypatch.setattr("anlage.slides.storage.object_store.list_slides_remote", listing)
    slides, refused = find_slides(["s3://bucket/x/"])
    assert (asked, refused) == (["s3://bucket/x/"], [])
    assert [slide.location.removeprefix("s3://bucket/x/") for slide in slides] == [
        *("a.SVS", "b/c.svs", "e%20f.tif", "m.mrxs"),
    ]
    assert {(slide.size, slide.version, slide.files) for slide in slides[:1]} == {
        (7, "v", ("s3://bucket/x/a.SVS",))
    }
    listed.clear()
    assert "holds no slide" in find_slides(["s3://bucket/x"])[1][0].reason


@pytest.mark.slow
def test_slides_of_a_bucket_are_indexed_and_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket="scans")
        for i, key in enumerate(("new/case#2/b.tif", "new/a b.tif", "old/c.tif")):
            client.upload_file(str(write_slide(tmp_path / f"{i}.tif", seed=i)), "scans", key)
        labels = write_labels(tmp_path / "labels.csv", [{"path": "case#2/b.tif", "grade": 1}])
        output = tmp_path / "slides.parquet"
        catalogue = index_slides(["s3://scans/new/"], output, labels=labels).catalogue
        assert catalogue is not None
        uris = ["s3://scans/new/a b.tif", "s3://scans/new/case#2/b.tif"]
        assert catalogue.column("uri").to_pylist() == uris
        assert catalogue.column("grade").to_pylist() == [None, "1"]
        with catalogue.open_slide("b") as slide:
            assert slide.read_region(60, 60, 20, 20).mean() < 200
        added = index_slides(["s3://scans/"], output, add=True, workers=1)
        assert (added.n_accepted, added.n_read, added.refused) == (3, 1, [])
    finally:
        server.stop()


def test_remote_and_local_slides_come_in_the_order_in_which_they_were_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = [RemoteFile("s3://bucket/z.svs", 7, "v")]
    monkeypatch.setattr("anlage.slides.storage.object_store.list_slides_remote", lambda _: listed)
    for name in "ab":
        write_slide(tmp_path / f"{name}.tif")
    slides, _ = find_slides([tmp_path / "b.tif", "s3://bucket/", tmp_path, "s3://bucket/"])
    assert [Path(slide.location).name for slide in slides] == ["b.tif", "z.svs", "a.tif"]
