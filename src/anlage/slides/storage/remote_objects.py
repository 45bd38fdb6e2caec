"""Whole objects of a bucket: written, read, looked for, listed by folder, deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import obstore

from anlage.errors import SlideError
from anlage.slides.storage.object_store import RemoteBytes
from anlage.slides.storage.remote_request import answered, version_of

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PIECE_BYTES = 2**23  # of an object, a request each
WRITABLE = ("s3", "gs", "az")


class Found(NamedTuple):
    """What a store says of an object.

    Attributes:
        version: Its ETag without quotes.
        size: Its length, bytes.
    """

    version: str
    size: int


class Listing(NamedTuple):
    """What lies directly in a folder of a bucket.

    Attributes:
        objects: Names of its objects, sorted.
        folders: Names of its folders, sorted.
    """

    objects: list[str]
    folders: list[str]


def put_object(location: str, data: bytes | memoryview) -> str:
    """Write an object whole, in place of what was there.

    Args:
        location: ``s3://``, ``gs://`` or ``az://`` URL.
        data: Its content; sent in parts where it is long.

    Returns:
        The version (ETag) that the store gave it.

    Raises:
        SlideError: If it may not or cannot be written, or the address is not a bucket's.
    """
    refuse_unwritable(location)
    return answered(location, _put, data, verb="written")


def refuse_unwritable(location: str) -> None:
    """Refuse an address that is not in a bucket.

    Raises:
        SlideError: With the schemes that are.
    """
    scheme = location.partition("://")[0].lower()
    if scheme not in WRITABLE:
        names = ", ".join(f"{name}://" for name in WRITABLE)
        raise SlideError(location, f"cannot be written to. Name a folder, or one of {names}.")


def find_object(location: str) -> Found | None:
    """Version and size of an object; None if there is none.

    Raises:
        SlideError: If that cannot be said.
    """
    return answered(location, _head)


def get_object(location: str) -> tuple[bytes, str] | None:
    """Content and version of an object, read in parts side by side; None if there is none.

    Raises:
        SlideError: If it cannot be read, or changes meanwhile.
    """
    found = find_object(location)
    if found is None:
        return None
    source = RemoteBytes(location, version=found.version, size=found.size)
    starts = range(0, found.size, PIECE_BYTES)
    pieces = source.read_many([(at, min(PIECE_BYTES, found.size - at)) for at in starts])
    return b"".join(pieces), found.version


def delete_object(location: str) -> None:
    """Delete an object, if it is there.

    Raises:
        SlideError: If it may not or cannot be deleted.
    """
    answered(location, _delete, verb="deleted")


def list_folder(location: str) -> Listing:
    """What lies directly in a folder, by one listing.

    Raises:
        SlideError: If it cannot be listed.
    """
    return answered(location.rstrip("/") + "/", _list_folder)


def _put(store: ObjectStore, key: str, data: bytes | memoryview) -> str:
    result = obstore.put(store, key, bytes(data))
    return str(result["e_tag"]).removeprefix("W/").strip('"')


def _head(store: ObjectStore, key: str) -> Found | None:
    try:
        meta = obstore.head(store, key)
    except FileNotFoundError:
        return None
    return Found(version_of(meta), meta["size"])


def _delete(store: ObjectStore, key: str) -> None:
    try:
        obstore.delete(store, key)
    except FileNotFoundError:
        return


def _list_folder(store: ObjectStore, key: str) -> Listing:
    found = obstore.list_with_delimiter(store, prefix=key)
    objects = sorted(meta["path"].rpartition("/")[2] for meta in found["objects"])
    folders = sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])
    return Listing(objects, folders)
