"""The looks of a run as its loop takes them: when, at what, and what follows."""

from __future__ import annotations

from pathlib import Path

from anlage.encoders.folder import save_encoder
from anlage.encoders.tile_encoder import EncoderConfig
from anlage.errors import LabelledDataError, TrainingError
from anlage.models.vit import VisionTransformer
from anlage.tiles.stream import TileBatch
from anlage.training.best import BestEncoder
from anlage.training.log import MetricsLog, SilentLog
from anlage.training.training_state import Training
from anlage.training.watch import look, look_unlabelled
from anlage.training.watch_pictures import draw_look, picture_path
from anlage.training.watched_rows import watched_splits
from anlage.training.watched_tiles import WatchedTiles, shown_tiles

N_SHOWN = 4


class RunWatch:
    """Looks at the teacher every ``watch.every`` steps and after the last one.

    With labelled tiles a look probes them; without, it measures the spread of the embeddings of
    the step's own tiles, so that a collapse shows without any label.

    Args:
        training: The run, at the step it begins or goes on from.
        tiles: Labelled tiles; None for none.

    Raises:
        LabelledDataError: If the tiles cannot be split for the probes, or are no whole patches.
        TrainingError: If the recipe's patience waits for a probe and there is no labelled tile.
    """

    def __init__(self, training: Training, tiles: WatchedTiles | None) -> None:
        self._settings, self._tiles, self._run_dir = (
            training.config.watch,
            tiles,
            training.run_dir,
        )
        self._picture: Path | None = None
        self._is_over = False
        self._best: BestEncoder | None = None
        if self._settings.patience is not None and (tiles is None or self._settings.every is None):
            msg = (
                f"watch.patience={self._settings.patience} needs labelled tiles and watch.every; "
                "nothing would ever end this run. Give both, or set watch.patience=null."
            )
            raise TrainingError(training.run_dir, msg)
        if tiles is None or self._settings.every is None:
            return
        _refuse_broken_patches(tiles, patch_px=training.config.model.patch_px)
        watched_splits(tiles, neighbours=self._settings.neighbours)
        if self._settings.keep_best is not None:
            self._best = BestEncoder(
                training.run_dir,
                metric=f"watch_{self._settings.keep_best}",
                patience=self._settings.patience,
                first_step=training.step,
            )

    @property
    def is_over(self) -> bool:
        """Whether the probe got no better for as long as the recipe is patient."""
        return self._is_over or (self._best is not None and self._best.is_patience_over)

    def is_due(self, training: Training) -> bool:
        """Whether it is time to look, after the steps that are finished."""
        every, step = self._settings.every, training.step
        return every is not None and (step % every == 0 or step == training.config.steps)

    def after_step(
        self, training: Training, batch: TileBatch, config: EncoderConfig
    ) -> dict[str, float]:
        """Look if it is time, draw it, and keep the encoder if it is the best so far.

        Rank 0 looks; every rank calls it, and hears of it.

        Args:
            training: The run, after a step.
            batch: The step's tiles.
            config: Description of the teacher's encoder.

        Returns:
            Metrics of the look; none if it is not time.
        """
        if not self.is_due(training):
            return {}
        model = training.whole_encoder()

        def looked() -> tuple[dict[str, float], bool]:
            assert model is not None, "rank 0 has it"
            return self._look(training.step, model, batch, config), self.is_over

        metrics, self._is_over = training.ranks.from_main(looked)
        return metrics

    def _look(
        self, step: int, model: VisionTransformer, batch: TileBatch, config: EncoderConfig
    ) -> dict[str, float]:
        if self._tiles is not None:
            seen = look(
                model,
                self._tiles,
                config=config,
                neighbours=self._settings.neighbours,
                probe_steps=self._settings.probe_steps,
            )
            shown = self._tiles.pixels_N3SS[shown_tiles(self._tiles, N_SHOWN)]
        else:
            edge_px = batch.pixels.shape[-1] // model.patch_px * model.patch_px
            whole = batch.pixels[..., :edge_px, :edge_px]
            seen = look_unlabelled(model, whole, config=config)
            shown = whole[:N_SHOWN].cpu().numpy()
        if self._settings.pictures:
            path = picture_path(self._run_dir, step)
            self._picture = draw_look(model, shown, path, config=config)
        if self._best is not None:
            named = _naming_cases(config, self._tiles)
            self._best.consider(
                step, seen.metrics, save=lambda folder: save_encoder(folder, model, named)
            )
        return seen.metrics

    def show(self, log: MetricsLog | SilentLog, step: int) -> None:
        """Hand the picture of the last look to the trackers, once."""
        if self._picture is not None:
            log.image(step, "watch", self._picture)
            self._picture = None


def _naming_cases(config: EncoderConfig, tiles: WatchedTiles | None) -> EncoderConfig:
    """The config of an encoder that labels chose: it names their cases, so that a test can tell."""
    assert tiles is not None, "without labels no encoder is the best"
    cases = sorted({str(group) for group in tiles.group_N})
    watched = {**config.provenance.get("watched", {}), "cases": cases}
    return config.model_copy(update={"provenance": {**config.provenance, "watched": watched}})


def _refuse_broken_patches(tiles: WatchedTiles, *, patch_px: int) -> None:
    edge_px = tiles.pixels_N3SS.shape[-1]
    if edge_px % patch_px:
        msg = (
            f"needs tiles of whole patches of {patch_px} px; got tiles of {edge_px} px. Read them "
            "at the encoder's tile_px."
        )
        raise LabelledDataError(tiles.path, msg)
