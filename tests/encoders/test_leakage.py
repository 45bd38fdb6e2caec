from anlage.encoders.leakage import seen_in_pretraining
from anlage.evaluation.notes import leakage_note


def test_seen_cases_are_named() -> None:
    verdict = seen_in_pretraining(
        {"patients": ["b", "z", "a"]}, ["a", "b", "c", "a"], is_grouped=True
    )
    assert (verdict.is_known, verdict.n_groups, verdict.seen) == (True, 3, ["a", "b"])


def test_cases_whose_labels_chose_the_encoder_are_told_apart() -> None:
    """One of them was not in pretraining at all."""
    chosen = {"patients": ["a", "b"], "watched": {"sha256": "0", "cases": ["b", "c"]}}
    verdict = seen_in_pretraining(chosen, ["a", "b", "c", "d"], is_grouped=True)
    assert (verdict.seen, verdict.chosen_by) == (["a", "b", "c"], ["b", "c"])
    told = "3 of 4 cases were seen before, and the labels of 2 of them chose the encoder: a, b, c."
    assert leakage_note(verdict) == told
    plain = seen_in_pretraining({"patients": ["a", "b"]}, ["a", "d"], is_grouped=True)
    assert plain.chosen_by == []
    assert leakage_note(plain) == "1 of 2 cases were seen (unlabelled) in pretraining: a."


def test_not_known_without_patients_or_cases() -> None:
    assert not seen_in_pretraining({}, ["a"], is_grouped=True).is_known
    assert not seen_in_pretraining({"patients": ["a"]}, ["a"], is_grouped=False).is_known
    none_seen = seen_in_pretraining({"patients": []}, ["a"], is_grouped=True)
    assert none_seen.is_known
    assert none_seen.seen == []


def test_slides_whose_patient_nobody_named_leave_it_open() -> None:
    """Without labels the slide_id stands for the patient, matching no case: that says nothing."""
    unnamed = {"patients": ["hodgkin__HE", "p1"], "n_without_patient": 1}
    assert not seen_in_pretraining(unnamed, ["hodgkin", "p2"], is_grouped=True).is_known
    found = seen_in_pretraining(unnamed, ["hodgkin", "p1"], is_grouped=True)
    assert (found.is_known, found.seen) == (True, ["p1"])
    named = unnamed | {"n_without_patient": 0}
    assert seen_in_pretraining(named, ["hodgkin", "p2"], is_grouped=True).is_known
