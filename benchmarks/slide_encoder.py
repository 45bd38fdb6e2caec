"""The slide encoder: its attention beside SDPA, its growth, its memory, and its batches.

Parts, each of which prints a line for each figure (sides take turns; medians of the rounds after
one that is thrown away; random weights and inputs; GigaPath's size and branches):

attention  dilated attention beside SDPA of the very tensors that it gathers, forward, and forward
           and backward; the merge of the branches is ours alone.
scaling    1,000, 10,000 and 70,121 tiles through 12 layers without gradient: seconds, and the peak
           of a fresh process. The longest runs once, after a pass over 1,000.
parity     ``pad="zero"`` beside torchscale's own module of the same weights, whose flash attention
           is replaced by the CPU kernel of SDPA with its log-sum-exp; same outputs, checked. Needs
           $TORCHSCALE_SRC, a checkout of github.com/microsoft/torchscale, and the package einops.
dense      one layer's attention beside SDPA of all pairs, 10,000 tiles, and 30,000 in one round.
batch      8 unequal bags of about 64 tiles at once beside one by one, ``pad="masked"``.
positions  bytes that positions take in the encoder, and seconds for 70,121 of them.
train      encoder forward and backward with recomputation: tokens/s and peak memory, and attention
           alone beside SDPA of the gathered tensors. For GPUs (``benchmarks/gpu.sh slide``).

Usage: OMP_WAIT_POLICY=PASSIVE uv run --with einops benchmarks/slide_encoder.py [--rounds 5]
           [--parts attention scaling parity dense batch positions train] [--tokens 10000 70121]
           [--device cpu] [--dtype float32] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from turns import take_turns

from anlage.models.dilated_attention import (
    DilatedPlan,
    Pad,
    dilated_self_attention,
    gigapath_branches,
    plan_dilated,
)
from anlage.models.grid_positions import grid_positions
from anlage.models.layers.long_net_block import DilatedSelfAttention
from anlage.models.slide_encoder import SlideEncoder
from anlage.models.slide_sizes import SIZES

WIDTH, N_HEADS, INPUT_WIDTH = 768, 16, 1536
LONGEST = 70_121  # tiles of the largest slide of the paper
BAGS = (40, 47, 55, 61, 66, 72, 81, 90)
PARTS = ("attention", "scaling", "parity", "dense", "batch", "positions")
STATUS = Path("/proc/self/status")
Options = argparse.Namespace


class Figure(NamedTuple):
    """A number, and what it is to be.

    Attributes:
        name: What was measured.
        value: In ``unit``.
        unit: Its unit, or "x" for a ratio.
        most: At most this; None for no limit.
        least: At least this; None for no limit.
    """

    name: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None

    def line(self) -> str:
        """For people."""
        limit = ""
        if self.most is not None:
            limit = f"  (at most {self.most:g}: {'ok' if self.value <= self.most else 'MISSED'})"
        if self.least is not None:
            limit = f"  (at least {self.least:g}: {'ok' if self.value >= self.least else 'MISSED'})"
        return f"{self.name}: {self.value:.4g} {self.unit}{limit}"


def main() -> None:
    """Measure the parts asked for and print a line for each figure."""
    options = _options()
    if options.alone:
        print(json.dumps(ALONE[options.alone](options.tokens[0], options)))
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}, "
        f"{options.dtype}, rounds {options.rounds}",
        flush=True,
    )
    found = []
    for part in options.parts:
        started = time.perf_counter()
        for figure in MEASURES[part](options):
            print(figure.line(), flush=True)
            found.append(figure._asdict())
        print(f"  [{part}: {time.perf_counter() - started:.0f} s]", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def attention(options: Options) -> Iterator[Figure]:
    """Ours beside SDPA of what it gathers."""
    for n_tokens in (1_000, 10_000):
        yield from attention_at(n_tokens, options, most=1.3)
    yield from attention_at(LONGEST, options, most=1.3, with_backward=False)


def attention_at(
    n_tokens: int, options: Options, *, most: float | None = None, with_backward: bool = True
) -> Iterator[Figure]:
    """Ours beside SDPA of what it gathers, at one length."""
    plan = plan_of([n_tokens], "masked", options)
    qkv = random(n_tokens, 3, N_HEADS, WIDTH // N_HEADS, options=options)
    gathered = gathered_by(plan, qkv)
    with torch.no_grad():
        ratio = slower(partial(dilated_self_attention, qkv, plan), partial(sdpa, gathered), options)
    yield Figure(f"attention over gathered SDPA, {n_tokens} tokens, forward", ratio, "x", most)
    if not with_backward:
        return
    leaf, above = qkv.clone().requires_grad_(), torch.randn_like(qkv[:, 0])
    leaves = [(tuple(part.requires_grad_() for part in own), mask) for own, mask in gathered]
    aboves = [torch.randn_like(own[0]) for own, _ in gathered]

    def ours() -> None:
        torch.autograd.grad(dilated_self_attention(leaf, plan), leaf, above)

    def floor() -> None:
        inputs = [part for own, _ in leaves for part in own]
        torch.autograd.grad(sdpa(leaves), inputs, aboves)

    ratio = slower(ours, floor, options)
    name = f"attention over gathered SDPA, {n_tokens} tokens, forward and backward"
    yield Figure(name, ratio, "x", most)


def scaling(options: Options) -> Iterator[Figure]:
    """Time and memory against length, each length in a process of its own."""
    seconds = {}
    for n_tiles in (1_000, 10_000, LONGEST):
        told = alone("encode", n_tiles, options)
        seconds[n_tiles] = told["seconds"]
        yield Figure(f"12 layers, {n_tiles} tiles", told["seconds"], "s")
        most = 8.0 if n_tiles == LONGEST else None
        yield Figure(
            f"12 layers, {n_tiles} tiles, peak of the process", told["peak_gb"], "GB", most
        )
    ratio = seconds[LONGEST] / seconds[1_000]
    yield Figure(f"time of {LONGEST} tiles over time of 1,000", ratio, "x", 180)


def encode_alone(n_tiles: int, options: Options) -> dict[str, float]:
    """Median seconds of passes, and the peak of this process in GB."""
    network = encoder(options).eval()
    rounds = {1_000: options.rounds, 10_000: min(3, options.rounds)}.get(n_tiles, 1)
    taken = []
    with torch.no_grad():
        network(*bags([1_000], options))
        for _ in range(rounds):
            given = bags([n_tiles], options)
            started = time.perf_counter()
            network(*given)
            taken.append(time.perf_counter() - started)
    return {"seconds": sorted(taken)[len(taken) // 2], "peak_gb": peak_bytes() / 1e9}


def parity(options: Options) -> Iterator[Figure]:
    """``pad="zero"`` beside torchscale's module."""
    if "TORCHSCALE_SRC" not in os.environ:
        print("parity: needs TORCHSCALE_SRC, a checkout of microsoft/torchscale; left out")
        return
    n_tokens = 10_000
    sides = parity_sides(n_tokens, options)
    with torch.no_grad():
        ours, theirs = (forward() for forward, _ in sides.values())
        yield Figure("parity: largest difference of outputs", gap(ours, theirs), "", 1e-5)
        ratio = slower(sides["ours"][0], sides["torchscale"][0], options)
    yield Figure(f"parity over torchscale, {n_tokens} tokens, forward", ratio, "x", 1.0)
    ratio = slower(sides["ours"][1], sides["torchscale"][1], options)
    yield Figure(
        f"parity over torchscale, {n_tokens} tokens, forward and backward", ratio, "x", 1.0
    )
    for what in ("forward", "backward"):
        grown = [alone(f"{side} {what}", n_tokens, options)["grown_gb"] for side in sides]
        both = "forward" if what == "forward" else "forward and backward"
        yield Figure(f"parity, {both}: memory of ours", grown[0], "GB")
        yield Figure(f"parity, {both}: memory of torchscale", grown[1], "GB")
        yield Figure(f"parity, {both}: memory over torchscale", grown[0] / grown[1], "x", 0.6)


Sides = dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]


def parity_sides(n_tokens: int, options: Options) -> Sides:
    """Forward, and forward and backward, of both modules with the same weights and input."""
    torch.manual_seed(0)
    ours = DilatedSelfAttention(width=WIDTH, n_heads=N_HEADS)
    theirs = torchscale_module()
    for name, rows in zip(("q_proj", "k_proj", "v_proj"), ours.qkv.weight.chunk(3), strict=True):
        getattr(theirs, name).weight.data.copy_(rows)
    for name, rows in zip(("q_proj", "k_proj", "v_proj"), ours.qkv.bias.chunk(3), strict=True):
        getattr(theirs, name).bias.data.copy_(rows)
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    plan, tokens = plan_of([n_tokens], "zero", options), torch.randn(n_tokens, WIDTH)

    def backward(forward: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = tokens.clone().requires_grad_()
        forward(leaf).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    run_ours = partial(ours, plan=plan)

    def run_theirs(given: Tensor) -> Tensor:
        return theirs(given[None], given[None], given[None])[0][0]

    return {
        "ours": (partial(run_ours, tokens), partial(backward, run_ours)),
        "torchscale": (partial(run_theirs, tokens), partial(backward, run_theirs)),
    }


def torchscale_module() -> nn.Module:
    """Its dilated attention with sub-LN, on the kernel that SDPA takes on a CPU."""
    sys.path.insert(0, os.environ["TORCHSCALE_SRC"])
    package = importlib.import_module("torchscale.component.dilated_attention")
    importlib.import_module("torchscale.component.multihead_attention").flash_attn_func = kernel
    settings = SimpleNamespace(
        segment_length=[branch.segment for branch in gigapath_branches()],
        dilated_ratio=[branch.dilation for branch in gigapath_branches()],
        flash_attention=True,
        seq_parallel=False,
        multiway=False,
        xpos_rel_pos=False,
        layernorm_eps=1e-5,
    )
    return package.DilatedAttention(settings, WIDTH, N_HEADS, self_attention=True, subln=True)


def kernel(
    query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor]:
    """What flash-attn gives: (B, L, H, E), and log-sum-exp (B, H, L)."""
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    return out.transpose(1, 2), sums


def parity_alone(side: str, what: str, n_tokens: int, options: Options) -> dict[str, float]:
    """How far one pass of one side raises the peak of this process, in GB."""
    forward, backward = parity_sides(n_tokens, options)[side]
    before = resident_bytes()
    with torch.set_grad_enabled(what == "backward"):
        forward() if what == "forward" else backward()
    return {"grown_gb": (peak_bytes() - before) / 1e9}


def dense(options: Options) -> Iterator[Figure]:
    """Dilated attention beside attention of all pairs."""
    for n_tokens in (10_000, 30_000):
        plan = plan_of([n_tokens], "masked", options)
        qkv = random(n_tokens, 3, N_HEADS, WIDTH // N_HEADS, options=options)
        heads = qkv.permute(1, 2, 0, 3)[:, None]
        once = argparse.Namespace(**vars(options) | {"rounds": 1})
        with torch.no_grad():
            ratio = slower(
                partial(dilated_self_attention, qkv, plan),
                partial(functional.scaled_dot_product_attention, *heads),
                options if n_tokens == 10_000 else once,
            )
        yield Figure(f"dilated over dense attention, {n_tokens} tokens", ratio, "x", 1.0)


def batch(options: Options) -> Iterator[Figure]:
    """Eight bags at once beside one by one."""
    network = encoder(options).eval()
    features, cells, lengths = bags(list(BAGS), options)
    parts = list(
        zip(torch.split(features, lengths), torch.split(cells, lengths), lengths, strict=True)
    )

    def one_by_one() -> Tensor:
        return torch.cat([network(own, cell, [n]).slide_BD for own, cell, n in parts])

    def at_once() -> Tensor:
        return network(features, cells, lengths).slide_BD

    def learn(run: Callable[[], Tensor]) -> None:
        network.zero_grad()
        run().float().square().sum().backward()

    with torch.no_grad():
        yield Figure(
            "8 bags: largest difference to one by one", gap(at_once(), one_by_one()), "", 1e-5
        )
        gain = slower(one_by_one, at_once, options)
    least = 2.0 if options.device == "cuda" else 1.2
    yield Figure("8 bags at once over one by one, bags/s, forward", gain, "x", least=least)
    gain = slower(partial(learn, one_by_one), partial(learn, at_once), options)
    yield Figure(
        "8 bags at once over one by one, bags/s, forward and backward", gain, "x", least=least
    )


def positions(options: Options) -> Iterator[Figure]:
    """What positions cost."""
    network = encoder(options)
    table = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    yield Figure("positions: bytes of tables in the encoder", table, "B", 0)
    cells = bags([LONGEST], options)[1]
    rate = take_turns({"": (partial(grid_positions, cells, width=WIDTH), 1)}, rounds=options.rounds)
    yield Figure(f"positions of {LONGEST} tiles", 1 / rate[""].per_s, "s")


def train(options: Options) -> Iterator[Figure]:
    """Forward and backward of the whole encoder, and of attention beside gathered SDPA."""
    network, is_half = encoder(options).train(), options.dtype == "bfloat16"
    for n_tiles in options.tokens:
        given = bags([n_tiles], options)

        def step(given: tuple[Tensor, Tensor, list[int]] = given) -> None:
            network.zero_grad()
            with torch.autocast(options.device, torch.bfloat16, enabled=is_half):
                slide_BD = network(*given, recompute=True).slide_BD
            slide_BD.float().square().sum().backward()
            wait(options)

        forget_peak(options)
        rates = take_turns({"": (step, n_tiles)}, rounds=options.rounds)
        yield Figure(f"encoder, {n_tiles} tiles, forward and backward", rates[""].per_s, "tiles/s")
        yield Figure(f"encoder, {n_tiles} tiles, peak", device_peak(options) / 1e9, "GB")
        gc.collect()
        yield from attention_at(n_tiles + 1, options)


def plan_of(lengths: list[int], pad: Pad, options: Options) -> DilatedPlan:
    """Of GigaPath's branches."""
    return plan_dilated(
        lengths,
        branches=gigapath_branches(),
        n_heads=N_HEADS,
        head_phase="torchscale",
        pad=pad,
        device=options.device,
    )


def gathered_by(plan: DilatedPlan, qkv: Tensor) -> list[tuple[tuple[Tensor, ...], Tensor | None]]:
    """What each kernel call of a plan takes, contiguous, and its mask as SDPA takes it."""
    found = []
    for group in (group for groups in plan.branches for group in groups):
        heads = tuple(part.contiguous() for part in group.heads(qkv))
        bias = None if group.bias_GN is None else group.bias_GN[:, None, None].to(qkv.dtype)
        found.append((heads, bias))
    return found


def sdpa(gathered: list[tuple[tuple[Tensor, ...], Tensor | None]]) -> list[Tensor]:
    """The floor: attention of what was gathered."""
    return [
        functional.scaled_dot_product_attention(*heads, attn_mask=bias) for heads, bias in gathered
    ]


def encoder(options: Options) -> SlideEncoder:
    """GigaPath's, with random weights."""
    torch.manual_seed(0)
    network = SlideEncoder(input_width=INPUT_WIDTH, **SIZES["gigapath"])
    dtype = torch.float32 if options.parts == ["train"] else getattr(torch, options.dtype)
    return network.to(options.device, dtype)


def bags(lengths: list[int], options: Options) -> tuple[Tensor, Tensor, list[int]]:
    """Random packed bags."""
    n_tiles = sum(lengths)
    cells = torch.randint(0, 300, (n_tiles, 2), device=options.device)
    return random(n_tiles, INPUT_WIDTH, options=options), cells, lengths


def random(*shape: int, options: Options) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, dtype=getattr(torch, options.dtype), device=options.device)


def slower(side: Callable[[], Any], other: Callable[[], Any], options: Options) -> float:
    """How many times as long the first takes."""

    def waited(run: Callable[[], Any]) -> None:
        run()
        wait(options)

    sides = {"side": (partial(waited, side), 1), "other": (partial(waited, other), 1)}
    rates = take_turns(sides, rounds=options.rounds)
    return rates["other"].per_s / rates["side"].per_s


def gap(one: Tensor, other: Tensor) -> float:
    """Largest difference."""
    return float((one - other).abs().max())


def wait(options: Options) -> None:
    """Until the device has done its work."""
    if options.device == "cuda":
        torch.cuda.synchronize()


def forget_peak(options: Options) -> None:
    """Begin to measure a GPU's memory."""
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def device_peak(options: Options) -> int:
    """Most bytes of the GPU since, or of this process."""
    return torch.cuda.max_memory_allocated() if options.device == "cuda" else peak_bytes()


def peak_bytes() -> int:
    """Most that this program has held; ``ru_maxrss`` would count its parent's as well."""
    (line,) = (own for own in STATUS.read_text().splitlines() if own.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def resident_bytes() -> int:
    """What this program holds."""
    (line,) = (own for own in STATUS.read_text().splitlines() if own.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def alone(what: str, n_tokens: int, options: Options) -> dict[str, float]:
    """What a fresh process of this script tells."""
    command = [sys.executable, __file__, "--alone", what, "--tokens", str(n_tokens)]
    command += ["--device", options.device, "--dtype", options.dtype]
    command += ["--rounds", str(options.rounds)]
    said = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    told: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    return told


ALONE: dict[str, Callable[[int, Options], dict[str, float]]] = {
    "encode": encode_alone,
    "ours forward": partial(parity_alone, "ours", "forward"),
    "ours backward": partial(parity_alone, "ours", "backward"),
    "torchscale forward": partial(parity_alone, "torchscale", "forward"),
    "torchscale backward": partial(parity_alone, "torchscale", "backward"),
}
MEASURES: dict[str, Callable[[Options], Iterator[Figure]]] = {
    "attention": attention,
    "scaling": scaling,
    "parity": parity,
    "dense": dense,
    "batch": batch,
    "positions": positions,
    "train": train,
}


def _options() -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=MEASURES, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000, LONGEST], help="of train")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--alone", choices=ALONE, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
