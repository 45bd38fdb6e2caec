"""An encoder that notes what its process writes, and dies where it is told to.

Workers load it by its path. Beside a copy of this file lie ``journal`` (a line for each bag begun:
slide and process), ``pause_s`` (seconds a batch takes) and ``deadly`` (a slide that kills whoever
opens it), the latter two if they are there.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from anlage.embedding import bag_target
from anlage.slides.catalogue import Catalogue

HERE = Path(__file__).parent


def said(name: str) -> str:
    path = HERE / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


class ChannelMoments(nn.Module):
    """Mean and deviation of each channel."""

    tile_px, mpp, mean, std, width = 32, 1.0, (0.7, 0.5, 0.6), (0.2, 0.25, 0.3), 6

    def forward(self, image_B3SS: Tensor) -> Tensor:
        time.sleep(float(said("pause_s") or 0))
        return torch.cat([image_B3SS.mean((2, 3)), image_B3SS.std((2, 3))], dim=1)


def encoder() -> ChannelMoments:
    write, open_slide = bag_target.write_bag, Catalogue.open_slide

    def told(place, bag):
        with (HERE / "journal").open("a", encoding="utf-8") as journal:
            journal.write(f"{bag.slide_id} {os.getpid()}\n")
        write(place, bag)

    def deadly(self, slide_id):
        if slide_id == said("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        return open_slide(self, slide_id)

    bag_target.write_bag, Catalogue.open_slide = told, deadly
    return ChannelMoments()
