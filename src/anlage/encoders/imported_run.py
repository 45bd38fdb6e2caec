"""Checkpoints of dinov2's training code as plain tensors: networks with their heads.

Shape suffixes: P prototypes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anlage.encoders.encoder_sizes import architecture_of, encoder_sizes
from anlage.encoders.published_names import in_our_names, without_wrappers
from anlage.encoders.weight_files import (
    as_float32,
    file_sha256,
    read_weight_file,
    sharded_refusal,
)
from anlage.encoders.weights import convert_weights
from anlage.errors import EncoderError
from anlage.models.projection_head import ProjectionHead
from anlage.models.without_weights import without_weights

HEAD_NAMES = (
    (re.compile(r"^mlp\.(weight|bias)$"), r"mlp.0.\1"),  # one layer alone is no sequence there
    (re.compile(r"^last_layer\.parametrizations\.weight\.original0$"), "last_layer.weight_g"),
    (re.compile(r"^last_layer\.parametrizations\.weight\.original1$"), "last_layer.weight_v"),
)
CENTERS = {"dino_loss.center": "dino", "ibot_patch_loss.center": "ibot"}
NETWORKS = ("student", "teacher")
PART = re.compile(
    r"^(?P<network>student|teacher)\.(?P<part>backbone|dino_head|ibot_head)\.(?P<name>.+)$"
)

Parts = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedHead:
    """A projection head.

    Attributes:
        weights: State dict of a ``ProjectionHead`` of ``sizes``.
        sizes: Its keyword arguments: width, n_prototypes, hidden, bottleneck, n_layers.
    """

    weights: dict[str, Tensor]
    sizes: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedNetwork:
    """The student or the teacher.

    Attributes:
        encoder: State dict of the ``VisionTransformer``.
        dino_head: Head of the class token; of the patch tokens too, where heads are tied.
        ibot_head: Head of the patch tokens; None where heads are tied.
    """

    encoder: dict[str, Tensor]
    dino_head: ImportedHead
    ibot_head: ImportedHead | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedRun:
    """A dinov2 checkpoint.

    Attributes:
        student: None in a teacher checkpoint.
        teacher: None if the file holds the student alone.
        architecture: Keyword arguments of ``VisionTransformer``, read from the shapes.
        iteration: Its last finished iteration, counted from 0; None where it is not stored.
        centers: (P,) running means of the teacher's logits, ``dino`` and ``ibot``; where stored.
        notes: What was left out, folded or added, a sentence each.
        provenance: Source and sha256, as JSON.
    """

    student: ImportedNetwork | None
    teacher: ImportedNetwork | None
    architecture: dict[str, Any]
    iteration: int | None
    centers: dict[str, Tensor]
    notes: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def is_tied(self) -> bool:
        """Whether one head serves class and patch tokens."""
        network = self.teacher or self.student
        return network is not None and network.ibot_head is None


def read_dinov2_checkpoint(path: str | Path, *, n_heads: int | None = None) -> ImportedRun:
    """Read a checkpoint of dinov2's training with its heads, to go on training.

    Takes ``teacher_checkpoint.pth`` and whole training checkpoints, with blocks in chunks, the
    prefixes of FSDP and activation checkpointing, and either naming of weight normalisation.

    Args:
        path: The ``.pth`` file.
        n_heads: Attention heads, which tensors do not tell; None for heads 64 wide, as dinov2's.

    Returns:
        Networks, their architecture, the iteration, and what was left out.

    Raises:
        EncoderError: If the file is damaged, one rank's part, no dinov2 checkpoint, or holds a
            tensor that is unknown, missing, misshapen or not finite.
    """
    stored = read_weight_file(path)
    networks, centers, notes = _networks(stored, path)
    first = next(iter(networks.values()))
    sizes = encoder_sizes(in_our_names(first["backbone"], path=path).weights, path=path)
    architecture = architecture_of(sizes, path=path, n_heads=n_heads)
    read = {}
    for name, parts in networks.items():
        read[name], said = _network(parts, architecture, f"{path}: {name}")
        notes += [f"{name}: {note}" for note in said]
    _refuse_unequal(read, path)
    _refuse_misfit_centers(centers, read, path)
    iteration = stored.get("iteration")
    return ImportedRun(
        student=read.get("student"),
        teacher=read.get("teacher"),
        architecture=architecture,
        iteration=iteration if isinstance(iteration, int) and iteration >= 0 else None,
        centers={name: center.flatten() for name, center in centers.items()},
        notes=tuple(notes),
        provenance={"source": str(path), "kind": "dinov2 checkpoint", "sha256": file_sha256(path)},
    )


def _networks(
    stored: Mapping[str, Any], path: str | Path
) -> tuple[dict[str, Parts], dict[str, Tensor], list[str]]:
    """Tensors of each network by part, the centres of the losses, and what was left out."""
    used = {"model"} if isinstance(stored.get("model"), Mapping) else set(NETWORKS) & stored.keys()
    tensors: dict[str, Tensor] = {}
    for key in sorted(used):
        prefix = "" if key == "model" else f"{key}."
        inside = _plain(stored[key], path)
        tensors |= {f"{prefix}{name}": tensor for name, tensor in inside.items()}
    networks: dict[str, Parts] = {}
    centers = as_float32({n: tensors.pop(n) for n in CENTERS if n in tensors}, path=path)
    for name in list(tensors):
        if found := PART.match(name):
            parts = networks.setdefault(found["network"], {})
            parts.setdefault(found["part"], {})[found["name"]] = tensors.pop(name)
    _refuse_incomplete(networks, stored, path)
    if tensors:
        msg = f"holds a tensor {min(tensors)!r}, for which anlage has no use. "
        raise EncoderError(path, msg + "Remove it from the file if it can be spared.")
    left = sorted(str(key) for key in stored.keys() - used - {"iteration"})
    notes = [f"Left out {key!r}: state of the code that wrote it." for key in left]
    return networks, {CENTERS[name]: center for name, center in centers.items()}, notes


def _refuse_incomplete(
    networks: Mapping[str, Parts], stored: Mapping[str, Any], path: str | Path
) -> None:
    for parts in networks.values() or [{}]:
        for part in ("backbone", "dino_head"):
            if part not in parts:
                msg = (
                    f"is no dinov2 checkpoint with heads: no {part} under 'model', 'teacher' or "
                    f"'student'; its keys are {sorted(map(str, stored))[:5]}. "
                    "To start from an encoder alone, name the file under `init:`."
                )
                raise EncoderError(path, msg)


def _plain(tensors: Any, path: str | Path) -> dict[str, Tensor]:  # noqa: ANN401 - as stored
    """Tensors without the prefixes of wrappers, refusing the flat ones of a sharded run."""
    plain: dict[str, Tensor] = {}
    if not isinstance(tensors, Mapping):
        raise EncoderError(path, "needs tensors by name. Save the checkpoint again.")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise EncoderError(path, f"needs tensors by name; got {name!r}. Save it again.")
        if "flat_param" in name:
            raise EncoderError(path, sharded_refusal(name))
        if not isinstance(tensor, Tensor) or without_wrappers(name) in plain:
            what = "is no tensor" if not isinstance(tensor, Tensor) else "is there twice"
            raise EncoderError(path, f"{name!r} {what}. Save the checkpoint again.")
        plain[without_wrappers(name)] = tensor
    return plain


def _network(
    parts: Parts, architecture: Mapping[str, Any], path: str
) -> tuple[ImportedNetwork, tuple[str, ...]]:
    encoder, notes = convert_weights(parts["backbone"], architecture, path=path)
    heads = {
        name: _head(parts[name], f"{path}.{name}")
        for name in ("dino_head", "ibot_head")
        if name in parts
    }
    for name, head in heads.items():
        if head.sizes["width"] != architecture["width"]:
            msg = (
                f"{name} takes tokens {head.sizes['width']} wide; the encoder's are "
                f"{architecture['width']} wide. Take the file of one run."
            )
            raise EncoderError(path, msg)
    network = ImportedNetwork(
        encoder=encoder, dino_head=heads["dino_head"], ibot_head=heads.get("ibot_head")
    )
    return network, notes


def _head(tensors: Mapping[str, Tensor], path: str) -> ImportedHead:
    """A head in our names, checked against a ``ProjectionHead`` of the sizes it shows."""
    weights = as_float32({_head_name(name): tensors[name] for name in tensors}, path=path)
    layers = sorted(int(m[1]) for n in weights if (m := re.fullmatch(r"mlp\.(\d+)\.weight", n)))
    prototypes = weights.get("last_layer.weight_v")
    linear = weights[f"mlp.{layers[0]}.weight"] if layers else None
    matrices = [t for t in (linear, prototypes) if t is not None and t.ndim == 2 and t.numel()]
    if linear is None or prototypes is None or len(matrices) < 2:
        msg = "needs linear layers mlp.0, mlp.2, ... and weight-normalised prototypes last_layer.*"
        raise EncoderError(path, f"{msg}; got {sorted(tensors)[:5]}. Choose a head of dinov2's.")
    hidden, width = linear.shape
    sizes = {
        "width": width,
        "n_prototypes": prototypes.shape[0],
        "hidden": hidden,
        "bottleneck": prototypes.shape[-1],
        "n_layers": len(layers),
    }
    with without_weights():
        wanted = ProjectionHead(**sizes).state_dict()
    if not any(name.startswith("mlp.") and name.endswith(".bias") for name in weights):
        for name in wanted.keys() - weights.keys():
            if name.endswith(".bias"):
                weights[name] = torch.zeros(wanted[name].shape)  # no bias is a bias of zero
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    asked = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if found != asked:
        odd = sorted(name for name in found.keys() | asked if found.get(name) != asked.get(name))
        msg = f"tensor {odd[0]!r}: needs shape {asked.get(odd[0])}; got {found.get(odd[0])}. "
        raise EncoderError(path, msg + "Heads with batch norm or other layers are not ours.")
    return ImportedHead(weights={name: weights[name] for name in wanted}, sizes=sizes)


def _head_name(name: str) -> str:
    for pattern, ours in HEAD_NAMES:
        name = pattern.sub(ours, name)
    return name


def _refuse_unequal(networks: Mapping[str, ImportedNetwork], path: str | Path) -> None:
    """Student and teacher need heads of the same sizes, for one is the mean of the other."""
    sizes = {
        name: (network.dino_head.sizes, network.ibot_head and network.ibot_head.sizes)
        for name, network in networks.items()
    }
    if len(sizes) == 2 and sizes["student"] != sizes["teacher"]:
        msg = f"has unlike heads in student {sizes['student']} and teacher {sizes['teacher']}. "
        raise EncoderError(path, msg + "Take the file of one run.")


def _refuse_misfit_centers(
    centers: Mapping[str, Tensor], networks: Mapping[str, ImportedNetwork], path: str | Path
) -> None:
    """A centre has one value a prototype of the head that it belongs to."""
    network = networks.get("teacher") or networks["student"]
    heads = {"dino": network.dino_head, "ibot": network.ibot_head or network.dino_head}
    for name, center in centers.items():
        n_prototypes = heads[name].sizes["n_prototypes"]
        if center.numel() != n_prototypes:
            msg = f"has a centre of {name} of {center.numel()} values for {n_prototypes} prototypes"
            raise EncoderError(path, f"{msg}. Take the file of one run.")
