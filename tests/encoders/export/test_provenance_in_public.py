"""Names of slides and patients become counts, however deep they lie."""

from anlage.encoders.export.provenance_in_public import without_names


def test_lists_of_names_become_counts() -> None:
    made_by = {"patients": ["c"], "step": 7}
    provenance = {
        "slides": {"a": "1", "b": "2"},
        "patients": ["x"],
        "watched": {"cases": ["y", "z"], "source": "tiles.csv"},
        "init": {"source": "/home/somebody/run/encoder", "made_by": made_by},
        "n_slides": 2,
        "recipe": "uni",
        "config": {"init": {"run": "/home/somebody/run"}, "notes": ["/data/case 7/a.csv", "b"]},
    }
    assert without_names(provenance) == {
        "n_slides": 2,
        "n_patients": 1,
        "watched": {"n_cases": 2, "source": "tiles.csv"},
        "init": {"source": "encoder", "made_by": {"n_patients": 1, "step": 7}},
        "recipe": "uni",
        "config": {"init": {"run": "run"}, "notes": ["a.csv", "b"]},
    }
    assert provenance["patients"] == ["x"]


def test_what_names_nobody_stays() -> None:
    told = {"source": "timm:hf-hub:owner/model", "slides": "13 of them", "n_slides": 5}
    assert without_names(told) == told
