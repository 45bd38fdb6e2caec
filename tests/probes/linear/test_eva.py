import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from anlage.probes.linear.eva import eva_patience, linear_probe_eva
from reference.slow_minibatch_probes import eva_probe

GOLDEN = Path(__file__).parents[2] / "golden"
SHORT = {"n_steps": 300, "batch": 32}


@pytest.fixture
def side(generator):
    """340 rows, so that the last batch of an epoch is short."""
    code = torch.from_numpy(generator.integers(0, 4, 340))
    centre = generator.normal(0, 0.7, size=(4, 12))
    return torch.from_numpy(generator.normal(centre[code], 1)).float(), code


def test_every_run_is_the_plain_loop_of_torch(side) -> None:
    train, code = side
    heads = linear_probe_eva(train, code, n_runs=3, seed=5, **SHORT)
    assert len(heads) == 3
    for seed, head in enumerate(heads, start=5):
        weight, bias, _ = eva_probe(train, code, n_classes=4, seed=seed, **SHORT)
        torch.testing.assert_close(head.weight_CD, weight, atol=2e-6, rtol=0)
        torch.testing.assert_close(head.bias_C, bias, atol=2e-6, rtol=0)
        assert head.note == f"seed {seed}, step 300 of 300"
    assert not torch.equal(heads[0].weight_CD, heads[1].weight_CD)


def test_the_code_reading_keeps_a_third_of_the_rate_for_five_epochs(side) -> None:
    train, code = side
    head = linear_probe_eva(train, code, n_runs=1, reading="code", **SHORT)[0]
    weight, bias, _ = eva_probe(train, code, n_classes=4, seed=0, low_epochs=5, **SHORT)
    torch.testing.assert_close(head.weight_CD, weight, atol=2e-6, rtol=0)
    torch.testing.assert_close(head.bias_C, bias, atol=2e-6, rtol=0)
    constant = linear_probe_eva(train, code, n_runs=1, **SHORT)[0]
    assert (constant.weight_CD - weight).abs().max() > 1e-3


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_run_trained_alone_has_the_same_bits(side, n_threads) -> None:
    n_before = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        together = linear_probe_eva(*side, n_runs=5, **SHORT)
        assert torch.get_num_threads() == n_threads
        alone = linear_probe_eva(*side, n_runs=1, seed=3, **SHORT)[0]
    finally:
        torch.set_num_threads(n_before)
    assert torch.equal(together[3].weight_CD, alone.weight_CD)
    assert torch.equal(together[3].bias_C, alone.bias_C)


def test_arrays_of_any_labels_give_what_tensors_give(side) -> None:
    train, code = side
    names = np.array(["d", "a", "c", "b"])[code.numpy()]
    head = linear_probe_eva(train.double().numpy(), names, n_runs=1, **SHORT)[0]
    assert head.class_C.tolist() == ["a", "b", "c", "d"]
    assert head.weight_CD.dtype == torch.float32
    found = head.predict(train.numpy()).label_N
    assert balanced_accuracy_score(names, found) > 0.5
    again = linear_probe_eva(train, code, n_runs=1, **SHORT)[0]
    assert torch.equal(
        again.weight_CD, linear_probe_eva(train, code, n_runs=1, **SHORT)[0].weight_CD
    )


def test_validation_chooses_the_first_best_epoch_and_stops_by_patience(side, generator) -> None:
    train, code = side
    noisy = torch.from_numpy(
        generator.integers(0, 4, 120)
    )  # nothing to learn: scores go up and down
    validation = (torch.from_numpy(generator.normal(0, 1, size=(120, 12))).float(), noisy)
    steps = set()
    for patience in (2, 9):
        heads = linear_probe_eva(
            train, code, validation=validation, n_runs=3, patience=patience, **SHORT
        )
        for seed, head in enumerate(heads):
            weight, bias, step = eva_probe(
                train,
                code,
                n_classes=4,
                seed=seed,
                validation=validation,
                patience=patience,
                **SHORT,
            )
            assert head.note == f"seed {seed}, step {step} of 300"
            torch.testing.assert_close(head.weight_CD, weight, atol=2e-6, rtol=0)
            torch.testing.assert_close(head.bias_C, bias, atol=2e-6, rtol=0)
            steps.add((seed, step))
    assert len(steps) > 3, "patience should have made a difference"


def test_the_last_epoch_is_scored_even_where_it_is_cut_short(side) -> None:
    train, code = side
    head = linear_probe_eva(train, code, validation=side, n_runs=1, n_steps=7, batch=32)[0]
    assert head.note == "seed 0, step 7 of 7"  # one epoch has 11 batches


def test_one_logit_and_binary_cross_entropy_is_the_plain_loop_of_torch(side) -> None:
    train, code = side
    code = code % 2
    for validation in (None, (train[:90], code[:90])):
        heads = linear_probe_eva(
            train, code, loss="sigmoid", validation=validation, n_runs=2, patience=99, **SHORT
        )
        for seed, head in enumerate(heads):
            weight, bias, step = eva_probe(
                train, code, n_classes=2, seed=seed, is_sigmoid=True, validation=validation, **SHORT
            )
            assert head.note.startswith(f"seed {seed}, step {step} ")
            torch.testing.assert_close(head.weight_CD[1:], weight, atol=2e-6, rtol=0)
            torch.testing.assert_close(head.bias_C[1:], bias, atol=2e-6, rtol=0)
            logit = (train @ weight.T + bias)[:, 0]
            prediction = head.predict(train)
            np.testing.assert_allclose(prediction.score_NC[:, 1], logit.sigmoid(), atol=1e-6)


def test_a_class_that_validation_lacks_is_left_out_of_its_score(side) -> None:
    train, code = side
    some = code < 3
    validation = (train[some], code[some])
    head = linear_probe_eva(train, code, validation=validation, n_runs=1, patience=99, **SHORT)[0]
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = eva_probe(train, code, n_classes=4, seed=0, validation=validation, **SHORT)
    assert f"step {expected[2]} " in head.note


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_code_reading_is_what_kaiko_eva_itself_trains(loss) -> None:
    golden = json.loads((GOLDEN / "eva_probe.json").read_text(encoding="utf-8"))
    expected = golden[loss]
    train, held = (np.array(expected[name], np.float32) for name in ("embedding", "held"))
    head = linear_probe_eva(
        train,
        expected["code"],
        validation=(held, expected["held_code"]),
        n_runs=1,
        loss=loss,
        reading="code",
        **golden["settings"],
    )[0]
    assert head.note == f"seed 4, step {expected['step']} of 300"
    n_outputs = len(expected["bias"])
    weight, bias = torch.tensor(expected["weight"]), torch.tensor(expected["bias"])
    torch.testing.assert_close(head.weight_CD[-n_outputs:], weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(head.bias_C[-n_outputs:], bias, atol=1e-6, rtol=0)


def test_patience_is_that_of_evas_configurations() -> None:
    rows = {
        268: 1250,
        1132: 500,
        2175: 278,
        3657: 167,
        6270: 100,
        15_303: 42,
        100_000: 7,
        262_144: 3,
    }
    assert {n_rows: eva_patience(n_rows) for n_rows in rows} == rows


@pytest.mark.slow
def test_real_features_score_as_in_the_plain_loop(shared_data) -> None:
    with np.load(shared_data / "embeddings" / "kather2016_texture" / "best3_49.npz") as arrays:
        embedding, label = arrays["X"], arrays["y"]
    embedding = (embedding - embedding.mean(0)) / embedding.std(0)
    test = np.arange(len(label)) % 5 == 0
    head = linear_probe_eva(embedding[~test], label[~test], n_runs=1, n_steps=2500)[0]
    score = balanced_accuracy_score(label[test], head.predict(embedding[test]).label_N)
    assert 0.65 < score < 0.85
    train, code = torch.from_numpy(embedding[~test]), torch.from_numpy(label[~test])
    weight, _, _ = eva_probe(train, code, n_classes=8, seed=0, n_steps=2500, batch=256)
    torch.testing.assert_close(head.weight_CD, weight, atol=1e-5, rtol=0)


def test_a_training_that_diverges_is_refused(side) -> None:
    train, code = side
    with pytest.raises(ValueError, match="linear_probe_eva: the training needs to stay finite"):
        linear_probe_eva(train.sign() * 3e38, code, n_runs=1, **SHORT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_MD": np.full((4, 2), np.nan)}, "NaN or an infinity in 4 of 4 rows"),
        ({"label_M": [0, 1, 1]}, "one value for each of 4 rows"),
        ({"label_M": [1, 1, 1, 1]}, "two classes or more; got only .*1"),
        ({"train_MD": np.ones((4, 2))}, "needs a feature that varies"),
        ({"validation": (np.ones((2, 3)), [0, 1])}, "embeddings of one width; got 2 and 3"),
        ({"validation": (np.ones((2, 2)), [0, 7])}, r"classes of the train side.*got \[7\]"),
        ({"validation": (np.ones((2, 2)), [0, 1, 1])}, "one value for each of 2 rows"),
        ({"validation": (np.ones((0, 2)), [])}, "non-empty"),
        ({"n_runs": 0}, "n_runs needs to be a whole number, 1 or more; got 0"),
        ({"n_steps": 1.5}, "n_steps needs"),
        ({"n_steps": 300.0}, "n_steps needs to be a whole number"),
        ({"batch": 0}, "batch needs"),
        ({"patience": 0}, "patience needs"),
        ({"lr": 0.0}, "lr needs to be finite and > 0; got 0.0"),
        ({"lr": float("nan")}, "lr needs"),
        ({"weight_decay": -1.0}, "weight_decay needs to be finite and >= 0"),
        ({"reading": "documents"}, "reading needs to be one of"),
        ({"loss": "hinge"}, "loss needs to be one of"),
        ({"label_M": [0, 1, 2, 0], "loss": "sigmoid"}, "needs two classes; got 3"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(change, message) -> None:
    given = {"train_MD": np.arange(8.0).reshape(4, 2), "label_M": [0, 1, 0, 1]} | change
    with pytest.raises(ValueError, match=f"linear_probe_eva: .*{message}"):
        linear_probe_eva(given.pop("train_MD"), given.pop("label_M"), **given)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(side) -> None:
    train, code = side
    validation = (train[:100], code[:100])
    for settings in ({}, {"validation": validation}, {"reading": "code"}):
        on_cpu = linear_probe_eva(train, code, n_runs=3, **settings, **SHORT)
        on_gpu = linear_probe_eva(train.cuda(), code, n_runs=3, **settings, **SHORT)
        for expected, head in zip(on_cpu, on_gpu, strict=True):
            assert head.weight_CD.is_cuda
            assert head.note == expected.note
            torch.testing.assert_close(head.weight_CD.cpu(), expected.weight_CD, atol=1e-4, rtol=0)
            torch.testing.assert_close(head.bias_C.cpu(), expected.bias_C, atol=1e-4, rtol=0)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu_on_one_logit(side) -> None:
    train, code = side
    expected = linear_probe_eva(train, code % 2, n_runs=2, loss="sigmoid", **SHORT)
    heads = linear_probe_eva(train, code % 2, n_runs=2, loss="sigmoid", device="cuda", **SHORT)
    for one, head in zip(expected, heads, strict=True):
        torch.testing.assert_close(head.weight_CD.cpu(), one.weight_CD, atol=1e-4, rtol=0)
