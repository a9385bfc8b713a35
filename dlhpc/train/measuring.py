"""What becomes of measurements: points of the curves, the best checkpoint, the end by early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from dlhpc.errors import UserError
from dlhpc.files import replace_json
from dlhpc.runs.curves import Point, write_points
from dlhpc.runs.measures import DEFAULT_BEST, better, measure_in_words, rises
from dlhpc.spec.models import Spec
from dlhpc.train.attempt import Attempt
from dlhpc.train.checkpoint import name_of
from dlhpc.train.position import Best, Patience, Position
from dlhpc.train.tasks.base import Evaluation


def write_curves(attempt: Attempt, step: int, metrics: Mapping[str, float]) -> None:
    """One point for each of ``metrics``, named ``split_name``.

    They reach the disk before the next checkpoint's manifest does. Until then they may be lost with the machine, but
    then training goes on from an earlier checkpoint and measures them again.
    """
    now, epoch = time.time(), attempt.epoch_of(step)
    points = [Point(epoch, step, *_split_and_name(key), value=value, time=now) for key, value in metrics.items()]
    write_points(attempt.run.curves, points, durable=False)


def write_evaluation(attempt: Attempt, step: int, found: Evaluation) -> None:
    """The tables of the best validation so far."""
    head = {"task": attempt.spec.task, "split": "val", "epoch": attempt.epoch_of(step), "step": step}
    replace_json(attempt.run.evaluation, {**head, **found.metrics, **found.details})


def new_best(attempt: Attempt, position: Position, metrics: Mapping[str, float]) -> Best | None:
    """The validation just made, if it is the best of this run."""
    name = attempt.spec.training.best or DEFAULT_BEST[attempt.spec.task]
    value = _value(name, "training.best", metrics)
    loss, known = metrics["val_loss"], position.best
    if known is None:
        if not (better(name, value, math.nan) and math.isfinite(loss)):
            return None
    elif not known.beaten_by(value, loss):
        return None
    step = position.step
    return Best(name_of(step), attempt.epoch_of(step), step, name, value, loss)


def early_end(attempt: Attempt, position: Position, metrics: Mapping[str, float]) -> str | None:
    """Note in ``position`` whether validation got better; gives why training ends now, if it does."""
    settings = attempt.spec.training.early_stopping
    if settings is None:
        return None
    name = measure_of_patience(attempt.spec)
    value = _value(name, "training.early_stopping.metric", metrics)
    known = position.patience
    margin = settings.min_change if rises(name) else -settings.min_change
    if known is None or better(name, value, known.value + margin):
        position.patience = Patience(value, position.step)
        return None
    waited = attempt.epoch_of(position.step - known.step)
    if waited < settings.patience - 1e-9:
        return None
    best, since = measure_in_words(name, known.value), attempt.epoch_of(known.step)
    return f"early stopping: {best} after epoch {since:.4g} was not bettered for {waited:.4g} epochs"


def measure_of_patience(spec: Spec) -> str:
    """What early stopping looks at."""
    settings = spec.training.early_stopping
    return (settings and settings.metric) or spec.training.best or DEFAULT_BEST[spec.task]


def _value(name: str, setting: str, metrics: Mapping[str, float]) -> float:
    if name not in metrics:
        raise UserError(
            f"{setting} is {name}, which is not measured in this training",
            remedy=f"Choose one of: {', '.join(sorted(metrics))}.",
        )
    return metrics[name]


def _split_and_name(key: str) -> tuple[str, str]:
    """``val_top5_accuracy`` is ``top5_accuracy`` of the split ``val``."""
    split, _, name = key.partition("_")
    return split, name
