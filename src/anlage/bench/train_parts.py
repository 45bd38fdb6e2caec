"""Where the time of a training step goes: a step taken apart, the device waited for between."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from anlage.bench.train_report import Parts
from anlage.models.vit import TokenOutput
from anlage.tiles.stream import TileBatch
from anlage.training.train_step import launch_step
from anlage.training.training_state import Training


def parts_of_steps(training: Training, batches: Iterator[TileBatch], n_steps: int) -> Parts:
    """Take steps apart and time their parts.

    A step is done as a run does it, and waited for. Encoders are told from heads by their
    hooks: the time of a pass outside of an encoder, forward or backward, is that of the heads.

    Args:
        training: Networks and optimiser, warmed up; changed in place.
        batches: At least as many of this rank's batches.
        n_steps: Steps.

    Returns:
        Means over the steps.
    """
    watch = _Stopwatch(training.device)
    with ExitStack() as hooked:
        for handle in _hooks(training, watch):
            hooked.callback(handle.remove)
        for _ in range(n_steps):
            watch.turn("data")
            batch = next(batches)
            watch.turn("rest")
            launch_step(training, batch, begins=watch.turn).read()
        watch.turn("rest")
    return Parts(**{name: watch.spent_s[name] / n_steps for name in Parts.__dataclass_fields__})


class _Stopwatch:
    """Gives each stretch of time to a part, once the device has done what was asked in it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._part = device, "rest"
        self._began = time.perf_counter()
        self.spent_s: Counter[str] = Counter()

    def turn(self, part: str, *, before: str | None = None) -> None:
        """End a stretch, of the part that it was begun for or of ``before``; begin another."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.spent_s[before or self._part] += now - self._began  # type: ignore[assignment]
        self._began, self._part = now, part


def _hooks(training: Training, watch: _Stopwatch) -> Iterator[Any]:
    """Let every encoder say when it is at work."""
    student: nn.Module = training.student.encoder
    teachers: list[nn.Module] = [training.teacher.encoder]
    if training.gram is not None:
        teachers.append(training.gram)
    if training.guide is not None:
        network = training.guide.network
        inner = getattr(network, "encoder", network)
        assert isinstance(inner, nn.Module), "a frozen teacher is an encoder, or has one"
        teachers.append(inner)

    def begins(part: str) -> Any:  # noqa: ANN401 - a hook
        return lambda *_: watch.turn(part)

    def ends(_module: nn.Module, _given: object, passed: Sequence[TokenOutput]) -> None:
        watch.turn("heads")
        for output in passed:
            for tokens in (output.cls_BD, output.patches_BND):
                if tokens.requires_grad:
                    tokens.register_hook(reaches_encoder)  # type: ignore[no-untyped-call]

    def reaches_encoder(_gradient: Tensor) -> None:
        # what ran since the last of these is of the heads; what follows is the encoder's backward
        watch.turn("student", before="heads")

    for encoder, part in [(student, "student"), *((teacher, "teacher") for teacher in teachers)]:
        yield encoder.register_forward_pre_hook(begins(part))
        yield encoder.register_forward_hook(ends)
