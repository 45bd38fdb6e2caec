"""Checkpoints on disk: whole or damaged, found by their hashes, read at any number of ranks."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load

from anlage.distributed import ALONE, Ranks
from anlage.errors import CheckpointError
from anlage.training.checkpoint_index import Index, flat_tensors, nested

LOGGER = logging.getLogger(__name__)
FORMAT = "tile-checkpoint/2"  # of the tile stage; the other stages name theirs
INDEX = "index.json"
HASHING_THREADS = 4


class FileFacts(BaseModel):
    """What a file of a checkpoint must be.

    Attributes:
        n_bytes: Its length.
        sha256: Of its bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    n_bytes: NonNegativeInt
    sha256: str


class Description(BaseModel):
    """The JSON file beside a checkpoint's folder, written last: what is described is whole.

    Attributes:
        format: Version.
        step: Finished steps.
        world_size: Ranks that wrote it.
        files: Every file of the folder.
        provenance: Configuration and hashes it was made from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: str
    step: NonNegativeInt
    world_size: PositiveInt
    files: dict[str, FileFacts]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint whose files have the sizes and hashes that were written beside it.

    Attributes:
        path: Its folder.
        step: Finished steps.
        provenance: Configuration and hashes it was made from.
    """

    path: Path
    step: int
    provenance: dict[str, Any]

    @cached_property
    def index(self) -> Index:
        """Where each tensor lies.

        Raises:
            CheckpointError: If that cannot be understood.
        """
        try:
            return Index.model_validate_json((self.path / INDEX).read_bytes())
        except (OSError, ValidationError) as error:
            msg = f"has no index that can be read: {error}"
            raise CheckpointError(self.path, msg) from error

    @property
    def parts(self) -> set[str]:
        """First keys of the tensors that it holds."""
        return {stored.path[0] for stored in self.index.tensors}

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the tensors that it holds, by their keys joined by dots."""
        return {stored.name: torch.Size(stored.shape) for stored in self.index.tensors}

    def load_into(self, state: dict[str, Any], *, ranks: Ranks = ALONE) -> None:
        """Fill tensors with what was saved, each rank its own part; every rank calls it.

        Ranks and sharding may be others than those that saved it.

        Args:
            state: Nested dicts of tensors or DTensors, changed in place: all that it holds and
                nothing else, of the same shapes and dtypes.
            ranks: The processes among which DTensors are sharded.

        Raises:
            CheckpointError: If a tensor is missing on either side or differs, which names it, or
                cannot be read.
        """
        flat, _ = flat_tensors(state)
        odd = next((told for told in ranks.objects(self._difference(flat)) if told), None)
        if odd is not None:
            raise CheckpointError(self.path, odd)
        self._read(dict(flat), self.index, ranks)

    def read_whole(self, *parts: str) -> dict[str, Any]:
        """Read tensors into the memory of this process, alone, with no process group.

        Args:
            parts: First keys of what to read; everything if none is named.

        Returns:
            Nested dicts of CPU tensors.

        Raises:
            CheckpointError: If there is no such part, or it cannot be read.
        """
        if missing := sorted(set(parts) - self.parts):
            there = ", ".join(sorted(self.parts))
            msg = f"needs {missing[0]!r}; got {there}. Name one of these."
            raise CheckpointError(self.path, msg)
        chosen = [t for t in self.index.tensors if not parts or t.path[0] in parts]
        try:
            tensors = {t.path: torch.empty(t.shape, dtype=t.torch_dtype) for t in chosen}
        except RuntimeError as error:
            raise CheckpointError(self.path, f"does not fit into memory: {error}") from error
        named = {".".join(path): tensor for path, tensor in tensors.items()}
        self._read(named, Index(tensors=tuple(chosen)), ALONE)
        return nested(tensors)

    def _difference(self, flat: Mapping[str, Tensor]) -> str | None:
        """The first tensor that is missing on one side or differs."""
        ours = {name: f"{t.dtype} {tuple(t.shape)}" for name, t in flat.items()}
        theirs = {t.name: f"torch.{t.dtype} {t.shape}" for t in self.index.tensors}
        odd = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
        if not odd:
            return None
        more = f" (and {len(odd) - 1} more)" if odd[1:] else ""
        return (
            f"needs {odd[0]} to be {ours.get(odd[0], 'absent')}; got "
            f"{theirs.get(odd[0], 'none')}{more}. Restore the recipe it was made with."
        )

    def _read(self, flat: dict[str, Any], index: Index, ranks: Ranks) -> None:
        """Fill tensors from the pieces that overlap with this rank's."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            try:
                load(
                    flat,
                    storage_reader=_IndexedReader(self.path, index.metadata()),
                    planner=DefaultLoadPlanner(flatten_state_dict=False),
                    process_group=ranks.background,
                    no_dist=ranks.is_alone,
                )
            except CheckpointException as error:
                cause = next(iter(error.failures.values()))[0]
                raise CheckpointError(self.path, f"cannot be read: {cause}") from error


class _IndexedReader(FileSystemReader):
    """Reads tensors (with ``weights_only``) as an index says; ``.metadata``, a pickle, it does not.

    An index knows no entries but tensors, so that none is unpickled either.
    """

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        return self._metadata


def newest_checkpoint(
    folder: Path, *, ranks: Ranks = ALONE, form: str = FORMAT
) -> SavedCheckpoint | None:
    """The newest undamaged checkpoint; a damaged one is named in the log and passed over.

    Rank 0 reads every byte of it; every rank is told the same. A folder without a description,
    which a killed run leaves, is named as well.

    Args:
        folder: ``RUN/checkpoints``; may be missing.
        ranks: The processes that will load it; each calls this.
        form: Format that it needs to have.

    Returns:
        The checkpoint; None if there is none at all.

    Raises:
        CheckpointError: If there are checkpoints and every one is damaged, or the newest has
            another format.
    """
    return ranks.from_main(lambda: _newest(folder, form))


def _newest(folder: Path, form: str) -> SavedCheckpoint | None:
    steps = described_steps(folder)
    for path in sorted(folder.glob("step-*")):
        if path.is_dir() and not description_of(path).exists():
            LOGGER.warning("%s was not written to its end; it is passed over", path)
    for step in reversed(steps):
        path = folder / folder_name(step)
        _refuse_other_format(path, form)
        try:
            return _verified(path)
        except CheckpointError as error:
            LOGGER.warning("%s; trying the checkpoint before it", error)
    if steps:
        message = "every checkpoint is damaged. Start a new run in another folder."
        raise CheckpointError(folder, message)
    return None


def _refuse_other_format(path: Path, form: str) -> None:
    """A checkpoint of another version or stage is not damaged: none before it takes its place."""
    try:
        found = json.loads(description_of(path).read_bytes())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # damaged, as _verified tells
    stage, _, version = str(found).partition("/")
    if found == form or not stage.endswith("-checkpoint") or not version:
        return
    msg = f"needs format {form!r}; got {found!r}. "
    if stage != form.partition("/")[0]:
        raise CheckpointError(path, f"{msg}Another stage wrote it: name the folder of such a run.")
    told = "Another version of anlage wrote it: go on with that one, or start a new run in another "
    raise CheckpointError(path, f"{msg}{told}folder.")


def _verified(path: Path) -> SavedCheckpoint:
    """The checkpoint in a folder, once each of its files is what the description says."""
    try:
        found = Description.model_validate_json(description_of(path).read_bytes())
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            read = pool.map(facts_of, [path / name for name in found.files])
            facts = dict(zip(found.files, read, strict=True))
    except (OSError, ValidationError) as error:
        raise CheckpointError(path, f"is damaged: {error}") from error
    odd = [name for name, told in found.files.items() if facts[name] != told]
    if odd:
        msg = f"is damaged: {odd[0]} does not have the length and hash written beside it"
        raise CheckpointError(path, msg)
    saved = SavedCheckpoint(path, found.step, found.provenance)
    used = {piece.file for stored in saved.index.tensors for piece in stored.pieces}
    if unknown := used - facts.keys():
        msg = f"is damaged: its description does not tell of {min(unknown)}"
        raise CheckpointError(path, msg)
    return saved


def facts_of(file: Path) -> FileFacts:
    """Length and hash of a file, read from its first byte to its last.

    Raises:
        OSError: If it cannot be read.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileFacts(n_bytes=stream.tell(), sha256=digest)


def folder_name(step: int) -> str:
    """Name of the folder of the checkpoint after some steps."""
    return f"step-{step:08d}"


def description_of(path: Path) -> Path:
    """The JSON file that says that the checkpoint in a folder is whole."""
    return path.with_name(f"{path.name}.json")


def described_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that have a description, ascending."""
    found = (re.fullmatch(r"step-(\d{8,})\.json", f.name) for f in folder.glob("step-*.json"))
    return sorted(int(match[1]) for match in found if match)
