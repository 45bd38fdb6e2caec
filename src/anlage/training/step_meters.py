"""What the clock says of the steps of a run: tiles and FLOPs a second, and waiting for data."""

from __future__ import annotations

import torch

from anlage.tiles.stream import TileStream
from anlage.training.flops_rate import RateMeter, peak_tflops
from anlage.training.plan import StagePlan
from anlage.training.tile_feed import FeedMeter
from anlage.training.training_state import Training


class StepMeters:
    """Rates of the steps of one stage.

    A step lasts from the call of ``begin_step`` to that of ``of_step``: waiting for its tiles is
    part of it, a look or a checkpoint before it is not.

    Args:
        training: The run, with the configuration of the stage.
        stage: What a step of the stage takes.
        stream: Where its tiles come from.
    """

    def __init__(self, training: Training, stage: StagePlan, stream: TileStream) -> None:
        config, device = training.config, training.device
        peak = None
        if device.type == "cuda":
            peak = peak_tflops(torch.cuda.get_device_name(device))
        self._training = training
        size = config.batch_size / training.ranks.world_size
        self._anchor_flops = size * stage.anchor_flops
        self._feed = FeedMeter(config, stream)
        self._rate = RateMeter(flops_per_step=size * stage.flops.total, peak_tflops=peak)

    def of_step(self, step: int) -> dict[str, float]:
        """Metrics of the step that ends now.

        Args:
            step: Number of the step, from 0.

        Returns:
            Those of ``FeedMeter``; of this rank's device ``tflops`` a second, and ``mfu`` on a GPU
            whose peak is known.
        """
        anchored = self._training.gram is not None
        rate = self._rate.of_step(extra_flops=self._anchor_flops if anchored else 0.0)
        return self._feed.of_step(step) | rate

    def begin_step(self) -> None:
        """Start the clocks anew."""
        self._feed.begin_step()
        self._rate.begin_step()
