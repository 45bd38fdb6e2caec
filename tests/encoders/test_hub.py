"""The hub's answers: gated, unknown, offline, another file. A small server stands for it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "c" * 40
CONTENT = b"weights"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: codes, and headers that say what is wrong."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        refusals = {
            "/MahmoodLab/UNI/": (403, "GatedRepo"),
            "/paige-ai/Virchow/": (401, "GatedRepo"),
            "/owkin/phikon/": (401, "RepoNotFound"),
        }
        status, code = next((v for k, v in refusals.items() if self.path.startswith(k)), (200, ""))
        if status == 200 and self.path.endswith("model.safetensors"):
            status, code = 404, "EntryNotFound"
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            content = b""
        else:
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            content = CONTENT
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the hub's client reads the environment when imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "anlage", "encoders", *arguments],
        env={**kept, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("name", ["uni", "virchow"])
def test_a_gated_repository_says_where_to_agree_and_log_in(name, endpoint, tmp_path):
    told = said(run("fetch", name, home=tmp_path, HF_ENDPOINT=endpoint))
    assert f"{name}: is gated" in told
    assert f"Accept the conditions at {endpoint}/" in told
    assert "hf auth login" in told
    assert f"anlage encoders fetch {name} --to DIR" in told


def test_a_repository_that_is_not_there(endpoint, tmp_path):
    told = said(run("fetch", "phikon", home=tmp_path, HF_ENDPOINT=endpoint))
    assert "is refused by the hub (status 401)" in told
    assert f"{endpoint}/owkin/phikon" in told


def test_offline_without_the_file_says_what_to_run_elsewhere(tmp_path):
    told = said(run("fetch", "uni", home=tmp_path, HF_HUB_OFFLINE="1"))
    assert "is not in the hub's cache, and HF_HUB_OFFLINE is set" in told
    assert "anlage encoders fetch uni --to DIR" in told
    assert "uni=DIR/model.safetensors" in told


@pytest.mark.long  # the hub's client tries again and again
def test_a_hub_that_cannot_be_reached(tmp_path):
    told = said(run("fetch", "phikon-v2", home=tmp_path, HF_ENDPOINT="http://127.0.0.1:9"))
    assert "the hub cannot be reached" in told


def test_the_file_that_is_there_is_fetched_into_a_folder(endpoint, tmp_path):
    done = run(
        "fetch", "hibou-l", "--to", str(tmp_path / "to"), home=tmp_path, HF_ENDPOINT=endpoint
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "to" / "pytorch_model.bin").read_bytes() == CONTENT
    assert "--encoder hibou-l=" in done.stdout
    assert "unverified" in done.stdout + done.stderr


def test_a_fetched_file_is_found_offline_and_listed(endpoint, tmp_path):
    assert run("fetch", "hibou-l", home=tmp_path, HF_ENDPOINT=endpoint).returncode == 0
    offline = run("fetch", "hibou-l", home=tmp_path, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0
    assert COMMIT in offline.stdout
    listed = run(home=tmp_path, HF_HUB_OFFLINE="1").stdout
    assert any(line.startswith("hibou-l ") and "cached" in line for line in listed.splitlines())


@pytest.mark.parametrize("name", ["nosuch", "genbio-pathfm"])
def test_what_cannot_be_fetched_is_wrong_usage(name, tmp_path):
    done = run("fetch", name, home=tmp_path)
    assert done.returncode == 2
    assert "Those that can be fetched: uni, uni2-h" in done.stderr
