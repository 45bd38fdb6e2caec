"""What a slide pretraining run will take, from its recipe and its bags, before any step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch

from anlage.models.without_weights import without_weights
from anlage.training.precision import autocast_dtype
from anlage.training.slide_pretraining.architecture import SlideArchitecture
from anlage.training.slide_pretraining.config import Decoder, SlidePretrainConfig
from anlage.training.slide_pretraining.networks import SlideAutoencoder

FLOAT32, FLOAT16 = 4, 2  # bytes
COPIES = 4  # of each weight: itself, its gradient, two moments
GATHERED = 4  # query, key, value and output of each row of a branch


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidePlan:
    """What a run will take. Everything is computed from shapes; nothing was measured.

    Attributes:
        encoder_parameters: Parameters of the slide encoder.
        decoder_parameters: Parameters of the decoder.
        n_bags: Bags that are trained on.
        n_held_out: Bags that the error is measured on.
        n_tiles: Tiles of the bags that are trained on.
        largest: Tiles of the largest of them.
        epochs: How often each is drawn.
        steps: Optimiser steps.
        batch_size: Bags a step.
        part_size: Bags that go through the network together on one device.
        tiles_per_step: Tiles of a step on average, after crop and ``max_tiles``.
        hidden_share: Share of them that the encoder does not see.
        weight_bytes: Weights, gradients and moments.
        batch_bytes: Tile embeddings of a part of the largest bags, whole and cropped.
        activation_bytes: What the network keeps for the backward pass of such a part.
        checkpoint_bytes: Size of one checkpoint.
    """

    encoder_parameters: int
    decoder_parameters: int
    n_bags: int
    n_held_out: int
    n_tiles: int
    largest: int
    epochs: int
    steps: int
    batch_size: int
    part_size: int
    tiles_per_step: float
    hidden_share: float
    weight_bytes: int
    batch_bytes: float
    activation_bytes: float
    checkpoint_bytes: int

    @property
    def memory_bytes(self) -> float:
        """What lies on a device together."""
        return self.weight_bytes + self.batch_bytes + self.activation_bytes


def slide_plan_of(
    config: SlidePretrainConfig,
    n_tiles: Sequence[int],
    *,
    input_width: int,
    n_held_out: int,
    device: torch.device,
    n_ranks: int = 1,
) -> SlidePlan:
    """What a run will take.

    Left out of the memory: what lives within one operation.

    Args:
        config: The recipe.
        n_tiles: Tiles of each bag that is trained on; at least one.
        input_width: Width of the tile embeddings.
        n_held_out: Bags that are held out.
        device: Where it will run: it decides what is kept in bf16.
        n_ranks: Processes that share each step.
    """
    with without_weights():
        network = SlideAutoencoder(config, input_width=input_width)
    encoder, decoder = (
        sum(p.numel() for p in part.parameters()) for part in (network.encoder, network.decoder)
    )
    part_size = max(config.batch_size // (n_ranks * config.accumulate), 1)
    most = config.bags.max_tiles
    taken = [n if most is None else min(n, most) for n in _cropped(config, n_tiles)]
    largest = sorted(taken, reverse=True)[:part_size]
    rows = ceil(sum(largest) * part_size / len(largest))
    is_half = autocast_dtype(config.precision, device) is not None
    kept = {"is_half": is_half, "recompute": config.engine.recompute}
    seen = rows * (1 - config.mask_ratio)
    activations = activation_bytes(config.model, config.model, n_rows=seen + part_size, **kept)
    activations += activation_bytes(config.decoder, config.model, n_rows=rows + part_size, **kept)
    hidden = config.mask_ratio * rows * input_width * FLOAT32
    return SlidePlan(
        encoder_parameters=encoder,
        decoder_parameters=decoder,
        n_bags=len(n_tiles),
        n_held_out=n_held_out,
        n_tiles=sum(n_tiles),
        largest=max(n_tiles),
        epochs=config.epochs,
        steps=config.steps(len(n_tiles)),
        batch_size=config.batch_size,
        part_size=part_size,
        tiles_per_step=config.batch_size * sum(taken) / len(taken),
        hidden_share=config.mask_ratio,
        weight_bytes=COPIES * FLOAT32 * (encoder + decoder),
        batch_bytes=rows * input_width * FLOAT32,
        activation_bytes=activations + 3 * hidden,  # prediction, target and their difference
        checkpoint_bytes=(COPIES - 1) * FLOAT32 * (encoder + decoder),
    )


def activation_bytes(
    blocks: SlideArchitecture | Decoder,
    branches: SlideArchitecture,
    *,
    n_rows: float,
    is_half: bool,
    recompute: bool,
) -> float:
    """What LongNet blocks keep for the backward pass.

    Of each row a block keeps what enters and leaves its norms and linear layers, and each branch
    of attention its share of queries, keys, values and outputs.

    Args:
        blocks: Width, depth and MLP.
        branches: Segments and dilations.
        n_rows: Tiles and slide tokens.
        is_half: Whether linear layers and attention work in two bytes a value.
        recompute: Whether only what enters each block is kept, and one block in full.
    """
    width, hidden = blocks.width, blocks.width * blocks.mlp_ratio
    value = FLOAT16 if is_half else FLOAT32
    gathered = GATHERED * sum(1 / dilation for dilation in branches.dilations) * width
    exact = 3 * width + hidden  # what enters the four norms, in float32
    rounded = (1 + 3 + 1) * width + gathered + width + 2 * hidden
    of_block = n_rows * (exact * FLOAT32 + rounded * value)
    if not recompute:
        return blocks.depth * of_block
    return blocks.depth * n_rows * width * FLOAT32 + of_block


def slide_plan_lines(plan: SlidePlan) -> list[str]:
    """The plan in words, a line each."""
    gib = 2**30
    return [
        f"slide encoder: {plan.encoder_parameters / 1e6:,.1f} M parameters; decoder "
        f"{plan.decoder_parameters / 1e6:,.1f} M, not kept",
        f"bags: {plan.n_bags:,} to train on ({plan.n_tiles:,} tiles, the largest "
        f"{plan.largest:,}), {plan.n_held_out:,} held out",
        f"steps: {plan.steps:,} of {plan.batch_size:,} bags, {plan.epochs} epochs; parts of "
        f"{plan.part_size:,} bags on a device",
        f"tokens: {plan.tiles_per_step:,.0f} tiles a step, of which the encoder sees "
        f"{(1 - plan.hidden_share) * plan.tiles_per_step:,.0f}",
        f"memory of a device, about: {plan.memory_bytes / gib:,.2f} GiB (weights "
        f"{plan.weight_bytes / gib:,.2f}, largest part of a step {plan.batch_bytes / gib:,.2f}, "
        f"activations {plan.activation_bytes / gib:,.2f}), computed from shapes",
        f"checkpoint: {plan.checkpoint_bytes / 2**20:,.1f} MiB",
    ]


def _cropped(config: SlidePretrainConfig, n_tiles: Sequence[int]) -> list[int]:
    """Tiles that a window keeps, about: its share of the area."""
    share = config.views.crop**2
    return [max(2, ceil(share * n)) for n in n_tiles]
