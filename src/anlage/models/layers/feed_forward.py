"""The feed-forward half of a block: a GELU MLP or SwiGLU.

Shape suffixes: T packed tokens, D width, F hidden width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from anlage.models.layers.recompute import linear_after, with_gain


class GeluMlp(nn.Module):
    """Two linear layers with a GELU between them.

    Args:
        width: Token width D.
        hidden: Hidden width F.
    """

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(
        self, tokens_TD: Tensor, *, between: tuple[nn.Module, nn.Module] | None = None
    ) -> Tensor:
        """Transform each token by itself, (T, D) -> (T, D).

        Args:
            tokens_TD: (T, D) tokens.
            between: A norm that runs before and a LayerScale that runs after, taken in here so
                that little is kept for the backward pass; None for neither.

        Returns:
            (T, D) tokens.
        """
        if between is None:
            out: Tensor = self.fc2(functional.gelu(self.fc1(tokens_TD)))
            return out
        norm, gain = between
        hidden_TF = linear_after(norm, tokens_TD, layer=self.fc1)
        return linear_after(functional.gelu, hidden_TF, layer=with_gain(self.fc2, gain))


class SwiGlu(nn.Module):
    """Gated linear unit: ``fc2(silu(gate) * value)``, gate and value from one linear layer.

    The hidden width is two thirds of ``hidden``, rounded up to a multiple of 8, so that it has
    about the parameters of a ``GeluMlp`` of the same ``hidden``.

    Args:
        width: Token width D.
        hidden: Hidden width F of the MLP it replaces.

    Source: Shazeer 2020, GLU variants, arXiv:2002.05202. Rounding as DINOv2; ``fc1`` holds the
        gate first, as timm's ``SwiGLUPacked`` (``w12`` in DINOv2).
    """

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        gated = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.fc1 = nn.Linear(width, 2 * gated)
        self.fc2 = nn.Linear(gated, width)

    def forward(
        self, tokens_TD: Tensor, *, between: tuple[nn.Module, nn.Module] | None = None
    ) -> Tensor:
        """Transform each token by itself, (T, D) -> (T, D).

        Args:
            tokens_TD: (T, D) tokens.
            between: A norm that runs before and a LayerScale that runs after, taken in here so
                that little is kept for the backward pass; None for neither.

        Returns:
            (T, D) tokens.
        """
        if between is None:
            out: Tensor = self.fc2(_gated(self.fc1(tokens_TD)))
            return out
        norm, gain = between
        hidden_TF = linear_after(norm, tokens_TD, layer=self.fc1)
        return linear_after(_gated, hidden_TF, layer=with_gain(self.fc2, gain))


def _gated(hidden_TF: Tensor) -> Tensor:
    gate_TF, value_TF = hidden_TF.chunk(2, dim=-1)
    return functional.silu(gate_TF) * value_TF
