from dataclasses import replace

import pytest

from anlage.probes.uncertainty.interval import Interval

INTERVAL = Interval(
    estimate=0.9123,
    low=0.8801,
    high=0.9407,
    t_low=0.861,
    t_high=0.963,
    n_groups=120,
    n_resamples=2000,
    n_short_of_a_class=0,
    is_unreliable=False,
    method="bca",
)


def test_words_name_the_number_of_patients() -> None:
    assert INTERVAL.in_words() == "0.912 (95 %: 0.880 to 0.941; 120 patients)"
    assert INTERVAL.in_words(sign="+", n_digits=2, group="case") == (
        "+0.91 (95 %: +0.88 to +0.94; 120 cases)"
    )
    assert "99.9 %" in replace(INTERVAL, confidence=0.999).in_words()


def test_few_patients_are_unreliable_and_shown_with_the_t_interval() -> None:
    few = replace(INTERVAL, n_groups=9, is_unreliable=True)
    assert few.in_words() == (
        "0.912 (95 %: bootstrap 0.880 to 0.941, t 0.861 to 0.963; 9 patients, unreliable)"
    )


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("n_always_drawn", "3 alone in a class, whose spread is not in it"),
        ("n_short_of_a_class", "3 resamples short of a class"),
        ("n_undefined", "3 resamples without a value left out"),
    ],
)
def test_what_happened_on_the_way_is_said(field, text) -> None:
    assert text in replace(INTERVAL, **{field: 3}).in_words()
    assert "1 resample short" in replace(INTERVAL, n_short_of_a_class=1).in_words()


def test_no_minus_stands_before_a_zero() -> None:
    assert replace(INTERVAL, low=-0.0).in_words(sign="+").count("-0.000") == 0


def test_reads_what_was_stored_before_it_had_a_method() -> None:
    fields = ("method", "n_undefined", "n_always_drawn", "confidence", "p_value")
    old = {n: getattr(INTERVAL, n) for n in INTERVAL.__slots__ if n not in fields}
    assert Interval(**old).method == "percentile"
