"""The result of an evaluation: what stands in ``result.json``, and how it reads in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from anlage.encoders.leakage import Leakage
from anlage.errors import LabelledDataError
from anlage.files import write_json_whole
from anlage.probes.uncertainty.interval import Interval

FORMAT: Final = "evaluation/1"
LEVEL = 0.05

Model = Literal["encoder", "untrained", "colour_texture"]
ProbeName = Literal["linear", "knn"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Frozen):
    """One model under one probe.

    Attributes:
        model: Whose features were probed.
        probe: The probe.
        balanced_accuracy: With intervals over groups.
        accuracy: Share of all tiles predicted right, 0 to 1.
        group_accuracy: The same of each group.
        has_converged: False when the solver stopped early in some split.
    """

    model: Model
    probe: ProbeName
    balanced_accuracy: Interval
    accuracy: float
    group_accuracy: dict[str, float]
    has_converged: bool


class Comparison(_Frozen):
    """The encoder minus a floor, on the same tiles under the same probe.

    Attributes:
        floor: The model it is compared with.
        probe: The probe of both.
        difference: Of balanced accuracy, with intervals over groups; above 0 the encoder is better.
        p_adjusted: Two-sided, of the paired permutation test that swaps whole groups, adjusted by
            Holm for all comparisons of the evaluation; None in results of older versions.
        group_difference: Difference of accuracy in each group.
    """

    floor: Model
    probe: ProbeName
    difference: Interval
    p_adjusted: float | None = None
    group_difference: dict[str, float]

    @property
    def shows_a_difference(self) -> bool:
        """Enough groups, neither interval holds 0, and the adjusted p-value is at most 0.05."""
        d = self.difference
        is_likely_chance = self.p_adjusted is not None and self.p_adjusted > LEVEL
        return not (d.is_unreliable or is_likely_chance) and all(
            low > 0 or high < 0 for low, high in ((d.low, d.high), (d.t_low, d.t_high))
        )


class ClassCount(_Frozen):
    """How many tiles, of how many groups, a class has."""

    n_tiles: int
    n_groups: int


class Data(_Frozen):
    """What was scored.

    Attributes:
        name: File or folder name.
        fingerprint: Of the labelled tiles.
        n_tiles: Tiles tested.
        n_groups: Groups tested.
        group_column: Column the groups come from; ``file`` when no case is known.
        classes: Tiles and groups of each class, of those tested.
        preparation: How many tiles were brought to the encoder's size in which way.
    """

    name: str
    fingerprint: str
    n_tiles: int
    n_groups: int
    group_column: str
    classes: dict[str, ClassCount]
    preparation: dict[str, int]


class EvaluationResult(_Frozen):
    """A frozen encoder's scores on labelled tiles, with floors, intervals and provenance.

    Attributes:
        format: Format and version of the file.
        encoder_fingerprint: Of the encoder.
        encoder_config: Its configuration, with the provenance.
        data: What was scored.
        settings: Everything else that decides the numbers: seed, resamples, probes, protocol.
        protocol: How the tiles were split, ``auto`` resolved.
        n_splits: Splits tested.
        chance: Balanced accuracy of guessing (``balanced_accuracy``), accuracy of always naming
            the most frequent class (``majority_accuracy``).
        rankme: Effective rank of each network's embeddings.
        scores: Each model under each probe.
        comparisons: The encoder against each floor under each probe.
        leakage: Which cases were seen in pretraining.
        notes: What a reader needs to know, in plain English, most important first.
        versions: Of Python and packages.
        commit: Of the source, if known.
    """

    format: Literal["evaluation/1"] = FORMAT
    encoder_fingerprint: str
    encoder_config: dict[str, Any]
    data: Data
    settings: dict[str, Any]
    protocol: str
    n_splits: int
    chance: dict[str, float]
    rankme: dict[str, float]
    scores: list[Score]
    comparisons: list[Comparison]
    leakage: Leakage
    notes: list[str]
    versions: dict[str, str]
    commit: str | None

    def key(self) -> dict[str, Any]:
        """What two results share when they are the same evaluation."""
        return evaluation_key(self.encoder_fingerprint, self.data.fingerprint, self.settings)

    def score(self, model: Model, probe: ProbeName) -> Score:
        """The score of one model under one probe."""
        return next(s for s in self.scores if (s.model, s.probe) == (model, probe))

    def summary(self) -> list[str]:
        """The result as lines of text: scores, differences from the floors, each case, notes."""
        return [*self._head(), *self._score_lines(), *self._case_lines(), *self._note_lines()]

    def _head(self) -> Iterator[str]:
        data = self.data
        yield (
            f"{data.name}: {data.n_tiles} tiles, {data.n_groups} groups (by {data.group_column}), "
            f"{len(data.classes)} classes; {self.protocol}, {self.n_splits} splits"
        )
        yield (
            f"chance {self.chance['balanced_accuracy']:.3f} balanced accuracy; always the most "
            f"frequent class {self.chance['majority_accuracy']:.3f} accuracy"
        )

    def _score_lines(self) -> Iterator[str]:
        for score in self.scores:
            ends = interval_in_words(score.balanced_accuracy)
            yield f"{score.model:<15} {score.probe:<7} balanced accuracy {ends}"
        for comparison in self.comparisons:
            ends = interval_in_words(comparison.difference, sign="+")
            yield f"encoder minus {comparison.floor:<15} {comparison.probe:<7} {ends}"

    def _case_lines(self) -> Iterator[str]:
        """Accuracy of the encoder in each group and its difference from each floor (linear)."""
        if self.data.n_groups > 40:
            return
        linear = [c for c in self.comparisons if c.probe == "linear"]
        yield "per case, linear probe: encoder accuracy" + "".join(
            f", minus {comparison.floor}" for comparison in linear
        )
        for group, accuracy in self.score("encoder", "linear").group_accuracy.items():
            differences = "".join(f"  {c.group_difference[group]:+.3f}" for c in linear)
            yield f"  {group:<40} {accuracy:.3f}{differences}"

    def _note_lines(self) -> Iterator[str]:
        yield from (f"note: {note}" for note in self.notes)


def evaluation_key(encoder: str, data: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What decides every number of an evaluation: encoder, data and settings."""
    return {"encoder": encoder, "data": data, **settings}


def interval_in_words(interval: Interval, *, sign: Literal["", "+"] = "") -> str:
    """An estimate with its interval and the groups it rests on, on one line."""
    return interval.in_words(sign=sign, group="group")


def write_result(path: Path, result: EvaluationResult) -> None:
    """Write a result as JSON, whole or not at all."""
    write_json_whole(path, result.model_dump(mode="json"))


def read_result(path: str | Path) -> EvaluationResult:
    """Read a result that ``write_result`` wrote.

    Raises:
        LabelledDataError: If the file is missing, damaged or of another format.
    """
    try:
        return EvaluationResult.model_validate_json(Path(path).read_bytes())
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        message = f"needs to be a result in format {FORMAT}; got {first}. Evaluate again."
        raise LabelledDataError(path, message) from error
