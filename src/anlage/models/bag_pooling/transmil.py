"""TransMIL: a class token that attends to all tiles, and to their order on a square.

Shape suffixes: T tiles of all bags, D width of the features, W width, S tokens of one bag (class
token and tiles), L tiles of one bag.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from anlage.models.bag_pooling.segments import BagPooling, PooledBags, refuse_bags, wide
from anlage.models.bag_pooling.settings import refuse_dropout, refuse_sizes
from anlage.models.layers.nystrom_attention import LandmarkPad, NystromAttention


class PyramidPositions(nn.Module):
    """Positions by convolution: tiles on a square, through kernels of 7, 5 and 3 and themselves.

    The three depthwise kernels and the identity are added up to one of 7 x 7 first, which is the
    same by linearity.

    Args:
        width: Width W.

    Source: Shao et al. 2021, TransMIL, arXiv:2106.00908, algorithm 3 (PPEG).
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.conv_7 = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.conv_5 = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.conv_3 = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens_SW: Tensor, *, edge: int) -> Tensor:
        """(S, W) -> (S, W), S = 1 + edge²; the class token, which comes first, passes through."""
        width = tokens_SW.shape[1]
        kernel_W177 = self.conv_7.weight + functional.pad(self.conv_5.weight, [1] * 4)
        kernel_W177 = kernel_W177 + functional.pad(self.conv_3.weight + self.identity(), [2] * 4)
        biases = [conv.bias for conv in (self.conv_7, self.conv_5, self.conv_3)]
        bias_W = torch.stack([bias_W for bias_W in biases if bias_W is not None]).sum(dim=0)
        square_1WHW = tokens_SW[1:].T.reshape(1, width, edge, edge)
        placed_1WHW = functional.conv2d(square_1WHW, kernel_W177, bias_W, padding=3, groups=width)
        return torch.cat([tokens_SW[:1], placed_1WHW[0].flatten(1).T])

    def identity(self) -> Tensor:
        """(3, 3) kernel that changes nothing."""
        return functional.pad(self.conv_3.weight.new_ones(1, 1), [1] * 4)


class TransMilPooling(BagPooling):
    """A bag as a sequence: one layer, a class token, two Nystrom attention blocks, its class token.

    Tiles are laid row by row on the smallest square that holds them, in the order they come, with
    the first ones once more at its end. Each bag takes its own pass.

    Args:
        input_width: Width D of the features.
        width: Width W of the tokens.
        n_heads: Attention heads; must divide ``width``.
        n_landmarks: Landmarks of the attention.
        pinv_steps: Steps to the Moore-Penrose inverse.
        landmark_pad: ``zero`` as published, or ``none``: see ``NystromAttention``.
        dropout: After each attention while training, in [0, 1).

    Raises:
        ValueError: If the sizes do not fit each other or the dropout is not in [0, 1).

    Source: Shao et al. 2021, TransMIL, NeurIPS, arXiv:2106.00908.
    """

    def __init__(
        self,
        *,
        input_width: int,
        width: int = 512,
        n_heads: int = 8,
        n_landmarks: int = 256,
        pinv_steps: int = 6,
        landmark_pad: LandmarkPad = "zero",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        refuse_sizes("TransMilPooling", input_width=input_width, width=width)
        refuse_dropout("TransMilPooling", dropout)
        self.input_width, self.out_width = input_width, width
        self.embed = nn.Sequential(nn.Linear(input_width, width), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attentions = nn.ModuleList(
            NystromAttention(
                width=width,
                n_heads=n_heads,
                n_landmarks=n_landmarks,
                pinv_steps=pinv_steps,
                pad=landmark_pad,
                dropout=dropout,
            )
            for _ in range(2)
        )
        self.positions = PyramidPositions(width=width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, features_TD: Tensor, lengths: Sequence[int], *, cell_T2: Tensor | None = None
    ) -> PooledBags:
        """Class token of each bag.

        Args:
            features_TD: (T, D) features of the tiles of all bags, in an order that says something
                (row by row).
            lengths: Tiles of each bag, 1 or more each; they sum to T.
            cell_T2: Not used: the published model looks at the order alone.

        Returns:
            Embedding (B, W) float32, and no attention: a Nystrom row is not a softmax.

        Raises:
            ValueError: If the features or lengths do not fit.
        """
        del cell_T2
        refuse_bags("TransMilPooling", features_TD, lengths, width=self.input_width)
        bags = torch.split(self.embed(features_TD), list(lengths))
        return PooledBags(wide(torch.cat([self._one_bag(bag_LW) for bag_LW in bags])), None)

    def _one_bag(self, bag_LW: Tensor) -> Tensor:
        edge = math.isqrt(len(bag_LW) - 1) + 1
        again_LW = bag_LW[: edge**2 - len(bag_LW)]
        tokens_SW = torch.cat([self.class_token.to(bag_LW.dtype), bag_LW, again_LW])
        tokens_SW = tokens_SW + self.attentions[0](self.norms[0](tokens_SW))
        tokens_SW = self.positions(tokens_SW, edge=edge)
        tokens_SW = tokens_SW + self.attentions[1](self.norms[1](tokens_SW))
        class_1W: Tensor = self.norm(tokens_SW[:1])
        return class_1W
