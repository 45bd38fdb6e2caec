"""Sequences as torchscale has them where the dilation does not divide the segment.

Shape suffixes: S segments of a bag, H heads, K places of a segment that one head sees, G sequences
(S * H, without those that give nothing), O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from anlage.models.dilated_groups import GatheredGroup


def misplaces(length: int, segment: int, dilation: int) -> bool:
    """Whether torchscale gives tokens of a bag the outputs of other tokens."""
    return length > segment and segment % dilation > 0


def misplaced_groups(
    first: int,
    length: int,
    *,
    segment: int,
    dilation: int,
    phase_H: Tensor,
    most_sequences: int,
    device: torch.device,
) -> Iterator[GatheredGroup]:
    """Sequences of one bag, whose outputs go where torchscale puts them.

    It fills each segment with zeros to a multiple of the dilation, attends, and then lays the
    filled segments one after the other without taking the filling out. So segment j gives its
    outputs to tokens from j * ceil(segment / dilation) * dilation on, not from j * segment on:
    tokens after the first segment have the outputs of others, some of queries of zeros, and the
    last ones of the bag are lost. A query of zeros that sees one key gives nothing.

    Args:
        first: First token of the bag.
        length: Its tokens.
        segment: Tokens of a segment.
        dilation: Step r between the tokens that one head sees.
        phase_H: (H,) int64 first token of each head.
        most_sequences: Of a group.
        device: Where the tokens are.

    Source: ``DilatedAttention.sparse_to_dense`` and ``scattering`` of torchscale, as run.
    """
    n_segments, n_places, n_heads = -(-length // segment), -(-segment // dilation), len(phase_H)
    number_S11 = torch.arange(n_segments)[:, None, None]
    offset_HK = phase_H[:, None] + dilation * torch.arange(n_places)
    token_SHK = number_S11 * segment + offset_HK
    is_token_SHK = (offset_HK < segment) & (token_SHK < length)
    to_SHK = number_S11 * n_places * dilation + offset_HK
    is_put_SHK = (to_SHK < length) & (is_token_SHK | torch.tensor(n_places > 1))
    head_SHK = torch.arange(n_heads)[:, None].expand_as(token_SHK)
    gives_SH = is_put_SHK.any(dim=2)
    query_GK = ((first + token_SHK.where(is_token_SHK, 0)) * 3 * n_heads + head_SHK)[gives_SH]
    row_GK = ((first + to_SHK) * n_heads + head_SHK)[gives_SH]
    of_all = (query_GK, row_GK, is_token_SHK[gives_SH], is_put_SHK[gives_SH])
    for query, row, is_token, is_put in zip(
        *(torch.split(part, most_sequences) for part in of_all), strict=True
    ):
        yield GatheredGroup(
            query_GN=query.to(device),
            token_M=is_token.flatten().nonzero().flatten().to(device),
            row_O=row[is_put].to(device),
            place_O=is_put.flatten().nonzero().flatten().to(device),
            bias_GN=None,
            is_token_GN=is_token.to(device),
            zeros=None,
        )
