"""The machines and slides that a run is planned for."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import yaml
from pydantic import PositiveFloat, PositiveInt

from anlage.errors import RecipeError
from anlage.recipe import checked
from anlage.training.section import Section

OPTION = "--cluster"


class Cluster(Section):
    """The machines and slides that a run is planned for.

    Attributes:
        gpus: GPUs of all machines; they must divide the batch.
        gpus_per_machine: Those of one.
        network_gbit: What one machine sends to others and receives, Gbit/s, all its adapters.
        loader_rate: Tiles a second that one thread of the loader reads, measured by
            ``anlage bench io``; None for the figure of docs/benchmarks.md.
        n_slides: Slides that tiles are drawn from; None where that is not known.
        slide_gb: Mean size of a slide's file, GB.
        slide_mpp: Resolution of the slides' finest level, µm per pixel; coarser levels are 4, 16
            and 64 times smaller, as in Aperio's files.
    """

    gpus: PositiveInt = 8
    gpus_per_machine: PositiveInt = 8
    network_gbit: PositiveFloat = 400.0
    loader_rate: PositiveFloat | None = None
    n_slides: PositiveInt | None = None
    slide_gb: PositiveFloat = 1.2
    slide_mpp: PositiveFloat = 0.25

    @property
    def machines(self) -> int:
        """How many there are."""
        return ceil(self.gpus / self.gpus_per_machine)


def cluster_of(settings: Sequence[str], *, n_slides: int | None = None) -> Cluster:
    """The cluster that is asked for on the command line.

    Args:
        settings: ``key=value`` each, such as ``gpus=64``.
        n_slides: Slides of the catalogue, unless a setting says otherwise.

    Raises:
        RecipeError: If a setting is unknown, or its value is unusable.
    """
    told: dict[str, Any] = {} if n_slides is None else {"n_slides": n_slides}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            known = ", ".join(Cluster.model_fields)
            raise RecipeError(OPTION, f"needs key=value; got {setting!r}. Keys are {known}.")
        told[key] = yaml.safe_load(value)
    return checked(told, Cluster, name=OPTION)
