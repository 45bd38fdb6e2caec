"""Slide pretraining on the ranks that this is started on; the test compares what comes out.

With ``poison`` one bag of the second rank becomes NaN in the third step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from slide_runs import micro_slide_config

from anlage.bags.slide_labels import SlideLabels
from anlage.distributed import process_group
from anlage.errors import TrainingError
from anlage.training.slide_pretraining import pretrain as slide_pretrain

torch.set_num_threads(1)


def poison(rank: int, before: dict[str, torch.Tensor]) -> None:
    """Have the third step meet a NaN on rank 1, and note the weights before it."""
    take = slide_pretrain.slide_step

    def poisoned(training, parts, **how):
        read = list(parts)
        before.update({n: p.detach().clone() for n, p in training.network.named_parameters()})
        before["now"] = training.network
        if training.step == 2 and rank == 1:
            read[0].features_TI[0, 0] = float("nan")
        return take(training, read, **how)

    slide_pretrain.slide_step = poisoned


def main() -> None:
    bags, table, run, what = (*map(Path, sys.argv[1:4]), sys.argv[4])
    config = micro_slide_config(*json.loads(sys.argv[5]))
    with process_group("cpu", timeout_s=60) as ranks:
        before: dict[str, torch.Tensor] = {}
        if what == "poison":
            poison(ranks.rank, before)
        try:
            slide_pretrain.pretrain_slides(
                config, bags, run, device="cpu", table=SlideLabels.open(table), ranks=ranks
            )
        except TrainingError as error:
            sys.stdout.write(str(error))
            network = before.pop("now")
            now = dict(network.named_parameters())
            assert all(torch.equal(now[name], held) for name, held in before.items())


if __name__ == "__main__":
    main()
