"""What the doctor finds: what is there, what is missing, what is broken, and no secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from icc_profiles import WIDE_TO_XYZ, matrix_profile
from small_catalogue import make_catalogue
from synthetic_slides import ArraySlide, pyramid, write_tiff

from anlage.doctor import machine as doctor
from anlage.doctor.findings import Finding, as_json, as_lines, is_well
from anlage.doctor.machine import examine
from anlage.slides.reader import SlideReader


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "QUICK_S", 0.02)
    monkeypatch.setenv("ANLAGE_CACHE", str(tmp_path / "cache"))


def found(findings: list[Finding], part: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings if finding.part == part}


def test_this_machine_is_well_and_everything_is_told() -> None:
    findings = examine()
    assert is_well(findings), list(as_lines(findings))
    assert {finding.part for finding in findings} >= {
        *("version", "codec", "format", "remote", "machine", "speed"),
    }
    assert {"python", "torch", "openslide-python"} <= found(findings, "version").keys()
    assert all(codec.state == "ok" for codec in found(findings, "codec").values())
    (speed,) = found(findings, "speed").values()
    assert float(speed.told.split()[0].replace(",", "")) > 1
    told = as_json(findings)
    assert json.loads(json.dumps(told))["is_well"] is True
    assert len(told["findings"]) == len(findings)
    assert list(as_lines(findings))[-1] == "all is well"


def test_credentials_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-my-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    findings = examine()
    remote = found(findings, "remote")
    assert remote["s3://"].state == "ok"
    assert "AWS_SECRET_ACCESS_KEY" in remote["s3://"].told
    assert remote["az://"].state == "missing"
    everything = json.dumps(as_json(findings))
    assert "hunter2" not in everything
    assert "AKIA-my-key" not in everything


def test_a_missing_extra_comes_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    findings = examine()
    dicom = found(findings, "format")["DICOM"]
    assert dicom.state == "missing"
    assert "pip install 'anlage[dicom]'" in dicom.told
    assert is_well(findings)


def test_a_plug_in_that_cannot_be_imported_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def __init__(self, name: str, error: Exception | None) -> None:
            self.name, self.value, self.error = name, f"other.package:{name}", error

        def load(self) -> object:
            if self.error:
                raise self.error
            return {"good": ArraySlide}.get(self.name, object)

    points = [Point("good", None), Point("bad", RuntimeError("no licence")), Point("odd", None)]
    monkeypatch.setattr(doctor, "entry_points", lambda group: points if "readers" in group else [])
    findings = examine()
    plug_ins = found(findings, "plug-in")
    assert plug_ins["good"].state == "ok"
    assert plug_ins["bad"].state == "broken"
    assert "slide reader other.package:bad: RuntimeError: no licence" in plug_ins["bad"].told
    assert plug_ins["odd"].state == "broken"
    assert "is no subclass of SlideReader" in plug_ins["odd"].told
    assert not is_well(findings)
    assert any(line.startswith("! bad") for line in as_lines(findings))


def test_slides_are_opened_or_refused_with_the_reason(tmp_path: Path) -> None:
    profile = matrix_profile(WIDE_TO_XYZ, gamma=1.8)
    levels = pyramid(300, 200)
    write_tiff(tmp_path / "good.tif", levels, iccprofile=profile)
    write_tiff(tmp_path / "unscaled.tif", levels, mpp=None)
    write_tiff(tmp_path / "torn.tif", levels, iccprofile=profile[:200])
    (tmp_path / "empty.svs").touch()
    findings = examine([str(tmp_path), str(tmp_path / "nowhere.svs")])
    slides = found(findings, "slide")
    assert {name: slide.state for name, slide in slides.items()} == {
        "good.tif": "ok",
        "torn.tif": "ok",
        "unscaled.tif": "broken",
        "empty.svs": "broken",
        "nowhere.svs": "broken",
    }
    for expected in (
        *("tiled-tiff (generic-tiff)", "300 x 200 px", "levels 1, 2, 4", "tiles of 112 x 64"),
        *("0.5 µm per pixel (tiff)", "with ICC profile"),
    ):
        assert expected in slides["good.tif"].told
    assert "for colour 'stored' only" in slides["torn.tif"].told
    assert "`mpp` column" in slides["unscaled.tif"].told
    assert "0 bytes" in slides["empty.svs"].told
    assert "does not exist" in slides["nowhere.svs"].told


def test_the_slides_of_a_catalogue_are_opened_as_it_says(tmp_path: Path) -> None:
    catalogue = make_catalogue(tmp_path, 2)
    (tmp_path / "b.tif").unlink()
    slides = found(examine([str(catalogue.path)]), "slide")
    assert {name: slide.state for name, slide in slides.items()} == {"a": "ok", "b": "broken"}
    none = found(examine([str(tmp_path / "no.parquet")]), "slide")
    assert [slide.state for slide in none.values()] == ["broken"]


def test_a_slide_that_the_system_does_not_open_is_broken() -> None:
    def opener() -> SlideReader:
        raise PermissionError(13, "Permission denied", "a.dcm")

    finding = doctor._opened("a.dcm", opener)
    assert (finding.state, finding.told) == ("broken", "[Errno 13] Permission denied: 'a.dcm'")


def test_a_cache_that_cannot_be_written_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    cache = found(examine(), "machine")["cache"]
    assert cache.state == "broken"
    assert "ANLAGE_CACHE" in cache.told
