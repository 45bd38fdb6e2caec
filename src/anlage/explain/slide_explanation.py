"""Why a slide model said what it said: scores of a slide's tiles, and what they were made from.

Shape suffixes: L tiles of the slide.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from anlage.bags.bag_set import BagSet, LoadedBag
from anlage.bags.grid_cells import grid_cells
from anlage.bags.store import list_bags
from anlage.encoders.bundled import CONFIG
from anlage.encoders.open_slide_encoder import open_slide_encoder
from anlage.encoders.slide_encoder import OpenSlideEncoder
from anlage.encoders.slide_model_folder import FORMAT as MODEL_FORMAT
from anlage.encoders.slide_model_folder import OpenSlideModel, load_slide_model
from anlage.errors import BagError, EncoderError, SlideError
from anlage.explain.slide_attention import (
    NotedBlock,
    pooling_scores,
    slide_token_scores,
)
from anlage.explain.slide_folder import FORMAT
from anlage.explain.slide_scores import ScoredTiles, TileScore
from anlage.folder_replacement import whole_folder
from anlage.geometry import Size
from anlage.models.slide_encoder import SlideEncoder
from anlage.provenance import git_commit, versions
from anlage.slides.catalogue import Catalogue
from anlage.slides.colour import Colour
from anlage.slides.reader import SlideReader

SAME_MPP = 1e-9  # relative; a fingerprint is of the file, whatever mpp the catalogue gives it
Opened = OpenSlideModel | OpenSlideEncoder


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideExplanation:
    """Scored tiles of one slide.

    Attributes:
        tiles: The tiles and their scores.
        model: What the model was opened by.
        encoder: Name of the tile encoder.
        prediction: What a fine-tuned model says of the slide: name and value.
        notes: What to know of these scores, in sentences.
        facts: What all was made from, as JSON can hold it.
    """

    tiles: ScoredTiles
    model: str
    encoder: str
    prediction: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]
    facts: dict[str, Any] = field(repr=False)


def open_explained(named: str, *, device: str = "auto") -> Opened:
    """Open a slide model's folder, or a slide encoder by folder or name, in float32.

    Raises:
        EncoderError: If it is neither, or damaged.
        DeviceError: If there is no such device here.
    """
    described = whole_folder(named) / CONFIG if named else Path()
    if described.is_file() and f'"{MODEL_FORMAT}"' in described.read_text(encoding="utf-8"):
        return load_slide_model(named, device=device, precision="fp32")
    return open_slide_encoder(named, device=device, precision="fp32")


class ChosenBag(NamedTuple):
    """The bag that is explained.

    Attributes:
        bag: Its tiles.
        place: Where it lies.
        fingerprint: Its hash, as of a set of one bag.
    """

    bag: LoadedBag
    place: str
    fingerprint: str


def explain_slide(
    opened: Opened, chosen: ChosenBag, *, layer: int | None = None
) -> SlideExplanation:
    """Score the tiles of one slide, in float32.

    Of a model that pools by attention, its weights, one score a branch; of a slide encoder, alone
    or in a model, the slide token's attention in one block, their mean and each head.

    Args:
        opened: A slide model, or a slide encoder.
        chosen: The slide's bag.
        layer: Block of the slide encoder, from 1, whose attention is taken; None for the last
            whose output is used.

    Returns:
        The scores, and what they were made from.

    Raises:
        BagError: If the bag is not one that the model was made for.
        EncoderError: If the model has no attention, or gives all tiles the same.
        ValueError: If there is no such layer, or the model stops before it.
    """
    noted = _noted_block(opened, layer)
    bag = chosen.bag
    opened.refuse_bag(
        bag.attributes,
        width=bag.features_LD.shape[1],
        n_tiles=len(bag.corner_L2),
        place=chosen.place,
    )
    scores, prediction = _scored(opened, bag, noted)
    _refuse_without_difference(opened.name, bag.slide_id, scores)
    return SlideExplanation(
        tiles=scored_tiles(bag, scores),
        model=opened.name,
        encoder=bag.attributes.encoder_name or bag.attributes.encoder_fingerprint[:12],
        prediction=prediction,
        notes=tuple(_notes(opened, noted, scores)),
        facts={
            "format": FORMAT,
            "slide_id": bag.slide_id,
            "slide_fingerprint": bag.attributes.slide_fingerprint,
            "bags_fingerprint": chosen.fingerprint,
            "model_format": opened.config.format,
            "model_fingerprint": opened.fingerprint,
            "layer": None if noted is None else noted.layer,
            "prediction": dict(prediction),
            "versions": versions(),
            "commit": git_commit(),
        },
    )


def slide_encoder_of(opened: Opened) -> SlideEncoder | None:
    """The slide encoder that was opened, or that is in the model that was; None if none is."""
    if isinstance(opened, OpenSlideEncoder):
        return opened.network
    return getattr(opened.network, "slide_encoder", None)


def read_one_bag(bags: str | Path, slide_id: str) -> ChosenBag:
    """Read the bag of one slide, from a folder or URL of bags.

    Raises:
        BagError: If the slide has no bag, or one that is empty, damaged or holds NaN.
    """
    places = list_bags(bags)
    if slide_id not in places:
        msg = f"has no bag of slide {slide_id!r} among its {len(places)}. Embed the slide first."
        raise BagError(bags, msg)
    only = BagSet.open(bags, slide_ids=[slide_id])
    return ChosenBag(only.read(slide_id), places[slide_id], only.fingerprint)


def open_slide_of(catalogue: Catalogue, bag: LoadedBag) -> SlideReader:
    """Open the slide that a bag was made from, at the resolution that it had then.

    Raises:
        CatalogueError: If it is not in the catalogue.
        SlideError: If it cannot be opened, is not the one that the bag was made from, or has
            another mpp by now.
    """
    found, made_from = catalogue.row(bag.slide_id), bag.attributes.slide_fingerprint
    if found.fingerprint != made_from:
        msg = (
            f"is not the slide that the bag was made from: its fingerprint is "
            f"{found.fingerprint[:16]}, the bag's {made_from[:16]}. Embed it again."
        )
        raise SlideError(catalogue.location(bag.slide_id), msg)
    if abs(found.mpp - bag.slide_mpp) > SAME_MPP * found.mpp:
        msg = f"had mpp {bag.slide_mpp} when it was embedded, and has {found.mpp} now. Embed it"
        raise SlideError(catalogue.location(bag.slide_id), f"{msg} again.")
    return catalogue.open_slide(bag.slide_id)


def scored_tiles(bag: LoadedBag, scores: list[TileScore]) -> ScoredTiles:
    """The tiles of a bag with scores of them."""
    made = bag.attributes
    colour: Colour = "srgb" if made.colour == "srgb" else "stored"
    return ScoredTiles(
        slide_id=bag.slide_id,
        corner_L2=bag.corner_L2,
        edge_level0_px=made.tile_level0_px,
        slide_size=Size(made.slide_width_px, made.slide_height_px),
        slide_mpp=made.slide_mpp,
        tile_px=made.tile_px,
        mpp=made.mpp,
        colour=colour,
        scores=tuple(scores),
    )


def _scored(
    opened: Opened, bag: LoadedBag, noted: NotedBlock | None
) -> tuple[list[TileScore], tuple[tuple[str, float], ...]]:
    """All scores, those of heads last; and what a model predicts."""
    cells = grid_cells(bag.corner_L2, slide_mpp=bag.slide_mpp, grid_um=opened.config.grid_um)
    given = (bag.features_LD, torch.from_numpy(cells), [len(cells)])
    scores: list[TileScore] = []
    prediction: tuple[tuple[str, float], ...] = ()
    with noted or nullcontext():
        if isinstance(opened, OpenSlideModel):
            task, said = opened.config.task, opened.predict(*given)
            prediction = tuple(zip(task.score_names, said.score_BP[0].tolist(), strict=True))
            if said.attention_TA is not None:
                scores += pooling_scores(said.attention_TA, classes=task.classes)
        else:
            opened.embed(*given)
    if noted is not None:
        scores += slide_token_scores(noted.share_HR, layer=noted.layer)
    return scores, prediction


def _noted_block(opened: Opened, layer: int | None) -> NotedBlock | None:
    """The block that is to tell where the slide token looks; None where none is run."""
    network = slide_encoder_of(opened)
    last = 0 if network is None else _last_used(opened, network)
    if layer is None and last == 0:
        return None
    if network is None or last == 0:
        msg = (
            f"explain-slide: needs a slide encoder to have a layer {layer}; {opened.name} has "
            "none. Leave --layer out."
        )
        raise ValueError(msg)
    if layer is not None and layer > last:
        rule = f"explain-slide: needs a layer from 1 to {last}; got {layer}."
        msg = f"{rule} {opened.name} runs no later block."
        raise ValueError(msg)
    return NotedBlock(network, last if layer is None else layer)


def _last_used(opened: Opened, network: SlideEncoder) -> int:
    """The last block whose output reaches what the model says; later ones are not run."""
    used = opened.network.layers if isinstance(opened, OpenSlideModel) else None
    return max(used) if used else network.depth


def _refuse_without_difference(name: str, slide_id: str, scores: list[TileScore]) -> None:
    main = [score for score in scores if not score.is_of_head]
    if not main:
        msg = "gives no weights of tiles: it has no pooling by attention, and runs no block of a"
        raise EncoderError(name, f"{msg} slide encoder. Fine-tune one that pools by ABMIL or CLAM.")
    if all(score.is_flat for score in main):
        n_tiles = len(main[0].weight_L)
        msg = f"gives the {n_tiles} tiles of slide {slide_id!r} the same attention, but for"
        raise EncoderError(name, f"{msg} rounding: there is nothing to show. Is it trained?")


def _notes(opened: Opened, noted: NotedBlock | None, scores: list[TileScore]) -> Iterator[str]:
    if noted is None:
        return
    heads = [score for score in scores if score.is_of_head]
    n_tiles = len(heads[0].weight_L)
    n_seen = sorted(score.n_weighted for score in heads)
    yield (
        "The slide token is the first of its sequence: in each branch of dilated attention it "
        "sees its first segment alone, and in a branch of dilation r only the heads that begin "
        f"at its place. Of {n_tiles:,} tiles the heads see {n_seen[0]:,} to {n_seen[-1]:,}; the "
        "others have weight 0 by the architecture, whatever is on them."
    )
    if isinstance(opened, OpenSlideModel) and opened.network.route != "cls":
        yield (
            "This model's head is not fed by the slide token but by its tiles in context; the "
            "slide token's attention shows the slide encoder, not what decided the prediction."
        )
    flat = [score.title for score in scores if score.is_flat and not score.is_of_head]
    if flat:
        yield f"All tiles have the same weight, but for rounding, in: {', '.join(flat)}."
