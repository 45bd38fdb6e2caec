"""The masked error on bags that are never trained on, beside what no learning reaches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anlage.bags.loader import BagBatch
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.feed import ChosenBags
from anlage.training.slide_pretraining.floors import copy_floor, mean_floor
from anlage.training.slide_pretraining.networks import (
    MaskedBags,
    SlideAutoencoder,
    hidden_error,
    masked_bags,
)
from anlage.training.slide_pretraining.views import fixed_view
from anlage.training.watch import in_evaluation

LOSS, MEAN, COPY = "held_out_loss", "held_out_mean_floor", "held_out_copy_floor"


class HeldOutBags:
    """Bags on which the error is measured, with the same tiles hidden each time.

    They lie as they are: not cropped, moved or mirrored.

    Args:
        config: The recipe.
        chosen: The bags of the run.
        threads: Threads that read them.
    """

    def __init__(self, config: SlidePretrainConfig, chosen: ChosenBags, *, threads: int) -> None:
        self._config, self._chosen, self._threads = config, chosen, threads
        self._floors: dict[str, float] | None = None

    def __len__(self) -> int:
        """How many bags there are."""
        return len(self._chosen.measured)

    def __iter__(self) -> Iterator[MaskedBags]:
        """The bags one by one, on the CPU."""
        numbers = {slide: number for number, slide in enumerate(self._chosen.held_out)}
        draws = [[(numbers[slide], slide)] for slide in self._chosen.measured]
        for batch in self._chosen.batches(draws, threads=self._threads):
            yield self._masked(batch)

    def _masked(self, batch: BagBatch) -> MaskedBags:
        view = fixed_view(
            batch.cell_T2.numpy(),
            seed=self._config.seed,
            g=batch.numbers[0],
            mask_ratio=self._config.mask_ratio,
            max_tiles=self._config.bags.max_tiles,
        )
        return masked_bags(batch, [view])

    def errors(
        self, network: SlideAutoencoder, *, device: torch.device, dtype: torch.dtype | None
    ) -> dict[str, float]:
        """Mean over the bags of the error, and of both floors.

        Args:
            network: Encoder and decoder, on the device; comes back in its mode.
            device: Where it runs.
            dtype: What autocast multiplies in; float32 if None.

        Returns:
            ``held_out_loss``, ``held_out_mean_floor`` and ``held_out_copy_floor``; empty if there
            are no bags.
        """
        if not len(self):
            return {}
        found, means, copies = [], [], []
        autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
        with in_evaluation(network), torch.no_grad():
            for bags in self:
                moved = bags.to(device)
                with autocast:
                    predicted_MI = network.predicted(moved)
                found.append(hidden_error(predicted_MI, moved).cpu())
                if self._floors is None:
                    means.append(mean_floor(bags))
                    copies.append(copy_floor(bags))
        if self._floors is None:
            floors = {MEAN: torch.cat(means), COPY: torch.cat(copies)}
            self._floors = {name: float(error_B.mean()) for name, error_B in floors.items()}
        return {LOSS: float(torch.cat(found).mean()), **self._floors}
