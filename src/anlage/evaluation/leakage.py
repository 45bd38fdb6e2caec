"""Which of the tested cases did the encoder see before?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from anlage.evaluation.result import Leakage


def seen_in_pretraining(
    provenance: Mapping[str, Any], groups: Iterable[str], *, is_grouped: bool
) -> Leakage:
    """Compare the patients an encoder was pretrained on with the groups it is tested on.

    Args:
        provenance: Of the encoder; ``patients``, if there, lists their ids,
            ``n_without_patient`` says for how many slides nobody named one, and ``watched`` may
            name the ``cases`` whose labels chose it.
        groups: Names of the tested groups.
        is_grouped: Whether the groups are cases at all, and not single files.

    Returns:
        The verdict; not known when the encoder names no patients or the data no cases, nor when no
        case is found but some slide's patient was never named.
    """
    names = sorted(set(groups))
    patients = provenance.get("patients")
    labelled = {str(case) for case in provenance.get("watched", {}).get("cases", ())}
    is_comparable = is_grouped and isinstance(patients, list | tuple)
    known = labelled | {str(p) for p in patients or ()} if is_comparable else set()
    seen = [name for name in names if name in known]
    is_known = is_comparable and (bool(seen) or not provenance.get("n_without_patient"))
    return Leakage(
        is_known=is_known,
        n_groups=len(names),
        seen=seen,
        chosen_by=[name for name in seen if name in labelled],
    )
