"""The optimisers of a spec as torch's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn, optim

from dlhpc.spec.models import Optimizer


def make_optimiser(settings: Optimizer, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """An optimiser for ``parameters`` with the spec's settings; its learning rate is set anew before every step.

    ``fused`` does a whole step in one kernel where torch has one (on CPU and on GPU); it computes element by element,
    so the result does not depend on threads.
    """
    chosen = list(parameters)
    decay = settings.weight_decay
    epsilon: dict[str, Any] = {} if settings.epsilon is None else {"eps": settings.epsilon}
    match settings.name:
        case "sgd" | "nesterov":
            momentum = 0.9 if settings.momentum is None else settings.momentum
            nesterov = settings.name == "nesterov"
            return optim.SGD(chosen, lr=0.0, momentum=momentum, weight_decay=decay, nesterov=nesterov, fused=True)
        case "adam":
            betas = settings.betas or (0.9, 0.999)
            return optim.Adam(chosen, lr=0.0, betas=betas, weight_decay=decay, fused=True, **epsilon)
        case "adamw":
            betas = settings.betas or (0.9, 0.999)
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
    raise AssertionError(settings.name)


def set_rate(optimiser: optim.Optimizer, rate: float) -> None:
    """Use this learning rate for the next step."""
    for group in optimiser.param_groups:
        group["lr"] = rate
