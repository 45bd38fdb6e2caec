import hashlib
import json
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from statsmodels.stats.multitest import multipletests

from anlage.encoders.folder import save_encoder
from anlage.errors import EncoderError, LabelledDataError
from anlage.evaluation import evaluate
from anlage.evaluation.evaluate import evaluate_encoder
from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.result import read_result
from anlage.evaluation.split_files import read_splits
from anlage.probes.metrics.classification import BALANCED_ACCURACY
from anlage.probes.uncertainty.bootstrap import cluster_bootstrap
from anlage.probes.uncertainty.permutation import paired_permutation

SMALL = {"n_resamples": 50, "k": 3, "batch_size": 5}


def test_the_whole_result(make_encoder, make_tiles, tmp_path) -> None:
    encoder = make_encoder(provenance={"patients": ["c1", "c6", "other"]})
    result = evaluate_encoder(encoder, make_tiles(), tmp_path / "out", **SMALL)
    assert [(s.model, s.probe) for s in result.scores] == [
        (model, probe)
        for model in ("encoder", "untrained", "colour_texture")
        for probe in ("linear", "knn")
    ]
    floor = result.score("colour_texture", "linear")
    assert floor.balanced_accuracy.estimate == 1  # colour tells the class
    assert list(floor.group_accuracy) == [f"c{case}" for case in range(8)]
    assert len(result.comparisons) == 4
    assert result.protocol == "leave-one-group-out"
    assert (result.data.n_tiles, result.data.n_groups, result.n_splits) == (32, 8, 8)
    assert result.data.preparation == {"cropped at mpp": 32}
    assert result.chance == {"balanced_accuracy": 0.5, "majority_accuracy": 0.5}
    assert result.leakage.seen == ["c1", "c6"]
    assert result.score("encoder", "knn").balanced_accuracy.is_unreliable
    assert read_result(tmp_path / "out" / "result.json") == result


def test_scores_and_differences_follow_from_the_predictions(
    make_encoder, make_tiles, tmp_path
) -> None:
    result = evaluate_encoder(make_encoder(), make_tiles(), tmp_path, **SMALL)
    table = pq.read_table(tmp_path / "predictions.parquet")
    rows = table.to_pydict()
    assert table.schema.metadata[b"anlage.format"] == b"predictions/1"
    assert rows["split"] == rows["group"]
    label, group = np.array(rows["label"]), np.array(rows["group"])
    for score in result.scores:
        predicted = np.array(rows[f"{score.model}_{score.probe}"])
        expected = balanced_accuracy_score(label, predicted)
        assert score.balanced_accuracy.estimate == pytest.approx(expected)
        for name, accuracy in score.group_accuracy.items():
            is_case = group == name
            assert accuracy == pytest.approx((label == predicted)[is_case].mean())
    for item in result.comparisons:
        ours, theirs = (result.score(m, item.probe) for m in ("encoder", item.floor))
        assert item.difference.estimate == pytest.approx(
            ours.balanced_accuracy.estimate - theirs.balanced_accuracy.estimate
        )
        assert item.group_difference["c3"] == pytest.approx(
            ours.group_accuracy["c3"] - theirs.group_accuracy["c3"]
        )


def test_the_settings_name_the_interval_that_was_made(make_encoder, make_tiles, tmp_path) -> None:
    result = evaluate_encoder(make_encoder(), make_tiles(), tmp_path, **SMALL)
    assert result.settings["interval"] == "stratified, bca; differences percentile"
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    for score in result.scores:
        made = cluster_bootstrap(
            BALANCED_ACCURACY,
            (np.array(rows["label"]), np.array(rows[f"{score.model}_{score.probe}"])),
            np.array(rows["group"]),
            n_resamples=50,
            method="bca",
            stratify=True,
        )
        assert score.balanced_accuracy == made


def test_a_result_from_before_p_values_reads(make_encoder, make_tiles, tmp_path) -> None:
    result = evaluate_encoder(make_encoder(), make_tiles(), tmp_path, **SMALL)
    path = tmp_path / "result.json"
    old = json.loads(path.read_text())
    newer = ("method", "n_undefined", "n_always_drawn", "confidence", "p_value")
    for item in old["comparisons"]:
        del item["p_adjusted"]
    for interval in [item["difference"] for item in old["comparisons"]] + [
        item["balanced_accuracy"] for item in old["scores"]
    ]:
        for name in newer:
            del interval[name]
    path.write_text(json.dumps(old))
    read = read_result(path)
    assert [item.p_adjusted for item in read.comparisons] == [None] * 4
    assert read.scores[0].balanced_accuracy.low == result.scores[0].balanced_accuracy.low


def test_p_values_are_the_permutation_tests_adjusted_for_all_comparisons(
    make_encoder, make_tiles, tmp_path
) -> None:
    result = evaluate_encoder(make_encoder(), make_tiles(n_cases=10), tmp_path, **SMALL)
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    label, group = np.array(rows["label"]), np.array(rows["group"])
    p_values = []
    for item in result.comparisons:
        sides = [
            (label, np.array(rows[f"{model}_{item.probe}"])) for model in ("encoder", item.floor)
        ]
        p_values.append(paired_permutation(BALANCED_ACCURACY, *sides, group).p_value)
    adjusted = multipletests(p_values, method="holm")[1]
    assert [item.p_adjusted for item in result.comparisons] == pytest.approx(list(adjusted))
    assert any("adjusted for 4 comparisons" in note for note in result.notes)


def test_splits_written_by_one_evaluation_are_taken_by_the_next(
    make_encoder, make_tiles, tmp_path
) -> None:
    tiles, encoder = make_tiles(columns=("case", "fold", "mpp")), make_encoder()
    first = evaluate_encoder(encoder, tiles, tmp_path / "a", **SMALL)
    table = tmp_path / "a" / "splits.csv"
    assert table.read_text().splitlines()[:2] == ["case,fold_0,fold_1", "c0,test,train"]
    again = evaluate_encoder(encoder, tiles, tmp_path / "b", splits=table, **SMALL)
    assert again.protocol == "given-splits"
    assert again.settings["splits"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert again.scores == first.scores
    assert (tmp_path / "b" / "splits.csv").read_bytes() == table.read_bytes()
    table.write_text(table.read_text().replace("c0,test,train", "c0,test,val"))
    third = evaluate_encoder(encoder, tiles, tmp_path / "c", splits=table, **SMALL)
    assert third.scores == first.scores  # nothing is chosen on validation rows: they train


def test_splits_by_a_column_of_any_name_are_taken_again(
    make_encoder, make_tiles, change_rows, tmp_path
) -> None:
    path = make_tiles(columns=("case",))
    change_rows(path, lambda rows: [{"donor": row.pop("case"), **row} for row in rows])
    tiles, out = LabelledTiles.open(path, group="donor"), tmp_path / "out"
    result = evaluate_encoder(make_encoder(), tiles, out, **SMALL)
    splits, _ = read_splits(out / "splits.csv", tiles.group_N, tiles.group_N)
    assert len(splits) == result.n_splits == 8


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("case,fold_0\nc0,test\n", "c1"),
        ("case,fold_0\n" + "".join(f"c{c},test\n" for c in range(8)), "train"),
        (
            "case,fold_0,fold_1\n"
            + "".join(
                f"c{c},{'test' if c < 4 else 'train'},{'test' if c < 5 else 'train'}\n"
                for c in range(8)
            ),
            "each group once",
        ),
        ("case,side\nc0,test\n", "fold_0"),
    ],
)
def test_refuses_a_table_of_splits(make_encoder, make_tiles, tmp_path, text, match) -> None:
    table = tmp_path / "splits.csv"
    table.write_text(text)
    with pytest.raises(LabelledDataError, match=match):
        evaluate_encoder(make_encoder(), make_tiles(), tmp_path / "out", splits=table, **SMALL)
    assert not (tmp_path / "out").exists()


def test_an_untrained_encoder_of_the_same_seed_is_its_own_floor(
    make_encoder, make_tiles, tmp_path
) -> None:
    encoder = make_encoder().untrained(3)
    result = evaluate_encoder(encoder, make_tiles(), tmp_path, seed=3, **SMALL)
    for item in result.comparisons:
        if item.floor == "untrained":
            assert (item.difference.low, item.difference.high) == (0, 0)
            assert set(item.group_difference.values()) == {0}


def test_notes_and_summary_say_what_matters(make_encoder, make_tiles, tmp_path) -> None:
    encoder = make_encoder(provenance={"patients": ["c1"]})
    result = evaluate_encoder(encoder, make_tiles(), tmp_path, **SMALL)
    text = "\n".join(result.summary())
    assert result.notes[0].startswith("8 groups are too few")
    assert "1 of 8 cases were seen (unlabelled) in pretraining: c1." in text
    assert "is not shown to differ from the untrained floor (linear probe)" in text
    assert "A class has only 4 groups" in text
    assert "encoder minus colour_texture  linear" in text
    assert "per case, linear probe: encoder accuracy, minus untrained, minus colour" in text
    assert sum(line.startswith("  c") for line in result.summary()) == 8


def test_files_without_cases_are_said_loudly(make_encoder, make_tiles, tmp_path) -> None:
    path = make_tiles(columns=(), n_cases=6)
    result = evaluate_encoder(make_encoder(), path, tmp_path / "out", **SMALL)
    assert result.notes[0].startswith("NO CASE INFORMATION: split by file, leakage possible")
    assert result.data.group_column == "file"
    assert result.data.preparation == {"resized": 24}
    assert any("24 tiles were resized" in note for note in result.notes)
    assert "is not known" in result.notes[1]


def test_every_model_sees_tiles_at_the_encoders_mpp(make_encoder, make_tiles, tmp_path) -> None:
    path = make_tiles(size_px=70)
    result = evaluate_encoder(make_encoder(mpp=2.0), path, tmp_path / "out", **SMALL)
    assert result.data.preparation == {"cropped at mpp": 32}
    result = evaluate_encoder(make_encoder(mpp=3.0), path, tmp_path / "too_small", **SMALL)
    assert result.data.preparation == {"resized": 32}


def test_a_finished_result_is_kept(make_encoder, make_tiles, tmp_path, monkeypatch, caplog) -> None:
    path, out = make_tiles(), tmp_path / "out"
    first = evaluate_encoder(make_encoder(), path, out, **SMALL)
    before = (out / "result.json").stat().st_mtime_ns

    def never(*_args, **_kwargs):
        pytest.fail("embedded again")

    monkeypatch.setattr(evaluate, "tile_features", never)
    with caplog.at_level(logging.INFO):
        assert evaluate_encoder(make_encoder(), path, out, **SMALL) == first
    assert (out / "result.json").stat().st_mtime_ns == before
    assert "is there already" in caplog.text


def test_a_killed_run_is_made_again_the_same(make_encoder, make_tiles, tmp_path) -> None:
    """Predictions are written first: without the result they count for nothing."""
    path, out = make_tiles(), tmp_path / "out"
    evaluate_encoder(make_encoder(), path, out, **SMALL)
    written = (out / "result.json").read_bytes()
    (out / "result.json").unlink()
    evaluate_encoder(make_encoder(), path, out, **SMALL)
    assert (out / "result.json").read_bytes() == written
    (out / "predictions.parquet").unlink()
    evaluate_encoder(make_encoder(), path, out, **SMALL)
    assert (out / "predictions.parquet").is_file()


def test_another_evaluations_result_is_not_overwritten(make_encoder, make_tiles, tmp_path) -> None:
    path, out = make_tiles(), tmp_path / "out"
    evaluate_encoder(make_encoder(), path, out, **SMALL)
    with pytest.raises(LabelledDataError, match="of another evaluation: encoder differ.*delete"):
        evaluate_encoder(make_encoder(seed=1), path, out, **SMALL)
    with pytest.raises(LabelledDataError, match="another evaluation: seed differ"):
        evaluate_encoder(make_encoder(), path, out, seed=9, **SMALL)
    with (path.parent / "case0_0.png").open("ab") as file:
        file.write(b" ")
    with pytest.raises(LabelledDataError, match="another evaluation: data differ"):
        evaluate_encoder(make_encoder(), path, out, **SMALL)
    (out / "result.json").write_text("{")
    with pytest.raises(LabelledDataError, match="a result in format evaluation/1"):
        evaluate_encoder(make_encoder(), path, out, **SMALL)


def test_batch_size_changes_no_prediction(make_encoder, make_tiles, tmp_path) -> None:
    path = make_tiles()
    small = evaluate_encoder(make_encoder(), path, tmp_path / "a", **SMALL)
    large = evaluate_encoder(make_encoder(), path, tmp_path / "b", **SMALL | {"batch_size": 64})
    assert small.scores == large.scores


def test_an_encoder_folder_is_loaded(make_encoder, make_tiles, tmp_path) -> None:
    encoder = make_encoder()
    save_encoder(tmp_path / "encoder", encoder.model, encoder.config)
    result = evaluate_encoder(tmp_path / "encoder", make_tiles(), tmp_path / "out", **SMALL)
    assert result.encoder_fingerprint == encoder.fingerprint
    assert json.loads((tmp_path / "out" / "result.json").read_text())["format"] == "evaluation/1"


OWN = """
import torch

FACTS = {"tile_px": 32, "mpp": 0.5, "mean": (0, 0, 0), "std": (1, 1, 1), "width": 6}

def module(): return torch.nn.Sequential(torch.nn.Conv2d(3, 6, 32), torch.nn.Flatten()), FACTS
def function(): return (lambda image: image.mean((2, 3))), {**FACTS, "width": 3}
"""


def test_a_network_that_is_not_ours_is_scored_beside_its_untrained_self(
    make_tiles, tmp_path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    torch.manual_seed(0)
    result = evaluate_encoder(f"{tmp_path}/own.py:module", make_tiles(), tmp_path / "out", **SMALL)
    assert {"encoder", "untrained", "colour_texture"} <= {score.model for score in result.scores}
    with pytest.raises(EncoderError, match=r"no untrained floor.*Return a torch.nn.Module"):
        evaluate_encoder(f"{tmp_path}/own.py:function", make_tiles(), tmp_path / "o", **SMALL)


def test_refuses_before_embedding(make_encoder, make_tiles, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "tile_features", lambda *_a, **_k: pytest.fail("embedded"))
    with pytest.raises(LabelledDataError, match="got k=99"):
        evaluate_encoder(make_encoder(), make_tiles(), tmp_path / "out", k=99)
    with pytest.raises(ValueError, match="n_resamples >= 1"):
        evaluate_encoder(make_encoder(), make_tiles(), tmp_path / "out", n_resamples=0)
    with pytest.raises(ValueError, match="a finite cost > 0"):
        evaluate_encoder(make_encoder(), make_tiles(), tmp_path / "out", cost=0)


def test_names_the_tile_that_is_damaged_or_embeds_to_nan(
    make_encoder, make_tiles, tmp_path
) -> None:
    path, encoder = make_tiles(), make_encoder()
    with torch.no_grad():
        encoder.model.norm.bias[0] = torch.nan
    with pytest.raises(EncoderError, match=r"case0_0\.png: the encoder network needs to give fin"):
        evaluate_encoder(encoder, path, tmp_path / "out", **SMALL)
    (path.parent / "case2_1.png").write_bytes(b"gone")
    with pytest.raises(LabelledDataError, match=r"case2_1\.png: cannot be decoded"):
        evaluate_encoder(make_encoder(), path, tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()
