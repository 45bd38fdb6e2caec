"""Zero-shot against cosines and sorted logits in plain numpy; prompts; refusals."""

import numpy as np
import pytest
import torch

from anlage.probes.few_shot.zero_shot import (
    TOP_J,
    class_vectors_from_prompts,
    mi_zero_shot,
    zero_shot,
)

RNG = np.random.default_rng(0)
TEXT = RNG.normal(size=(9, 6))
CLASS_OF_PROMPT = ["lusc", "luad", "lusc", "normal", "luad", "luad", "normal", "lusc", "luad"]
IMAGE = RNG.normal(size=(25, 6)) * 10
BAGS = [RNG.normal(size=(n, 6)) for n in (3, 240, 17, 1)]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def softmax(logits):
    weight = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)


VECTORS, CLASSES = class_vectors_from_prompts(TEXT, CLASS_OF_PROMPT)


def test_class_vectors_are_means_of_unit_prompts_made_unit():
    for name, vector in zip(CLASSES, VECTORS, strict=True):
        mine = [row for row, of in zip(TEXT, CLASS_OF_PROMPT, strict=True) if of == name]
        np.testing.assert_allclose(vector, unit(unit(np.array(mine)).mean(axis=0)), atol=1e-6)
    assert CLASSES.tolist() == ["luad", "lusc", "normal"]
    lengths = np.arange(1, 10)[:, None]  # of prompts count for nothing
    np.testing.assert_allclose(
        class_vectors_from_prompts(TEXT * lengths, CLASS_OF_PROMPT)[0], VECTORS, atol=1e-6
    )


@pytest.mark.parametrize("logit_scale", [1.0, 56.3])
def test_probabilities_of_scaled_cosines(logit_scale):
    got = zero_shot(IMAGE, VECTORS * 7, CLASSES, logit_scale=logit_scale)
    logits = logit_scale * unit(IMAGE) @ VECTORS.T
    np.testing.assert_allclose(got.score_NC, softmax(logits), atol=1e-4)
    assert (got.label_N == CLASSES[logits.argmax(axis=1)]).all()


def test_classes_may_come_in_any_order_and_rows_in_any_block(monkeypatch):
    expected = zero_shot(IMAGE, VECTORS, CLASSES)
    monkeypatch.setattr("anlage.probes.few_shot.zero_shot.BLOCK_ROWS", 4)
    got = zero_shot(torch.from_numpy(IMAGE), VECTORS[[2, 0, 1]], CLASSES[[2, 0, 1]])
    assert (got.class_C == expected.class_C).all()
    assert (got.label_N == expected.label_N).all()
    np.testing.assert_allclose(got.score_NC, expected.score_NC, atol=1e-5)


def test_the_top_j_tiles_of_each_class_are_averaged(monkeypatch):
    monkeypatch.setattr("anlage.probes.few_shot.tile_bags.BLOCK_TILES", 32)
    got = mi_zero_shot(BAGS, VECTORS, CLASSES, logit_scale=10)
    assert tuple(got) == TOP_J == (1, 5, 10, 50, 100)
    for j, prediction in got.items():
        for bag, label, score in zip(BAGS, prediction.label_N, prediction.score_NC, strict=True):
            cosine = np.sort(unit(bag) @ VECTORS.T, axis=0)[::-1]
            pooled = cosine[:j].mean(axis=0)
            np.testing.assert_allclose(score, softmax(10 * pooled), atol=1e-5)
            assert label == CLASSES[pooled.argmax()]


def test_a_bag_of_one_tile_is_that_tile():
    single = mi_zero_shot([IMAGE[:1]], VECTORS, CLASSES, top_j=(3,))[3]
    np.testing.assert_allclose(
        single.score_NC, zero_shot(IMAGE[:1], VECTORS, CLASSES).score_NC, atol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_vectors_from_prompts(TEXT, ["a"] * 9), "two classes or more"),
        (lambda: class_vectors_from_prompts(TEXT, CLASS_OF_PROMPT[1:]), "each of 9 rows"),
        (
            lambda: class_vectors_from_prompts([[1, 0], [-1, 0], [0, 1]], ["a", "a", "b"]),
            r"needs a direction; got zero for \['a'\]",
        ),
        (lambda: zero_shot(IMAGE, VECTORS, ["a", "b"]), "each of 3 rows"),
        (lambda: zero_shot(IMAGE, VECTORS, ["a", "b", "a"]), "each once; got .*class_vectors_from"),
        (lambda: zero_shot(IMAGE, VECTORS * [[1], [0], [1]], CLASSES), r"zero for \['lusc'\]"),
        (lambda: zero_shot(IMAGE[:, :5], VECTORS, CLASSES), "one width"),
        (lambda: zero_shot(IMAGE * np.nan, VECTORS, CLASSES), "finite"),
        (lambda: zero_shot(IMAGE[:0], VECTORS, CLASSES), "non-empty"),
        (lambda: zero_shot(IMAGE, VECTORS, CLASSES, logit_scale=0), "logit_scale above 0"),
        (lambda: mi_zero_shot([], VECTORS, CLASSES), "bags needs one bag or more"),
        (lambda: mi_zero_shot(BAGS, VECTORS, CLASSES, top_j=()), "top_j needs one number or more"),
        (lambda: mi_zero_shot(BAGS, VECTORS, CLASSES, top_j=(5, 0)), r"got .*top_j=\(5, 0\)"),
        (lambda: mi_zero_shot([IMAGE[:, :5]], VECTORS, CLASSES), "bag 0 from tile 0 needs .* 6"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees():
    cpu, cuda = (zero_shot(IMAGE, VECTORS, CLASSES, device=d) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(cpu.score_NC, cuda.score_NC, atol=1e-4)
    one = mi_zero_shot(BAGS, VECTORS, CLASSES)[5]
    other = mi_zero_shot(BAGS, torch.from_numpy(VECTORS).cuda(), CLASSES)[5]
    np.testing.assert_allclose(one.score_NC, other.score_NC, atol=1e-4)
