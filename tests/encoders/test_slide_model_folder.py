"""The folder of a slide model: predictions of every kind, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from some_bags import ATTRIBUTES

from anlage.encoders.slide_encoder import TileEncoderFacts
from anlage.encoders.slide_model_folder import (
    SlideModelConfig,
    SlideTask,
    load_slide_model,
    save_slide_model,
)
from anlage.errors import BagError, EncoderError
from anlage.models.slide_model import SlideModel
from anlage.objectives.slide_regression import target_moments

MADE_FOR = TileEncoderFacts(name="anlage-tiny", fingerprint="e" * 64, mpp=0.5, tile_px=224, width=6)
TASK = SlideTask(kind="binary", target=("label",), classes=("no", "yes"))


def config_of(task: SlideTask = TASK, **architecture: object) -> SlideModelConfig:
    arguments = {"input_width": 6, "n_outputs": 1, "pooling": {"kind": "abmil", "width": 4}}
    return SlideModelConfig(
        architecture={**arguments, **architecture}, task=task, tile_encoder=MADE_FOR
    )


def bags() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    generator = torch.Generator().manual_seed(0)
    cells = torch.arange(14).view(7, 2)
    return torch.randn(7, 6, generator=generator), cells, [4, 3]


def test_a_model_comes_back_as_it_was(tmp_path) -> None:
    config = config_of(
        slide_encoder={"width": 8, "depth": 2, "n_heads": 2, "segments": [4], "dilations": [1]}
    )
    network = SlideModel(**config.architecture).eval()
    save_slide_model(tmp_path / "model", network, config)
    opened = load_slide_model(tmp_path / "model")
    assert opened.config.task == TASK
    assert opened.config.weights_sha256 is not None
    with torch.no_grad():
        output = network(*bags())
    found = opened.predict(*bags())
    torch.testing.assert_close(found.output.logits_BC, output.logits_BC, rtol=0, atol=0)
    assert found.score_BP[:, 0].tolist() == output.logits_BC.sigmoid()[:, 0].tolist()
    assert found.attention_TA is not None
    assert found.attention_TA[:4].sum() == pytest.approx(1)
    assert len(opened.fingerprint) == 64


def test_predictions_are_read_by_the_task() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.0, 0.0]])
    classes = SlideTask(kind="multi_class", target=("t",), classes=("a", "b", "c"))
    assert classes.score_names == ("probability_a", "probability_b", "probability_c")
    torch.testing.assert_close(classes.scores(logits), logits.softmax(1).double())
    labels = SlideTask(kind="multi_label", target=("a", "b", "c"), classes=("a", "b", "c"))
    torch.testing.assert_close(labels.scores(logits), logits.sigmoid().double())
    falling = torch.tensor([[1.0, -1.0]])
    grades = SlideTask(kind="ordinal", target=("g",), classes=("0", "1", "2"))
    s = falling.sigmoid()[0].double()
    expected = torch.stack([1 - s[0], s[0] - s[1], s[1]])
    torch.testing.assert_close(grades.scores(falling)[0], expected, rtol=1e-5, atol=1e-6)
    cox = SlideTask(kind="survival_cox", target=("t", "e"))
    assert cox.scores(logits[:, :1])[0, 0] == pytest.approx(0.3)


def test_survival_is_told_at_the_edges() -> None:
    task = SlideTask(kind="survival_discrete", target=("t", "e"), edges=(12.0, 24.5))
    assert task.score_names == ("risk", "survival_1", "survival_2")
    hazard = torch.tensor([[-1.0, 0.0, 2.0]]).sigmoid()[0].double()
    alive = (1 - hazard).cumprod(0)
    found = task.scores(torch.tensor([[-1.0, 0.0, 2.0]]))[0]
    torch.testing.assert_close(
        found, torch.stack([-alive.sum(), alive[0], alive[1]]), rtol=1e-5, atol=1e-6
    )


def test_numbers_come_back_in_their_unit() -> None:
    target = torch.tensor([2.0, 4.0, 9.0])
    moments = target_moments(target)
    task = SlideTask(
        kind="regression",
        target=("tmb",),
        mean=float(moments.mean_C),
        deviation=float(moments.deviation_C),
    )
    torch.testing.assert_close(
        task.scores(moments.standardised(target))[:, 0], target.double(), rtol=1e-6, atol=1e-6
    )


def test_other_bags_are_refused(tmp_path) -> None:
    config = config_of()
    save_slide_model(tmp_path / "model", SlideModel(**config.architecture), config)
    opened = load_slide_model(tmp_path / "model")
    made = replace(ATTRIBUTES, encoder_fingerprint="e" * 64)
    opened.refuse_bag(made, width=6, n_tiles=3, place="a.h5")
    for change, width, told in (
        ({}, 7, "is 7 wide"),
        ({"encoder_fingerprint": "f" * 64}, 6, "was made with encoder"),
        ({"mpp": 1.0}, 6, "at 1 mpp"),
    ):
        with pytest.raises(BagError, match=told):
            opened.refuse_bag(replace(made, **change), width=width, n_tiles=3, place="a.h5")
    with pytest.raises(BagError, match="holds no tiles"):
        opened.refuse_bag(made, width=6, n_tiles=0, place="a.h5")


def spoil_format(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": "slide-model/9"}))


def spoil_weights(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def spoil_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architecture"]["n_outputs"] = 2
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_format, "slide-model/9"),
        (spoil_weights, "damaged or mixed up"),
        (spoil_architecture, "does not fit the architecture"),
        (lambda folder: (folder / "model.safetensors").unlink(), "is missing"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    ],
)
def test_damaged_folders_are_refused(spoil, told, tmp_path) -> None:
    config = config_of()
    save_slide_model(tmp_path / "model", SlideModel(**config.architecture), config)
    spoil(tmp_path / "model")
    with pytest.raises(EncoderError, match=told):
        load_slide_model(tmp_path / "model")


def test_another_architecture_is_not_written(tmp_path) -> None:
    config = config_of()
    with pytest.raises(ValueError, match="needs a model of the config's architecture"):
        save_slide_model(tmp_path / "m", SlideModel(**config_of(n_outputs=2).architecture), config)
