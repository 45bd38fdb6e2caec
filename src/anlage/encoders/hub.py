"""Weight files of presets on the Hugging Face hub: found in its cache, or downloaded.

The hub's own client does the work, with the user's token (``hf auth login`` or ``HF_TOKEN``), cache
(``HF_HOME``) and offline mode (``HF_HUB_OFFLINE=1``).
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

from anlage.errors import EncoderError

LOGGER = logging.getLogger(__name__)


class Hosted(Protocol):
    """A published encoder whose weights lie on the hub, of tiles or of slides."""

    @property
    def name(self) -> str:
        """What it is called here."""

    @property
    def repo(self) -> str:
        """Its repository."""

    @property
    def files(self) -> tuple[str, ...]:
        """Weight files to look for there, in this order."""

    @property
    def licence(self) -> str:
        """Licence of the weights."""

    @property
    def gated(self) -> bool:
        """Whether its page asks for an account and an agreement."""

    @property
    def verified(self) -> str | None:
        """The source that confirms it."""


class HubFile(NamedTuple):
    """A weight file on this machine.

    Attributes:
        path: Where it lies.
        file: Its name on the hub.
        revision: Commit it is of; None where that is not known.
    """

    path: Path
    file: str
    revision: str | None


def cached_file(preset: Hosted) -> HubFile | None:
    """The preset's weight file in the hub's cache, whole; None if it is not there.

    Without the hub's client nothing is found.
    """
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for file in preset.files:
        found = try_to_load_from_cache(preset.repo, file)
        if isinstance(found, str):
            return _hub_file(Path(found), file)
    return None


def fetch_file(preset: Hosted, *, to: Path | None = None) -> HubFile:
    """Download the preset's weight file, unless it is there already.

    Args:
        preset: Which.
        to: Folder to put it in; None for the hub's cache.

    Raises:
        EncoderError: If it cannot be had, with what to do: an agreement to accept, a login, a
            command to run where there is a network.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.constants import is_offline_mode
        from huggingface_hub.errors import (
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RemoteEntryNotFoundError,
        )
    except ImportError as error:
        msg = "needs huggingface_hub. Run: pip install 'anlage[hub]', or name its weight file: "
        raise EncoderError(preset.name, f"{msg}{preset.name}=FILE.") from error
    cached = cached_file(preset) if to is None else None
    if cached is not None:
        return cached
    unreached: LocalEntryNotFoundError | None = None
    for file in preset.files:
        try:
            return _hub_file(Path(hf_hub_download(preset.repo, file, local_dir=to)), file)
        except RemoteEntryNotFoundError:
            continue  # it has the other file
        except (LocalEntryNotFoundError, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) or not is_offline_mode():
                raise EncoderError(preset.name, hub_refusal(preset, error)) from error
            unreached = error  # the other file may be here
    if unreached is not None:
        raise EncoderError(preset.name, hub_refusal(preset, unreached)) from unreached
    files = " or ".join(preset.files)
    msg = f"has no {files} in {page(preset.repo)}. Download its weights, and name the file: "
    raise EncoderError(preset.name, f"{msg}{preset.name}=FILE.")


def tell_licence(preset: Hosted) -> None:
    """Say the licence, once in a process, and whether any source confirms the preset."""
    gated = "; gated" if preset.gated else ""
    _tell_once(f"{preset.name} ({preset.repo}): licence {preset.licence}{gated}", logging.INFO)
    if preset.verified is None:
        said = f"{preset.name}: unverified: no source that we read confirms it whole"
        _tell_once(said, logging.WARNING)


@cache
def _tell_once(said: str, level: int) -> None:
    LOGGER.log(level, said)


def hub_refusal(preset: Hosted, error: Exception) -> str:
    """What to do about an error of the hub's client.

    Args:
        preset: What was asked for.
        error: What ``hf_hub_download`` raised.
    """
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    address, name = page(preset.repo), preset.name
    elsewhere = (
        f"On a node with network run `anlage encoders fetch {name} --to DIR`, copy the file, and "
        f"name it: {name}=DIR/{preset.files[0]}."
    )
    if isinstance(error, LocalEntryNotFoundError):
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the hub cannot be reached"
        return f"is not in the hub's cache, and {why}. {elsewhere}"
    if isinstance(error, GatedRepoError):
        return (
            f"is gated ({preset.licence}), and this account may not have it. Accept the conditions "
            f"at {address}, then run `hf auth login` (or set HF_TOKEN). {elsewhere}"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in {401, 403, 404}:
        return (
            f"is refused by the hub (status {status}): no such repository, or no right to read it. "
            f"See {address}, run `hf auth login`, or name its weight file: {name}=FILE."
        )
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return f"cannot be downloaded ({reason}). Try again. {elsewhere}"


def page(repo: str) -> str:
    """Address of a repository's page."""
    from huggingface_hub.constants import ENDPOINT

    return f"{ENDPOINT}/{repo}"


def _hub_file(path: Path, file: str) -> HubFile:
    parts = path.parts
    revision = parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
    return HubFile(path, file, revision)
