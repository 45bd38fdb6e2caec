"""What a reader of a fine-tuning result needs to be told, in plain English."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anlage.bags.loader import BagSet
from anlage.encoders.leakage import Leakage, seen_in_pretraining
from anlage.probes.splits.split import Split
from anlage.probes.uncertainty.interval import FEWEST_RELIABLE_GROUPS
from anlage.training.finetuning.config import FinetuneConfig
from anlage.training.finetuning.preparation import Prepared
from anlage.training.finetuning.result import CALLED, Estimate, Score
from anlage.training.finetuning.targets import Targets

UNITS = {
    "slide": "",
    "largest_slide": "Of each patient the slide with most tiles was taken.",
    "patient": "All slides of a patient were trained on; its prediction is the mean of theirs.",
}


def leakage_of(prepared: Prepared) -> dict[str, Leakage]:
    """Which tested patients the slide encoder and the tile encoder were pretrained on."""
    targets = prepared.material.targets
    rows = np.concatenate([split.test for split in prepared.splits])
    tested = targets.patient_N[rows].tolist()
    slides = dict(zip((targets.slide_ids[row] for row in rows), tested, strict=True))
    encoder = prepared.material.encoder
    known = {} if encoder is None else {"slide encoder": encoder.config.provenance}
    known["tile encoder"] = dict(prepared.tile_provenance)
    return {
        name: seen_in_pretraining(
            provenance,
            tested,
            is_grouped=prepared.is_grouped,
            by_slide=_seen_by_slide(provenance, slides, prepared.material.bags),
        )
        for name, provenance in known.items()
    }


def _seen_by_slide(
    provenance: Mapping[str, Any], slides: Mapping[str, str], bags: BagSet
) -> set[str]:
    """Patients of the tested slides whose bag, or whose file, an encoder was pretrained on."""
    pretrained = provenance.get("slides")
    if not isinstance(pretrained, Mapping):
        return set()
    found = set()
    for slide_id, patient in slides.items():
        facts = bags.facts[slide_id]
        hashes = {facts.content_sha256, facts.attributes.slide_fingerprint}
        if pretrained.get(slide_id) in hashes:
            found.add(patient)
    return found


def notes_of(
    config: FinetuneConfig,
    prepared: Prepared,
    scores: Sequence[Score],
    difference: Estimate | None,
    *,
    unprobed: Sequence[str] = (),
) -> list[str]:
    """All notes, most important first; ``unprobed`` are folds without a probe on mean tiles."""
    targets = prepared.material.targets
    return [
        *_patients(prepared),
        *_leakage(leakage_of(prepared)),
        *_floors(difference),
        *_lacking(unprobed, prepared.splits),
        *_undefined(scores),
        *_task(config),
        *_classes(targets, prepared.splits),
        *_bags(prepared),
    ]


def _patients(prepared: Prepared) -> list[str]:
    notes = []
    targets = prepared.material.targets
    rows = np.concatenate([split.test for split in prepared.splits])
    n_tested = len(np.unique(targets.patient_N[rows]))
    if not prepared.is_grouped:
        notes.append(
            "NO PATIENT INFORMATION: split by slide, leakage possible. Slides of one patient can "
            "be on both sides, and the intervals are too narrow. Add a patient_id column."
        )
    elif prepared.n_without_patient:
        notes.append(
            f"NO PATIENT IS KNOWN of {prepared.n_without_patient} of {len(prepared.rows)} slides: "
            "each counts as a patient of its own, so that slides of one patient can be on both "
            "sides, and the intervals are too narrow. Fill in patient_id."
        )
    if n_tested < FEWEST_RELIABLE_GROUPS:
        notes.append(
            f"{n_tested} tested patients are too few (fewer than {FEWEST_RELIABLE_GROUPS}): the "
            "intervals are unreliable, and nothing can be claimed from these scores."
        )
    if len(rows) > len(np.unique(rows)):
        notes.append(
            f"Folds test some patients several times: {len(rows)} predictions of "
            f"{len(np.unique(rows))} slides. Intervals resample patients with all of theirs."
        )
    return notes


def _leakage(leakage: Mapping[str, Leakage]) -> list[str]:
    notes = []
    for name, verdict in leakage.items():
        if not verdict.is_known:
            notes.append(
                f"Whether the {name} saw these patients in pretraining is not known: it does not "
                "name the patients of all its slides, or the labels name none."
            )
            continue
        told = f"The {name} saw {len(verdict.seen)} of {verdict.n_groups} tested patients"
        how = "in pretraining"
        if verdict.chosen_by:
            how = f"before, and the labels of {len(verdict.chosen_by)} of them chose it"
        named = ", ".join(verdict.seen[:20]) + (" ..." if verdict.seen[20:] else "")
        notes.append(f"{told} {how}{': ' if named else ''}{named}.")
    return notes


def _floors(difference: Estimate | None) -> list[str]:
    if difference is None:
        return []
    ends = (difference.low, difference.high, difference.t_low, difference.t_high)
    is_apart = all(end is not None and end > 0 for end in ends) or all(
        end is not None and end < 0 for end in ends
    )
    verdict = "is not shown to differ from"
    if is_apart and not difference.is_unreliable:
        verdict = "is better than" if difference.value > 0 else "is WORSE than"
    return [f"The model {verdict} a linear probe on the mean tile: {difference.words}."]


def _lacking(unprobed: Sequence[str], splits: Sequence[Split]) -> list[str]:
    if not unprobed:
        return []
    told = f"{len(unprobed)} of {len(splits)} folds ({', '.join(unprobed[:10])})"
    return [
        f"No {CALLED['mean_pool']} could be made in {told}, so that it is not scored; "
        "the log says why."
    ]


def _undefined(scores: Sequence[Score]) -> list[str]:
    notes = []
    for score in scores:
        lacking = [fold for fold, value in score.of_fold.items() if value is None]
        if score.predictor == "model" and lacking:
            name = f"{score.metric} {score.label}".strip()
            n, told = len(score.of_fold), f"({', '.join(lacking[:10])})"
            others = " The mean is over the others." if len(lacking) < n else ""
            notes.append(
                f"{name} has no value in {len(lacking)} of {n} folds {told}: one class only, no "
                f"event, or nothing that varies on the test side.{others}"
            )
    return notes


def _task(config: FinetuneConfig) -> list[str]:
    task = config.task
    notes = [UNITS[task.unit]] if UNITS[task.unit] else []
    if task.threshold is not None:
        notes.append(f"high is {task.columns[0]} >= {task.threshold:g}; low is below it.")
    return notes


def _classes(targets: Targets, splits: Sequence[Split]) -> list[str]:
    if targets.task.kind not in {"binary", "multi_class", "ordinal"}:
        return []
    notes = []
    for split in splits:
        trained, tested = (
            set(targets.target_NK[rows, 0].astype(int).tolist())
            for rows in (split.train, split.test)
        )
        names = [targets.classes[code] for code in sorted(tested - trained)]
        if names:
            notes.append(f"Fold {split.name} tests {', '.join(names)} without training on it.")
    return notes


def _bags(prepared: Prepared) -> list[str]:
    notes = []
    n_crowded = sum(prepared.material.bags.crowded.values())
    if n_crowded and prepared.material.encoder is not None:
        notes.append(
            f"{n_crowded} tiles share a cell of the slide encoder's grid with another: tiles "
            "overlap, or came twice. They were kept."
        )
    if prepared.refused:
        notes.append(f"{len(prepared.refused)} labelled slides had no usable bag: left out.")
    return notes
