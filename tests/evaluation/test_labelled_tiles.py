import re

import numpy as np
import pytest

from anlage import samples
from anlage.errors import LabelledDataError
from anlage.evaluation.labelled_tiles import LabelledTiles


def test_a_csv_is_read(make_tiles) -> None:
    tiles = LabelledTiles.open(make_tiles(columns=("case", "mpp", "fold", "split")))
    assert len(tiles) == 32
    assert tiles.group_column == "case"
    assert tiles.is_grouped
    assert tiles.group_N[:5].tolist() == ["c0"] * 4 + ["c1"]
    assert tiles.label_N[:5].tolist() == ["pink"] * 4 + ["violet"]
    assert set(tiles.fold_N) == {"0", "1"}
    assert set(tiles.side_N) == {"train", "test"}
    assert (tiles.mpp_N == 1).all()


def test_the_bundled_tiles_are_16_cases_of_5_organs() -> None:
    tiles = LabelledTiles.open(samples.organ_tiles())
    assert (len(tiles), len(set(tiles.group_N)), len(set(tiles.label_N))) == (384, 16, 5)


def test_patient_id_goes_before_case_before_group(make_tiles, change_rows) -> None:
    path = make_tiles()
    change_rows(path, lambda rows: [row | {"group": "benign"} for row in rows])
    assert LabelledTiles.open(path).group_column == "case"
    change_rows(path, lambda rows: [row | {"patient_id": row["case"] + "p"} for row in rows])
    assert LabelledTiles.open(path).group_column == "patient_id"
    assert LabelledTiles.open(path, group="group").group_N[0] == "benign"


def test_another_label_column_and_a_choice_of_rows(make_tiles, change_rows) -> None:
    path = make_tiles()
    change_rows(path, lambda rows: [r | {"organ": r["file"][-5], "use": r["case"]} for r in rows])
    tiles = LabelledTiles.open(path, label="organ", where={"use": "c3"})
    assert tiles.label_N.tolist() == ["0", "1", "2", "3"]


def test_unknown_mpp_is_nan_unless_given(make_tiles, change_rows) -> None:
    path = make_tiles(columns=("case",))
    assert np.isnan(LabelledTiles.open(path).mpp_N).all()
    assert (LabelledTiles.open(path, mpp=0.5).mpp_N == 0.5).all()

    def two_known(rows):
        return [row | {"mpp": "0.25" if i < 2 else ""} for i, row in enumerate(rows)]

    assert LabelledTiles.open(change_rows(path, two_known), mpp=2).mpp_N[:3].tolist() == [
        *(0.25, 0.25, 2)
    ]


def test_a_folder_of_class_folders_has_no_cases(make_tiles) -> None:
    folder = make_tiles().parent
    (folder / "labels.csv").unlink()
    for name in ("pink", "violet"):
        (folder / name).mkdir()
    for number, file in enumerate(sorted(folder.glob("*.png"))):
        file.rename(folder / ("pink", "violet")[number % 2] / file.name)
    (folder / ".DS_Store").touch()
    tiles = LabelledTiles.open(folder)
    assert not tiles.is_grouped
    assert len(set(tiles.group_N)) == len(tiles) == 32
    assert tiles.file_N[0].startswith("pink/")
    (folder / "loose.png").touch()
    with pytest.raises(LabelledDataError, match="got loose.png beside them"):
        LabelledTiles.open(folder)


def test_sides_of_a_split_are_no_classes(tmp_path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    with pytest.raises(LabelledDataError, match="got sides of a split"):
        LabelledTiles.open(tmp_path)


def test_fingerprint_follows_labels_groups_mpp_and_files(make_tiles, change_rows) -> None:
    path = make_tiles()
    seen = {LabelledTiles.open(path).fingerprint}
    assert seen == {LabelledTiles.open(path).fingerprint}
    seen.add(LabelledTiles.open(path, group="file").fingerprint)
    change_rows(path, lambda rows: rows[0].update(label="violet"))
    seen.add(LabelledTiles.open(path).fingerprint)
    change_rows(path, lambda rows: rows[0].update(mpp=""))
    seen.add(LabelledTiles.open(path).fingerprint)
    with (path.parent / "case0_0.png").open("ab") as file:
        file.write(b"x")
    seen.add(LabelledTiles.open(path).fingerprint)
    assert len(seen) == 5


def set_first(**values):
    return lambda rows: rows[0].update(values)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (set_first(label=" "), "a label for each tile; got none for 1, such as case0_0.png"),
        (set_first(case=""), "a case for each tile"),
        (set_first(file=""), "a file for each tile; got none for 1, such as row 1"),
        (set_first(file="gone.png"), "got 1 missing, such as gone.png.*relative to the folder"),
        (set_first(file="case0_1.png"), "each file once; got case0_1.png 2 times"),
        (set_first(file="./case0_1.png"), "each file once; got case0_1.png 2 times"),
        (set_first(mpp="0"), "mpp in micrometres per pixel, > 0; got '0' for case0_0.png"),
        (set_first(mpp="20x"), "got '20x'"),
        (set_first(mpp="inf"), "got 'inf'"),
        (set_first(fold="9"), "each case in one fold only; got 1 in two, such as c0"),
        (set_first(split="val"), "each case in one split only"),
        (lambda rows: [row for row in rows if row["label"] == "pink"], "got only 'pink'"),
        (lambda rows: [{"file": row["file"]} for row in rows], "needs a column 'label'; got file"),
    ],
)
def test_refuses_rows(make_tiles, change_rows, edit, match) -> None:
    path = make_tiles(columns=("case", "mpp", "fold", "split"))
    change_rows(path, edit)
    with pytest.raises(LabelledDataError, match=match) as caught:
        LabelledTiles.open(path)
    assert str(caught.value).startswith(str(path))


def test_refuses_what_is_no_table(tmp_path, make_tiles) -> None:
    with pytest.raises(LabelledDataError, match="does not exist"):
        LabelledTiles.open(tmp_path / "none.csv")
    empty = tmp_path / "empty.csv"
    empty.write_text("file,label\n")
    with pytest.raises(LabelledDataError, match=re.escape("got none. Add some")):
        LabelledTiles.open(empty)
    empty.write_text("file,label\na,b,c\n")
    with pytest.raises(LabelledDataError, match="got more in row 2"):
        LabelledTiles.open(empty)
    empty.write_bytes(b"file,label\n\xff\xfe,b\n")
    with pytest.raises(LabelledDataError, match="no UTF-8 CSV"):
        LabelledTiles.open(empty)
    with pytest.raises(LabelledDataError, match="needs a column 'organ'"):
        LabelledTiles.open(make_tiles(), where={"organ": "x"})
    with pytest.raises(LabelledDataError, match="needs a column 'who'"):
        LabelledTiles.open(make_tiles(), group="who")
