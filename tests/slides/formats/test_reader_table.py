from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_slides import tissue_like

GUIDE = Path(__file__).parents[3] / "docs" / "how_to" / "add_a_reader.md"
LIMIT_S = 120


def install(folder: Path, module: str, code: str, entry_points: Mapping[str, str]) -> None:
    """A package as an installer leaves it: a module, and beside it what it says of itself."""
    (folder / f"{module}.py").write_text(code)
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (about / "entry_points.txt").write_text("\n".join(["[anlage.slide_readers]", *lines]) + "\n")


def run(packages: Path, code: str, *arguments: object) -> str:
    """What a new interpreter that has these packages installed prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with the package of the guide installed, exactly as the guide prints it."""
    blocks = dict(re.findall(r"```(python|toml)\n(.*?)```", GUIDE.read_text(), re.DOTALL))
    name, value = re.findall(r'^(\w+) = "([\w:]+)"$', blocks["toml"], re.MULTILINE)[-1]
    folder = tmp_path / "packages"
    folder.mkdir()
    install(folder, "anlage_raw", blocks["python"], {name: value})
    return folder


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    pixels = tissue_like(90, 60).tobytes()
    (folder / "a.raw").write_bytes(b"rawslide 90 60 0.5\n" + pixels)
    return folder / "a.raw"


READ = """
import sys
from anlage.slides.reader import open_slide
with open_slide(sys.argv[1]) as slide:
    print(slide.reader, slide.mpp, slide.size, slide.read_region(10, 20, 5, 4).tolist())
"""


def test_the_guides_reader_reads(packages: Path, slide: Path) -> None:
    expected = tissue_like(90, 60)[20:24, 10:15].tolist()
    told = run(packages, READ, slide)
    assert told.strip() == f"raw 0.5 Size(width=90, height=60) {expected}"


def test_a_search_of_a_folder_finds_its_slides(packages: Path, slide: Path) -> None:
    code = "import sys; from anlage.slides.indexing.discovery import find_slides; "
    code += "print(*(s.location for s in find_slides([sys.argv[1]])[0]))"
    assert run(packages, code, slide.parent).split() == [str(slide)]


ORDER = (
    "from anlage.slides.formats.reader_table import readers; "
    "print(*(name for name, _ in readers()))"
)


def test_it_is_asked_after_ours_and_before_openslide(packages: Path) -> None:
    names = "tiled-tiff deep-zoom dicom raw openslide image"
    assert run(packages, ORDER).split() == names.split()


def test_its_own_errors_stand(packages: Path, slide: Path) -> None:
    slide.write_bytes(slide.read_bytes()[:-1])
    told = run(packages, TELL, slide)
    assert told.strip() == f"{slide}: is cut short. Copy it again."


BROKEN = {
    "absent": "anlage_no_such_module:Reader",
    "broken": "anlage_broken:Reader",
    "other": "anlage_broken:Other",
    "fails": "anlage_broken:Fails",
}
BROKEN_CODE = """
from anlage.slides.reader import SlideReader
Other = dict
class Fails(SlideReader):
    def __init__(self, path, *, mpp=None):
        raise IndexError("list index out of range")
    _read_inside = associated = read_associated = icc_profile = None
"""
TELL = """
import sys
from anlage.errors import SlideError
from anlage.slides.reader import open_slide
try:
    open_slide(sys.argv[1])
except SlideError as error:
    print(error)
for path in sys.argv[2:]:
    print("read by", open_slide(path).reader)
"""


def test_broken_readers_are_named_and_stop_nothing(packages: Path, tmp_path: Path) -> None:
    install(packages, "anlage_broken", BROKEN_CODE, BROKEN)
    text = tmp_path / "a.txt"
    text.write_text("no slide at all")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "b.png")
    told = run(packages, TELL, text, tmp_path / "b.png")
    assert "absent: anlage_no_such_module:Reader cannot be imported (ModuleNotFoundError" in told
    assert "broken: anlage_broken:Reader cannot be imported (AttributeError" in told
    assert "other: anlage_broken:Other is no subclass of SlideReader." in told
    assert "fails: anlage_broken:Fails failed (IndexError: list index out of range)." in told
    assert "raw: not a raw dump." in told
    assert "read by image" in told
