"""A slide model of route cls or mean is Prov-GigaPath's open fine-tuned model (tests/golden)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import pooling_inputs as given
from official_slide_weights import bag_of, official_weights

from anlage.encoders.slide_weights import convert_slide_weights
from anlage.models.dilated_attention import gigapath_branches
from anlage.models.slide_model import SlideModel
from anlage.objectives.slide_classification import class_loss

STORED = json.loads((Path(given.__file__).parent / "bag_pooling.json").read_text())["gigapath_head"]
ROUTES = list(zip(given.GIGAPATH_ROUTES, STORED, strict=True))


def made(layers: tuple[int, ...], route: str) -> SlideModel:
    segments, dilations = zip(*gigapath_branches(), strict=True)
    sizes = {name: given.GIGAPATH_SIZES[name] for name in ("width", "depth")}
    encoder: dict[str, Any] = {**sizes, "n_heads": 16, "pad": "zero"}
    encoder |= {"segments": segments, "dilations": dilations}
    width = given.GIGAPATH_SIZES["input_width"]
    model = SlideModel(
        input_width=width,
        n_outputs=given.N_CLASSES,
        slide_encoder=encoder,
        route=route,
        layers=layers,
    )
    given.fill(model)
    architecture = encoder | {"input_width": width}
    weights = official_weights(**given.GIGAPATH_SIZES)
    converted = convert_slide_weights(weights, architecture, path="official")[0]
    model.slide_encoder.load_state_dict(converted)
    return model.eval()


@pytest.mark.parametrize(("choice", "stored"), ROUTES, ids=[str(choice) for choice, _ in ROUTES])
def test_logits_and_gradients(choice: tuple, stored: dict[str, Any]) -> None:
    model = made(*choice)
    features, cell = bag_of(given.GIGAPATH_TILES, input_width=model.input_width)
    output = model(features, cell.long(), [given.GIGAPATH_TILES])
    class_loss(output.logits_BC, torch.tensor([1])).sum().backward()
    for found, expected in (
        (output.logits_BC[0], stored["logits"]),
        (model.head[0].weight.grad[0], stored["head_gradient"]),
        (model.slide_encoder.tile_embed.weight.grad[0], stored["tile_gradient"]),
    ):
        scale = max(map(abs, expected))
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5 * scale, rtol=1e-5)


def test_layers_are_theirs_but_for_the_tile_embedding() -> None:
    """Its code looks for names that begin with patch_embed; they begin with slide_encoder."""
    theirs: dict[str, set[int]] = {}
    for name, layer in STORED[0]["layers"].items():
        part = re.sub(r"^slide_encoder\.encoder\.layers\.(\d+)\..*", r"blocks.\1", name)
        theirs.setdefault(part.removeprefix("slide_encoder.").split(".w")[0], set()).add(layer)
    model = made((2,), "cls")
    ours: dict[str, set[int]] = {}
    for name, layer in model.parameter_layers().items():
        part = ".".join(name.removeprefix("slide_encoder.").split(".")[:2])
        ours.setdefault(part, set()).add(layer)
    assert ours["blocks.0"] == theirs["blocks.0"] == {1}
    assert ours["blocks.1"] == theirs["blocks.1"] == {2}
    assert ours["slide_token"] == theirs["cls_token"] == {0}
    assert ours["norm.weight"] == theirs["norm"] == {model.n_layers}
    assert ours["head.0"] == theirs["classifier.0"] == {model.n_layers}
    assert ours["tile_embed.weight"] == {0}
    assert theirs["patch_embed.proj"] == {model.n_layers}
