"""The documentation: its snippets run, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
RUN = sorted((ROOT / "docs" / "probes").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors_of(page: Path) -> set[str]:
    """GitHub's anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_snippets_of_the_probes_run(page, tmp_path, monkeypatch) -> None:
    """In order, in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for source in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(source, name_of(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in LINK.findall(text):
        found = (page.parent / target).resolve()
        assert found.exists(), f"{name_of(page)}: {target} is not there"
        if anchor and found.suffix == ".md":
            assert anchor[1:] in anchors_of(found), f"{name_of(page)}: no heading {target}{anchor}"
