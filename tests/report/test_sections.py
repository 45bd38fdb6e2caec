"""Each section against what its sources say."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from anlage.bags.store import read_bag
from anlage.evaluation.result import read_result
from anlage.report.contents import Contents, open_contents
from anlage.report.neighbours import neighbours_section
from anlage.report.patch_map import patch_map_section
from anlage.report.provenance_chain import _run_link, trained_on
from anlage.report.score_tables import MODELS, scores_section
from anlage.report.slide_cards import slides_section
from anlage.report.training_section import duration_s, time_in_words, training_section
from anlage.report.verdicts import _split_verdicts
from anlage.report.write import _subtitle
from anlage.slides.levels import read_tile
from anlage.tiles.sampling import sampler_from_catalogue

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def contents(made_chain) -> Contents:
    return open_contents(made_chain)


def pixels_of(uri):
    data = np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)


def test_cards_show_the_tiles_the_run_drew(contents):
    section = slides_section(contents)
    trained = [card for card in section.cards if card.is_trained_on]
    assert [card.slide_id for card in trained] == ["hodgkin__HE"]
    config = contents.run["config"]
    sampler = sampler_from_catalogue(
        contents.catalogue.select(split="train"),
        seed=config["seed"],
        size_px=config["views"]["source_px"],
        batch_size=config["batch_size"],
        magnifications={1.0: 1.0},
        min_tissue=config["tiles"]["min_tissue"],
    )
    wanted = [sampler.draw(g) for g in range(3 * 4)]  # three steps of four tiles
    corners = re.findall(r"M(\d+) (\d+)h48v48h-48z", trained[0].drawn)
    assert [(int(x), int(y)) for x, y in corners] == [(t.x, t.y) for t in wanted]
    assert trained[0].n_drawn == section.n_drawn == 12
    assert all(card.drawn == "" for card in section.cards if not card.is_trained_on)


def test_cards_show_the_grid_of_the_bag(contents):
    for card in slides_section(contents).cards:
        bag = read_bag(contents.bags[card.slide_id])
        assert card.n_grid == len(bag.coords) == card.grid.count("M")
        assert card.grid.startswith(f"M{bag.coords[0][0]} {bag.coords[0][1]}h32v32")


def test_a_run_of_very_many_slides_is_known_by_what_its_recipe_chooses(contents):
    assert contents.run["slides"]
    unlisted = replace(contents, run=contents.run | {"slides": {}})
    assert list(_split_verdicts(unlisted)) == list(_split_verdicts(contents))
    assert _subtitle(unlisted, None) == _subtitle(contents, None)
    for row in contents.catalogue.rows():
        assert (row.slide_id in trained_on(unlisted)) == (row.slide_id in contents.run["slides"])
    assert not any(check.holds is False for check in _run_link(unlisted).checks)
    none = replace(contents, run=None)
    assert contents.catalogue.rows()[0].slide_id not in trained_on(none)


def test_who_was_not_embedded_is_named(contents):
    record = {"refused": [{"uri": "/far/away/x.svs", "reason": "too coarse"}], "empty": ["glass"]}
    refused = slides_section(replace(contents, embedding=record)).refused
    assert ("x.svs", "not embedded: too coarse") in refused
    assert ("glass", "not embedded: no tile holds enough tissue") in refused


def test_facts_say_size_and_resolution(contents):
    card = next(c for c in slides_section(contents).cards if c.slide_id == "erosion__HE")
    row = contents.catalogue.row("erosion__HE")
    facts = dict(card.facts)
    assert facts["Size"] == f"{row.width / 1000:.1f} by {row.height / 1000:.1f} mm"  # at 1 mpp
    assert facts["Resolution"] == "1 µm/px, from the TIFF tags"
    assert facts["Organ"] == "stomach"


def test_neighbours_are_the_most_similar_on_other_slides(contents):
    section = neighbours_section(contents, seed=0)
    bags = [read_bag(path) for path in contents.bags.values()]
    features = np.concatenate([bag.features.astype(float) for bag in bags])
    features -= features.mean(axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    slide = np.concatenate([[bag.slide_id] * len(bag.coords) for bag in bags])
    assert len({query.tile.slide_id for query in section.queries}) == len(section.queries) == 3
    for query in section.queries:
        ours = np.flatnonzero(slide == query.tile.slide_id)
        found = [tile.similarity for tile in query.neighbours]
        best = np.sort(features[ours] @ features[slide != query.tile.slide_id].T, axis=1)[:, ::-1]
        assert min(np.abs(best[:, :6] - found).max(axis=1)) < 1e-4  # of one tile of that slide
        assert all(tile.slide_id != query.tile.slide_id for tile in query.neighbours)
        assert all(tile.picture.startswith("data:image/jpeg") for tile in query.neighbours)


def test_neighbours_depend_on_the_seed_alone(contents):
    assert neighbours_section(contents, seed=1) == neighbours_section(contents, seed=1)
    assert neighbours_section(contents, seed=1) != neighbours_section(contents, seed=2)


def test_patch_maps_put_tokens_where_their_patches_are(contents):
    section = patch_map_section(contents)
    held_out, seen = section.maps
    assert "held out" in held_out.role
    assert seen.slide_id == "hodgkin__HE"
    tokens, slide = pixels_of(seen.token_picture), pixels_of(seen.slide_picture)
    assert tokens.shape[:2] == (seen.height, seen.width)
    ratio = slide.shape[0] / tokens.shape[0]
    assert ratio == slide.shape[1] / tokens.shape[1] >= 1
    # colours differ between patches, and glass is left out
    assert len(np.unique(tokens[tokens[..., 3] > 0][:, :3], axis=0)) > 20
    assert (tokens[..., 3] == 0).any()


def test_a_patch_map_agrees_with_the_slide(contents, monkeypatch):
    """With tokens that are the mean colour of their patch, the map is the slide in odd colours."""
    patch_px = contents.encoder.model.patch_px

    def mean_colour(pixels_B3HW):
        patches = pixels_B3HW.float().unfold(2, patch_px, patch_px).unfold(3, patch_px, patch_px)
        return patches.mean(dim=(4, 5)).flatten(2).transpose(1, 2)

    monkeypatch.setattr(contents.encoder, "patch_tokens", mean_colour)
    shown = patch_map_section(contents).maps[1]
    tokens = pixels_of(shown.token_picture)
    slide = cv2.resize(pixels_of(shown.slide_picture), tokens.shape[1::-1],
                       interpolation=cv2.INTER_AREA)  # fmt: skip
    is_tissue = tokens[..., 3] > 0
    brightness = slide[is_tissue].mean(axis=1)
    first = tokens[is_tissue][:, 2]  # red, the strongest direction
    assert abs(np.corrcoef(brightness, first)[0, 1]) > 0.9


def _folder(contents):
    return contents.catalogue.path.parent


def test_score_rows_say_what_the_result_says(contents):
    result = read_result(_folder(contents) / "scores" / "result.json")
    section = scores_section(contents)
    assert len(section.scores) == 6
    first = result.score("encoder", "linear").balanced_accuracy
    row = section.scores[0]
    assert (row.model, row.probe, row.is_ours) == (MODELS["encoder"], "linear", True)
    assert row.estimate == f"{first.estimate:.3f}"
    assert row.bar.low <= row.bar.at <= row.bar.high
    assert row.is_unreliable
    assert row.n_groups == 6
    assert [row.estimate for row in section.differences] == [
        f"{c.difference.estimate:+.3f}" for c in result.comparisons
    ]
    assert section.difference_axis.line == next(
        tick.at for tick in section.difference_axis.ticks if tick.text == "0"
    )


def test_cases_have_their_class_and_tiles(contents):
    section = scores_section(contents)
    assert section.n_cases == len(section.cases) == 6
    assert {case.label for case in section.cases} == {"colon", "liver"}
    assert all(case.n_tiles == 4 for case in section.cases)
    for case in section.cases:
        ours, *floors = case.accuracies
        assert case.differences == pytest.approx([ours - floor for floor in floors])


def test_training_tells_terms_time_and_size(contents):
    section = training_section(contents)
    titles = [chart.title for chart in section.charts]
    assert titles[:2] == ["Loss", "Terms of the loss"]
    assert [line.name for line in section.charts[1].lines] == ["DINO", "iBOT", "KDE"]
    assert section.summary.startswith("3 steps, 12 tiles, in ")
    expected = sum(4 / row["tiles_per_s"] for row in contents.metrics)
    assert duration_s(contents) == pytest.approx(expected)
    n = sum(p.numel() for p in contents.encoder.model.parameters())
    assert dict(section.facts)["Parameters"] == f"{n:,}"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (41.2, "41 s"), (425, "7 min 5 s"), (12000, "3 h 20 min")],
)
def test_times(seconds, words):
    assert time_in_words(seconds) == words


def test_tile_pictures_are_read_at_the_encoders_mpp(contents):
    query = neighbours_section(contents, seed=0).queries[0]
    shown = pixels_of(query.tile.picture)[..., ::-1].astype(int)
    bag = read_bag(contents.bags[query.tile.slide_id])
    with contents.catalogue.open_slide(query.tile.slide_id) as slide:
        tiles = [read_tile(slide, x, y, size_px=32, mpp=1.0).astype(int) for x, y in bag.coords]
    assert min(np.abs(tile - shown).mean() for tile in tiles) < 6  # but for JPEG
