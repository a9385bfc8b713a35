"""The learning rate over the training."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from dlhpc.spec.models import LearningRate
from dlhpc.train.schedule import rate_at


def at(percent: float, epoch: float = 99.0, peak: float = 0.1, **settings: object) -> float:
    return rate_at(LearningRate.model_validate(settings), peak, percent / 100, epoch)


@pytest.mark.parametrize(
    ("settings", "percent", "expected"),
    [
        ({"policy": "fixed"}, 70, 0.1),
        ({"policy": "step", "step": 33, "gamma": 0.1}, 32.9, 0.1),
        ({"policy": "step", "step": 33, "gamma": 0.1}, 33, 0.01),
        ({"policy": "step", "step": 33, "gamma": 0.1}, 99.5, 0.0001),
        ({"policy": "multistep", "steps": [50, 85], "gamma": 0.5}, 49, 0.1),
        ({"policy": "multistep", "steps": [50, 85], "gamma": 0.5}, 50, 0.05),
        ({"policy": "multistep", "steps": [50, 85], "gamma": 0.5}, 90, 0.025),
        ({"policy": "exp", "gamma": 0.95}, 10, 0.1 * 0.95**10),
        ({"policy": "inv", "gamma": 0.1, "power": 0.5}, 30, 0.1 * (1 + 3) ** -0.5),
        ({"policy": "poly", "power": 3}, 50, 0.0125),
        ({"policy": "sigmoid", "step": 50, "gamma": 0.1}, 50, 0.05),
        ({"policy": "sigmoid", "step": 50, "gamma": 0.1}, 0, 0.1 / (1 + math.exp(-5))),
        ({"policy": "sigmoid", "step": 50, "gamma": 1000}, 100, 0.0),
        ({"policy": "cosine", "final": 0.02}, 0, 0.1),
        ({"policy": "cosine", "final": 0.02}, 50, 0.06),
        ({"policy": "cosine", "final": 0.02}, 100, 0.02),
        ({"policy": "linear", "final": 0.02}, 50, 0.06),
    ],
)
def test_each_policy_is_its_formula(settings: dict[str, object], percent: float, expected: float) -> None:
    assert at(percent, **settings) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_warm_up_rises_from_zero_whatever_the_policy() -> None:
    rates = [at(0, epoch, policy="fixed", warmup_epochs=4) for epoch in (0, 1, 2, 4, 5)]
    assert rates == pytest.approx([0, 0.025, 0.05, 0.1, 0.1])


def test_a_third_of_three_hundred_steps_is_step_ninety_nine() -> None:
    rates = [at(100 * step / 300, policy="step", step=33) for step in (98, 99)]
    assert rates == pytest.approx([0.1, 0.01])


def test_a_preview_needs_no_torch() -> None:
    code = "import sys, dlhpc.train.schedule, dlhpc.runs.checkpoints; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
