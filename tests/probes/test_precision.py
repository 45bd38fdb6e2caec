"""Products are float32's own, whatever the caller has allowed or is in the middle of."""

import numpy as np
import pytest
import torch

from anlage.probes.few_shot.mi_simpleshot import mi_simpleshot
from anlage.probes.few_shot.prototypes import prototype_probe, prototypes
from anlage.probes.few_shot.simpleshot import simpleshot
from anlage.probes.few_shot.zero_shot import mi_zero_shot, zero_shot
from anlage.probes.linear.eva import linear_probe_eva
from anlage.probes.linear.logistic import logistic_probe
from anlage.probes.linear.path import logistic_path
from anlage.probes.linear.uni import linear_probe_uni
from anlage.probes.linear.virchow import SgdProtocol, linear_probe_virchow
from anlage.probes.neighbours.knn import knn_probe
from anlage.probes.precision import float32_products

RNG = np.random.default_rng(0)
CODE = RNG.integers(0, 3, 300)
TRAIN = (RNG.normal(size=(3, 40))[CODE] * 0.3 + RNG.normal(size=(300, 40))).astype(np.float32)
TEST = RNG.normal(size=(50, 40)).astype(np.float32)
SHORT = SgdProtocol(n_steps=40, batch=64, check_every=20)

PROBES = {
    "logistic": lambda: logistic_probe(TRAIN, CODE).predict(TEST).score_NC,
    "path": lambda: logistic_path(TRAIN, CODE, costs=[0.1, 1]).heads[1].predict(TEST).score_NC,
    "uni, paper": lambda: linear_probe_uni(TRAIN, CODE).predict(TEST).score_NC,
    "uni, code": lambda: linear_probe_uni(TRAIN, CODE, reading="code").predict(TEST).score_NC,
    "eva": lambda: linear_probe_eva(TRAIN, CODE, n_runs=1, n_steps=40)[0].predict(TEST).score_NC,
    "virchow": lambda: linear_probe_virchow(TRAIN, CODE, protocol=SHORT).predict(TEST).score_NC,
    "knn": lambda: knn_probe(TRAIN, CODE, TEST, vote="softmax").score_NC,
    "prototypes": lambda: prototype_probe(TRAIN, CODE, TEST).score_NC,
    "mi-simpleshot": lambda: mi_simpleshot(prototypes(TRAIN, CODE), [TEST]).score_NC,
    "simpleshot": lambda: (
        simpleshot(TRAIN, CODE, TRAIN, CODE, shots=(8,), n_episodes=50).hit_share_KN
    ),
    "zero-shot": lambda: zero_shot(TEST, TRAIN[:3], ["a", "b", "c"]).score_NC,
    "mi-zero-shot": lambda: mi_zero_shot([TEST], TRAIN[:3], ["a", "b", "c"])[5].score_NC,
}


@pytest.mark.parametrize("name", PROBES)
def test_autocast_of_the_caller_changes_nothing(name) -> None:
    expected = PROBES[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(PROBES[name](), expected)


@pytest.mark.parametrize("name", PROBES)
def test_inference_mode_of_the_caller_changes_nothing(name) -> None:
    expected = PROBES[name]()
    with torch.inference_mode():
        np.testing.assert_array_equal(PROBES[name](), expected)


def test_settings_are_put_back_even_after_an_error() -> None:
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [backend.fp32_precision for backend in backends]
    seen = []

    def fail() -> None:
        with float32_products(torch.device("cpu")), torch.no_grad():
            seen.extend(backend.fp32_precision for backend in backends)
            raise KeyError

    for backend in backends:
        backend.fp32_precision = "tf32"
    try:
        with pytest.raises(KeyError):
            fail()
        assert seen == ["ieee", "ieee"]
        assert [backend.fp32_precision for backend in backends] == ["tf32", "tf32"]
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
    assert torch.is_grad_enabled()
