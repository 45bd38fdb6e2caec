"""The page's first lines: what was found, in plain English."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from anlage.evaluation.result import EvaluationResult
from anlage.report.contents import Contents
from anlage.report.provenance_chain import Link
from anlage.slides.catalogue import SlideRow

Kind = Literal["good", "bad", "care", "plain"]
NAMED = 6


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One line: whether it is good news, bad news, a reason for care, or a plain fact."""

    kind: Kind
    text: str


def verdicts(contents: Contents, chain: tuple[Link, ...]) -> tuple[Verdict, ...]:
    """What a reader should take away, most important first."""
    return (
        *_score_verdicts(contents),
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
    rows = contents.catalogue.rows()
    used = [row for row in rows if row.slide_id in contents.run["slides"]]
    n_unknown = len(contents.run["slides"]) - len(used)
    if n_unknown:
        text = f"{n_unknown} slides of the pretraining are not in this catalogue: splits not known."
        yield Verdict(kind="bad", text=text)
        return
    if not any(row.split for row in rows):
        yield Verdict(kind="care", text="No slide has a split: pretraining used all of them.")
        return
    wrong = [row.slide_id for row in used if row.split != "train"]
    shared = _patients_on_both_sides(rows, used)
    if wrong:
        text = f"Pretraining used slides that are not of split=train: {_few(wrong)}."
        yield Verdict(kind="bad", text=text)
    elif shared:
        text = f"Pretraining saw cases that also have slides outside split=train: {_few(shared)}."
        yield Verdict(kind="bad", text=text)
    else:
        text = f"Pretraining used cases of split=train only ({len(used)} of {len(rows)} slides)."
        yield Verdict(kind="good", text=text)


def _patients_on_both_sides(rows: list[SlideRow], used: list[SlideRow]) -> list[str]:
    patients = {row.patient_id for row in used}
    return sorted({r.patient_id for r in rows if r.split != "train" and r.patient_id in patients})


def _leakage_verdicts(result: EvaluationResult | None) -> Iterator[Verdict]:
    if result is None:
        return
    leakage = result.leakage
    if not leakage.is_known:
        text = "Whether tested cases were seen in pretraining is not known."
        yield Verdict(kind="care", text=text)
    elif leakage.seen:
        text = (
            f"{len(leakage.seen)} of {leakage.n_groups} tested cases were seen, without labels, in "
            f"pretraining: {', '.join(leakage.seen)}."
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
