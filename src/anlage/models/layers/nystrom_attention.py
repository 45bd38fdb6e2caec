"""Nystrom attention: softmax attention through a few landmarks, linear in the tokens.

Shape suffixes: S tokens of one sequence, D width, H heads, E width of a head, M landmarks, I tokens
of a segment.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

LandmarkPad = Literal["zero", "none"]


class NystromAttention(nn.Module):
    """Self-attention of one sequence, approximated by landmarks that are means over segments.

        softmax(Q L_k^T) pinv(softmax(L_q L_k^T)) softmax(L_q K^T) V + conv(V)

    ``zero`` pads the sequence at its front to a multiple of the landmarks, and the zeros take part
    in the softmax, as the published TransMIL does: a short sequence is then mostly zeros. ``none``
    has segments whose lengths differ by one at most, and no more landmarks than tokens.

    Args:
        width: Width D.
        n_heads: Heads H; must divide ``width``.
        n_landmarks: Landmarks M.
        pinv_steps: Steps of the iteration to the Moore-Penrose inverse.
        conv_tokens: Kernel of the convolution over each head's values along the sequence, odd.
        pad: What is done where M does not divide the sequence.
        dropout: Of what comes out while training, in [0, 1).

    Raises:
        ValueError: If the sizes do not fit each other.

    Source: Xiong et al. 2021, Nystromformer, arXiv:2102.03902, equations 13 and 14. The inverse
        starts from the largest row and column sum of all heads, as implementations in use do.
    """

    def __init__(
        self,
        *,
        width: int,
        n_heads: int = 8,
        n_landmarks: int = 256,
        pinv_steps: int = 6,
        conv_tokens: int = 33,
        pad: LandmarkPad = "zero",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_sizes(
            width=width,
            n_heads=n_heads,
            n_landmarks=n_landmarks,
            pinv_steps=pinv_steps,
            conv_tokens=conv_tokens,
        )
        if pad not in {"zero", "none"}:
            msg = f"NystromAttention: needs pad 'zero' or 'none'; got {pad!r}. Choose one of them."
            raise ValueError(msg)
        self.n_heads, self.n_landmarks, self.pinv_steps = n_heads, n_landmarks, pinv_steps
        self.pad = pad
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.value_conv = nn.Conv1d(
            n_heads, n_heads, conv_tokens, padding=conv_tokens // 2, groups=n_heads, bias=False
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_SD: Tensor) -> Tensor:
        """(S, D) -> (S, D); the attention itself in float32 or wider whatever autocast says."""
        n_tokens = len(tokens_SD)
        if self.pad == "zero":
            n_zeros = -n_tokens % self.n_landmarks
            tokens_SD = functional.pad(tokens_SD, (0, 0, n_zeros, 0))
        qkv = self.qkv(tokens_SD)
        qkv = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
        with torch.autocast(tokens_SD.device.type, enabled=False):
            merged_SD = self._attend(*qkv.chunk(3, dim=-1))
        merged_SD = merged_SD[-n_tokens:]
        out_SD: Tensor = self.dropout(self.proj(merged_SD))
        return out_SD

    def _attend(self, query_SD: Tensor, key_SD: Tensor, value_SD: Tensor) -> Tensor:
        query_HSE, key_HSE, value_HSE = (
            part.view(len(part), self.n_heads, -1).transpose(0, 1)
            for part in (query_SD, key_SD, value_SD)
        )
        query_HSE = query_HSE * query_HSE.shape[-1] ** -0.5
        n_landmarks = min(self.n_landmarks, query_HSE.shape[1])
        query_HME, key_HME = (segment_means(part, n_landmarks) for part in (query_HSE, key_HSE))
        to_landmarks_HSM = (query_HSE @ key_HME.mT).softmax(dim=-1)
        inverse_HMM = moore_penrose((query_HME @ key_HME.mT).softmax(dim=-1), self.pinv_steps)
        gathered_HME = (query_HME @ key_HSE.mT).softmax(dim=-1) @ value_HSE
        attended_HSE = to_landmarks_HSM @ (inverse_HMM @ gathered_HME)
        mixed_EHS = functional.conv1d(
            value_HSE.permute(2, 0, 1),
            self.value_conv.weight.to(value_HSE.dtype),
            padding=self.value_conv.kernel_size[0] // 2,
            groups=self.n_heads,
        )
        merged_HSE: Tensor = attended_HSE + mixed_EHS.permute(1, 2, 0)
        return merged_HSE.transpose(0, 1).flatten(1)


def segment_means(tokens_HSE: Tensor, n_segments: int) -> Tensor:
    """Means over segments of a sequence whose lengths differ by one at most.

    Args:
        tokens_HSE: (H, S, E).
        n_segments: M, 1 to S.

    Returns:
        (H, M, E).
    """
    device, n_tokens = tokens_HSE.device, tokens_HSE.shape[1]
    edge = torch.arange(n_segments + 1, device=device) * n_tokens // n_segments
    length_M = edge.diff()
    step_I = torch.arange(-(-n_tokens // n_segments), device=device)
    is_token_MI = step_I < length_M[:, None]
    place_MI = (edge[:-1, None] + step_I).clamp(max=n_tokens - 1)
    taken_HMIE = tokens_HSE[:, place_MI] * is_token_MI[..., None]
    return taken_HMIE.sum(dim=2) / length_M[:, None]


def moore_penrose(matrix_HMM: Tensor, n_steps: int) -> Tensor:
    """Approximate Moore-Penrose inverses of square matrices with positive entries, (H, M, M).

        Z_0 = A^T / (|A|_1 |A|_inf),   Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4

    Args:
        matrix_HMM: (H, M, M) matrices A; the norms are the largest over all of them.
        n_steps: Steps, 1 or more; the error falls with their cube.

    Source: Razavi et al. 2014, as in Xiong et al. 2021, arXiv:2102.03902, equation 11.
    """
    rows, columns = matrix_HMM.sum(dim=-1).max(), matrix_HMM.sum(dim=-2).max()
    inverse_HMM = matrix_HMM.mT / (rows * columns)
    one_MM = torch.eye(matrix_HMM.shape[-1], device=matrix_HMM.device, dtype=matrix_HMM.dtype)
    for _ in range(n_steps):
        product_HMM = matrix_HMM @ inverse_HMM
        inner_HMM = 15 * one_MM - product_HMM @ (7 * one_MM - product_HMM)
        inverse_HMM = inverse_HMM @ (13 * one_MM - product_HMM @ inner_HMM) / 4
    return inverse_HMM


def _check_sizes(*, width: int, n_heads: int, conv_tokens: int, **others: int) -> None:
    least = min(width, n_heads, conv_tokens, *others.values())
    if least < 1 or width % n_heads or conv_tokens % 2 == 0:
        given = ", ".join(f"{name}={size}" for name, size in others.items())
        msg = (
            "NystromAttention: needs sizes of 1 or more, heads that divide the width and an odd "
            f"kernel; got width={width}, n_heads={n_heads}, conv_tokens={conv_tokens}, {given}. "
            "TransMIL has 512, 8, 33, 256 landmarks and 6 steps."
        )
        raise ValueError(msg)
