"""One ranged request to a store or web server, repeated until it is answered or hopeless."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    BaseError,
    GenericError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import HTTPStore, from_url

from anlage.errors import AnlageError, SlideError
from anlage.slides.storage.after_fork import call_obstore

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

LOGGER = logging.getLogger(__name__)
TIME_LIMIT = "ANLAGE_REMOTE_SECONDS"
DEFAULT_TIME_LIMIT_S = 60.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
TRANSIENT = {408, 425, 429}  # besides everything from 500
NO_METADATA_SERVICE = "169.254.169.254"  # where a store asks when the environment says nothing
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_REGION, with "
    "AWS_ENDPOINT_URL for other stores than AWS; AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS; GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN; "
    "AZURE_SKIP_SIGNATURE=true for a public container",
}
WHO_AND_WHERE = (  # of two stores that differ in one of these the connections are not shared
    *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_SKIP_SIGNATURE"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SKIP_SIGNATURE"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_SAS_TOKEN", "AZURE_SKIP_SIGNATURE"),
)
T = TypeVar("T")
_JITTER = random.Random()  # noqa: S311 - so that clients spread out; nobody's seed is touched


class Answer(NamedTuple):
    """What a request brought.

    Attributes:
        data: The bytes that were asked for; fewer where the object ends before.
        version: The object's ETag without quotes; its time and size where there is none.
        size: Length of the whole object, bytes.
    """

    data: bytes
    version: str
    size: int


def request_range(location: str, offset: int, count: int) -> Answer:
    """Bytes of a remote object.

    Args:
        location: The object's URL.
        offset: First byte.
        count: At least 1; what lies beyond the end is left out.

    Raises:
        SlideError: At once if trying again cannot help (no such object, no permission, a server
            without ranges); else when the time limit is over. It says what to do.
    """
    return answered(location, _get, offset, count)


def list_objects(prefix: str) -> list[ObjectMeta]:
    """What a bucket says of the objects below a prefix: "path", "size", "e_tag" and more.

    Raises:
        SlideError: As ``request_range``.
    """
    return answered(prefix, _list)


def answered(location: str, ask: Callable[..., T], *args: object, verb: str = "read") -> T:
    """The answer to ``ask(store, key, *args)``, asked until it comes or is hopeless.

    Args:
        location: The object's URL, of which store and key are taken.
        ask: A function of a module's top level, which uses obstore.
        args: Its further arguments.
        verb: What is being done, in the words of an error: "read", "written".

    Raises:
        SlideError: As ``request_range``.
    """
    try:
        return call_obstore(_until_answered, location, ask, verb, *args)
    except OSError as error:  # only of the process that reads for a forked one
        raise SlideError(location, f"cannot be {verb}: {error}.") from error


def _get(store: ObjectStore, key: str, offset: int, count: int) -> Answer:
    result = obstore.get(store, key, options={"range": (offset, offset + count)})
    return Answer(result.bytes().to_bytes(), version_of(result.meta), result.meta["size"])


def _list(store: ObjectStore, key: str) -> list[ObjectMeta]:
    return [meta for chunk in obstore.list(store, key, chunk_size=1000) for meta in chunk]


def _until_answered(location: str, ask: Callable[..., T], verb: str, *args: object) -> T:
    """Ask again after a failure that may pass, a little later each time.

    One attempt may take half the time limit, and none begins in the second half: so all of them
    together keep to it.

    Raises:
        SlideError: See ``request_range``.
    """
    limit_s = time_limit_s()
    store, key = _find_store(location, limit_s)
    begun = time.monotonic()
    wait_s, n_tries = FIRST_WAIT_S, 0
    while True:
        n_tries += 1
        try:
            return ask(store, key, *args)
        except (OSError, ValueError, BaseError) as error:
            _refuse_hopeless(location, error, verb)
            reason = _reason(error)
            passed_s = time.monotonic() - begun
            pause_s = wait_s * _JITTER.uniform(0.5, 1)
            if passed_s + pause_s > limit_s / 2:
                raise SlideError(
                    location,
                    f"cannot be {verb}: {reason}. Tried {n_tries} times in {passed_s:.1f} s. "
                    f"Check the server and the network, or set {TIME_LIMIT} above {limit_s:g}.",
                ) from error
        LOGGER.info("%s: %s; asking again", location, reason)
        time.sleep(pause_s)
        wait_s = min(wait_s * 2, LONGEST_WAIT_S)


def time_limit_s() -> float:
    """How long a request may take in all, seconds: ``ANLAGE_REMOTE_SECONDS``, or a minute."""
    text = os.environ.get(TIME_LIMIT, "")
    try:
        limit_s = float(text or DEFAULT_TIME_LIMIT_S)
    except ValueError:
        limit_s = math.nan
    if not 0 < limit_s < math.inf:
        msg = f"needs a number of seconds above 0; got {text!r}. Unset it for 60."
        raise AnlageError(TIME_LIMIT, msg)
    return limit_s


def _find_store(location: str, limit_s: float) -> tuple[ObjectStore, str]:
    """The store of a location's bucket or host, shared by all who ask, and the key in it.

    The key of a bucket is taken literally; the path of a web address is percent-decoded, and its
    query goes with every request (a signed URL).
    """
    scheme, _, rest = location.partition("://")
    scheme = scheme.lower()
    try:
        if scheme in {"http", "https"}:
            parts = urlsplit(location)
            query = f"?{parts.query}" if parts.query else ""
            address = f"{scheme}://{parts.netloc}{query}"
            return _store(address, limit_s, ()), unquote(parts.path)[1:]
        bucket, _, key = rest.partition("/")
        environment = tuple(os.environ.get(name) for name in WHO_AND_WHERE)
        return _store(f"{scheme}://{bucket}", limit_s, environment), key
    except (ValueError, BaseError) as error:
        names = CREDENTIALS.get(scheme)
        remedy = f" Check it, and {names}." if names else " Check it."
        reason = f"is no address that can be read: {_reason(error)}."
        raise SlideError(location, reason + remedy) from error


@lru_cache(maxsize=64)
def _store(address: str, limit_s: float, environment: tuple[str | None, ...]) -> ObjectStore:
    """A store with its connections; it reads its credentials from the environment itself."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "") if address.startswith("s3://") else address
    client: ClientConfig = {
        "timeout": f"{max(int(limit_s * 500), 1)}ms",
        "read_timeout": f"{max(int(limit_s * 250), 1)}ms",
        "connect_timeout": f"{max(int(limit_s * 250), 1)}ms",
    }
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    retry: RetryConfig = {"max_retries": 0}  # until_answered does it, and knows when to stop
    if address.startswith("http"):
        return HTTPStore(address, client_options=client, retry_config=retry)
    return from_url(address, client_options=client, retry_config=retry)


def version_of(meta: ObjectMeta) -> str:
    """What changes when an object does; listings and answers quote the same ETag differently."""
    e_tag = meta["e_tag"]
    if e_tag:
        return str(e_tag).removeprefix("W/").strip('"')
    return f"{int(meta['last_modified'].timestamp()):x}-{meta['size']:x}"


def _refuse_hopeless(location: str, error: Exception, verb: str) -> None:
    """Raise where the next attempt would end in the same way."""
    status = _status(error)
    if isinstance(error, FileNotFoundError):
        raise SlideError(location, "does not exist (404). Check the address.") from error
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        _refuse_permission(location, _reason(error), verb, error)
    if NO_METADATA_SERVICE in str(error):
        _refuse_permission(location, "found no credentials", verb, error)
    if isinstance(error, NotSupportedError):
        raise SlideError(
            location,
            "its server does not send parts of files (it ignores Range). Copy the slide to a "
            "bucket, a server with range requests, or this machine.",
        ) from error
    if status == 416:
        raise SlideError(
            location,
            "is empty or shorter than it was (416). Copy it again from its source, and index it.",
        ) from error
    is_transient = status is None or status >= 500 or status in TRANSIENT
    if not (isinstance(error, GenericError | OSError) and is_transient):
        raise SlideError(location, f"cannot be {verb}: {_reason(error)}.") from error


def _refuse_permission(location: str, reason: str, verb: str, error: Exception) -> NoReturn:
    scheme = location.partition("://")[0].lower()
    names = CREDENTIALS.get(scheme)
    remedy = f"Set {names}." if names else "Sign the address, or ask its owner for access."
    raise SlideError(location, f"may not be {verb}: {reason}. {remedy}") from error


def _status(error: Exception) -> int | None:
    found = re.search(r"non-2xx status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _reason(error: Exception) -> str:
    """One line of obstore's many."""
    text = str(error)
    if found := re.search(r"non-2xx status code: (\d{3}[\w ]*)", text):
        return f"the server answers {found[1].strip()}"
    if "kind: Timeout" in text:
        return "no answer in time"
    if "IncompleteBody" in text or "kind: Interrupted" in text:
        return "the connection breaks in the middle of the answer"
    if "kind: Connect" in text:
        return "cannot connect"
    if found := re.search(r"Requested (\S+), got (\S+)", text):
        return f"asked for bytes {found[1]}, got {found[2]}"
    return text.partition("\n")[0].rstrip(".")
