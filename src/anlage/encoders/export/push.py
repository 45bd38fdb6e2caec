"""Upload an export to a hub of models, private unless asked otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anlage.errors import EncoderError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def refuse_push(
    repository: str, provenance: Mapping[str, Any], *, licence: str | None, public: bool
) -> None:
    """Refuse an upload that would be wrong, before anything is written.

    Args:
        repository: ``OWNER/NAME``.
        provenance: Of the encoder.
        licence: Of its weights, if stated.
        public: Whether everybody shall be able to read it.

    Raises:
        EncoderError: If the name is none, the weights are gated where they come from, or shall be
            public without a licence.
    """
    if not NAME.fullmatch(repository):
        raise EncoderError(repository, "needs a name of the form OWNER/NAME. Name it so.")
    gated = _gated(provenance)
    if gated is not None:
        msg = (
            "would pass on weights whose owners ask everybody for consent first, or what began "
            f"with them ({gated.get('repo', 'gated')}). Point to their page instead."
        )
        raise EncoderError(repository, msg)
    if public and not licence:
        msg = "would be public without a licence. State one with --licence, such as apache-2.0."
        raise EncoderError(repository, msg)


def _gated(provenance: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The gated weights that an encoder is, was begun with or was taught by; None for none."""
    if provenance.get("gated"):
        return provenance
    inner = (value for value in provenance.values() if isinstance(value, Mapping))
    return next((found for value in inner if (found := _gated(value)) is not None), None)


def push_folder(folder: str | Path, repository: str, *, public: bool = False) -> str:
    """Upload a folder as one commit, with the token that huggingface_hub knows.

    Args:
        folder: An export.
        repository: ``OWNER/NAME``; made if it is not there.
        public: Make it readable for everybody.

    Returns:
        Address of the commit.

    Raises:
        EncoderError: If huggingface_hub is missing, the repository is public already and
            ``public`` was not asked for, or the hub refuses or cannot be reached.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        msg = "needs huggingface_hub, which is not installed. Run: pip install 'anlage[hub]'."
        raise EncoderError(repository, msg) from error
    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        is_open = not api.repo_info(repository).private
    except Exception as error:  # of the hub, the network or the token
        raise _refused(repository, error) from error
    if is_open and not public:
        msg = "is there and public. Name another, or ask for it with --public."
        raise EncoderError(repository, msg)
    try:
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload an encoder"
        )
    except Exception as error:
        raise _refused(repository, error) from error
    return str(commit.commit_url)


def _refused(repository: str, error: Exception) -> EncoderError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    msg = (
        f"was not uploaded ({reason}). Log in with `hf auth login` or HF_TOKEN, with a token that "
        "may write there, and run it again; the exported folder is whole."
    )
    return EncoderError(repository, msg)
