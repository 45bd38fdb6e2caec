"""One page, whole in itself: each map once, nothing fetched, names escaped."""

import re

import numpy as np
import pytest
from weighty_encoder import weighty_encoder

from anlage.explain.explanation import explain_field
from anlage.explain.field import Field
from anlage.report.explain_page import write_explain_page


@pytest.fixture(scope="module")
def explanation():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    field = Field(name="<b>tile</b>.png", pixels=pixels, mpp=0.5, is_stated=False)
    return explain_field(weighty_encoder(), field, px=[32, 64])


def test_every_map_is_there(explanation, tmp_path) -> None:
    page = write_explain_page(explanation, tmp_path / "page.html", encoder="tiny").read_text()
    assert page.count('class="over"') == 2 * (1 + 1 + 3)  # PCA, rollout, three heads
    for told in ("head 2", "<b>32 px</b>, 1 µm per pixel", "<b>64 px</b>, 0.5 µm", "tiny on"):
        assert told in page
    assert "on patches, at most" in page
    assert "State it with --mpp" in page


def test_nothing_is_fetched_and_no_script_runs(explanation, tmp_path) -> None:
    page = write_explain_page(explanation, tmp_path / "page.html", encoder="tiny").read_text()
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "<b>tile</b>" not in page


def test_parts_that_were_not_made_are_left_out(tmp_path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    field = Field(name="x", pixels=pixels, mpp=0.5, is_stated=True)
    only = explain_field(weighty_encoder(), field, px=[32], kinds=["rollout"])
    page = write_explain_page(only, tmp_path / "page.html", encoder="tiny").read_text()
    assert 'id="rollout"' in page
    assert 'id="heads"' not in page
    assert 'id="patches"' not in page
    assert "State it with --mpp" not in page
