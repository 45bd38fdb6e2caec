from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from small_catalogue import write_slide

from anlage.slides.indexing.index import index_slides
from anlage.slides.mask_packs import PackWriter, Pictures, finished_rows, packs_of
from anlage.slides.mask_store import masks_path

HANGS_AT_THE_FIFTH = """
import sys, time
from anlage.slides.indexing import examining
from anlage.slides.indexing.index import index_slides

examine = examining.examine

def hang(task, settings):
    if task.slide_id in {"e", "f", "g", "h"}:
        time.sleep(600)
    return examine(task, settings)

examining.examine = hang
index_slides([sys.argv[1]], sys.argv[2])
"""


def write_pack(folder: Path) -> tuple[Path, list[int]]:
    """Three slides; where each ends."""
    writer, ends = PackWriter(folder), []
    for i in range(3):
        pictures = Pictures(bytes([i]) * (600 + i), b"jpeg" * 100)
        writer.add(f"key{i}", {"fingerprint": f"f{i}", "n": i}, pictures)
        ends.append((folder / "000000.tar").stat().st_size)
    writer.close()
    return folder / "000000.tar", ends


def test_a_pack_that_was_cut_anywhere_gives_its_whole_slides(tmp_path: Path) -> None:
    pack, ends = write_pack(tmp_path)
    assert [row["n"] for row in finished_rows(pack)] == [0, 1, 2]
    whole = pack.read_bytes()
    for cut in (0, 1, 511, 512, 700, *(end + d for end in ends for d in (-513, -1, 0, 1, 512))):
        pack.write_bytes(whole[:cut])
        n_whole = sum(end - 512 < cut for end in ends)  # the record's padding may be missing
        found = [row["n"] for row in finished_rows(pack)]
        assert found in (list(range(n_whole)), list(range(n_whole - 1))), cut
        assert len(found) >= sum(end <= cut for end in ends)


def test_a_slide_whose_pictures_did_not_reach_the_disk_is_not_finished(tmp_path: Path) -> None:
    pack, ends = write_pack(tmp_path)
    content = bytearray(pack.read_bytes())
    content[ends[0] + 600] ^= 1  # in the second mask
    pack.write_bytes(content)
    assert [row["n"] for row in finished_rows(pack)] == [0, 2]


def test_a_record_that_did_not_reach_the_disk_costs_its_slide_only(tmp_path: Path) -> None:
    """A power cut can leave a file its length and, in the middle, zeros."""
    pack, ends = write_pack(tmp_path)
    content = bytearray(pack.read_bytes())
    content[ends[1] - 512 : ends[1]] = bytes(512)  # the second record
    pack.write_bytes(content)
    assert [row["n"] for row in finished_rows(pack)] == [0, 2]


def test_packs_are_numbered_on(tmp_path: Path) -> None:
    write_pack(tmp_path)
    writer = PackWriter(tmp_path)
    row = writer.add("key", {"fingerprint": "f"}, Pictures(b"a", b"b"))
    writer.close()
    assert (row["mask_pack"], row["mask_offset"]) == ("000001.tar", 0)
    assert [pack.name for pack in packs_of(tmp_path)] == ["000000.tar", "000001.tar"]


@pytest.mark.slow
def test_an_index_goes_on_after_kill_9(tmp_path: Path) -> None:
    for i, name in enumerate("abcdefgh"):
        write_slide(tmp_path / f"{name}.tif", seed=i)
    output = tmp_path / "slides.parquet"
    script = textwrap.dedent(HANGS_AT_THE_FIFTH)
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(output)])
    pack = masks_path(output) / "000000.tar"
    deadline = time.monotonic() + 120
    while not pack.exists() or len(list(finished_rows(pack))) < 4:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    child.kill()
    child.wait()
    assert not output.exists()
    with pack.open("ab") as file:  # and it was writing the next one
        file.write(pack.read_bytes()[:900])
    result = index_slides([tmp_path], output)
    assert result.n_read == 4
    assert result.catalogue is not None
    assert result.catalogue.column("slide_id").to_pylist() == list("abcdefgh")
    fresh = index_slides([tmp_path], tmp_path / "fresh.parquet").catalogue
    assert fresh is not None
    assert result.catalogue.fingerprint == fresh.fingerprint
    for name in "aeh":
        assert (result.catalogue.mask(name).mask == fresh.mask(name).mask).all()
