"""The optimisers of a spec: torch's own where it has them; LARS and LAMB for large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from dlhpc.spec.models import Optimizer


def make_optimiser(settings: Optimizer, parameters: Iterable[nn.Parameter] | list[dict[str, Any]]) -> optim.Optimizer:
    """An optimiser with the spec's settings for ``parameters``, or for groups of them, ``{"params": …, "factor": …}``.

    Its learning rate is set anew before every step (:func:`set_rate`). ``fused`` does a whole step in one kernel where
    torch has one (on CPU and on GPU); it computes element by element, so the result does not depend on threads.
    """
    chosen: Any = list(parameters)
    decay = settings.weight_decay
    epsilon: dict[str, Any] = {} if settings.epsilon is None else {"eps": settings.epsilon}
    momentum = 0.9 if settings.momentum is None else settings.momentum
    betas = settings.betas or (0.9, 0.999)
    match settings.name:
        case "sgd" | "nesterov":
            nesterov = settings.name == "nesterov"
            return optim.SGD(chosen, lr=0.0, momentum=momentum, weight_decay=decay, nesterov=nesterov, fused=True)
        case "adam":
            return optim.Adam(chosen, lr=0.0, betas=betas, weight_decay=decay, fused=True, **epsilon)
        case "adamw":
            return optim.AdamW(chosen, lr=0.0, betas=betas, weight_decay=decay, fused=True, **epsilon)
        case "rmsprop":
            alpha = 0.99 if settings.rho is None else settings.rho
            return optim.RMSprop(
                chosen, lr=0.0, alpha=alpha, momentum=settings.momentum or 0.0, weight_decay=decay, **epsilon
            )
        case "adagrad":
            return optim.Adagrad(chosen, lr=0.0, weight_decay=decay, **epsilon)
        case "adadelta":
            rho = 0.9 if settings.rho is None else settings.rho
            return optim.Adadelta(chosen, lr=0.0, rho=rho, weight_decay=decay, **epsilon)
        case "lars":
            trust = 0.001 if settings.trust is None else settings.trust
            return Lars(chosen, momentum=momentum, weight_decay=decay, trust=trust)
        case "lamb":
            return Lamb(chosen, betas=betas, weight_decay=decay, **epsilon)


def set_rate(optimiser: optim.Optimizer, rate: float) -> None:
    """Use this learning rate, times each group's factor, for the next step."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


class Lars(optim.Optimizer):
    """Layer-wise adaptive rate scaling: You, Gitman and Ginsburg 2017, arXiv:1708.03888, algorithm 1.

    With weights w, gradient g, learning rate γ, momentum m, weight decay β and trust coefficient η, for each layer:
    λ = η ‖w‖ / (‖g‖ + β ‖w‖);  v ← m v + γ λ (g + β w);  w ← w − v. Biases and the parameters of normalisation (one
    dimension) take λ = 1 and no decay, as is usual. Gradients are used up.
    """

    def __init__(self, parameters: Any, momentum: float, weight_decay: float, trust: float) -> None:
        super().__init__(parameters, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One step; there is no closure."""
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for weights in group["params"]:
                gradient = weights.grad
                if gradient is None:
                    continue
                if weights.dim() > 1:
                    size = torch.linalg.vector_norm(weights)
                    pull = torch.linalg.vector_norm(gradient) + decay * size
                    gradient.add_(weights, alpha=decay).mul_(rate * _trust(group["trust"] * size, pull))
                else:
                    gradient.mul_(rate)
                state = self.state[weights]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weights)
                weights.sub_(state["momentum_buffer"].mul_(group["momentum"]).add_(gradient))


class Lamb(optim.Optimizer):
    """Layer-wise adaptive moments: You et al. 2020 (ICLR), arXiv:1904.00962, algorithm 2, with Adam's bias correction.

    With m and v Adam's moving averages of g and g²: u = m̂ / (√v̂ + ε) + λ w;  w ← w − γ ‖w‖/‖u‖ u. Biases and the
    parameters of normalisation (one dimension) take the ratio 1 and no decay λ.
    """

    def __init__(self, parameters: Any, betas: tuple[float, float], weight_decay: float, eps: float = 1e-6) -> None:
        super().__init__(parameters, {"lr": 0.0, "betas": betas, "weight_decay": weight_decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One step; there is no closure."""
        for group in self.param_groups:
            first, second = group["betas"]
            for weights in group["params"]:
                gradient = weights.grad
                if gradient is None:
                    continue
                state = self.state[weights]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weights), torch.zeros_like(weights)
                    state["step"] = 0
                state["step"] += 1
                mean, square = state["exp_avg"].lerp_(gradient, 1 - first), state["exp_avg_sq"]
                square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
                update = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
                torch.div(mean, update, out=update).div_(1 - first ** state["step"])
                if weights.dim() > 1:
                    update.add_(weights, alpha=group["weight_decay"])
                    norms = torch.linalg.vector_norm(weights), torch.linalg.vector_norm(update)
                    update.mul_(_trust(*norms))
                weights.sub_(update, alpha=group["lr"])


def _trust(above: Tensor, below: Tensor) -> Tensor:
    """The ratio of two norms, 1 where one of them is 0; without waiting for the device."""
    return torch.where((above > 0) & (below > 0), above / below, torch.ones_like(above))


def state_of(optimiser: optim.Optimizer) -> dict[str, Any]:
    """What an optimiser has learnt, as :class:`dlhpc.train.position.TrainerState` has it: ``state`` and ``groups``."""
    whole = optimiser.state_dict()
    return {"state": whole["state"], "groups": [group["params"] for group in whole["param_groups"]]}


def restore_state(optimiser: optim.Optimizer, learnt: dict[str, Any]) -> None:
    """Put back what :func:`state_of` gave; ValueError if it is of other parameters.

    Tensors of a parameter's shape get its memory layout: fused steps go through all of them side by side.
    """
    whole = optimiser.state_dict()
    if [group["params"] for group in whole["param_groups"]] != learnt["groups"]:
        raise ValueError("the optimiser has other groups of parameters")
    parameters = [one for group in optimiser.param_groups for one in group["params"]]
    for number, entries in learnt["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                like = parameters[number]
                entries[name] = torch.empty_like(like).copy_(value) if value.shape == like.shape else value.clone()
    optimiser.load_state_dict({"state": learnt["state"], "param_groups": whole["param_groups"]})
