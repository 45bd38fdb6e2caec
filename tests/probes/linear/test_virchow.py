from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from anlage.probes.linear.held_out import tenth_held_out
from anlage.probes.linear.virchow import GIGAPATH_PCAM, VIRCHOW, SgdProtocol, linear_probe_virchow
from reference.slow_minibatch_probes import sgd_probe

SHORT = SgdProtocol(lr=0.3, batch=64, n_steps=210, check_every=20)


@pytest.fixture
def sides(generator):
    """Train and validation sides in unlike units, with a constant feature."""
    code = torch.from_numpy(generator.integers(0, 3, 300))
    rows = generator.normal(generator.normal(0, 0.6, size=(3, 8))[code], 1)
    rows = rows * np.logspace(-2, 2, 8) + 5
    rows[:, 4] = 7
    rows = torch.from_numpy(rows).float()
    return rows[:200], code[:200], rows[200:], code[200:]


def by_loop(train, code, validation, validation_code, *, protocol, seed):
    if protocol.is_z_scored:
        scaler = StandardScaler().fit(train.double().numpy())
        train, validation = (
            torch.from_numpy(scaler.transform(side.double().numpy())).float()
            for side in (train, validation)
        )
    return sgd_probe(
        train,
        code,
        validation=(validation, validation_code),
        n_classes=3,
        seed=seed,
        n_steps=protocol.n_steps,
        batch=protocol.batch,
        lr=protocol.lr,
        weight_decay=protocol.weight_decay,
        momentum=protocol.momentum,
        check_every=protocol.check_every,
        choose=protocol.choose,
        fixed_draws=protocol.has_fixed_draws,
    )


@pytest.mark.parametrize(
    "protocol",
    [
        SHORT,
        replace(SHORT, momentum=0.9, weight_decay=0.01),
        replace(SHORT, choose="weighted_f1"),
        replace(SHORT, has_fixed_draws=True),
        replace(SHORT, check_every=1000),  # the last step is always looked at
    ],
)
@pytest.mark.parametrize("seed", [0, 3])
def test_the_head_is_the_plain_loop_of_torch(sides, protocol, seed) -> None:
    train, code, validation, validation_code = sides
    head = linear_probe_virchow(
        train, code, validation=(validation, validation_code), protocol=protocol, seed=seed
    )
    weight, bias, step = by_loop(*sides, protocol=protocol, seed=seed)
    assert head.note == f"seed {seed}, step {step} of 210"
    torch.testing.assert_close(head.weight_CD, weight, atol=3e-5, rtol=0)
    torch.testing.assert_close(head.bias_C, bias, atol=3e-5, rtol=0)


def test_gigapaths_script_is_the_plain_loop_of_torch(sides) -> None:
    train, code, validation, validation_code = (side[:] for side in sides)
    train, validation = (side / side.abs().amax(0) for side in (train, validation))
    protocol = replace(GIGAPATH_PCAM, n_steps=400)
    head = linear_probe_virchow(
        train, code, validation=(validation, validation_code), protocol=protocol
    )
    weight, _, step = by_loop(train, code, validation, validation_code, protocol=protocol, seed=0)
    assert f"step {step} " in head.note
    torch.testing.assert_close(head.weight_CD, weight, atol=1e-5, rtol=0)
    assert torch.equal(head.mean_D, torch.zeros(8))
    assert torch.equal(head.scale_D, torch.ones(8))


def test_published_settings() -> None:
    assert (VIRCHOW.lr, VIRCHOW.batch, VIRCHOW.n_steps, VIRCHOW.choose) == (
        0.01,
        4096,
        12_500,
        "loss",
    )
    assert (GIGAPATH_PCAM.lr, GIGAPATH_PCAM.weight_decay, GIGAPATH_PCAM.batch) == (0.02, 0.01, 128)
    assert (GIGAPATH_PCAM.n_steps, GIGAPATH_PCAM.choose) == (4000, "weighted_f1")


def test_moments_are_of_the_train_rows_in_float64(sides) -> None:
    train, code, validation, validation_code = sides
    train = train + 1e4  # float32 sums of squares would lose the first feature's deviation
    head = linear_probe_virchow(
        train, code, validation=(validation, validation_code), protocol=replace(SHORT, n_steps=1)
    )
    expected = train.double()
    torch.testing.assert_close(head.mean_D.double(), expected.mean(0), atol=1e-3, rtol=0)
    deviation = expected.std(0, correction=0)
    deviation[4] = 1
    torch.testing.assert_close(head.scale_D.double(), deviation, atol=0, rtol=1e-6)


def test_the_head_predicts_from_raw_rows(sides) -> None:
    train, code, validation, validation_code = sides
    head = linear_probe_virchow(
        train, code, validation=(validation, validation_code), protocol=SHORT
    )
    found = head.predict(validation.numpy()).label_N
    assert f1_score(validation_code, found, average="weighted") > 0.5
    same = linear_probe_virchow(
        train.numpy().astype(np.float64),
        code.numpy(),
        validation=(validation.numpy(), validation_code.numpy()),
        protocol=SHORT,
    )
    assert torch.equal(same.weight_CD, head.weight_CD)


def test_without_validation_a_tenth_is_held_out(sides) -> None:
    train, code, *_ = sides
    group = np.arange(200) // 5
    for given in (None, group):
        kept, held = tenth_held_out("who", code, given, class_C=np.arange(3), seed=4)
        assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(200))
        assert 15 <= len(held) <= 25
        head = linear_probe_virchow(train, code, group_M=given, protocol=SHORT, seed=4)
        expected = linear_probe_virchow(
            train[kept], code[kept], validation=(train[held], code[held]), protocol=SHORT, seed=4
        )
        assert torch.equal(head.weight_CD, expected.weight_CD)
    assert not set(group[kept]) & set(group[held])


def test_rows_held_out_leave_every_class_in_training() -> None:
    code = torch.tensor([0] * 60 + [1] * 4)
    group = np.r_[np.arange(60) // 6, [100, 100, 101, 101]]  # two patients have the second class
    for seed in range(10):
        kept, held = tenth_held_out("who", code, group, class_C=np.arange(2), seed=seed)
        assert set(code[kept].tolist()) == {0, 1}
        assert not set(group[kept]) & set(group[held])
        kept, held = tenth_held_out("who", code, None, class_C=np.arange(2), seed=seed)
        assert len(held) == 6
        assert (code[kept] == 1).sum() == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_M": [0, 0, 0, 0]}, "two classes or more"),
        ({"train_MD": np.full((4, 2), np.inf)}, "NaN or an infinity"),
        ({}, "a tenth of the train rows is held out.*got 4 rows"),
        ({"group_M": [1, 2, 3]}, "groups needs one value for each of 4 rows"),
        ({"group_M": ["p", "q", "p", "r"]}, "two patients or more.*got only 'p' in class 0"),
        ({"validation": (np.ones((2, 3)), [0, 1])}, "embeddings of one width; got 2 and 3"),
        ({"validation": (np.ones((2, 2)), ["a", "b"])}, "classes of the train side"),
        ({"protocol": SgdProtocol(lr=0)}, "lr needs to be finite and > 0"),
        ({"protocol": SgdProtocol(batch=0)}, "batch needs"),
        ({"protocol": SgdProtocol(check_every=0)}, "check_every needs"),
        ({"protocol": SgdProtocol(momentum=1)}, "momentum needs to be below 1"),
        ({"protocol": SgdProtocol(weight_decay=-1)}, "weight_decay needs"),
        ({"protocol": SgdProtocol(choose="auroc")}, "choose needs to be"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(change, message) -> None:
    given = {"train_MD": np.arange(8.0).reshape(4, 2), "label_M": [0, 1, 0, 1]} | change
    with pytest.raises(ValueError, match=message):
        linear_probe_virchow(given.pop("train_MD"), given.pop("label_M"), **given)


def test_a_training_that_diverges_is_refused(sides) -> None:
    train, code, validation, validation_code = sides
    protocol = replace(SHORT, is_z_scored=False, lr=1e38)
    with pytest.raises(ValueError, match="needs to stay finite.*Lower lr"):
        linear_probe_virchow(
            train, code, validation=(validation, validation_code), protocol=protocol
        )


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(sides) -> None:
    train, code, validation, validation_code = sides
    for protocol in (SHORT, replace(SHORT, momentum=0.9, choose="weighted_f1")):
        settings = {"validation": (validation, validation_code), "protocol": protocol}
        on_cpu = linear_probe_virchow(train, code, **settings)
        on_gpu = linear_probe_virchow(train.cuda(), code, **settings)
        assert on_gpu.note == on_cpu.note
        torch.testing.assert_close(on_gpu.weight_CD.cpu(), on_cpu.weight_CD, atol=1e-4, rtol=0)
        torch.testing.assert_close(on_gpu.mean_D.cpu(), on_cpu.mean_D)
        torch.testing.assert_close(on_gpu.scale_D.cpu(), on_cpu.scale_D)
