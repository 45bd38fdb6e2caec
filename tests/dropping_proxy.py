"""A way to a server that breaks connections in the middle of an answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class DroppingProxy:
    """Passes bytes on; every ``drop_every``-th connection breaks after ``after_bytes`` of answers.

    Attributes:
        url: Its address.
        drop_every: 0 for never.
        after_bytes: Bytes of answers that still get through.
        n_dropped: Connections broken so far.
    """

    url: str
    drop_every: int = 0
    after_bytes: int = 300
    n_dropped: int = 0
    n_connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_to_be_dropped(self) -> bool:
        with self.lock:
            self.n_connections += 1
            is_dropped = self.drop_every > 0 and self.n_connections % self.drop_every == 0
            self.n_dropped += is_dropped
        return is_dropped


@contextmanager
def dropping_proxy(server: str) -> Iterator[DroppingProxy]:
    """A proxy before an HTTP server on loopback while the block lasts."""
    host, port = server.removeprefix("http://").split(":")
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        proxy = DroppingProxy(f"http://127.0.0.1:{listening.getsockname()[1]}")
        arguments = (listening, (host, int(port)), proxy)
        threading.Thread(target=_serve, args=arguments, daemon=True).start()
        yield proxy
        listening.shutdown(socket.SHUT_RDWR)


def _serve(listening: socket.socket, server: tuple[str, int], proxy: DroppingProxy) -> None:
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        upstream = socket.create_connection(server)
        most = proxy.after_bytes if proxy.is_to_be_dropped() else None
        threading.Thread(target=_pass_on, args=(client, upstream, None), daemon=True).start()
        threading.Thread(target=_pass_on, args=(upstream, client, most), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, most: int | None) -> None:
    """Pass on what comes, at most so many bytes, then break both ways."""
    try:
        while most is None or most > 0:
            data = source.recv(65536 if most is None else most)
            if not data:
                break
            target.sendall(data)
            most = None if most is None else most - len(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
