"""Where a stored thing came from: hashes, versions, the commit and the machine.

What is written here travels with results, so it never names a host, a user or a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONED = ("anlage", "torch", "numpy")


def sha256_of_json(value: Any) -> str:  # noqa: ANN401 - anything json can hold
    """SHA-256 of a value's JSON with sorted keys: equal values, equal hash, on every machine.

    Raises:
        ValueError: If the value holds NaN or an infinity, which JSON cannot.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def name_alone(named: str) -> str:
    """A path, or ``NAME=FILE``, without its folders, which tell of a machine and its people."""
    name, equals, file = named.partition("=")
    if equals and "/" not in name:
        return f"{name}={name_alone(file)}"
    last = Path(named).name
    return last if last not in {"", ".."} else Path(named).resolve().name


def versions() -> dict[str, str]:
    """Installed versions of Python, anlage, torch and numpy, without importing them."""
    return {"python": platform.python_version()} | {name: _version(name) for name in VERSIONED}


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a source tree on the path, not installed
        return "unknown"


def git_commit(package: str | Path = Path(__file__).parent) -> str | None:
    """Commit of the checkout this package runs from; ``+changed`` when files differ from it.

    Args:
        package: Folder of the package.

    Returns:
        40 hexadecimal digits, perhaps with ``+changed``; None when the package is not
        ``src/anlage`` of a git checkout (an installed wheel, even inside somebody's repository)
        or git cannot answer.
    """
    package = Path(package).resolve()
    checkout = package.parent.parent
    git = shutil.which("git")
    if git is None or package.parent.name != "src" or not (checkout / ".git").exists():
        return None
    try:
        commit = _ask(git, checkout, "rev-parse", "HEAD")
        changed = _ask(git, checkout, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changed" if changed else commit


def _ask(git: str, checkout: Path, *arguments: str) -> str:
    command = [git, "-C", str(checkout), *arguments]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)  # noqa: S603
    return answer.stdout.strip()


def machine() -> dict[str, Any]:
    """The machine in words: platform, processor, cores, memory, GPUs; no host name, no path.

    With the threads torch computes in, since sums over other numbers of threads differ in their
    last bits.
    """
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "n_cores": os.cpu_count(),
        "n_threads": _n_threads(),
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _n_threads() -> int:
    import torch

    return torch.get_num_threads()


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
