"""The step that went wrong, on disk: what is needed to run it again elsewhere."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from anlage.distributed import ALONE, Ranks
from anlage.errors import CheckpointError
from anlage.files import replace_whole, write_json_whole
from anlage.provenance import versions
from anlage.training.checkpoint import newest_checkpoint
from anlage.training.checkpoint_writer import CheckpointWriter

LOGGER = logging.getLogger(__name__)
FORMAT = "replay/1"
FACTS, TENSORS, STATE = "facts.json", "batch.safetensors", "state.pt"


@dataclass(frozen=True)
class SavedReplay:
    """What came of saving a replay.

    Attributes:
        folder: ``RUN/non_finite/step-00000123``; it may be missing if nothing could be saved.
        faults: Files that could not be saved, with the reason.
    """

    folder: Path
    faults: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.faults:
            return f"the step is saved for replay in {self.folder}"
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.faults.items())
        return f"the step could not be saved whole in {self.folder} ({reasons})"


@dataclass(frozen=True)
class Replay:
    """A step that went wrong, as it was saved.

    Attributes:
        step: Its number: finished steps before it.
        facts: What was known about it; numbers that are not finite are the texts ``nan``,
            ``inf`` and ``-inf``.
        versions: Versions of Python, anlage, torch and numpy that ran it.
        tensors: The batch, contiguous, on the CPU; None if it could not be saved.
        state: Networks, optimiser and the rest, whole and on the CPU, however many ranks saved
            them; None if it could not be saved.
    """

    step: int
    facts: dict[str, Any]
    versions: dict[str, str]
    tensors: dict[str, Tensor] | None
    state: dict[str, Any] | None


def save_replay(
    run_dir: Path,
    *,
    step: int,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    state: Mapping[str, Any],
    ranks: Ranks = ALONE,
    is_sharded: bool = False,
) -> SavedReplay:
    """Write the step that went wrong to ``RUN/non_finite/step-00000123``, as far as that goes.

    Facts come first, then the batch, then the state, so that a full disk costs the largest. No
    fault in saving is raised: the error that led here is the one to be told. Each of several ranks
    has a folder of its own, ``step-00000123-rank-1``; a sharded state lies beside them, once, as a
    checkpoint in ``step-00000123-state`` that each rank writes its shards of.

    Args:
        run_dir: The run's folder.
        step: Finished steps before the one at fault.
        tensors: The batch by name (``pixels``, ``g``), on any device.
        facts: What is known (terms, tiles, the finding). Tensors become lists, dataclasses
            dicts, numbers that are not finite texts, and anything unknown to JSON its text.
        state: Nested dicts of tensors; loaded back with ``weights_only=True``.
        ranks: The processes that share the step; each calls this.
        is_sharded: Whether each of them holds a part of the state only. They write it together
            then, and no other collective may be under way.

    Returns:
        The folder, and what could not be saved.
    """
    whole = run_dir / "non_finite" / f"step-{step:08d}"
    folder = whole if ranks.is_alone else whole.with_name(f"{whole.name}-rank-{ranks.rank}")
    told = {"format": FORMAT, "step": step, "versions": versions(), "facts": _json(facts)}
    writers: dict[str, Callable[[Path], Any]] = {
        FACTS: lambda path: write_json_whole(path, told),
        TENSORS: lambda path: _write_tensors(path, tensors),
        STATE: partial(_write_state, state=state),
    }
    if is_sharded:
        writers[STATE] = lambda path: _write_shards(_shards(path.parent), step, state, ranks)
    faults: dict[str, str] = {}
    for name, write in writers.items():
        try:
            (folder / name).unlink(missing_ok=True)  # of the same step in an earlier attempt
            write(folder / name)
        except Exception as error:  # noqa: BLE001 - must not hide the error that led here
            faults[name] = str(error) or type(error).__name__
            LOGGER.warning("%s could not be saved: %s", folder / name, faults[name])
    return SavedReplay(folder, faults)


def load_replay(folder: Path) -> Replay:
    """Read back what ``save_replay`` wrote.

    Args:
        folder: ``RUN/non_finite/step-00000123``.

    Returns:
        The step.

    Raises:
        CheckpointError: If the facts are missing, of another format, or a file is damaged.
    """
    try:
        told = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"cannot be read: {error}. Name a folder such as RUN/non_finite/step-00000123."
        raise CheckpointError(folder / FACTS, message) from error
    found = told.get("format") if isinstance(told, dict) else None
    if found != FORMAT:
        message = f"needs format {FORMAT!r}; got {found!r}. Open it with the anlage that wrote it."
        raise CheckpointError(folder / FACTS, message)
    return Replay(
        step=told["step"],
        facts=told["facts"],
        versions=told["versions"],
        tensors=_read(folder / TENSORS, load_file),
        state=_read(folder / STATE, _read_state) or _read_shards(_shards(folder)),
    )


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    content = save(whole)
    with replace_whole(path) as beside:
        beside.write_bytes(content)


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    with replace_whole(path) as beside, beside.open("wb") as file:
        torch.save(dict(state), file)


def _shards(folder: Path) -> Path:
    """Where the state lies that ranks saved together, from the folder of one of them."""
    return folder.with_name(folder.name.partition("-rank-")[0] + "-state")


def _write_shards(folder: Path, step: int, state: Mapping[str, Any], ranks: Ranks) -> None:
    """Write a state together, through the group of the loop.

    In the one of the background a checkpoint of the run may still be under way.
    """
    loop = replace(ranks, background=dist.group.WORLD)
    with CheckpointWriter(folder, keep=1, ranks=loop) as writer:
        writer.save(state, step=step, provenance={})


def _read_shards(folder: Path) -> dict[str, Any] | None:
    """A state that ranks saved together; None if they did not."""
    saved = newest_checkpoint(folder)
    return None if saved is None else saved.read_whole()


def _read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _read(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any] | None:
    """A file's content; None if it was not saved."""
    if not path.exists():
        return None
    try:
        return read(path)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        message = f"is damaged, or holds more than tensors and plain values: {error}"
        raise CheckpointError(path, message) from error


def _json(value: Any) -> Any:  # noqa: ANN401, PLR0911 - anything the caller knows
    """A value in the words of JSON."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _json(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _json({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if hasattr(value, "tolist"):  # tensors, arrays and numbers of numpy
        return _json(value.tolist())
    return str(value)
