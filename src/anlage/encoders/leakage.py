"""Which of the tested cases did the encoder see before?"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Leakage(BaseModel):
    """Which cases the encoder saw: in pretraining, without their labels, or in its choice.

    Attributes:
        is_known: Whether the encoder's provenance names its patients and the data its cases; False
            when none was found but some slide's patient was never named.
        n_groups: Groups tested.
        seen: Names of those that are among the patients.
        chosen_by: Names of those whose labels chose the encoder, among ``seen``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    is_known: bool
    n_groups: int
    seen: list[str]
    chosen_by: list[str] = []


def seen_in_pretraining(
    provenance: Mapping[str, Any],
    groups: Iterable[str],
    *,
    is_grouped: bool,
    by_slide: Collection[str] = (),
) -> Leakage:
    """Compare the patients an encoder was pretrained on with the groups it is tested on.

    Args:
        provenance: Of the encoder; ``patients``, if there, lists their ids,
            ``n_without_patient`` says for how many slides nobody named one, and ``watched`` may
            name the ``cases`` whose labels chose it.
        groups: Names of the tested groups.
        is_grouped: Whether the groups are cases at all, and not single files.
        by_slide: Groups one of whose very slides was in the pretraining, whoever's it is.

    Returns:
        The verdict; not known when the encoder names no patients or the data no cases, nor when no
        case is found but some slide's patient was never named.
    """
    names = sorted(set(groups))
    patients = provenance.get("patients")
    labelled = {str(case) for case in provenance.get("watched", {}).get("cases", ())}
    is_comparable = is_grouped and isinstance(patients, list | tuple)
    known = labelled | {str(p) for p in patients or ()} if is_comparable else set()
    seen = [name for name in names if name in known or name in by_slide]
    is_known = bool(seen) or (is_comparable and not provenance.get("n_without_patient"))
    return Leakage(
        is_known=is_known,
        n_groups=len(names),
        seen=seen,
        chosen_by=[name for name in seen if name in labelled],
    )
