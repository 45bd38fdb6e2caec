"""StableAdamW: AdamW whose rate is divided, tensor by tensor, when a gradient spikes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import ParamsT

from anlage.training.parallel import own_shards

STATE = {"step", "first_moment", "second_moment"}


class StableAdamW(torch.optim.Optimizer):
    """AdamW with AdaFactor's update clipping, which takes the place of gradient clipping.

    For one tensor, with b^ = b (1 - b^(t-1)) / (1 - b^t) for both betas:

        u <- b1^ u + (1 - b1^) g
        v <- b2^ v + (1 - b2^) g^2
        rate = lr / max(1, RMS),  RMS = sqrt(mean(g^2 / max(v, eps^2)))
        theta <- theta - rate (weight_decay theta + u / (sqrt(v) + eps))

    The moments with b^ are AdamW's bias-corrected ones, so wherever RMS <= 1 the step is that of
    ``torch.optim.AdamW`` with the same ``eps``. RMS sees the gradient of this step only: a tensor
    that jumps from 0 to G moves by (1 - b1) lr in that step, but the steps after it are not
    divided, and only the betas bound them: by ``(1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2))`` of
    ``lr``, which is 1.17 for (0.9, 0.95) and 7.3 for (0.9, 0.999).

    A step computes in float32, or in float64 for parameters that are; so are the moments.
    Nothing is read back from the device. Rates may be 0: the moments still move. Memory beside
    parameters, gradients and moments: one more copy of the parameters, during the step. Sharded
    parameters (DTensor) move shard by shard; only RMS is taken over the whole tensor.

    As in torch's fused AdamW, a scalar tensor ``found_inf`` set on the optimiser that is not 0
    makes a step change no parameter and no moment, without anybody waiting for the device; the
    step still counts.

    Args:
        params: Parameters, or groups of them. A group may hold keys that are not read here.
        lr: Learning rate before it is divided, >= 0; the groups' own values count.
        betas: Decay rates of the two moments, 0 to below 1.
        eps: Least root of the second moment, > 0: a floor in RMS, added in the update.
        weight_decay: Share of a weight that is taken off at rate 1, >= 0.

    Raises:
        ValueError: If a setting is out of its range.

    Source: Wortsman et al. 2023, Stable and low-precision training, arXiv:2304.13013, algorithm 2;
    Virchow2G's optimiser (Zimmermann et al. 2024, arXiv:2408.00738). Epsilon as in torch-optimi
    0.3.3 and pytorch-optimizer 4.1.0 (there the default is 1e-8). Different from both: steps are
    counted for each parameter, not for each group, so one that gets its first gradient late is
    debiased from then on; moments of bfloat16 and float16 parameters are float32, and there is no
    Kahan sum, so an update below half a unit in the last place of such a parameter is lost (train
    float32 parameters under autocast). Different from torch-optimi: RMS stays on the device.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value, valid, rule in (
            ("lr", lr, lr >= 0, "0 or more"),
            ("betas", betas, all(0 <= beta < 1 for beta in betas), "two values from 0 to below 1"),
            ("eps", eps, eps > 0, "a value above 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "0 or more"),
        ):
            if not valid:
                msg = f"StableAdamW: {name} needs {rule}; got {value}. Correct {name}."
                raise ValueError(msg)
        self.found_inf: Tensor | None = None
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients first, if given.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.dtype, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    key = (parameter.device, parameter.dtype, self._count_step(parameter))
                    alike.setdefault(key, []).append(parameter)
            for (_, _, step), parameters in alike.items():
                self._move(parameters, group, step=step)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, with the moments in the precision they were saved in.

        Args:
            state_dict: What ``state_dict`` of a StableAdamW gave.

        Raises:
            ValueError: If it is of another optimiser, or of other parameters.
        """
        for saved in state_dict["state"].values():
            if saved.keys() != STATE:
                msg = (
                    f"StableAdamW: needs a state of {', '.join(sorted(STATE))}; got "
                    f"{', '.join(sorted(saved))}. Load the state of a StableAdamW: the moments of "
                    "others are not debiased."
                )
                raise ValueError(msg)
        super().load_state_dict(state_dict)
        # torch casts a state to the dtype of its parameter; take the lost digits from the source.
        for saved_id, parameter in zip(
            chain.from_iterable(group["params"] for group in state_dict["param_groups"]),
            chain.from_iterable(group["params"] for group in self.param_groups),
            strict=True,
        ):
            if saved_id in state_dict["state"]:
                saved, own = state_dict["state"][saved_id], self.state[parameter]
                own["step"] = saved["step"].to("cpu", copy=True)
                for moment in ("first_moment", "second_moment"):
                    own[moment] = saved[moment].to(parameter.device, _wide(parameter.dtype))

    def _count_step(self, parameter: Tensor) -> int:
        """Number of the parameter's coming step, from 1; counted on the host."""
        state = self.state[parameter]
        if not state:
            dtype = _wide(parameter.dtype)
            state["step"] = torch.zeros((), device="cpu")
            state["first_moment"] = torch.zeros_like(parameter, dtype=dtype)
            state["second_moment"] = torch.zeros_like(parameter, dtype=dtype)
        state["step"] += 1
        return int(state["step"])

    def _move(self, parameters: list[Tensor], group: dict[str, Any], *, step: int) -> None:
        """One step of parameters of the same group, device, dtype and age."""
        dtype = _wide(parameters[0].dtype)
        own = own_shards(parameters)
        weights = [weight.to(dtype) for weight in own]
        gradients = [g.to(dtype) for g in own_shards(_gradient(p) for p in parameters)]
        first = own_shards(self.state[parameter]["first_moment"] for parameter in parameters)
        second = own_shards(self.state[parameter]["second_moment"] for parameter in parameters)
        fresh_1, fresh_2 = ((1 - beta) / (1 - beta**step) for beta in group["betas"])
        sound: Tensor | float = 1.0
        if self.found_inf is not None:
            sound = (self.found_inf == 0).to(dtype)
            gradients = [torch.where(sound > 0, gradient, 0.0) for gradient in gradients]

        _blend(first, list(torch._foreach_sub(gradients, first)), fresh_1 * sound)
        squares = list(torch._foreach_mul(gradients, gradients))
        torch._foreach_sub_(squares, second)
        _blend(second, squares, fresh_2 * sound)
        rates = self._divided_rates(parameters, gradients, second, group)
        torch._foreach_mul_(rates, sound)

        updates = torch._foreach_sqrt(second)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, first)
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        torch._foreach_mul_(updates, rates)
        torch._foreach_sub_(weights, updates)
        if dtype != parameters[0].dtype:
            torch._foreach_copy_(own, weights)

    def _divided_rates(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        second: list[Tensor],
        group: dict[str, Any],
    ) -> list[Tensor]:
        """The group's rate over max(1, RMS) of each tensor."""
        ratios = torch._foreach_sqrt(second)
        torch._foreach_clamp_min_(ratios, group["eps"])
        torch._foreach_reciprocal_(ratios)
        torch._foreach_mul_(ratios, gradients)
        divisors = torch._foreach_clamp_min(root_mean_squares(parameters, list(ratios)), 1.0)
        rates = list(torch._foreach_reciprocal(divisors))
        torch._foreach_mul_(rates, group["lr"])
        return rates


def root_mean_squares(parameters: list[Tensor], ratios: list[Tensor]) -> list[Tensor]:
    """Root mean square of each ratio over all elements of its parameter, on its device.

    Args:
        parameters: Whole tensors, or DTensors that all lie on the same ranks in the same way.
        ratios: This rank's part of a tensor for each of them, not empty.

    Returns:
        Scalar tensors, in the same order; the same on all ranks.
    """
    square_N = torch.stack(torch._foreach_norm(ratios)).square_()
    first = parameters[0]
    if isinstance(first, DTensor):
        for axis, placement in enumerate(first.placements):
            if placement.is_shard():
                dist.all_reduce(square_N, group=first.device_mesh.get_group(axis))
    scales = [max(parameter.numel(), 1) ** -0.5 for parameter in parameters]
    return list(torch._foreach_mul(list(square_N.sqrt_().unbind()), scales))


def _blend(values: list[Tensor], changes: list[Tensor], share: Tensor | float) -> None:
    """Add a share of changes, which are used up."""
    torch._foreach_mul_(changes, share)
    torch._foreach_add_(values, changes)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
