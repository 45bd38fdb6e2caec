"""Attention over the tiles of one slide: of a slide encoder's slide token, and of a pooling.

Shape suffixes: L tiles of the slide, D width of their embeddings, R rows (the slide token and the
tiles, R = L + 1), H heads, A attention branches of a pooling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from anlage.explain.slide_scores import TileScore
from anlage.models.dilated_attention import DilatedPlan, attention_of_token
from anlage.models.layers.long_net_block import LongNetBlock
from anlage.models.slide_encoder import SlideEncoder

NAME_CHARACTERS = 40  # of a class in the name of a file


class NotedBlock:
    """A context in which one block of a slide encoder tells where the slide token looks.

    Args:
        network: In evaluation mode; one bag is to pass through it.
        layer: Which block, from 1.

    Attributes:
        share_HR: After the pass, what ``slide_token_attention`` gives.

    Raises:
        ValueError: If there is no such block.
    """

    share_HR: Tensor

    def __init__(self, network: SlideEncoder, layer: int) -> None:
        if not 1 <= layer <= network.depth:
            msg = f"explain-slide: needs a layer from 1 to {network.depth}; got {layer}."
            raise ValueError(msg)
        block = network.blocks[layer - 1]
        assert isinstance(block, LongNetBlock)
        self.layer, self._block = layer, block

    def __enter__(self) -> Self:
        self._hook = self._block.register_forward_pre_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _note(self, block: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(block, LongNetBlock), "it was put on no other"
        self.share_HR = slide_token_attention(block, given[0], given[1])


def slide_token_attention(block: LongNetBlock, tokens_RD: Tensor, plan: DilatedPlan) -> Tensor:
    """How the slide token spreads its attention in one block, by head, branches merged.

    The token is the first of its sequence, so in each branch it is in the first segment and sees
    no other; and in a branch of dilation r only the heads that begin at the first token of a
    segment hold it. The tiles that a head does not see have weight 0, by the architecture and not
    by what is on them.

    Args:
        block: The block.
        tokens_RD: (R, D) what it is given of one bag, the slide token first.
        plan: Made for this bag.

    Returns:
        (H, R) float32, the slide token's weight on itself first. A row sums to 1, with zeros that
        fill segments too: the first segment is full, and heads that hold its first token lack none.

    Source: Ding et al. 2023, LongNet, arXiv:2307.02486, equations 9 and 10, of one query.
    """
    n_heads, qkv = block.attn.n_heads, block.attn.qkv
    n = 2 * tokens_RD.shape[1]  # values are not needed
    with torch.no_grad():
        normal_RD = block.norm1(tokens_RD)
        both_RF = functional.linear(normal_RD, qkv.weight[:n], qkv.bias[:n])
        query_RHE, key_RHE = both_RF.view(len(both_RF), 2, n_heads, -1).unbind(1)
        return attention_of_token(query_RHE, key_RHE, plan, token=0).float()


def slide_token_scores(share_HR: Tensor, *, layer: int) -> Iterator[TileScore]:
    """The mean over the heads, then each head: their weights on the tiles.

    Args:
        share_HR: As ``slide_token_attention`` gives it.
        layer: Of which block.
    """
    weight_HL = share_HR[:, 1:].cpu().numpy()
    of = f"Slide token's attention, layer {layer}"
    yield TileScore(
        name=f"layer_{layer:02d}_mean", title=f"{of}, mean of heads", weight_L=weight_HL.mean(0)
    )
    for head, weight_L in enumerate(weight_HL):
        yield TileScore(
            name=f"layer_{layer:02d}_head_{head:02d}",
            title=f"{of}, head {head}",
            weight_L=weight_L,
            is_of_head=True,
        )


def pooling_scores(attention_LA: Tensor, *, classes: Sequence[str] = ()) -> Iterator[TileScore]:
    """One score for each branch of a pooling's attention.

    Args:
        attention_LA: (L, A) weights, each branch summing to 1 over the tiles.
        classes: Names of the outputs; where there are as many as branches, these are called by
            them behind their numbers, since names such as HER2- and HER2+ share their letters.
    """
    weight_LA: NDArray[np.float32] = attention_LA.detach().float().cpu().numpy()
    n_branches = weight_LA.shape[1]
    for branch in range(n_branches):
        name, title = "attention", "Pooling's attention"
        if n_branches > 1:
            of = classes[branch] if len(classes) == n_branches else str(branch)
            spelt = as_name(of) if len(classes) == n_branches else ""
            name = f"attention_{branch}_{spelt}".rstrip("_")
            title = f"Pooling's attention for {of}"
        yield TileScore(name=name, title=title, weight_L=weight_LA[:, branch].copy())


def as_name(text: str) -> str:
    """Text as part of a column's or file's name: its Latin letters and digits, 40 at most."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()[:NAME_CHARACTERS].strip("_")
