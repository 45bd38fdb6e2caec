"""AdamW or StableAdamW with DINOv2's parameter groups, and gradient clipping per network."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from anlage.training.optimizer_config import Optimisation
from anlage.training.parallel import whole
from anlage.training.stable_adamw import StableAdamW

NO_DECAY = re.compile(r"(\.bias$|norm|gamma)")


def learning_rate_factor(name: str, config: Optimisation, *, depth: int) -> float:
    """Factor on the learning rate of one parameter of the student.

    Args:
        name: Its name, such as ``encoder.blocks.3.attn.qkv.weight`` or ``head.mlp.0.weight``.
        config: Holds ``layer_decay`` and ``patch_embed_lr``.
        depth: Blocks of the encoder.

    Returns:
        ``layer_decay`` to the power of the distance from the output (tokens and patch projection
        lie below block 0; the final norm and the head are not decayed), times ``patch_embed_lr``
        for the patch projection.

    Source: DINOv2, facebookresearch/dinov2 ``utils/param_groups.py``, re-stated.
    """
    if not name.startswith("encoder."):
        return 1.0
    layer = depth + 1
    block = re.search(r"\.blocks\.(\d+)\.", name)
    if block:
        layer = int(block[1]) + 1
    elif not name.startswith("encoder.norm"):
        layer = 0
    factor = config.layer_decay ** (depth + 1 - layer)
    return factor * (config.patch_embed_lr if "patch_embed" in name else 1.0)


def build_optimizer(
    student: nn.Module, config: Optimisation, *, depth: int
) -> torch.optim.Optimizer:
    """The optimiser over the student, one group for each distinct treatment of its parameters.

    Weight decay spares names that end in ``.bias`` or hold ``norm`` or ``gamma``; position, CLS,
    mask and register tokens do decay, as in DINOv2's code.

    Args:
        student: Module with an ``encoder`` and a ``head``.
        config: Rates and decays.
        depth: Blocks of the encoder.

    Returns:
        The optimiser; ``set_rates`` gives its groups their values at each step.
    """
    groups: dict[tuple[float, bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = learning_rate_factor(name, config, depth=depth)
        decays, is_prototypes = NO_DECAY.search(name) is None, "last_layer" in name
        key = (factor, decays, is_prototypes, name.startswith("encoder."))
        groups.setdefault(key, []).append(parameter)
    names = ("lr_factor", "decays", "prototypes", "encoder")
    treated = [
        {"params": parameters, **dict(zip(names, key, strict=True))}
        for key, parameters in groups.items()
    ]
    make = StableAdamW if config.kind == "stable_adamw" else partial(torch.optim.AdamW, fused=True)
    return make(
        treated, lr=config.peak_lr, betas=config.betas, eps=config.epsilon, weight_decay=0.0
    )


def optimizer_state(
    optimizer: torch.optim.Optimizer, network: nn.Module
) -> dict[str, dict[str, Tensor]]:
    """Moments and counts by the name of their parameter, as they are: in no order, of no group.

    Args:
        optimizer: Over the network.
        network: Names the parameters.

    Returns:
        The optimiser's own tensors, sharded as their parameters are.
    """
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in network.named_parameters()
        if parameter in optimizer.state
    }


def make_room(
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    names: Mapping[str, Collection[str]],
) -> None:
    """Give an optimiser zeros in place of every moment and count that will be read into it.

    Args:
        optimizer: Over the network.
        network: Names the parameters.
        names: What each parameter's state consists of; ``step`` is a scalar, anything else has the
            parameter's shape.
    """
    on_host = isinstance(optimizer, StableAdamW)
    for name, parameter in network.named_parameters():
        for kind in names.get(name, ()):
            if kind == "step":
                device = torch.device("cpu") if on_host else parameter.device
                value = torch.zeros((), dtype=torch.float32, device=device)
            else:
                wide = torch.promote_types(parameter.dtype, torch.float32)
                value = torch.zeros_like(parameter, dtype=wide, requires_grad=False)
            optimizer.state[parameter][kind] = value


def set_rates(
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    weight_decay: float,
    prototypes_frozen: bool,
    encoder_frozen: bool = False,
) -> None:
    """Give every parameter group its learning rate and weight decay for the coming step."""
    held = {"prototypes": prototypes_frozen, "encoder": encoder_frozen}
    for group in optimizer.param_groups:
        frozen = any(is_held and group[part] for part, is_held in held.items())
        group["lr"] = 0.0 if frozen else lr * group["lr_factor"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def clip_gradients(
    networks: Mapping[str, nn.Module], *, max_norm: float | None
) -> dict[str, torch.Tensor]:
    """Clip the gradient of each network on its own, as DINOv2 does, and say how large it was.

    Args:
        networks: The student's parts by name.
        max_norm: Largest L2 norm a part may keep; None only measures.

    Returns:
        Norm of each part before clipping, over all shards; scalar tensors on the device (no host
        sync).
    """
    limit = float("inf") if max_norm is None else max_norm
    norms: dict[str, torch.Tensor] = {}
    for name, network in networks.items():
        parameters = [p for p in network.parameters() if p.grad is not None]
        norms[name] = whole(nn.utils.clip_grad_norm_(parameters, limit))
    return norms
