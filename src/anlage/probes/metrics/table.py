"""All metrics that need no settings, by name."""

from __future__ import annotations

import difflib

from anlage.probes.metrics.agreement import COHEN_KAPPA, LINEAR_KAPPA, QUADRATIC_KAPPA
from anlage.probes.metrics.calibration import (
    BRIER,
    BRIER_MULTICLASS,
    ECE,
    ECE_CLASSWISE,
    ECE_EQUAL_MASS,
    LOG_LOSS,
    MCE,
)
from anlage.probes.metrics.classification import (
    ACCURACY,
    BALANCED_ACCURACY,
    MACRO_F1,
    MACRO_PRECISION,
    MACRO_RECALL,
    WEIGHTED_F1,
)
from anlage.probes.metrics.concordance import HARRELL_C
from anlage.probes.metrics.correlation import (
    MEAN_ABSOLUTE_ERROR,
    MEAN_SQUARED_ERROR,
    PEARSON,
    R2,
    SPEARMAN,
)
from anlage.probes.metrics.detection import DETECTION_F1_OVER_IMAGES, DETECTION_F1_POOLED
from anlage.probes.metrics.instances import (
    AJI,
    AJI_PLUS,
    DQ_POOLED,
    PQ_OVER_IMAGES,
    PQ_POOLED,
    SQ_POOLED,
)
from anlage.probes.metrics.metric import Metric
from anlage.probes.metrics.ranking import AUPRC, AUPRC_MACRO, AUROC, AUROC_OVO, AUROC_OVR
from anlage.probes.metrics.segmentation import (
    DICE_OVER_IMAGES,
    DICE_OVER_PIXELS,
    IOU_OVER_IMAGES,
    IOU_OVER_PIXELS,
)
from anlage.probes.metrics.selective import ACCURACY_AT_80, AURC, EXCESS_AURC

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        ACCURACY,
        BALANCED_ACCURACY,
        MACRO_F1,
        WEIGHTED_F1,
        MACRO_PRECISION,
        MACRO_RECALL,
        QUADRATIC_KAPPA,
        LINEAR_KAPPA,
        COHEN_KAPPA,
        AUROC,
        AUROC_OVR,
        AUROC_OVO,
        AUPRC,
        AUPRC_MACRO,
        ECE,
        ECE_EQUAL_MASS,
        ECE_CLASSWISE,
        MCE,
        BRIER,
        BRIER_MULTICLASS,
        LOG_LOSS,
        AURC,
        EXCESS_AURC,
        ACCURACY_AT_80,
        PEARSON,
        SPEARMAN,
        R2,
        MEAN_ABSOLUTE_ERROR,
        MEAN_SQUARED_ERROR,
        HARRELL_C,
        DICE_OVER_IMAGES,
        DICE_OVER_PIXELS,
        IOU_OVER_IMAGES,
        IOU_OVER_PIXELS,
        AJI,
        AJI_PLUS,
        PQ_OVER_IMAGES,
        PQ_POOLED,
        DQ_POOLED,
        SQ_POOLED,
        DETECTION_F1_OVER_IMAGES,
        DETECTION_F1_POOLED,
    )
}
"""Those with settings are made by functions: ``calibration_error_metric`` (bins), ``kappa_metric``
(order of grades), ``accuracy_at_coverage``, ``uno_c`` and its kin (train side of survival)."""


def metric_named(name: str) -> Metric:
    """The metric of that name.

    Raises:
        ValueError: If there is none; names the nearest.
    """
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.4)
        meant = f"Did you mean {near[0]!r}?" if near else "Choose one of these."
        msg = f"metric: needs one of {', '.join(METRICS)}; got {name!r}. {meant}"
        raise ValueError(msg)
    return METRICS[name]
