from __future__ import annotations

import logging
from pathlib import Path

import pytest
from small_catalogue import write_labels

from anlage import samples
from anlage.errors import CatalogueError
from anlage.slides.indexing.labels import read_labels


def test_rows_are_found_by_slide_id(tmp_path: Path) -> None:
    path = write_labels(
        tmp_path / "labels.csv",
        [
            {"slide_id": "a", "patient_id": "p1", "mpp": "0.25", "grade": "2"},
            {"slide_id": "b", "patient_id": "", "mpp": "", "grade": " "},
        ],
    )
    labels = read_labels(path)
    assert labels.columns == ("grade",)
    a, b = (labels.of(str(tmp_path / "deep" / f"{name}.svs")) for name in "ab")
    assert a is not None
    assert b is not None
    assert (a.slide_id, a.mpp, dict(a.values)) == ("a", 0.25, {"patient_id": "p1", "grade": "2"})
    assert (b.slide_id, b.mpp, dict(b.values)) == ("b", None, {"patient_id": None, "grade": None})
    assert labels.of(str(tmp_path / "c.svs")) is None


@pytest.mark.parametrize("separator", [";", "\t"])
def test_cells_that_no_comma_separates_are_named(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(separator.join(["slide_id", "split"]) + "\n" + separator.join(["a", "train"]))
    with pytest.raises(CatalogueError, match="needs commas") as caught:
        read_labels(path)
    assert f"got {separator!r}" in str(caught.value)


@pytest.mark.parametrize("column", ["path", "file"])
def test_rows_are_found_by_the_stem_of_a_path(tmp_path: Path, column: str) -> None:
    rows = [{column: "far/away/a.svs"}, {column: "C:\\scans\\b.tif"}, {column: "x/c.ome.tif"}]
    labels = read_labels(write_labels(tmp_path / "labels.csv", rows))
    for name in ("a.svs", "b.tif", "c.ome.tif"):
        row = labels.of(str(tmp_path / name))
        assert row is not None
        assert row.name.endswith(name)
        assert row.slide_id is None


def test_rows_of_one_stem_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    rows = [{"path": "fine/a.tif", "grade": 1}, {"path": "coarse/a.tif", "grade": 2}]
    labels = read_labels(write_labels(tmp_path / "labels.csv", rows))
    for folder, grade in (("fine", "1"), ("coarse", "2")):
        row = labels.of(str(Path("/data") / folder / "a.tif"))
        assert row is not None
        assert row.values["grade"] == grade
    assert labels.of(str(Path("/data/other/a.tif"))) is None


def test_rows_that_mean_a_file_equally_are_refused(tmp_path: Path) -> None:
    rows = [{"path": "/old/fine/a.svs"}, {"path": "D:\\scans\\fine\\a.svs"}]
    labels = read_labels(write_labels(tmp_path / "labels.csv", rows))
    with pytest.raises(CatalogueError, match="rows .* and .* can both mean /new/fine/a.svs"):
        labels.of(str(Path("/new/fine/a.svs")))


@pytest.mark.parametrize(
    ("written", "found", "is_meant"),
    [
        ("A/a.svs", "/data/B/a.svs", False),
        ("A/a.svs", "/data/A/a.svs", True),
        ("A/a.svs", "/data/A/a.tiff", True),
        ("../A/a.svs", "/data/A/a.svs", True),
        ("C/A/a.svs", "/data/B/A/a.svs", False),
        ("slides/fullres/a.svs", "/shared/slides/fullres/a.svs", True),
        ("/old/place/A/a.svs", "/data/A/a.svs", True),
        ("D:\\scans\\A\\a.svs", "/data/A/a.svs", True),
        ("/old/place/B/a.svs", "/data/A/a.svs", False),
        ("a.svs", "/data/A/a.svs", True),
    ],
)
def test_a_folder_counts_where_files_of_one_name_lie_in_several(
    tmp_path: Path, written: str, found: str, is_meant: bool
) -> None:
    labels = read_labels(write_labels(tmp_path / "labels.csv", [{"path": written}]))
    row = labels.of(found, is_only=False)
    assert (row is not None) == is_meant
    assert labels.of(found) is not None  # there is no other file that it could mean


def test_a_path_finds_a_slide_and_slide_id_names_it(tmp_path: Path) -> None:
    rows = [{"path": "fine/a.tif", "slide_id": "a-fine"}, {"path": "b.tif", "slide_id": ""}]
    labels = read_labels(write_labels(tmp_path / "labels.csv", rows))
    a, b = labels.of(str(Path("/x/fine/a.tif"))), labels.of(str(Path("/x/b.tif")))
    assert a is not None
    assert b is not None
    assert (a.slide_id, b.slide_id) == ("a-fine", None)


def test_organ_is_taken_for_tissue_and_measured_columns_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"slide_id": "a", "organ": "colon", "width": "9", "vendor": "x", "grade": "1"}]
    with caplog.at_level(logging.INFO):
        labels = read_labels(write_labels(tmp_path / "labels.csv", rows))
    assert dict(labels.rows[0].values) == {"tissue": "colon", "grade": "1"}
    assert labels.columns == ("grade",)
    assert "columns vendor, width are measured, not taken from it" in caplog.text
    rows = [{"slide_id": "a", "organ": "colon", "tissue": "wall"}]
    labels = read_labels(write_labels(tmp_path / "labels.csv", rows))
    assert dict(labels.rows[0].values) == {"organ": "colon", "tissue": "wall"}
    assert labels.columns == ("organ",)


def test_a_byte_order_mark_quotes_and_blank_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(b'\xef\xbb\xbfslide_id,note\r\n"a","x, y"\r\n\r\n,\r\nb,z\r\n')
    assert [dict(row.values) for row in read_labels(path).rows] == [{"note": "x, y"}, {"note": "z"}]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name,stain\na,H&E\n", "needs a column slide_id, path or file .*; got name, stain"),
        ("", "needs a column slide_id, path or file .*; got no header"),
        ("slide_id,stain\n,H&E\n", "line 2 names no slide"),
        ("slide_id\na\nb\na\n", "more than one row for the slide 'a'"),
        ("path,slide_id\nx/a.tif,s\ny/b.tif,s\n", "more than one row for slide_id 's'"),
        ("slide_id,mpp\na,half\n", r"a: needs mpp from 0.01 to 1000; got 'half'"),
        ("slide_id,mpp\na,-1\n", "got '-1'"),
        ("slide_id,mpp\na,nan\n", "got 'nan'"),
        ("slide_id,stain,stain\na,x,y\n", "column 'stain' more than once"),
        ("slide_id,stain\na,H&E,more\n", "line 2 needs 2 cells as the header has; got 3"),
        ('slide_id,stain\na,"H&E\n', "is not UTF-8 CSV"),
        (
            "slide_id,patient_id,split\na,p,train\nb,p,test\nc,q,train\n",
            r"1 patients have slides on more than one side of the split: 'p' in test and train",
        ),
    ],
)
def test_unusable_labels_are_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(CatalogueError, match=told):
        read_labels(path)


def test_labels_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="cannot be read: No such file"):
        read_labels(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_bytes("slide_id,note\na,caf\xe9\n".encode("latin-1"))
    with pytest.raises(CatalogueError, match="is not UTF-8 CSV"):
        read_labels(tmp_path / "labels.csv")


def test_a_patient_may_have_slides_without_a_split(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,patient_id,split\na,p,train\nb,p,\nc,,test\nd,,train\n")
    assert len(read_labels(path).rows) == 4


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("https://host/A/a%20b.svs?key=1", "https://host/A/a%20b.svs"),
        ("A/a b.svs", "https://host/A/a%20b.svs?key=2"),
        ("s3://scans/A/c#1 a%20b.svs", "s3://scans/A/c#1 a%20b.svs"),
        ("A/c#1.svs", "s3://scans/A/c#1.svs"),
    ],
)
def test_a_url_is_found_by_its_folders_and_its_name(
    tmp_path: Path, path: str, location: str
) -> None:
    labels = read_labels(write_labels(tmp_path / "labels.csv", [{"path": path, "grade": 1}]))
    assert labels.of(location, is_only=False) is not None
    assert labels.of(location.replace("/A/", "/B/"), is_only=False) is None


def test_the_labels_of_the_samples_are_usable() -> None:
    labels = read_labels(samples.slides_labels())
    assert labels.columns == ("diagnosis", "group")
    assert all(labels.of(str(path)) is not None for path in samples.slides_folder().iterdir())


def test_the_manifest_of_the_shared_data_is_usable(shared_data: Path) -> None:
    labels = read_labels(shared_data / "MANIFEST.csv")
    assert len(labels.rows) == 58
    row = labels.of(str(shared_data / "slides" / "fullres" / "celiac-disease__HE.tiff"))
    assert row is not None
    assert (row.mpp, row.values["tissue"], row.values["split"]) == (0.5, "small_intestine", "test")
