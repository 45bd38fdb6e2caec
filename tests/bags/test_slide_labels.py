"""Labels of slides against plain dictionaries; every contradiction by name."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalogue import make_catalogue

from anlage.bags.slide_labels import SlideLabels
from anlage.errors import CatalogueError

TABLE = """slide_id,patient_id,site,grade,alive,months
s1,p1,north,3,true,12.5
s2,p1,north,NA,false,
s3,p2,south,5,,40
"""


def write(tmp_path, text, name="labels.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_slides_is_read_as_it_stands(tmp_path):
    labels = SlideLabels.open(write(tmp_path, TABLE))
    assert labels.slide_ids == ("s1", "s2", "s3")
    assert labels.patient_of == {"s1": "p1", "s2": "p1", "s3": "p2"}
    assert labels.site_of == {"s1": "north", "s2": "north", "s3": "south"}
    assert labels.column("grade") == ("3", None, "5")
    np.testing.assert_array_equal(labels.numbers("months"), [12.5, np.nan, 40])
    np.testing.assert_array_equal(labels.numbers("alive"), [1, 0, np.nan])


def test_the_same_table_in_other_forms_has_the_same_fingerprint(tmp_path):
    wanted = SlideLabels.open(write(tmp_path, TABLE)).fingerprint
    lines = TABLE.splitlines()
    moved = "\n".join([lines[0], *reversed(lines[1:])])
    typed = pa.table(
        {
            "months": [12.5, None, 40.0],
            "slide_id": ["s1", "s2", "s3"],
            "patient_id": pa.array(["p1", "p1", "p2"]).dictionary_encode(),
            "site": ["north", "north", "south"],
            "grade": [3.0, float("nan"), 5.0],
            "alive": [True, False, None],
            "sizes": [[1], [2], [3]],
        }
    )
    pq.write_table(typed, tmp_path / "labels.parquet")
    for path in (
        write(tmp_path, moved, "moved.csv"),
        write(tmp_path, TABLE.replace(",", "\t"), "labels.tsv"),
        write(tmp_path, "\ufeff" + TABLE.replace("\n", "\r\n"), "windows.csv"),
        tmp_path / "labels.parquet",
    ):
        assert SlideLabels.open(path).fingerprint == wanted, path
    other = SlideLabels.open(write(tmp_path, TABLE.replace("12.5", "12.6"), "other.csv"))
    assert other.fingerprint != wanted


def test_a_catalogue_gives_its_labels_and_not_what_it_measured(tmp_path):
    catalogue = make_catalogue(tmp_path)
    rows = catalogue.rows()
    labels = SlideLabels.open(catalogue.path)
    assert labels.patient_of == {row.slide_id: row.patient_id for row in rows}
    assert labels.column("split") == tuple(row.split for row in rows)
    assert not {"width", "mpp", "uri", "fingerprint"} & set(labels.table.columns)


def test_labels_of_patients_hold_for_all_their_slides(tmp_path, caplog):
    path = write(tmp_path, "case_id,site,grade\np1,north,3\np2,south,5\np9,south,1\n")
    slides = write(tmp_path, "slide_id,patient_id\ns1,p1\ns2,p1\ns3,p2\ns4,p3\n", "slides.csv")
    with caplog.at_level(logging.WARNING):
        labels = SlideLabels.open(path, slides=slides)
    assert labels.slide_ids == ("s1", "s2", "s3")
    assert labels.column("grade") == ("3", "3", "5")
    assert labels.patient_of == {"s1": "p1", "s2": "p1", "s3": "p2"}
    assert labels.site_of["s2"] == "north"
    assert "1 patients have labels and no slide, such as p9" in caplog.text
    with pytest.raises(CatalogueError, match="is of patients, not slides"):
        SlideLabels.open(path)


def test_barcodes_give_patients_and_sites_only_if_asked_for(tmp_path, caplog):
    names = ["TCGA-A1-0001-01Z-00-DX1.u", "TCGA-A1-0001-01Z-00-DX2.u", "TCGA-b2-Z003-01Z-00-DX1.u"]
    path = write(tmp_path, "slide_id,y\n" + "".join(f"{name},1\n" for name in names))
    plain = SlideLabels.open(path)
    assert plain.patient_of == {name: name for name in names}
    assert plain.site_of == {}
    assert "has no column of patients: each slide counts as one" in caplog.text
    labels = SlideLabels.open(path, ids="tcga")
    assert list(labels.patient_of.values()) == ["TCGA-A1-0001", "TCGA-A1-0001", "TCGA-B2-Z003"]
    assert list(labels.site_of.values()) == ["A1", "A1", "B2"]
    of_patients = write(tmp_path, "patient_id,y\nTCGA-A1-0001,7\nTCGA-B2-Z003,8\n", "p.csv")
    found = SlideLabels.open(of_patients, slide_ids=names, ids="tcga")
    assert found.column("y") == ("7", "7", "8")
    longer = write(tmp_path, "slide_id,y\nTCGA-A1-00012-01Z,1\n", "longer.csv")
    with pytest.raises(CatalogueError, match="TCGA-A1-00012-01Z: needs a TCGA barcode"):
        SlideLabels.open(longer, ids="tcga")
    with pytest.raises(CatalogueError, match="s1: needs a TCGA barcode"):
        SlideLabels.open(write(tmp_path, TABLE.replace("patient_id", "who"), "x.csv"), ids="tcga")


def test_patients_can_be_named_by_another_table_or_column(tmp_path, caplog):
    cases = write(tmp_path, "slide_id,case_id,site\ns1,p1,n\ns2,,s\n", "cases.csv")
    labels = SlideLabels.open(cases)
    assert labels.patient_of == {"s1": "p1", "s2": "s2"}
    assert labels.site_of == {"s1": "n", "s2": "s"}
    assert "1 slides have no case_id" in caplog.text
    path = write(tmp_path, "slide_id,y\ns1,1\ns2,0\n")
    slides = write(tmp_path, "slide_id,patient_id\ns1,p7\ns2,p7\n", "slides.csv")
    assert SlideLabels.open(path, slides=slides).patient_of == {"s1": "p7", "s2": "p7"}
    slides.write_text("slide_id,patient_id\ns1,p7\n")
    with pytest.raises(CatalogueError, match=r"slides.csv: gives no patient to 1 slides, .* s2"):
        SlideLabels.open(path, slides=slides)


def test_gaps_in_patients_are_filled_from_the_other_source(tmp_path, caplog):
    """Else two slides of a patient would stand on both sides of a split."""
    path = write(tmp_path, "slide_id,patient_id\ns1,p1\ns2,\ns3,\n")
    slides = write(tmp_path, "slide_id,patient_id\ns1,p1\ns2,p1\ns4,p2\n", "slides.csv")
    labels = SlideLabels.open(path, slides=slides)
    assert labels.patient_of == {"s1": "p1", "s2": "p1", "s3": "s3"}
    assert "1 slides have no patient_id" in caplog.text
    slides.write_text("slide_id,patient_id\ns1,p9\ns2,p1\n")
    with pytest.raises(CatalogueError, match="patient 'p1' to slide 's1'.*slides.csv gives 'p9'"):
        SlideLabels.open(path, slides=slides)


def test_gaps_in_patients_are_filled_from_barcodes(tmp_path):
    one, two = "TCGA-A1-0001-01Z-00-DX1", "TCGA-A1-0001-01Z-00-DX2"
    path = write(tmp_path, f"slide_id,patient_id\n{one},TCGA-A1-0001\n{two},\n")
    labels = SlideLabels.open(path, ids="tcga")
    assert labels.patient_of == dict.fromkeys([one, two], "TCGA-A1-0001")
    path.write_text(f"slide_id,patient_id\n{one},case 7\n{two},\n")
    with pytest.raises(CatalogueError, match="its barcode gives 'TCGA-A1-0001'"):
        SlideLabels.open(path, ids="tcga")
    path.write_text(f"slide_id,patient_id\n{one},case 7\n{two},case 7\n")
    assert set(SlideLabels.open(path, ids="tcga").patient_of.values()) == {"case 7"}


def test_rows_that_agree_are_one_and_those_that_do_not_spoil_their_column(tmp_path):
    twice = TABLE + "s1,p1,north,4,true,12.5\ns1,p1,north,9,true,12.5\n"
    labels = SlideLabels.open(write(tmp_path, twice))
    assert labels.slide_ids == ("s1", "s2", "s3")
    assert labels.column("alive") == ("true", "false", None)
    with pytest.raises(CatalogueError, match="slide_id 's1' two values of grade: '3' and '4'"):
        labels.column("grade")
    with pytest.raises(CatalogueError, match="'s1' two values of patient_id: 'p1' and 'p2'"):
        SlideLabels.open(write(tmp_path, TABLE + "s1,p2,north,3,true,12.5\n"))
    with pytest.raises(CatalogueError, match="two values of site"):
        SlideLabels.open(write(tmp_path, TABLE + "s1,p1,south,3,true,12.5\n"))


def test_select_takes_slides_in_order(tmp_path):
    labels = SlideLabels.open(write(tmp_path, TABLE))
    chosen = labels.select(["s3", "s1"])
    assert chosen.column("grade") == ("5", "3")
    assert chosen.patient_of == {"s3": "p2", "s1": "p1"}
    with pytest.raises(CatalogueError, match="no row for 1 slides, such as s9"):
        labels.select(["s1", "s9"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "needs a column of slides or patients"),
        ("slide,grade\na,1\n", r"needs a column of slides or patients .*; got slide, grade"),
        ("slide_id,grade\n", "got none below its header"),
        ("slide_id,grade\na,1\n,2\n", "row 2 has no slide_id"),
        ("slide_id,grade\na,1,3\n", "line 2 needs 2 cells as the header has; got 3"),
        ("slide_id;grade\na;1\n", "needs commas between its cells; got ';'"),
        ("slide_id,grade,grade\na,1,2\n", "has column 'grade' more than once"),
        ('slide_id,grade\n"a,1\n', "is not UTF-8 CSV"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, reason):
    with pytest.raises(CatalogueError, match=reason):
        SlideLabels.open(write(tmp_path, text))


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(CatalogueError, match="No such file"):
        SlideLabels.open(tmp_path / "nothing.csv")
    for name, reason in (("a.parquet", "cannot be read as Parquet"), ("a.csv", "is not UTF-8 CSV")):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00PAR1 no")
        with pytest.raises(CatalogueError, match=reason):
            SlideLabels.open(tmp_path / name)


def test_columns_of_the_wrong_kind_are_refused(tmp_path):
    labels = SlideLabels.open(write(tmp_path, TABLE.replace("12.5", "long").replace("40", "inf")))
    with pytest.raises(
        CatalogueError, match="'months' needs finite numbers; got 'long' for .*'s1'"
    ):
        labels.numbers("months")
    with pytest.raises(CatalogueError, match="needs a column 'stage'; got slide_id, patient_id"):
        labels.column("stage")
    with pytest.raises(CatalogueError, match="finite numbers; got 'inf' for slide 's3'"):
        labels.select(["s3"]).numbers("months")
