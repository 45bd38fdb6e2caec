import hashlib

import numpy as np
import pytest

from anlage.errors import LabelledDataError
from anlage.evaluation.split_files import read_splits, write_splits
from anlage.probes.splits.grouped import grouped_folds

PATIENT = np.repeat([f"p{number}" for number in range(8)], 2)
LABEL = np.repeat(np.arange(8) % 2, 2)


def test_writes_whole_files_and_reads_the_same_splits_and_hash(tmp_path) -> None:
    splits = grouped_folds(LABEL, PATIENT, n_folds=4)
    path = tmp_path / "new" / "splits.csv"
    digest = write_splits(path, splits, PATIENT)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file.name for file in path.parent.iterdir()] == ["splits.csv"]
    back, again = read_splits(path, PATIENT, PATIENT)
    assert again == digest
    assert [split.test.tolist() for split in back] == [split.test.tolist() for split in splits]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "does not exist"),
        (b"\xff\xfe\x00", "is no UTF-8"),
        (b"patient_id,split\np0,train\np0,test\n", "such as p0"),
        (b"patient_id,split\np0,train\n", "got 1 that the table lacks, such as p1"),
        (b"patient_id,split\np0,train\np1,test\np2,test\n", "the data lacks, such as p2"),
        (b"patient_id,split\np0,train\np1,train\n", "got 4 and 0"),
    ],
)
def test_refuses_with_the_path(tmp_path, content, match) -> None:
    path = tmp_path / "splits.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LabelledDataError, match=match) as refusal:
        read_splits(path, PATIENT[:4], PATIENT[:4])
    assert str(path) in str(refusal.value)


def test_refuses_a_folder(tmp_path) -> None:
    with pytest.raises(LabelledDataError, match=r"cannot be read.*Name a CSV or TSV"):
        read_splits(tmp_path, PATIENT, PATIENT)


def test_refuses_a_patient_on_two_sides_through_slides(tmp_path) -> None:
    path = tmp_path / "splits.csv"
    path.write_text("slide_id,split\ns0,train\ns1,test\ns2,test\n")
    with pytest.raises(LabelledDataError, match="one side only; got 1 on two, such as p0"):
        read_splits(path, ["s0", "s1", "s2"], ["p0", "p0", "p1"])
