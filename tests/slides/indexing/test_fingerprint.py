from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from anlage.slides.indexing import fingerprint
from anlage.slides.indexing.fingerprint import slide_fingerprint


def test_a_small_slide_is_hashed_whole(tmp_path: Path, generator: np.random.Generator) -> None:
    first, second = generator.bytes(3_000_000), generator.bytes(5000)
    (tmp_path / "a").write_bytes(first)
    (tmp_path / "b").write_bytes(second)
    assert slide_fingerprint([tmp_path / "a"]) == hashlib.sha256(first).hexdigest()
    both = slide_fingerprint([tmp_path / "a", tmp_path / "b"])
    assert both == hashlib.sha256(first + second).hexdigest()


@pytest.fixture
def small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "WHOLE_UP_TO_BYTES", 1000)
    monkeypatch.setattr(fingerprint, "SAMPLE_BYTES", 10)
    monkeypatch.setattr(fingerprint, "N_SAMPLES", 5)


@pytest.mark.usefixtures("small_samples")
def test_a_large_slide_is_sampled_from_start_to_end(
    tmp_path: Path, generator: np.random.Generator
) -> None:
    content = generator.bytes(2010)
    (tmp_path / "a").write_bytes(content)
    pieces = b"".join(content[k : k + 10] for k in (0, 500, 1000, 1500, 2000))
    expected = hashlib.sha256(b"2010\n" + pieces).hexdigest()
    assert slide_fingerprint([tmp_path / "a"]) == f"sampled:{expected}"


@pytest.mark.usefixtures("small_samples")
@pytest.mark.parametrize("position", [0, 9, 500, 1005, 2009])
def test_a_change_in_any_sample_changes_it(tmp_path: Path, position: int) -> None:
    content = bytearray(2010)
    (tmp_path / "a").write_bytes(content)
    before = slide_fingerprint([tmp_path / "a"])
    content[position] = 1
    (tmp_path / "a").write_bytes(content)
    assert slide_fingerprint([tmp_path / "a"]) != before


@pytest.mark.usefixtures("small_samples")
def test_samples_reach_over_several_files_and_sizes_count(tmp_path: Path) -> None:
    for name, size in (("a", 1003), ("b", 1007), ("c", 1004), ("d", 1006)):
        (tmp_path / name).write_bytes(bytes(size))
    first = slide_fingerprint([tmp_path / "a", tmp_path / "b"])
    assert first != slide_fingerprint([tmp_path / "c", tmp_path / "d"])
    content = bytearray(1003)
    content[1002] = 1  # in the middle piece, which crosses from one file to the next
    (tmp_path / "a").write_bytes(content)
    assert slide_fingerprint([tmp_path / "a", tmp_path / "b"]) != first


def test_the_name_does_not_count(tmp_path: Path) -> None:
    for name in ("a.svs", "b.tif"):
        (tmp_path / name).write_bytes(b"the same")
    assert slide_fingerprint([tmp_path / "a.svs"]) == slide_fingerprint([tmp_path / "b.tif"])
