"""What holds of every slide encoder, whatever its size, padding, pooling and origin."""

import pytest
import torch
from official_slide_weights import official_weights
from some_bags import ATTRIBUTES

from anlage.encoders.precision import has_native_bf16
from anlage.encoders.slide_encoder import (
    OpenSlideEncoder,
    SlideEncoderConfig,
    TileEncoderFacts,
    load_slide_encoder,
    save_slide_encoder,
)
from anlage.encoders.slide_presets import SLIDE_PRESETS
from anlage.encoders.slide_weights import convert_slide_weights
from anlage.models.slide_encoder import SlideEncoder
from anlage.models.slide_sizes import SIZES

LENGTHS = [200, 1, 33]
WIDTH = 24


def opened(architecture: dict, weights: dict | None = None, **changes) -> OpenSlideEncoder:
    network = SlideEncoder(**architecture)
    network.initialise(torch.Generator().manual_seed(0))
    if weights is not None:
        network.load_state_dict(weights)
    facts = TileEncoderFacts(
        name="anlage-tiny", fingerprint="e" * 64, mpp=0.5, tile_px=224, width=WIDTH
    )
    config = SlideEncoderConfig(
        architecture=architecture, grid_um=128.0, tile_encoder=facts, **changes
    )
    return OpenSlideEncoder("test", config, network)


def of_size(name: str, **changes) -> OpenSlideEncoder:
    shallow = {**SIZES[name], "depth": 2, "dropout": 0.1, "stochastic_depth": 0.1}
    return opened({"input_width": WIDTH, **shallow}, **changes)


def of_published_file() -> OpenSlideEncoder:
    sizes = {"input_width": WIDTH, "width": 32, "depth": 2}
    architecture = {**SLIDE_PRESETS["prov-gigapath-slide"].architecture, **sizes}
    weights = convert_slide_weights(official_weights(**sizes), architecture, path="f").weights
    return opened(architecture, weights)


EVERY = {
    "tiny": lambda: of_size("tiny"),
    "base, mean": lambda: of_size("base", pooling="mean"),
    "gigapath": lambda: of_size("gigapath"),
    "published": of_published_file,
}


@pytest.fixture(params=EVERY, scope="module")
def encoder(request) -> OpenSlideEncoder:
    return EVERY[request.param]()


@pytest.fixture(scope="module")
def bags() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    n_tiles = sum(LENGTHS)
    cells = torch.randint(0, 1200, (n_tiles, 2), generator=generator)
    return torch.randn(n_tiles, WIDTH, generator=generator), cells


def test_one_finite_row_a_bag_without_a_gradient(encoder, bags):
    found = encoder.embed(*bags, LENGTHS)
    assert (found.shape, found.dtype) == ((3, encoder.width), torch.float32)
    assert found.isfinite().all()
    assert not found.requires_grad


def test_each_bag_by_itself_gives_its_row(encoder, bags):
    features, cells = bags
    together = encoder.embed(features, cells, LENGTHS)
    parts = zip(features.split(LENGTHS), cells.split(LENGTHS), LENGTHS, strict=True)
    alone = torch.cat([encoder.embed(f, c, [length]) for f, c, length in parts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_nothing_is_drawn_and_nothing_changes(encoder, bags):
    before = torch.get_rng_state()
    first, second = encoder.embed(*bags, LENGTHS), encoder.embed(*bags, LENGTHS)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_its_folder_is_it(encoder, bags, tmp_path):
    save_slide_encoder(tmp_path / "e", encoder.network, encoder.config)
    loaded = load_slide_encoder(tmp_path / "e")
    assert loaded.fingerprint == encoder.fingerprint
    assert torch.equal(loaded.embed(*bags, LENGTHS), encoder.embed(*bags, LENGTHS))


def test_bfloat16_is_near(encoder, bags):
    if not has_native_bf16(torch.device("cpu")):
        pytest.skip("the processor has no native bf16")
    half = OpenSlideEncoder("half", encoder.config, encoder.network, precision="bf16")
    wanted, found = encoder.embed(*bags, LENGTHS), half.embed(*bags, LENGTHS)
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_the_bags_it_was_made_for_are_taken(encoder):
    encoder.refuse_bag(ATTRIBUTES, width=WIDTH, n_tiles=10, place="a.h5")
