"""What each task is measured against: the result of knowing nothing, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Yardstick:
    """The measure that says whether a network is any good, and what guessing gets by it. All of them rise."""

    measure: str
    """As the curves call it, of the split ``val``."""
    english: str
    japanese: str
    guess: float
    """What guessing gets."""
    error: float
    """How far that may stray: a standard error where one is known."""
    loss: float | None
    """The loss of guessing; None where that is not known beforehand."""
    guess_english: str
    guess_japanese: str
    show: Callable[[float], str]
    """The measure as people read it."""


def yardstick(task: str, classes: int, truths: Sequence[int] | None = None, *, several: bool = False) -> Yardstick:
    """The yardstick of a task; ``truths`` are the validation samples of each class where they are known, ``several``
    is a classification with several labels.

    Classification: the accuracy of always naming the commonest class, and the entropy of the classes as loss. Where
    counts are not known, classes are taken to be equally common.
    """
    match task:
        case "regression":  # R² of the mean is 0 and, for standardised targets, so is its squared error 1
            return Yardstick(
                "r2", "R²", "決定係数R²", 0.0, 0.02, 1.0, "always saying the mean", "平均値を答えるだけの場合", _plain
            )
        case "detection":
            return Yardstick(
                "ap50", "AP50", "平均適合率AP50", 0.0, 0.003, None, "finding nothing", "何も検出しない場合", percent
            )
    if several:
        return Yardstick(
            "f1_micro",
            "F1",
            "F値",
            0.0,
            0.02,
            math.log(2) * max(classes, 1),
            "naming nothing",
            "何も答えない場合",
            percent,
        )
    chance, error, loss = guessing(classes, truths)
    return Yardstick(
        "accuracy",
        "accuracy",
        "正答率",
        chance,
        error,
        loss,
        f"guessing ({percent(chance)})",
        f"当てずっぽう（正答率{percent(chance)}）",
        percent,
    )


def guessing(classes: int, truths: Sequence[int] | None = None) -> tuple[float, float, float]:
    """Accuracy, its standard error, and cross-entropy of knowing only how common each class is.

    The error is an assumed one where the number of samples is not known.
    """
    total = sum(truths or ())
    if truths is None or total == 0:
        chance = 1 / max(classes, 2)
        return chance, chance / 6, -math.log(chance)
    shares = [count / total for count in truths if count > 0]
    chance = max(shares)
    entropy = -sum(share * math.log(share) for share in shares)
    return chance, math.sqrt(chance * (1 - chance) / total), max(entropy, 1e-6)


def percent(share: float, digits: int = 1) -> str:
    """``97.5%``; it never rounds up to 100 % what is less."""
    shown = round(share * 100, digits)
    return f"{shown - 10.0**-digits if shown == 100 and share < 1 else shown:.{digits}f}%"


def _plain(value: float) -> str:
    return f"{value:.3f}"
