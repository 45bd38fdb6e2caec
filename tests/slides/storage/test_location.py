from __future__ import annotations

from pathlib import Path

import pytest

from anlage.slides.storage.location import absolute, file_name, is_remote, suffix_of


@pytest.mark.parametrize(
    ("location", "remote", "name", "suffix"),
    [
        ("s3://bucket/a/b%20c.SVS", True, "b%20c.SVS", ".svs"),
        ("s3://bucket/a #1?.svs", True, "a #1?.svs", ".svs"),
        ("https://host/a/b%20c.ome.tif?sig=x/y.z", True, "b c.ome.tif", ".tif"),
        ("HTTP://host/a", True, "a", ""),
        ("gs://bucket/a.tiff", True, "a.tiff", ".tiff"),
        ("az://container/a.ndpi", True, "a.ndpi", ".ndpi"),
        ("/data/a b.svs", False, "a b.svs", ".svs"),
        ("data/s3/a.MRXS", False, "a.MRXS", ".mrxs"),
    ],
)
def test_what_a_location_says(location: str, remote: bool, name: str, suffix: str) -> None:
    assert is_remote(location) is remote
    assert file_name(location) == name
    assert suffix_of(location) == suffix


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("a.svs") == absolute(Path("a.svs")) == str(tmp_path / "a.svs")
    assert absolute("s3://bucket/a.svs") == "s3://bucket/a.svs"
