"""A hub of models on this machine: it makes repositories and takes commits of small files."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StubHub(ThreadingHTTPServer):
    """What was asked of it: ``created`` visibility by repository, ``files``, ``tokens`` seen."""

    def __init__(self, visible: dict[str, str], refuses: bool) -> None:
        self.created, self.refuses = dict(visible), refuses
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: StubHub

    def do_GET(self) -> None:
        if self.server.refuses:
            self._answer({"error": "Invalid username or password."}, status=401)
            return
        name = self.path.removeprefix("/api/models/").partition("/revision")[0]
        is_private = self.server.created.get(name) == "private"
        self._answer({"id": name, "sha": "1" * 40, "private": is_private, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        path = self.path.partition("?")[0]
        if self.server.refuses:
            self._answer({"error": "Invalid username or password."}, status=401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            told = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": file["path"], **told} for file in files]})
        elif "/commit/" in path:
            self._commit(body)
        else:
            self._answer({"warnings": [], "errors": []})  # validate-yaml

    def _create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.created:
            told = {"error": "You already created this model repo"}
            self._answer({**told, "url": f"{self.server.url}/{name}"}, status=409)
            return
        self.server.created[name] = asked.get("visibility", "public")
        self._answer({"url": f"{self.server.url}/{name}", "name": name})

    def _commit(self, body: bytes) -> None:
        for line in body.splitlines():
            part = json.loads(line)
            if part["key"] == "file":
                content = base64.b64decode(part["value"]["content"])
                self.server.files[part["value"]["path"]] = content
        name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        address = f"{self.server.url}/{name}/commit/{'2' * 40}"
        self._answer({"commitUrl": address, "commitOid": "2" * 40})

    def _answer(self, value: dict, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def stub_hub(visible: dict[str, str] | None = None, *, refuses: bool = False) -> Iterator[StubHub]:
    """Run it: ``visible`` repositories are there before; or one that knows no token."""
    hub = StubHub(visible or {}, refuses)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
