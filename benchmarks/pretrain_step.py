"""One pretraining step beside the same step in plain PyTorch: seconds and memory.

The peer is ``dinov2_step.py`` of the folder of baselines: timm's transformer, two forward passes of
the student, whole logits, Sinkhorn-Knopp as in its paper, fused AdamW. Ours is what ``train_step``
does with finished views: ``teach``, ``learn``, clipping, AdamW, the moving average, and the log's
entropy, prototype usage and RankMe, which the peer does not compute. Views, masks, dtype, threads,
sizes, temperatures and weights of the terms are the peer's on both sides; drop-path is 0.

First the peer's weights are copied into ours, and both must give one loss and one gradient. Then
the sides take turns in every round; the first round is thrown away; figures are medians of the
others. Peak memory is that of a fresh process for each side over two steps, with imports, batch
and all; beside it, the same without what the process held before the networks were made (imports
and batch). Processes for memory run one at a time, before anything is timed.

``--recompute`` runs norms and activations again in our backward pass, as the recipe's
``engine.recompute=selective`` does. ``--accumulate 2`` adds a side: ours with the batch in two
parts, which give the same gradient.
``--shares`` tells how long each part of our step takes.

Usage, in the repository, with the folder of baselines beside it:
    uv run benchmarks/pretrain_step.py [--baselines ../shared/baselines] [--size vit-s14-reg4]
        [--batch 16] [--prototypes 65536 131072] [--dtype fp32] [--threads 2] [--rounds 5]
        [--memory-mb 512] [--recompute] [--accumulate 2] [--shares] [--json FILE]
"""

# Shape suffixes: B images of a batch, N patches.

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from turns import Rate, take_turns

from anlage.encoders.weights import convert_state_dict
from anlage.models.sizes import size_arguments
from anlage.probes.unsupervised import rankme
from anlage.training.ema import update_teacher
from anlage.training.lesson import Lesson, MaskedPatches, Part, teach
from anlage.training.network_config import Architecture, Head
from anlage.training.networks import EncoderWithHeads, frozen_copy
from anlage.training.objective_config import Objective
from anlage.training.optimizer import build_optimizer, clip_gradients, set_rates
from anlage.training.optimizer_config import Optimisation
from anlage.training.section import Ramp
from anlage.training.step_loss import PassSettings, StepLoss, learn

TIMM_NAMES = {"vit-s14-reg4": "vit_small_patch14_reg4_dinov2", "vit-ti16": "vit_tiny_patch16_224"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GLOBAL_PX, TEACHER_TEMPERATURE, MOMENTUM = 224, 0.07, 0.994
LARGEST_DIFFERENCE = 1e-4  # of the losses, and of the gradients in proportion to their length
STEPS_ALONE = 2
PEER = "plain"
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class OurStep:
    """Student, teacher, optimiser and the step, at the peer's settings.

    Args:
        given: The command line.
        n_prototypes: Of each of two heads.
        batch: The peer's batch.
        accumulate: Parts that the batch is taken in.
        recompute: Whether norms and activations run again in the backward pass.
    """

    def __init__(
        self, given: argparse.Namespace, batch: Batch, *, n_prototypes: int, accumulate: int = 1
    ) -> None:
        self.dtype = None if given.dtype == "fp32" else DTYPES[given.dtype]
        self.student = EncoderWithHeads(
            architecture(given.size), head := Head(n_prototypes=n_prototypes), head
        ).train()
        self.teacher = frozen_copy(self.student)
        self.objective = Objective(
            spread="koleo",
            spread_weight=0.05,  # of each of two views
            teacher_temperature=Ramp(start=TEACHER_TEMPERATURE, end=TEACHER_TEMPERATURE),
            prototype_memory_mb=given.memory_mb,
        )
        rates = Optimisation(peak_lr=1e-3)
        self.optimizer = build_optimizer(
            self.student, rates, depth=len(self.student.encoder.blocks)
        )
        self.centers = {name: torch.zeros(n_prototypes) for name in ("cls", "patch")}
        self.parts = parts_of(batch, accumulate)
        self.recompute = given.recompute

    def step(self) -> float:
        """One step, as ``train_step`` does it with finished views; its loss."""
        set_rates(self.optimizer, lr=1e-3, weight_decay=0.04, prototypes_frozen=False)
        self.optimizer.zero_grad(set_to_none=True)
        loss, lesson = self.passes()
        norms = clip_gradients(self.student.parts(), max_norm=3.0)
        if not all(torch.isfinite(value) for value in (loss.total, *norms.values())):
            msg = "the loss or the gradient is not finite"
            raise SystemExit(msg)
        self.optimizer.step()
        update_teacher(self.teacher, self.student, momentum=MOMENTUM)
        told = [*lesson.cls.statistics(), *loss.terms.values(), loss.total]
        rankme(lesson.embedding_BD.float().numpy())
        return [float(value) for value in told][-1]

    def passes(self) -> tuple[StepLoss, Lesson]:
        """Teacher and student, forward and backward."""

        def autocast() -> AbstractContextManager[object]:
            return torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None)

        with autocast():
            lesson = teach(
                self.teacher,
                self.parts,
                objective=self.objective,
                temperature=TEACHER_TEMPERATURE,
                centers=self.centers,
                dtype=self.dtype,
            )
        how = PassSettings(
            autocast=autocast,
            randomness=lambda _: None,
            dtype=self.dtype,
            recompute="selective" if self.recompute else "none",
        )
        loss = learn(self.student, self.parts, lesson, objective=self.objective, how=how)
        return loss, lesson

    def take_weights(self, peer: nn.ModuleDict) -> None:
        """The peer's weights, in our names."""
        encoder, sizes = peer["encoder"], architecture_of(self.student)
        weights = convert_state_dict(in_timms_names(encoder.vit.state_dict()), sizes)
        weights["mask_token"] = encoder.mask_token.detach()[None]
        self.student.encoder.load_state_dict(weights)
        for name, head in (("dino", self.student.head), ("ibot", self.student.head_of_patches)):
            head.mlp.load_state_dict(peer[name].mlp.state_dict())
            with torch.no_grad():
                head.last_layer.weight_v.copy_(peer[name].prototypes)
        self.teacher.load_state_dict(self.student.state_dict())


def main() -> None:
    """Check, measure, print tables and write the figures."""
    given = arguments()
    sys.path.insert(0, str(given.baselines))
    peer = import_module("dinov2_step")
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    if given.alone:
        print(json.dumps(memory_alone(peer, given, n_prototypes=given.prototypes[0])))
        return
    accumulates = sorted({1, given.accumulate})
    figures: dict[str, Any] = {"settings": settings_of(given), "uptime": uptime(), "prototypes": {}}
    for n_prototypes in given.prototypes:
        memory = {
            name: run_alone(given, name, n_prototypes)
            for name in (PEER, *map(our_name, accumulates))
        }
        found = measured(peer, given, n_prototypes=n_prototypes, accumulates=accumulates)
        figures["prototypes"][n_prototypes] = {"memory_mb": memory, **found, "uptime": uptime()}
        print_table(n_prototypes, memory, found)
        if given.json:
            given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baselines", type=Path, default=Path("../shared/baselines"))
    parser.add_argument("--size", choices=sorted(TIMM_NAMES), default="vit-s14-reg4")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--prototypes", type=int, nargs="+", default=[65_536, 131_072])
    counts = {"batch": 16, "local-px": 98, "threads": 2, "rounds": 5, "accumulate": 1}
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    memory_mb = Objective.model_fields["prototype_memory_mb"].default
    parser.add_argument("--memory-mb", type=float, default=memory_mb, help="for scores, ours")
    parser.add_argument("--recompute", action="store_true", help="as the recipe's recompute")
    parser.add_argument("--shares", action="store_true", help="time the parts of our step")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", help="measure memory of this side alone (used by itself)")
    return parser.parse_args()


def architecture(size: str) -> Architecture:
    """The transformer of a size for our views."""
    return Architecture(**size_arguments(size) | {"image_px": GLOBAL_PX})


def architecture_of(network: EncoderWithHeads) -> dict[str, Any]:
    """Arguments of the transformer, as conversion of weights wants them."""
    sizes = {384: "vit-s14-reg4", 192: "vit-ti16"}
    return architecture(sizes[network.encoder.width]).model_dump()


def in_timms_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the peer's own wrapper around each block."""
    return {name.replace(".block.", "."): tensor for name, tensor in weights.items()}


def batch_of(peer: ModuleType, given: argparse.Namespace) -> Batch:
    """The peer's views and masks."""
    edges = {"global_px": GLOBAL_PX, "local_px": given.local_px}
    patch_px = architecture(given.size).patch_px
    made: Batch = peer.make_batch(given.batch, patch_px=patch_px, device="cpu", **edges)
    return made


def parts_of(batch: Batch, n_parts: int) -> list[Part]:
    """The batch dealt into parts, a run of tiles each."""
    n_tiles = len(batch[0]) // 2
    made = []
    for first in range(0, n_tiles, n_tiles // n_parts):
        tiles = slice(first, first + n_tiles // n_parts)
        large, small, masks = (
            views.unflatten(0, (-1, n_tiles))[:, tiles].flatten(0, 1) for views in batch[:3]
        )
        made.append(Part(large, small, tiles, MaskedPatches.of(masks, device=torch.device("cpu"))))
    return made


def peer_trainer(peer: ModuleType, given: argparse.Namespace, *, n_prototypes: int) -> Any:  # noqa: ANN401
    """The peer's networks and optimiser."""
    return peer.DinoV2(
        TIMM_NAMES[given.size],
        n_prototypes=n_prototypes,
        device="cpu",
        dtype=DTYPES[given.dtype],
        compile_blocks=False,
        drop_path=0.0,
        global_px=GLOBAL_PX,
    )


def our_name(accumulate: int) -> str:
    """Name of our side."""
    return "anlage" if accumulate == 1 else f"anlage, {accumulate} parts"


def measured(
    peer: ModuleType, given: argparse.Namespace, *, n_prototypes: int, accumulates: list[int]
) -> dict[str, Any]:
    """Differences from the peer, then seconds of each side, and shares of our step."""
    batch = batch_of(peer, given)
    theirs = peer_trainer(peer, given, n_prototypes=n_prototypes)
    ours = OurStep(given, batch, n_prototypes=n_prototypes)
    ours.take_weights(theirs.student)
    differences = differences_of(theirs, ours, batch)

    def run(accumulate: int) -> Callable[[], float]:
        parts = parts_of(batch, accumulate)

        def step() -> float:
            ours.parts = parts
            return ours.step()

        return step

    sides: dict[str, tuple[Callable[[], Any], int]] = {
        PEER: (lambda: theirs.step(batch).item(), 1),
        **{our_name(number): (run(number), 1) for number in accumulates},
    }
    rates = take_turns(sides, rounds=given.rounds)
    found: dict[str, Any] = {"differences": differences, **seconds_of(rates)}
    if given.shares:
        ours.parts = parts_of(batch, 1)
        found["shares"] = shares_of(ours)
    return found


def differences_of(theirs: Any, ours: OurStep, batch: Batch) -> dict[str, float]:  # noqa: ANN401
    """Of the losses and of the encoders' gradients; stops where one is above the tolerance.

    In bfloat16 they are only told, since both sides round.
    """
    loss = theirs.loss(batch)
    loss.backward()
    found, _ = ours.passes()
    gradients = in_timms_names(dict(theirs.student["encoder"].vit.named_parameters()))
    away, length = 0.0, 0.0
    for name, parameter in ours.student.encoder.named_parameters():
        if name in gradients and parameter.shape == gradients[name].shape:
            assert parameter.grad is not None
            wanted = gradients[name].grad
            away += float((parameter.grad - wanted).double().square().sum())
            length += float(wanted.double().square().sum())
    differences = {
        "loss": abs(float(found.total) - float(loss.detach())),
        "gradient": (away / length) ** 0.5,
    }
    if ours.dtype is None and max(differences.values()) > LARGEST_DIFFERENCE:
        msg = f"the sides differ: {differences}"
        raise SystemExit(msg)
    return {"peer_loss": float(loss.detach()), **differences}


def seconds_of(rates: Mapping[str, Rate]) -> dict[str, dict[str, float]]:
    """Seconds a step by the clock and of CPU time, and those over the peer's."""
    wall = {name: 1 / rate.per_s for name, rate in rates.items()}
    cpu = {name: rate.cpu_ms / 1e3 for name, rate in rates.items()}
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "seconds_over_peer": {name: value / wall[PEER] for name, value in wall.items()},
        "cpu_seconds_over_peer": {name: value / cpu[PEER] for name, value in cpu.items()},
    }


def run_alone(given: argparse.Namespace, name: str, n_prototypes: int) -> dict[str, float]:
    """Memory of one side in a process of its own."""
    command = [sys.executable, __file__, "--alone", name, "--prototypes", str(n_prototypes)]
    kept = ("baselines", "size", "dtype", "batch", "local_px", "threads", "accumulate", "memory_mb")
    command += ["--recompute"] if given.recompute else []
    for option in kept:
        command += [f"--{option.replace('_', '-')}", str(getattr(given, option))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - ourselves
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory_alone(
    peer: ModuleType, given: argparse.Namespace, *, n_prototypes: int
) -> dict[str, float]:
    """Peak of this process over some steps of one side, MiB, and that without imports and batch."""
    batch = batch_of(peer, given)
    before = memory_mb("VmRSS")
    step: Callable[[], Any]
    if given.alone == PEER:
        theirs = peer_trainer(peer, given, n_prototypes=n_prototypes)
        step = lambda: theirs.step(batch).item()  # noqa: E731 - one of two
    else:
        accumulate = 1 if given.alone == our_name(1) else given.accumulate
        step = OurStep(given, batch, n_prototypes=n_prototypes, accumulate=accumulate).step
    for _ in range(STEPS_ALONE):
        step()
    return {"peak": memory_mb("VmHWM"), "peak_of_step": memory_mb("VmHWM") - before}


def memory_mb(field: str) -> float:
    """A field of this process, MiB; unlike ``ru_maxrss``, its peak ``VmHWM`` leaves out parents."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


class Clock:
    """Adds up the seconds between marks, each under the name of what ends with it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def mark(self, name: str) -> None:
        """What ran since the last mark."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def shares_of(ours: OurStep, *, rounds: int = 3) -> dict[str, float]:
    """Share of a step by part, the median of some steps."""
    kept: list[dict[str, float]] = []
    for _ in range(rounds):
        seconds = timed_step(ours)
        whole = sum(seconds.values())
        kept.append({name: value / whole for name, value in seconds.items()})
    return {name: statistics.median(one[name] for one in kept) for name in kept[0]}


def timed_step(ours: OurStep) -> dict[str, float]:
    """Seconds of each part of one step, by hooks at the borders of the networks."""
    clock = Clock()
    student, teacher = ours.student.encoder, ours.teacher.encoder

    def mark(name: str) -> Callable[..., None]:
        return lambda *_: clock.mark(name)

    def watch(_: nn.Module, __: Any, output: Tensor) -> None:  # noqa: ANN401
        output.register_hook(mark("student's heads and prototypes"))  # type: ignore[no-untyped-call]

    hooks = [
        teacher.register_forward_pre_hook(mark("rest")),
        teacher.register_forward_hook(mark("teacher's encoder")),
        student.register_forward_pre_hook(mark("teacher's heads and Sinkhorn")),
        student.register_forward_hook(mark("student's encoder, forward")),
        student.norm.register_forward_hook(watch),
        ours.optimizer.register_step_pre_hook(mark("clipping")),
        ours.optimizer.register_step_post_hook(mark("optimiser")),
    ]
    passes = ours.passes

    def timed_passes() -> tuple[StepLoss, Lesson]:
        found = passes()
        clock.mark("student's encoder, backward")
        return found

    ours.passes = timed_passes  # type: ignore[method-assign]
    try:
        clock.mark("rest")
        ours.step()
        clock.mark("moving average and log")
    finally:
        ours.passes = passes  # type: ignore[method-assign]
        for hook in hooks:
            hook.remove()
    return clock.seconds


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, and with which torch."""
    return {
        **{k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()},
        "torch": torch.__version__,
    }


def uptime() -> str:
    """Load of the machine, over 1, 5 and 15 minutes."""
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def print_table(
    n_prototypes: int, memory: Mapping[str, Mapping[str, float]], found: Mapping[str, Any]
) -> None:
    """What was measured, in Markdown."""
    print(f"\n{n_prototypes:,} prototypes; load {uptime()}; differences {found['differences']}\n")
    print("| side | s | over peer | CPU s | over peer | MiB | over peer | without imports, batch |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in found["seconds"]:
        peak, own = memory[name]["peak"], memory[name]["peak_of_step"]
        print(
            f"| {name} | {found['seconds'][name]:.2f} | {found['seconds_over_peer'][name]:.2f} "
            f"| {found['cpu_seconds'][name]:.2f} | {found['cpu_seconds_over_peer'][name]:.2f} "
            f"| {peak:,.0f} | {peak / memory[PEER]['peak']:.2f} "
            f"| {own:,.0f} ({own / memory[PEER]['peak_of_step']:.2f}) |"
        )
    for name, share in found.get("shares", {}).items():
        print(f"{name}: {100 * share:.1f} %")


if __name__ == "__main__":
    main()
