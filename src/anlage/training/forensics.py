"""Where a number stopped being finite: the first tensor of a step, and the module that made it.

Shape suffixes: T packed tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anlage.models.layers.packing import SequenceShape

OUTSIDE = "outside the networks"
LISTED_ROWS = 64
TilesOfRows = Callable[[Sequence[int], int], Sequence[int] | None]


@dataclass(frozen=True)
class Finding:
    """The first tensor of a step that is not finite.

    Attributes:
        kind: ``parameter`` or ``input`` (it was so before the step), ``activation`` (made by the
            forward pass), ``gradient`` or ``parameter gradient`` (made by the backward pass).
        name: What is at fault: a parameter, an input, or the module whose own code made the
            tensor from finite ones (``student.encoder.blocks.3.attn``);
            ``outside the networks`` where that is the loss or the code around them.
        place: Which tensor it is, in words.
        n_nan: NaN values in it.
        n_infinite: Infinite values in it.
        n_values: All its values.
        rows: Its rows (first dimension) with such values, the first 64.
        n_rows_at_fault: How many there are.
        n_rows: Rows of the tensor, 0 for a scalar.
        tiles: Tiles of the batch those rows belong to, if the caller could tell.
    """

    kind: Literal["parameter", "input", "activation", "gradient", "parameter gradient"]
    name: str
    place: str
    n_nan: int
    n_infinite: int
    n_values: int
    rows: tuple[int, ...]
    n_rows_at_fault: int
    n_rows: int
    tiles: tuple[int, ...] = ()

    def __str__(self) -> str:
        found = [(self.n_nan, "NaN"), (self.n_infinite, "infinite")]
        counts = " and ".join(f"{count} {what}" for count, what in found if count)
        text = f"{self.name}: {counts} of {self.n_values} values in {self.place}"
        if self.tiles:
            return f"{text}, of tiles {_listed(self.tiles)} of the batch"
        return f"{text}, rows {_listed(self.rows)} of {self.n_rows}" if self.rows else text


def first_non_finite(
    networks: Mapping[str, nn.Module],
    run: Callable[[], None],
    *,
    inputs: Mapping[str, Tensor] | None = None,
    tiles_of_rows: TilesOfRows | None = None,
) -> Finding | None:
    """Name the first tensor of a step that is not finite, by running the step once more.

    Parameters, buffers and inputs are looked at first; if one is not finite, nothing is run. Then
    every tensor that enters or leaves a module is looked at in the order of execution, and the
    gradient of each in the order of the backward pass. The first one at fault was made from
    finite ones, so the code that ran since the tensor before it is to blame: a leaf module, a
    module's own code between two of its children, or the loss. A module must not be given an
    infinity on purpose (an additive mask): it would be named.

    Every rank of a distributed run must call this, for ``run`` may hold collectives. Modules run
    as they are called: code compiled before is not seen unless ``run`` switches it off.

    Args:
        networks: Networks by name, on any device; shared modules go by their first name.
        run: The same step again, forward and backward, on the same batch with the same
            generators. It must not step the optimiser. Its errors pass through.
        inputs: Tensors of the batch by name, such as pixels and views.
        tiles_of_rows: Rows of a tensor and the number of all its rows to tiles of the batch;
            None where such rows are no tiles. ``packed_tiles`` makes one.

    Returns:
        The finding; None if every tensor seen is finite (the fault is in the last sum of the
        loss, or did not come back). Hooks are gone and all gradients are cleared (None), also
        after an error.
    """
    found = _before_the_run(networks, inputs or {})
    if found is None:
        watch = _Watch()
        parameters = [p for network in networks.values() for p in network.parameters()]
        _clear_gradients(parameters)
        try:
            with contextlib.ExitStack() as hooks:
                watch.attach(networks, hooks)
                run()
        finally:
            _clear_gradients(parameters)
        found = watch.verdict()
    if found is None:
        return None
    tiles = None
    if tiles_of_rows is not None and not found.kind.startswith("parameter"):
        tiles = tiles_of_rows(found.rows, found.n_rows)
    return replace(found, rows=found.rows[:LISTED_ROWS], tiles=tuple(sorted(set(tiles or ()))))


def packed_tiles(shapes: Sequence[SequenceShape], n_tiles: int) -> TilesOfRows:
    """How rows of images and packed tokens belong to tiles, for ``first_non_finite``.

    Args:
        shapes: Images and tokens of each resolution of the student's pass, global views first;
            images are view-major, so image i shows tile ``i % n_tiles``.
        n_tiles: Tiles of the batch.

    Returns:
        A function of rows and their number: rows may be tiles, images or tokens of one resolution
        or of all. It gives None for any other number of rows (masked patches, the images that
        stochastic depth kept).
    """
    every = [[shape] for shape in shapes] + [list(shapes)]
    tile_of_row: dict[int, list[int]] = {}
    for part in reversed(every):
        images = [image for shape in part for image in range(shape.n_sequences)]
        lengths = [shape.n_tokens for shape in part for _ in range(shape.n_sequences)]
        tokens = [i for i, n in zip(images, lengths, strict=True) for _ in range(n)]
        tile_of_row |= {len(rows): [i % n_tiles for i in rows] for rows in (tokens, images)}
    tile_of_row[n_tiles] = list(range(n_tiles))

    def tiles_of_rows(rows: Sequence[int], n_rows: int) -> list[int] | None:
        known = tile_of_row.get(n_rows)
        return None if known is None else [known[row] for row in rows]

    return tiles_of_rows


def _before_the_run(
    networks: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]
) -> Finding | None:
    """What is not finite before anything is computed."""
    for prefix, network in networks.items():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if not _is_finite(tensor):
                return _finding("parameter", f"{prefix}.{name}", "the parameter itself", tensor)
    for name, tensor in inputs.items():
        if not _is_finite(tensor):
            return _finding("input", name, "what the step was given", tensor)
    return None


class _Watch:
    """Looks at every tensor that passes a module's border, forward and backward.

    Inputs and outputs are replaced by views of themselves, so that a tensor used by two modules
    has one gradient for each; unlike full backward hooks, views allow changes in place.
    """

    def __init__(self) -> None:
        self.first: Finding | None = None
        self.first_of_weights: Finding | None = None
        self.weight_came_first = False
        self.running: list[str] = []

    def attach(self, networks: Mapping[str, nn.Module], hooks: contextlib.ExitStack) -> None:
        """Hook every module and every parameter once."""
        names: dict[nn.Module, str] = {}
        for prefix, network in networks.items():
            for name, module in network.named_modules():
                names.setdefault(module, f"{prefix}.{name}".rstrip("."))
        for module, name in names.items():
            enter = module.register_forward_pre_hook(self._enter(name), with_kwargs=True)
            leave = module.register_forward_hook(self._leave(name))
            hooks.callback(enter.remove)
            hooks.callback(leave.remove)
            for short, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    hook = parameter.register_hook(  # type: ignore[no-untyped-call]
                        self._parameter_gradient(name, short)
                    )
                    hooks.callback(hook.remove)

    def verdict(self) -> Finding | None:
        """The first of all; a module's own gradient before that of its weights, for its rows."""
        first, weight = self.first, self.first_of_weights
        if first is None or weight is None or not self.weight_came_first:
            return first or weight
        return first if weight.name.rpartition(".")[0] == first.name else weight

    def _enter(self, name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
            self._look("activation", self._caller(), f"the input of {name}", (args, kwargs))
            self.running.append(name)
            return self._watched((args, kwargs), name, f"the gradient of the input of {name}")

        return hook

    def _leave(self, name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:  # noqa: ANN401
            while self.running and self.running.pop() != name:
                pass  # modules that an error cut short (a recomputation ends so)
            self._look("activation", name, f"the output of {name}", output)
            place = f"the gradient of the output of {name}"
            return self._watched(output, self._caller(), place)

        return hook

    def _caller(self) -> str:
        """The module whose own code is running."""
        return self.running[-1] if self.running else OUTSIDE

    def _look(self, kind: Any, name: str, place: str, value: Any) -> None:  # noqa: ANN401
        if self.first is None:
            for tensor in _tensors(value):
                if not _is_finite(tensor):
                    self.first = _finding(kind, name, place, tensor)
                    return

    def _watched(self, value: Any, name: str, place: str) -> Any:  # noqa: ANN401
        """The same value, with a look at the gradient of each of its tensors."""

        def watch(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            view = tensor.view_as(tensor)
            view.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self._look("gradient", name, place, gradient)
            )
            return view

        return _mapped(watch, value)

    def _parameter_gradient(self, name: str, short: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            if self.first_of_weights is None and not _is_finite(gradient):
                place = "the gradient of the parameter"
                named = f"{name}.{short}"
                self.first_of_weights = _finding("parameter gradient", named, place, gradient)
                self.weight_came_first = self.first is None

        return hook


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:  # noqa: ANN401
    """A value with every tensor in its lists, tuples and dicts changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is dict:
        return {key: _mapped(change, part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(change, part) for part in value))
    if type(value) in {list, tuple}:
        return type(value)(_mapped(change, part) for part in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """Every tensor in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _clear_gradients(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.detach()).all())


def _finding(kind: Any, name: str, place: str, tensor: Tensor) -> Finding:  # noqa: ANN401
    tensor = tensor.detach()
    wrong = ~torch.isfinite(tensor)
    rows: list[int] = []
    if tensor.ndim:
        rows = wrong.reshape(len(tensor), -1).any(dim=1).nonzero().flatten().tolist()
    return Finding(
        kind=kind,
        name=name,
        place=f"{place} ({str(tensor.dtype).removeprefix('torch.')})",
        n_nan=int(tensor.isnan().sum()),
        n_infinite=int(tensor.isinf().sum()),
        n_values=tensor.numel(),
        rows=tuple(rows),
        n_rows_at_fault=len(rows),
        n_rows=len(tensor) if tensor.ndim else 0,
    )


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return ", ".join(str(number) for number in numbers[:8]) + more
