"""A run in which one tile of the second rank becomes NaN; every rank has to stop and say so.

``RUN/student.pt`` holds the student's weights then, whole.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from anlage.distributed import process_group
from anlage.errors import TrainingError
from anlage.training import step_views, tile_pretrain
from anlage.training.parallel import whole
from micro_recipe import micro_config

torch.set_num_threads(1)


def main() -> None:
    catalogue, run, overrides = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    cut = step_views.views

    def poisoned(pixels, g, *, spec, seed):
        made = cut(pixels, g, spec=spec, seed=seed)
        if 10 in g.tolist():  # of the third step's tiles 8 to 11, the first of rank 1
            made.local_crops[0] = float("nan")
        return made

    step_views.views = poisoned
    with process_group("cpu", timeout_s=60) as ranks:
        config = micro_config("steps=5", "checkpoint_every=2", *overrides)
        training = {}
        launch = tile_pretrain.launch_step

        def launched(state, batch, *, wants_stop):
            training["state"] = state
            training["before"] = [p.detach().clone() for p in state.student.parameters()]
            return launch(state, batch, wants_stop=wants_stop)

        tile_pretrain.launch_step = launched
        try:
            tile_pretrain.pretrain_tiles(config, catalogue, run, device="cpu", ranks=ranks)
        except TrainingError as error:
            sys.stdout.write(str(error))
        student = {n: whole(t.detach()) for n, t in training["state"].student.state_dict().items()}
        if ranks.is_main:
            torch.save(student, run / "student.pt")
        pairs = zip(training["before"], training["state"].student.parameters(), strict=True)
        assert all(torch.equal(before, now.detach()) for before, now in pairs)


if __name__ == "__main__":
    main()
