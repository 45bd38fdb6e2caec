"""The mean of a bag: the floor that every attention has to beat."""

# Shape suffixes: T tiles of all bags, D width.

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from anlage.models.bag_pooling.segments import BagPooling, PooledBags, bag_means, refuse_bags


class MeanPooling(BagPooling):
    """Every tile counts alike.

    Args:
        input_width: Width D of the features.
    """

    def __init__(self, *, input_width: int) -> None:
        super().__init__()
        self.out_width = input_width

    def forward(
        self, features_TD: Tensor, lengths: Sequence[int], *, cell_T2: Tensor | None = None
    ) -> PooledBags:
        """Mean of each bag, (T, D) -> (B, D) float32, without attention.

        Args:
            features_TD: (T, D) features of the tiles of all bags.
            lengths: Tiles of each bag, 1 or more each; they sum to T.
            cell_T2: Not used.

        Raises:
            ValueError: If the features or lengths do not fit.
        """
        del cell_T2
        refuse_bags("MeanPooling", features_TD, lengths, width=self.out_width)
        return PooledBags(bag_means(features_TD, lengths), None)
