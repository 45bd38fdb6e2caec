"""Calls that a forked child leaves to a process of its own; reading itself: test_remote_slide."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_server import serve

from anlage.errors import SlideError
from anlage.slides.storage.after_fork import _Proxy

HANG_S = 120


def test_results_and_errors_come_back() -> None:
    proxy = _Proxy()
    assert proxy.call(divmod, (7, 2), {}) == (3, 1)
    assert proxy.call(int, ("11",), {"base": 2}) == 3
    with pytest.raises(ZeroDivisionError):
        proxy.call(divmod, (7, 0), {})


def test_an_error_keeps_its_path() -> None:
    from anlage.slides.storage.object_store import list_slides_remote

    with pytest.raises(SlideError, match="cannot be listed") as error:
        _Proxy().call(list_slides_remote, ("http://host/",), {})
    assert error.value.path == "http://host/"


def test_an_end_of_the_other_process_is_told() -> None:
    proxy = _Proxy()
    with pytest.raises(OSError, match="has ended; try again"):
        proxy.call(os._exit, (3,), {})
    with pytest.raises(OSError, match="has ended"):
        proxy.call(divmod, (7, 2), {})


FORK_FIRST = """
import os, sys
from anlage.slides.storage.byte_source import open_bytes
child = os.fork()
if child == 0:
    os._exit(0 if open_bytes(sys.argv[1]).read(2, 3) == b"cde" else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_whose_parent_never_read_reads_by_itself(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcdefgh")
    with serve(tmp_path) as server:
        command = [sys.executable, "-c", FORK_FIRST, server.url("a")]
        assert subprocess.run(command, timeout=HANG_S, check=False).returncode == 0


@pytest.mark.parametrize(
    ("function", "arguments", "said"), [(threading.Lock, (), "lock"), (sys.exit, (3,), "3")]
)
def test_an_answer_that_cannot_be_sent_is_told(
    function: Callable[..., object], arguments: tuple[object, ...], said: str
) -> None:
    proxy, raised = _Proxy(), []

    def call() -> None:
        try:
            proxy.call(function, arguments, {})
        except (OSError, SystemExit) as error:
            raised.append(str(error))

    waiting = threading.Thread(target=call, daemon=True)
    waiting.start()
    waiting.join(HANG_S)
    assert len(raised) == 1
    assert said in raised[0]
    assert proxy.call(divmod, (7, 2), {}) == (3, 1)


NOT_UNDERSTOOD = "type('A', (), {'__reduce__': lambda self: (int, ('no number',))})()"


def test_an_answer_that_cannot_be_understood_ends_the_waiting() -> None:
    proxy, raised = _Proxy(), []

    def call() -> None:
        with pytest.raises(OSError, match="has ended; try again"):
            proxy.call(eval, (NOT_UNDERSTOOD,), {})
        raised.append(True)

    waiting = threading.Thread(target=call, daemon=True)
    waiting.start()
    waiting.join(HANG_S)
    assert raised
