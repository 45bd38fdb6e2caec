"""Which bags train and which are held out, and in what parts ranks take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from slide_runs import micro_slide_config, write_bags, write_table

from anlage.bags.loader import BagSet
from anlage.bags.slide_labels import SlideLabels
from anlage.distributed import Ranks
from anlage.errors import BagError, CatalogueError
from anlage.training.slide_pretraining.feed import choose_bags, step_parts

N_SLIDES = 12


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> BagSet:
    return BagSet.open(write_bags(tmp_path_factory.mktemp("bags"), n_slides=N_SLIDES))


@pytest.fixture
def table(tmp_path: Path) -> SlideLabels:
    return SlideLabels.open(write_table(tmp_path / "slides.csv", n_slides=N_SLIDES))


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_a_share_of_the_patients_is_held_out(
    bags: BagSet, table: SlideLabels, share: float
) -> None:
    chosen = choose_bags(micro_slide_config(f"held_out.share={share}"), bags, table)
    train, held = (
        {table.patient_of[s] for s in slides} for slides in (chosen.train, chosen.held_out)
    )
    assert train.isdisjoint(held)
    assert len(train) + len(held) == 6
    assert len(held) == min(max(round(share * 6), 1), 5)
    assert set(chosen.train) | set(chosen.held_out) == set(bags.slide_ids)


def test_the_choice_follows_the_seed(bags: BagSet, table: SlideLabels) -> None:
    found = {
        choose_bags(micro_slide_config(f"seed={seed}"), bags, table).held_out for seed in range(8)
    }
    assert len(found) > 2
    again = choose_bags(micro_slide_config("seed=3"), bags, table)
    assert again.held_out == choose_bags(micro_slide_config("seed=3"), bags, table).held_out


def test_splits_of_the_table_are_kept(bags: BagSet, table: SlideLabels) -> None:
    config = micro_slide_config("bags.split=train", "held_out.split=test", "held_out.share=0")
    chosen = choose_bags(config, bags, table)
    split_of = dict(zip(table.slide_ids, table.column("split"), strict=True))
    assert {split_of[slide] for slide in chosen.train} == {"train"}
    assert {split_of[slide] for slide in chosen.held_out} == {"test"}
    few = micro_slide_config("held_out.split=test", "held_out.share=0", "held_out.most=2")
    assert len(choose_bags(few, bags, table).held_out) == 2
    assert set(choose_bags(few, bags, table).train) == set(chosen.train)  # not those left out


def test_a_patient_in_both_splits_is_refused(bags: BagSet, tmp_path: Path) -> None:
    text = write_table(tmp_path / "slides.csv", n_slides=N_SLIDES).read_text()
    torn = text.replace("s0,p0,no,train", "s0,p0,no,test")
    assert torn != text
    (tmp_path / "torn.csv").write_text(torn)
    config = micro_slide_config("bags.split=train", "held_out.split=test", "held_out.share=0")
    with pytest.raises(
        CatalogueError, match="each patient in one split; got 1 in both, such as p0"
    ):
        choose_bags(config, bags, SlideLabels.open(tmp_path / "torn.csv"))


def test_a_share_is_held_out_of_the_split_that_is_trained_on(
    bags: BagSet, table: SlideLabels
) -> None:
    split_of = dict(zip(table.slide_ids, table.column("split"), strict=True))
    for seed in range(4):
        config = micro_slide_config("bags.split=train", "held_out.share=0.5", f"seed={seed}")
        chosen = choose_bags(config, bags, table)
        assert {split_of[slide] for slide in (*chosen.train, *chosen.held_out)} == {"train"}


@pytest.mark.parametrize("share", [0, 0.3])
def test_a_patient_inside_and_outside_the_split_is_refused(
    bags: BagSet, tmp_path: Path, share: float
) -> None:
    text = write_table(tmp_path / "slides.csv", n_slides=N_SLIDES).read_text()
    (tmp_path / "torn.csv").write_text(text.replace("s0,p0,no,train", "s0,p0,no,test"))
    config = micro_slide_config("bags.split=train", f"held_out.share={share}")
    with pytest.raises(CatalogueError, match="each patient in one split; got 1 .* such as p0"):
        choose_bags(config, bags, SlideLabels.open(tmp_path / "torn.csv"))


def test_splits_that_are_not_there_are_refused(bags: BagSet, table: SlideLabels) -> None:
    config = micro_slide_config("bags.split=training")
    with pytest.raises(CatalogueError, match="slides of split 'training'; got test, train"):
        choose_bags(config, bags, table)
    with pytest.raises(CatalogueError, match=r"needs a table .* Name it with --watch"):
        choose_bags(config, bags)


def test_nothing_left_to_train_on_is_refused(bags: BagSet, table: SlideLabels) -> None:
    config = micro_slide_config("bags.split=test", "held_out.split=test", "held_out.share=0")
    with pytest.raises(BagError, match="needs a bag to train on"):
        choose_bags(config, bags, table)


def test_the_grid_is_the_step_between_tiles_where_none_is_named(bags: BagSet) -> None:
    assert choose_bags(micro_slide_config(), bags).grid_um == 128.0
    assert choose_bags(micro_slide_config("bags.grid_um=64"), bags).grid_um == 64.0


@pytest.mark.parametrize(("n_ranks", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_ranks_and_parts_share_the_same_draws(bags: BagSet, n_ranks: int, accumulate: int) -> None:
    config = micro_slide_config(f"accumulate={accumulate}")
    chosen = choose_bags(config, bags)
    found = [
        list(
            step_parts(
                config, chosen, first_step=1, last_step=4, ranks=Ranks(rank, world_size=n_ranks)
            )
        )
        for rank in range(n_ranks)
    ]
    whole = list(step_parts(micro_slide_config(), chosen, first_step=1, last_step=4, ranks=Ranks()))
    for step, wanted in enumerate(whole):
        parts = [p for own in found for p in own[step * accumulate : (step + 1) * accumulate]]
        assert {len(part) for part in parts} == {4 // (n_ranks * accumulate)}
        assert [draw for part in parts for draw in part] == wanted
    assert [g for part in whole for g, _ in part] == list(range(4, 16))


def test_an_epoch_draws_each_bag_once(bags: BagSet) -> None:
    config = micro_slide_config("held_out.share=0")
    chosen = choose_bags(config, bags)
    parts = list(step_parts(config, chosen, first_step=0, last_step=3, ranks=Ranks()))
    drawn = [slide for part in parts for _, slide in part]
    assert sorted(drawn) == sorted(bags.slide_ids)
    assert np.unique([g for part in parts for g, _ in part]).tolist() == list(range(12))
