"""The house rules that no linter has: file length, function length, junk-drawer names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = sorted((Path(__file__).parents[1] / "src" / "anlage").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_BODY_LINES = 50
JUNK_DRAWERS = {
    *("utils", "util", "helpers", "misc", "common", "tools", "base", "manager", "engine", "core"),
}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_sources_are_found() -> None:
    assert len(SOURCE) > 20


@pytest.mark.parametrize("path", SOURCE, ids=lambda p: "/".join(p.parts[-2:]))
def test_house_rules(path: Path) -> None:
    text = path.read_text()
    assert path.stem not in JUNK_DRAWERS, f"{path}: name the file after what it holds"
    assert text.count("\n") <= MAX_FILE_LINES, f"{path}: split it at its two ideas"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert body_lines(node) <= MAX_BODY_LINES, f"{path}:{node.lineno} {node.name}: too long"
