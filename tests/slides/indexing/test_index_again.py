"""Indexing over a catalogue that is there: what is read again, and what must not be lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalogue import make_catalogue, write_labels, write_slide

from anlage.errors import CatalogueError, TissueError
from anlage.folder_lock import lock_folder
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing import examine, index_table
from anlage.slides.indexing.found_slide import read_refused
from anlage.slides.indexing.index import index_slides
from anlage.slides.mask_store import masks_path
from anlage.slides.tissue.finder import TissueFinder


def add_column(catalogue: Catalogue, name: str, values: pa.Array) -> None:
    """As a user would: read the table, append, write it back."""
    table = pq.read_table(catalogue.path)
    pq.write_table(table.append_column(name, values), catalogue.path)


def ids(catalogue: Catalogue | None) -> list[str]:
    assert catalogue is not None
    return catalogue.column("slide_id").to_pylist()


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    before = make_catalogue(tmp_path)
    again = index_slides([tmp_path], before.path)
    assert again.n_read == 0
    assert again.catalogue is not None
    assert again.catalogue.fingerprint == before.fingerprint
    np.testing.assert_array_equal(again.catalogue.mask("b").mask, before.mask("b").mask)
    write_slide(tmp_path / "b.tif", seed=9)
    changed = index_slides([tmp_path], before.path)
    assert changed.n_read == 1
    assert changed.catalogue is not None
    assert changed.catalogue.row("b").fingerprint != before.row("b").fingerprint
    assert changed.catalogue.row("b").patient_id == "p-b"
    assert changed.catalogue.row("a") == before.row("a")
    assert index_slides([tmp_path], before.path, mask_mpp=4.0).n_read == 3


def test_nothing_is_read_again_after_the_folder_was_moved(tmp_path: Path) -> None:
    make_catalogue(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert index_slides([tmp_path / "there"], tmp_path / "there" / "slides.parquet").n_read == 0


def test_columns_that_users_added_stay_with_their_slides(tmp_path: Path) -> None:
    catalogue = make_catalogue(tmp_path)
    kinds = {
        "age": pa.array([61, None, 63], pa.int16()),
        "scores": pa.array([[0.5], [], None], pa.list_(pa.float32())),
        "site": pa.array(["x", "y", "x"]).dictionary_encode(),
        "seen": pa.array([1, 2, None], pa.timestamp("ms")),
    }
    for name, values in kinds.items():
        add_column(catalogue, name, values)
    write_slide(tmp_path / "0.tif", seed=8)
    write_slide(tmp_path / "b.tif", seed=9)
    (tmp_path / "c.tif").unlink()
    result = index_slides([tmp_path], catalogue.path)
    assert result.n_read == 2
    assert ids(result.catalogue) == ["0", "a", "b"]
    assert result.catalogue is not None
    for name, values in kinds.items():
        found = result.catalogue.column(name)
        assert found.type == values.type
        assert found.to_pylist() == [None, *values.to_pylist()[:2]]
    assert result.catalogue.column("patient_id").to_pylist() == ["0", "p-a", "p-b"]


def test_slides_that_are_not_named_stay_only_when_adding(tmp_path: Path) -> None:
    make_catalogue(tmp_path / "old")
    output = tmp_path / "old" / "slides.parquet"
    write_slide(tmp_path / "new" / "0.tif", seed=5)
    (tmp_path / "old" / "b.tif").unlink()
    added = index_slides([tmp_path / "new"], output, add=True)
    assert (added.n_read, ids(added.catalogue)) == (1, ["a", "b", "c", "0"])
    assert added.catalogue is not None
    assert added.catalogue.mask("a").mask.any()
    assert added.catalogue.column("grade").to_pylist() == [None, "1", "2", None]
    again = index_slides([tmp_path / "new", tmp_path / "old"], output, add=True)
    assert (again.n_read, ids(again.catalogue)) == (0, ["a", "b", "c", "0"])
    alone = index_slides([tmp_path / "new"], output)
    assert (alone.n_read, ids(alone.catalogue)) == (0, ["0"])


def test_adding_rewrites_no_pack_and_unused_ones_are_removed(tmp_path: Path) -> None:
    catalogue = make_catalogue(tmp_path / "old")
    first = masks_path(catalogue.path) / "000000.tar"
    was = first.stat()
    write_slide(tmp_path / "new" / "0.tif", seed=5)
    index_slides([tmp_path / "new"], catalogue.path, add=True)
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == (was.st_mtime_ns, was.st_ino)
    index_slides([tmp_path / "new"], catalogue.path)
    assert [p.name for p in masks_path(catalogue.path).glob("*.tar")] == ["000001.tar"]


def test_slides_whose_pictures_are_gone_are_examined_again(tmp_path: Path) -> None:
    output = make_catalogue(tmp_path).path
    pack = masks_path(output) / "000000.tar"
    offset = max(Catalogue.open(output).column("mask_offset").to_pylist())  # the last one written
    pack.write_bytes(pack.read_bytes()[:offset])
    assert index_slides([tmp_path], output).n_read == 1
    shutil.rmtree(masks_path(output))
    result = index_slides([tmp_path], output)
    assert result.n_read == 3
    assert result.catalogue is not None
    assert result.catalogue.mask("c").mask.any()
    assert result.catalogue.row("c").patient_id == "p-c"


def test_a_table_of_many_parts_is_put_together_as_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_table, "ROWS_PER_BLOCK", 2)
    monkeypatch.setattr(index_table, "ROWS_PER_PIECE", 2)
    catalogue = make_catalogue(tmp_path, n_slides=6)
    add_column(catalogue, "age", pa.array([1, 2, 3, 4, 5, 6]))
    write_slide(tmp_path / "bb.tif", seed=8)
    (tmp_path / "d.tif").unlink()
    names = ["f", "bb", "a", "e", "c", "b"]
    paths = [tmp_path / f"{name}.tif" for name in names]
    found = index_slides(paths, catalogue.path).catalogue
    assert found is not None
    assert found.column("slide_id").to_pylist() == names
    assert found.column("age").to_pylist() == [6, None, 1, 5, 3, 2]
    assert found.column("patient_id").to_pylist() == ["p-f", "bb", "p-a", "p-e", "p-c", "p-b"]
    for name in names:
        assert found.row(name).uri == f"{name}.tif"
        assert found.mask(name).mask.any()


def test_adding_to_nothing_or_to_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif")
    with pytest.raises(CatalogueError, match="does not exist"):
        index_slides([tmp_path], tmp_path / "slides.parquet", add=True)
    (tmp_path / "slides.parquet").write_bytes(b"nonsense")
    with pytest.raises(CatalogueError, match="is no Parquet file"):
        index_slides([tmp_path], tmp_path / "slides.parquet", add=True)


@pytest.mark.parametrize("content", [b"nonsense", None], ids=["damaged", "another version"])
def test_a_table_that_cannot_be_used_is_made_anew_from_what_was_examined(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = make_catalogue(tmp_path, labelled=False)
    if content is None:
        old = catalogue.table.replace_schema_metadata({"anlage.format": "catalogue/1"})
        pq.write_table(old, catalogue.path)
    else:
        catalogue.path.write_bytes(content)
    result = index_slides([tmp_path], catalogue.path)
    assert (result.n_read, ids(result.catalogue)) == (0, ["a", "b", "c"])
    assert "making it anew" in caplog.text


@pytest.mark.parametrize("add", [False, True])
def test_a_table_that_holds_something_else_is_not_written_over(tmp_path: Path, add: bool) -> None:
    """As when a user's program drops the schema's metadata: the columns it added would be lost."""
    catalogue = make_catalogue(tmp_path)
    pq.write_table(catalogue.table.replace_schema_metadata({}), catalogue.path)
    before = catalogue.path.read_bytes()
    with pytest.raises(CatalogueError, match="cannot be renewed: is Parquet but no catalogue"):
        index_slides([tmp_path], catalogue.path, add=add)
    assert catalogue.path.read_bytes() == before
    again = catalogue.table.replace_schema_metadata({"anlage.format": "catalogue/2"})
    pq.write_table(again, catalogue.path)
    assert index_slides([tmp_path], catalogue.path).n_read == 0


def test_a_catalogue_of_a_newer_version_is_not_written_over(tmp_path: Path) -> None:
    catalogue = make_catalogue(tmp_path, labelled=False)
    pq.write_table(
        catalogue.table.replace_schema_metadata({"anlage.format": "catalogue/9"}), catalogue.path
    )
    before = catalogue.path.read_bytes()
    with pytest.raises(CatalogueError, match="of a newer anlage. Update anlage"):
        index_slides([tmp_path], catalogue.path)
    assert catalogue.path.read_bytes() == before


@pytest.mark.parametrize("name", ["slides.pq", "slides", "slides.csv", "s3://bucket/a.parquet"])
def test_a_name_that_would_share_masks_or_is_no_file_here_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    catalogue = make_catalogue(tmp_path / "slides")
    for output in (name, Path(name)):
        with pytest.raises(CatalogueError, match=r"ends in \.parquet|is no file of this machine"):
            index_slides([tmp_path / "slides"], output)
    assert catalogue.mask("a").mask.any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slides"]


def test_labels_replace_what_they_name_and_leave_the_rest(tmp_path: Path) -> None:
    output = make_catalogue(tmp_path).path
    rows = [
        {"slide_id": "a", "patient_id": "q", "grade": 7, "stain": ""},
        {"slide_id": "b", "patient_id": "", "grade": "", "stain": "PAS"},
    ]
    labels = write_labels(tmp_path / "more.csv", rows)
    result = index_slides([tmp_path], output, labels=labels)
    assert result.n_read == 0
    assert result.catalogue is not None
    a, b, c = result.catalogue.rows()
    assert (a.patient_id, a.stain, a.split, a.labels) == ("q", None, "train", {"grade": "7"})
    assert (b.patient_id, b.stain, b.split, b.labels) == ("b", "PAS", "train", {})
    assert (c.patient_id, c.stain, c.split, c.labels) == ("p-c", "H&E", "test", {"grade": "2"})
    labels = write_labels(tmp_path / "names.csv", [{"path": "a.tif", "slide_id": "first"}])
    renamed = index_slides([tmp_path], output, labels=labels)
    assert (renamed.n_read, ids(renamed.catalogue)) == (0, ["first", "b", "c"])
    assert ids(index_slides([tmp_path], output).catalogue) == ["first", "b", "c"]


def test_a_patient_whose_slides_come_one_after_the_other_stays_on_one_side(tmp_path: Path) -> None:
    output = make_catalogue(tmp_path / "old").path  # p-a and p-b train, p-c tests
    write_slide(tmp_path / "new" / "0.tif", seed=5)
    before = output.read_bytes()
    rows = [{"slide_id": "0", "patient_id": "p-a", "split": "test"}]
    labels = write_labels(tmp_path / "more.csv", rows)
    with pytest.raises(CatalogueError, match=r"more\.csv: with it 1 patients .*'p-a' in test "):
        index_slides([tmp_path / "new"], output, labels=labels, add=True)
    assert output.read_bytes() == before
    labels = write_labels(tmp_path / "more.csv", [rows[0] | {"split": "train"}])
    result = index_slides([tmp_path / "new"], output, labels=labels, add=True)
    assert (result.n_read, len(ids(result.catalogue))) == (0, 4)


def test_a_slide_that_is_kept_can_be_labelled(tmp_path: Path) -> None:
    output = make_catalogue(tmp_path / "old").path
    write_slide(tmp_path / "new" / "0.tif", seed=5)
    labels = write_labels(tmp_path / "more.csv", [{"slide_id": "b", "stain": "PAS"}])
    result = index_slides([tmp_path / "new"], output, labels=labels, add=True)
    assert result.unmatched_labels == []
    assert result.slides_without_labels == ["0"]
    assert result.catalogue is not None
    assert result.catalogue.column("stain").to_pylist() == ["H&E", "PAS", "H&E", None]


def test_an_mpp_for_a_slide_that_is_only_kept_is_told_not_to_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = make_catalogue(tmp_path / "old").path
    write_slide(tmp_path / "new" / "0.tif", seed=5)
    labels = write_labels(tmp_path / "more.csv", [{"slide_id": "b", "mpp": 0.7}])
    result = index_slides([tmp_path / "new"], output, labels=labels, add=True)
    assert result.catalogue is not None
    assert result.catalogue.row("b").mpp != 0.7
    assert "b.tif keeps its mpp: name it among the slides" in caplog.text
    caplog.clear()
    both = index_slides([tmp_path / "new", tmp_path / "old"], output, labels=labels, add=True)
    assert both.catalogue is not None
    assert both.catalogue.row("b").mpp == 0.7
    assert index_slides([tmp_path / "new"], output, labels=labels, add=True).n_read == 0
    assert "keeps its mpp" not in caplog.text


def test_labels_cannot_go_on_a_users_column_that_is_no_text(tmp_path: Path) -> None:
    catalogue = make_catalogue(tmp_path)
    add_column(catalogue, "who", pa.array([[{"x": 1}]] * 3))
    labels = write_labels(tmp_path / "more.csv", [{"slide_id": "a", "who": "me"}])
    before = catalogue.path.read_bytes()
    with pytest.raises(CatalogueError, match="a column 'who' of list<"):
        index_slides([tmp_path], catalogue.path, labels=labels)
    assert catalogue.path.read_bytes() == before


def test_an_mpp_that_labels_gave_holds_until_they_give_another(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", mpp=None)
    output = tmp_path / "slides.parquet"
    for mpp, n_read in ((1.0, 1), (1.0, 0), (0.8, 1)):
        labels = write_labels(tmp_path / "labels.csv", [{"slide_id": "a", "mpp": mpp}])
        assert index_slides([tmp_path], output, labels=labels).n_read == n_read
    again = index_slides([tmp_path], output)
    assert (again.n_read, again.refused) == (0, [])
    other = write_labels(tmp_path / "other.csv", [{"slide_id": "a", "stain": "PAS"}])
    assert index_slides([tmp_path], output, labels=other).n_read == 0
    cleared = write_labels(tmp_path / "cleared.csv", [{"slide_id": "a", "mpp": ""}])
    assert "mpp" in index_slides([tmp_path], output, labels=cleared).refused[0].reason


def test_a_slide_that_failed_is_tried_again_and_leaves_the_list(tmp_path: Path) -> None:
    output = make_catalogue(tmp_path / "old").path
    bad, worse = tmp_path / "new" / "x.tif", tmp_path / "other" / "y.svs"
    for file in (bad, worse):
        file.parent.mkdir()
        file.touch()
    index_slides([tmp_path / "new", tmp_path / "other"], output, add=True)
    write_slide(bad, seed=6)
    result = index_slides([tmp_path / "new"], output, add=True)
    assert (result.refused, ids(result.catalogue)) == ([], ["a", "b", "c", "x"])
    assert [entry.uri for entry in read_refused(output)] == [str(worse)]  # still refused


def test_a_slide_that_has_become_unreadable_leaves_the_catalogue(tmp_path: Path) -> None:
    output = make_catalogue(tmp_path).path
    (tmp_path / "b.tif").write_bytes(b"damaged")
    result = index_slides([tmp_path], output, add=True)
    assert ids(result.catalogue) == ["a", "c"]
    assert [entry.uri for entry in result.refused] == ["b.tif"]


def test_what_a_killed_index_left_half_written_is_removed(tmp_path: Path) -> None:
    output = make_catalogue(tmp_path).path
    others = [tmp_path / name for name in (".other.parquet.1.part", "slides.parquet.part")]
    for part in (tmp_path / ".slides.parquet.0a1b2c3d.part", *others):
        part.write_bytes(b"half")
    index_slides([tmp_path], output)
    assert not (tmp_path / ".slides.parquet.0a1b2c3d.part").exists()
    assert all(other.exists() for other in others)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    output = make_catalogue(tmp_path).path
    held = lock_folder(masks_path(output), held=AssertionError())
    with held, pytest.raises(CatalogueError, match="is being written by another `anlage index`"):
        index_slides([tmp_path], output)
    assert index_slides([tmp_path], output).n_accepted == 3


def test_masks_that_users_drew_come_first_and_count(tmp_path: Path) -> None:
    from PIL import Image

    masks = tmp_path / "masks"
    masks.mkdir()
    output = make_catalogue(tmp_path / "slides", labelled=False).path
    drawn = np.zeros((24, 32), dtype=np.uint8)
    drawn[3:9, 4:20] = 255
    Image.fromarray(drawn).save(masks / "b.png")
    result = index_slides([tmp_path / "slides"], output, masks=masks)
    assert result.n_read == 1
    assert result.catalogue is not None
    assert result.catalogue.column("tissue_method").to_pylist() == ["otsu", "user", "otsu"]
    np.testing.assert_array_equal(result.catalogue.mask("b").mask, drawn > 0)
    drawn[:] = 255
    Image.fromarray(drawn).save(masks / "b.png")
    result = index_slides([tmp_path / "slides"], output, masks=masks)
    assert result.n_read == 1
    (masks / "b.png").write_bytes(b"no picture")
    result = index_slides([tmp_path / "slides"], output, masks=masks)
    assert "b.png: is no PNG" in result.refused[0].reason


def test_a_drawn_mask_that_is_not_given_again_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    masks = tmp_path / "masks"
    masks.mkdir()
    output = make_catalogue(tmp_path / "slides", labelled=False).path
    Image.fromarray(np.full((24, 32), 255, dtype=np.uint8)).save(masks / "b.png")
    index_slides([tmp_path / "slides"], output, masks=masks)
    index_slides([tmp_path / "slides"], output, masks=masks)
    assert "was drawn" not in caplog.text
    index_slides([tmp_path / "slides"], output)
    assert "1 slides had a mask that was drawn" in caplog.text
    assert "(b)" in caplog.text


def test_masks_that_are_named_like_no_slide_are_told(tmp_path: Path) -> None:
    """A misspelt name would otherwise leave the slide with a mask that nobody drew."""
    masks = tmp_path / "masks"
    masks.mkdir()
    output = make_catalogue(tmp_path / "slides", labelled=False).path
    for name in ("B.png", "b.PNG", "bb.geojson", "notes.txt"):
        (masks / name).write_bytes(b"")
    result = index_slides([tmp_path / "slides"], output, masks=masks)
    assert result.unmatched_masks == ["B.png", "b.PNG", "bb.geojson"]
    assert index_slides([tmp_path / "slides"], output).unmatched_masks == []


def test_weights_that_were_trained_on_have_every_slide_examined_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within one process, in which the method had been loaded with the weights of before."""

    def method(name: str, *, weights: Path) -> TissueFinder:
        darkest = int(weights.read_text())
        return TissueFinder(name=name, find=lambda pixels, _: pixels[..., 1] < darkest)

    monkeypatch.setattr(examine, "tissue_method", method)
    make_catalogue(tmp_path, labelled=False)
    output, weights = tmp_path / "slides.parquet", tmp_path / "net.txt"
    names, areas = [], []
    for darkest, n_read in ((120, 3), (120, 0), (255, 3)):
        weights.write_text(str(darkest))
        os.utime(weights, (darkest, darkest))
        result = index_slides([tmp_path], output, tissue="net", tissue_weights=weights)
        assert result.n_read == n_read
        assert result.catalogue is not None
        names.append(result.catalogue.row("a").tissue_method)
        areas.append(result.catalogue.row("a").tissue_area_mm2)
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("net@")
    assert areas[0] == areas[1] < areas[2]


def test_the_tissue_method_is_recorded_and_an_unknown_one_refused_at_once(tmp_path: Path) -> None:
    output = make_catalogue(tmp_path, labelled=False).path
    result = index_slides([tmp_path], output, tissue="hsv")
    assert result.n_read == 3
    assert result.catalogue is not None
    assert set(result.catalogue.column("tissue_method").to_pylist()) == {"hsv"}
    with pytest.raises(TissueError, match="Did you mean 'otsu'"):
        index_slides([tmp_path], output, tissue="otsy")
    with pytest.raises(TissueError, match="is no folder"):
        index_slides([tmp_path], output, masks=tmp_path / "nowhere")
