import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from small_catalogue import make_catalogue
from some_bags import make_bag

from anlage.bags.store import read_bag_header, write_bag
from anlage.embedding.embed_slides import Moments, embed_slides
from anlage.embedding.slide_table import refuse_other_file
from anlage.errors import BagError, CatalogueError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, slide_id in enumerate("abc"):
        bag = make_bag(slide_id, 300 + number, seed=number)
        suffix = "zarr" if slide_id == "b" else "h5"
        write_bag(tmp_path / "bags" / f"{slide_id}.{suffix}", bag)
    return tmp_path / "bags"


def features_of(*names: str) -> np.ndarray:
    bags = [make_bag(name, 300 + "abc".index(name), seed="abc".index(name)) for name in names]
    return np.concatenate([bag.features for bag in bags]).astype(np.float64)


def embeddings(path: Path) -> np.ndarray:
    return np.stack(pq.read_table(path)["embedding"].to_pylist()).astype(np.float32)


@pytest.mark.parametrize("pooling", ["mean", "mean+std"])
def test_a_slide_is_what_numpy_gives(tmp_path, folder, pooling):
    result = embed_slides(folder, tmp_path / "slides.parquet", pooling=pooling)
    assert (result.n_slides, result.empty, result.refused) == (3, [], [])
    found = embeddings(result.output)
    for row, name in zip(found, "abc", strict=True):
        tiles = features_of(name)
        np.testing.assert_array_equal(row[:12], tiles.mean(axis=0).astype(np.float32))
        if pooling == "mean+std":
            np.testing.assert_array_equal(row[12:], tiles.std(axis=0).astype(np.float32))
    table = pq.read_table(result.output)
    assert table["slide_id"].to_pylist() == ["a", "b", "c"]
    assert table["n_tiles"].to_pylist() == [300, 301, 302]
    assert table["embedding"].type.list_size == (12 if pooling == "mean" else 24)


def test_a_patient_is_all_tiles_of_its_slides(tmp_path, folder):
    (tmp_path / "who.csv").write_text("slide_id,patient_id\na,p1\nc,p1\nz,p2\n")
    result = embed_slides(
        *(folder, tmp_path / "out.parquet"), pooling="mean+std", patients=tmp_path / "who.csv"
    )
    assert (result.n_patients, result.unknown) == (1, ["b"])
    assert result.patients_output == tmp_path / "out.patients.parquet"
    tiles = features_of("a", "c")
    (row,) = embeddings(result.patients_output)
    wanted = np.concatenate([tiles.mean(axis=0), tiles.std(axis=0)]).astype(np.float32)
    np.testing.assert_allclose(row, wanted, rtol=2e-7)
    table = pq.read_table(result.patients_output)
    assert table["slide_ids"].to_pylist() == [["a", "c"]]
    assert table["n_tiles"].to_pylist() == [602]
    assert pq.read_table(result.output)["patient_id"].to_pylist() == ["p1", None, "p1"]


def test_patients_of_a_catalogue(tmp_path, folder):
    catalogue = make_catalogue(tmp_path / "slides", 3)
    result = embed_slides(folder, tmp_path / "out.parquet", patients=catalogue.path)
    assert (result.n_patients, result.unknown) == (3, [])


def test_where_it_came_from_stands_in_the_file(tmp_path, folder):
    result = embed_slides(folder, tmp_path / "out.parquet", pooling="mean+std")
    table = pq.read_table(result.output)
    about = json.loads(table.schema.metadata[b"anlage"])
    assert (about["format"], about["pooling"]) == ("slide_embeddings/1", "mean+std")
    assert about["encoder_fingerprint"] == "e" * 64
    assert about["mpp"] == 0.5
    checksum = read_bag_header(folder / "a.h5").content_sha256
    assert table["bag_sha256"][0].as_py() == checksum
    assert len(about["bags_sha256"]) == 64


def test_empty_and_damaged_bags_are_named(tmp_path, folder):
    write_bag(folder / "d.h5", make_bag("d", 0))
    with h5py.File(folder / "c.h5", "r+") as file:
        file["features"][2, 2] = 5
    (folder / "e.h5").write_bytes(b"no")
    result = embed_slides(folder, tmp_path / "out.parquet")
    assert result.empty == ["d"]
    assert [Path(error.path).name for error in result.refused] == ["c.h5", "e.h5"]
    assert pq.read_table(result.output)["slide_id"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize("change", [{"encoder_fingerprint": "0" * 64}, {"mpp": 1.0}])
def test_bags_of_two_encoders_are_refused(tmp_path, folder, change):
    write_bag(folder / "c.h5", make_bag("c", **change))
    with pytest.raises(BagError, match=f"c.h5: was made with {next(iter(change))}"):
        embed_slides(folder, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_other_files_are_not_written_over(tmp_path, folder):
    """Such as the catalogue of the slides, or what a slide encoder took hours to make."""
    catalogue = make_catalogue(tmp_path / "slides", 1).path
    before = catalogue.read_bytes()
    with pytest.raises(BagError, match="is no table of slide embeddings. Name another output"):
        embed_slides(folder, catalogue)
    assert catalogue.read_bytes() == before
    table = tmp_path / "s.parquet"
    embed_slides(folder, table)
    refuse_other_file(table, by_encoder=False)
    with pytest.raises(BagError, match="was made by pooling tiles; this run makes one by a slide"):
        refuse_other_file(table, by_encoder=True)


def test_nothing_to_pool(tmp_path):
    with pytest.raises(BagError, match="holds no bags"):
        embed_slides(tmp_path, tmp_path / "out.parquet")
    write_bag(tmp_path / "a.h5", make_bag("a", 0))
    result = embed_slides(tmp_path, tmp_path / "out.parquet")
    assert (result.n_slides, result.empty) == (0, ["a"])
    with pytest.raises(ValueError, match=r"needs pooling mean or mean\+std; got 'max'"):
        embed_slides(tmp_path, tmp_path / "out.parquet", pooling="max")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("slide,patient\na,p\n", "needs columns slide_id and patient_id; got slide, patient"),
        ("slide_id,patient_id\na,p\na,q\n", "gives slide 'a' to 'p' and 'q'"),
        (None, "cannot be read as CSV"),
    ],
)
def test_labels_that_say_nothing_of_patients(tmp_path, folder, text, says):
    if text is not None:
        (tmp_path / "who.csv").write_text(text)
    with pytest.raises(CatalogueError, match=says):
        embed_slides(folder, tmp_path / "out.parquet", patients=tmp_path / "who.csv")


def test_moments_do_not_cancel():
    """A spread of 1e-3 around 1e4 is lost by the mean of squares; blocks are merged exactly."""
    rows = 1e4 + 1e-3 * np.random.default_rng(0).standard_normal((5000, 3))
    moments, other = Moments(3), Moments(3)
    for k, block in enumerate(np.array_split(rows, 7)):
        (moments if k < 3 else other).add(block)
    moments.merge(other)
    moments.merge(Moments(3))
    pooled = moments.pooled("mean+std")
    np.testing.assert_allclose(pooled[:3], rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(pooled[3:], rows.std(axis=0), rtol=1e-6)
