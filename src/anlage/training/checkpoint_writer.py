"""Checkpoints written beside training: each rank copies its part, a thread puts it on disk."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultSavePlanner,
    create_default_local_save_plan,
)
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import find_state_dict_object
from torch.distributed.tensor import DTensor
from torch.futures import Future as TorchFuture

from anlage.distributed import ALONE, Ranks
from anlage.errors import AnlageError, CheckpointError
from anlage.files import write_json_whole, write_text_whole
from anlage.training.checkpoint import (
    FORMAT,
    INDEX,
    Description,
    FileFacts,
    described_steps,
    description_of,
    facts_of,
    folder_name,
)
from anlage.training.checkpoint_index import flat_tensors, index_of

LOGGER = logging.getLogger(__name__)
Value = TypeVar("Value")


class CheckpointWriter:
    """Saves a run's state while it goes on; as a context it waits for the last save at the end.

    A save is a folder ``step-00000100`` of torch.distributed.checkpoint, one file a rank, and then
    ``step-00000100.json`` with sizes and hashes: a checkpoint with a description is whole. Ranks
    share the work by an order that each of them finds alone: a tensor that every rank holds is
    copied and written by one of them. The copies' memory (of this rank's share, page-locked beside
    a GPU) is kept from one save to the next.

    Args:
        folder: ``RUN/checkpoints``, on storage that every rank sees.
        keep: How many of the newest checkpoints stay, 1 or more.
        ranks: The processes that train together, with their group for the background.
        form: Format of the checkpoints.
    """

    def __init__(
        self, folder: Path, *, keep: int, ranks: Ranks = ALONE, form: str = FORMAT
    ) -> None:
        if keep < 1:
            msg = f"CheckpointWriter: needs keep >= 1; got {keep}."
            raise ValueError(msg)
        if not ranks.is_alone and ranks.background is None:
            msg = (
                "CheckpointWriter: needs ranks with a background group; got none. Take those of "
                "anlage.distributed.process_group."
            )
            raise ValueError(msg)
        if ranks.is_alone:  # set here: warnings' filters may not change in a thread
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        self.folder, self.keep, self.ranks, self.form = folder, keep, ranks, form
        self._copies: dict[MetadataIndex, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except Exception as failed:  # told, and not put in the place of what led here
            if error is None:
                raise
            LOGGER.warning("the last checkpoint was not saved: %s", failed)
        finally:
            self._thread.shutdown()

    def save(self, state: Mapping[str, Any], *, step: int, provenance: Mapping[str, Any]) -> None:
        """Copy the state after ``step`` steps, and write it while training goes on.

        Every rank calls it. It waits for the save before.

        Args:
            state: Nested dicts of tensors or DTensors; they may change as soon as this returns.
            step: Number of finished steps.
            provenance: Configuration and hashes the state was made from, as JSON.

        Raises:
            OSError: If the save before failed, on every rank.
            TypeError: If the state holds something else, or the provenance is not JSON.
        """
        self.wait()
        told = json.loads(json.dumps(provenance, allow_nan=False))
        plan = _SharedPlan(state, self.ranks, into=self._copies)
        self._last = self._thread.submit(self._write, plan, step, told)

    def wait(self) -> None:
        """Wait until the last save is whole on disk on every rank.

        Raises:
            OSError: If it failed on any rank, as for a disk that is full; those before are whole.
            CheckpointError: If rank 0 does not see what another rank wrote.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def _write(self, plan: _SharedPlan, step: int, provenance: dict[str, Any]) -> None:
        """Write and describe a checkpoint; take a part of one away again."""
        path = self.folder / folder_name(step)
        try:
            self._on_main(lambda: _remove(path))
            metadata = self._write_tensors(plan, path)
            mine = sorted(path.glob(f"__{self.ranks.rank}_*.distcp"))
            facts = self._on_all(lambda: {file.name: facts_of(file) for file in mine})

            def describe() -> None:
                files = {name: fact for part in facts for name, fact in part.items()}
                _describe(path, files, index_of(metadata, plan.paths).model_dump_json(), told)

            told = {
                "format": self.form,
                "step": step,
                "world_size": self.ranks.world_size,
                "provenance": provenance,
            }
            self._on_main(describe)
        except Exception:  # whatever it is goes on; what is half written goes
            if self.ranks.is_main:
                _remove(path)
            raise
        self._on_main(lambda: _forget(self.folder, step=step, keep=self.keep))

    def _write_tensors(self, plan: _SharedPlan, path: Path) -> Metadata:
        """Every rank's file and ``.metadata``, on disk.

        Raises:
            Exception: The first that a rank met, on every rank.
        """
        try:
            metadata: Metadata = save(
                {},
                storage_writer=_Writer(path),
                planner=plan,
                process_group=self.ranks.background,
                no_dist=self.ranks.is_alone,
            )
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise _first(causes) from error
        return metadata

    def _on_main(self, act: Callable[[], None]) -> None:
        """Let rank 0 act while the others wait."""
        self._on_all(act if self.ranks.is_main else lambda: None)

    def _on_all(self, make: Callable[[], Value]) -> list[Value]:
        """What each rank makes, on all of them, through the background group.

        Raises:
            Exception: The first that a rank met, on every rank.
        """
        value, failed = None, None
        try:
            value = make()
        except Exception as error:  # every rank raises it, in words that can be sent
            if self.ranks.is_alone:
                raise
            failed = error if isinstance(error, OSError | AnlageError) else RuntimeError(str(error))
        told: list[Any] = [(value, failed)]
        if not self.ranks.is_alone:
            told *= self.ranks.world_size
            dist.all_gather_object(told, (value, failed), group=self.ranks.background)
        failures = [error for _, error in told if error is not None]
        if failures:
            raise _first(failures)
        return [value for value, _ in told]


class _Writer(FileSystemWriter):
    """Writes one file a rank; says nothing of the machine it was written on.

    One thread: torch loses the errors of further ones. Nothing is copied ahead: tensors are on the
    CPU, and torch would wait for all that the GPU was given to do, again and again, on GPU 0.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, thread_count=1, sync_files=True, per_thread_copy_ahead=0)

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[WriteResult]]:
        """Write this rank's file.

        Raises:
            OSError: If the system does not let it; torch speaks of positions in a zip file then.
        """
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


class _SharedPlan(DefaultSavePlanner):
    """What this rank writes of a state, copied when this is made.

    Args:
        state: Nested dicts of tensors.
        ranks: Who writes it together.
        into: Copies of a save before, whose memory is taken.

    Attributes:
        paths: Keys that lead to each tensor, by its name.
    """

    def __init__(
        self, state: Mapping[str, Any], ranks: Ranks, *, into: dict[MetadataIndex, Tensor]
    ) -> None:
        super().__init__(flatten_state_dict=True)
        flat, self.paths = flat_tensors(state)
        shared = _shared(flat, ranks)
        self._items = create_default_local_save_plan(shared, ranks.is_main).items
        self._copies = into
        places = {item.index: find_state_dict_object(flat, item.index) for item in self._items}
        for gone in into.keys() - places.keys():
            del into[gone]
        for index, tensor in places.items():
            into[index] = _copied(tensor.detach(), into.get(index))
        for device in {tensor.device for tensor in places.values() if tensor.is_cuda}:
            torch.cuda.synchronize(device)

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Keep what was planned when the state was copied; torch gives no state here."""
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(self._items, planner_data=self.paths)
        return self.plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, metadata = super().create_global_plan(all_plans)
        unwritten = sorted(self.paths.keys() - metadata.state_dict_metadata.keys())
        assert not unwritten, f"every rank saves the same names; nobody writes {unwritten[:3]}"
        return plans, metadata

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._copies[write_item.index]


def _shared(flat: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The tensors of which this rank writes its part, or the whole.

    A whole tensor goes to the rank with the fewest bytes so far; of mirrored shards each mirror
    writes in its turn.
    """
    mine: dict[str, Tensor] = {}
    n_bytes = [0] * ranks.world_size
    for turn, (name, tensor) in enumerate(sorted(flat.items())):  # alike on all ranks
        if isinstance(tensor, DTensor):
            mesh = tensor.device_mesh
            place = mesh.get_coordinate()
            assert place is not None, "every rank holds a part"
            mirrors = [
                (at, mesh.size(dim))
                for dim, (at, placement) in enumerate(zip(place, tensor.placements, strict=True))
                if placement.is_replicate()
            ]
            if all(at == turn % n_mirrors for at, n_mirrors in mirrors):
                mine[name] = tensor
            continue
        rank = min(range(ranks.world_size), key=n_bytes.__getitem__)
        n_bytes[rank] += tensor.nbytes
        if rank == ranks.rank:
            mine[name] = tensor
    return mine


def _copied(tensor: Tensor, memory: Tensor | None) -> Tensor:
    """A copy on the CPU; from a GPU it may still be under way."""
    if memory is None or (memory.shape, memory.dtype) != (tensor.shape, tensor.dtype):
        memory = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return memory.copy_(tensor, non_blocking=True)


def _describe(path: Path, facts: dict[str, FileFacts], index: str, told: dict[str, Any]) -> None:
    """Say that a checkpoint is whole, once everything of it is on disk.

    Raises:
        CheckpointError: If a file of another rank is not seen here.
    """
    for name, fact in facts.items():
        file = path / name
        if not file.exists() or file.stat().st_size != fact.n_bytes:
            msg = f"needs {name}, which another rank wrote; got no such file of {fact.n_bytes} "
            raise CheckpointError(path, f"{msg}bytes. Put the run on storage that all ranks share.")
    write_text_whole(path / INDEX, index)  # puts the names of all files of the folder on disk too
    for own in (path / INDEX, path / ".metadata"):
        facts[own.name] = facts_of(own)
    described = Description(files=facts, **told)
    write_json_whole(description_of(path), described.model_dump(mode="json"))


def _forget(folder: Path, *, step: int, keep: int) -> None:
    """Remove what a new checkpoint makes useless.

    Older ones than the newest few; later ones, which were damaged, or this run would have gone on
    from them; and the folders of saves that were killed.
    """
    kept = {folder_name(s) for s in [s for s in described_steps(folder) if s <= step][-keep:]}
    for path in folder.glob("step-*"):
        name = path.name.removesuffix(".json")
        if name not in kept:
            _remove(folder / name)
    for part in folder.glob(".step-*.part"):
        part.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a checkpoint: what says that it is whole first."""
    description_of(path).unlink(missing_ok=True)
    if path.is_dir():
        shutil.rmtree(path)


def _first(failures: list[BaseException]) -> BaseException:
    """What to tell of the failures of several ranks: one of the system, if there is one."""
    return next((error for error in failures if isinstance(error, OSError)), failures[0])
