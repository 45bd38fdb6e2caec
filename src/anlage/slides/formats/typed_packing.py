"""Frozen dataclasses of numbers, texts, bytes and arrays to JSON and arrays, and back by type.

What is read back is built from the types that the classes declare and from nothing in the file:
unlike a pickle, a file from anywhere can at worst be refused.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
PLAIN = (str, int, float, bool)
_hints: Callable[[Any], dict[str, Any]] = cache(typing.get_type_hints)


def pack(value: Any, arrays: Arrays) -> Any:  # noqa: ANN401 - any of the kinds below
    """A value that JSON can hold; its bytes and arrays are put into ``arrays``."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: pack(getattr(value, field.name), arrays) for field in fields}
    if isinstance(value, dict):
        return {name: pack(item, arrays) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [pack(item, arrays) for item in value]
    if isinstance(value, bytes):
        value = np.frombuffer(value, np.uint8)
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        arrays[name] = np.ascontiguousarray(value)
        return name
    return value


def unpack(kind: Any, packed: Any, arrays: Arrays) -> Any:  # noqa: ANN401
    """The value of type ``kind`` that ``pack`` made ``packed`` from.

    Raises:
        TypeError, ValueError, KeyError: If it is not one; a caller treats all alike.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        if packed is None and types.NoneType in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not types.NoneType)
        return unpack(kind, packed, arrays)
    if origin is np.ndarray:
        return arrays[packed]
    if origin is dict:
        return {str(name): unpack(arguments[1], item, arrays) for name, item in packed.items()}
    if origin is tuple:
        kinds = arguments[:1] * len(packed) if arguments[-1] is ... else arguments
        return tuple(unpack(k, item, arrays) for k, item in zip(kinds, packed, strict=True))
    return _single(kind, packed, arrays)


def _single(kind: Any, packed: Any, arrays: Arrays) -> Any:  # noqa: ANN401
    if kind is bytes:
        return arrays[packed].astype(np.uint8, copy=False).tobytes()
    if dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        found = {name: unpack(hints[name], item, arrays) for name, item in packed.items()}
        if found.keys() != {field.name for field in dataclasses.fields(kind)}:
            msg = f"needs the fields of {kind}; got {sorted(found)}."
            raise ValueError(msg)
        return kind(**found)  # type: ignore[operator]
    if isinstance(kind, type) and issubclass(kind, tuple):
        hints = _hints(kind)  # a NamedTuple
        values = zip(hints.values(), packed, strict=True)
        return kind(*(unpack(hint, item, arrays) for hint, item in values))
    is_number = kind is float and isinstance(packed, int)
    if kind not in PLAIN or not (type(packed) is kind or is_number):
        msg = f"needs {kind}; got {packed!r}."
        raise TypeError(msg)
    return float(packed) if is_number else packed


def outline(kind: Any) -> str:  # noqa: ANN401
    """The names and types of everything in ``kind``: what makes two layouts the same."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is not None:
        return f"{origin}[{', '.join(map(outline, arguments))}]"
    if dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, tuple)):
        hints = _hints(kind)
        return f"{kind}({', '.join(f'{name}: {outline(hint)}' for name, hint in hints.items())})"
    return str(kind)
