"""Poolings equal numbers that CLAM's, TransMIL's and eva's own code gave (tests/golden).

With POOLING_SOURCES (see tests/golden/regenerate_bag_pooling.py) set, that code runs once more.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import pooling_inputs as given

from anlage.models.slide_model import SlideModel, SlideOutput
from anlage.objectives.slide_instances import instance_loss

STORED = json.loads((Path(given.__file__).parent / "bag_pooling.json").read_text())


def output_of(model: SlideModel, lengths: tuple[int, ...]) -> SlideOutput:
    given.fill(model)
    with torch.no_grad():
        return model.eval()(given.features(lengths, model.input_width), None, lengths)


@pytest.mark.parametrize("kind", ["clam_sb", "clam_mb"])
def test_clam(kind: str) -> None:
    output = output_of(
        SlideModel(
            input_width=given.CLAM_WIDTH,
            n_outputs=given.N_CLASSES,
            pooling={"kind": kind, "n_instances": given.N_INSTANCES},
        ),
        given.CLAM_LENGTHS,
    )
    torch.testing.assert_close(output.logits_BC, torch.tensor(STORED[kind]["logits"]))
    first = torch.stack([bag[:5] for bag in output.attention_TA.split(given.CLAM_LENGTHS)])
    torch.testing.assert_close(first, torch.tensor(STORED[kind]["attention"]))
    for loss in ("svm", "cross_entropy"):
        for classes in ("all", "own"):
            found = instance_loss(
                output.instances.top_BCK2,
                output.instances.bottom_BCK2,
                torch.tensor(given.CLAM_TARGETS),
                is_tile_BK=output.instances.is_tile_BK,
                kind=loss,
                out_of_class=classes == "all",
            )
            name = f"{loss}, {'all classes' if classes == 'all' else 'own class'}"
            torch.testing.assert_close(found, torch.tensor(STORED[kind][name]))


def test_transmil() -> None:
    model = SlideModel(
        input_width=given.TRANSMIL_WIDTH, n_outputs=given.N_CLASSES, pooling={"kind": "transmil"}
    )
    logits = output_of(model, given.TRANSMIL_LENGTHS).logits_BC
    expected = torch.tensor(STORED["transmil"]["logits"])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_the_attention_mil_of_eva_is_a_setting() -> None:
    model = SlideModel(
        input_width=given.EVA_WIDTH,
        n_outputs=given.N_CLASSES,
        pooling={"kind": "gated_abmil", "width": 128, "hidden": 128, "activation": False},
        head_hidden=(128, 64),
    )
    logits = output_of(model, given.EVA_LENGTHS).logits_BC
    torch.testing.assert_close(logits, torch.tensor(STORED["eva_abmil"]["logits"]))


if "POOLING_SOURCES" in os.environ:

    def test_the_official_code_still_gives_these_numbers() -> None:
        from golden import regenerate_bag_pooling

        def near(found: Any, stored: Any) -> None:
            if isinstance(stored, dict):
                assert found.keys() == stored.keys()
                for key in stored:
                    near(found[key], stored[key])
            elif isinstance(stored, list) and isinstance(stored[0], dict):
                for one, other in zip(found, stored, strict=True):
                    near(one, other)
            else:
                torch.testing.assert_close(torch.tensor(found), torch.tensor(stored))

        near(regenerate_bag_pooling.numbers(Path(os.environ["POOLING_SOURCES"])), STORED)
