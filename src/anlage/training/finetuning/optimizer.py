"""AdamW over a slide model, a group for each layer's rate; rates as functions of the step."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi

import torch
from torch import Tensor, nn

from anlage.models.slide_model import SlideModel
from anlage.training.finetuning.config import FinetuneRates


def build_finetune_optimizer(network: SlideModel, config: FinetuneRates) -> torch.optim.AdamW:
    """The optimiser over what is trained, one group for each distinct treatment.

    The rate of a layer is ``layer_decay ** (layers above it)`` times that of the head. Weight decay
    spares parameters of one dimension: biases and norms.

    Args:
        network: The model; frozen parameters are passed over.
        config: Rates and decays.

    Returns:
        The optimiser; ``set_finetune_rate`` gives its groups their rate at each step.

    Source: Bao et al. 2022, BEiT, arXiv:2106.08254, appendix, as ``SlideModel.parameter_layers``.
    """
    layer_of = network.parameter_layers()
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            key = (layer_of[name], parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    treated = [
        {
            "params": parameters,
            "lr_factor": config.layer_decay ** (network.n_layers - layer),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (layer, decays), parameters in groups.items()
    ]
    return torch.optim.AdamW(treated, lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)


def rate_at(config: FinetuneRates, epoch: float, *, epochs: int, batch_size: int) -> float:
    """Learning rate of the head at a point of the run.

        warm-up:   peak epoch / warmup_epochs
        cosine:    min_lr + (peak - min_lr) (1 + cos(pi (epoch - warmup) / (epochs - warmup))) / 2
        constant:  peak

    Args:
        config: Peak, least rate, warm-up and schedule.
        epoch: Epochs done before the step, also a part of one, 0 to ``epochs``.
        epochs: Epochs of the run.
        batch_size: Bags of a step, by which ``base_lr`` is scaled.
    """
    peak, warmup = config.rate(batch_size), config.warmup_epochs
    if epoch < warmup:
        return peak * epoch / warmup
    if config.schedule == "constant":
        return peak
    progress = min((epoch - warmup) / (epochs - warmup), 1.0)
    return config.min_lr + (peak - config.min_lr) * (1 + cos(pi * progress)) / 2


def set_finetune_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its rate for the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def moments_by_name(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Moments and counts of the optimiser as ``NAME/KIND``, for a checkpoint."""
    return {
        f"{name}/{kind}": value
        for name, parameter in network.named_parameters()
        if parameter in optimizer.state
        for kind, value in optimizer.state[parameter].items()
    }


def restore_moments(
    optimizer: torch.optim.Optimizer, network: nn.Module, moments: Mapping[str, Tensor]
) -> None:
    """Put moments and counts back where ``moments_by_name`` took them from."""
    parameters = dict(network.named_parameters())
    for key, value in moments.items():
        name, _, kind = key.rpartition("/")
        parameter = parameters[name]
        optimizer.state[parameter][kind] = value.to(parameter.device)
