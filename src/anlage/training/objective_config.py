"""The loss of a run, as it stands in a recipe: its terms, their weights and temperatures."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from anlage.training.section import Ramp, Section, Share


class Gram(Section):
    """Gram anchoring: patch similarities stay those of an earlier teacher.

    Attributes:
        start: Share of the run after which the teacher of then becomes the Gram teacher and the
            term begins.
        refresh_every: Share of the run after which the Gram teacher is taken anew; None for never.
        max_refreshes: How often at most.
        weight: Weight of the term over the whole run; it counts from ``start`` on.

    Source: Simeoni et al. 2025, DINOv3, arXiv:2508.10104, section 4.2.
    """

    start: Share
    refresh_every: Share | None = Field(default=None, gt=0.0)
    max_refreshes: int = Field(default=3, ge=0)
    weight: Ramp = Ramp(start=2.0, end=2.0)


class Objective(Section):
    """The loss: weights of its terms and how the teacher's targets are made.

    Attributes:
        dino_weight: Weight of the CLS term.
        ibot_weight: Weight of the masked-patch term.
        spread: What keeps the batch apart: ``kde`` (Virchow2), ``koleo`` (DINOv2) or ``none``.
        spread_weight: Weight of that term, summed over the global views as DINOv2 does.
        concentration: Sharpness of the KDE kernel.
        targets: ``sinkhorn`` or ``centering``.
        student_temperature: Temperature of the student's softmax.
        teacher_temperature: Temperature of the teacher's.
        masked_share: Share of global views in which patches are masked.
        mask_ratio: Smallest and largest share of patches masked in such a view.
        prototype_memory_mb: Most memory that prototype scores take at a time; more tokens than fit
            are scored in pieces, with the same result. MiB.
        gram: Gram anchoring; None for none.
    """

    dino_weight: float = Field(default=1.0, ge=0.0)
    ibot_weight: float = Field(default=1.0, ge=0.0)
    spread: Literal["kde", "koleo", "none"] = "kde"
    spread_weight: float = Field(default=0.05, ge=0.0)
    concentration: PositiveFloat = 5.0
    targets: Literal["sinkhorn", "centering"] = "sinkhorn"
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: Ramp
    masked_share: Share = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    prototype_memory_mb: PositiveFloat = 512.0
    gram: Gram | None = None

    @property
    def uses_patches(self) -> bool:
        """Whether patches are masked and guessed; DINO alone needs no mask."""
        return self.ibot_weight > 0

    @property
    def spreads(self) -> bool:
        """Whether a term keeps the batch apart."""
        return self.spread != "none" and self.spread_weight > 0

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        least, greatest = self.mask_ratio
        if not 0 < least <= greatest <= 1:
            msg = "mask_ratio needs 0 < smallest <= largest <= 1, such as [0.1, 0.5]"
            raise ValueError(msg)
        if min(self.teacher_temperature.start, self.teacher_temperature.end) <= 0:
            msg = "teacher_temperature needs to stay above 0, such as 0.04 to 0.07"
            raise ValueError(msg)
        if self.dino_weight == self.ibot_weight == 0:
            msg = "dino_weight or ibot_weight needs to be above 0; the spread alone teaches nothing"
            raise ValueError(msg)
        return self
