"""The names of measured numbers: which of them should rise, and by which one each task is judged."""

from __future__ import annotations

import math

RISING = {"accuracy", "top5", "precision", "recall", "f1", "ap", "map", "digits", "r2"}
"""First words, without the number of a threshold, of what is the better the higher it is; losses and errors should
fall."""

DEFAULT_BEST = {"classification": "val_accuracy", "detection": "val_ap50", "regression": "val_rmse"}
"""Task → the measure that says which checkpoint is the best, unless the spec names another."""


HEADLINES = ("val_accuracy", "val_f1_micro", "val_ap50", "val_rmse", "val_r2")
"""What people look at first, besides the losses."""


def rises(measure: str) -> bool:
    """Whether a higher ``val_accuracy``, ``val_ap50``, ``train_loss`` … is better.

    >>> rises("val_top5_accuracy"), rises("val_ap50"), rises("val_loss_bbox"), rises("val_rmse")
    (True, True, False, False)
    """
    name = measure.partition("_")[2] if measure.startswith(("train_", "val_", "unseen_")) else measure
    first = name.partition("_")[0]
    return first in RISING or first.rstrip("0123456789") in RISING


def better(measure: str, value: float, than: float) -> bool:
    """Whether ``value`` beats ``than``; what is not finite never does."""
    if not math.isfinite(value):
        return False
    return not math.isfinite(than) or (value > than if rises(measure) else value < than)


def measure_in_words(name: str, value: float) -> str:
    """``val accuracy 96.3 %``, ``val loss 0.311``."""
    shown = f"{100 * value:.1f} %" if "accuracy" in name else f"{value:#.3g}" if "rmse" in name else f"{value:.3f}"
    return f"{name.replace('_', ' ')} {shown}"
