"""How the pretraining went: curves, the recipe in short, the network's size, the time it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from anlage.report.contents import Contents
from anlage.report.line_chart import Chart, Value, line_chart
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_source import MagnificationRange

FROM_ZERO = frozenset(("RankMe", "Teacher entropy", "Learning rate", "Speed", "Waiting for data"))
RANKME = "Directions that a batch of teacher embeddings fills; near 1 is collapse."
ENTROPY = "Of the teacher's targets, in nats: at 0 all are certain, at the top they say nothing."
MOMENTUM = "Share of the teacher kept at each step."
WAITING = "Share of each step in which the network waited for tiles."
TERMS = {"dino": "DINO", "ibot": "iBOT", "kde": "KDE", "koleo": "KoLeo"}


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """The pretraining run.

    Attributes:
        charts: Its curves.
        facts: The recipe's key values, name and value.
        summary: What was trained, how long, in a sentence.
        read_errors: Tiles that could not be read and were replaced.
    """

    charts: tuple[Chart, ...]
    facts: tuple[tuple[str, str], ...]
    summary: str
    read_errors: int


def training_section(contents: Contents) -> TrainingSection | None:
    """Curves and recipe of the run; None without one."""
    if contents.run is None:
        return None
    try:
        config = TilePretrainConfig.model_validate(contents.run["config"])
    except ValueError:  # the recipe of another version: its curves can be shown all the same
        config = None
    charts = _charts(contents.metrics, config) if contents.metrics else []
    return TrainingSection(
        charts=tuple(chart for chart in charts if chart is not None),
        facts=tuple(_facts(config, contents).items()) if config else (),
        summary=_summary(contents, config),
        read_errors=round(sum(row.get("read_errors") or 0 for row in contents.metrics)),
    )


def duration_s(contents: Contents) -> float | None:
    """Seconds of all steps together, from the rate of each; None if it is not known."""
    batch_size = contents.run["config"].get("batch_size") if contents.run else None
    rates = [row.get("tiles_per_s") for row in contents.metrics]
    if not batch_size or not rates or not all(rates):
        return None
    return float(sum(batch_size / rate for rate in rates if rate))


def time_in_words(seconds: float) -> str:
    """``41 s``, ``7 min 5 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _charts(
    metrics: Sequence[Mapping[str, Any]], config: TilePretrainConfig | None
) -> list[Chart | None]:
    steps = [int(row["step"]) for row in metrics]

    def of(key: str) -> list[Value]:
        return [row.get(key) for row in metrics]

    terms = {text: of(f"loss_{key}") for key, text in TERMS.items()}
    norms = {name: of(f"gradient_norm_{name}") for name in ("encoder", "head")}
    shares = [None if v is None else 100 * v for v in of("data_wait_share")]
    top = {"reference": (log(config.head.n_prototypes), "uniform")} if config else {}
    clip_norm = config.optimizer.clip_norm if config else None
    clip = {"reference": (clip_norm, "clipped above")} if clip_norm else {}
    rows: list[tuple[str, dict[str, list[Value]], dict[str, Any]]] = [
        ("Loss", {"total": of("loss")}, {"note": "Weighted sum of its terms."}),
        ("Terms of the loss", terms, {"note": "Each before its weight."}),
        ("RankMe", {"RankMe": of("rankme")}, {"note": RANKME}),
        ("Teacher entropy", {"entropy": of("teacher_entropy")}, {"note": ENTROPY} | top),
        ("Gradient norm", norms, {"note": "Before clipping, of each network."} | clip),
        ("Learning rate", {"rate": of("lr")}, {"note": "Linear warm-up, then as the recipe says."}),
        ("Teacher momentum", {"momentum": of("teacher_momentum")}, {"note": MOMENTUM}),
        ("Speed", {"tiles per second": of("tiles_per_s")}, {"note": "Reading and training."}),
        ("Waiting for data", {"% of the step": shares}, {"note": WAITING}),
    ]
    return [
        line_chart(title, steps, series, from_zero=title in FROM_ZERO, **settings)
        for title, series, settings in rows
    ]


def _summary(contents: Contents, config: TilePretrainConfig | None) -> str:
    if not contents.metrics:
        return "No step has been finished yet."
    planned = f" of {config.steps:,}" if config and config.steps != contents.n_steps else ""
    n_tiles = f", {contents.n_steps * config.batch_size:,} tiles" if config else ""
    seconds = duration_s(contents)
    time = f", in {time_in_words(seconds)} of training" if seconds else ""
    return f"{contents.n_steps:,}{planned} steps{n_tiles}{time}."


def _facts(config: TilePretrainConfig, contents: Contents) -> dict[str, str]:
    model, views, optimizer = config.model, config.views, config.optimizer
    drawn = config.tiles.magnifications
    if isinstance(drawn, MagnificationRange):
        mpps = f"{drawn.low:g} to {drawn.high:g}"
    else:
        mpps = ", ".join(f"{mpp:g}" for mpp in drawn)
    facts = {
        "Network": (
            f"ViT, width {model.width}, depth {model.depth}, {model.n_heads} heads, "
            f"{model.patch_px} px patches, {model.n_registers} registers"
        ),
        "Parameters": _parameters(contents),
        "Tiles": (
            f"{views.source_px} px at {mpps} µm/px, at least {config.tiles.min_tissue:.0%} tissue"
        ),
        "Views": (
            f"{views.n_global} of {views.global_px} px and {views.n_local} of {views.local_px} px"
        ),
        "Objective": _objective(config),
        "Prototypes": f"{config.head.n_prototypes:,}",
        "Batch": f"{config.batch_size} tiles",
        "Optimiser": f"AdamW, peak rate {optimizer.peak_lr:g}, warm-up {optimizer.warmup:.0%}",
        "Teacher momentum": (
            f"{optimizer.teacher_momentum.start:g} to {optimizer.teacher_momentum.end:g}"
        ),
        "Seed": str(config.seed),
        "Machine": machine_of(contents.run or {}),
    }
    return {name: value for name, value in facts.items() if value}


def _objective(config: TilePretrainConfig) -> str:
    objective = config.objective
    terms = [(objective.dino_weight, "DINO"), (objective.ibot_weight, "iBOT")]
    if objective.spread != "none":
        terms.append((objective.spread_weight, TERMS[objective.spread]))
    told = " + ".join(f"{weight:g} {name}" for weight, name in terms if weight)
    return f"{told}, targets by {objective.targets}"


def _parameters(contents: Contents) -> str:
    if contents.encoder is None:
        return ""
    n = sum(p.numel() for p in contents.encoder.model.parameters())
    return f"{n / 1e6:.2f} million" if n >= 1e5 else f"{n:,}"


def machine_of(run: Mapping[str, Any]) -> str:
    """The machine that a run says it began on, in a few words."""
    machine = run.get("machine") or {}
    gpus = ", ".join(machine.get("gpus") or [])
    cores = f"{machine['n_cores']} cores" if machine.get("n_cores") else ""
    return ", ".join(part for part in (gpus or machine.get("cpu"), cores) if part)
