from __future__ import annotations

import csv
import logging
import time
from pathlib import Path

import pytest
from small_catalogue import make_catalogue, write_blank, write_labels, write_slide

from anlage import samples
from anlage.errors import CatalogueError
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing import examine, examining
from anlage.slides.indexing.examine import Examined
from anlage.slides.indexing.found_slide import Refused, read_refused
from anlage.slides.indexing.index import catalogue_of, index_slides, kept_catalogue
from anlage.slides.indexing.index_run import IndexResult
from anlage.slides.mask_packs import PackWriter, Pictures

ORIGINAL_OPEN = examine.open_slide


def reasons(result: IndexResult) -> dict[str, str]:
    return {entry.uri: entry.reason for entry in result.refused}


def test_the_samples_index_without_a_refusal(tmp_path: Path) -> None:
    result = index_slides(
        [samples.slides_folder()], tmp_path / "slides.parquet", labels=samples.slides_labels()
    )
    assert (result.n_accepted, result.refused) == (19, [])
    assert (result.unmatched_labels, result.slides_without_labels) == ([], [])
    assert result.catalogue is not None
    assert len(result.catalogue.select(split="train")) == 13
    assert len(result.catalogue.select(split="test")) == 5
    rows = {row.slide_id: row for row in result.catalogue.rows()}
    assert rows["CMU-1-Small-Region"].mpp == pytest.approx(0.499)
    assert rows["CMU-1-Small-Region"].mpp_source == "vendor"
    windows = [
        row for row in rows.values() if row.reader == "tiled-tiff" and row.vendor != "aperio"
    ]
    assert [(row.mpp, row.mpp_source) for row in windows] == [(1.0, "tiff")] * 18
    assert rows["erosion__HE"].level_downsamples == (1.0, 4.0)
    assert rows["erosion__HE"].labels["diagnosis"] == "erosive gastritis"
    assert all(row.tissue_area_mm2 > 0.4 for row in rows.values())
    assert read_refused(tmp_path / "slides.parquet") == []


def test_bad_slides_cost_themselves_and_are_named_with_their_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slides = tmp_path / "slides"
    whole = write_slide(slides / "good.tif").read_bytes()
    (slides / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (slides / "empty.svs").touch()
    (slides / "text.svs").write_text("dear reader, I am no slide\n" * 50)
    write_slide(slides / "unsized.tif", mpp=None)
    write_blank(slides / "blank.tif")
    with caplog.at_level(logging.WARNING):
        result = index_slides([slides, tmp_path / "gone.svs"], tmp_path / "slides.parquet")
    assert result.n_accepted == 1
    told = reasons(result)
    assert set(told) == {
        *(f"slides/{n}" for n in ("cut.tif", "empty.svs", "text.svs", "unsized.tif", "blank.tif")),
        "gone.svs",
    }
    assert "damaged" in told["slides/cut.tif"] or "cut" in told["slides/cut.tif"]
    assert told["slides/empty.svs"].startswith("is empty (0 bytes)")
    assert told["slides/text.svs"].startswith("no reader knows this file")
    assert "mpp" in told["slides/unsized.tif"]
    assert "Add an `mpp` column to the labels file" in told["slides/unsized.tif"]
    assert told["slides/blank.tif"].startswith("no tissue found at 8 mpp")
    assert told["gone.svs"] == "does not exist. Check the path."
    assert len(set(told.values())) == 6
    assert all(name.split("/")[-1] in caplog.text for name in told if name != "gone.svs")
    assert read_refused(tmp_path / "slides.parquet") == result.refused


def test_the_list_of_refused_is_a_csv_beside_the_catalogue(tmp_path: Path) -> None:
    write_slide(tmp_path / "good.tif")
    (tmp_path / "bad, worse.svs").touch()
    index_slides([tmp_path], tmp_path / "slides.parquet")
    with (tmp_path / "slides.refused.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["uri"] for row in rows] == ["bad, worse.svs"]
    assert rows[0]["reason"].startswith("is empty")


def test_an_unexpected_error_is_a_refusal_with_its_type_and_a_logged_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c", "d"):
        write_slide(tmp_path / f"{name}.tif")

    def explode(location: str, **how: object) -> object:
        failures = {
            "b": ZeroDivisionError("no tiles"),
            "c": PermissionError(13, "Permission denied"),
        }
        if Path(location).stem in failures:
            raise failures[Path(location).stem]
        return ORIGINAL_OPEN(location, **how)

    monkeypatch.setattr(examine, "open_slide", explode)
    result = index_slides([tmp_path], tmp_path / "slides.parquet")
    assert [row.slide_id for row in result.catalogue.rows()] == ["a", "d"]
    told = reasons(result)
    assert told["b.tif"] == (
        "cannot be read: ZeroDivisionError: no tiles. The log has the traceback."
    )
    assert told["c.tif"].startswith("cannot be read: Permission denied")
    assert "Traceback" in caplog.text


def test_order_and_content_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    for i, name in enumerate("zyxabc"):
        write_slide(tmp_path / f"{name}.tif", seed=i)
    paths = [tmp_path / f"{name}.tif" for name in "zyxabc"]
    first = index_slides(paths, tmp_path / "one.parquet").catalogue
    second = index_slides(paths, tmp_path / "two.parquet").catalogue
    assert [row.slide_id for row in first.rows()] == list("zyxabc")
    assert first.fingerprint == second.fingerprint


def test_uris_are_relative_below_the_catalogue_and_absolute_elsewhere(tmp_path: Path) -> None:
    inside = write_slide(tmp_path / "data" / "in" / "a.tif")
    outside = write_slide(tmp_path / "else" / "b.tif", seed=1)
    catalogue = index_slides([inside, outside], tmp_path / "data" / "slides.parquet").catalogue
    assert [row.uri for row in catalogue.rows()] == ["in/a.tif", str(outside)]
    assert [catalogue.location(s) for s in "ab"] == [str(inside), str(outside)]
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    with Catalogue.open(moved / "slides.parquet").open_slide("a") as slide:
        assert slide.mpp == 1.0


def test_slides_of_one_name_are_refused_with_the_fix(tmp_path: Path) -> None:
    fine = write_slide(tmp_path / "fine" / "a.tif")
    coarse = write_slide(tmp_path / "coarse" / "a.tif", seed=1)
    result = index_slides([fine, coarse], tmp_path / "slides.parquet")
    assert result.n_accepted == 1
    told = reasons(result)["coarse/a.tif"]
    assert f"slide_id 'a' is taken by {fine}" in told
    assert "labels file with columns path and slide_id" in told
    rows = [{"path": "fine/a.tif", "slide_id": "a1"}, {"path": "coarse/a.tif", "slide_id": "a2"}]
    labels = write_labels(tmp_path / "labels.csv", rows)
    result = index_slides([fine, coarse], tmp_path / "slides.parquet", labels=labels)
    assert [row.slide_id for row in result.catalogue.rows()] == ["a1", "a2"]
    assert result.refused == []


def test_a_refused_slide_does_not_take_its_name(tmp_path: Path) -> None:
    bad = tmp_path / "bad" / "a.tif"
    bad.parent.mkdir()
    bad.touch()
    good = write_slide(tmp_path / "good" / "a.tif")
    result = index_slides([bad, good], tmp_path / "slides.parquet")
    assert [row.uri for row in result.catalogue.rows()] == ["good/a.tif"]


def test_labels_are_joined_and_what_does_not_match_is_named_both_ways(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        write_slide(tmp_path / f"{name}.tif")
    (tmp_path / "bad.svs").touch()
    rows = [
        {"slide_id": "a", "patient_id": "p", "tissue": "colon", "mpp": 0.8, "grade": 3},
        {"slide_id": "b", "patient_id": "", "tissue": "", "mpp": "", "grade": ""},
        {"slide_id": "bad", "patient_id": "", "tissue": "", "mpp": "", "grade": 1},
        {"slide_id": "nowhere", "patient_id": "", "tissue": "", "mpp": "", "grade": 2},
    ]
    labels = write_labels(tmp_path / "labels.csv", rows)
    with caplog.at_level(logging.INFO):
        result = index_slides([tmp_path], tmp_path / "slides.parquet", labels=labels)
    a, b, c = result.catalogue.rows()
    assert (a.patient_id, a.tissue, a.mpp, a.mpp_source) == ("p", "colon", 0.8, "catalogue")
    assert a.labels == {"grade": "3"}
    assert (b.patient_id, b.tissue, b.mpp, b.mpp_source) == ("b", None, 1.0, "tiff")
    assert (c.patient_id, c.labels) == ("c", {})
    assert result.unmatched_labels == ["nowhere"]
    assert result.slides_without_labels == ["c"]
    assert "2 of 3 slides count as a patient of their own" in caplog.text


def test_a_label_of_another_folder_is_not_taken(tmp_path: Path) -> None:
    """A/a.tif is labelled but damaged; its label must not go to another patient's B/a.tif."""
    write_slide(tmp_path / "B" / "a.tif")
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "a.tif").write_bytes(b"damaged")
    labels = write_labels(tmp_path / "labels.csv", [{"path": "A/a.tif", "patient_id": "p"}])
    result = index_slides([tmp_path], tmp_path / "slides.parquet", labels=labels)
    assert [(row.uri, row.patient_id) for row in result.catalogue.rows()] == [("B/a.tif", "a")]
    assert (result.unmatched_labels, result.slides_without_labels) == ([], ["a"])
    rows = [{"path": "A/b.tif", "patient_id": "p"}, {"path": "C/b.tif", "patient_id": "q"}]
    write_slide(tmp_path / "D" / "b.tif")
    labels = write_labels(tmp_path / "labels.csv", rows)
    result = index_slides([tmp_path / "D"], tmp_path / "slides.parquet", labels=labels)
    assert result.unmatched_labels == ["A/b.tif", "C/b.tif"]
    assert result.slides_without_labels == ["b"]


def test_an_mpp_in_the_labels_saves_a_slide_without_one(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", mpp=None)
    labels = write_labels(tmp_path / "labels.csv", [{"slide_id": "a", "mpp": 1.0}])
    result = index_slides([tmp_path], tmp_path / "slides.parquet", labels=labels)
    assert result.refused == []
    with result.catalogue.open_slide("a") as slide:
        assert slide.mpp == 1.0


def test_unusable_labels_stop_the_run_before_a_slide_is_opened(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif")
    rows = [
        {"slide_id": "a", "patient_id": "p", "split": "train"},
        {"slide_id": "b", "patient_id": "p", "split": "test"},
    ]
    labels = write_labels(tmp_path / "labels.csv", rows)
    with pytest.raises(CatalogueError, match="'p' in test and train"):
        index_slides([tmp_path], tmp_path / "slides.parquet", labels=labels)
    assert not (tmp_path / "slides.parquet").exists()


def test_nothing_usable_gives_no_catalogue_and_keeps_an_older_one(tmp_path: Path) -> None:
    catalogue = make_catalogue(tmp_path, n_slides=2)
    (tmp_path / "new" / "a.svs").parent.mkdir()
    (tmp_path / "new" / "a.svs").touch()
    result = index_slides([tmp_path / "new"], tmp_path / "slides.parquet")
    assert result.catalogue is None
    assert result.n_accepted == 0
    assert [entry.uri for entry in read_refused(tmp_path / "slides.parquet")] == ["new/a.svs"]
    assert Catalogue.open(catalogue.path).mask("a").mask.any()
    assert not list(tmp_path.glob(".*"))


def test_indexing_again_replaces_the_catalogue_and_its_masks(tmp_path: Path) -> None:
    make_catalogue(tmp_path, n_slides=3)
    (tmp_path / "a.tif").unlink()
    write_slide(tmp_path / "b.tif", seed=7)
    catalogue = index_slides([tmp_path], tmp_path / "slides.parquet").catalogue
    assert [row.slide_id for row in catalogue.rows()] == ["b", "c"]
    assert catalogue.mask("b").mask.any()
    assert not list(tmp_path.glob(".*"))


def test_the_mask_has_the_resolution_that_was_asked_for(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif")
    catalogue = index_slides([tmp_path], tmp_path / "slides.parquet", mask_mpp=4.0).catalogue
    assert catalogue.mask("a").mpp == 4.0
    assert catalogue.mask("a").mask.shape == (48, 64)


@pytest.mark.parametrize("mask_mpp", [0.1, 1000.0, float("nan")])
def test_an_absurd_mask_mpp_is_refused(tmp_path: Path, mask_mpp: float) -> None:
    with pytest.raises(ValueError, match=r"needs mask_mpp from 0\.5 to 100\.0"):
        index_slides([tmp_path], tmp_path / "slides.parquet", mask_mpp=mask_mpp)


def test_a_damaged_list_of_refused_is_named(tmp_path: Path) -> None:
    (tmp_path / "slides.refused.csv").write_text("something,else\n1,2\n")
    with pytest.raises(CatalogueError, match="is not the list that `anlage index` writes"):
        read_refused(tmp_path / "slides.parquet")
    assert read_refused(tmp_path / "other.parquet") == []


def test_refused_is_a_value() -> None:
    assert Refused("a", "b") == Refused("a", "b")


@pytest.mark.slow
def test_every_file_of_the_shared_data_is_indexed_or_refused(
    tmp_path: Path, shared_data: Path
) -> None:
    folder = shared_data / "slides"
    output = tmp_path / "slides.parquet"
    result = index_slides([folder], output, labels=shared_data / "MANIFEST.csv")
    good = {row.uri for row in result.catalogue.rows()}
    told = reasons(result)
    every = {path for path in folder.rglob("*") if path.is_file() and "_files" not in str(path)}
    named = " ".join(told.values())
    for path in every:
        places = (str(path) in good) + (str(path) in told)
        assert places == 1 or (places == 0 and path.name in named), path
    assert result.n_accepted >= 38
    assert (result.unmatched_labels, result.slides_without_labels) == ([], [])
    by_name = {Path(uri).name: reason for uri, reason in told.items()}
    for name in ("TCGA-CR-7395-01A-01-TS1.svs", "kidney-48-5_IHC.tif"):
        assert "mpp" in by_name[name]
    for name in ("highdicom_sm_image.dcm", "highdicom_sm_image_dots.dcm"):
        assert "no tissue found" in by_name[name]
    assert "highdicom_seg_image_sm_control.dcm" in by_name
    assert {row.slide_id for row in result.catalogue.select(split="test").rows()} == {
        *("celiac-disease__HE", "cholesterolpolyp__HE", "erosion__HE", "liver-hemangioma__HE"),
        "melanosiscoli__HE",
    }
    for row in result.catalogue.rows():
        assert result.catalogue.mask(row.slide_id).mask.any()
        assert max(result.catalogue.thumbnail(row.slide_id).shape[:2]) <= 512


def test_a_full_disk_is_told_before_every_slide_was_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        (tmp_path / f"{i}.tif").touch()
    examined = []

    def slow(task: object, _: object) -> Examined:
        examined.append(task)
        time.sleep(0.01)
        return Examined({"fingerprint": "f"}, Pictures(b"", b""))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(examining, "examine", slow)
    monkeypatch.setattr(PackWriter, "add", full)
    with pytest.raises(OSError, match="No space left"):
        index_slides([tmp_path], tmp_path / "slides.parquet")
    assert len(examined) < 10


def test_a_catalogue_is_kept_once_it_is_there(tmp_path: Path) -> None:
    """Killed before the table is written: the slides are indexed, without reading them again."""
    catalogue = make_catalogue(tmp_path)
    kept = kept_catalogue(catalogue.path)
    assert kept is not None
    assert kept[0].fingerprint == catalogue.fingerprint
    write_slide(tmp_path / "later.tif", seed=9)
    assert len(catalogue_of(tmp_path, folder=tmp_path, keep=True)[0]) == 3
    catalogue.path.unlink()
    assert kept_catalogue(catalogue.path) is None
    assert index_slides([tmp_path], catalogue.path).n_read == 1
    assert len(catalogue_of(tmp_path, folder=tmp_path, keep=True)[0]) == 4
