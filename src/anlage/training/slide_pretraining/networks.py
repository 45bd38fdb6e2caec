"""What slide pretraining trains: a slide encoder with a decoder of hidden tiles.

Shape suffixes: T tiles of all bags, M hidden ones of them, I width of a tile embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from anlage.bags.loader import BagBatch
from anlage.models.slide_decoder import SlideDecoder
from anlage.models.slide_encoder import SlideEncoder
from anlage.objectives.masked_slide import masked_tile_error, standardised
from anlage.training.networks import Learner
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.views import BagView


@dataclass(frozen=True, eq=False)
class MaskedBags:
    """Packed bags of which the encoder sees a part.

    Attributes:
        slide_ids: Slide of each bag.
        numbers: Number of each bag's draw.
        features_TI: (T, I) float32 tile embeddings.
        cell_T2: (T, 2) int64 cells.
        is_visible_T: (T,) bool.
        lengths: Tiles of each bag; their sum is T.
        n_visible: Visible tiles of each bag.
    """

    slide_ids: tuple[str, ...]
    numbers: tuple[int, ...]
    features_TI: Tensor
    cell_T2: Tensor
    is_visible_T: Tensor
    lengths: tuple[int, ...]
    n_visible: tuple[int, ...]

    @property
    def n_hidden(self) -> list[int]:
        """Hidden tiles of each bag."""
        return [n - seen for n, seen in zip(self.lengths, self.n_visible, strict=True)]

    def to(self, device: torch.device) -> Self:
        """The same with its tensors on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("features_TI", "cell_T2", "is_visible_T")
        }
        return replace(self, **moved)


def masked_bags(batch: BagBatch, views: list[BagView], *, is_pinned: bool = False) -> MaskedBags:
    """The tiles of a batch that its views keep, packed anew.

    Args:
        batch: Whole bags.
        views: One of each.
        is_pinned: Put features where a CUDA device, which must be there, reads them without a wait.
    """
    firsts = torch.tensor([0, *batch.lengths[:-1]]).cumsum(0).tolist()
    row_T = torch.cat(
        [torch.from_numpy(v.row_K) + first for v, first in zip(views, firsts, strict=True)]
    )
    room = torch.empty((len(row_T), batch.features_TD.shape[1]), pin_memory=is_pinned)
    return MaskedBags(
        slide_ids=batch.slide_ids,
        numbers=batch.numbers,
        features_TI=torch.index_select(batch.features_TD, 0, row_T, out=room),
        cell_T2=torch.cat([torch.from_numpy(view.cell_K2) for view in views]),
        is_visible_T=torch.cat([torch.from_numpy(view.is_visible_K) for view in views]),
        lengths=tuple(len(view.row_K) for view in views),
        n_visible=tuple(int(view.is_visible_K.sum()) for view in views),
    )


class SlideAutoencoder(Learner):
    """A slide encoder and the decoder that predicts what it did not see.

    Args:
        config: The recipe.
        input_width: Width I of the tile embeddings.

    Attributes:
        encoder: The slide encoder, which is kept.
        decoder: Thrown away after pretraining.
    """

    def __init__(self, config: SlidePretrainConfig, *, input_width: int) -> None:
        super().__init__()
        self.encoder = SlideEncoder(**encoder_arguments(config, input_width=input_width))
        model = config.model
        self.decoder = SlideDecoder(
            encoder_width=model.width,
            output_width=input_width,
            segments=model.segments,
            dilations=model.dilations,
            head_phase=model.head_phase,
            pad=model.pad,
            **config.decoder.model_dump(),
        )

    def parts(self) -> dict[str, nn.Module]:
        """The parts whose gradients are clipped each on its own, by name."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def predicted(self, bags: MaskedBags, *, recompute: bool = False) -> Tensor:
        """Predict the hidden tiles of packed bags, (M, I)."""
        seen = bags.is_visible_T
        states = self.encoder(
            bags.features_TI[seen], bags.cell_T2[seen], bags.n_visible, recompute=recompute
        )
        predicted_MI: Tensor = self.decoder(
            states, bags.cell_T2, seen, bags.lengths, recompute=recompute
        )
        return predicted_MI


def hidden_error(predicted_MI: Tensor, bags: MaskedBags) -> Tensor:
    """(B,) error of each bag's hidden tiles."""
    target_MI = standardised(bags.features_TI[~bags.is_visible_T])
    return masked_tile_error(predicted_MI, target_MI, bags.n_hidden)


def encoder_arguments(config: SlidePretrainConfig, *, input_width: int) -> dict[str, Any]:
    """Keyword arguments of the run's ``SlideEncoder``."""
    return {"input_width": input_width, **config.model.model_dump()}
