"""A slide's fingerprint: the hash that says whether a file is still the one that was indexed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

WHOLE_UP_TO_BYTES = 64 * 2**20
SAMPLE_BYTES = 64 * 2**10
N_SAMPLES = 256
CHUNK_BYTES = 2**20


def slide_fingerprint(files: Sequence[str | Path], *, version: str | None = None) -> str:
    """Hash of a slide's content, whatever its files are called and wherever they lie.

    Up to 64 MiB in all: SHA-256 of the bytes of its files, one after the other. Beyond that a
    sample, marked ``sampled:``: SHA-256 of the sizes (decimal, each ended by a newline) and of
    256 pieces of 64 KiB spread evenly over the bytes, the first at the start, the last at the end.

    Args:
        files: The slide's files, in a fixed order; or one URL.
        version: Of a remote slide, its ETag, which is then the fingerprint, marked ``etag:``:
            hashing would have to fetch it.

    Returns:
        64 hexadecimal digits, with the prefix ``sampled:`` where they do not cover every byte; or
        the ETag with its mark.
    """
    if version is not None:
        return f"etag:{version}"
    paths = [Path(file) for file in files]
    sizes = [path.stat().st_size for path in paths]
    if sum(sizes) <= WHOLE_UP_TO_BYTES:
        return _hash_whole(paths)
    return f"sampled:{_hash_sampled(paths, sizes)}"


def _hash_whole(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _hash_sampled(files: Sequence[Path], sizes: Sequence[int]) -> str:
    digest = hashlib.sha256("".join(f"{size}\n" for size in sizes).encode())
    last = sum(sizes) - SAMPLE_BYTES
    starts = [last * k // (N_SAMPLES - 1) for k in range(N_SAMPLES)]
    offset = 0
    for path, size in zip(files, sizes, strict=True):
        with path.open("rb") as file:
            for start in starts:
                # a piece may reach over the end of a file; the rest of it is in the next ones
                first, end = max(start, offset), min(start + SAMPLE_BYTES, offset + size)
                if first < end:
                    file.seek(first - offset)
                    digest.update(file.read(end - first))
        offset += size
    return digest.hexdigest()
