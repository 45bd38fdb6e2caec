import numpy as np
import pytest
import torch
from small_encoder import ARCHITECTURE, MEAN, STD, make_config, make_encoder, make_pixels

from anlage.encoders.precision import has_native_bf16
from anlage.encoders.tile_encoder import TileEncoder, torch_device, weights_sha256
from anlage.errors import DeviceError
from anlage.models.vit import VisionTransformer


def reference_input(pixels: torch.Tensor) -> torch.Tensor:
    """The transform in float64 numpy, pixel by pixel formula."""
    unit = pixels.numpy().astype(np.float64) / 255
    shape = (1, 3, 1, 1)
    normal = (unit - np.reshape(MEAN, shape)) / np.reshape(STD, shape)
    return torch.from_numpy(normal.astype(np.float32))


@pytest.mark.parametrize("pooling", ["cls", "cls+mean"])
def test_embed_is_transform_then_transformer_then_pooling(pooling):
    encoder, pixels = make_encoder(pooling=pooling), make_pixels(5)
    with torch.no_grad():
        tokens = encoder.model([reference_input(pixels)])[0]
    expected = tokens.cls_BD
    if pooling == "cls+mean":  # the mean over 16 patches, without the 2 registers
        expected = torch.cat([tokens.cls_BD, tokens.patches_BND.sum(1) / 16], dim=1)
    found = encoder.embed(pixels)
    assert found.dtype == torch.float32
    assert found.shape == (5, encoder.width)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_patch_tokens_are_the_patches_in_order():
    encoder, pixels = make_encoder(), make_pixels(2)
    with torch.no_grad():
        expected = encoder.model([reference_input(pixels)])[0].patches_BND
    found = encoder.patch_tokens(pixels)
    assert found.shape == (2, 16, 24)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_embedding_does_not_depend_on_its_batch():
    encoder, pixels = make_encoder(), make_pixels(9)
    whole = encoder.embed(pixels)
    alone = torch.cat([encoder.embed(pixels[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=0)


def test_stochastic_depth_is_off_whatever_mode_the_model_came_in():
    encoder = make_encoder()
    assert torch.equal(encoder.embed(make_pixels(4)), encoder.embed(make_pixels(4)))


def test_embedding_can_be_used_in_a_differentiated_probe():
    embedding = make_encoder().embed(make_pixels(4))
    weight = torch.zeros(24, requires_grad=True)
    (embedding @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, embedding.sum(0))


def test_sizes_are_told():
    encoder = make_encoder(pooling="cls+mean")
    assert (encoder.width, encoder.token_width, encoder.patch_px) == (48, 24, 8)
    assert encoder.n_parameters == sum(p.numel() for p in encoder.model.parameters())


def test_empty_batch():
    assert make_encoder(pooling="cls+mean").embed(make_pixels(0)).shape == (0, 48)


def test_pixels_are_not_changed():
    pixels = make_pixels(2)
    before = pixels.clone()
    make_encoder().embed(pixels)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
    ],
)
def test_wrong_pixels_are_refused(pixels):
    with pytest.raises(ValueError, match=r"needs \(B, 3, H, W\) uint8"):
        make_encoder().embed(pixels)


def test_untrained_is_a_function_of_the_seed_alone():
    encoder = make_encoder()
    first, again = encoder.untrained(7), make_encoder(seed=5).untrained(7)
    assert first.fingerprint == again.fingerprint
    assert len({first.fingerprint, encoder.fingerprint, encoder.untrained(8).fingerprint}) == 3
    assert torch.equal(first.embed(make_pixels(3)), again.embed(make_pixels(3)))
    assert first.config.provenance == {"untrained": True, "seed": 7}
    assert first.config.mean == encoder.config.mean


def test_untrained_leaves_the_global_generator_alone():
    encoder = make_encoder()
    before = torch.random.get_rng_state()
    encoder.untrained(1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fingerprint_knows_what_decides_an_embedding_and_nothing_else():
    known = make_encoder().fingerprint
    assert make_encoder(provenance={"run": "b"}).fingerprint == known
    for change in (
        {"mean": (0.7, 0.5, 0.61)},
        {"std": (0.2, 0.25, 0.31)},
        {"mpp": 1.0},
        {"tile_px": 64},
        {"pooling": "cls+mean"},
        {"architecture": ARCHITECTURE | {"n_heads": 4}},
    ):
        assert make_encoder(**change).fingerprint != known, change
    other = make_encoder()
    with torch.no_grad():
        other.model.norm.bias[3] += 1e-6
    assert other.fingerprint != known


def test_weights_sha256_ignores_order_and_sees_shape():
    weight = {"a": torch.arange(6.0), "b": torch.ones(2)}
    assert weights_sha256(weight) == weights_sha256(dict(reversed(weight.items())))
    assert weights_sha256(weight) != weights_sha256(weight | {"a": torch.arange(6.0).view(2, 3)})


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_precision_the_device_does_not_have_is_refused(precision, monkeypatch):
    monkeypatch.setattr("anlage.encoders.precision.has_native_bf16", lambda _: False)
    with pytest.raises(ValueError, match=rf"\(auto, fp32\); got '{precision}' on cpu"):
        TileEncoder(make_config(), VisionTransformer(**ARCHITECTURE), precision=precision)


def test_bf16_on_a_processor_that_has_it():
    if not has_native_bf16(torch.device("cpu")):
        pytest.skip("the processor has no native bf16")
    encoder, pixels = make_encoder(pooling="cls+mean"), make_pixels(8)
    half = TileEncoder(encoder.config, encoder.model, precision="bf16")
    found, exact = half.embed(pixels), encoder.embed(pixels)
    assert half.precision == "bf16"
    assert half.fingerprint == encoder.fingerprint
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert torch.cosine_similarity(found, exact).min() > 0.999


def test_auto_is_fp32_on_the_cpu():
    assert make_encoder().precision == "fp32"


def test_auto_device():
    assert torch_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert torch_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", torch.device("cuda", 99)])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(DeviceError, match="Name auto"):
        torch_device(name)


@pytest.mark.parametrize(
    "change",
    [
        {"std": (0.2, 0.0, 0.3)},
        {"mpp": -1},
        {"tile_px": 0},
        {"mean": (float("nan"), 0, 0)},
        {"pooling": "max"},
        {"sigma": 1},
    ],
)
def test_absurd_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        make_config(**change)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    on_cpu, pixels = make_encoder(pooling="cls+mean"), make_pixels(8)
    expected = on_cpu.embed(pixels)
    model = VisionTransformer(**ARCHITECTURE)
    model.load_state_dict(on_cpu.model.state_dict())
    exact = TileEncoder(on_cpu.config, model, device="cuda", precision="fp32")
    torch.testing.assert_close(exact.embed(pixels).cpu(), expected, atol=1e-4, rtol=0)
    assert exact.fingerprint == on_cpu.fingerprint
    for precision in ("bf16", "fp16"):
        half = TileEncoder(on_cpu.config, model, device="cuda", precision=precision)
        assert torch.cosine_similarity(half.embed(pixels).cpu(), expected).min() > 0.999


def test_pixels_that_lie_channels_last_give_the_same_embeddings() -> None:
    encoder, pixels = make_encoder(), make_pixels(5)
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(encoder._normalised(channels_last), encoder._normalised(pixels))
    torch.testing.assert_close(
        encoder.embed(channels_last), encoder.embed(pixels), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("pooling", ["cls", "cls+mean"])
def test_one_pass_gives_embeddings_and_patch_tokens(pooling: str) -> None:
    encoder, pixels = make_encoder(pooling=pooling), make_pixels(3)
    embedding_BD, patches_BNE = encoder.embed_with_patches(pixels)
    assert torch.equal(embedding_BD, encoder.embed(pixels))
    assert torch.equal(patches_BNE, encoder.patch_tokens(pixels))
