"""The bundled samples: all there, all open, named in the attribution, split by case, small."""

from __future__ import annotations

import csv
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import cv2
import pytest
import tifffile

from anlage import samples

TEST_CASES = {"erosion", "melanosiscoli", "celiac-disease", "cholesterolpolyp", "liver-hemangioma"}
TASK_ORGANS = {"stomach", "colon", "small_intestine", "gallbladder", "liver"}
SLIDES = sorted(path.name for path in samples.slides_folder().iterdir())


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def data_files() -> list[Path]:
    every = (path for path in samples.samples_folder().rglob("*") if path.is_file())
    return [path for path in every if path.suffix in {".tiff", ".svs", ".jpg"}]


def test_every_slide_has_one_label_row_and_no_row_lacks_its_slide() -> None:
    labelled = [row["slide_id"] for row in table(samples.slides_labels())]
    assert sorted(labelled) == sorted(Path(name).stem for name in SLIDES)
    assert len(set(labelled)) == 19


def test_train_and_test_slides_are_the_thirteen_and_five_cases() -> None:
    rows = table(samples.slides_labels())
    by_split = {
        split: [r["patient_id"] for r in rows if r["split"] == split] for split in ("train", "test")
    }
    assert set(by_split["test"]) == TEST_CASES
    assert len(by_split["train"]) == len(set(by_split["train"])) == 13
    assert not TEST_CASES & set(by_split["train"])
    assert [row["slide_id"] for row in rows if not row["split"]] == ["CMU-1-Small-Region"]


@pytest.mark.parametrize("name", [name for name in SLIDES if name.endswith(".tiff")])
def test_a_window_is_a_two_level_tiled_pyramid_at_one_mpp(name: str) -> None:
    with tifffile.TiffFile(samples.slides_folder() / name) as tiff:
        finest, coarsest = tiff.pages
        assert finest.is_tiled
        assert sorted(finest.shape) == [3, 768, 1024]
        assert [side * 4 for side in coarsest.shape[:2]] == list(finest.shape[:2])
        for page, mpp in ((finest, 1.0), (coarsest, 4.0)):
            pixels_per_cm, denominator = page.tags["XResolution"].value
            assert 1e4 * denominator / pixels_per_cm == pytest.approx(mpp)
            assert page.asarray().std() > 10
        assert "CC BY 4.0" in finest.description
        assert Path(name).stem in finest.description


def test_the_aperio_file_states_its_mpp() -> None:
    with tifffile.TiffFile(samples.slides_folder() / "CMU-1-Small-Region.svs") as tiff:
        assert "MPP = 0.4990" in tiff.pages[0].description


def test_organ_tiles_are_balanced_by_case_and_split_by_case() -> None:
    rows = table(samples.organ_tiles())
    assert {row["label"] for row in rows} == TASK_ORGANS
    per_case = {case: [r for r in rows if r["case"] == case] for case in {r["case"] for r in rows}}
    assert len(per_case) == 16
    for case, tiles in per_case.items():
        assert len(tiles) == 24
        assert {row["split"] for row in tiles} == {"test" if case in TEST_CASES else "train"}
        assert len({row["label"] for row in tiles}) == 1


def test_every_organ_tile_is_listed_once_and_is_what_its_row_says() -> None:
    rows = table(samples.organ_tiles())
    folder = samples.organ_tiles().parent
    assert {folder / row["file"] for row in rows} == set(folder.rglob("*.jpg"))
    for row in rows:
        assert cv2.imread(str(folder / row["file"])).shape == (int(row["size_px"]),) * 2 + (3,)
        assert (row["mpp"], row["size_px"]) == ("1", "128")


def test_no_two_organ_tiles_are_the_same_picture() -> None:
    tiles = [path.read_bytes() for path in samples.organ_tiles().parent.rglob("*.jpg")]
    assert len(set(tiles)) == len(tiles) == 384


def test_attribution_names_every_file_its_licence_and_the_changes() -> None:
    text = (samples.samples_folder() / "ATTRIBUTION.md").read_text(encoding="utf-8")
    patterns = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    for path in data_files():
        name = path.relative_to(samples.samples_folder()).as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns), name
    for licence in (samples.samples_folder() / "licences").iterdir():
        assert f"licences/{licence.name}" in text
        assert licence.stat().st_size > 500
    assert "Serdar Balc\u0131 et al., CC BY 4.0" in text
    assert "Changes to the slides" in text


def test_samples_stay_small() -> None:
    sizes = [path.stat().st_size for path in data_files()]
    assert sum(sizes) <= 9_000_000
    assert max(sizes) < 3_000_000


def test_finding_the_samples_imports_nothing_heavy() -> None:
    code = (
        "import sys; from anlage import samples; samples.organ_tiles();"
        "assert not {'numpy', 'cv2', 'torch', 'tifffile'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
