"""Errors: what their text shows, what it hides, and that they travel between processes."""

from __future__ import annotations

import logging
import pickle

import pytest

from anlage.cli.application import log_to, name_refused
from anlage.errors import SlideError, without_secrets
from anlage.slides.indexing.found_slide import Refused

SIGNED = "https://bucket.example/a/b.svs?X-Amz-Signature=abc123&X-Amz-Expires=60"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (SIGNED, "https://bucket.example/a/b.svs?..."),
        (f"<{SIGNED}>: 403, try again", "<https://bucket.example/a/b.svs?...>: 403, try again"),
        ("http://me:pass@host/x.tif is", "http://host/x.tif is"),
        ("http://me:p@ss@host/x.tif is", "http://host/x.tif is"),
        ("HTTPS://host/x.tif?sig=%2F", "HTTPS://host/x.tif?..."),
        ("s3://bucket/what?.svs and a?b=c", "s3://bucket/what?.svs and a?b=c"),
        ("https://host/plain.svs", "https://host/plain.svs"),
    ],
)
def test_text_shows_no_secret_of_a_url(text, shown) -> None:
    assert without_secrets(text) == shown


def test_an_error_hides_the_signature_and_keeps_the_path() -> None:
    error = SlideError(SIGNED, f"GET {SIGNED} gave 403")
    assert "abc123" not in str(error)
    assert error.path == SIGNED
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_logs_and_lists_hide_it_too(tmp_path, capsys) -> None:
    logger = logging.getLogger("anlage")
    handlers, level = logger.handlers, logger.level
    try:
        log_to(tmp_path / "log.txt")
        logging.getLogger("anlage.slides").warning("refused %s: %s", SIGNED, "gone")
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
    name_refused([Refused(SIGNED, f"GET {SIGNED} gave 403")])
    said = capsys.readouterr()
    for text in ((tmp_path / "log.txt").read_text(), said.out, said.err):
        assert "abc123" not in text
    assert "b.svs?..." in (tmp_path / "log.txt").read_text()
