"""Networks that are not ours behind the interface of ours, and their untrained floors."""

from __future__ import annotations

import pytest
import torch
from small_encoder import make_config, make_pixels
from torch import nn

from anlage.encoders.embed_batch import embed_batches
from anlage.encoders.other_network import OtherNetwork
from anlage.encoders.tile_encoder import TileEncoder
from anlage.errors import EncoderError

WIDTH = 6


class Pooled(nn.Module):
    """Layers with weights of every kind: convolution, running statistics, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, WIDTH, 8, 8), nn.BatchNorm2d(WIDTH))
        self.offset = nn.Parameter(torch.full((WIDTH,), 3.0))


def run_pooled(network: Pooled, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    maps = network.layers(image) + network.offset[:, None, None]
    return maps.mean((2, 3)), maps.flatten(2).transpose(1, 2)


def pooled_encoder(**changes: object) -> TileEncoder:
    torch.manual_seed(0)
    network = OtherNetwork(Pooled(), run=run_pooled, width=WIDTH, **({"patch_px": 8} | changes))
    return TileEncoder(make_config(architecture={"timm": "pooled"}, pooling="own"), network)


def brightness(image: torch.Tensor) -> torch.Tensor:
    return image.mean((2, 3))


def function_encoder(width: int = 3) -> TileEncoder:
    network = OtherNetwork(brightness, run=lambda call, image: (call(image), None), width=width)
    return TileEncoder(make_config(architecture={"callable": "f"}, pooling="own"), network)


def test_a_module_embeds_normalised_tiles_by_its_own_code():
    encoder, pixels = pooled_encoder(), make_pixels(3)
    config = encoder.config
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    with torch.no_grad():
        wanted, tokens = run_pooled(encoder.network.network, (pixels / 255 - mean) / std)
    torch.testing.assert_close(encoder.embed(pixels), wanted)
    torch.testing.assert_close(encoder.patch_tokens(pixels), tokens)
    assert (encoder.width, encoder.token_width, encoder.patch_px) == (WIDTH, WIDTH, 8)
    assert encoder.embed(make_pixels(0)).shape == (0, WIDTH)
    assert next(embed_batches(encoder, [pixels], batch_size=4)).shape == (3, WIDTH)


def test_what_needs_our_transformer_is_refused_with_a_remedy():
    with pytest.raises(EncoderError, match=r"pooled.*does not run on anlage's.*anlage encoders"):
        _ = pooled_encoder().model


def test_a_function_without_weights():
    encoder, pixels = function_encoder(), make_pixels(4)
    assert encoder.embed(pixels).shape == (4, 3)
    assert encoder.n_parameters == 0
    with pytest.raises(EncoderError, match=r"gives no patch tokens"):
        encoder.patch_tokens(pixels)
    with pytest.raises(EncoderError, match=r"no untrained floor.*Return a torch.nn.Module"):
        encoder.untrained(0)


@pytest.mark.parametrize("width", [2, 4])
def test_another_width_than_stated_is_refused(width):
    with pytest.raises(EncoderError, match=rf"shape \(4, {width}\); gave shape \(4, 3\)"):
        function_encoder(width).embed(make_pixels(4))


def test_an_output_that_is_no_tensor_is_refused():
    network = OtherNetwork(brightness, run=lambda call, image: ([call(image)], None), width=3)
    with pytest.raises(EncoderError, match="gave list"):
        TileEncoder(make_config(pooling="own"), network).embed(make_pixels(1))


def test_untrained_draws_every_weight_anew_from_the_seed_alone():
    encoder = pooled_encoder()
    with torch.no_grad():
        encoder.network.network.layers[1].running_mean += 2
    before, state = encoder.fingerprint, torch.random.get_rng_state()
    first, again, other = (encoder.untrained(seed) for seed in (7, 7, 8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.fingerprint == again.fingerprint
    assert len({before, first.fingerprint, other.fingerprint}) == 3
    drawn, trained = (e.network.network.state_dict() for e in (first, encoder))
    assert not torch.equal(drawn["layers.0.weight"], trained["layers.0.weight"])
    assert torch.equal(drawn["layers.1.running_mean"], torch.zeros(WIDTH))
    assert encoder.fingerprint == pooled_encoder_with_statistics().fingerprint  # left as it was


def pooled_encoder_with_statistics() -> TileEncoder:
    encoder = pooled_encoder()
    with torch.no_grad():
        encoder.network.network.layers[1].running_mean += 2
    return encoder
