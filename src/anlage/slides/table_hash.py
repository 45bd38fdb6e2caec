"""The hash of a table's content, whatever its chunks, row groups and file.

Each column is hashed as it would be written out value after value: which are null, how long they
are, their bytes. So only the values count, not the buffers they happen to lie in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def hash_blocks(blocks: Iterable[pa.Table], schema: pa.Schema) -> str:
    """SHA-256 of rows that come in parts: of names, types and values of the columns, by name.

    Text counts as text and a list as a list whatever the width of their offsets; a dictionary
    counts as its values.

    Args:
        blocks: Parts of one table, in order.
        schema: Of every part.

    Returns:
        64 hexadecimal digits.
    """
    names = sorted(schema.names)
    columns = {name: _ColumnHash() for name in names}
    for block in blocks:
        for name in names:
            for chunk in block.column(name).chunks:
                columns[name].add(chunk)
    digest = hashlib.sha256()
    for name in names:
        told = json.dumps([name, _kind(schema.field(name).type), columns[name].hexdigests()])
        digest.update(told.encode())
    return digest.hexdigest()


class _ColumnHash:
    """Hashes of one column: its nulls, its lengths and its bytes, each a stream of its own."""

    def __init__(self) -> None:
        self._streams: dict[str, Any] = {}

    def hexdigests(self) -> dict[str, str]:
        return {name: stream.hexdigest() for name, stream in sorted(self._streams.items())}

    def add(self, array: pa.Array, place: str = "") -> None:
        """Append the values of an array; ``place`` says where in a nested type they are."""
        kind = array.type
        if pa.types.is_dictionary(kind):
            self.add(array.dictionary_decode(), place)
            return
        if isinstance(array, pa.ExtensionArray):
            self.add(array.storage, place)
            return
        self._feed(f"{place}valid", array.is_valid().cast(pa.uint8()))
        if _is_nested_list(kind):
            self._feed(f"{place}length", pc.fill_null(pc.list_value_length(array), 0))
            self.add(pc.list_flatten(array), f"{place}item.")
        elif pa.types.is_struct(kind):
            for i, field in enumerate(kind):
                self.add(pc.struct_field(array, [i]), f"{place}field {field.name}.")
        elif pa.types.is_null(kind):
            return
        elif _is_text(kind) or _is_bytes(kind):
            wide = pa.large_string() if _is_text(kind) else pa.large_binary()
            whole = array.cast(wide).drop_null().cast(pa.large_binary())
            self._feed(f"{place}length", pc.binary_length(whole))
            self._update(f"{place}value", _bytes_of(whole))
        elif pa.types.is_boolean(kind):
            self._feed(f"{place}value", array.drop_null().cast(pa.uint8()))
        else:
            self._update(f"{place}value", _fixed_width_bytes(array.drop_null()))

    def _feed(self, stream: str, numbers: pa.Array) -> None:
        wide = pa.uint8() if numbers.type == pa.uint8() else pa.int64()
        self._update(stream, _fixed_width_bytes(numbers.cast(wide)))

    def _update(self, stream: str, content: memoryview) -> None:
        self._streams.setdefault(stream, hashlib.sha256()).update(content)


def _fixed_width_bytes(array: pa.Array) -> memoryview:
    width = array.type.bit_width // 8
    data = array.buffers()[1]
    if data is None:
        return memoryview(b"")
    return memoryview(data)[array.offset * width : (array.offset + len(array)) * width]


def _bytes_of(array: pa.Array) -> memoryview:
    _, offsets, data = array.buffers()
    if data is None or len(array) == 0:
        return memoryview(b"")
    ends = np.frombuffer(offsets, dtype=np.int64)
    return memoryview(data)[ends[array.offset] : ends[array.offset + len(array)]]


def _kind(kind: pa.DataType) -> str:
    """A type's name in which width of offsets and encoding do not show."""
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return f"{kind.extension_name} {_kind(kind.storage_type)}"
    if _is_nested_list(kind):
        return f"list of {_kind(kind.value_type)}"
    if pa.types.is_struct(kind):
        return json.dumps({field.name: _kind(field.type) for field in kind})
    return "text" if _is_text(kind) else "bytes" if _is_bytes(kind) else str(kind)


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_such(kind)
        for is_such in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return any(
        is_such(kind)
        for is_such in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    )


def _is_nested_list(kind: pa.DataType) -> bool:
    return any(
        is_such(kind)
        for is_such in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )
