"""Ten views of a tile on one core: ``views``, and DINOv2's multi-crop by three libraries.

``anlage`` is ``views`` as training calls it, a batch at a time; ``anlage, batched`` is what it does
on other devices, on this CPU for scale. The peers are the chains of ``augment_torchvision.py`` of
the folder of baselines, a tile at a time. ``(normalised)``: float32 with mean and deviation of
ImageNet, as the networks take it, on all sides; without it the peers give bytes and ours float32
all the same. Every process has one thread of torch and one of OpenCV. Sides take turns in every
round; the first round is thrown away; figures are medians of the others. Before that, views are
compared with slow ones, cut by PIL and coloured by torchvision.

``--threads 2`` adds a side: two Python threads, each with every other batch.
``--step`` adds the time of one training step of the baseline ``dinov2_step.py``, ViT-S/14 in bf16,
and the share of it that the views of its batch would take.

Usage, in the repository, with the folder of baselines beside it:
    uv run --with albumentations==2.0.8 benchmarks/augment.py [--baselines ../shared/baselines]
        [--tiles FOLDER_OF_IMAGES] [--rounds 5] [--n 64] [--batch 8] [--local-px 98] [--threads 1]
        [--step] [--json FILE]
"""

# Shape suffixes: B tiles of a batch, S source edge.

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from turns import Rate, take_turns

from anlage.tiles.augment.batched import make_batched
from anlage.tiles.augment.multi_crop import Views, views
from anlage.tiles.augment.parameters import draw_parameters
from anlage.tiles.augment.spec import MultiCropSpec

TESTS = Path(__file__).parents[1] / "tests"
MEAN, DEVIATION = (
    torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)
STEP_MODEL, STEP_PROTOTYPES = "vit_small_patch14_reg4_dinov2", 65_536
LARGEST_MEAN, LARGEST = 0.1, 8.0  # of the differences of one view's values, in bytes
Make = Callable[[Tensor, Sequence[int]], Views]


def main() -> None:
    """Check, measure, print a table and write the figures."""
    given = arguments()
    sys.path[:0] = [str(given.baselines), str(TESTS)]
    peer = import_module("augment_torchvision")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    tiles = peer.load_tiles(given.tiles, tile_px=given.tile_px, n=given.n)
    spec = MultiCropSpec(source_px=given.tile_px, local_px=given.local_px)
    mean, largest = check(tiles, spec)
    print(f"differences from slow views, bytes: {mean:.4f} on average, at most {largest:.2f}")
    rates = take_turns(sides(peer, tiles, spec, given), rounds=given.rounds)
    print("| side | tiles/s | CPU ms a tile |\n| --- | --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate.per_s:,.1f} | {rate.cpu_ms:.2f} |")
    figures = {
        "largest_difference_bytes": largest,
        "tiles_per_s": {name: rate.per_s for name, rate in rates.items()},
        "cpu_ms_a_tile": {name: rate.cpu_ms for name, rate in rates.items()},
        "ours_over": ratios(rates, peer.CHAINS),
    }
    if given.step:
        figures |= share_of_a_step(tiles, spec, batch=given.batch)
    print(json.dumps(figures["ours_over"]), {k: v for k, v in figures.items() if "step" in k})
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baselines", type=Path, default=Path("../shared/baselines"))
    parser.add_argument("--tiles", type=Path, help="folder of images (default: made up)")
    sizes = {"tile-px": 256, "local-px": 98, "n": 64, "batch": 8, "rounds": 5, "threads": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--step", action="store_true", help="time a training step as well")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def batch_of(tiles: Sequence[NDArray[np.uint8]]) -> Tensor:
    """(B, 3, S, S) bytes, channels last in memory, as the stream of tiles gives them."""
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)


def check(tiles: Sequence[NDArray[np.uint8]], spec: MultiCropSpec) -> tuple[float, float]:
    """Mean and largest difference of views from slow ones, in bytes; stops above the tolerance."""
    slow_view = import_module("reference.tile_views").slow_view
    pixels_B3SS, g = batch_of(tiles[:8]), list(range(len(tiles[:8])))
    made = views(pixels_B3SS, g, spec=spec, seed=0)
    parameters = draw_parameters(g, spec=spec, seed=0)
    means, largest = [], []
    for crops, first, last in (
        (made.global_crops, 0, spec.n_global),
        (made.local_crops, spec.n_global, spec.n_views),
    ):
        flat, edge_px = parameters.of_views(first, last), crops.shape[-1]
        for i, crop in enumerate(crops):
            tile = pixels_B3SS[i % len(g)]
            slow = slow_view(tile, flat, i, edge_px=edge_px, kernel_px=spec.blur_kernel_px)
            difference = 255 * (crop - slow).abs()
            means.append(float(difference.mean()))
            largest.append(float(difference.max()))
    if not (max(means) <= LARGEST_MEAN and max(largest) <= LARGEST):
        msg = f"a view differs by {max(means):.3f} bytes on average, at most by {max(largest):.1f}"
        raise SystemExit(msg)
    return float(np.mean(means)), max(largest)


def sides(
    peer: ModuleType,
    tiles: Sequence[NDArray[np.uint8]],
    spec: MultiCropSpec,
    given: argparse.Namespace,
) -> dict[str, tuple[Callable[[], Any], int]]:
    """What takes turns, with the tiles of a turn."""
    n, edges = len(tiles), {"global_px": spec.global_px, "local_px": spec.local_px}
    batches = [
        (batch_of(tiles[first : first + given.batch]), range(first, min(n, first + given.batch)))
        for first in range(0, n, given.batch)
    ]
    ours = partial(views, spec=spec, seed=0)
    turns: dict[str, tuple[Callable[[], Any], int]] = {}
    for kind, normalise in (("", False), (" (normalised)", True)):
        turns[f"anlage{kind}"] = partial(run_ours, ours, batches, normalise=normalise), n
        for name, chain in peer.CHAINS.items():
            make = partial(chain, normalise=normalise)
            turns[name + kind] = partial(run_peer, peer.crops_of(make, **edges), tiles), n
    slow = partial(run_ours, partial(batched, spec), batches[:1], normalise=False)
    turns["anlage, batched"] = slow, len(batches[0][1])
    if given.threads > 1:
        name = f"anlage (normalised), {given.threads} threads"
        turns[name] = partial(run_threads, ours, batches, given.threads), n
    return turns


def batched(spec: MultiCropSpec, pixels_B3SS: Tensor, g: Sequence[int]) -> Views:
    """``views`` by the path of other devices."""
    parameters = draw_parameters(g, spec=spec, seed=0)
    global_crops, local_crops = (
        make_batched(pixels_B3SS, parameters.of_views(first, last), spec, edge_px=edge_px)
        for first, last, edge_px in (
            (0, spec.n_global, spec.global_px),
            (spec.n_global, spec.n_views, spec.local_px),
        )
    )
    return Views(global_crops=global_crops, local_crops=local_crops)


def run_ours(make: Make, batches: Sequence[tuple[Tensor, range]], *, normalise: bool) -> None:
    """All batches, normalised in place or not."""
    for pixels_B3SS, g in batches:
        made = make(pixels_B3SS, g)
        if normalise:
            for crops in (made.global_crops, made.local_crops):
                crops.sub_(MEAN).div_(DEVIATION)


def run_threads(make: Make, batches: Sequence[tuple[Tensor, range]], n_threads: int) -> None:
    """The batches dealt to threads."""
    with ThreadPoolExecutor(n_threads) as pool:
        hands = [batches[first::n_threads] for first in range(n_threads)]
        list(pool.map(lambda hand: run_ours(make, hand, normalise=True), hands))


def run_peer(augment: Callable[[Any], Any], tiles: Sequence[NDArray[np.uint8]]) -> None:
    """All tiles, one at a time."""
    for tile in tiles:
        augment(tile)


def ratios(rates: dict[str, Rate], peers: Sequence[str]) -> dict[str, list[float]]:
    """Ours over each peer of the same kind: in tiles/s, and in tiles a second of CPU time."""
    return {
        name + kind: [
            round(rates[f"anlage{kind}"].per_s / rates[name + kind].per_s, 2),
            round(rates[name + kind].cpu_ms / rates[f"anlage{kind}"].cpu_ms, 2),
        ]
        for kind in ("", " (normalised)")
        for name in peers
    }


def share_of_a_step(
    tiles: Sequence[NDArray[np.uint8]], spec: MultiCropSpec, *, batch: int
) -> dict[str, float]:
    """Seconds of a plain training step and of the views of its batch, on all cores; their ratio."""
    step = import_module("dinov2_step")
    n_cores = os.cpu_count() or 1
    torch.set_num_threads(n_cores)
    cv2.setNumThreads(n_cores)
    trainer = step.DinoV2(
        STEP_MODEL,
        n_prototypes=STEP_PROTOTYPES,
        device="cpu",
        dtype=torch.bfloat16,
        compile_blocks=False,
        drop_path=0.0,
        global_px=spec.global_px,
    )
    crops = step.make_batch(
        batch, patch_px=14, global_px=spec.global_px, local_px=spec.local_px, device="cpu"
    )
    given = [(batch_of(tiles[:batch]), range(batch))]
    rates = take_turns(
        {
            "step": (lambda: trainer.step(crops).item(), 1),
            "views": (
                lambda: run_ours(partial(views, spec=spec, seed=0), given, normalise=True),
                1,
            ),
        },
        rounds=3,
    )
    step_s, views_s = (1 / rates[name].per_s for name in ("step", "views"))
    return {"step_s": step_s, "views_of_a_step_s": views_s, "share_of_a_step": views_s / step_s}


if __name__ == "__main__":
    main()
