"""The looks of a slide pretraining run: error on held-out bags, probes on labelled slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anlage.encoders.slide_encoder import (
    OpenSlideEncoder,
    SlideEncoderConfig,
    save_slide_encoder,
)
from anlage.errors import EncoderError, TrainingError
from anlage.models.slide_encoder import SlideEncoder
from anlage.training.best import BestEncoder
from anlage.training.slide_pretraining.feed import ChosenBags
from anlage.training.slide_pretraining.held_out import HeldOutBags
from anlage.training.slide_pretraining.saves import naming_cases, slide_encoder_config
from anlage.training.slide_pretraining.state import SlideTraining
from anlage.training.slide_pretraining.watched_slides import WatchedSlides
from anlage.training.watch import collapse_of, in_evaluation, probed
from anlage.training.watched_rows import watched_splits


class SlideRunWatch:
    """Looks every ``watch.every`` steps and after the last one.

    Args:
        training: The run, at the step it begins or goes on from.
        chosen: Its bags.
        slides: Labelled slides; None for none.
        threads: Threads that read bags.

    Raises:
        LabelledDataError: If the slides cannot be split for the probes.
        TrainingError: If the recipe's patience waits for a probe and there is no labelled slide.
    """

    def __init__(
        self,
        training: SlideTraining,
        chosen: ChosenBags,
        slides: WatchedSlides | None,
        *,
        threads: int,
    ) -> None:
        self._settings, self._slides, self._chosen = training.config.watch, slides, chosen
        self._threads = threads
        self._held_out = HeldOutBags(training.config, chosen, threads=threads)
        self._is_over = False
        self._best: BestEncoder | None = None
        if slides is None or self._settings.every is None:
            if self._settings.patience is not None:
                msg = (
                    f"watch.patience={self._settings.patience} needs labelled slides (--watch and "
                    "watch.label); nothing would ever end this run. Set watch.patience=null."
                )
                raise TrainingError(training.run_dir, msg)
            return
        watched_splits(slides, neighbours=self._settings.neighbours)
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

    def is_due(self, training: SlideTraining) -> bool:
        """Whether it is time to look, after the steps that are finished."""
        every, step = self._settings.every, training.step
        return every is not None and (step % every == 0 or step == training.steps)

    def after_step(self, training: SlideTraining) -> dict[str, float]:
        """Look if it is time, and keep the encoder if it is the best so far.

        Rank 0 looks; every rank calls it, and hears of it.

        Returns:
            Metrics of the look; none if it is not time.
        """
        if not self.is_due(training):
            return {}

        def looked() -> tuple[dict[str, float], bool]:
            return self._look(training), self.is_over

        metrics, self._is_over = training.ranks.from_main(looked)
        return metrics

    def _look(self, training: SlideTraining) -> dict[str, float]:
        network, settings = training.network, self._settings
        metrics = self._held_out.errors(
            network, device=training.device, dtype=training.layout.dtype
        )
        if self._slides is None:
            return metrics
        config = slide_encoder_config(training)
        embedding_ND = slide_embeddings(
            network.encoder, config, self._chosen, self._slides.slide_ids, threads=self._threads
        )
        metrics |= probed(
            embedding_ND,
            self._slides,
            neighbours=settings.neighbours,
            probe_steps=settings.probe_steps,
        )
        metrics |= collapse_of(embedding_ND)
        if self._best is not None:
            cases = sorted({str(group) for group in self._slides.group_N})
            named = naming_cases(config, {"cases": cases})

            def save(folder: Path) -> None:
                save_slide_encoder(folder, network.encoder, named)

            self._best.consider(training.step, metrics, save=save)
        return metrics


def slide_embeddings(
    network: SlideEncoder,
    config: SlideEncoderConfig,
    chosen: ChosenBags,
    slide_ids: tuple[str, ...],
    *,
    threads: int,
) -> NDArray[np.float32]:
    """Embeddings of slides, one by one, (N, D) float32.

    Args:
        network: The encoder; comes back in its mode, on its device.
        config: Grid and pooling.
        chosen: The bags.
        slide_ids: The slides, N.
        threads: Threads that read bags.

    Raises:
        EncoderError: If an embedding is not finite.
    """
    draws = [[(number, slide)] for number, slide in enumerate(slide_ids)]
    batches = chosen.batches(draws, threads=threads)
    with in_evaluation(network):
        encoder = OpenSlideEncoder("", config, network, device=network.slide_token.device)
        found = [encoder.embed(b.features_TD, b.cell_T2, b.lengths).cpu() for b in batches]
    embedding_ND: NDArray[np.float32] = torch.cat(found).numpy()
    bad = np.flatnonzero(~np.isfinite(embedding_ND).all(axis=1))
    if len(bad):
        message = "its embedding holds NaN or an infinity. Go on from an earlier checkpoint"
        raise EncoderError(slide_ids[bad[0]], f"{message}, or use precision=fp32.")
    return embedding_ND
