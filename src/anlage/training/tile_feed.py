"""The tiles of a run, as its recipe says: which are drawn, how they are read, what went wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa

from anlage.errors import CatalogueError
from anlage.slides.catalogue import Catalogue
from anlage.tiles.listed_sampling import sampler_from_list
from anlage.tiles.magnification import ContinuousMpp
from anlage.tiles.quarantine import JOURNAL, ErrorPolicy
from anlage.tiles.sampling import sampler_from_catalogue
from anlage.tiles.stream import TileStream
from anlage.tiles.tile_draws import TileDraws
from anlage.tiles.tile_list import TileList, read_tile_list
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_source import MagnificationRange


def tile_sampler(config: TilePretrainConfig, slides: Catalogue) -> TileDraws:
    """What a run draws: a function of its recipe, its slides and its tile list alone.

    Args:
        config: The resolved recipe.
        slides: The slides it trains on: those of its split.

    Raises:
        TrainingError: If no slide gives tiles at some resolution.
        CatalogueError: If the recipe balances over a column that is not there, or over lists; or
            its tile list cannot be used.
    """
    drawn = config.tiles.magnifications
    tiles = tile_list_of(config)
    if tiles is not None:
        assert not isinstance(drawn, MagnificationRange), "checked by TileSource"
        return sampler_from_list(
            slides,
            tiles,
            path=str(config.tiles.list),
            seed=config.seed,
            size_px=config.views.source_px,
            batch_size=config.batch_size,
            magnifications=drawn,
        )
    balance = {column: alpha for column, alpha in config.tiles.balance.items() if alpha > 0}
    missing = sorted(balance.keys() - set(slides.column_names))
    if missing:
        raise CatalogueError(
            slides.path,
            f"needs the columns that tiles.balance names; has no {', '.join(missing)} among "
            f"{', '.join(slides.column_names)}. Add them with `anlage index --labels`.",
        )
    schema = slides.schema
    nested = [c for c in sorted(balance) if pa.types.is_nested(schema.field(c).type)]
    if nested:
        raise CatalogueError(
            slides.path,
            f"needs columns of single values for tiles.balance; {', '.join(nested)} hold lists or "
            "structs. Balance over other columns.",
        )
    if isinstance(drawn, MagnificationRange):
        magnifications: ContinuousMpp | dict[float, float] = ContinuousMpp(
            drawn.low, drawn.high, drawn.law
        )
    else:
        magnifications = drawn
    return sampler_from_catalogue(
        slides,
        seed=config.seed,
        size_px=config.views.source_px,
        batch_size=config.batch_size,
        magnifications=magnifications,
        min_tissue=config.tiles.min_tissue,
        tiles_per_region=config.tiles.per_region,
        balance=balance,
        base=config.tiles.base,
    )


def tile_list_of(config: TilePretrainConfig) -> TileList | None:
    """The list that a recipe draws from; None if it names none.

    Raises:
        CatalogueError: If it cannot be read.
    """
    return None if config.tiles.list is None else read_tile_list(config.tiles.list)


def tile_stream(
    config: TilePretrainConfig, slides: Catalogue, *, run_dir: Path, threads: int
) -> TileStream:
    """How a run reads its tiles; its journal lies in the run's folder.

    Args:
        config: The resolved recipe.
        slides: The slides it trains on.
        run_dir: Folder of the run.
        threads: Threads that decode.

    Raises:
        TrainingError: If no slide gives tiles at some resolution.
        CatalogueError: If the recipe balances over a column that is not there.
        CheckpointError: If the journal is damaged.
    """
    return TileStream(
        slides,
        tile_sampler(config, slides),
        threads=threads,
        filters=config.tiles.filters.chosen(),
        errors=ErrorPolicy(config.tiles.on_error, config.tiles.quarantine_after),
        journal=run_dir / JOURNAL,
        decode=config.tiles.decode,
        colour=config.tiles.colour,
    )


class FeedMeter:
    """What a step's metrics say of its tiles."""

    def __init__(self, config: TilePretrainConfig, stream: TileStream) -> None:
        self._config, self._stream = config, stream
        self.begin_step()

    def begin_step(self) -> None:
        """Start the clock anew, so that a look or a checkpoint counts for no step."""
        self._began, self._waited_s = time.perf_counter(), self._stream.wait_s

    def of_step(self, step: int) -> dict[str, float]:
        """Metrics of the step that ends now: the rate of all ranks, and this one's waiting."""
        ended, waited_s = time.perf_counter(), self._stream.wait_s
        took_s = ended - self._began
        metrics = {
            "tiles_per_s": self._config.batch_size / took_s,
            "data_wait_share": (waited_s - self._waited_s) / took_s,
        }
        if self._config.tiles.quarantine_after is not None:
            out = [first for first in self._stream.quarantined.values() if first <= step]
            metrics["quarantined"] = float(len(out))
        self._began, self._waited_s = ended, waited_s
        return metrics
