"""Slide embeddings by a slide encoder: the numbers, what is kept, and what is refused."""

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_slide_encoder import ARCHITECTURE, TILE_ENCODER, make_slide_encoder
from some_bags import make_bag

from anlage.bags.grid_cells import grid_cells
from anlage.bags.store import read_bag_header, write_bag
from anlage.embedding import encode_slides as module
from anlage.embedding.embed_tiles import embed_tiles
from anlage.embedding.encode_slides import encode_slides
from anlage.encoders.folder import load_encoder
from anlage.encoders.slide_encoder import OpenSlideEncoder
from anlage.errors import BagError
from anlage.samples import slides_folder
from anlage.slides.indexing.index import index_slides

SIZES = {"a": 40, "b": 7, "c": 65}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (slide_id, n_tiles) in enumerate(SIZES.items()):
        suffix = "zarr" if slide_id == "b" else "h5"
        write_bag(
            tmp_path / "bags" / f"{slide_id}.{suffix}", make_bag(slide_id, n_tiles, seed=seed)
        )
    return tmp_path / "bags"


@pytest.fixture
def encoder() -> OpenSlideEncoder:
    return make_slide_encoder()


def embeddings(path: Path) -> np.ndarray:
    return np.stack(pq.read_table(path)["embedding"].to_pylist()).astype(np.float32)


def alone(encoder: OpenSlideEncoder, slide_id: str) -> np.ndarray:
    """What the encoder gives for one bag by itself."""
    seed = list(SIZES).index(slide_id)
    bag = make_bag(slide_id, SIZES[slide_id], seed=seed)
    cells = grid_cells(bag.coords, slide_mpp=0.2528, grid_um=encoder.config.grid_um)
    features = torch.from_numpy(bag.features)
    return encoder.embed(features, torch.from_numpy(cells), [len(features)])[0].numpy()


@pytest.mark.parametrize("tiles_at_once", [1, 50, 8192])
def test_a_slide_is_what_the_encoder_gives(monkeypatch, tmp_path, folder, encoder, tiles_at_once):
    monkeypatch.setattr(module, "TILES_AT_ONCE", tiles_at_once)
    result = encode_slides(encoder, folder, tmp_path / "slides.parquet")
    assert (result.n_slides, result.n_kept, result.empty, result.refused) == (3, 0, [], [])
    for row, name in zip(embeddings(result.output), SIZES, strict=True):
        np.testing.assert_allclose(row, alone(encoder, name), atol=1e-6)
    table = pq.read_table(result.output)
    assert table["slide_id"].to_pylist() == list("abc")
    assert table["n_tiles"].to_pylist() == list(SIZES.values())
    assert table["slide_mpp"].to_pylist() == [0.2528] * 3
    assert table["bag_sha256"][0].as_py() == read_bag_header(folder / "a.h5").content_sha256


def test_what_made_the_table_is_in_it(tmp_path, folder):
    encoder = make_slide_encoder(pooling="mean", provenance={"preset": "small"})
    result = encode_slides(encoder, folder, tmp_path / "slides.parquet")
    about = json.loads(pq.read_schema(result.output).metadata[b"anlage"])
    assert (about["format"], about["level"], about["pooling"]) == (
        *("slide_embeddings/1", "slide"),
        "mean",
    )
    assert about["slide_encoder"] == {
        "name": "small",
        "fingerprint": encoder.fingerprint,
        "grid_um": 112.0,
        "precision": "fp32",
    }
    assert (about["encoder_name"], about["encoder_fingerprint"]) == ("anlage-tiny", "e" * 64)
    assert embeddings(result.output).shape == (3, 16)


def test_a_patient_is_the_mean_of_its_slides(tmp_path, folder, encoder):
    (tmp_path / "who.csv").write_text("slide_id,patient_id\na,p2\nc,p2\nz,p1\n")
    result = encode_slides(encoder, folder, tmp_path / "out.parquet", patients=tmp_path / "who.csv")
    assert (result.n_patients, result.unknown) == (1, ["b"])
    assert result.patients_output == tmp_path / "out.patients.parquet"
    table = pq.read_table(result.patients_output)
    assert table["slide_ids"].to_pylist() == [["a", "c"]]
    assert table["n_tiles"].to_pylist() == [105]
    wanted = (alone(encoder, "a") + alone(encoder, "c")) / 2
    np.testing.assert_allclose(embeddings(result.patients_output)[0], wanted, atol=1e-6)
    assert pq.read_table(result.output)["patient_id"].to_pylist() == ["p2", None, "p2"]


def count_passes(monkeypatch) -> list[list[int]]:
    """The lengths of each pass through an encoder, from now on."""
    passes, embed = [], OpenSlideEncoder.embed

    def counting(self, features, cells, lengths):
        passes.append(lengths)
        return embed(self, features, cells, lengths)

    monkeypatch.setattr(OpenSlideEncoder, "embed", counting)
    return passes


def test_rows_of_the_same_bags_and_encoder_are_kept(monkeypatch, tmp_path, folder, encoder):
    output = tmp_path / "slides.parquet"
    encode_slides(encoder, folder, output)
    before = embeddings(output)
    write_bag(folder / "b.zarr", make_bag("b", 9, seed=9))
    write_bag(folder / "c.h5", make_bag("c", 65, seed=2, slide_mpp=0.5))  # on another grid
    write_bag(folder / "d.h5", make_bag("d", 3, seed=9))
    passes = count_passes(monkeypatch)
    result = encode_slides(encoder, folder, output)
    assert (result.n_slides, result.n_kept, passes) == (4, 1, [[9, 65, 3]])
    np.testing.assert_array_equal(embeddings(output)[0], before[0])
    encode_slides(make_slide_encoder(seed=1), folder, output)
    assert passes[1:] == [[40, 9, 65, 3]]


def test_an_interrupted_run_goes_on(monkeypatch, tmp_path, folder, encoder):
    monkeypatch.setattr(module, "TILES_AT_ONCE", 1)
    embed = OpenSlideEncoder.embed

    def interrupted(self, features, cells, lengths):
        if lengths == [65]:
            raise KeyboardInterrupt
        return embed(self, features, cells, lengths)

    monkeypatch.setattr(OpenSlideEncoder, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_slides(encoder, folder, tmp_path / "slides.parquet")
    assert not (tmp_path / "slides.parquet").exists()
    monkeypatch.setattr(OpenSlideEncoder, "embed", embed)
    passes = count_passes(monkeypatch)
    result = encode_slides(encoder, folder, tmp_path / "slides.parquet")
    assert (result.n_slides, result.n_kept, passes) == (3, 2, [[65]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bags", "slides.parquet"]


def test_rows_are_put_aside_while_it_runs(monkeypatch, tmp_path, folder, encoder):
    monkeypatch.setattr(module, "TILES_AT_ONCE", 1)
    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.0)
    embed, beside = OpenSlideEncoder.embed, tmp_path / ".slides.partial.parquet"
    there = []

    def looking(self, features, cells, lengths):
        there.append(pq.read_table(beside).num_rows if beside.exists() else 0)
        return embed(self, features, cells, lengths)

    monkeypatch.setattr(OpenSlideEncoder, "embed", looking)
    encode_slides(encoder, folder, tmp_path / "slides.parquet")
    assert there == [0, 1, 2]


def test_a_file_that_is_no_such_table_is_left_alone(tmp_path, folder, encoder):
    (tmp_path / "slides.parquet").write_text("no")
    with pytest.raises(BagError, match="is no table of slide embeddings"):
        encode_slides(encoder, folder, tmp_path / "slides.parquet")
    assert (tmp_path / "slides.parquet").read_text() == "no"


def test_empty_and_damaged_bags_are_named(tmp_path, folder, encoder):
    write_bag(folder / "d.h5", make_bag("d", 0))
    (folder / "e.h5").write_bytes(b"no")
    bag = make_bag("f", 20)
    write_bag(folder / "f.h5", bag)
    with h5py.File(folder / "f.h5", "r+") as file:
        file["features"][3, 2] = np.nan
    result = encode_slides(encoder, folder, tmp_path / "slides.parquet")
    assert (result.n_slides, result.empty) == (3, ["d"])
    assert sorted(Path(error.path).name for error in result.refused) == ["e.h5", "f.h5"]


def test_an_embedding_that_is_not_finite_is_refused_by_slide(tmp_path, folder, monkeypatch):
    """And a later run makes it anew, of a table with such a row too."""
    embed, output = OpenSlideEncoder.embed, tmp_path / "slides.parquet"

    def overflows(self, features_TD, cell_T2, lengths):
        embedding_BP = embed(self, features_TD, cell_T2, lengths)
        embedding_BP[[length == SIZES["b"] for length in lengths], 3] = torch.inf
        return embedding_BP

    with monkeypatch.context() as patch:
        patch.setattr(OpenSlideEncoder, "embed", overflows)
        result = encode_slides(make_slide_encoder(), folder, output)
        assert (result.n_slides, len(result.refused)) == (2, 1)
        assert Path(result.refused[0].path).name == "b.zarr"
        assert "embedding holds NaN or an infinity" in str(result.refused[0])
        assert pq.read_table(output)["slide_id"].to_pylist() == ["a", "c"]
        patch.setattr(module, "_not_finite", lambda _: False)
        encode_slides(make_slide_encoder(), folder, output)
        assert not np.isfinite(embeddings(output)).all()
    result = encode_slides(make_slide_encoder(), folder, output)
    assert (result.n_slides, result.n_kept, result.refused) == (3, 2, [])
    assert np.isfinite(embeddings(output)).all()


def test_no_finite_embedding_at_all_leaves_no_table(tmp_path, folder, monkeypatch):
    lost = torch.full((3, 16), torch.nan)
    monkeypatch.setattr(OpenSlideEncoder, "embed", lambda *_: lost)
    with pytest.raises(BagError, match="NaN or an infinity"):
        encode_slides(make_slide_encoder(), folder, tmp_path / "slides.parquet")
    assert not (tmp_path / "slides.parquet").exists()


def test_a_bag_of_too_many_tiles_is_named(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("anlage.bags.bag_set.MAX_TILES", 50)
    result = encode_slides(make_slide_encoder(), folder, tmp_path / "slides.parquet")
    assert result.n_slides == 2
    assert "at most 50 tiles; got 65" in str(result.refused[0])


@pytest.mark.parametrize(
    ("bags", "told"),
    [
        ({"width": 13}, "is 13 wide; the slide encoder takes anlage-tiny, 12 wide"),
        ({"encoder_fingerprint": "f" * 64}, "was made with encoder anlage-tiny"),
        ({"mpp": 1.0}, "is of tiles at 1 mpp; the slide encoder takes 0.5"),
        ({"n_tiles": 0}, "holds no bag that can be used"),
    ],
)
def test_bags_that_it_was_not_made_for(tmp_path, encoder, bags, told):
    write_bag(tmp_path / "bags" / "a.h5", make_bag("a", **bags))
    with pytest.raises(BagError, match=told):
        encode_slides(encoder, tmp_path / "bags", tmp_path / "slides.parquet")
    assert not (tmp_path / "slides.parquet").exists()


def test_bags_of_several_encoders(tmp_path, folder, encoder):
    write_bag(folder / "d.h5", make_bag("d", encoder_fingerprint="f" * 64))
    with pytest.raises(BagError, match="encoder_fingerprint"):
        encode_slides(encoder, folder, tmp_path / "slides.parquet")


def test_bags_that_do_not_say_whose_they_are(tmp_path, caplog):
    write_bag(tmp_path / "bags" / "a.h5", make_bag("a", encoder_name=""))
    facts = TILE_ENCODER.model_copy(update={"fingerprint": None})
    encoder = make_slide_encoder(tile_encoder=facts)
    encode_slides(encoder, tmp_path / "bags", tmp_path / "slides.parquet")
    assert "does not say the name of its encoder; taken for anlage-tiny" in caplog.text


def test_a_real_slide(tmp_path):
    tiles = load_encoder("anlage-tiny")
    (slide,) = slides_folder().glob("hodgkin__HE.tiff")
    index_slides([slide], tmp_path / "slides.parquet")
    embed_tiles("anlage-tiny", tmp_path / "slides.parquet", tmp_path / "bags")
    config = tiles.config
    encoder = make_slide_encoder(
        architecture={**ARCHITECTURE, "input_width": tiles.width},
        grid_um=config.tile_px * config.mpp,
        tile_encoder={
            "name": "anlage-tiny", "fingerprint": tiles.fingerprint, "mpp": config.mpp,
            "tile_px": config.tile_px, "width": tiles.width,
        },
    )  # fmt: skip
    result = encode_slides(encoder, tmp_path / "bags", tmp_path / "out.parquet")
    assert (result.n_slides, result.refused) == (1, [])
    (row,) = embeddings(result.output)
    assert np.isfinite(row).all()
    assert row.std() > 0.1
