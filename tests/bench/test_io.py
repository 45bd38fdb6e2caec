"""The measurement of reading: what it counts, what it says, and what it does with bad slides."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from faulty_server import serve
from synthetic_slides import ArraySlide, overwrite_tile, tissue_like, write_tiff

from anlage.bench import io
from anlage.bench.decoding import native_work
from anlage.bench.io import measure_io
from anlage.bench.io_report import IoReport, IoSettings, Limit
from anlage.cli.machine import bench_io
from anlage.errors import CatalogueError, TrainingError
from anlage.slides.formats.tiled_picture import TiledPicture
from anlage.slides.indexing.index import index_slides
from anlage.slides.levels import TileWindow
from anlage.slides.reader import open_slide
from anlage.slides.regions import read_tiles

JPEG = {"compression": "jpeg", "tile": (64, 64), "photometric": "ycbcr"}
QUICK = IoSettings(tile_px=64, n=24, rounds=1)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANLAGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Three slides of tissue at 0.25 mpp: two in JPEG, one not."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed, name in enumerate(("a", "b", "c")):
        pixels = np.full((640, 768, 3), 243, np.uint8)
        pixels[64:-64, 64:-64] = tissue_like(640, 512, seed=seed) // 2 + np.uint8([90, 10, 70])
        how = JPEG if name != "c" else {"compression": "deflate", "tile": (64, 64)}
        write_tiff(folder / f"{name}.tif", [pixels], mpp=0.25, **how)
    return folder


def windows(n: int, *, size_px: int = 60, mpp: float = 0.5) -> list[TileWindow]:
    corners = np.random.default_rng(n).integers(-40, 700, (n, 2))
    return [TileWindow(x, y, size_px, mpp) for x, y in corners.tolist()]


@pytest.mark.parametrize("decode", ["scaled", "full"])
@pytest.mark.parametrize("name", ["a", "c"])
def test_the_limit_decodes_what_reading_decodes(
    slides: Path, name: str, decode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[tuple[int, int]] = []
    plain = TiledPicture.decode

    def counting(self: TiledPicture, index: int, data: bytes, **how: object) -> np.ndarray:
        decoded.append((index, len(data)))
        return plain(self, index, data, **how)

    with open_slide(slides / f"{name}.tif") as slide:
        chosen = windows(12)
        work = native_work(slide, chosen, decode=decode)
        assert work is not None
        monkeypatch.setattr(TiledPicture, "decode", counting)
        read_tiles(slide, chosen, decode=decode)
        assert work.n_native == len(decoded) == len(set(decoded))
        assert work.n_bytes == sum(count for _, count in decoded)
        assert work.decoder == ("simplejpeg" if name == "a" else "deflate")
        decoded.clear()
        work.decode()
        assert len(decoded) == (0 if name == "a" else work.n_native)


def test_tiles_beyond_the_slide_take_no_decoding(slides: Path) -> None:
    with open_slide(slides / "a.tif") as slide:
        work = native_work(slide, [TileWindow(5000, 0, 64, 0.5)], decode="scaled")
        assert work is not None
        assert (work.n_native, work.n_bytes) == (0, 0)
        work.decode()


def test_a_reader_that_hides_its_tiles_has_no_limit() -> None:
    slide = ArraySlide([tissue_like(300, 200)], mpp=0.5)
    assert native_work(slide, windows(3), decode="scaled") is None


def test_what_is_measured_and_told(slides: Path) -> None:
    report = measure_io([str(slides)], QUICK)
    assert (report.n_tiles, report.n_slides, report.n_lost) == (24, 3, 0)
    assert report.readers.keys() == {"tiled-tiff"}
    assert report.wait is None
    limit = report.limit
    assert limit is not None
    assert limit.decoders == ["deflate", "simplejpeg"]
    assert limit.n_tiles == 24
    assert 4 <= limit.native_tiles_per_tile <= 9  # 128 px of level 0, in native tiles of 64
    assert limit.bytes_per_tile > 1000
    assert 0 < limit.share_reached < 2
    for rate in (report.tiles_per_s, report.tiles_per_cpu_s, report.loader_tiles_per_s):
        assert math.isfinite(rate)
        assert rate > 0
    told = json.loads(json.dumps(report.as_json()))
    assert told["format"] == "bench-io/1"
    assert told["settings"]["tile_px"] == 64
    assert told["limit"]["native_tiles_per_tile"] == limit.native_tiles_per_tile
    text = "\n".join(report.as_lines())
    for part in ("3 by tiled-tiff", "24 of 64 px at 0.5 µm", "by deflate, simplejpeg", "2 threads"):
        assert part in text


def test_regions_share_native_tiles(slides: Path) -> None:
    alone = measure_io([str(slides / "a.tif")], QUICK).limit
    shared = measure_io([str(slides / "a.tif")], IoSettings(tile_px=64, n=24, per_region=16)).limit
    assert alone is not None
    assert shared is not None
    assert shared.native_tiles_per_tile < 0.7 * alone.native_tiles_per_tile
    assert shared.bytes_per_tile < 0.8 * alone.bytes_per_tile


def test_a_consumer_gets_no_more_than_it_takes(slides: Path) -> None:
    settings = IoSettings(tile_px=64, n=128, rounds=1, rate=400)
    wait = measure_io([str(slides)], settings).wait
    assert wait is not None
    assert 0 <= wait.share <= 1
    assert 0 < wait.tiles_per_s <= 400
    assert wait.first_batch_s > 0


def test_slides_that_cannot_be_used_are_told(slides: Path, tmp_path: Path) -> None:
    (slides / "empty.svs").touch()
    report = measure_io([str(slides), str(tmp_path / "nowhere")], QUICK)
    assert sorted(Path(uri).name for uri, _ in report.refused) == ["empty.svs", "nowhere"]
    assert "2 refused" in next(iter(report.as_lines()))
    with pytest.raises(CatalogueError, match="needs a usable slide; got none .*0 bytes"):
        measure_io([str(slides / "empty.svs")], QUICK)


def test_of_many_slides_no_fewer_than_wanted_are_taken_evenly(
    slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(slides / "a.tif", slides / "d.tif")
    for most, expected in ((2, "ac"), (3, "abc"), (9, "abcd")):
        monkeypatch.setattr(io, "MOST_SLIDES", most)
        with io._catalogue([str(slides)]) as (catalogue, _):
            assert catalogue.column("slide_id").to_pylist() == list(expected)


def test_slides_too_coarse_are_refused_by_their_own_name(slides: Path) -> None:
    with pytest.raises(TrainingError, match=r"a\.tif: needs slides that give 64 px tiles at 0.1"):
        measure_io([str(slides / "a.tif")], IoSettings(tile_px=64, n=4, mpp=0.1))


def test_a_damaged_tile_costs_its_tiles_and_is_counted(slides: Path, tmp_path: Path) -> None:
    catalogue = tmp_path / "slides.parquet"
    index_slides([slides / "a.tif"], catalogue)
    for tile in range(40, 70):
        overwrite_tile(slides / "a.tif", page=0, tile=tile, data=b"damaged")
    report = measure_io([str(catalogue)], QUICK)
    assert 0 < report.n_lost < 24
    assert f"{report.n_lost} of them lost" in "\n".join(report.as_lines())


def test_remote_slides_are_measured_too(slides: Path) -> None:
    with serve(slides) as server:
        report = measure_io([server.url("a.tif")], QUICK)
        assert (report.n_tiles, report.n_lost) == (24, 0)
        assert report.limit is not None
        with open_slide(server.url("a.tif")) as slide:
            far_apart = [TileWindow(70, 70, 32, 0.25), TileWindow(600, 500, 32, 0.25)]
            work = native_work(slide, far_apart, decode="full")
            assert work is not None
            n_before = len(server.asked)
            read_tiles(slide, far_apart, decode="full")
            asked = [last - first + 1 for _, _, first, last in server.asked[n_before:]]
            assert work.n_bytes == sum(asked)


def test_without_a_limit_the_table_says_why() -> None:
    report = IoReport(QUICK, 1, 24, 0, {"openslide": 24}, 100.0, 90.0, None)
    assert any("do not give out their native tiles" in line for line in report.as_lines())
    part = Limit(["simplejpeg"], 12, 700.0, 0.9, 9.8, 116e3)
    report = IoReport(QUICK, 2, 24, 0, {"openslide": 12, "tiled-tiff": 12}, 100.0, 90.0, part)
    assert any("simplejpeg (12 tiles)" in line for line in report.as_lines())


def test_the_command_prints_json(slides: Path) -> None:
    run = subprocess.run(
        [
            *(sys.executable, "-m", "anlage", "bench", "io", str(slides / "a.tif")),
            *("--tile-px", "64", "-n", "8", "--rounds", "1", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["n_tiles"] == 8
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_ends_with_3_where_slides_were_refused(
    slides: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,
) -> None:
    monkeypatch.setattr("anlage.cli.machine.log_to", lambda _: None)
    (slides / "empty.svs").touch()
    with pytest.raises(typer.Exit) as ended:
        bench_io([str(slides)], tile_px=64, n=8, rounds=1, as_json=as_json)
    assert ended.value.exit_code == 3
    assert "empty.svs" in capsys.readouterr().out
