"""Bags in which hidden tiles can be told from visible ones, and a recipe that runs in seconds."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from some_bags import ATTRIBUTES

from anlage.bags.bag import Bag
from anlage.bags.store import bag_place, write_bag
from anlage.recipe import load_recipe
from anlage.training.slide_pretraining import pretrain as slide_pretrain
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.networks import MaskedBags
from anlage.training.slide_pretraining.state import SlideTraining

WIDTH = 12
MICRO = (
    *("epochs=3", "batch_size=4", "checkpoint_every=2", "optimizer.warmup_epochs=1"),
    *("model.width=16", "model.depth=2", "model.n_heads=2", "model.segments=[8, 64]"),
    *("model.dilations=[1, 2]", "model.dropout=0.1", "model.stochastic_depth=0.2"),
    *("decoder.width=8", "decoder.depth=1", "decoder.n_heads=2", "bags.max_tiles=60"),
    *("held_out.share=0.2", "watch.every=2", "watch.neighbours=2", "watch.probe_steps=20"),
)


def micro_slide_config(*overrides: str) -> SlidePretrainConfig:
    """The tiny recipe, smaller: every part of it, seconds a run."""
    return load_recipe("tiny-slide", SlidePretrainConfig, overrides=(*MICRO, *overrides))


def striped_bag(slide_id: str, *, seed: int, edge: int = 9, width: int = WIDTH, shift: float = 0.0):
    """A bag whose tiles change along its rows: what is hidden follows from what is seen."""
    draw = np.random.default_rng(seed)
    cells = np.array([(x, y) for y in range(edge) for x in range(edge)])
    waves = draw.standard_normal((2, width))
    phase = 2 * np.pi * cells[:, 0] / 6
    features = np.sin(phase)[:, None] * waves[0] + np.cos(phase)[:, None] * waves[1]
    features += 0.1 * draw.standard_normal(features.shape) + shift * np.eye(width)[0]
    pitch_px = 256 * 0.5 / ATTRIBUTES.slide_mpp
    made = replace(
        ATTRIBUTES, tile_px=256, stride_px=256, slide_width_px=9000, slide_height_px=9000
    )
    corners = np.floor(cells * pitch_px).astype(np.int64)
    return Bag(slide_id, features.astype(np.float16), corners, made)


def write_bags(folder: Path, n_slides: int = 10) -> Path:
    """Bags of slides ``s0``, ``s1`` ..., of other sizes; odd ones are shifted, as a label tells."""
    folder.mkdir(exist_ok=True)
    for number in range(n_slides):
        bag = striped_bag(f"s{number}", seed=number, edge=6 + number % 4, shift=3.0 * (number % 2))
        write_bag(bag_place(folder, bag.slide_id), bag)
    return folder


def write_table(path: Path, n_slides: int = 10) -> Path:
    """A table of those slides: two of each patient, a label, and a split by patient."""
    rows = ["slide_id,patient_id,shifted,split"]
    for number in range(n_slides):
        patient = number // 4 * 2 + number % 2  # two slides of a patient have one label
        split = "test" if patient % 4 > 1 else "train"
        rows.append(f"s{number},p{patient},{'yes' if number % 2 else 'no'},{split}")
    path.write_text("\n".join(rows) + "\n")
    return path


def before_slide_steps(
    patch: pytest.MonkeyPatch, act: Callable[[SlideTraining, list[MaskedBags]], None]
) -> None:
    """Call ``act`` with the run and the step's parts before each step, while ``patch`` lasts."""
    take = slide_pretrain.slide_step

    def acted(training, parts, **how):
        read = list(parts)
        act(training, read)
        return take(training, read, **how)

    patch.setattr(slide_pretrain, "slide_step", acted)


@contextmanager
def slides_stopped_after(steps: int) -> Iterator[None]:
    """A real SIGINT arrives in the step that is this one."""

    def interrupt(training: SlideTraining, _: list[MaskedBags]) -> None:
        if training.step == steps - 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        before_slide_steps(patch, interrupt)
        yield
