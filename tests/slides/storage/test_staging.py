from __future__ import annotations

import errno
import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import Faults, FaultyServer, serve
from PIL import Image
from synthetic_slides import tissue_like

from anlage.errors import AnlageError, SlideError
from anlage.slides.formats import remote_opening
from anlage.slides.reader import open_slide
from anlage.slides.storage import staging
from anlage.slides.storage.object_store import RemoteBytes
from anlage.slides.storage.staging import stage

N_BYTES = 300_000
HANG_S = 120


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """Files "0" to "4" of 300 kB, copied in parts of 64 KiB."""
    monkeypatch.setenv("ANLAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(staging, "PART_BYTES", 2**16)
    root = tmp_path / "root"
    root.mkdir()
    for i in range(5):
        (root / str(i)).write_bytes(np.random.default_rng(i).bytes(N_BYTES))
    with serve(root) as server:
        yield server


def source(server: FaultyServer, name: str) -> RemoteBytes:
    return RemoteBytes(server.url(name))


def copies(server: FaultyServer) -> list[str]:
    """Names of all files in the staging folder but the locks."""
    folder = server.root.parent / "cache" / "staged"
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_a_copy_is_the_file(server: FaultyServer) -> None:
    staged = stage(source(server, "0"))
    assert staged.path.name == "0"
    assert staged.path.read_bytes() == (server.root / "0").read_bytes()
    server.forget()
    again = stage(source(server, "0"))
    assert again.path == staged.path
    assert server.n_bytes <= 2**17


def test_a_picture_is_read_from_its_copy(server: FaultyServer) -> None:
    pixels = tissue_like(60, 40)
    Image.fromarray(pixels).save(server.root / "a b.png")
    with open_slide(server.url("a%20b.png"), mpp=0.5) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 60, 40), pixels)
        assert slide.version == source(server, "a%20b.png").version


def test_what_no_reader_knows_is_refused_with_its_address(server: FaultyServer) -> None:
    with pytest.raises(
        SlideError, match="http://.*/0: no reader knows this file.* tiled-tiff: not"
    ):
        open_slide(server.url("0"))


@pytest.mark.parametrize("name", ["a.mrxs", "a.dcm", "a.vms"])
def test_slides_of_many_files_are_refused(server: FaultyServer, name: str) -> None:
    with pytest.raises(SlideError, match="read from a local disk only. Copy all of it"):
        open_slide(server.url(name))
    assert not server.asked


def test_what_was_used_longest_ago_makes_room(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANLAGE_STAGE_GB", "0.001")  # three of the files
    for i, name in enumerate("012"):
        staged = stage(source(server, name))
        staged.release()
        lock = staged.path.parents[1] / (staged.path.parent.name + ".lock")
        os.utime(lock, (1000 + i, 1000 + i))
    stage(source(server, "0")).release()  # used again just now
    stage(source(server, "3")).release()
    assert copies(server) == ["0", "2", "3"]


def test_what_is_in_use_is_kept(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANLAGE_STAGE_GB", "0.001")
    held = [stage(source(server, name)) for name in "012"]
    with pytest.raises(SlideError, match="beside 0.0009 GB of copies that are in use"):
        stage(source(server, "3"))
    assert copies(server) == ["0", "1", "2"]
    held[1].release()
    stage(source(server, "3"))
    assert copies(server) == ["0", "2", "3"]


def test_a_reader_holds_its_copy_until_it_goes(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = io.BytesIO()
    Image.fromarray(tissue_like(60, 40)).save(encoded, "png")
    (server.root / "a.png").write_bytes(encoded.getvalue())
    monkeypatch.setenv("ANLAGE_STAGE_GB", "0.0003")
    slide = open_slide(server.url("a.png"), mpp=0.5)
    with pytest.raises(SlideError, match="in use"):
        stage(source(server, "0"))
    del slide
    gc.collect()
    stage(source(server, "0"))
    assert copies(server) == ["0"]


def test_a_slide_larger_than_the_limit(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANLAGE_STAGE_GB", "0.0002")
    with pytest.raises(SlideError, match="may take 0.0002 GB. Set ANLAGE_STAGE_GB higher, or conv"):
        stage(source(server, "0"))


@pytest.mark.parametrize("text", ["many", "0", "-1", "nan"])
def test_an_absurd_limit(server: FaultyServer, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ANLAGE_STAGE_GB", text)
    with pytest.raises(AnlageError, match=f"needs a number of gigabytes above 0; got '{text}'"):
        stage(source(server, "0"))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk(server: FaultyServer, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(SlideError, match="No space left on device. Free some space, set ANLAGE_C"):
        stage(source(server, "0"))
    assert not copies(server)


def test_a_file_that_changes_while_it_is_copied(server: FaultyServer) -> None:
    remote = source(server, "0")
    (server.root / "0").write_bytes(bytes(N_BYTES))
    with pytest.raises(SlideError, match="has changed"):
        stage(remote)
    assert not copies(server)


def test_what_a_killed_process_left_is_removed(server: FaultyServer) -> None:
    staged = stage(source(server, "0"))
    staged.release()
    left = staged.path.with_name(".0.12345678.part")
    staged.path.rename(left)
    stage(source(server, "0"))
    assert copies(server) == ["0"]


STAGE = """
import sys
from anlage.slides.storage.object_store import RemoteBytes
from anlage.slides.storage.staging import stage
stage(RemoteBytes(sys.argv[1])).release()
"""


def test_two_processes_download_a_slide_once(server: FaultyServer) -> None:
    server.faults = Faults(latency_s=0.05)
    command = [sys.executable, "-c", STAGE, server.url("0")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    for process in processes:
        assert process.wait(HANG_S) == 0
    n_heads = sum(first == 0 for _, _, first, _ in server.asked)
    n_parts = len(server.asked) - n_heads
    assert (n_heads, n_parts) == (3, 0)  # each process looks once; the file is one part
    assert copies(server) == ["0"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_during_a_copy_keeps_nobody_waiting(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the descriptors of the locks that its parent holds in that moment, and keeps them."""
    children: list[int] = []
    make_room = staging._make_room

    def fork_and_make_room(*how: Any) -> None:
        if (child := os.fork()) == 0:
            time.sleep(2 * HANG_S)
            os._exit(0)
        children.append(child)
        make_room(*how)

    monkeypatch.setattr(staging, "_make_room", fork_and_make_room)
    remote = source(server, "0")
    found: list[bytes] = []
    waiting = threading.Thread(
        target=lambda: found.append(stage(remote).path.read_bytes()), daemon=True
    )
    waiting.start()
    waiting.join(HANG_S)
    is_hung = waiting.is_alive()
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not is_hung
    assert len(children) == 1
    assert found == [(server.root / "0").read_bytes()]


def test_a_copy_that_is_finished_while_it_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".a.part").write_bytes(bytes(100))
    iterdir = Path.iterdir

    def finished_meanwhile(folder: Path) -> list[Path]:
        listed = list(iterdir(folder))
        if listed[0].name == ".a.part":
            listed[0].rename(folder / "a")
        return listed

    monkeypatch.setattr(Path, "iterdir", finished_meanwhile)
    assert staging._bytes_in(tmp_path) == 100


def test_a_reader_that_fails_in_any_way_lets_its_copy_go(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(remote_opening, "first_that_opens", fail)
    monkeypatch.setenv("ANLAGE_STAGE_GB", "0.0003")
    with pytest.raises(MemoryError):
        open_slide(server.url("1"))
    stage(source(server, "0"))
    assert copies(server) == ["0"]
