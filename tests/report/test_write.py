"""The whole page: its parts, what is missing, what comes from outside, what it may load."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from anlage.errors import AnlageError
from anlage.report.contents import open_contents
from anlage.report.write import write_report
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides

pytestmark = pytest.mark.slow  # the folder takes seconds to make

SECTIONS = {"slides", "training", "patches", "neighbours", "scores", "provenance"}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(made_chain, tmp_path_factory):
    return write_report(made_chain, tmp_path_factory.mktemp("page") / "page.html")


def test_all_sections_are_there_and_nothing_is_missing(page, take_apart):
    parts = take_apart(page)
    assert parts.ids >= SECTIONS
    assert "Not in this folder" not in parts.text
    assert page.stat().st_size < 8e6


def test_the_page_is_written_into_the_folder_unless_told_otherwise(chain):
    assert write_report(chain / "scores") == chain / "scores" / "report.html"


def test_verdicts_say_what_was_found(page, take_apart):
    text = take_apart(page).text
    assert "6 cases are too few, so this demo claims nothing from it" in text
    assert "Pretraining used cases of split=train only (1 of 3 slides)" in text
    assert "None of the 6 tested cases was seen in pretraining" in text
    assert re.search(r"Provenance: (\d+) of \1 checks from slides to scores hold", text)


def test_refused_slides_are_named_without_their_folder(page, take_apart, made_chain):
    text = take_apart(page).text
    assert "Refused: 1" in text
    assert "no_slide.tiff" in text
    assert str(made_chain) not in page.read_text()


def test_no_absolute_path_and_no_host_is_told(page, made_chain):
    html = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", page.read_text())
    assert not re.findall(r"(?<![\w<.:/])/(?:tmp|home|root|work|Users)/", html)


def test_nothing_is_loaded_from_anywhere(page, take_apart):
    parts = take_apart(page)
    assert all(load.startswith(("data:image/", "#")) for load in parts.loads)
    assert not re.search(r"url\(|@import", parts.styles)
    assert parts.handlers == []


def test_only_our_script_may_run(page):
    html = page.read_text()
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_image_has_words(page, take_apart):
    assert take_apart(page).images_without_words == []


def test_the_same_folder_gives_the_same_page_but_for_the_time(page, made_chain, tmp_path):
    again = write_report(made_chain, tmp_path / "again.html").read_text()
    clock = r"\d\d \w+ \d{4}, \d\d:\d\d UTC"
    assert re.sub(clock, "", again) == re.sub(clock, "", page.read_text())


def test_hostile_names_are_text(chain, take_apart, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    source = Catalogue.open(chain / "slides.parquet").location("hodgkin__HE")
    shutil.copy(source, slides / "x.tiff")
    labels = tmp_path / "labels.csv"
    labels.write_text(f'path,slide_id,tissue,stain,split,diagnosis\nx.tiff,"{HOSTILE}","{HOSTILE}",'
                      f'"{HOSTILE}","{HOSTILE}","{HOSTILE}"\n')  # fmt: skip
    folder = tmp_path / "hostile"
    index_slides([slides], folder / "slides.parquet", labels=labels)
    (folder / "slides.refused.csv").write_text(f'uri,reason\n"{HOSTILE}","{HOSTILE}"\n')
    bag_folder = folder / "run"
    shutil.copytree(chain / "run", bag_folder)
    result = json.loads((chain / "scores" / "result.json").read_text())
    result["notes"] = [HOSTILE]
    result["data"]["name"] = HOSTILE
    (folder / "result.json").write_text(json.dumps(result))

    page = write_report(folder)
    parts = take_apart(page)
    assert parts.n_scripts == 1
    assert parts.text.count(HOSTILE) > 6
    assert HOSTILE not in page.read_text()


@pytest.mark.parametrize(
    ("part", "sections", "missing"),
    [
        ("run", {"training", "provenance"}, ["slides", "tile embeddings", "scores"]),
        ("scores", {"scores", "provenance"}, ["slides", "pretraining run", "encoder"]),
        ("bags", {"provenance"}, ["slides", "scores"]),
        ("run/encoder", {"provenance"}, ["slides", "pretraining run"]),
    ],
)
def test_one_stage_alone(chain, take_apart, part, sections, missing):
    parts = take_apart(write_report(chain / part))
    assert parts.ids & SECTIONS == sections
    line = re.search(r"Not in this folder: (.*)\.", parts.text)[1]
    assert all(name in line for name in missing)


def test_slides_alone(chain, take_apart):
    for part in ("run", "bags", "scores"):
        shutil.rmtree(chain / part)
    parts = take_apart(write_report(chain))
    assert parts.ids & SECTIONS == {"slides", "provenance"}


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(AnlageError, match=r"looked for slides.parquet, run.json"):
        write_report(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(AnlageError, match="found but unusable: result.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_part_is_named_and_the_rest_is_shown(chain, take_apart):
    (chain / "scores" / "result.json").write_text("{")
    for pack in (chain / "slides.masks").iterdir():
        pack.write_bytes(b"broken")
    parts = take_apart(write_report(chain))
    assert "Cannot be read" in parts.text
    assert {"training", "provenance"} <= parts.ids
    assert "no thumbnail" in parts.text


def test_an_encoder_whose_replacement_was_interrupted_is_found(chain):
    """A kill between the two renames leaves the encoder before it under a name of its own."""
    (chain / "run" / "encoder").rename(chain / "run" / ".encoder.replaced")
    assert open_contents(chain).missing == []
    assert open_contents(chain / "run").encoder is not None
    assert open_contents(chain / "run" / "encoder").encoder is not None


def test_slides_gone_leave_the_rest(chain, take_apart):
    path = chain / "slides.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("uri")
    gone = table.set_column(place, "uri", [[f"gone/{k}.tiff" for k in range(len(table))]])
    pq.write_table(gone, path)
    parts = take_apart(write_report(chain))
    assert "3 slide files are no longer where they were" in parts.text
    assert "not readable" in parts.text
    assert "patches" not in parts.ids
