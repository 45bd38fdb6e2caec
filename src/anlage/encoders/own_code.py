"""An encoder that a function of the user's makes: ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from anlage.encoders.other_network import OtherNetwork
from anlage.encoders.precision import Precision
from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder
from anlage.encoders.weight_files import file_sha256
from anlage.errors import EncoderError

SPEC = re.compile(r"^(?P<where>.+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)$")
FACTS = ("tile_px", "mpp", "mean", "std", "width")


def encoder_of_own_code(
    spec: str, *, device: str | torch.device = "cpu", precision: Precision = "auto"
) -> TileEncoder:
    """Call the function and wrap what it returns.

    It takes nothing and returns a torch module, or a callable, that turns (B, 3, tile_px, tile_px)
    float32 images, normalised, on ``device``, into (B, width) embeddings; or that and a dict. The
    facts ``tile_px``, ``mpp``, ``mean``, ``std`` and ``width`` are in the dict, or attributes.

    Args:
        spec: ``module:function`` or ``file.py:function``.
        device: See ``TileEncoder``.
        precision: See ``TileEncoder``.

    Returns:
        The encoder. Its fingerprint covers the facts, the weights of a torch module, and the bytes
        of the file that defines the function; not what else that file loads.

    Raises:
        EncoderError: If there is no such function, it fails, or a fact is missing or absurd.
    """
    found = SPEC.match(spec)
    if found is None:
        raise EncoderError(spec, "needs the form module:function or file.py:function.")
    module = _module(found["where"], spec)
    made = _made(module, found["function"], spec)
    network, told = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not callable(network) or not isinstance(told, Mapping):
        kind = type(network).__name__
        msg = f"needs a torch module or a callable, and a dict of facts if any; got {kind}. "
        raise EncoderError(spec, msg + "Return such from the function.")
    facts = {name: told.get(name, getattr(network, name, None)) for name in FACTS}
    lacking = [name for name, value in facts.items() if value is None]
    if lacking:
        msg = f"does not state {', '.join(lacking)}. Give them as attributes or in a dict beside it"
        raise EncoderError(spec, f"{msg}: return network, {{'tile_px': 224, ...}}.")
    width = facts.pop("width")
    if not isinstance(width, int) or width < 1:
        msg = f"states width = {width!r}: it needs a whole number of at least 1. Correct it."
        raise EncoderError(spec, msg)
    source = Path(module.__file__ or "")
    code = {"callable": spec, "sha256": file_sha256(source) if source.is_file() else None}
    try:
        config = EncoderConfig(
            architecture=code, pooling="own", provenance={"source": spec}, **facts
        )
    except ValidationError as error:
        first = error.errors()[0]
        msg = f"states {first['loc'][0]} = {first['input']!r}: {first['msg']}. Correct it."
        raise EncoderError(spec, msg) from error
    wrapped = OtherNetwork(network, run=_call, width=width)
    return TileEncoder(config, wrapped, device=device, precision=precision)


def _module(where: str, spec: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where)
        if not path.is_file():
            raise EncoderError(spec, f"no such file {where}. Name a Python file, or a module.")
        made = importlib.util.spec_from_file_location(path.stem, path)
        assert made is not None, "it is a file"
        assert made.loader is not None, "it is a file of Python"
        module = importlib.util.module_from_spec(made)
        made.loader.exec_module(module)
    except EncoderError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        msg = f"{where} cannot be imported ({type(error).__name__}: {error}). Correct it."
        raise EncoderError(spec, msg) from error
    return module


def _made(module: ModuleType, function: str, spec: str) -> Any:  # noqa: ANN401 - the user's
    make: Callable[[], Any] | None = getattr(module, function, None)
    if not callable(make):
        raise EncoderError(spec, f"has no function {function!r}. Name one that is there.")
    try:
        return make()
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        msg = f"{function} failed ({type(error).__name__}: {error}). Correct it."
        raise EncoderError(spec, msg) from error


def _call(network: nn.Module | Callable[[Tensor], Tensor], image: Tensor) -> tuple[Tensor, None]:
    try:
        embedding: Tensor = network(image)
    except torch.OutOfMemoryError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        name = getattr(network, "__name__", type(network).__name__)
        at = traceback.extract_tb(error.__traceback__)[-1]
        msg = (
            f"failed on {tuple(image.shape)} images ({type(error).__name__}: {error}; "
            f"line {at.lineno} of {at.filename}). Correct it."
        )
        raise EncoderError(name, msg) from error
    return embedding, None
