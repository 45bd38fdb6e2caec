"""How fast a recipe trains on this machine, and where the time goes."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from anlage.bench.train_parts import parts_of_steps
from anlage.bench.train_report import Peak, TrainReport, TrainSettings
from anlage.distributed import ALONE, Ranks
from anlage.encoders.tile_encoder import torch_device
from anlage.provenance import machine
from anlage.recipe import load_recipe
from anlage.samples import slides_folder
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import catalogue_of
from anlage.tiles.sampling import TileRequest
from anlage.tiles.stream import TileBatch, TileStream
from anlage.training.device_feed import on_device
from anlage.training.flops_rate import peak_tflops
from anlage.training.pending_step import PendingStep
from anlage.training.plan import plan_of
from anlage.training.run_start import refuse_uneven
from anlage.training.tile_config import Initialisation, TilePretrainConfig
from anlage.training.tile_feed import tile_stream
from anlage.training.train_step import launch_step
from anlage.training.training_state import Training, fresh_training

MOST_APART = 10  # steps that are taken apart at most
N_RANDOM = 4  # random batches, used in turn


def measure_training(
    settings: TrainSettings, slides: str | Path | None = None, *, ranks: Ranks = ALONE
) -> TrainReport:
    """Train for some steps and time them, then take some more apart.

    Of the recipe all counts but what no time depends on: weights are random whatever ``init``
    names, and tiles are drawn from all slides without balance. It is measured as it is in its
    first stage.

    Args:
        settings: What to measure, and how.
        slides: Catalogue, or slides to index; the bundled samples if None.
        ranks: The processes that share each step, from ``process_group``.

    Returns:
        What was measured; times are those of this rank.

    Raises:
        RecipeError: If the recipe is unknown or an override does not fit it.
        DeviceError: If there is no such device here.
        CatalogueError: If no slide is usable.
        TrainingError: If no slide gives such tiles, a loss is not finite, or the ranks cannot share
            a batch.
    """
    n_apart = min(settings.steps, MOST_APART)
    n_steps = settings.warm_up + settings.steps + n_apart
    config = _measured(settings, n_steps)
    refuse_uneven(config, ranks)
    device = _device(settings.device, ranks)
    with TemporaryDirectory(prefix="anlage-bench-") as folder:
        training = fresh_training(config, Path(folder), {}, device=device, ranks=ranks)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with _batches(training, settings, slides, n_steps) as (batches, stream):
            _timed(training, batches, settings.warm_up)
            waited_s = 0.0 if stream is None else stream.wait_s
            step_s = _timed(training, batches, settings.steps)
            share = None if stream is None else (stream.wait_s - waited_s) / sum(step_s)
            memory = _most_memory(device, ranks)
            parts = parts_of_steps(training, batches, n_apart)
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else str(machine()["cpu"])
    own_tiles = config.batch_size / ranks.world_size
    return TrainReport(
        settings=settings,
        device=name,
        n_ranks=ranks.world_size,
        batch_size=config.batch_size,
        step_s=step_s,
        data_wait_share=share,
        flops_per_step=own_tiles * plan_of(config).stages[0].flops.total,
        peak_tflops=peak_tflops(name) if is_cuda else None,
        memory=memory,
        parts=parts,
        n_apart=n_apart,
    )


def _measured(settings: TrainSettings, n_steps: int) -> TilePretrainConfig:
    """The recipe, long enough, with nothing to fetch and nothing to ask of the catalogue."""
    config = load_recipe(settings.recipe, TilePretrainConfig, overrides=settings.overrides)
    return config.model_copy(
        update={
            "steps": max(config.steps, n_steps),
            "tiles": config.tiles.model_copy(update={"split": None, "balance": {}}),
            "init": Initialisation(),
            "last_stage": None,
        }
    )


def _device(name: str, ranks: Ranks) -> torch.device:
    device = torch_device(name)
    if device.type != "cuda" or ranks.is_alone or ":" in name:
        return device
    return torch_device(f"cuda:{ranks.local_rank}")


@contextmanager
def _batches(
    training: Training, settings: TrainSettings, slides: str | Path | None, n_steps: int
) -> Iterator[tuple[Iterator[TileBatch], TileStream | None]]:
    """This rank's batches, and the stream that they are from if slides are read."""
    config, ranks = training.config, training.ranks
    if settings.source == "tensors":
        yield _random_batches(training), None
        return
    with ExitStack() as held:
        if slides is None:
            slides = slides_folder()

        def indexed() -> Path:  # by one rank; a catalogue is read by each
            return catalogue_of(slides, folder=training.run_dir)[0].path

        catalogue = Catalogue.open(ranks.from_main(indexed))
        stream = held.enter_context(
            tile_stream(config, catalogue, run_dir=training.run_dir, threads=settings.threads)
        )
        read = stream.batches(0, n_steps, ranks=ranks)
        held.enter_context(closing(read))  # type: ignore[type-var]
        yield on_device(read, training.device), stream


def _random_batches(training: Training) -> Iterator[TileBatch]:
    """Noise in the place of tiles, on the device from the beginning."""
    config, ranks, device = training.config, training.ranks, training.device
    size, edge = config.batch_size // ranks.world_size, config.views.source_px
    drawn = torch.Generator(device).manual_seed(config.seed)
    shape = (size, 3, edge, edge)
    made = [
        torch.randint(256, shape, dtype=torch.uint8, device=device, generator=drawn).to(
            memory_format=torch.channels_last
        )
        for _ in range(N_RANDOM)
    ]
    step = 0
    while True:
        first = step * config.batch_size + ranks.rank * size
        g = np.arange(first, first + size, dtype=np.int64)
        named = [TileRequest(int(i), 0, 0, "noise", 0, 0, config.mpp, edge, ()) for i in g]
        yield TileBatch(g, made[step % N_RANDOM], named, 0, Counter())
        step += 1


def _timed(training: Training, batches: Iterator[TileBatch], n_steps: int) -> list[float]:
    """Seconds of steps as a run takes them: on a GPU one is read after the next was begun."""
    reads_late = training.device.type == "cuda"
    behind: list[PendingStep] = []
    took_s: list[float] = []
    began = time.perf_counter()

    def catch_up(n_left: int) -> None:
        nonlocal began
        while len(behind) > n_left:
            behind.pop(0).read()
            ended = time.perf_counter()
            took_s.append(ended - began)
            began = ended

    for batch in islice(batches, n_steps):
        behind.append(launch_step(training, batch))
        catch_up(1 if reads_late else 0)
    catch_up(0)
    return took_s


def _most_memory(device: torch.device, ranks: Ranks) -> Peak:
    """The most of any rank."""
    if device.type == "cuda":
        n_bytes, of = torch.cuda.max_memory_allocated(device), "CUDA, allocated by torch"
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        n_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        of = "process, resident"
    return Peak(n_bytes=max(ranks.objects(n_bytes)), of=of)
