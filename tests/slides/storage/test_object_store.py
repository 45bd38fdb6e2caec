"""A bucket, as a local server that speaks S3 keeps one."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from synthetic_slides import pyramid, write_tiff

from anlage.errors import SlideError
from anlage.slides.reader import open_slide
from anlage.slides.storage.byte_source import SlideChangedError, open_bytes
from anlage.slides.storage.object_store import list_slides_remote

BUCKET = "slides"
KEY = "study 1/case#2/a b.tiff"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A bucket with one slide, and the same slide as a local file."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "ANLAGE_CACHE": str(tmp_path / "cache"),
        "ANLAGE_REMOTE_SECONDS": "20",
    }.items():
        monkeypatch.setenv(name, value)
    path = write_tiff(tmp_path / "local.tiff", pyramid(700, 500), compression="jpeg")
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    client.upload_file(str(path), BUCKET, KEY)
    yield path
    reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()


def test_pixels_are_those_of_the_local_file(bucket: Path) -> None:
    with open_slide(bucket) as here, open_slide(f"s3://{BUCKET}/{KEY}") as there:
        assert there.levels == here.levels
        for level, shape in enumerate(here.levels):
            region = (0, 0, shape.width, shape.height)
            np.testing.assert_array_equal(
                there.read_region(*region, level=level), here.read_region(*region, level=level)
            )


def test_a_listing_gives_what_reading_needs(bucket: Path) -> None:
    (found,) = list_slides_remote(f"s3://{BUCKET}/study 1/")
    assert (found.uri, found.size) == (f"s3://{BUCKET}/{KEY}", bucket.stat().st_size)
    source = open_bytes(found.uri, version=found.version, size=found.size)
    assert source.read(5, 100) == bucket.read_bytes()[5:105]
    assert list_slides_remote(f"s3://{BUCKET}") == [found]
    assert list_slides_remote(f"s3://{BUCKET}/study") == []


def test_an_object_that_was_replaced(bucket: Path, endpoint: str) -> None:
    (found,) = list_slides_remote(f"s3://{BUCKET}/")
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.put_object(Bucket=BUCKET, Key=KEY, Body=bytes(found.size))
    with pytest.raises(SlideChangedError, match="has changed since"):
        open_bytes(found.uri, version=found.version, size=found.size).read(0, 10)


@pytest.mark.parametrize("location", [f"s3://{BUCKET}/none.svs", "s3://no-such-bucket/a.svs"])
def test_nothing_there(bucket: Path, location: str) -> None:
    with pytest.raises(SlideError, match=f"{location}: does not exist"):
        open_slide(location)


def test_a_web_address_cannot_be_listed() -> None:
    with pytest.raises(SlideError, match="whose files cannot be listed. Name each slide's address"):
        list_slides_remote("https://example.org/slides/")


def test_without_credentials(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("ANLAGE_REMOTE_SECONDS", "3")
    with pytest.raises(SlideError, match="found no credentials. Set AWS_ACCESS_KEY_ID, AWS_SEC"):
        open_slide(f"s3://{BUCKET}/{KEY}")
