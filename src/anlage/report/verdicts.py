"""The page's first lines: what was found, in plain English."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from anlage.evaluation.result import EvaluationResult
from anlage.report.chain_link import Link
from anlage.report.contents import Contents
from anlage.report.slide_verdicts import slide_verdicts
from anlage.report.verdict import Verdict

NAMED = 6


def verdicts(contents: Contents, chain: tuple[Link, ...]) -> tuple[Verdict, ...]:
    """What a reader should take away, most important first."""
    return (
        *_score_verdicts(contents),
        *slide_verdicts(contents),
        *_split_verdicts(contents),
        *_leakage_verdicts(contents.result),
        *_chain_verdicts(chain),
    )


def _score_verdicts(contents: Contents) -> Iterator[Verdict]:
    result = contents.result
    if result is None:
        return
    interval = result.score("encoder", "linear").balanced_accuracy
    values = {
        model: result.score(model, "linear").balanced_accuracy.estimate
        for model in ("untrained", "colour_texture")
    }
    text = (
        f"Balanced accuracy of a linear probe, {len(result.data.classes)} classes, "
        f"{interval.n_groups} cases: {interval.estimate:.2f} for this encoder, "
        f"{values['untrained']:.2f} for the same network with random weights, "
        f"{values['colour_texture']:.2f} for colour and texture alone; guessing gives "
        f"{result.chance['balanced_accuracy']:.2f}."
    )
    yield Verdict(kind="plain", text=text)
    if interval.is_unreliable:
        claims = "this demo claims nothing from it" if contents.demo else "nothing follows from it"
        text = f"Unreliable: {interval.n_groups} cases are too few, so {claims}."
        yield Verdict(kind="care", text=text)
    elif contents.demo:
        yield Verdict(kind="care", text="A demo's score: this demo claims nothing from it.")


def _split_verdicts(contents: Contents) -> Iterator[Verdict]:
    if contents.run is None or contents.catalogue is None:
        return
    every = contents.catalogue
    ids, splits = every.column("slide_id"), every.column("split")
    is_used = _is_used(contents, ids, splits)
    n_used = pc.sum(is_used).as_py() or 0
    n_unknown = (len(contents.run["slides"]) or contents.run.get("n_slides", 0)) - n_used
    if n_unknown:
        text = f"{n_unknown} slides of the pretraining are not in this catalogue: splits not known."
        yield Verdict(kind="bad", text=text)
        return
    if splits.null_count == len(splits):
        yield Verdict(kind="care", text="No slide has a split: pretraining used all of them.")
        return
    is_other = pc.not_equal(pc.fill_null(splits, ""), "train")
    wrong = ids.filter(pc.and_(is_used, is_other)).to_pylist()
    patients = every.column("patient_id")
    seen, others = (pc.unique(patients.filter(mask)) for mask in (is_used, is_other))
    shared = sorted(others.filter(pc.is_in(others, value_set=seen)).to_pylist())
    if wrong:
        text = f"Pretraining used slides that are not of split=train: {_few(wrong)}."
        yield Verdict(kind="bad", text=text)
    elif shared:
        text = f"Pretraining saw cases that also have slides outside split=train: {_few(shared)}."
        yield Verdict(kind="bad", text=text)
    else:
        text = f"Pretraining used cases of split=train only ({n_used} of {len(every)} slides)."
        yield Verdict(kind="good", text=text)


def _is_used(contents: Contents, ids: pa.ChunkedArray, splits: pa.ChunkedArray) -> pa.Array:
    """Whether the run used each slide: as it lists them, or as its recipe chooses from many."""
    assert contents.run is not None
    listed = contents.run["slides"]
    if listed or not contents.run.get("n_slides"):
        return pc.is_in(ids, value_set=pa.array(list(listed), pa.string()))
    split = (contents.run["config"].get("tiles") or {}).get("split")
    if split is None:
        return pa.chunked_array([pa.array([True] * len(ids))])
    return pc.fill_null(pc.equal(splits, split), fill_value=False)


def _leakage_verdicts(result: EvaluationResult | None) -> Iterator[Verdict]:
    if result is None:
        return
    leakage = result.leakage
    if not leakage.is_known:
        text = "Whether tested cases were seen in pretraining is not known."
        yield Verdict(kind="care", text=text)
    elif leakage.seen:
        how = "seen, without labels, in pretraining"
        if leakage.chosen_by:
            how = f"seen before, and the labels of {len(leakage.chosen_by)} chose the encoder"
        text = (
            f"{len(leakage.seen)} of {leakage.n_groups} tested cases were {how}: "
            f"{', '.join(leakage.seen)}."
        )
        yield Verdict(kind="care", text=text)
    else:
        text = f"None of the {leakage.n_groups} tested cases was seen in pretraining."
        yield Verdict(kind="good", text=text)


def _chain_verdicts(chain: tuple[Link, ...]) -> Iterator[Verdict]:
    checks = [check for link in chain for check in link.checks]
    broken = [link.title for link in chain if any(c.holds is False for c in link.checks)]
    if broken:
        text = f"The chain of provenance is broken at: {', '.join(broken).lower()}."
        yield Verdict(kind="bad", text=text)
    elif checks:
        n_held = sum(check.holds is True for check in checks)
        text = f"Provenance: {n_held} of {len(checks)} checks from slides to scores hold."
        yield Verdict(kind="good" if n_held == len(checks) else "care", text=text)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
