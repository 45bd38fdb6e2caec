"""A look at an encoder: each number against an oracle, and nothing of the run disturbed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from small_encoder import ARCHITECTURE, make_config, make_encoder
from watched import make_watched_tiles

from anlage.errors import EncoderError
from anlage.models.vit import VisionTransformer
from anlage.training.watch import look, look_unlabelled
from anlage.training.watched_rows import watched_splits
from reference.slow_minibatch_probes import eva_probe

SETTINGS = {"neighbours": 3, "probe_steps": 20, "batch_size": 8}


def global_generators() -> tuple[object, ...]:
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the one not to be touched
    return torch.get_rng_state().tolist(), numpy_state, random.getstate()


def make_model() -> VisionTransformer:
    model = VisionTransformer(**ARCHITECTURE)
    model.initialise(torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def tiles():
    """Labels that colours tell only in part, so that scores lie between chance and 1."""
    made = make_watched_tiles(n_groups=8)
    pixels = made.pixels_N3SS.copy()
    flip = np.random.default_rng(1).random(len(made)) < 0.3
    pixels[flip] = pixels[flip][:, ::-1]
    return make_watched_tiles(n_groups=8, pixels_N3SS=pixels)


@pytest.fixture
def seen(tiles):
    return look(make_model(), tiles, config=make_config(), **SETTINGS)


def test_embeds_as_the_encoder_will(tiles, seen) -> None:
    encoder = make_encoder()
    encoder.model.load_state_dict(make_model().state_dict())
    wanted = encoder.embed(torch.from_numpy(tiles.pixels_N3SS))
    np.testing.assert_allclose(seen.embedding_ND, wanted.numpy(), atol=1e-5)


def test_pools_as_configured(tiles) -> None:
    config = make_config(pooling="cls+mean")
    assert look(make_model(), tiles, config=config, **SETTINGS).embedding_ND.shape[1] == 48


def test_knn_is_scikit_learns_on_the_same_folds(tiles, seen) -> None:
    predicted = np.empty_like(tiles.label_N)
    for split in watched_splits(tiles, neighbours=3):
        train, test = (seen.embedding_ND[rows].astype(float) for rows in (split.train, split.test))
        mean = train.mean(0)
        train, test = (
            (x - mean) / np.linalg.norm(x - mean, axis=1)[:, None] for x in (train, test)
        )
        theirs = KNeighborsClassifier(3).fit(train, tiles.label_N[split.train])
        predicted[split.test] = theirs.predict(test)
    wanted = balanced_accuracy_score(tiles.label_N, predicted)
    assert seen.metrics["watch_knn"] == pytest.approx(wanted)
    assert 0.5 < wanted < 1


def test_the_other_numbers_are_their_formulas(seen) -> None:
    x = seen.embedding_ND.astype(np.float64)
    s = np.linalg.svd(x, compute_uv=False)
    share = s / s.sum()
    unit = x / np.linalg.norm(x, axis=1)[:, None]
    correlation = np.abs(np.corrcoef(x.T))
    off = correlation[~np.eye(len(correlation), dtype=bool)].mean()
    wanted = {
        "watch_rankme": np.exp(-(share * np.log(share)).sum()),
        "watch_odcorr": off,
        "watch_feature_std": unit.std(0).mean(),
        "watch_uniformity": np.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean()),
    }
    assert set(seen.metrics) == {*wanted, "watch_knn", "watch_linear"}
    for name, value in wanted.items():
        assert seen.metrics[name] == pytest.approx(value, rel=1e-4), name


def test_linear_is_a_plain_torch_loop_on_the_same_folds(tiles, seen) -> None:
    predicted = np.empty_like(tiles.label_N)
    for split in watched_splits(tiles, neighbours=3):
        names, code = np.unique(tiles.label_N[split.train], return_inverse=True)
        x = torch.from_numpy(seen.embedding_ND)
        weight, bias, _ = eva_probe(
            x[split.train], torch.from_numpy(code), n_classes=2, seed=0, n_steps=20, batch=256
        )
        predicted[split.test] = names[(x[split.test] @ weight.T + bias).argmax(1).numpy()]
    assert seen.metrics["watch_linear"] == balanced_accuracy_score(tiles.label_N, predicted)


def test_patients_alone_are_not_learnt() -> None:
    """Colour tells the patient and nothing the class: folds of tiles would score 1."""
    made = make_watched_tiles(n_groups=20, per_group=6)
    generator = np.random.default_rng(2)
    colour = generator.integers(0, 200, (20, 3)).repeat(6, axis=0)[:, :, None, None]
    noise = generator.integers(0, 20, made.pixels_N3SS.shape)
    tiles = make_watched_tiles(
        n_groups=20, per_group=6, pixels_N3SS=(colour + noise).astype(np.uint8)
    )
    model = make_model()
    metrics = look(model, tiles, config=make_config(), neighbours=5, probe_steps=100).metrics
    assert 0.2 < metrics["watch_knn"] < 0.8
    leaky = make_watched_tiles(
        n_groups=20,
        per_group=6,
        pixels_N3SS=tiles.pixels_N3SS,
        group_N=np.array([f"tile{row}" for row in range(120)]),
    )
    metrics = look(model, leaky, config=make_config(), neighbours=5, probe_steps=100).metrics
    assert metrics["watch_knn"] > 0.9


def test_the_same_look_twice_is_bit_equal_and_draws_nothing(tiles, seen) -> None:
    model = make_model()
    before = global_generators()
    again = look(model, tiles, config=make_config(), **SETTINGS)
    assert global_generators() == before
    assert again.metrics == seen.metrics
    assert (again.embedding_ND == seen.embedding_ND).all()


def test_the_model_comes_back_as_it_was(tiles) -> None:
    model = make_model().train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    look(model, tiles, config=make_config(), **SETTINGS)
    look_unlabelled(model, torch.from_numpy(tiles.pixels_N3SS), config=make_config())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and not p.is_inference() for p in model.parameters())
    broken = torch.nn.init.constant_(model.norm.bias, float("nan"))
    assert broken.isnan().all()
    with pytest.raises(EncoderError, match="watched.csv: needs finite embeddings; .* tile 0"):
        look(model, tiles, config=make_config(), **SETTINGS)
    assert [module.training for module in model.modules()] == modes


def test_without_labels_the_same_numbers_without_probes(tiles, seen) -> None:
    pixels = torch.from_numpy(tiles.pixels_N3SS)
    plain = look_unlabelled(make_model(), pixels, config=make_config(), batch_size=8)
    wanted = {k: v for k, v in seen.metrics.items() if k not in {"watch_knn", "watch_linear"}}
    assert plain.metrics == wanted
    with pytest.raises(ValueError, match="look_unlabelled: needs .* torch.float32. Stack"):
        look_unlabelled(make_model(), pixels.float(), config=make_config())


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_collapsed_encoder_is_told_of_and_does_not_end_the_run(tiles, caplog, bias) -> None:
    model = make_model()
    torch.nn.init.zeros_(model.norm.weight)
    torch.nn.init.constant_(model.norm.bias, bias)
    metrics = look(model, tiles, config=make_config(), **SETTINGS).metrics
    assert np.isnan([metrics["watch_knn"], metrics["watch_linear"], metrics["watch_odcorr"]]).all()
    assert metrics["watch_rankme"] == pytest.approx(bias, abs=1e-4)
    assert metrics["watch_feature_std"] == pytest.approx(0, abs=1e-9)
    assert bias == 0 or metrics["watch_uniformity"] == pytest.approx(0, abs=1e-6)
    assert "watch_knn has no value" in caplog.text
    assert "collapsed" in caplog.text
