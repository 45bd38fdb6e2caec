"""The slide model: routes, layers, shortcut, one bag at a time, layer numbers, refusals."""

from typing import Any

import pytest
import torch

from anlage.models.bag_pooling.kinds import POOLINGS
from anlage.models.slide_model import SlideModel

ENCODER = {"width": 16, "depth": 3, "n_heads": 2, "segments": [4, 16], "dilations": [1, 2]}
LENGTHS = (7, 1, 12)
TRANSMIL = {"kind": "transmil", "width": 16, "n_heads": 2, "n_landmarks": 8}
MODELS: dict[str, dict[str, Any]] = {
    **{f"{kind} alone": {"pooling": {"kind": kind}} for kind in POOLINGS if kind != "transmil"},
    "TransMIL alone": {"pooling": TRANSMIL},
    "LongNet + ABMIL": {"slide_encoder": ENCODER, "pooling": {"kind": "abmil"}},
    "LongNet + TransMIL": {"slide_encoder": ENCODER, "pooling": TRANSMIL},
    "with a shortcut": {
        "slide_encoder": ENCODER,
        "pooling": {"kind": "gated_abmil"},
        "shortcut": True,
    },
    "with a shortcut in each branch": {"pooling": {"kind": "clam_mb"}, "shortcut": True},
    "with a shortcut of means": {"slide_encoder": ENCODER, "route": "cls", "shortcut": True},
    "slide token": {"slide_encoder": ENCODER, "route": "cls"},
    "slide tokens of layers": {"slide_encoder": ENCODER, "route": "cls", "layers": (3, 0)},
    "mean of tiles": {"slide_encoder": ENCODER, "route": "mean", "layers": (2,)},
}


def made(n_outputs: int = 3, **settings: Any) -> SlideModel:
    torch.manual_seed(0)
    return SlideModel(input_width=6, n_outputs=n_outputs, **settings).eval()


def bags() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    cell = torch.randint(0, 30, (sum(LENGTHS), 2), generator=generator)
    return torch.randn(sum(LENGTHS), 6, generator=generator), cell


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_equals_one_bag_at_a_time(name: str) -> None:
    model = made(**MODELS[name])
    features, cell = bags()
    together = model(features, cell, LENGTHS)
    assert together.logits_BC.shape == (3, 3)
    assert together.logits_BC.dtype == torch.float32
    alone = [
        model(tiles, places, [len(tiles)])
        for tiles, places in zip(features.split(LENGTHS), cell.split(LENGTHS), strict=True)
    ]
    logits = torch.cat([one.logits_BC for one in alone])
    torch.testing.assert_close(together.logits_BC, logits, atol=1e-5, rtol=0)
    if together.attention_TA is not None:
        attention = torch.cat([one.attention_TA for one in alone])
        torch.testing.assert_close(together.attention_TA, attention, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name: str) -> None:
    model = made(**MODELS[name]).train()
    output = model(*bags(), LENGTHS)
    loss = output.logits_BC.square().sum()
    if output.instances is not None:
        loss = loss + output.instances.top_BCK2.square().sum()
    loss.backward()
    still = {name for name, p in model.named_parameters() if p.grad is None}
    layers = MODELS[name].get("layers", (3,))
    unused = tuple(f"slide_encoder.blocks.{block}." for block in range(max(layers), 3))
    if "layers" in MODELS[name]:
        unused = (*unused, "slide_encoder.encoder_norm.")
    assert still == {n for n, _ in model.named_parameters() if n.startswith(unused)}


def test_what_the_pooling_sees_is_the_context_of_tiles() -> None:
    model = made(slide_encoder=ENCODER, pooling={"kind": "abmil"})
    features, cell = bags()
    context = model.slide_encoder(features, cell, LENGTHS).tile_TD
    pooled = model.pooling(context, LENGTHS)
    output = model(features, cell, LENGTHS)
    torch.testing.assert_close(output.logits_BC, model.head(pooled.embedding_BW))
    torch.testing.assert_close(output.attention_TA, pooled.attention_TA)


@pytest.mark.parametrize("route", ["cls", "mean"])
@pytest.mark.parametrize("layers", [None, (3,), (0, 2, 1)])
def test_the_head_gets_states_side_by_side(route: str, layers: tuple[int, ...] | None) -> None:
    model = made(slide_encoder=ENCODER, route=route, layers=layers)
    features, cell = bags()
    states = model.slide_encoder.pooled(features, cell, LENGTHS, layers=layers, pooling=route)
    assert states.shape[1] == 16 * len(layers or (3,))
    output = model(features, cell, LENGTHS)
    torch.testing.assert_close(output.logits_BC, model.head(states))
    assert output.attention_TA is None


def test_the_shortcut_takes_the_tiles_that_the_attention_takes() -> None:
    model = made(slide_encoder=ENCODER, pooling={"kind": "abmil"}, shortcut=True)
    features, cell = bags()
    output = model(features, cell, LENGTHS)
    weighted = (output.attention_TA * features).split(LENGTHS)
    tiles = model.shortcut_norm(torch.stack([bag.sum(dim=0) for bag in weighted]))
    context = model.slide_encoder(features, cell, LENGTHS).tile_TD
    pooled = model.pooling(context, LENGTHS).embedding_BW
    expected = model.head(torch.cat([pooled, tiles], dim=1))
    torch.testing.assert_close(output.logits_BC, expected)


@pytest.mark.parametrize("kind", ["clam_sb", "clam_mb"])
def test_clam_with_one_output_has_two_classes(kind: str) -> None:
    output = made(n_outputs=1, pooling={"kind": kind, "n_instances": 2})(*bags(), LENGTHS)
    assert output.logits_BC.shape == (3, 1)
    assert output.instances.top_BCK2.shape == (3, 2, 2, 2)


def test_an_ordered_head_gives_falling_logits() -> None:
    logits = made(n_outputs=5, head="ordered")(*bags(), LENGTHS).logits_BC
    assert (logits.diff(dim=1) < 0).all()


def test_recomputing_changes_nothing() -> None:
    model = made(slide_encoder=ENCODER | {"dropout": 0.2, "stochastic_depth": 0.3}).train()
    found = []
    for recompute in (False, True):
        torch.manual_seed(5)
        model.zero_grad()
        model(*bags(), LENGTHS, recompute=recompute).logits_BC.sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


def test_half_precision_features_and_autocast() -> None:
    model = made(slide_encoder=ENCODER)
    features, cell = bags()
    exact = model(features.half().float(), cell, LENGTHS).logits_BC
    torch.testing.assert_close(model(features.half(), cell, LENGTHS).logits_BC, exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(features, cell, LENGTHS)
    assert rough.logits_BC.dtype == torch.float32
    assert (rough.logits_BC - exact).abs().max() < 0.05
    torch.testing.assert_close(rough.attention_TA[:7].sum(), torch.tensor(1.0))


def test_layers_of_parameters_are_those_of_beit() -> None:
    model = made(slide_encoder=ENCODER, shortcut=True)
    layers = model.parameter_layers()
    assert list(layers) == [name for name, _ in model.named_parameters()]
    assert model.n_layers == 4
    for name, layer in layers.items():
        if name.startswith("slide_encoder.blocks."):
            assert layer == int(name.split(".")[2]) + 1
        elif name.startswith(("slide_encoder.tile_embed", "slide_encoder.slide_token")):
            assert layer == 0
        else:
            assert layer == 4
    assert sorted(set(layers.values())) == [0, 1, 2, 3, 4]
    alone = made()
    assert set(alone.parameter_layers().values()) == {alone.n_layers}


NAN = float("nan")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"route": "max"}, "route 'pool', 'cls' or 'mean'; got 'max'"),
        ({"route": "cls"}, "slide encoder missing"),
        (
            {"route": "cls", "slide_encoder": ENCODER, "pooling": {"kind": "mean"}},
            "no pooling for route 'cls'",
        ),
        ({"layers": (1,), "slide_encoder": ENCODER}, "no layers with route 'pool'"),
        (
            {"layers": (4,), "route": "cls", "slide_encoder": ENCODER},
            r"layers from 0 .* to 3 .*got \[4\]",
        ),
        ({"layers": (), "route": "cls", "slide_encoder": ENCODER}, r"layers from 0 .*got \[\]"),
        ({"dropout": 1.0}, r"dropouts in \[0, 1\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"SlideModel: needs .*{says}"):
        made(**settings)


def test_bags_that_do_not_fit_are_refused() -> None:
    features, cell = bags()
    model = made(slide_encoder=ENCODER)
    for arguments, says in (
        ((features, None, LENGTHS), "the cell of each tile"),
        ((features[:, :4], cell, LENGTHS), r"\(tiles, 6\); got \(20, 4\)"),
        ((features, cell, (7, 0, 13)), r"got lengths \[7, 0, 13\]"),
        ((features, cell, (7, 12)), "sum of 19"),
    ):
        with pytest.raises(ValueError, match=f"SlideModel: needs .*{says}"):
            model(*arguments)
