"""What a model's scores are, against numpy; and bags, models and slides that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
from slide_models import MADE_FOR, PLANTED, WIDTH, save_encoder, save_model, save_planted
from slide_models import slides_and_bags as make
from small_catalogue import write_labels, write_slide

from anlage.bags.store import Bag, bag_place, read_bag, write_bag
from anlage.encoders.slide_model_folder import OpenSlideModel
from anlage.errors import BagError, CatalogueError, EncoderError, SlideError
from anlage.explain.slide_explanation import (
    explain_slide,
    open_explained,
    open_slide_of,
    read_one_bag,
)
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides


def explained(opened, bags, slide_id, **settings):
    return explain_slide(opened, read_one_bag(bags, slide_id), **settings)


def rewritten(bags, **changes) -> None:
    """The bag of slide a with other features, corners or attributes."""
    place = bag_place(bags, "a")
    bag = read_bag(place)
    features, coords = (changes.pop(name, getattr(bag, name)) for name in ("features", "coords"))
    write_bag(place, Bag("a", features, coords, replace(bag.attributes, **changes)))


def test_a_poolings_attention_is_what_numpy_says(tmp_path) -> None:
    _, bags = make(tmp_path)
    save_planted(tmp_path / "model")
    made = explained(open_explained(str(tmp_path / "model")), bags, "a")
    score = 3 * np.tanh(read_bag(bag_place(bags, "a")).features[:, 0].astype(np.float64))
    wanted = np.exp(score) / np.exp(score).sum()
    (found,) = made.tiles.scores
    np.testing.assert_allclose(found.weight_L, wanted, rtol=1e-5)
    assert int(found.weight_L.argmax()) == PLANTED
    assert found.rank[PLANTED] == 1
    assert made.tiles.corner_L2[PLANTED].tolist() == [224, 0]
    assert made.tiles.edge_level0_px == 32
    assert [name for name, _ in made.prediction] == ["probability_yes"]
    assert made.notes == ()


def test_a_slide_encoder_gives_its_heads_and_their_mean(tmp_path) -> None:
    _, bags = make(tmp_path)
    save_encoder(tmp_path / "encoder")
    made = explained(open_explained(str(tmp_path / "encoder")), bags, "a")
    names = [score.name for score in made.tiles.scores]
    assert names == ["layer_02_mean", "layer_02_head_00", "layer_02_head_01"]
    assert [len(made.tiles.main), len(made.tiles.heads)] == [1, 2]
    mean, first, second = (score.weight_L for score in made.tiles.scores)
    np.testing.assert_allclose(mean, (first + second) / 2, rtol=1e-6)
    # of 49 rows the second head sees the first 8, the first also every second of 32
    assert [score.n_weighted for score in made.tiles.heads] == [7 + 12, 7]
    assert "heads see 7 to 19" in made.notes[0]
    other = explained(open_explained(str(tmp_path / "encoder")), bags, "a", layer=1)
    assert other.tiles.scores[0].name == "layer_01_mean"
    assert not np.allclose(other.tiles.scores[1].weight_L, first)


def test_a_model_with_both_says_which_one_decides(tmp_path) -> None:
    _, bags = make(tmp_path)
    encoder = {"width": 16, "depth": 3, "n_heads": 2, "segments": [64], "dilations": [1]}
    save_model(tmp_path / "pool", n_outputs=3, slide_encoder=encoder, pooling={"kind": "clam_mb"})
    save_model(tmp_path / "cls", slide_encoder=encoder, route="cls", layers=[1, 2])
    pool = explained(open_explained(str(tmp_path / "pool")), bags, "a")
    names = [score.name for score in pool.tiles.main]
    assert names == [f"attention_{n}_class_{n}" for n in range(3)] + ["layer_03_mean"]
    assert "not fed by the slide token" in pool.notes[1]
    assert sum(value for _, value in pool.prediction) == pytest.approx(1)
    cls = explained(open_explained(str(tmp_path / "cls")), bags, "a")
    assert [score.name for score in cls.tiles.main] == ["layer_02_mean"]  # the last that is used
    assert len(cls.notes) == 1


def test_a_pass_that_is_noted_gives_the_same(tmp_path) -> None:
    _, bags = make(tmp_path)
    encoder = {"width": 16, "depth": 3, "n_heads": 2, "segments": [64], "dilations": [1]}
    save_model(tmp_path / "m", slide_encoder=encoder, pooling={"kind": "gated_abmil"})
    opened = open_explained(str(tmp_path / "m"))
    assert isinstance(opened, OpenSlideModel)
    one = explained(opened, bags, "a", layer=1)
    two = explained(opened, bags, "a", layer=3)
    assert one.prediction == two.prediction
    np.testing.assert_array_equal(one.tiles.scores[0].weight_L, two.tiles.scores[0].weight_L)


def test_bags_that_are_not_there_or_not_the_models(tmp_path) -> None:
    _, bags = make(tmp_path)
    save_planted(tmp_path / "model")
    opened = open_explained(str(tmp_path / "model"))
    with pytest.raises(BagError, match="no bag of slide 'b' among its 1"):
        explained(opened, bags, "b")
    rewritten(bags, encoder_fingerprint="f" * 64)
    with pytest.raises(BagError, match=f"takes {MADE_FOR.name}"):
        explained(opened, bags, "a")
    rewritten(bags, encoder_fingerprint="e" * 64, features=np.ones((48, WIDTH + 1), np.float16))
    with pytest.raises(BagError, match=f"is {WIDTH + 1} wide"):
        explained(opened, bags, "a")
    rewritten(bags, features=np.ones((0, WIDTH), np.float16), coords=np.zeros((0, 2), np.int64))
    with pytest.raises(BagError, match="1 without a tile"):
        explained(opened, bags, "a")


def test_attention_that_is_the_same_everywhere(tmp_path) -> None:
    _, bags = make(tmp_path)
    save_planted(tmp_path / "model")
    save_model(tmp_path / "mean", pooling={"kind": "mean"})
    save_model(tmp_path / "transmil", pooling={"kind": "transmil", "width": 16})
    rewritten(bags, features=np.ones((48, WIDTH), np.float16))
    with pytest.raises(EncoderError, match="48 tiles of slide 'a' the same attention"):
        explained(open_explained(str(tmp_path / "model")), bags, "a")
    for name in ("mean", "transmil"):
        with pytest.raises(EncoderError, match="gives no weights of tiles"):
            explained(open_explained(str(tmp_path / name)), bags, "a")


def test_layers_that_are_not_there(tmp_path) -> None:
    _, bags = make(tmp_path)
    save_encoder(tmp_path / "encoder")
    save_planted(tmp_path / "model")
    with pytest.raises(ValueError, match="layer from 1 to 2; got 3"):
        explained(open_explained(str(tmp_path / "encoder")), bags, "a", layer=3)
    with pytest.raises(ValueError, match="needs a slide encoder to have a layer 1"):
        explained(open_explained(str(tmp_path / "model")), bags, "a", layer=1)


def test_layers_that_the_model_does_not_run(tmp_path) -> None:
    _, bags = make(tmp_path)
    encoder = {"width": 16, "depth": 3, "n_heads": 2, "segments": [64], "dilations": [1]}
    save_model(tmp_path / "cls", slide_encoder=encoder, route="cls", layers=[1, 2])
    with pytest.raises(ValueError, match="layer from 1 to 2; got 3"):
        explained(open_explained(str(tmp_path / "cls")), bags, "a", layer=3)
    save_model(tmp_path / "input", slide_encoder=encoder, route="mean", layers=[0])
    with pytest.raises(EncoderError, match="no block of a slide encoder"):
        explained(open_explained(str(tmp_path / "input")), bags, "a")


def test_only_the_slide_that_the_bag_was_made_from(tmp_path) -> None:
    catalogue, bags = make(tmp_path)
    bag = read_one_bag(bags, "a").bag
    with open_slide_of(catalogue, bag) as slide:
        assert tuple(slide.size) == (256, 192)
    other = tmp_path / "other"
    write_slide(other / "a.tif", seed=9)
    index_slides([other], other / "slides.parquet")
    with pytest.raises(SlideError, match="not the slide that the bag was made from"):
        open_slide_of(Catalogue.open(other / "slides.parquet"), bag)
    write_slide(other / "b.tif", seed=9)
    (other / "a.tif").unlink()
    index_slides([other], other / "others.parquet")
    with pytest.raises(CatalogueError, match="no slide 'a'"):
        open_slide_of(Catalogue.open(other / "others.parquet"), bag)


@pytest.mark.parametrize("mpp", [0.9, 0.98, 2.0])
def test_a_slide_whose_mpp_was_corrected_since(tmp_path, mpp) -> None:
    """The fingerprint is of the file, and does not change with the catalogue's mpp."""
    _, bags = make(tmp_path)
    bag = read_one_bag(bags, "a").bag
    labels = write_labels(tmp_path / "labels.csv", [{"slide_id": "a", "mpp": mpp}])
    index_slides([tmp_path], tmp_path / "slides.parquet", labels=labels)
    corrected = Catalogue.open(tmp_path / "slides.parquet")
    assert corrected.row("a").fingerprint == bag.attributes.slide_fingerprint
    with pytest.raises(SlideError, match=rf"mpp 1\.0 when .* embedded, and has {mpp} now"):
        open_slide_of(corrected, bag)


def test_what_is_no_model(tmp_path) -> None:
    with pytest.raises(EncoderError, match="no such slide encoder"):
        open_explained(str(tmp_path / "nothing"))
    with pytest.raises(EncoderError):
        open_explained("")
