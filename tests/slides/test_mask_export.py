from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from small_catalogue import make_catalogue, write_labels, write_slide

from anlage.errors import CatalogueError
from anlage.geometry import Size
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.index import index_slides
from anlage.slides.mask_export import export_masks
from anlage.slides.tissue.user_masks import user_mask


@pytest.mark.parametrize("mask_format", ["geojson", "png"])
def test_exported_masks_come_back_as_users_masks(
    tmp_path: Path, mask_format: Literal["geojson", "png"]
) -> None:
    catalogue = make_catalogue(tmp_path / "slides")
    done = export_masks(catalogue, tmp_path / "masks", mask_format=mask_format)
    assert (done.n_written, done.n_kept) == (3, 0)
    names = sorted(file.name for file in (tmp_path / "masks").iterdir())
    assert names == [f"{slide_id}.{mask_format}" for slide_id in "abc"]
    for row in catalogue.rows():
        back = user_mask(
            tmp_path / "masks",
            row.slide_id,
            slide_size=Size(row.width, row.height),
            slide_mpp=row.mpp,
            mask_mpp=row.mask_mpp,
        )
        tissue = catalogue.mask(row.slide_id)
        assert back is not None
        assert back.mpp == tissue.mpp
        assert np.array_equal(back.mask, tissue.mask)


def test_what_is_there_is_left_alone_unless_forced(tmp_path: Path) -> None:
    catalogue = make_catalogue(tmp_path / "slides")
    corrected = tmp_path / "masks" / "b.geojson"
    corrected.parent.mkdir()
    corrected.write_text("corrected by hand")
    done = export_masks(catalogue, tmp_path / "masks")
    assert (done.n_written, done.n_kept) == (2, 1)
    assert corrected.read_text() == "corrected by hand"
    done = export_masks(catalogue, tmp_path / "masks", force=True)
    assert (done.n_written, done.n_kept) == (3, 0)
    assert corrected.read_text().startswith('{"type":"FeatureCollection"')


def test_a_catalogue_without_its_masks_is_refused(tmp_path: Path) -> None:
    make_catalogue(tmp_path / "slides")
    (tmp_path / "slides" / "slides.parquet").rename(tmp_path / "alone.parquet")
    with pytest.raises(CatalogueError, match="masks"):
        export_masks(Catalogue.open(tmp_path / "alone.parquet"), tmp_path / "masks")
    assert not list(tmp_path.glob("masks/*"))


@pytest.mark.parametrize("slide_id", ["../b", "/tmp/b", "x/../../b"])
def test_a_slide_id_that_leads_out_of_the_folder_is_refused(tmp_path: Path, slide_id: str) -> None:
    write_slide(tmp_path / "slides" / "a.tif")
    labels = write_labels(tmp_path / "labels.csv", [{"path": "a.tif", "slide_id": slide_id}])
    result = index_slides([tmp_path / "slides"], tmp_path / "slides.parquet", labels=labels)
    assert result.catalogue is not None
    with pytest.raises(CatalogueError, match="needs names of files; got slide_id"):
        export_masks(result.catalogue, tmp_path / "masks")
    assert not list(tmp_path.glob("*.geojson"))
