"""Where each tensor of a checkpoint lies in its files, as JSON, which runs no code when read.

torch.distributed.checkpoint keeps the same in ``.metadata``, a pickle: written for its own tools,
never read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator, model_validator
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

FORMAT = "checkpoint-index/1"
Path = tuple[str, ...]
Sizes = tuple[NonNegativeInt, ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Piece(_Frozen):
    """A box of a tensor, in one place of one file.

    Attributes:
        offset: Its first element in the tensor, an index a dimension.
        shape: Its size.
        file: Name of the file beside the index; no other folder can be named.
        at: First byte.
        n_bytes: Length there, as ``torch.save`` wrote it.
    """

    offset: Sizes
    shape: Sizes
    file: Annotated[str, Field(pattern=r"^__\d+_\d+\.distcp$")]
    at: NonNegativeInt
    n_bytes: NonNegativeInt


class StoredTensor(_Frozen):
    """A tensor, in the pieces that ranks wrote.

    Attributes:
        path: Keys of the nested dicts that lead to it; they may hold dots.
        dtype: As in ``torch.float32``, without ``torch.``.
        shape: Of the whole.
        pieces: Boxes that fill it.
    """

    path: Annotated[Path, Field(min_length=1)]
    dtype: str
    shape: Sizes
    pieces: tuple[Piece, ...]

    @field_validator("dtype")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if not isinstance(getattr(torch, name, None), torch.dtype):
            msg = f"needs a dtype of torch; got {name!r}"
            raise ValueError(msg)
        return name

    @model_validator(mode="after")
    def _is_filled(self) -> Self:
        is_inside = all(
            len(piece.offset) == len(piece.shape) == len(self.shape)
            and all(a + n <= whole for a, n, whole in _extents(piece, self.shape))
            for piece in self.pieces
        )
        if not is_inside or sum(prod(p.shape) for p in self.pieces) != prod(self.shape):
            msg = f"needs pieces that fill {self.name} of shape {self.shape}"
            raise ValueError(msg)
        return self

    @property
    def name(self) -> str:
        """Its keys, joined by dots."""
        return ".".join(self.path)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its dtype as torch has it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class Index(_Frozen):
    """All tensors of a checkpoint.

    Attributes:
        format: Version.
        tensors: Each once.
    """

    format: Annotated[str, Field(pattern=f"^{FORMAT}$")] = FORMAT
    tensors: tuple[StoredTensor, ...]

    @model_validator(mode="after")
    def _is_unambiguous(self) -> Self:
        paths = {stored.path for stored in self.tensors}
        within = {path[:n] for path in paths for n in range(1, len(path))}
        if len({stored.name for stored in self.tensors}) != len(self.tensors) or paths & within:
            msg = "needs one tensor a name, and none that is a dict as well"
            raise ValueError(msg)
        return self

    def metadata(self) -> Metadata:
        """The same for torch.distributed.checkpoint; it holds tensors only."""
        tensors: dict[str, STORAGE_TYPES] = {}
        places = {}
        for stored in self.tensors:
            chunks = [_chunk(piece) for piece in stored.pieces]
            properties = TensorProperties(dtype=stored.torch_dtype)
            tensors[stored.name] = TensorStorageMetadata(
                properties, torch.Size(stored.shape), chunks
            )
            for piece in stored.pieces:
                place = _StorageInfo(piece.file, piece.at, piece.n_bytes)
                places[MetadataIndex(stored.name, piece.offset)] = place
        return Metadata(tensors, storage_data=places)


def index_of(metadata: Metadata, paths: Mapping[str, Path]) -> Index:
    """The index of what torch.distributed.checkpoint has just written.

    Args:
        metadata: What it tells of its files.
        paths: Keys that lead to each tensor, by its name.
    """
    tensors = []
    for name, stored in metadata.state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata), "nothing but tensors is saved"
        pieces = []
        for chunk in stored.chunks:
            place = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
            pieces.append(
                Piece(
                    offset=tuple(chunk.offsets),
                    shape=tuple(chunk.sizes),
                    file=place.relative_path,
                    at=place.offset,
                    n_bytes=place.length,
                )
            )
        tensors.append(
            StoredTensor(
                path=paths[name],
                dtype=str(stored.properties.dtype).removeprefix("torch."),
                shape=tuple(stored.size),
                pieces=tuple(pieces),
            )
        )
    return Index(tensors=tuple(tensors))


def flat_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Path]]:
    """Tensors of nested dicts by their keys joined by dots, and the keys themselves.

    Raises:
        TypeError: If something is neither a dict nor a tensor.
        ValueError: If two tensors have the same name.
    """
    flat: dict[str, Tensor] = {}
    paths: dict[str, Path] = {}
    waiting: list[tuple[Path, Any]] = [((), state)]
    while waiting:
        path, value = waiting.pop()
        name = ".".join(path)
        if isinstance(value, Mapping):
            waiting.extend(((*path, key), inner) for key, inner in reversed(list(value.items())))
        elif not isinstance(value, Tensor):
            msg = (
                f"flat_tensors: needs nested dicts of tensors; got {name} = {value!r}. Put plain "
                "values into the provenance."
            )
            raise TypeError(msg)
        elif name in flat:
            msg = f"flat_tensors: needs one tensor a name; got two of {name!r}. Rename a key."
            raise ValueError(msg)
        else:
            flat[name], paths[name] = value, path
    return flat, paths


def nested(tensors: Mapping[Path, Tensor]) -> dict[str, Any]:
    """Nested dicts of tensors, from the keys that lead to each."""
    state: dict[str, Any] = {}
    for path, tensor in tensors.items():
        inner = state
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = tensor
    return state


def _chunk(piece: Piece) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape))


def _extents(piece: Piece, shape: Sizes) -> zip[tuple[int, int, int]]:
    return zip(piece.offset, piece.shape, shape, strict=True)
