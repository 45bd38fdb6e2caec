from __future__ import annotations

import json
import os
import shutil
import signal
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from slide_tissue import tissue_of_slide
from small_catalogue import SIZE, make_catalogue, write_slide

from anlage.errors import CatalogueError, SlideError
from anlage.slides import catalogue_table, mask_packs, mask_store
from anlage.slides.catalogue import Catalogue, SlideRow
from anlage.slides.catalogue_table import FIXED, table_schema, write_table
from anlage.slides.indexing.index import index_slides
from anlage.slides.mask_store import masks_path
from anlage.slides.masks import tissue_area_mm2


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return make_catalogue(tmp_path)


def rewrite(catalogue: Catalogue, table: pa.Table) -> None:
    """Put another table in the catalogue's place, with the metadata the table brings."""
    pq.write_table(table, catalogue.path)


def test_rows_are_typed_and_hold_what_was_measured(catalogue: Catalogue) -> None:
    first = catalogue.rows()[0]
    assert isinstance(first, SlideRow)
    assert (first.slide_id, first.patient_id, first.uri) == ("a", "p-a", "a.tif")
    assert (first.width, first.height, first.n_levels) == (*SIZE, 1)
    assert (first.mpp, first.mpp_source, first.reader) == (1.0, "tiff", "tiled-tiff")
    assert (first.stain, first.tissue, first.split) == ("H&E", None, "train")
    assert first.level_downsamples == (1.0,)
    assert first.tissue_area_mm2 == pytest.approx(0.0121, rel=0.15)
    assert first.labels == {}
    assert [row.labels for row in catalogue.rows()[1:]] == [{"grade": "1"}, {"grade": "2"}]
    assert catalogue.row("b") == catalogue.rows()[1]
    assert len(catalogue) == 3


def test_opening_it_again_gives_the_same(catalogue: Catalogue) -> None:
    again = Catalogue.open(catalogue.path)
    assert again.rows() == catalogue.rows()
    assert again.fingerprint == catalogue.fingerprint


def test_the_fingerprint_is_of_the_content(catalogue: Catalogue, tmp_path: Path) -> None:
    before = catalogue.fingerprint
    pq.write_table(catalogue.table, catalogue.path, compression="gzip", row_group_size=1)
    assert Catalogue.open(catalogue.path).fingerprint == before
    elsewhere = shutil.copytree(catalogue.path.parent, tmp_path / "elsewhere")
    assert Catalogue.open(elsewhere / "slides.parquet").fingerprint == before
    changed = catalogue.table.set_column(
        catalogue.table.column_names.index("split"), "split", pa.array(["train"] * 3)
    ).replace_schema_metadata(catalogue.table.schema.metadata)
    rewrite(catalogue, changed)
    assert Catalogue.open(catalogue.path).fingerprint != before
    assert catalogue.select(split="train").fingerprint != before


def test_select_is_a_view_that_keeps_the_file_and_its_pictures(catalogue: Catalogue) -> None:
    train = catalogue.select(split="train")
    assert [row.slide_id for row in train.rows()] == ["a", "b"]
    assert train.path == catalogue.path
    assert len(train.select(grade="1")) == 1
    assert [row.slide_id for row in catalogue.select(grade=None).rows()] == ["a"]
    assert len(catalogue.select(split="nowhere")) == 0
    only_c = catalogue.select(split="test")
    np.testing.assert_array_equal(only_c.mask("c").mask, catalogue.mask("c").mask)
    with pytest.raises(CatalogueError, match="no slide 'a' among its 1"):
        only_c.mask("a")


def test_selecting_by_an_unknown_column_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(ValueError, match=r"needs a column .*; got 'colour' \(slide_id,"):
        catalogue.select(colour="blue")


def test_the_mask_is_the_one_of_the_slide(catalogue: Catalogue) -> None:
    with catalogue.open_slide("b") as slide:
        expected = tissue_of_slide(slide)
    found = catalogue.mask("b")
    assert found.mpp == expected.mpp == 8.0
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert catalogue.row("b").tissue_area_mm2 == pytest.approx(tissue_area_mm2(found))


def test_the_thumbnail_looks_like_the_slide(catalogue: Catalogue) -> None:
    found = catalogue.thumbnail("a").astype(float)
    with catalogue.open_slide("a") as slide:
        whole = slide.read_region(0, 0, *slide.size).astype(float)
    assert found.shape == whole.shape
    assert np.abs(found - whole).mean() < 6
    assert found[90, 90, 0] > found[90, 90, 1] + 50  # red before green before blue: not BGR
    assert found[90, 90, 2] > found[90, 90, 1] + 30


def test_a_slide_opens_at_the_catalogues_mpp(catalogue: Catalogue) -> None:
    column = catalogue.table.column_names.index("mpp")
    table = catalogue.table.set_column(column, "mpp", pa.array([0.25, 1.0, 1.0]))
    rewrite(catalogue, table.replace_schema_metadata(catalogue.table.schema.metadata))
    with Catalogue.open(catalogue.path).open_slide("a") as slide:
        assert slide.mpp == 0.25
        assert slide.resolution is not None
        assert slide.resolution.source == "catalogue"


def test_a_slide_that_is_gone_or_changed_is_named(catalogue: Catalogue) -> None:
    (catalogue.path.parent / "a.tif").unlink()
    with pytest.raises(SlideError, match=r"a\.tif: was indexed but cannot be found.*index again"):
        catalogue.open_slide("a")
    with (catalogue.path.parent / "b.tif").open("ab") as file:
        file.write(b"more")
    with pytest.raises(SlideError, match=r"b\.tif: has \d+ bytes; \d+ when it was indexed"):
        catalogue.open_slide("b")


def test_a_slide_of_another_size_is_named(catalogue: Catalogue) -> None:
    column = catalogue.table.column_names.index("width")
    table = catalogue.table.set_column(column, "width", pa.array([256, 300, 256]))
    rewrite(catalogue, table.replace_schema_metadata(catalogue.table.schema.metadata))
    with pytest.raises(SlideError, match="is 256 x 192 px; 300 x 192 when it was indexed"):
        Catalogue.open(catalogue.path).open_slide("b")


def test_an_unknown_slide_is_named(catalogue: Catalogue) -> None:
    for call in (catalogue.row, catalogue.open_slide, catalogue.mask, catalogue.thumbnail):
        with pytest.raises(CatalogueError, match="no slide 'z' among its 3"):
            call("z")


def test_a_catalogue_that_is_missing_damaged_or_foreign_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slides.parquet"
    with pytest.raises(CatalogueError, match=r"does not exist. Make it again with `anlage index"):
        Catalogue.open(path)
    path.write_bytes(b"PAR1 this is not Parquet PAR1")
    with pytest.raises(CatalogueError, match="is no Parquet file, or damaged"):
        Catalogue.open(path)
    pq.write_table(pa.table({"slide_id": ["a"]}), path)
    with pytest.raises(CatalogueError, match="is Parquet but no catalogue"):
        Catalogue.open(path)


def test_half_a_catalogue_is_refused(catalogue: Catalogue) -> None:
    whole = catalogue.path.read_bytes()
    catalogue.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CatalogueError, match="is no Parquet file, or damaged"):
        Catalogue.open(catalogue.path)


def test_another_version_is_refused(catalogue: Catalogue) -> None:
    rewrite(catalogue, catalogue.table.replace_schema_metadata({"anlage.format": "catalogue/9"}))
    with pytest.raises(CatalogueError, match="needs format 'catalogue/2'; got 'catalogue/9'"):
        Catalogue.open(catalogue.path)


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("mpp", None, "has no column 'mpp'"),
        ("mpp", pa.array(["1", "1", "1"]), "needs 'mpp' of type double; got string"),
        ("uri", pa.array(["a", None, "c"]), "has 1 nulls in 'uri'"),
        ("slide_id", pa.array(["a", "b", "a"]), "has slide_id 'a' more than once"),
    ],
)
def test_unusable_columns_are_named(
    catalogue: Catalogue, column: str, values: pa.Array | None, told: str
) -> None:
    index = catalogue.table.column_names.index(column)
    table = catalogue.table.remove_column(index)
    if values is not None:
        table = table.add_column(index, column, values)
    rewrite(catalogue, table.replace_schema_metadata(catalogue.table.schema.metadata))
    with pytest.raises(CatalogueError, match=told):
        Catalogue.open(catalogue.path)


def test_masks_that_are_missing_damaged_or_of_another_index_are_refused(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    other = make_catalogue(tmp_path / "other")
    write_slide(tmp_path / "other" / "a.tif", seed=9)
    other.path.unlink()
    shutil.rmtree(masks_path(other.path))
    again = make_catalogue_again(tmp_path / "other")
    assert again.fingerprint != other.fingerprint
    pack = masks_path(catalogue.path) / "000000.tar"
    shutil.copyfile(masks_path(again.path) / pack.name, pack)
    with pytest.raises(CatalogueError, match="holds the mask of another slide than 'a'"):
        Catalogue.open(catalogue.path).mask("a")
    pack.write_bytes(b"nonsense")
    with pytest.raises(CatalogueError, match=r"000000\.tar: is damaged: it ends too early"):
        Catalogue.open(catalogue.path).mask("a")
    pack.write_bytes(b"nonsense" * 10_000)
    with pytest.raises(CatalogueError, match=r"000000\.tar: is damaged"):
        Catalogue.open(catalogue.path).mask("a")
    pack.unlink()
    with pytest.raises(CatalogueError, match="does not exist; it belongs beside the catalogue"):
        Catalogue.open(catalogue.path).thumbnail("a")


def make_catalogue_again(folder: Path) -> Catalogue:
    result = index_slides([folder], folder / "slides.parquet")
    assert result.catalogue is not None
    return result.catalogue


def test_masks_are_fetched_one_at_a_time_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_store, "N_CACHED_MASKS", 2)
    catalogue = make_catalogue(tmp_path, n_slides=5)
    read: list[int] = []
    original = mask_store.read_member

    def counted(file: BinaryIO, offset: int) -> tuple[str, bytes, int]:
        read.append(offset)
        return original(file, offset)

    monkeypatch.setattr(mask_store, "read_member", counted)
    for slide_id in "aaebea":  # a from the cache, e and b read, b and e cached, a read again
        catalogue.mask(slide_id)
    offsets = dict(zip("abcde", catalogue.column("mask_offset").to_pylist(), strict=True))
    assert read == [offsets[slide_id] for slide_id in "aeba"]


def test_packs_are_tar_files_that_any_program_opens(catalogue: Catalogue) -> None:
    with tarfile.open(masks_path(catalogue.path) / "000000.tar") as pack:
        names = pack.getnames()
        record = pack.extractfile(names[2])
        assert record is not None
        told = json.loads(record.read())
    assert [Path(name).suffix for name in names] == [".png", ".jpg", ".json"] * 3
    assert told["row"]["width"] == SIZE[0]


def test_only_some_packs_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_packs, "PACK_BYTES", 1)
    monkeypatch.setattr(mask_store, "N_OPEN_PACKS", 2)
    catalogue = make_catalogue(tmp_path, n_slides=4)
    assert len(list(masks_path(catalogue.path).glob("*.tar"))) == 4
    for slide_id in "abcdabcd":
        assert catalogue.thumbnail(slide_id).shape == (*SIZE[::-1], 3)
    assert len(catalogue._masks._files) == 2


def test_masks_can_be_asked_for_from_many_threads(tmp_path: Path) -> None:
    catalogue = make_catalogue(tmp_path, n_slides=5)
    alone = {s: Catalogue.open(catalogue.path).mask(s).mask.sum() for s in "abcde"}
    fresh = Catalogue.open(catalogue.path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda s: (s, fresh.mask(s).mask.sum()), "abcde" * 20))
    assert all(alone[slide_id] == total for slide_id, total in found)


def test_a_cached_mask_cannot_be_written_to(catalogue: Catalogue) -> None:
    with pytest.raises(ValueError, match="read-only"):
        catalogue.mask("a").mask[:] = False


def write_many(path: Path, n_rows: int) -> None:
    """A catalogue of made-up rows, without pictures."""
    row = {
        name: [1.0] if "list" in str(kind) and "double" in str(kind) else
        [256] if "list" in str(kind) else "x" if kind == pa.string() else 1
        for name, kind in FIXED.items()
    }  # fmt: skip
    ids = [f"slide-{(i * 7919) % n_rows:05d}" for i in range(n_rows)]
    rows = [row | {"slide_id": slide_id, "width": i} for i, slide_id in enumerate(ids)]
    schema = table_schema()
    write_table(path, [pa.Table.from_pylist(rows, schema=schema)], schema)


def test_many_slides_are_found_without_their_pictures(tmp_path: Path) -> None:
    path = tmp_path / "slides.parquet"
    write_many(path, 20_000)
    assert pq.ParquetFile(path).num_row_groups == 5
    catalogue = Catalogue.open(path)
    assert len(catalogue.select(split="x")) == 20_000
    ids = catalogue.column("slide_id").to_pylist()
    for place in (0, 4095, 4096, 12_345, 19_999):
        row = catalogue.row(ids[place])
        assert (row.slide_id, row.width) == (ids[place], place)
    assert [row.slide_id for row in catalogue.iter_rows()] == ids
    assert not masks_path(path).exists()  # never looked for
    for first, last in ((0, 1), (4000, 8192), (4096, 4097), (8191, 20_000)):
        assert catalogue.rows_between(first, last)["slide_id"].to_pylist() == ids[first:last]
    view = catalogue.select(slide_id="slide-00500")
    assert view.rows_between(0, 1) == view.table


@pytest.mark.parametrize("group_rows", [700, 4096, 20_000])
def test_the_row_groups_of_another_program_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    monkeypatch.setattr(catalogue_table, "MOST_ROWS_PER_GROUP", 5000)
    path = tmp_path / "slides.parquet"
    write_many(path, 20_000)
    before = Catalogue.open(path)
    pq.write_table(pq.read_table(path), tmp_path / "other.parquet", row_group_size=group_rows)
    other = Catalogue.open(tmp_path / "other.parquet")
    assert other.fingerprint == before.fingerprint
    assert other.table == before.table
    assert other.row("slide-12345") == before.row("slide-12345")
    halves = [c.select(slide_id="slide-00007") for c in (before, other)]
    assert halves[0].fingerprint == halves[1].fingerprint
    assert halves[0].rows() == halves[1].rows() == [before.row("slide-00007")]


def test_column_codes_number_values_and_take_nulls_for_one(catalogue: Catalogue) -> None:
    codes, n_values = catalogue.column_codes("grade")
    assert (codes.tolist(), n_values) == ([0, 1, 2], 3)
    codes, n_values = catalogue.column_codes("split")
    assert (codes.tolist(), n_values) == ([0, 0, 1], 2)
    codes, n_values = catalogue.select(split="test").column_codes("tissue")
    assert (codes.tolist(), n_values, codes.dtype) == ([0], 1, np.int64)
    with pytest.raises(ValueError, match="got 'colour'"):
        catalogue.column_codes("colour")


def test_column_codes_of_columns_that_users_added(catalogue: Catalogue) -> None:
    """As pandas writes a "category", or somebody a list."""
    kinds = {
        "site": pa.array(["x", "y", "x"]).dictionary_encode(),
        "scanner": pa.array(["p", None, "p"]).dictionary_encode(),
        "ages": pa.array([[61], None, [63]]),
    }
    table = catalogue.table
    for name, values in kinds.items():
        table = table.append_column(name, values)
    rewrite(catalogue, table)
    again = Catalogue.open(catalogue.path)
    assert again.column_codes("site")[0].tolist() == [0, 1, 0]
    assert again.column_codes("scanner")[0].tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="of single values; got 'ages' of list<"):
        again.column_codes("ages")


def test_a_view_knows_which_slides_it_has(catalogue: Catalogue) -> None:
    train = catalogue.select(split="train")
    assert ["a" in train, "c" in train, "c" in catalogue, "z" in catalogue] == [
        *(True, False, True, False),
    ]
    two = make_ids(catalogue.spread(2))
    assert (two, make_ids(train.spread(1)), make_ids(train.spread(5))) == (
        ["a", "b"],
        ["a"],
        ["a", "b"],
    )


def make_ids(catalogue: Catalogue) -> list[str]:
    return [row.slide_id for row in catalogue.rows()]


def test_a_user_column_of_any_type_is_read_as_text_in_a_row(catalogue: Catalogue) -> None:
    ages = pa.array([[61, 62], None, [63]], pa.list_(pa.int32()))
    rewrite(catalogue, catalogue.table.append_column("ages", ages))
    again = Catalogue.open(catalogue.path)
    assert [row.labels.get("ages") for row in again.rows()] == ["[61, 62]", None, "[63]"]
    assert again.fingerprint != catalogue.fingerprint


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_waits_for_no_thread_of_its_parent(catalogue: Catalogue) -> None:
    """Nor does it move the place at which its parent reads in a pack."""
    expected = catalogue.thumbnail("a")
    with catalogue._masks._lock:
        if (child := os.fork()) == 0:
            is_right = False
            try:
                is_right = not catalogue._masks._files
                is_right &= np.array_equal(catalogue.thumbnail("a"), expected)
            finally:
                os._exit(0 if is_right else 1)
    waited_s, ended = 0.0, 0
    while not ended and waited_s < 60:
        time.sleep(0.05)
        waited_s += 0.05
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("a forked child waits for ever")
    assert status == 0


def test_a_small_table_is_held_by_arrow_and_not_by_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of Arrow's that lets go of Python's bytes after Python's end aborts the process."""
    held: list[object] = []
    reader = pa.BufferReader
    monkeypatch.setattr(pa, "BufferReader", lambda b: (held.append(b), reader(b))[1])
    Catalogue.open(make_catalogue(tmp_path, labelled=False).path)
    assert held
    assert all(isinstance(buffer, pa.Buffer) for buffer in held)
