"""Embedding, from a slide to its bag: beside the network's forward pass, beside a DataLoader.

Parts, each with its sides in turns after one round that is thrown away:

forward  ViT-S/16 of random weights, fp32 and (where the processor has it) bf16: timm's and our own
         forward pass on tensors that are ready, and ``embed_tiles`` on a slide. Also how near
         bf16's embeddings are to fp32's.
noop     the mean of each channel in place of a network: ``embed_tiles`` beside
         ``embed_dataloader.py`` of the baselines folder, usual and tuned, with ``--workers``; as
         many tiles of the slide on either side.
outside  one run over the whole slide: the share of time outside reading and forward pass.
memory   peak of a fresh process that embeds about 10,000 tiles and about 100,000, which overlap
         (step 36 px) and lie on a tenth of the tissue and on all of it, into features of 384
         numbers.
timm     networks of timm with random weights (``--networks``: ViT-L/16, H/14 and g/14) in bf16 on
         ``--device``: their forward pass on tensors that are there, and ``embed_tiles`` from the
         slide to the bag with the very same network. For GPUs.

Usage, in the repository, with the folder that holds ``baselines/`` beside it:
    OMP_WAIT_POLICY=PASSIVE uv run benchmarks/embedding.py SLIDE.svs
        [--parts forward noop outside memory timm] [--rounds 5] [--tiles 512] [--noop-tiles 2048]
        [--threads 2] [--batch 64] [--device cpu] [--shared ../shared] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from turns import Rate, take_turns

from anlage.bags.store import read_bag
from anlage.embedding.embed_tiles import EmbedResult, embed_tiles
from anlage.embedding.slide_plan import tiles_of
from anlage.encoders.other_network import OtherNetwork
from anlage.encoders.precision import Precision, has_native_bf16
from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder
from anlage.models.vit import TokenOutput, VisionTransformer
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides
from anlage.slides.masks import TissueMask, encode_mask
from anlage.tiles.spec import TileSpec

TILE_PX, MPP, BATCH, SEED = 224, 0.5, 64, 0
LARGE = ("vit_large_patch16_224", "vit_huge_patch14_224", "vit_giant_patch14_224")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT_S16 = {"image_px": 224, "patch_px": 16, "width": 384, "depth": 12, "n_heads": 6}
WIDTH, STRIDE_PX = 384, 36  # of `memory`
PARTS = ("forward", "noop", "outside", "memory", "timm")


class ChannelMean(nn.Module):
    """In place of a network: the mean of each channel, again and again to the width asked for."""

    patch_px = None

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = self.token_width = width

    def embed(self, image_B3HW: Tensor) -> TokenOutput:
        """As a vision transformer's."""
        mean_B3 = image_B3HW.mean(dim=(2, 3))
        nothing = image_B3HW.new_empty(len(image_B3HW), 0, 3)
        return TokenOutput(mean_B3.repeat(1, self.width // 3), nothing, nothing)


def main() -> None:
    """Measure the parts asked for, print them and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:-1])
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=512, help="a turn with a network")
    parser.add_argument("--noop-tiles", type=int, default=2048, help="a turn without one")
    parser.add_argument("--threads", type=int, default=2, help="that read, ours")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=(1, 2, 3), help="the DataLoader's"
    )
    parser.add_argument("--batch", type=int, default=BATCH, help="of `timm`")
    parser.add_argument("--device", default="cpu", help="of `timm`")
    parser.add_argument("--networks", nargs="+", default=LARGE, help="of `timm`")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)  # of `memory`
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(peak_of_this_process(arguments.slide, share=arguments.child)))
        return
    sys.path.insert(0, str(arguments.shared.resolve() / "baselines"))
    cv2.setNumThreads(1)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for part in arguments.parts:
            measure = globals()[f"measure_{part}"]
            figures[part] = measure(arguments, Path(temporary))
            print(part, json.dumps(figures[part], indent=1), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def make_encoder(
    network: nn.Module, *, precision: Precision = "fp32", device: str = "cpu"
) -> TileEncoder:
    """An encoder of 224 px tiles at 0.5 mpp."""
    architecture = VIT_S16 if isinstance(network, VisionTransformer) else {"callable": "mean"}
    config = EncoderConfig(architecture=architecture, tile_px=TILE_PX, mpp=MPP, mean=MEAN, std=STD)
    return TileEncoder(config, network, device=device, precision=precision)  # type: ignore[arg-type]


def make_catalogue(slide: Path, folder: Path, *, n_tiles: int | None) -> Catalogue:
    """A catalogue of the slide; with ``n_tiles`` its mask is cut to the first rows of tiles."""
    folder.mkdir()
    catalogue = index_slides([slide], folder / "all.parquet").catalogue
    assert catalogue is not None
    if n_tiles is None:
        return catalogue
    row = catalogue.rows()[0]
    spec = TileSpec(size_px=TILE_PX, mpp=MPP, stride_px=TILE_PX)
    corners = tiles_of(catalogue, row, spec)
    whole = catalogue.mask(row.slide_id)
    bottom = (corners[min(n_tiles, len(corners)) - 1, 1] * row.mpp + TILE_PX * MPP) / whole.mpp
    cut = whole.mask.copy()
    cut[int(bottom) :] = False
    masks = folder / "masks"
    masks.mkdir()
    (masks / f"{row.slide_id}.png").write_bytes(encode_mask(TissueMask(cut, whole.mpp).mask))
    chosen = index_slides([slide], folder / "some.parquet", masks=masks).catalogue
    assert chosen is not None
    return chosen


def embed_fresh(
    encoder: TileEncoder,
    catalogue: Catalogue,
    folder: Path,
    *,
    threads: int = 2,
    batch_size: int = BATCH,
) -> EmbedResult:
    """Embed into a folder that is empty before and gone afterwards."""
    output = Path(tempfile.mkdtemp(dir=folder))
    try:
        result = embed_tiles(encoder, catalogue, output, batch_size=batch_size, threads=threads)
        assert not result.refused, result.refused
        features = read_bag(next(output.glob("*.h5"))).features
        assert np.isfinite(features).all()
        return result
    finally:
        shutil.rmtree(output)


def measure_forward(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Tiles/s of forward passes on ready tensors and of embed_tiles, fp32 and bf16."""
    import timm

    catalogue = make_catalogue(arguments.slide, folder / "forward", n_tiles=arguments.tiles)
    torch.manual_seed(SEED)
    network = VisionTransformer(**VIT_S16)
    peer = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    n_tiles = embed_fresh(make_encoder(ChannelMean()), catalogue, folder).n_tiles
    n_batches = n_tiles // BATCH
    ready_B3SS = torch.randint(0, 256, (BATCH, 3, TILE_PX, TILE_PX), dtype=torch.uint8)
    normal_B3SS = torch.randn(BATCH, 3, TILE_PX, TILE_PX)
    precisions = ["fp32", *(["bf16"] if has_native_bf16(torch.device("cpu")) else [])]
    sides: dict[str, tuple[Callable[[], Any], int]] = {}
    for precision in precisions:
        encoder = make_encoder(network, precision=precision)
        on = partial(timm_forward, peer, normal_B3SS, n_batches, is_bf16=precision == "bf16")
        sides[f"timm forward {precision}"] = (on, n_batches * BATCH)
        own = partial(own_forward, encoder, ready_B3SS, n_batches)
        sides[f"our forward {precision}"] = (own, n_batches * BATCH)
        run = partial(embed_fresh, encoder, catalogue, folder, threads=arguments.threads)
        sides[f"embed_tiles {precision}"] = (run, n_tiles)
    rates = take_turns(sides, rounds=arguments.rounds)
    figures: dict[str, Any] = {"n_tiles": n_tiles, "tiles_per_s": shown(rates)}
    for precision in precisions:
        ours = rates[f"embed_tiles {precision}"].per_s
        figures[f"over timm's forward, {precision}"] = (
            ours / rates[f"timm forward {precision}"].per_s
        )
        figures[f"over our forward, {precision}"] = ours / rates[f"our forward {precision}"].per_s
    if "bf16" in precisions:
        gain = rates["embed_tiles bf16"].per_s / rates["embed_tiles fp32"].per_s
        figures["bf16 over fp32"] = gain
        figures["cosine of bf16 and fp32, lowest"] = lowest_cosine(network, catalogue, folder)
    return figures


@torch.inference_mode()
def timm_forward(model: nn.Module, pixels: Tensor, n_batches: int, *, is_bf16: bool) -> None:
    """The measuring stick: nothing but the network."""
    for _ in range(n_batches):
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=is_bf16):
            model(pixels)
    if pixels.device.type == "cuda":
        torch.cuda.synchronize(pixels.device)


def own_forward(encoder: TileEncoder, pixels: Tensor, n_batches: int) -> None:
    """Ours, with its normalisation of uint8 pixels."""
    for _ in range(n_batches):
        encoder.embed(pixels)


def lowest_cosine(network: VisionTransformer, catalogue: Catalogue, folder: Path) -> float:
    """Between the embeddings of real tiles in bf16 and fp32."""
    found = []
    for precision in ("fp32", "bf16"):
        output = folder / f"cosine-{precision}"
        embed_tiles(make_encoder(network, precision=precision), catalogue, output)
        found.append(read_bag(next(output.glob("*.h5"))).features.astype(np.float64))
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in found]
    return float((unit[0] * unit[1]).sum(1).min())


def measure_noop(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Tiles/s without a network, beside the DataLoader of every style and number of workers."""
    import embed_dataloader as peer

    catalogue = make_catalogue(arguments.slide, folder / "noop", n_tiles=arguments.noop_tiles)
    encoder = make_encoder(ChannelMean())
    n_tiles = embed_fresh(encoder, catalogue, folder).n_tiles
    run = partial(embed_fresh, encoder, catalogue, folder, threads=arguments.threads)
    sides: dict[str, tuple[Callable[[], Any], int]] = {"embed_tiles": (run, n_tiles)}
    for style in ("usual", "tuned"):
        for workers in arguments.workers:
            one = partial(
                peer.embed_slide,
                *(str(arguments.slide), folder / "peer.h5"),
                model=peer.build_model(None, tile_px=TILE_PX, device="cpu"),
                style=style,
                dtype=torch.float32,
                tile_px=TILE_PX,
                mpp=MPP,
                batch=BATCH,
                workers=workers,
                n=n_tiles,
            )
            sides[f"{style}, {workers} workers"] = (one, n_tiles)
    rates = take_turns(sides, rounds=arguments.rounds)
    figures: dict[str, Any] = {"n_tiles": n_tiles, "tiles_per_s": shown(rates)}
    for style in ("usual", "tuned"):
        best = max((rate.per_s for name, rate in rates.items() if name.startswith(style)))
        figures[f"over the best of {style}"] = rates["embed_tiles"].per_s / best
    return figures


def measure_outside(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Where the time of one whole slide goes, in the fastest arithmetic there is."""
    catalogue = make_catalogue(arguments.slide, folder / "outside", n_tiles=None)
    torch.manual_seed(SEED)
    precision = "bf16" if has_native_bf16(torch.device("cpu")) else "fp32"
    encoder = make_encoder(VisionTransformer(**VIT_S16), precision=precision)
    result = embed_fresh(encoder, catalogue, folder, threads=arguments.threads)
    told = replace(result, done=[], output=Path())
    times = {k: v for k, v in asdict(told).items() if isinstance(v, int | float)}
    outside = result.seconds - result.wait_s - result.forward_s
    return {"precision": precision, **times, "share outside": outside / result.seconds}


def measure_memory(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peak memory of two runs, and by how much they differ beyond the bag."""
    found = []
    for share in (0.1, 1.0):
        command = [sys.executable, __file__, str(arguments.slide), "--child", str(share)]
        run = subprocess.run(  # noqa: S603 - this very file
            command, capture_output=True, text=True, check=True
        )
        found.append(json.loads(run.stdout.splitlines()[-1]))
    few, many = found
    growth = many["peak_mb"] - few["peak_mb"]
    return {
        "few": few,
        "many": many,
        "growth_mb": growth,
        "growth over the bag": growth / many["bag_mb"],
    }


def peak_of_this_process(slide: Path, *, share: float) -> dict[str, float]:
    """Embed a share of the slide's tissue once, in this fresh process."""
    with tempfile.TemporaryDirectory() as temporary:
        catalogue = make_catalogue(slide, Path(temporary) / "all", n_tiles=None)
        row = catalogue.rows()[0]
        spec = TileSpec(size_px=TILE_PX, mpp=MPP, stride_px=TILE_PX)
        n_tiles = round(share * len(tiles_of(catalogue, row, spec)))
        catalogue = make_catalogue(slide, Path(temporary) / "some", n_tiles=n_tiles)
        encoder = make_encoder(ChannelMean(WIDTH))
        run = embed_tiles(encoder, catalogue, Path(temporary) / "bags", stride_px=STRIDE_PX)
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "n_tiles": run.n_tiles,
        "peak_mb": peak_kb / 1e3 * 1.024,
        "bag_mb": run.n_tiles * (WIDTH * 2 + 16) / 1e6,
        "seconds": run.seconds,
    }


def measure_timm(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """End to end over the forward pass of the same network, whatever the device."""
    import timm

    catalogue = make_catalogue(arguments.slide, folder / "timm", n_tiles=None)
    how = {"threads": arguments.threads, "batch_size": arguments.batch}
    figures: dict[str, Any] = {}
    for name in arguments.networks:
        model = timm.create_model(name, num_classes=0, img_size=TILE_PX)
        network = OtherNetwork(model, run=lambda net, x: (net(x), None), width=model.num_features)
        encoder = make_encoder(network, precision="bf16", device=arguments.device)
        ready = torch.randn(arguments.batch, 3, TILE_PX, TILE_PX, device=arguments.device)
        n_tiles = embed_fresh(encoder, catalogue, folder, **how).n_tiles
        n_batches = n_tiles // arguments.batch
        rates = take_turns(
            {
                "forward": (
                    partial(timm_forward, model, ready, n_batches, is_bf16=True),
                    n_batches * arguments.batch,
                ),
                "embed_tiles": (partial(embed_fresh, encoder, catalogue, folder, **how), n_tiles),
            },
            rounds=arguments.rounds,
        )
        share = rates["embed_tiles"].per_s / rates["forward"].per_s
        figures[name] = {"n_tiles": n_tiles, **shown(rates), "over the forward pass": share}
        print(name, json.dumps(figures[name]), flush=True)
    return figures


def shown(rates: dict[str, Rate]) -> dict[str, float]:
    """Tiles/s, by side."""
    return {name: round(rate.per_s, 1) for name, rate in rates.items()}


if __name__ == "__main__":
    main()
