"""Where a tile encoder's training starts from: an encoder folder, a weight file, or timm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from anlage.encoders.bundled import BUNDLED, encoder_folder
from anlage.encoders.encoder_sizes import HEAD_WIDTH
from anlage.encoders.folder import load_encoder
from anlage.encoders.tile_encoder import weights_sha256
from anlage.encoders.timm_models import TIMM, published, timm_model
from anlage.encoders.weight_files import file_sha256, read_weight_file, state_dict_of
from anlage.encoders.weights import convert_weights
from anlage.errors import EncoderError


@dataclass(frozen=True, kw_only=True, slots=True)
class StartingWeights:
    """Weights to begin training with.

    Attributes:
        weights: State dict of the ``VisionTransformer`` asked for, float32, on the CPU.
        notes: What was left out, folded, adapted or added, a sentence each.
        provenance: Source, its kind and its sha256, as JSON.
    """

    weights: dict[str, Tensor]
    notes: tuple[str, ...]
    provenance: dict[str, Any]


def starting_weights(source: str | Path, architecture: Mapping[str, Any]) -> StartingWeights:
    """Trained weights for an architecture, converted strictly and adapted where they can be.

    Args:
        source: An encoder folder such as ``RUN/encoder``, or a name in ``BUNDLED``; a
            ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file of timm, dinov2 or DINO; or
            ``timm:NAME``, which timm downloads (``timm:hf-hub:OWNER/MODEL`` for any model of
            timm's on the hub).
        architecture: Keyword arguments of ``VisionTransformer``.

    Returns:
        Weights, notes and provenance.

    Raises:
        EncoderError: If the source is missing, damaged, holds more than weights, or is of another
            architecture.
    """
    name = str(source)
    if name.startswith(TIMM):
        return _from_timm(name, architecture)
    if encoder_folder(source).is_dir():
        return _from_folder(source, architecture)
    if not Path(source).suffix:
        msg = f"no such encoder. Name a folder, a weight file, or one of: {', '.join(BUNDLED)}."
        raise EncoderError(source, msg)
    return _from_file(Path(source), architecture)


def _from_folder(folder: str | Path, architecture: Mapping[str, Any]) -> StartingWeights:
    encoder = load_encoder(folder)
    _refuse_other_heads(folder, encoder.config.architecture["n_heads"], architecture)
    state = encoder.model.state_dict()
    weights, notes = convert_weights(state, architecture, path=folder)
    provenance = {
        "source": str(folder),
        "kind": "encoder folder",
        "sha256": encoder.config.weights_sha256,
        "made_by": encoder.config.provenance,
    }
    return StartingWeights(weights=weights, notes=notes, provenance=provenance)


def _from_file(path: Path, architecture: Mapping[str, Any]) -> StartingWeights:
    state, key = state_dict_of(read_weight_file(path), path=path)
    weights, notes = convert_weights(state, architecture, path=path)
    head_width = architecture["width"] // architecture["n_heads"]
    if head_width != HEAD_WIDTH:
        notes += (
            f"A weight file does not tell its attention heads; taken for {head_width} wide, where "
            f"published encoders have {HEAD_WIDTH}.",
        )
    provenance = {"source": str(path), "kind": "weight file", "sha256": file_sha256(path)}
    if key:
        provenance["key"] = key
    return StartingWeights(weights=weights, notes=notes, provenance=provenance)


def _from_timm(source: str, architecture: Mapping[str, Any]) -> StartingWeights:
    # At its own classes and size: timm loads a changed model leniently.
    model = timm_model(source.removeprefix(TIMM))
    _refuse_other_function(source, model)
    _refuse_other_heads(source, model.blocks[0].attn.num_heads, architecture)  # type: ignore[index,union-attr]
    state = model.state_dict()
    weights, notes = convert_weights(state, architecture, path=source)
    provenance = {
        "source": source,
        "kind": "timm",
        "sha256": weights_sha256(state),
        "timm": version("timm"),
        **published(model),
    }
    return StartingWeights(weights=weights, notes=notes, provenance=provenance)


def _refuse_other_function(source: str, model: nn.Module) -> None:
    """Refuse what the tensors alone would not show: another class, order, activation or epsilon."""
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    if type(model) is not TimmVisionTransformer:
        msg = f"is timm's {type(model).__name__}. Choose a VisionTransformer of timm's."
        raise EncoderError(source, msg)
    for number, block in enumerate(model.blocks):
        _refuse_other_block(source, number, block)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and module.eps != 1e-6:
            msg = f"has LayerNorms of eps {module.eps:g}; ours have 1e-06. Choose another encoder."
            raise EncoderError(source, msg)


def _refuse_other_block(source: str, number: int, block: Any) -> None:  # noqa: ANN401 - timm's
    from timm.layers.mlp import GluMlp
    from timm.models.vision_transformer import Block

    if type(block) is not Block:
        msg = f"has a {type(block).__name__} at blocks.{number}. Choose an encoder of plain Blocks."
        raise EncoderError(source, msg)
    activation = getattr(block.mlp, "act", None)
    usual = nn.SiLU if isinstance(block.mlp, GluMlp) else nn.GELU
    is_exact = getattr(activation, "approximate", "none") == "none"
    gate_last = getattr(block.mlp, "gate_last", False)
    if type(activation) is not usual or not is_exact or gate_last:
        told = f"{activation} at blocks.{number}.mlp.act" + (", its gate last" if gate_last else "")
        msg = f"computes with {told}. Choose an encoder with GELU or SwiGLU."
        raise EncoderError(source, msg)


def _refuse_other_heads(source: str | Path, n_heads: int, architecture: Mapping[str, Any]) -> None:
    if n_heads != architecture["n_heads"]:
        msg = f"has {n_heads} attention heads, and this architecture {architecture['n_heads']}. "
        raise EncoderError(source, msg + f"Set model.n_heads to {n_heads}.")
