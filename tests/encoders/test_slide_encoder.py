"""The slide encoder's folder, its fingerprint, and the bags that it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from small_slide_encoder import ARCHITECTURE, TILE_ENCODER, make_slide_encoder, slide_config
from some_bags import ATTRIBUTES

from anlage.encoders.slide_encoder import load_slide_encoder, save_slide_encoder
from anlage.errors import BagError, EncoderError

LENGTHS = [40, 9, 1]


def bags() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    cells = torch.randint(0, 30, (50, 2), generator=generator)
    return torch.randn(50, 12, generator=generator), cells


def save(folder, **changes):
    encoder = make_slide_encoder(**changes)
    save_slide_encoder(folder, encoder.network, encoder.config)
    return encoder


def test_a_folder_comes_back_the_same(tmp_path):
    encoder = save(tmp_path / "e", pooling="mean", provenance={"step": 7})
    loaded = load_slide_encoder(tmp_path / "e")
    assert not loaded.network.training
    assert loaded.width == 16
    assert loaded.fingerprint == encoder.fingerprint
    assert loaded.config.provenance == {"step": 7}
    found = loaded.embed(*bags(), LENGTHS)
    assert torch.equal(found, encoder.embed(*bags(), LENGTHS))
    assert (found.shape, found.dtype, found.requires_grad) == ((3, 16), torch.float32, False)


def test_no_random_number_is_drawn_by_loading(tmp_path):
    save(tmp_path / "e")
    before = torch.get_rng_state()
    load_slide_encoder(tmp_path / "e")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"pooling": "mean"},
        {"grid_um": 128.0},
        {"architecture": {**ARCHITECTURE, "pad": "zero"}},
        {"tile_encoder": TILE_ENCODER.model_copy(update={"mpp": 1.0})},
    ],
)
def test_what_decides_an_embedding_is_in_the_fingerprint(changes):
    assert make_slide_encoder(**changes).fingerprint != make_slide_encoder().fingerprint


def test_provenance_is_not_in_the_fingerprint():
    other = make_slide_encoder(provenance={"step": 7})
    assert other.fingerprint == make_slide_encoder().fingerprint


@torch.no_grad()
def test_half_precision_features_are_taken_and_dropout_is_off():
    encoder, (features, cells) = make_slide_encoder(), bags()
    half = features.half()
    first = encoder.embed(half, cells, LENGTHS)
    assert torch.equal(first, encoder.embed(half.float(), cells, LENGTHS))


def test_a_slide_does_not_depend_on_its_batch():
    encoder, (features, cells) = make_slide_encoder(), bags()
    together = encoder.embed(features, cells, LENGTHS)
    alone = encoder.embed(features[40:49], cells[40:49], [9])
    torch.testing.assert_close(together[1], alone[0], atol=1e-6, rtol=0)


def test_a_precision_that_the_device_has_not():
    encoder = make_slide_encoder()
    with pytest.raises(ValueError, match="got 'fp16' on cpu"):
        type(encoder)("x", encoder.config, encoder.network, precision="fp16")


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def turn_a_bit(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (remove_weights, "model.safetensors: is missing"),
        (cut_short, "not a whole safetensors file"),
        (turn_a_bit, "damaged or mixed up"),
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (
            lambda f: change(f, format="encoder/1"),
            "It is a tile encoder; name the folder of a slide",
        ),
        (
            lambda f: change(f, format="slide-encoder/9"),
            "needs format 'slide-encoder/1'; got 'slide-encoder/9'. Open it with the anlage that",
        ),
        (lambda f: change(f, extra=1), "key 'extra'"),
        (lambda f: change(f, grid_um=0), "key 'grid_um'"),
        (lambda f: change(f, architecture={**ARCHITECTURE, "width": 30}), "architecture: .*got w"),
        (lambda f: change(f, architecture={**ARCHITECTURE, "depth": 3}), "no tensor 'blocks.2"),
        (
            lambda f: change(f, tile_encoder={**TILE_ENCODER.model_dump(), "width": 13}),
            "input_width and the tile encoder's width to be one; got 12 and 13",
        ),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, damage, told):
    save(tmp_path / "e")
    damage(tmp_path / "e")
    with pytest.raises(EncoderError, match=told):
        load_slide_encoder(tmp_path / "e")


def test_no_folder(tmp_path):
    with pytest.raises(EncoderError, match="no such slide encoder folder. Name one such as"):
        load_slide_encoder(tmp_path / "e")


def test_what_is_not_of_its_description_is_not_saved(tmp_path):
    encoder = make_slide_encoder()
    other = slide_config(architecture={**ARCHITECTURE, "depth": 3})
    with pytest.raises(ValueError, match="needs a model of the config's architecture"):
        save_slide_encoder(tmp_path / "e", encoder.network, other)
    with torch.no_grad():
        encoder.network.slide_token[0, 0] = torch.nan
    with pytest.raises(EncoderError, match="'slide_token' holds NaN"):
        save_slide_encoder(tmp_path / "e", encoder.network, encoder.config)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("changes", "bag", "told"),
    [
        ({}, {"n_tiles": 0}, "holds no tiles"),
        ({}, {"n_tiles": 1_000_001}, "at most 1,000,000 tiles; got 1,000,001"),
        ({}, {"width": 13}, "is 13 wide; the slide encoder takes anlage-tiny, 12 wide"),
        ({}, {"encoder_fingerprint": "f" * 64}, r"takes anlage-tiny \(eeeeeeeeeeee\)"),
        ({}, {"mpp": 1.0}, "at 1 mpp; the slide encoder takes 0.5"),
    ],
)
def test_a_bag_that_it_was_not_made_for(changes, bag, told):
    facts = {"n_tiles": 50, "width": 12, **bag}
    sizes = {name: facts.pop(name) for name in ("n_tiles", "width")}
    with pytest.raises(BagError, match=told):
        make_slide_encoder(**changes).refuse_bag(
            replace(ATTRIBUTES, **facts), place="bags/a.h5", **sizes
        )


@pytest.mark.parametrize(
    ("known", "fingerprint", "name", "is_taken"),
    [
        (True, "e" * 64, "whatever", True),
        (True, "named:Anlage_Tiny", "Anlage_Tiny", True),
        (True, "named:uni", "uni", False),
        (False, "f" * 64, "anlage-tiny", True),
        (False, "f" * 64, "uni", False),
        (False, "f" * 64, "", True),  # a folder's, which has no name
    ],
)
def test_an_encoder_known_by_name_alone(known, fingerprint, name, is_taken):
    facts = TILE_ENCODER.model_copy(update={} if known else {"fingerprint": None})
    encoder = make_slide_encoder(tile_encoder=facts)
    made = replace(ATTRIBUTES, encoder_fingerprint=fingerprint, encoder_name=name)
    if is_taken:
        encoder.refuse_bag(made, width=12, n_tiles=5, place="a.h5")
    else:
        with pytest.raises(BagError, match="was made with encoder uni"):
            encoder.refuse_bag(made, width=12, n_tiles=5, place="a.h5")


@pytest.mark.parametrize("name", ["prov-gigapath", "gigapath", "prov-gigapath/prov-gigapath"])
def test_gigapaths_tile_encoder_by_the_names_that_tools_give_it(name):
    facts = TILE_ENCODER.model_copy(update={"name": "prov-gigapath", "fingerprint": None})
    encoder = make_slide_encoder(tile_encoder=facts)
    made = replace(ATTRIBUTES, encoder_fingerprint=f"named:{name}", encoder_name=name, mpp=0.503)
    encoder.refuse_bag(made, width=12, n_tiles=5, place="a.h5")
    with pytest.raises(BagError, match="takes prov-gigapath"):
        encoder.refuse_bag(
            replace(made, encoder_name="h-optimus-0"), width=12, n_tiles=5, place="a.h5"
        )
