"""The command that fine-tunes a slide model on labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anlage.cli.application import MOST_THREADS, Exit, app, log_to

if TYPE_CHECKING:
    from anlage.bags.slide_labels import SlideLabels
    from anlage.training.finetuning.config import FinetuneConfig
    from anlage.training.finetuning.finetune import FinetuneEnd

Bags = Annotated[str, typer.Option(help="Folder or URL of bags of one tile encoder.")]
Labels = Annotated[Path, typer.Option(help="CSV, TSV, Parquet or catalogue: slide_id, labels.")]
Run = Annotated[Path | None, typer.Option(help="Folder of the run.")]
Recipe = Annotated[str, typer.Option(help="Recipe's name, or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change one value: dotted.key=value.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an existing run.")]
SlideEncoder = Annotated[
    str | None, typer.Option(help="Slide encoder to begin with: a folder or a preset.")
]
Splits = Annotated[
    Path | None, typer.Option(help="CSV of slides or patients and sides (fold_0 ..., split).")
]
Slides = Annotated[
    Path | None, typer.Option(help="Table of slide_id and patient_id, if labels lack either.")
]
Tcga = Annotated[bool, typer.Option("--tcga", help="Take patients and sites from TCGA barcodes.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what the run would do; do nothing.")]
Threads = Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="Threads that read.")]


@app.command("finetune")
def finetune_command(
    bags: Bags,
    labels: Labels,
    run: Run = None,
    recipe: Recipe = "abmil",
    overrides: Overrides = None,
    resume: Resume = False,
    slide_encoder: SlideEncoder = None,
    splits: Splits = None,
    slides: Slides = None,
    tcga: Tcga = False,
    dry_run: DryRun = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Threads = 2,
) -> None:
    """Fine-tune a slide model on labels, fold by fold of whole patients, beside its floors."""
    from anlage.recipe import load_recipe
    from anlage.training.finetuning.config import FinetuneConfig

    changes = [*(overrides or ()), *begin_with(slide_encoder)]
    config = load_recipe(recipe, FinetuneConfig, overrides=changes)
    table = _labels(labels, bags, slides, tcga=tcga)
    if dry_run:
        _say_plan(config, bags, table, splits, device)
        return
    if run is None:
        msg = "needs --run (or --dry-run)."
        raise typer.BadParameter(msg)
    from anlage.training.finetuning.finetune import finetune
    from anlage.training.run_record import refuse_existing_run

    if not resume:
        refuse_existing_run(run)
    log_to(run / "anlage.log")
    end = finetune(
        config, bags, table, run, resume=resume, splits=splits, device=device, threads=threads
    )
    _say_end(end)


def _say_end(end: FinetuneEnd) -> None:
    """Say how the run ended, and end with the code of it."""
    for slide in end.refused:
        print(f"refused: {slide.slide_id}: {slide.reason}")
    if end.result is None:
        print(f"stopped after {end.folds_done} folds; the same command with --resume goes on")
        raise typer.Exit(Exit.INTERRUPTED)
    for line in end.result.summary():
        print(line)
    print(f"result: {end.run_dir / 'result.json'}")
    if end.refused:
        raise typer.Exit(Exit.SOME_REFUSED)


def begin_with(slide_encoder: str | None) -> list[str]:
    """Overrides that put a slide encoder in place of the recipe's own, and keep its settings."""
    if slide_encoder is None:
        return []
    named = json.dumps(slide_encoder)
    return [f"model.slide_encoder.init={named}", "model.slide_encoder.size=null"]


def _labels(path: Path, bags: str, slides: Path | None, *, tcga: bool) -> SlideLabels:
    from anlage.bags.slide_labels import SlideLabels
    from anlage.bags.store import list_bags

    names = list(list_bags(bags)) if tcga else []
    return SlideLabels.open(path, slides=slides, slide_ids=names, ids="tcga" if tcga else None)


def _say_plan(
    config: FinetuneConfig, bags: str, table: SlideLabels, splits: Path | None, device: str
) -> None:
    from anlage.training.finetuning.plan import plan_lines
    from anlage.training.finetuning.preparation import prepare

    prepared = prepare(config, bags, table, splits=splits, device=device, reads_bags=False)
    for slide in prepared.refused:
        print(f"refused: {slide.slide_id}: {slide.reason}")
    for line in plan_lines(config, prepared):
        print(line)
