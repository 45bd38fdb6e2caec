import json
import shutil
from dataclasses import replace
from pathlib import Path

import boto3
import h5py
import numpy as np
import pytest
from small_catalogue import make_catalogue, write_slide
from some_bags import make_bag

from anlage.bags.bag import content_sha256
from anlage.bags.store import Bag, bag_place, clear_half_written, read_bag, write_bag
from anlage.bags.summary import summarise_bags
from anlage.bags.verify import verify_bags
from anlage.errors import BagError
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides
from anlage.tiles.grid import tile_grid
from anlage.tiles.spec import TileSpec

SPEC = TileSpec(size_px=32, mpp=1.0, stride_px=32, min_tissue=0.25)


def found(result) -> list[tuple[str, str]]:
    return [(finding.kind, Path(finding.place).stem) for finding in result.findings]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, slide_id in enumerate("abcd"):
        suffix = "zarr" if slide_id == "d" else "h5"
        write_bag(tmp_path / "bags" / f"{slide_id}.{suffix}", make_bag(slide_id, seed=number))
    return tmp_path / "bags"


def write_record(folder: Path, **changes) -> None:
    tiles = {"size_px": 224, "mpp": 0.5, "stride_px": 112, "min_tissue": 0.25}
    record = {"encoder_fingerprint": "e" * 64, "colour": "stored", "tiles": tiles} | changes
    (folder / "embedding.json").write_text(json.dumps(record))


def test_a_good_folder_has_no_findings(folder):
    result = verify_bags(folder)
    assert (result.n_bags, result.n_tiles, result.findings) == (4, 200, [])
    write_record(folder)
    assert verify_bags(folder).findings == []
    assert verify_bags(folder, encoder_fingerprint="e" * 64).findings == []


def test_an_empty_bag_is_no_fault(folder):
    write_bag(folder / "e.h5", make_bag("e", 0))
    assert verify_bags(folder).findings == []


def test_damaged_bags_are_found(folder):
    path = folder / "a.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with h5py.File(folder / "b.h5", "r+") as file:
        file["features"][3, 4] = 7
    shutil.copy(folder / "c.h5", folder / "e.h5")
    shard = folder / "d.zarr" / "features" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-9])
    result = verify_bags(folder)
    assert found(result) == [("damaged", name) for name in ("a", "b", "d", "e")]
    reasons = [finding.reason for finding in result.findings]
    assert "not a whole HDF5 file" in reasons[0]
    assert "does not match its checksum" in reasons[1]
    assert "is the bag of slide 'c'" in reasons[3]
    assert result.n_bags == 1


def test_nan_with_a_right_checksum_is_found(folder):
    bag = read_bag(folder / "a.h5")
    bag.features[7, 1] = np.nan
    with h5py.File(folder / "a.h5", "r+") as file:
        file["features"][()] = bag.features
        file.attrs["content_sha256"] = content_sha256(bag.features, bag.coords)
    (finding,) = verify_bags(folder).findings
    assert (finding.kind, "NaN or an infinity in tile 7" in finding.reason) == ("damaged", True)


def test_half_written_bags_are_found(folder):
    (folder / ".e.h5.12345678.part").write_bytes(b"half")
    (folder / ".f.zarr.12345678.part").mkdir()
    (folder / "d.zarr" / "zarr.json").unlink()
    assert [kind for kind, _ in found(verify_bags(folder))] == ["half-written"] * 3
    clear_half_written(folder, older_than_s=3600)
    assert len(verify_bags(folder).findings) == 3
    clear_half_written(folder, older_than_s=-1)
    assert found(verify_bags(folder)) == [("half-written", "d")]


def test_a_bag_of_another_encoder_is_found(folder):
    write_bag(folder / "b.h5", make_bag("b", encoder_fingerprint="0" * 64))
    result = verify_bags(folder)
    assert found(result) == [("mixed", "b")]
    assert "most bags here say eeee" in result.findings[0].reason
    write_record(folder, encoder_fingerprint="0" * 64)
    assert found(verify_bags(folder)) == [("stale", name) for name in "acd"]
    given = verify_bags(folder, encoder_fingerprint="1" * 64)
    assert found(given) == [("stale", name) for name in "abcd"]


@pytest.mark.parametrize("change", [{"mpp": 1.0}, {"stride_px": 224}, {"colour": "srgb"}])
def test_a_bag_of_another_grid_or_colour_is_found(folder, change):
    write_record(folder)
    write_bag(folder / "c.h5", make_bag("c", **change))
    result = verify_bags(folder)
    assert found(result) == [("stale", "c")]
    assert f"was made with {next(iter(change))}" in result.findings[0].reason


def test_a_record_that_is_damaged(folder):
    (folder / "embedding.json").write_text("{")
    with pytest.raises(BagError, match=r"embedding\.json: is damaged"):
        verify_bags(folder)


def catalogue_bags(catalogue: Catalogue, folder: Path) -> None:
    """Bags of a catalogue's slides, tiles as its masks give them."""
    for row in catalogue.rows():
        tissue = catalogue.mask(row.slide_id)
        size = (row.width, row.height)
        corners = tile_grid(
            tissue.mask, mask_mpp=tissue.mpp, slide_mpp=row.mpp, spec=SPEC, slide_size=size
        )
        made = replace(
            make_bag().attributes,
            slide_fingerprint=row.fingerprint,
            slide_mpp=row.mpp,
            mpp=SPEC.mpp,
            tile_px=SPEC.size_px,
            stride_px=SPEC.stride_px,
            min_tissue=SPEC.min_tissue,
        )
        features = np.ones((len(corners), 4), np.float16)
        write_bag(folder / f"{row.slide_id}.h5", Bag(row.slide_id, features, corners, made))


def test_a_catalogue_that_changed(tmp_path):
    catalogue = make_catalogue(tmp_path / "slides", 3, labelled=False)
    catalogue_bags(catalogue, tmp_path / "bags")
    assert verify_bags(tmp_path / "bags", slides=catalogue).findings == []
    write_slide(tmp_path / "slides" / "a.tif", seed=9)
    (tmp_path / "slides" / "b.tif").unlink()
    write_slide(tmp_path / "slides" / "d.tif", seed=4)
    now = index_slides([tmp_path / "slides"], tmp_path / "slides" / "slides.parquet").catalogue
    assert now is not None
    result = verify_bags(tmp_path / "bags", slides=now)
    assert found(result) == [("stale", "a"), ("stale", "b"), ("missing", "d")]
    assert "file has changed since" in result.findings[0].reason
    assert "has no slide 'b' any more" in result.findings[1].reason


def test_a_mask_that_changed(tmp_path):
    catalogue = make_catalogue(tmp_path / "slides", 1, labelled=False)
    catalogue_bags(catalogue, tmp_path / "bags")
    bag = read_bag(tmp_path / "bags" / "a.h5")
    fewer = Bag("a", bag.features[1:], bag.coords[1:], bag.attributes)
    write_bag(tmp_path / "bags" / "a.h5", fewer)
    (finding,) = verify_bags(tmp_path / "bags", slides=catalogue).findings
    assert "the tissue mask gives other tiles now" in finding.reason
    unknown = replace(bag.attributes, stride_px=None)  # of another tool: not to be said
    write_bag(tmp_path / "bags" / "a.h5", replace(fewer, attributes=unknown))
    assert verify_bags(tmp_path / "bags", slides=catalogue).findings == []


def test_a_bucket(bucket, endpoint):
    for slide_id in "ab":
        write_bag(bag_place(bucket, slide_id), make_bag(slide_id))
    assert verify_bags(bucket).n_tiles == 100
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.delete_object(Bucket="bags", Key="study 1/b.zarr/features/c/0/0")
    client.delete_object(Bucket="bags", Key="study 1/a.zarr/zarr.json")
    assert found(verify_bags(bucket)) == [("half-written", "a"), ("damaged", "b")]
    assert [error.path for error in summarise_bags(bucket).refused] == [f"{bucket}/a.zarr"]
    assert summarise_bags(bucket).bags[0].n_bytes > 1000


def test_a_summary(folder):
    (folder / "e.h5").write_bytes(b"no")
    summary = summarise_bags(folder)
    assert (len(summary.bags), summary.n_tiles) == (4, 200)
    assert summary.encoders == ["anlage-tiny eeeeeeeeeeee"]
    assert [error.path for error in summary.refused] == [str(folder / "e.h5")]
    bag = summary.bags[0]
    assert (bag.slide_id, bag.n_tiles, bag.width, bag.mpp) == ("a", 50, 12, 0.5)
    assert bag.n_bytes == (folder / "a.h5").stat().st_size
    shown = json.loads(json.dumps(summary.as_json()))
    assert (shown["n_slides"], shown["n_tiles"]) == (4, 200)
    on_disk = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert shown["n_bytes"] == on_disk - 2
