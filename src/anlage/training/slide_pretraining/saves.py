"""What a slide pretraining run leaves behind: checkpoints, and the encoder as a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anlage.encoders.slide_encoder import (
    SlideEncoderConfig,
    TileEncoderFacts,
    save_slide_encoder,
    tile_encoder_of,
)
from anlage.provenance import sha256_of_json
from anlage.training.checkpoint_writer import CheckpointWriter
from anlage.training.run_record import MOST_LISTED_SLIDES, record_of
from anlage.training.slide_pretraining.config import SlidePretrainConfig
from anlage.training.slide_pretraining.feed import ChosenBags
from anlage.training.slide_pretraining.networks import encoder_arguments
from anlage.training.slide_pretraining.state import SlideTraining
from anlage.training.whole_bags import left_out_of


def slide_record(
    config: SlidePretrainConfig, chosen: ChosenBags, *, n_ranks: int
) -> dict[str, Any]:
    """Everything a run depends on, as JSON: ``run.json``.

    Args:
        config: The resolved recipe.
        chosen: The bags of the run.
        n_ranks: Processes that share each step.

    Returns:
        What ``record_of`` gives; a fingerprint over the bags that are trained on and held out, the
        content hash of each (up to 100,000), bags that cannot be used, the patients, how many
        slides count as a patient of their own, the grid and the tile encoder.
    """
    trained, held, others = (
        {slide: chosen.content_of(slide) for slide in slides}
        for slides in (chosen.train, chosen.held_out, chosen.others)
    )
    patients = {slide: chosen.patient_of[slide] for slide in chosen.train}
    data = {
        "stage": "slide",
        "bags": sha256_of_json([trained, held]),
        "n_slides": len(trained),
        "slides": trained if len(trained) <= MOST_LISTED_SLIDES else {},
        "patients": sorted(set(patients.values())),
        "n_without_patient": sum(slide == patient for slide, patient in patients.items()),
        "held_out": held,
        "other_slides": others if len(others) <= MOST_LISTED_SLIDES else {},
        "n_too_small": chosen.n_small,
        "left_out": left_out_of(chosen.bags),
        "grid_um": chosen.grid_um,
        "tile_encoder": tile_encoder_of(chosen.bags).model_dump(mode="json"),
    }
    return record_of(config, data, n_ranks=n_ranks)


def slide_encoder_config(training: SlideTraining) -> SlideEncoderConfig:
    """What the encoder of now is, and how it is to be used."""
    config, record = training.config, training.record
    made_for = TileEncoderFacts.model_validate(record["tile_encoder"])
    return SlideEncoderConfig(
        architecture=encoder_arguments(config, input_width=made_for.width),
        grid_um=record["grid_um"],
        tile_encoder=made_for,
        pooling=config.encoder.pooling,
        provenance={**record, "step": training.step},
    )


def save_slide_run(training: SlideTraining, writer: CheckpointWriter) -> None:
    """Begin a checkpoint, and write the encoder of now beside it. Every rank calls it."""
    writer.save(training.state(), step=training.step, provenance=training.record)
    save_run_slide_encoder(training)


def save_run_slide_encoder(training: SlideTraining) -> None:
    """Write ``RUN/encoder``; rank 0 does."""
    if training.ranks.is_main:
        folder, config = training.run_dir / "encoder", slide_encoder_config(training)
        save_slide_encoder(folder, training.network.encoder, config)


def naming_cases(config: SlideEncoderConfig, cases: Mapping[str, Any]) -> SlideEncoderConfig:
    """The config of an encoder that labels chose: it names their cases, so that a test can tell."""
    watched = {**config.provenance.get("watched", {}), **cases}
    return config.model_copy(update={"provenance": {**config.provenance, "watched": watched}})
