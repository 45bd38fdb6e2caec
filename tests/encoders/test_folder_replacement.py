import logging
import os
import time

import pytest

from anlage.encoders.folder_replacement import replace_folder, whole_folder


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


def test_through_a_symbolic_link(tmp_path):
    write(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "two"
