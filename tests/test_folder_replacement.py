import logging
import os
import time

import pytest

from anlage import folder_replacement
from anlage.folder_replacement import replace_folder, superseded, whole_folder, whole_names


def write(folder, text):
    with replace_folder(folder) as beside:
        (beside / "a.txt").write_text(text)


def test_makes_and_replaces_whole(tmp_path):
    folder = tmp_path / "deep" / "encoder"
    write(folder, "one")
    (folder / "only_in_one.txt").write_text("")
    write(folder, "two")
    assert (folder / "a.txt").read_text() == "two"
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    assert [path.name for path in folder.parent.iterdir()] == ["encoder"]


def test_failure_leaves_the_old_one_and_nothing_beside(tmp_path):
    write(tmp_path / "e", "one")
    with pytest.raises(TypeError):
        write(tmp_path / "e", 2)
    assert (tmp_path / "e" / "a.txt").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_interrupted_between_the_renames(tmp_path, caplog):
    write(tmp_path / "e", "one")
    (tmp_path / "e").rename(tmp_path / ".e.replaced")  # and the process died here
    with caplog.at_level(logging.WARNING):
        assert (whole_folder(tmp_path / "e") / "a.txt").read_text() == "one"
    assert "interrupted" in caplog.text
    write(tmp_path / "e", "two")
    assert (whole_folder(tmp_path / "e") / "a.txt").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_interrupted_and_then_failing_keeps_the_old_one(tmp_path):
    write(tmp_path / "e", "one")
    (tmp_path / "e").rename(tmp_path / ".e.replaced")
    with pytest.raises(TypeError):
        write(tmp_path / "e", 2)
    assert (tmp_path / "e" / "a.txt").read_text() == "one"


def test_interrupted_before_the_old_one_was_removed(tmp_path):
    write(tmp_path / "e", "two")
    (tmp_path / ".e.replaced").mkdir()
    (tmp_path / ".e.replaced" / "a.txt").write_text("one")
    assert (whole_folder(tmp_path / "e") / "a.txt").read_text() == "two"
    write(tmp_path / "e", "three")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_failed_second_rename_keeps_the_old_one_in_reach(tmp_path, monkeypatch):
    write(tmp_path / "e", "one")
    rename = type(tmp_path).rename

    def fails_on_part(self, target):
        if self.name.endswith(".part"):
            raise OSError(5, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", fails_on_part)
    with pytest.raises(OSError, match="input/output"):
        write(tmp_path / "e", "two")
    assert (whole_folder(tmp_path / "e") / "a.txt").read_text() == "one"


def test_only_old_leftovers_are_cleared(tmp_path):
    for name in (".e.00000000.part", ".e.11111111.part"):
        (tmp_path / name).mkdir()
    old = time.time() - 7200
    os.utime(tmp_path / ".e.00000000.part", (old, old))
    write(tmp_path / "e", "one")
    assert {path.name for path in tmp_path.iterdir()} == {"e", ".e.11111111.part"}


def test_nothing_is_cleared_where_others_do(tmp_path):
    (tmp_path / ".e.00000000.part").mkdir()
    with replace_folder(tmp_path / "e", clear_older_than_s=None) as beside:
        (beside / "deep").mkdir()
        (beside / "deep" / "a.txt").write_text("one")
    assert (tmp_path / "e" / "deep" / "a.txt").read_text() == "one"
    assert {path.name for path in tmp_path.iterdir()} == {"e", ".e.00000000.part"}


def test_another_writer_between_the_renames(tmp_path, monkeypatch):
    set_aside = folder_replacement._set_aside
    others = ["other 1", "other 2"]

    def interfered(target):
        set_aside(target)
        if others:
            target.mkdir()
            (target / "a.txt").write_text(others.pop())

    write(tmp_path / "e", "one")
    monkeypatch.setattr(folder_replacement, "_set_aside", interfered)
    write(tmp_path / "e", "two")
    assert (tmp_path / "e" / "a.txt").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_another_writer_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_replacement, "_set_aside", lambda _: None)
    monkeypatch.setattr(folder_replacement, "MOST_RENAMES", 3)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "a.txt").write_text("other")
    with pytest.raises(OSError, match="another process keeps replacing it"):
        write(tmp_path / "e", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_names_while_it_is_set_aside(tmp_path):
    for name in ("e", "f"):
        write(tmp_path / name, "one")
    (tmp_path / "e").rename(tmp_path / ".e.replaced")
    assert whole_names(tmp_path) == {"e", "f"}
    assert superseded(tmp_path) == []
    (tmp_path / ".f.replaced").mkdir()
    assert superseded(tmp_path) == [tmp_path / ".f.replaced"]


def test_through_a_symbolic_link(tmp_path):
    write(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "two"
