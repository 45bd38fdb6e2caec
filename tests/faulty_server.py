"""A small HTTP server with byte ranges that misbehaves as told, for tests of remote slides."""

from __future__ import annotations

import faulthandler
import hashlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

HANG_S = 240  # a slow machine needs a tenth of it for the longest test


@dataclass
class Faults:
    """How the server treats its clients; a test may change it while the server runs.

    Attributes:
        latency_s: Wait before each answer.
        drop_every: Every Nth body is cut in the middle, and the connection closed.
        statuses: Answers to give in place of the file, one a request, until there are no more.
        always: Answer to give in place of the file every time.
        ignores_ranges: Answer a range with the whole file, as servers without ranges do.
        cut_bytes: Say that the file has so many bytes fewer than it has.
        short_by: Send bodies so much shorter than was asked for, and say so in the headers.
        without_etag: Send no ETag.
        trickle_s: Send the body byte by byte with this pause.
        stalls: Answer this many requests with the headers only, and keep the connection open.
    """

    latency_s: float = 0.0
    drop_every: int = 0
    statuses: list[int] = field(default_factory=list)
    always: int = 0
    ignores_ranges: bool = False
    cut_bytes: int = 0
    short_by: int = 0
    without_etag: bool = False
    trickle_s: float = 0.0
    stalls: int = 0


class FaultyServer(ThreadingHTTPServer):
    """Serves a folder on loopback; one thread a connection.

    Attributes:
        faults: What is wrong at the moment.
        asked: (method, path, first byte, last byte or None) of each request so far.
        n_bytes: Bytes of bodies sent so far.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults = Faults()
        self.asked: list[tuple[str, str, int | None, int | None]] = []
        self.n_bytes = 0
        self.n_bodies = 0
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    def url(self, name: str) -> str:
        """Address of a file."""
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def forget(self) -> None:
        """Count from zero again."""
        with self.lock:
            self.asked, self.n_bytes = [], 0

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error here."""


@contextmanager
def serve(root: Path) -> Iterator[FaultyServer]:
    """A server for a folder while the block lasts, which may be ``HANG_S`` seconds at most.

    Whatever hangs ends the process then, with the stack of every thread.
    """
    faulthandler.dump_traceback_later(HANG_S, exit=True, file=sys.__stderr__)
    with FaultyServer(root) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            faulthandler.cancel_dump_traceback_later()
            server.stopped.set()
            server.shutdown()
            thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        faults = self.server.faults
        first, last = self._range()
        with self.server.lock:
            self.server.asked.append((self.command, self.path, first, last))
            status = faults.always or (faults.statuses.pop(0) if faults.statuses else 0)
        if faults.latency_s:
            self.server.stopped.wait(faults.latency_s)
        path = self.server.root / unquote(urlsplit(self.path).path).lstrip("/")
        if status or not path.is_file():
            self._refuse(status or 404)
            return
        data = path.read_bytes()
        etag = hashlib.sha256(data).hexdigest()[:16]
        data = data[: len(data) - faults.cut_bytes]
        if first is None or faults.ignores_ranges:
            self._send(200, data, {}, etag, with_body=with_body)
            return
        if first >= len(data):
            self._refuse(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        end = len(data) if last is None else min(last + 1, len(data))
        end -= faults.short_by
        place = {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}
        self._send(206, data[first:end], place, etag, with_body=with_body)

    def _range(self) -> tuple[int | None, int | None]:
        header = self.headers.get("Range", "")
        if not header.startswith("bytes="):
            return None, None
        first, _, last = header.removeprefix("bytes=").partition("-")
        return int(first), int(last) if last else None

    def _refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], etag: str, *, with_body: bool
    ) -> None:
        faults = self.server.faults
        self.send_response(status)
        headers |= {"Content-Length": str(len(body)), "Last-Modified": self._last_modified()}
        if not faults.without_etag:
            headers["ETag"] = f'"{etag}"'
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self._send_body(body)

    def _last_modified(self) -> str:
        path = self.server.root / unquote(urlsplit(self.path).path).lstrip("/")
        return self.date_time_string(int(path.stat().st_mtime))

    def _send_body(self, body: bytes) -> None:
        faults, server = self.server.faults, self.server
        with server.lock:
            server.n_bodies += 1
            is_dropped = faults.drop_every > 0 and server.n_bodies % faults.drop_every == 0
            is_stalled = faults.stalls > 0
            faults.stalls -= is_stalled
        if is_stalled:
            server.stopped.wait(120)
            return
        part = body[: len(body) // 2] if is_dropped else body
        if faults.trickle_s:
            for byte in part:
                time.sleep(faults.trickle_s)
                self.wfile.write(bytes([byte]))
        else:
            self.wfile.write(part)
        with server.lock:
            server.n_bytes += len(part)
        if is_dropped:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: object) -> None:
        """Stay silent."""
