"""The learning rate over the training, as a pure function that needs no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlhpc.spec.models import LearningRate


def rate_at(settings: LearningRate, peak: float, progress: float, epoch: float) -> float:
    """The learning rate at ``progress`` (0 to 1 of the whole training) and ``epoch`` (finished epochs, for warm-up).

    ``peak`` is ``settings.base`` after scaling by ranks. With p = percent of the training (0 to 100), the policies are
    those of Caffe's ``SGDSolver::GetLearningRate`` (sgd_solver.cpp) with percents for iterations, as in NVIDIA DIGITS:

    ========= ===================================================================
    fixed     peak
    step      peak · γ^⌊p / step⌋
    multistep peak · γ^(how many of ``steps`` are ≤ p)
    exp       peak · γ^p
    inv       peak · (1 + γ · p)^(−power)
    poly      peak · (1 − p/100)^power
    sigmoid   peak / (1 + e^(γ · (p − step)))   — Caffe writes −γ; here a positive γ lets the rate fall
    cosine    final + (peak − final) · (1 + cos(π · p/100)) / 2   (Loshchilov & Hutter, SGDR, 2017, without restarts)
    linear    peak + (final − peak) · p/100
    ========= ===================================================================

    During the first ``warmup_epochs`` the result is multiplied by epoch / warmup_epochs (Goyal et al. 2017).
    """
    percent = 100.0 * progress
    gamma, power = settings.gamma, settings.power
    match settings.policy:
        case "fixed":
            rate = peak
        case "step":
            # The small addition lets 33 % of 300 steps be step 99, not 100, whatever the rounding.
            rate = peak * gamma ** math.floor(percent / settings.step + 1e-9)
        case "multistep":
            rate = peak * gamma ** sum(start <= percent + 1e-9 for start in settings.steps)
        case "exp":
            rate = peak * gamma**percent
        case "inv":
            rate = peak * (1 + gamma * percent) ** -power
        case "poly":
            rate = peak * max(0.0, 1 - progress) ** power
        case "sigmoid":
            slope = gamma * (percent - settings.step)
            rate = peak / (1 + math.exp(slope)) if slope < 700 else 0.0
        case "cosine":
            rate = settings.final + (peak - settings.final) * (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            rate = peak + (settings.final - peak) * progress
    if epoch < settings.warmup_epochs:
        rate *= epoch / settings.warmup_epochs
    return rate
