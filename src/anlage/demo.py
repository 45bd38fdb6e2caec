"""The whole chain on bundled real slides: index, pretrain, embed, tiles and slides, score, report.

Every stage reads what the one before it wrote, and each is skipped or resumed where it stands, so
the same call goes on after Ctrl-C or ``kill -9``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anlage import __version__, samples
from anlage.errors import AnlageError, BagError
from anlage.files import write_json_whole
from anlage.folder_lock import LOCK, lock_folder
from anlage.recipe import load_recipe

if TYPE_CHECKING:
    from anlage.slides.catalogue import Catalogue
    from anlage.slides.indexing.found_slide import Refused
    from anlage.training.run_saves import PretrainResult
    from anlage.training.slide_pretraining.config import SlidePretrainConfig
    from anlage.training.tile_config import TilePretrainConfig

LOGGER = logging.getLogger(__name__)
RECIPE, SLIDE_RECIPE = "tiny", "tiny-slide"
SLIDE_EPOCHS, SLIDE_WARMUP = 100, 0.05


@dataclass(frozen=True)
class DemoResult:
    """What a demo made.

    Attributes:
        report: The HTML report; None if a signal stopped the pretraining.
        steps: Finished pretraining steps of the tile encoder.
        refused: Slides that could not be used, with their reasons.
        summary: The scores in a few lines.
    """

    report: Path | None
    steps: int
    refused: tuple[Refused, ...]
    summary: tuple[str, ...] = ()


def run_demo(
    out: Path | str,
    *,
    seed: int = 0,
    steps: int | None = None,
    slides: Sequence[Path | str] | None = None,
) -> DemoResult:
    """Run the chain from slides to a report in one folder; go on where an earlier call stopped.

    Args:
        out: Folder for everything: ``slides.parquet``, ``run/``, ``bags/``, ``slide_run/``,
            ``slide_embeddings.parquet``, ``scores/``, ``report.html``.
        seed: Seed of everything random; the same seed gives the same numbers.
        steps: Pretraining steps of the tile encoder, and the most epochs of the slide encoder;
            those of the recipes if None.
        slides: Slides to use instead of the bundled ones. Without a split of their own, all of
            them are trained on.

    Returns:
        The report's path and the scores, or how far a stopped run came.

    Raises:
        AnlageError: If ``out`` holds a demo of other settings, another process runs its demo, or
            no slide is usable.
    """
    out = Path(out)
    claim_folder(out, seed=seed, steps=steps, slides=slides)
    held = AnlageError(out, "another demo is running in this folder. Wait, or name another --out.")
    with lock_folder(out, held=held):
        claim_folder(out, seed=seed, steps=steps, slides=slides)  # another's may have come between
        return _run_chain(out, seed=seed, steps=steps, slides=slides)


def _run_chain(
    out: Path, *, seed: int, steps: int | None, slides: Sequence[Path | str] | None
) -> DemoResult:
    """Every stage in its order, in a folder that is ours."""
    from anlage.embedding.embed_tiles import embed_tiles
    from anlage.evaluation.evaluate import evaluate_encoder
    from anlage.report.slide_parts import open_slide_parts
    from anlage.report.slide_verdicts import pretraining_verdict
    from anlage.report.write import write_report
    from anlage.training.tile_pretrain import pretrain_tiles

    catalogue, refused = _catalogue(out, slides)
    config = _config(catalogue, seed=seed, steps=steps)
    run = pretrain_tiles(config, catalogue, out / "run", resume=True)
    if not run.is_finished:
        return DemoResult(None, run.steps, refused)
    bags = embed_tiles(run.encoder, catalogue, out / "bags")
    slide_run = _over_slides(out, catalogue, seed=seed, steps=steps)
    if slide_run is not None and not slide_run.is_finished:
        return DemoResult(None, run.steps, refused)
    scores = evaluate_encoder(run.encoder, samples.organ_tiles(), out / "scores", seed=seed)
    page = write_report(out)
    everyone = tuple({r.uri: r for r in (*refused, *bags.refused)}.values())
    told = pretraining_verdict(open_slide_parts(out, []))
    summary = (*scores.summary(), *([told.text] if told else []))
    return DemoResult(page, run.steps, everyone, summary)


def _over_slides(
    out: Path, catalogue: Catalogue, *, seed: int, steps: int | None
) -> PretrainResult | None:
    """Pretrain a slide encoder on the bags and embed each slide; None if no bag can be used."""
    from anlage.bags.slide_labels import SlideLabels
    from anlage.embedding.encode_slides import encode_slides
    from anlage.encoders.slide_encoder import load_slide_encoder
    from anlage.training.slide_pretraining.pretrain import pretrain_slides

    slides, bags = out / "slides.parquet", out / "bags"
    config = _slide_config(catalogue, seed=seed, steps=steps)
    try:
        run = pretrain_slides(
            config, bags, out / "slide_run", resume=True, table=SlideLabels.open(slides)
        )
    except BagError as error:  # of a single slide that gave one tile, say
        LOGGER.warning("no slide encoder: %s", error)
        return None
    if run.is_finished:
        encoder = load_slide_encoder(run.encoder, device="auto")
        encode_slides(encoder, bags, out / "slide_embeddings.parquet", patients=slides)
    return run


def claim_folder(
    out: Path, *, seed: int, steps: int | None, slides: Sequence[Path | str] | None
) -> None:
    """Take a folder for a demo of these settings; nothing in it is touched if it is refused.

    Raises:
        AnlageError: If ``out`` holds a demo of other settings, or anything else.
    """
    settings = _settings(seed, steps, slides)
    path = out / "demo.json"
    if not path.exists():
        begun = (".demo.json.", LOCK)  # is there if it was killed before demo.json was
        if out.exists() and not all(f.name.startswith(begun) for f in out.iterdir()):
            raise AnlageError(out, "is not empty and holds no demo. Name another --out.")
        write_json_whole(path, settings)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AnlageError(path, f"is not JSON: {error}. Name another --out.") from error
    changed = [k for k in settings if before.get(k) != settings[k]]
    if changed:
        told = "; ".join(f"{k} was {before.get(k)!r}, is now {settings[k]!r}" for k in changed)
        raise AnlageError(out, f"holds a demo of other settings ({told}). Name another --out.")


def _settings(seed: int, steps: int | None, slides: Sequence[Path | str] | None) -> dict[str, Any]:
    named = None if slides is None else [str(Path(s).absolute()) for s in slides]
    return {"version": __version__, "seed": seed, "steps": steps, "slides": named}


def _catalogue(
    out: Path, slides: Sequence[Path | str] | None
) -> tuple[Catalogue, tuple[Refused, ...]]:
    """Index the slides, or open the catalogue an earlier call made of them."""
    from anlage.slides.indexing.index import index_slides, kept_catalogue

    path = out / "slides.parquet"
    kept = kept_catalogue(path)
    if kept is not None:
        return kept
    bundled = slides is None
    result = index_slides(
        [samples.slides_folder()] if slides is None else slides,
        path,
        labels=samples.slides_labels() if bundled else None,
    )
    if result.catalogue is None:
        raise AnlageError(out, "none of the slides can be used; slides.refused.csv says why")
    return result.catalogue, tuple(result.refused)


def _config(catalogue: Catalogue, *, seed: int, steps: int | None) -> TilePretrainConfig:
    """Resolve the demo's recipe; slides without a ``train`` split are all trained on."""
    from anlage.training.tile_config import TilePretrainConfig

    overrides = [f"seed={seed}"]
    if steps is not None:
        overrides.append(f"steps={steps}")
    if not len(catalogue.select(split="train")):
        overrides.append("tiles.split=null")
    return load_recipe(RECIPE, TilePretrainConfig, overrides=overrides)


def _slide_config(catalogue: Catalogue, *, seed: int, steps: int | None) -> SlidePretrainConfig:
    """Resolve the recipe over slides: trained on ``train``, measured on ``test``, if they are."""
    from anlage.training.slide_pretraining.config import SlidePretrainConfig

    epochs = SLIDE_EPOCHS if steps is None else min(steps, SLIDE_EPOCHS)
    overrides = [f"seed={seed}", f"epochs={epochs}", "watch.every=10"]
    overrides.append(f"optimizer.warmup_epochs={SLIDE_WARMUP * epochs}")
    if len(catalogue.select(split="train")):
        overrides.append("bags.split=train")
        if len(catalogue.select(split="test")):
            overrides += ["held_out.split=test", "held_out.share=0"]
    return load_recipe(SLIDE_RECIPE, SlidePretrainConfig, overrides=overrides)
