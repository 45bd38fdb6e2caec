"""What ``anlage bench train`` is asked, and what it tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from anlage.provenance import machine, versions

FORMAT = "bench-train/1"
Source = Literal["slides", "tensors"]

HOW = (
    "step: each step as a run takes it, waiting for its tiles included, from the end of one to the "
    "end of the next (on a GPU the next one is begun before one is read). parts: other steps, the "
    "device waited for at each border; augment: views and masks; teacher, student: passes of their "
    "encoders, backward included; heads: projection heads, targets and losses of both; optimiser: "
    "clipping, update, moving average; rest: the remainder of those steps."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """What is measured, and how.

    Attributes:
        recipe: Name of the recipe, or its path.
        overrides: Changes to it.
        source: ``slides``, or ``tensors``: random tiles on the device, nothing read.
        steps: Steps that are timed, at least 1.
        warm_up: Steps before them, at least 1.
        threads: Threads of each rank that read tiles.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ValueError: If there is no step of either kind.
    """

    recipe: str = "tiny"
    overrides: tuple[str, ...] = ()
    source: Source = "slides"
    steps: int = 20
    warm_up: int = 5
    threads: int = 2
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warm_up < 1:
            msg = (
                "TrainSettings: needs steps >= 1 and warm_up >= 1; got "
                f"{self.steps} and {self.warm_up}. 20 and 5 suit most."
            )
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Seconds of a step by part: means over the steps that were taken apart.

    Attributes:
        data: Waiting for tiles.
        augment: Views cut and coloured, masks drawn.
        teacher: Passes of the teacher's encoder.
        student: Passes of the student's encoder, forward and backward.
        heads: Projection heads, targets and losses, of both, forward and backward.
        optimiser: Clipping, update and moving average.
        rest: What is left of the step.
    """

    data: float
    augment: float
    teacher: float
    student: float
    heads: float
    optimiser: float
    rest: float

    @property
    def total(self) -> float:
        """All of them together."""
        return float(sum(asdict(self).values()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """Most memory that was held at once.

    Attributes:
        n_bytes: Bytes, of the rank that held most.
        of: ``CUDA, allocated by torch``, or ``process, resident``.
    """

    n_bytes: int
    of: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainReport:
    """What was measured.

    Attributes:
        settings: What was asked.
        device: Name of the device.
        n_ranks: Processes that shared each step.
        batch_size: Tiles a step, of all ranks.
        step_s: Seconds of each timed step.
        data_wait_share: Share of their time in which this rank waited for tiles; None if none were
            read.
        flops_per_step: FLOPs of a step on one device, counted from shapes.
        peak_tflops: Peak of the device, TFLOP/s; None where none is known.
        memory: Most memory held, with the timed steps.
        parts: Where the time of a step goes.
        n_apart: Steps that were taken apart for it.
    """

    settings: TrainSettings
    device: str
    n_ranks: int
    batch_size: int
    step_s: list[float]
    data_wait_share: float | None
    flops_per_step: float
    peak_tflops: float | None
    memory: Peak
    parts: Parts
    n_apart: int

    @property
    def median_s(self) -> float:
        """Seconds of the median step."""
        return median(self.step_s)

    @property
    def tiles_per_s(self) -> float:
        """Tiles a second of all ranks, at the median step."""
        return self.batch_size / self.median_s

    @property
    def tflops(self) -> float:
        """TFLOP/s of one device, at the median step."""
        return self.flops_per_step / self.median_s / 1e12

    @property
    def mfu(self) -> float | None:
        """Share of the device's peak; None where that is not known."""
        return None if self.peak_tflops is None else self.tflops / self.peak_tflops

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it, with the versions and the machine."""
        found = {
            "tiles_per_s": self.tiles_per_s,
            "median_step_s": self.median_s,
            "tflops": self.tflops,
            "mfu": self.mfu,
        }
        settings = asdict(self.settings) | {"overrides": list(self.settings.overrides)}
        record = {**asdict(self), "settings": settings, **found, "how": HOW}
        return {"format": FORMAT, **record, "versions": versions(), "machine": machine()}

    def as_lines(self) -> Iterator[str]:
        """A short table to be read."""
        asked = self.settings
        told = " ".join((asked.recipe, *asked.overrides))
        yield _row("recipe", told)
        ranks = "" if self.n_ranks == 1 else f", {self.n_ranks} ranks"
        yield _row("device", f"{self.device}{ranks}; tiles from {asked.source}")
        yield _row(
            "speed",
            f"{self.tiles_per_s:,.4g} tiles/s: {self.batch_size} in {self.median_s:.4g} s "
            f"(median of {len(self.step_s)}; {min(self.step_s):.4g} to {max(self.step_s):.4g})",
        )
        share = "" if self.mfu is None else f", MFU {self.mfu:.1%} of {self.peak_tflops:g}"
        yield _row("FLOPs", f"{self.tflops:.3g} TFLOP/s a device{share}")
        if self.data_wait_share is not None:
            yield _row("data wait", f"{self.data_wait_share:.1%} of the time")
        yield _row("memory", f"{self.memory.n_bytes / 1e9:.3g} GB ({self.memory.of})")
        yield _row("by part", f"{self.n_apart} other steps, waited for at each border:")
        total = self.parts.total
        for name, seconds in asdict(self.parts).items():
            yield _row(f"  {name}", f"{1e3 * seconds:10.2f} ms {seconds / total:6.1%}")
        yield _row("  together", f"{1e3 * total:10.2f} ms")


def _row(name: str, told: str) -> str:
    return f"{name:<14}{told}"
