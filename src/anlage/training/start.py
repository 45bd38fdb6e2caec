"""Where a run's weights come from: random, an encoder, or another run with its heads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from anlage.distributed import ALONE, Ranks
from anlage.encoders.starting_weights import starting_weights
from anlage.encoders.tile_encoder import weights_sha256
from anlage.errors import CheckpointError
from anlage.training.checkpoint import newest_checkpoint
from anlage.training.network_config import Architecture, Head
from anlage.training.networks import EncoderWithHeads, Pupil
from anlage.training.tile_config import Initialisation, TilePretrainConfig

LOGGER = logging.getLogger(__name__)
NETWORKS = ("student", "teacher", "centers")
NOT_OF_WEIGHTS = frozenset({"stochastic_depth", "linear_std"})


def start_from(
    init: Initialisation,
    networks: Sequence[EncoderWithHeads | Pupil],
    *,
    config: TilePretrainConfig,
    record: dict[str, Any],
    ranks: Ranks = ALONE,
) -> dict[str, Tensor]:
    """Give networks the weights that a recipe names.

    Args:
        init: What is named.
        networks: Student and teacher, changed in place.
        config: The recipe.
        record: Gains ``init``: source, kind and checksum.
        ranks: The processes that begin together; each calls this.

    Returns:
        Centres of the teacher's logits to go on with; empty where there are none.

    Raises:
        EncoderError: If the encoder cannot be read, or is of another architecture.
        CheckpointError: If the run has no checkpoint, or other networks.
    """
    if init.encoder is not None:
        found = starting_weights(init.encoder, config.model.model_dump())
        for note in found.notes:
            LOGGER.info("%s: %s", init.encoder, note)
        for network in networks:
            network.encoder.load_state_dict(found.weights)
        record["init"] = {**found.provenance, "notes": list(found.notes)}
    elif init.run is not None:
        state, provenance = networks_of_run(Path(init.run), ranks=ranks)
        refuse_other_networks(Path(init.run), provenance["config"], config)
        for network, name in zip(networks, ("student", "teacher"), strict=True):
            _load(network, state.get(name) or state["teacher"], Path(init.run))
        weights = nn.ModuleDict({"student": networks[0], "teacher": networks[1]}).state_dict()
        record["init"] = {
            "source": init.run,
            "kind": "run",
            "step": provenance["step"],
            "sha256": ranks.from_main(lambda: weights_sha256(weights)),
        }
        return dict(state["centers"])
    return {}


def networks_of_run(
    run_dir: Path, *, ranks: Ranks = ALONE
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Networks in a run's newest checkpoint, and its provenance with its step.

    Rank 0 looks for the newest that is whole and tells the others; each reads the networks.

    Args:
        run_dir: The run's folder.
        ranks: The processes that read them; each calls this.

    Raises:
        CheckpointError: If there is none.
    """
    newest = newest_checkpoint(run_dir / "checkpoints", ranks=ranks)
    if newest is None:
        msg = (
            "has no checkpoint. Name the folder of a run with --set distill.run=RUN or "
            "--set init.run=RUN, or make one with `anlage import-run`."
        )
        raise CheckpointError(run_dir, msg)
    state = newest.read_whole(*(part for part in NETWORKS if part in newest.parts))
    return state, {**newest.provenance, "step": newest.step}


def refuse_other_networks(
    run_dir: Path, made_with: Mapping[str, Any], config: TilePretrainConfig
) -> None:
    """Refuse a run whose networks or colours are not those of the recipe, naming what differs.

    Raises:
        CheckpointError: If the model or a head differs.
    """
    wanted = config.model_dump(mode="json")
    differences = [
        f"{name} was {made_with[name]!r}, is now {wanted[name]!r}"
        for name in ("mean", "std")
        if name in made_with and list(made_with[name]) != list(wanted[name])
    ]
    for section in ("model", "head", "patch_head"):
        theirs, ours = made_with.get(section), wanted[section]
        if theirs is None or ours is None:
            if theirs != ours:
                differences.append(f"{section} was {theirs!r}, is now {ours!r}")
            continue
        for name in ours.keys() - NOT_OF_WEIGHTS:
            if _as_weights_see(name, theirs.get(name)) != _as_weights_see(name, ours[name]):
                before = theirs.get(name)
                differences.append(f"{section}.{name} was {before!r}, is now {ours[name]!r}")
    if differences:
        msg = (
            f"has other networks than the recipe: {'; '.join(sorted(differences))}. Correct the "
            "recipe, or name its encoder alone in init.encoder, which adapts patches and positions."
        )
        raise CheckpointError(run_dir, msg)


def _as_weights_see(name: str, value: object) -> object:
    """LayerScale is there or not; with which gain it began does not matter any more."""
    return value is not None if name == "layer_scale" else value


def load_teacher(run_dir: Path, *, ranks: Ranks = ALONE) -> tuple[EncoderWithHeads, dict[str, Any]]:
    """The teacher of another run with its heads, frozen, and its provenance.

    Args:
        run_dir: The run's folder.
        ranks: The processes that load it; each calls this.

    Raises:
        CheckpointError: If there is no checkpoint, or its networks are not described.
    """
    state, provenance = networks_of_run(run_dir, ranks=ranks)
    made_with = provenance["config"]
    patch_head = made_with.get("patch_head")
    network = EncoderWithHeads(
        Architecture.model_validate(made_with["model"]),
        Head.model_validate(made_with["head"]),
        None if patch_head is None else Head.model_validate(patch_head),
    )
    _load(network, state["teacher"], run_dir)
    return network.requires_grad_(requires_grad=False).eval(), provenance


def _load(network: nn.Module, weights: Mapping[str, Tensor], run_dir: Path) -> None:
    """Load weights that fit, and refuse others by the first that does not."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    odd = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    if odd:
        msg = (
            f"needs {odd[0]} of shape {wanted.get(odd[0])}; got {found.get(odd[0])}. A run that "
            "was distilled from an encoder alone has no heads with prototypes: name its encoder."
        )
        raise CheckpointError(run_dir, msg)
    network.load_state_dict(weights)
