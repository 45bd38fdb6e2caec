import json
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from anlage import provenance

PACKAGE = Path(provenance.__file__).parent


def test_sha256_of_json_ignores_key_order_and_refuses_nan():
    assert provenance.sha256_of_json({"a": 1, "b": [2.5]}) == provenance.sha256_of_json(
        {"b": [2.5], "a": 1}
    )
    assert provenance.sha256_of_json({"a": 1}) != provenance.sha256_of_json({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        provenance.sha256_of_json(float("nan"))


def test_versions_names_what_matters():
    import torch

    assert set(provenance.versions()) == {"python", "anlage", "torch", "numpy"}
    assert provenance.versions()["torch"] == metadata.version("torch")
    assert torch.__version__.startswith(provenance.versions()["torch"].partition("+")[0])


def test_version_of_what_is_not_installed():
    assert provenance._version("no-such-package-here") == "unknown"


def test_machine_is_json_and_names_no_host_user_or_folder():
    text = json.dumps(provenance.machine())
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert "/" not in provenance.machine()["platform"]
    assert provenance.machine()["n_cores"] >= 1


def make_checkout(root: Path) -> Path:
    package = root / "src" / "anlage"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1\n")
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(root), *arguments], check=True)
    return package


def test_git_commit_of_a_checkout_and_its_changes(tmp_path):
    package = make_checkout(tmp_path / "repo")
    commit = provenance.git_commit(package)
    assert commit is not None
    assert len(commit) == 40
    (package / "a.py").write_text("2\n")
    assert provenance.git_commit(package) == f"{commit}+changed"


def test_git_commit_is_none_for_a_wheel_inside_a_repository(tmp_path):
    make_checkout(tmp_path / "repo")
    installed = tmp_path / "repo" / "site-packages" / "anlage"
    installed.mkdir(parents=True)
    assert provenance.git_commit(installed) is None


def test_git_commit_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_commit() is None


def test_import_is_light():
    code = "import sys, anlage.provenance; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("prov-gigapath-slide", "prov-gigapath-slide"),
        ("/home/someone/run/encoder/", "encoder"),
        ("preset=/home/someone/file.pth", "preset=file.pth"),
        ("/home/some=one/encoder", "encoder"),
    ],
)
def test_a_name_has_no_folders(named: str, told: str) -> None:
    assert provenance.name_alone(named) == told
