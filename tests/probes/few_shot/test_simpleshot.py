"""SimpleShot against one slow episode after another; blocks, patients, real data, refusals."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from anlage.probes.few_shot.episodes import episode_vectors, play, sides_about_zero
from anlage.probes.few_shot.prototypes import prototype_probe
from anlage.probes.few_shot.simpleshot import SHOTS, simpleshot
from anlage.probes.splits.few_shot import few_shot_patients, few_shot_rows
from reference.slow_simpleshot import slow_episode

EPISODES = "anlage.probes.few_shot.episodes"


def clusters(n_rows, *, n_classes=5, width=16, seed=0, spread=2.0, offset=3.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, n_classes, n_rows)
    centre = np.random.default_rng(99).normal(size=(n_classes, width))
    rows = offset + centre[label] + spread * rng.normal(size=(n_rows, width))
    return rows.astype(np.float32), label


TRAIN, LABEL = clusters(400)
TEST, TRUTH = clusters(90, seed=1)
PATIENT = np.random.default_rng(2).integers(0, 40, 400)


def slow_predictions(supports, n_episodes, train=TRAIN, test=TEST):
    """(E, N) predicted places, one episode at a time."""
    predicted = []
    for episode in range(n_episodes):
        rows, start = supports.rows(episode, episode + 1)
        predicted.append(slow_episode(train, np.split(rows, start[1:-1]), test))
    return np.stack(predicted)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_episode_is_the_slow_one(dtype, nested):
    shots, settings = (1, 2, 8, 50), {"n_episodes": 12, "seed": 3, "nested": nested}
    got = simpleshot(TRAIN, LABEL, TEST, TRUTH, shots=shots, dtype=dtype, **settings)
    for place, k in enumerate(shots):
        predicted = slow_predictions(few_shot_rows(LABEL, shots=k, **settings), 12)
        for episode, labels in enumerate(predicted):
            expected = balanced_accuracy_score(TRUTH, labels)
            assert got.balanced_accuracy[place, episode] == pytest.approx(expected)
            assert got.accuracy[place, episode] == pytest.approx(accuracy_score(TRUTH, labels))
            for c in range(5):
                recall = (labels[c == TRUTH] == c).mean()
                assert got.recall_KEC[place, episode, c] == pytest.approx(recall)
        np.testing.assert_allclose(got.hit_share_KN[place], (predicted == TRUTH).mean(axis=0))


@pytest.mark.parametrize("gather_cost", [0, 10**9])  # distances by rows, and by one product
def test_both_ways_to_distances_give_the_prototypes(gather_cost, monkeypatch):
    monkeypatch.setattr(f"{EPISODES}.GATHER_COST", gather_cost)
    monkeypatch.setattr(f"{EPISODES}.GATHERED_VALUES", 100)
    settings = {"shots": (3, 20), "n_episodes": 10, "dtype": torch.float64}
    got = simpleshot(TRAIN, LABEL, TEST, TRUTH, **settings)
    for place, k in enumerate((3, 20)):
        predicted = slow_predictions(few_shot_rows(LABEL, shots=k, n_episodes=10), 10)
        np.testing.assert_allclose(got.hit_share_KN[place], (predicted == TRUTH).mean(axis=0))


def test_vectors_of_an_episode():
    sides = sides_about_zero(
        torch.from_numpy(TRAIN).double(), torch.from_numpy(TEST).double(), n_test_C=[90, 0, 0, 0, 0]
    )
    rows, start = few_shot_rows(LABEL, shots=4, n_episodes=3).rows(0, 3)
    vectors = episode_vectors(
        sides, row_S=torch.from_numpy(rows), start_B=torch.from_numpy(start), n_classes=5
    )
    for episode, support in enumerate(sides.train_MD[rows].view(3, 5, 4, 16)):
        mean = support.mean(dim=(0, 1))
        unit = torch.nn.functional.normalize(support - mean, dim=2)
        torch.testing.assert_close(vectors.mean_ED[episode], mean)
        torch.testing.assert_close(vectors.prototype_ECD[episode], unit.mean(dim=1))


def test_blocks_of_episodes_and_of_test_rows_change_nothing(monkeypatch):
    settings = {"shots": (1, 16), "n_episodes": 30, "dtype": torch.float64}
    whole = simpleshot(TRAIN, LABEL, TEST, TRUTH, **settings)
    monkeypatch.setattr(f"{EPISODES}.BLOCK_BYTES", {"cpu": 20_000})
    monkeypatch.setattr(f"{EPISODES}.TEST_ROWS", 13)
    blocks = simpleshot(TRAIN, LABEL, TEST, TRUTH, **settings)
    assert (whole.recall_KEC == blocks.recall_KEC).all()
    assert (whole.hit_share_KN == blocks.hit_share_KN).all()


def test_seeds_and_the_other_shots_asked_for():
    one = simpleshot(TRAIN, LABEL, TEST, TRUTH, shots=(2, 8), n_episodes=20, seed=1)
    again = simpleshot(TRAIN, LABEL, TEST, TRUTH, shots=(8,), n_episodes=20, seed=1)
    other = simpleshot(TRAIN, LABEL, TEST, TRUTH, shots=(8,), n_episodes=20, seed=2)
    assert (one.recall_KEC[1] == again.recall_KEC[0]).all()
    assert (again.recall_KEC != other.recall_KEC).any()


@pytest.mark.parametrize("rows_per_patient", [None, 1])
def test_supports_of_patients(rows_per_patient):
    settings = {"n_episodes": 10, "rows_per_patient": rows_per_patient}
    got = simpleshot(
        *(TRAIN, LABEL, TEST, TRUTH),
        shots=(3,),
        train_patient_M=PATIENT,
        test_patient_N=np.arange(100, 190),
        by_patient=True,
        **settings,
    )
    predicted = slow_predictions(few_shot_patients(LABEL, PATIENT, shots=3, **settings), 10)
    np.testing.assert_allclose(got.accuracy[0], (predicted == TRUTH).mean(axis=1))


def test_summaries():
    got = simpleshot(TRAIN, LABEL, TEST, TRUTH, shots=(4, 2), n_episodes=25)
    assert (got.shots_K == [4, 2]).all()
    assert got.mean == pytest.approx([row.mean() for row in got.balanced_accuracy])
    assert got.std == pytest.approx([row.std(ddof=1) for row in got.balanced_accuracy])
    assert got.quantiles((0.1, 0.5)).shape == (2, 2)
    assert got.quantiles((0.5,))[:, 0] == pytest.approx(np.median(got.balanced_accuracy, axis=1))
    assert got.accuracy.mean(axis=1) == pytest.approx(got.hit_share_KN.mean(axis=1))
    once = simpleshot(TRAIN, LABEL, TEST, TRUTH, shots=(1,), n_episodes=1)
    assert np.isnan(once.std).all()


def test_all_rows_as_support_is_the_prototype_probe():
    label = np.repeat([0, 1], 50)
    rows = TRAIN[np.concatenate([np.flatnonzero(c == LABEL)[:50] for c in (0, 1)])]
    is_known = TRUTH < 2
    got = simpleshot(rows, label, TEST[is_known], TRUTH[is_known], shots=(50,), n_episodes=2)
    predicted = prototype_probe(rows, label, TEST[is_known]).label_N
    expected = balanced_accuracy_score(TRUTH[is_known], predicted)
    assert got.balanced_accuracy[0] == pytest.approx([expected, expected])


def test_a_class_without_test_rows_is_left_out_of_the_mean():
    is_kept = TRUTH != 2
    got = simpleshot(TRAIN, LABEL, TEST[is_kept], TRUTH[is_kept], shots=(4,), n_episodes=5)
    assert np.isnan(got.recall_KEC[:, :, 2]).all()
    present = got.recall_KEC[:, :, [0, 1, 3, 4]]
    assert got.balanced_accuracy == pytest.approx(present.mean(axis=2))
    assert got.accuracy.mean() == pytest.approx(got.hit_share_KN.mean())


def test_far_from_zero_and_of_any_scale():
    expected = simpleshot(TRAIN, LABEL, TEST, TRUTH, shots=(8,), n_episodes=20)
    for scale, offset in ((1e-25, 0.0), (1e25, 0.0), (1.0, 512.0)):
        got = simpleshot(
            *(TRAIN * scale + offset, LABEL, TEST * scale + offset, TRUTH),
            shots=(8,),
            n_episodes=20,
        )
        np.testing.assert_allclose(got.accuracy, expected.accuracy, atol=0.03)


def test_equal_support_rows_tie_and_the_first_class_wins():
    rows = np.zeros((6, 3))
    rows[5] = 1  # never drawn: class 2 is not on the test side and K is 1 of 2
    label = np.array([0, 0, 1, 1, 2, 2])
    got = simpleshot(rows, label, rows[:4] + 2, label[:4], shots=(1,), n_episodes=40)
    equal = got.recall_KEC[0][(got.recall_KEC[0, :, :2] == [1, 0]).all(axis=1)]
    assert len(equal) > 5


def test_inputs_stay_as_they_were():
    train, test = torch.from_numpy(TRAIN.copy()), torch.from_numpy(TEST.copy())
    simpleshot(train, LABEL, test, TRUTH, shots=(1,), n_episodes=2)
    assert (train.numpy() == TRAIN).all()
    assert (test.numpy() == TEST).all()


def test_real_textures_grow_more_accurate_with_shots(shared_data):
    stored = np.load(shared_data / "embeddings" / "kather2016_texture" / "best3_49.npz")
    rows, label = stored["X"], stored["class_names"][stored["y"]]
    is_train = np.random.default_rng(0).permutation(len(rows)) < 3000
    rows = (rows - rows[is_train].mean(axis=0)) / rows[is_train].std(axis=0)  # of unlike units
    got = simpleshot(
        rows[is_train], label[is_train], rows[~is_train], label[~is_train], n_episodes=100
    )
    assert (got.shots_K == SHOTS).all()
    assert (np.diff(got.mean) > 0).all()
    assert (np.diff(got.std) < 0).all()
    assert 0.38 < got.mean[0] < 0.45
    assert 0.6 < got.mean[-1] < 0.68


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"256 shots need 256 rows of each class; got only \d+ of 0, .*Ask for at most \d+"),
        ({"shots": ()}, "shots needs different numbers, at least one"),
        ({"shots": (2, 2)}, "shots needs different numbers"),
        ({"shots": (0,)}, "one shot and one episode or more; got shots=0"),
        ({"shots": (1,), "n_episodes": 0}, "n_episodes=0"),
        ({"shots": (1,), "by_patient": True}, "needs the patient of each train row"),
        ({"shots": (1,), "rows_per_patient": 2}, "needs by_patient=True; got 2"),
        (
            {"shots": (1,), "train_patient_M": PATIENT, "test_patient_N": np.arange(90)},
            "simpleshot: a patient needs to be on one side only; got 40 on both, such as 0, 1, 10",
        ),
        (
            {"shots": (1,), "train_patient_M": PATIENT, "test_patient_N": [7]},
            "test patients needs one value for each of 90 rows",
        ),
        ({"shots": (1,), "train_patient_M": [7]}, "one value for each of 400 rows"),
        (
            {"shots": (30,), "train_patient_M": PATIENT // 2, "by_patient": True},
            "30 shots need 30 patients of each class",
        ),
        ({"shots": (1,), "dtype": torch.float16}, "dtype needs to be torch.float32 or"),
    ],
)
def test_refused_settings(change, message):
    with pytest.raises(ValueError, match=message):
        simpleshot(TRAIN, LABEL, TEST, TRUTH, **change)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ((TRAIN, LABEL, TEST, TRUTH + 3), r"classes of the train side; got \['5', '6', '7'\]"),
        ((TRAIN, LABEL, TEST, TRUTH[1:]), "one value for each of 90 rows"),
        ((TRAIN, LABEL * 0, TEST, TRUTH), "two classes or more"),
        ((TRAIN, LABEL, TEST[:0], TRUTH[:0]), "test needs a non-empty"),
        ((TRAIN, LABEL, TEST[:, :4], TRUTH), "one width"),
        ((TRAIN, LABEL, np.where(TEST > 9, np.inf, TEST), TRUTH), "needs finite numbers"),
        ((TRAIN * 0, LABEL, TEST, TRUTH), "a feature that varies"),
    ],
)
def test_refused_sides(sides, message):
    with pytest.raises(ValueError, match=message):
        simpleshot(*sides, shots=(1,), n_episodes=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees():
    settings = {"shots": (1, 4, 32), "n_episodes": 50}
    cpu = simpleshot(TRAIN, LABEL, TEST, TRUTH, dtype=torch.float64, **settings)
    exact = simpleshot(*(TRAIN, LABEL, TEST, TRUTH), device="cuda", dtype=torch.float64, **settings)
    assert (cpu.recall_KEC == exact.recall_KEC).all()
    single = simpleshot(torch.from_numpy(TRAIN).cuda(), LABEL, TEST, TRUTH, **settings)
    np.testing.assert_allclose(single.hit_share_KN, cpu.hit_share_KN, atol=0.03)


def test_play_counts_what_it_is_given():
    sides = sides_about_zero(
        torch.from_numpy(TRAIN), torch.from_numpy(TEST[np.argsort(TRUTH)]), n_test_C=[0] * 4 + [90]
    )
    hits_EC, hits_N = play(sides, few_shot_rows(LABEL, shots=2, n_episodes=6))
    assert hits_EC.shape == (6, 5)
    assert (hits_EC[:, :4] == 0).all()
    assert hits_EC.sum() == hits_N.sum()
