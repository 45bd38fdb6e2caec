from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from anlage.slides.formats import dicom_series
from anlage.slides.formats.dicom_series import group_by_series, series_uid
from anlage.slides.indexing.discovery import find_slides
from anlage.slides.indexing.found_slide import FoundSlide, slide_id_of

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def found_in(folder: Path, *paths: str | Path) -> list[str]:
    slides, _ = find_slides([folder / path for path in paths])
    return [Path(slide.location).relative_to(folder).as_posix() for slide in slides]


def names(slide: FoundSlide) -> list[str]:
    return [Path(file).name for file in slide.files]


def element(tag: tuple[int, int], kind: bytes, value: bytes, *, is_implicit: bool = False) -> bytes:
    head = struct.pack("<HH", *tag)
    if is_implicit:
        return head + struct.pack("<I", len(value)) + value
    if kind in dicom_series.LONG_VALUES:
        return head + kind + b"\0\0" + struct.pack("<I", len(value)) + value
    return head + kind + struct.pack("<H", len(value)) + value


def uid(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)


def write_dicom(
    path: Path,
    series: str,
    *,
    syntax: str = EXPLICIT,
    sop_class: str = dicom_series.SLIDE_CLASS,
    before: bytes = b"",
) -> Path:
    """The head of a DICOM file: its class, what stands before the series, the series, pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    implicit = syntax == IMPLICIT
    body = element((0x0008, 0x0016), b"UI", uid(sop_class), is_implicit=implicit) + before
    body += element((0x0020, 0x000E), b"UI", uid(series), is_implicit=implicit)
    body += element((0x7FE0, 0x0010), b"OB", bytes(16), is_implicit=implicit)
    meta = element((0x0002, 0x0010), b"UI", uid(syntax))
    path.write_bytes(bytes(128) + b"DICM" + meta + body)
    return path


def test_a_folder_gives_slide_formats_sorted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.svs", "a.TIF", "sub/c.ndpi", "d.png", "e.jpg", "f.txt", ".hidden.svs"):
        touch(tmp_path / name)
    touch(tmp_path / ".cache" / "g.svs")
    assert found_in(tmp_path, ".") == ["a.TIF", "b.svs", "sub/c.ndpi"]


def test_pictures_count_when_named_or_globbed(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.svs", "deep/d.png"):
        touch(tmp_path / name)
    assert found_in(tmp_path, "a.png") == ["a.png"]
    assert found_in(tmp_path, "*.[pj][np]g") == ["a.png", "b.jpg"]
    assert found_in(tmp_path, "**/*.png") == ["a.png", "deep/d.png"]


def test_an_empty_name_is_not_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `anlage index "$SLIDES"` gives it where the variable is not set."""
    touch(tmp_path / "a.svs")
    monkeypatch.chdir(tmp_path)
    slides, refused = find_slides([""])
    assert slides == []
    assert "'.' is this one" in refused[0].reason
    assert len(find_slides(["."])[0]) == 1


def test_an_address_of_another_kind_names_those_that_are_read() -> None:
    _, refused = find_slides(["ftp://host/a.svs"])
    assert "ftp:// cannot be read" in refused[0].reason
    assert "s3://" in refused[0].reason


def test_a_glob_of_folders_scans_them(tmp_path: Path) -> None:
    for name in ("batch1/a.svs", "batch2/b.svs", "other/c.svs"):
        touch(tmp_path / name)
    assert found_in(tmp_path, "batch*") == ["batch1/a.svs", "batch2/b.svs"]


def test_a_slide_named_twice_counts_once(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    (tmp_path / "link.svs").symlink_to(tmp_path / "a.svs")
    assert found_in(tmp_path, "a.svs", ".", "*.svs") == ["a.svs"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "store" / "a.svs")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "there").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "store")
    assert found_in(tmp_path, "in") == ["in/there/a.svs"]


def test_deep_zoom_counts_once_with_its_tiles(tmp_path: Path) -> None:
    touch(tmp_path / "a.dzi")
    touch(tmp_path / "a_files" / "0" / "0_0.tif")
    slides, refused = find_slides([tmp_path])
    assert refused == []
    assert [names(slide) for slide in slides] == [["a.dzi", "0_0.tif"]]


def test_mrxs_counts_once_with_its_data(tmp_path: Path) -> None:
    touch(tmp_path / "a.mrxs")
    touch(tmp_path / "a" / "Slidedat.ini")
    touch(tmp_path / "a" / "Data0000.tif")
    slides, refused = find_slides([tmp_path])
    assert refused == []
    assert [names(slide) for slide in slides] == [["a.mrxs", "Data0000.tif", "Slidedat.ini"]]


def test_what_is_not_there_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _, refused = find_slides([tmp_path / "no.svs", tmp_path / "*.svs", tmp_path / "empty"])
    assert [(Path(r.uri).name, r.reason) for r in refused] == [
        ("no.svs", "does not exist. Check the path."),
        ("*.svs", "matches no file. Check the pattern."),
        ("empty", "holds no slide. Name the files if they are PNG or JPEG."),
    ]


def test_a_name_that_is_not_utf8_is_refused_with_its_bytes_escaped(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    touch(tmp_path / os.fsdecode(b"latin\xe9.svs"))
    slides, refused = find_slides([tmp_path])
    assert [Path(slide.location).name for slide in slides] == ["a.svs"]
    assert [r.uri for r in refused] == [f"{tmp_path}/latin\\xe9.svs"]
    assert "not UTF-8" in refused[0].reason


def test_a_link_to_itself_stays_in_the_list_to_be_refused_when_opened(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    (tmp_path / "loop.svs").symlink_to("loop.svs")
    assert found_in(tmp_path, ".") == ["a.svs", "loop.svs"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path / "a[1].svs")
    assert found_in(tmp_path, "a[1].svs") == ["a[1].svs"]


@pytest.mark.parametrize(
    ("name", "slide_id"),
    [
        ("a.svs", "a"),
        ("a.b.svs", "a.b"),
        ("a.ome.tif", "a"),
        ("a.ome.tiff", "a"),
        ("a.ome.svs", "a.ome"),
    ],
)
def test_the_id_is_the_stem(name: str, slide_id: str) -> None:
    assert slide_id_of(name) == slide_id


def test_a_dicom_series_is_one_slide(tmp_path: Path) -> None:
    for name, series in (("l0", "1.2.3"), ("l1", "1.2.3"), ("other", "1.2.4"), ("z", "1.2.3")):
        write_dicom(tmp_path / f"{name}.dcm", series)
    write_dicom(tmp_path / "elsewhere" / "l2.dcm", "1.2.3")
    slides, _ = find_slides([tmp_path])
    assert [names(slide) for slide in slides] == [
        ["l0.dcm", "l1.dcm", "z.dcm"],
        ["other.dcm"],
        ["l2.dcm"],
    ]


def test_a_dicom_series_is_one_slide_whatever_lies_between_its_files(tmp_path: Path) -> None:
    """Two slides of one scan would be drawn twice as often, and be split as if they were two."""
    for name in ("l0", "l2"):
        write_dicom(tmp_path / f"{name}.dcm", "1.2.3")
    touch(tmp_path / "l1.svs")
    slides, _ = find_slides([tmp_path])
    assert [names(slide) for slide in slides] == [["l0.dcm", "l2.dcm"], ["l1.svs"]]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_series_is_read_past_sequences_that_name_others(tmp_path: Path, syntax: str) -> None:
    implicit = syntax == IMPLICIT
    nested = element((0x0020, 0x000E), b"UI", uid("9.9.9"), is_implicit=implicit)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(nested)) + nested
    endless_item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + nested
    endless_item += struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    head = struct.pack("<HH", 0x0008, 0x1115) + (b"" if implicit else b"SQ\0\0")
    endless = head + struct.pack("<I", 0xFFFFFFFF) + item + endless_item
    endless += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    known = element((0x0008, 0x1116), b"SQ", item, is_implicit=implicit)
    path = write_dicom(tmp_path / "a.dcm", "1.2.34", syntax=syntax, before=endless + known)
    assert series_uid(path) == "1.2.34"


def test_what_is_no_slide_or_not_understood_stands_alone(tmp_path: Path) -> None:
    files = [
        write_dicom(tmp_path / "a.dcm", "1.2", sop_class=SEGMENTATION),
        write_dicom(tmp_path / "b.dcm", "1.2", syntax=BIG),
        touch(tmp_path / "c.dcm"),
        tmp_path / "missing.dcm",
    ]
    cut = write_dicom(tmp_path / "d.dcm", "1.2")
    cut.write_bytes(cut.read_bytes()[:180])
    bad = write_dicom(
        tmp_path / "e.dcm", "1.2", before=b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xffgarbage!"
    )
    files += [cut, bad]
    assert [series_uid(file) for file in files] == [None] * 6
    assert group_by_series(files) == [(file,) for file in files]


def test_real_dicom_is_understood(shared_data: Path) -> None:
    native = shared_data / "slides" / "native"
    assert series_uid(native / "highdicom_sm_image.dcm") == (
        "1.2.826.0.1.3680043.9.7433.3.57084118109582350083572639456817453"
    )
    assert series_uid(native / "highdicom_seg_image_sm_dots.dcm") is None
