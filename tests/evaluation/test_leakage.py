from anlage.evaluation.leakage import seen_in_pretraining


def test_seen_cases_are_named() -> None:
    verdict = seen_in_pretraining(
        {"patients": ["b", "z", "a"]}, ["a", "b", "c", "a"], is_grouped=True
    )
    assert (verdict.is_known, verdict.n_groups, verdict.seen) == (True, 3, ["a", "b"])


def test_not_known_without_patients_or_cases() -> None:
    assert not seen_in_pretraining({}, ["a"], is_grouped=True).is_known
    assert not seen_in_pretraining({"patients": ["a"]}, ["a"], is_grouped=False).is_known
    none_seen = seen_in_pretraining({"patients": []}, ["a"], is_grouped=True)
    assert none_seen.is_known
    assert none_seen.seen == []
