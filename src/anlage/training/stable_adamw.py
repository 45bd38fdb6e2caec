"""StableAdamW: AdamW whose rate is divided, tensor by tensor, when a gradient spikes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

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
    parameters, gradients and moments: one more copy of the parameters, during the step.

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
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def root_mean_squares(self, ratios: list[Tensor]) -> list[Tensor]:
        """Root mean square of each tensor over all of its elements, on its device.

        The one place that has to see whole tensors: an optimiser over shards overrides it and
        reduces there.

        Args:
            ratios: Gradient over the floored root of its second moment, one for each parameter.

        Returns:
            Scalar tensors, in the same order.
        """
        scales = [max(ratio.numel(), 1) ** -0.5 for ratio in ratios]
        return list(torch._foreach_mul(torch._foreach_norm(ratios), scales))

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
        weights = [parameter.to(dtype) for parameter in parameters]
        gradients = [_gradient(parameter).to(dtype) for parameter in parameters]
        first = [self.state[parameter]["first_moment"] for parameter in parameters]
        second = [self.state[parameter]["second_moment"] for parameter in parameters]
        fresh_1, fresh_2 = ((1 - beta) / (1 - beta**step) for beta in group["betas"])

        torch._foreach_lerp_(first, gradients, fresh_1)
        torch._foreach_mul_(second, 1 - fresh_2)
        torch._foreach_addcmul_(second, gradients, gradients, value=fresh_2)
        rates = self._divided_rates(gradients, second, group)

        updates = torch._foreach_sqrt(second)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, first)
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        torch._foreach_mul_(updates, rates)
        torch._foreach_sub_(weights, updates)
        if dtype != parameters[0].dtype:
            torch._foreach_copy_(parameters, weights)

    def _divided_rates(
        self, gradients: list[Tensor], second: list[Tensor], group: dict[str, Any]
    ) -> list[Tensor]:
        """The group's rate over max(1, RMS) of each tensor."""
        ratios = torch._foreach_sqrt(second)
        torch._foreach_clamp_min_(ratios, group["eps"])
        torch._foreach_reciprocal_(ratios)
        torch._foreach_mul_(ratios, gradients)
        divisors = torch._foreach_clamp_min(self.root_mean_squares(list(ratios)), 1.0)
        rates = list(torch._foreach_reciprocal(divisors))
        torch._foreach_mul_(rates, group["lr"])
        return rates


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
