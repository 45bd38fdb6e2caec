"""The encoder that comes with anlage: whole, what its card says, usable by name everywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anlage import samples
from anlage.embedding.embed_tiles import embed_tiles
from anlage.encoders.bundled import BUNDLED
from anlage.encoders.folder import load_encoder
from anlage.encoders.leakage import seen_in_pretraining
from anlage.evaluation.evaluate import evaluate_encoder
from anlage.evaluation.labelled_tiles import LabelledTiles
from anlage.evaluation.notes import leakage_note
from anlage.evaluation.tile_pixels import fit_tile, read_tile_file
from anlage.slides.indexing.index import index_slides
from anlage.training.distill import guide_of
from micro_recipe import micro_config

FOLDER = BUNDLED["anlage-tiny"]
CONFIG = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
PROVENANCE = CONFIG["provenance"]
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
TEST_CASES = {"erosion", "melanosiscoli", "celiac-disease", "cholesterolpolyp", "liver-hemangioma"}
# Of this encoder, float32, torch 2.13 on a CPU, when it was stored.
FIRST_OF_TILE_0 = (-0.509463, -0.808812, -2.106818, -0.815806)
LAST_OF_TILE_95 = (0.095915, 0.484104, 0.535475, 1.043681)
MEAN_AND_STD = (0.000164, 0.997809)
SPREAD_OF_THREE = (0.640158, 1.146043, 0.655902)
HOME = re.compile(r"(^|[\"' ])(/|~|[A-Za-z]:\\)[\w.-]")  # the beginning of an absolute path


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("anlage-tiny")


def organ_tiles(every: int = 1) -> tuple[LabelledTiles, torch.Tensor]:
    tiles = LabelledTiles.open(samples.organ_tiles())
    read = [read_tile_file(tiles.folder / file) for file in tiles.file_N[::every]]
    fitted = [fit_tile(pixels, tile_px=112, shrink=1.0)[0] for pixels in read]
    return tiles, torch.from_numpy(np.stack(fitted).transpose(0, 3, 1, 2).copy())


def strings_of(value: object) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(s for v in value.values() for s in strings_of(v))]
    if isinstance(value, list):
        return [s for v in value for s in strings_of(v)]
    return [value] if isinstance(value, str) else []


def test_it_is_a_small_vit_with_registers_stored_in_half_precision(encoder):
    assert encoder.width == 192
    assert (encoder.config.tile_px, encoder.config.mpp) == (112, 1.0)
    assert encoder.config.architecture["n_registers"] == 4
    stored = load_file(FOLDER / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 11_500_000


def test_its_record_names_what_it_saw_and_no_place_on_a_machine():
    assert not TEST_CASES & set(PROVENANCE["patients"])
    assert len(PROVENANCE["slides"]) == 13
    assert {name.partition("__")[0] for name in PROVENANCE["slides"]} <= set(PROVENANCE["patients"])
    assert set(PROVENANCE["watched"]["cases"]) <= set(PROVENANCE["patients"])
    assert re.fullmatch("[0-9a-f]{40}", PROVENANCE["commit"])
    assert not [text for text in strings_of(CONFIG) if HOME.search(text)]
    assert HOME.search("from /home/x")


def test_the_card_tells_of_this_encoder(encoder):
    n_parameters = sum(p.numel() for p in encoder.model.parameters())
    for told in (
        f"{n_parameters:,} parameters",
        CONFIG["weights_sha256"],
        encoder.fingerprint,
        PROVENANCE["commit"],
        f"{PROVENANCE['tiles_seen']:,} tiles",
        "CC BY 4.0",
        *PROVENANCE["patients"],
        *PROVENANCE["overrides"],
    ):
        assert told in CARD, told


@pytest.mark.parametrize("only_choice", [False, True])
def test_the_card_says_whose_labels_chose_the_encoder(only_choice):
    """In the words of today's ``anlage evaluate``."""
    chosen_by = PROVENANCE["watched"]["cases"]
    cases = chosen_by if only_choice else [*chosen_by, *TEST_CASES]
    verdict = seen_in_pretraining(PROVENANCE, cases, is_grouped=True)
    assert verdict.chosen_by == sorted(chosen_by)
    assert f"\n- {leakage_note(verdict)}\n" in CARD


def test_links_of_the_card_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", CARD):
        assert (FOLDER / target).exists(), target


def test_embeddings_are_the_golden_ones(encoder):
    """Origin: this encoder, float32, torch 2.13 on a CPU, when it was stored."""
    _, pixels_N3SS = organ_tiles(every=4)
    embedding_ND = encoder.embed(pixels_N3SS).numpy()
    assert embedding_ND.shape == (96, 192)
    assert np.isfinite(embedding_ND).all()
    for found, golden in (
        (embedding_ND[0, :4], FIRST_OF_TILE_0),
        (embedding_ND[95, -4:], LAST_OF_TILE_95),
        ((embedding_ND.mean(), embedding_ND.std()), MEAN_AND_STD),
        (embedding_ND.std(axis=0)[[0, 96, 191]], SPREAD_OF_THREE),
    ):
        np.testing.assert_allclose(found, golden, rtol=2e-3, atol=2e-3)


def test_slides_are_embedded_and_tiles_judged_by_name(tmp_path, monkeypatch):
    """As the command line does it, which gives the name as a path."""
    monkeypatch.chdir(tmp_path)
    slide = samples.slides_folder() / "erosion__HE.tiff"
    index_slides([slide], tmp_path / "slides.parquet")
    bags = embed_tiles(Path("anlage-tiny"), tmp_path / "slides.parquet", tmp_path / "anlage-tiny")
    assert list(bags.done) == ["erosion__HE"]
    few = few_tiles(tmp_path / "few.csv")
    result = evaluate_encoder(Path("anlage-tiny"), few, tmp_path / "scores", k=9, n_resamples=20)
    assert result.leakage.is_known
    assert result.leakage.seen == [
        "crohn-colonoscopic-biopsy",
        "glycogenstorage",
    ]
    assert result.leakage.chosen_by == result.leakage.seen
    assert "erosion" not in result.leakage.seen


def few_tiles(path: Path) -> Path:
    tiles = LabelledTiles.open(samples.organ_tiles())
    cases = "crohn-colonoscopic-biopsy", "melanosiscoli", "glycogenstorage", "liver-hemangioma"
    lines = ["file,label,case,mpp"]
    for case in cases:
        for row in np.flatnonzero(tiles.group_N == case)[:4]:
            file = tiles.folder / tiles.file_N[row]
            lines.append(f"{file},{tiles.label_N[row]},{case},1")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_it_teaches_by_name(encoder):
    guide = guide_of(micro_config("model.patch_px=16", "distill.encoder=anlage-tiny"))
    assert guide.provenance == {
        **{"source": "anlage-tiny", "kind": "encoder"},
        "sha256": encoder.fingerprint,
    }
    assert guide.encoder.width == 192
