"""Remote reading in a forked child, where obstore cannot work: a fresh process asks for it.

A call into obstore in a process that was forked after its parent had made one waits for ever. The
child (a data loader's worker, say) therefore starts one new interpreter, which ends with it, and
sends it the calls. Whoever does not fork never comes here.
"""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pickle import PicklingError
from typing import Any, ParamSpec, TypeVar

from anlage.slides.storage.connections import N_CONNECTIONS

LOGGER = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


def call_obstore(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that uses obstore, here or, after a fork, in the process that can.

    Args:
        function: Of some module's top level; its arguments and its result can be pickled.
        args: Its arguments.
        kwargs: Its arguments by name.
    """
    if _STATE.is_lost:
        found: T = _STATE.proxy().call(function, args, kwargs)
        return found
    _STATE.is_used = True
    return function(*args, **kwargs)


class _State:
    """Whether this process can use obstore, and who does in its place."""

    def __init__(self, *, is_lost: bool = False) -> None:
        self.is_lost = is_lost
        self.is_used = is_lost
        self._proxy: _Proxy | None = None
        self._lock = threading.Lock()

    def proxy(self) -> _Proxy:
        with self._lock:
            if self._proxy is None or self._proxy.has_ended:
                self._proxy = _Proxy()
            return self._proxy

    def forget(self) -> None:
        """In a forked child."""
        self.__init__(is_lost=self.is_used)  # type: ignore[misc]


class _Proxy:
    """A new interpreter that answers calls, many at a time."""

    def __init__(self) -> None:
        self.has_ended = False
        self._waiting: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._pipe, theirs = Pipe()
        self._process = _start(theirs)
        theirs.close()
        threading.Thread(target=self._receive, name="anlage-after-fork", daemon=True).start()

    def call(self, function: Callable[..., T], args: Any, kwargs: Any) -> T:  # noqa: ANN401
        future: Future[T] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            if self.has_ended:
                raise _ended()
            self._pipe.send((number, function, args, kwargs))
        return future.result()

    def _receive(self) -> None:
        try:
            while True:
                number, is_error, result = self._pipe.recv()
                future = self._waiting.pop(number)
                if is_error:
                    future.set_exception(result)
                else:
                    future.set_result(result)
        except (EOFError, OSError):
            LOGGER.debug("process %d, which reads for this one, has ended", self._process.pid)
        except Exception:  # an answer that cannot be understood; nobody may wait for the others
            LOGGER.exception("process %d, which reads for this one, is let go", self._process.pid)
        with self._lock:
            self.has_ended = True
            self._pipe.close()
            for future in self._waiting.values():
                future.set_exception(_ended())
        self._process.wait()


def _ended() -> OSError:
    return OSError("the process that reads for this forked one has ended; try again")


def _start(pipe: Connection) -> subprocess.Popen[bytes]:
    number = pipe.fileno()
    code = f"from anlage.slides.storage.after_fork import answer_calls; answer_calls({number})"
    # A session of its own: Ctrl-C ends the child, and by the closed pipe this one.
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, pass_fds=[number], start_new_session=True)  # noqa: S603


def answer_calls(pipe_number: int) -> None:
    """What the new interpreter does, until the other end of the pipe is closed."""
    pipe, lock = Connection(pipe_number), threading.Lock()

    def answer(number: int, function: Callable[..., Any], args: Any, kwargs: Any) -> None:  # noqa: ANN401
        try:
            result, is_error = function(*args, **kwargs), False
        except BaseException as error:  # noqa: BLE001 - it is raised at the other end
            result, is_error = error, True
        with lock:
            try:
                pipe.send((number, is_error, result))
            except (TypeError, AttributeError, PicklingError):  # it cannot be sent
                pipe.send((number, True, OSError(f"{type(result).__name__}: {result}")))

    with ThreadPoolExecutor(N_CONNECTIONS) as pool:
        while True:
            try:
                call = pipe.recv()
            except EOFError:
                return
            pool.submit(answer, *call)


_STATE = _State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_STATE.forget)
