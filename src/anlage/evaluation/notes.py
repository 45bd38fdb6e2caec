"""What a reader of a result needs to be told, in plain English."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anlage.encoders.leakage import Leakage
from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.result import Comparison, Data, Score, interval_in_words
from anlage.probes.uncertainty.interval import FEWEST_RELIABLE_GROUPS

FEW_DIRECTIONS = 2.0


def grouping_notes(tiles: LabelledTiles, data: Data) -> list[str]:
    """Notes on what the groups are and whether there are enough of them."""
    notes = []
    if not tiles.is_grouped:
        notes.append(
            "NO CASE INFORMATION: split by file, leakage possible. Tiles of one patient can be on "
            "both sides, and the intervals are too narrow. Give a CSV with a patient_id column."
        )
    elif data.n_groups < FEWEST_RELIABLE_GROUPS:
        notes.append(
            f"{data.n_groups} groups are too few (fewer than {FEWEST_RELIABLE_GROUPS}): the "
            "intervals are unreliable, and nothing can be claimed from these scores."
        )
    return notes


def leakage_note(leakage: Leakage) -> str:
    """The leakage verdict in one sentence."""
    if not leakage.is_known:
        return (
            "Whether the encoder saw these cases in pretraining is not known: its provenance does "
            "not name the patients of all its slides, or the data names no cases."
        )
    seen = f"{len(leakage.seen)} of {leakage.n_groups} cases were seen (unlabelled) in pretraining"
    if leakage.chosen_by:
        seen = (
            f"{len(leakage.seen)} of {leakage.n_groups} cases were seen before, and the labels of "
            f"{len(leakage.chosen_by)} of them chose the encoder"
        )
    return f"{seen}: {', '.join(leakage.seen)}." if leakage.seen else f"{seen}."


def split_notes(protocol: str, data: Data, never_trained: Sequence[str]) -> list[str]:
    """Notes on what the split does to the scores."""
    notes = []
    if never_trained:
        notes.append(
            f"Never trained on while tested: {', '.join(never_trained)}. All cases of the class "
            "are on one test side, so its tiles cannot be predicted right."
        )
    fewest = min(count.n_groups for count in data.classes.values())
    if protocol == "leave-one-group-out" and fewest < 10:
        notes.append(
            f"A class has only {fewest} groups: leaving one out takes a good part of its own class "
            "from training, so scores, floors included, can fall below chance. Compare models "
            "with each other, not with chance."
        )
    return notes


def comparison_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence a floor: is the encoder better or not?"""
    notes = []
    for comparison in comparisons:
        what = f"{comparison.floor} floor ({comparison.probe} probe)"
        numbers = interval_in_words(comparison.difference, sign="+")
        if not comparison.shows_a_difference:
            verdict = "is not shown to differ from"
        elif comparison.difference.estimate > 0:
            verdict = "is better than"
        else:
            verdict = "is WORSE than"
        p = comparison.p_adjusted
        chance = "" if p is None else f", p = {p:.2g} adjusted for {len(comparisons)} comparisons"
        notes.append(f"The encoder {verdict} the {what}: {numbers}{chance}.")
    return notes


def technical_notes(data: Data, scores: Sequence[Score], rankme: Mapping[str, float]) -> list[str]:
    """Notes on tiles resized, solvers that stopped, resamples short of a class, collapse."""
    notes = []
    resized = data.preparation.get("resized", 0)
    if resized:
        notes.append(
            f"{resized} tiles were resized to the encoder's size without regard to resolution: "
            "their mpp is not known, or they are too small at the encoder's."
        )
    notes.extend(
        f"The linear probe on {score.model} did not converge in some split."
        for score in scores
        if not score.has_converged
    )
    short = scores[0].balanced_accuracy
    if short.n_short_of_a_class:
        notes.append(
            f"{short.n_short_of_a_class} of {short.n_resamples} resamples lacked a class; their "
            "balanced accuracy is over the classes present."
        )
    if rankme["encoder"] < FEW_DIRECTIONS:
        notes.append(
            f"The encoder's embeddings spread over {rankme['encoder']:.2f} directions (RankMe): "
            "it has collapsed, or is very short of training."
        )
    return notes
