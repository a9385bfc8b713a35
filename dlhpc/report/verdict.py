"""What the curves say, in words: does the network learn, over-fit, diverge, or not learn at all?

All functions are pure. A curve is judged after smoothing, against thresholds that scale with the problem:

* *Smoothing* is a running median: it keeps a sudden jump where it is and removes single outliers.
* *Noise* σ is estimated from the differences of neighbouring raw values (median absolute deviation × 1.4826 / √2),
  which a slow trend hardly touches.
* *Guessing* is where every network starts: always naming the commonest class, always saying the mean, finding nothing;
  see :mod:`dlhpc.report.yardstick`.
* The *scale* of a loss curve is how far it has come down from guessing (or its start, if higher) to its lowest value.
  A rise counts only if it exceeds all of: a tenth of that scale, a twentieth of the lowest value, and 3 σ. So a good
  validation loss that trembles between 0.10 and 0.12 is not called over-fitting where guessing costs 3.7.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from dlhpc.report.yardstick import Yardstick
from dlhpc.runs.curves import Point
from dlhpc.runs.measures import rises

FEWEST_POINTS = 3
"""With fewer finite validation losses than this nothing is said about trends."""
RISE_OF_SCALE = 0.10
RISE_OF_LOWEST = 0.05
RISE_IN_SIGMA = 3.0
MEMORISED = 0.30
"""A training loss that fell by this fraction has learnt something about its own pictures."""
GAP = 0.15
"""So much more accuracy on training pictures asks for more of them."""
BLOWN_UP = 3.0
"""A last loss this many times above guessing and above the start is divergence, without waiting for a second one."""


class VerdictKind(StrEnum):
    """The one word for a set of curves."""

    TOO_EARLY = "too early"
    LEARNS = "learns"
    OVERFITS = "over-fits"
    DIVERGES = "diverges"
    DOES_NOT_LEARN = "does not learn"


@dataclass(frozen=True)
class Verdict:
    """What to tell the user. ``since_epoch`` is where it began: of learning, of over-fitting, of diverging."""

    kind: VerdictKind
    since_epoch: float | None
    best_epoch: float | None
    """See :func:`best_epoch`."""
    sentence: str
    advice: str
    so_far: tuple[float, float] | None = None
    """Epochs reached and planned, of a training that is not over."""
    by: Yardstick | None = None
    """What it was judged by."""
    guessed: bool = False
    """Validation is no better than guessing."""
    value: float | None = None
    """The yardstick's measure at the best epoch of a network that learns."""
    gap: float | None = None
    """By how much its training accuracy is higher there, if that matters."""
    still_falling: bool = False
    has_training: bool = True
    """Whether there is a training loss beside the validation loss."""


@dataclass(frozen=True)
class Series:
    """One curve: rising epochs and their values, NaN where a value was not finite."""

    epochs: tuple[float, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    def finite(self) -> Series:
        """Without the values that are not finite."""
        kept = [(epoch, value) for epoch, value in zip(self.epochs, self.values) if math.isfinite(value)]
        return Series(tuple(epoch for epoch, _ in kept), tuple(value for _, value in kept))

    def at(self, epoch: float) -> float | None:
        """The value measured at ``epoch``, if it is finite."""
        found = [value for when, value in zip(self.epochs, self.values) if when == epoch]
        return found[-1] if found and math.isfinite(found[-1]) else None


def series(points: Sequence[Point], split: str, name: str) -> Series:
    """One curve out of all points, in the order of its steps."""
    own = sorted(
        (point for point in points if (point.split, point.name) == (split, name)), key=lambda point: point.step
    )
    return Series(tuple(point.epoch for point in own), tuple(point.value for point in own))


@dataclass(frozen=True)
class Trend:
    """A smoothed loss curve and what counts as a real rise in it."""

    curve: Series
    smooth: tuple[float, ...]
    threshold: float

    @property
    def lowest(self) -> int:
        """Index of the lowest smoothed value."""
        return min(range(len(self.smooth)), key=lambda index: self.smooth[index])

    @property
    def end(self) -> float:
        """Median of the last three values, or the last smoothed one if that is lower: a short steep fall is no rise."""
        return min(statistics.median(self.curve.values[-3:]), self.smooth[-1])

    @property
    def rises(self) -> bool:
        return self.end - self.smooth[self.lowest] > self.threshold

    @property
    def rises_since(self) -> float:
        """Epoch of the first value, after the last low one, that is above half the threshold."""
        limit = self.smooth[self.lowest] + self.threshold / 2
        last_low = max(index for index, value in enumerate(self.curve.values) if value <= limit)
        return self.curve.epochs[min(last_low + 1, len(self.curve) - 1)]

    @property
    def lowest_epoch(self) -> float:
        """Epoch of the lowest measured value next to the lowest smoothed one."""
        near = range(max(0, self.lowest - 1), min(len(self.curve), self.lowest + 2))
        return self.curve.epochs[min(near, key=lambda index: self.curve.values[index])]


def trend(curve: Series, guess_loss: float) -> Trend:
    """Smooth a loss curve (finite, not empty) and set its threshold; see the top of this module."""
    count = len(curve)
    width = 3 if count < 20 else 5 if count < 60 else 9
    half = width // 2
    smooth = tuple(statistics.median(curve.values[max(0, i - half) : i + half + 1]) for i in range(count))
    lowest = min(smooth)
    scale = max(curve.values[0], guess_loss) - lowest
    return Trend(curve, smooth, max(RISE_OF_SCALE * scale, RISE_OF_LOWEST * abs(lowest), RISE_IN_SIGMA * noise(curve)))


def noise(curve: Series) -> float:
    """Robust σ of the trembling between neighbouring values; 0 for fewer than four values."""
    steps = [after - before for before, after in zip(curve.values, curve.values[1:])]
    if len(steps) < 3:
        return 0.0
    middle = statistics.median(steps)
    return 1.4826 / math.sqrt(2) * statistics.median(abs(step - middle) for step in steps)


def best_epoch(points: Sequence[Point], measure: str = "accuracy") -> float | None:
    """Epoch of the best validation by ``measure``, ties to the lower loss; of the lowest loss where it is unknown."""
    losses = series(points, "val", "loss")
    values = series(points, "val", measure).finite()
    sign = -1 if rises(measure) else 1
    if len(values):
        ranked = [(sign * value, losses.at(epoch) or 0.0, epoch) for epoch, value in zip(values.epochs, values.values)]
        return min(ranked)[2]
    finite = losses.finite()
    return min(zip(finite.values, finite.epochs))[1] if len(finite) else None


def judge(
    points: Sequence[Point], by: Yardstick, *, epochs: float | None = None, best_by: str | None = None
) -> Verdict:
    """Judge the curves of a task by its yardstick.

    ``epochs`` is how many were planned, for "so far"; ``best_by`` the measure that says which epoch is the best, if it
    is not the yardstick's.
    """
    train, val = series(points, "train", "loss"), series(points, "val", "loss")
    best = best_epoch(points, best_by or by.measure)
    first = next((value for value in (*val.values, *train.values) if math.isfinite(value)), 1.0)
    guess_loss = first if by.loss is None else by.loss
    blown = [since for since in (_blown_up(train, guess_loss), _blown_up(val, guess_loss)) if since is not None]
    if blown:
        return replace(_diverges(min(blown), best, "a loss is no longer a finite, sensible number"), by=by)

    train, val = train.finite(), val.finite()
    if len(val) < FEWEST_POINTS:
        return replace(_too_early(len(val), best), by=by)
    reached = val.epochs[-1]
    verdict = replace(_judge_trends(points, train, val, best, by, guess_loss), by=by)
    if epochs is None or reached >= epochs:
        return verdict
    text = verdict.sentence[0].lower() + verdict.sentence[1:]
    return replace(
        verdict,
        so_far=(reached, epochs),
        sentence=f"So far (epoch {show(reached)} of {show(epochs)}): {text}",
    )


def _judge_trends(
    points: Sequence[Point], train: Series, val: Series, best: float | None, by: Yardstick, guess_loss: float
) -> Verdict:
    """Judge loss curves without values that are not finite."""
    val_trend = trend(val, guess_loss)
    train_trend = trend(train, guess_loss) if len(train) >= FEWEST_POINTS else None
    if train_trend is not None and train_trend.rises:
        return _diverges(train_trend.rises_since, best, "the training loss rises instead of falling")

    measured = series(points, "val", by.measure).finite()
    learnt_since = _better_than_guessing(measured, val, by, guess_loss)
    memorises = train_trend is not None and _fell(train_trend, guess_loss) >= MEMORISED
    if val_trend.rises and train_trend is not None and (learnt_since is not None or memorises):
        return _overfits(val_trend.lowest_epoch, best)
    if learnt_since is None:
        if val_trend.rises and not memorises:
            return _diverges(val_trend.rises_since, best, "the validation loss rises and nothing is learnt")
        return _memorises(val.epochs[0], best, by) if memorises else _does_not_learn(best, by)
    return _learns(points, learnt_since, best, val_trend, by)


def _blown_up(curve: Series, guess_loss: float) -> float | None:
    """Epoch since when the curve ends in values that are not finite or are absurd; None if it does not."""
    first = next((value for value in curve.values if math.isfinite(value)), guess_loss)
    limit = BLOWN_UP * max(guess_loss, first)
    since: float | None = None
    for epoch, value in zip(reversed(curve.epochs), reversed(curve.values)):
        if math.isfinite(value) and value <= limit:
            break
        since = epoch
    return since


def _fell(falling: Trend, guess_loss: float) -> float:
    """Fraction of its start (or of guessing, if that is higher) by which a loss came down."""
    start = max(falling.curve.values[0], guess_loss)
    return (start - falling.smooth[falling.lowest]) / start


def _better_than_guessing(measured: Series, losses: Series, by: Yardstick, guess_loss: float) -> float | None:
    """Since which epoch two measurements in a row (or the last) beat guessing; None if that never happened.

    The measure must beat it by three standard errors; without one the loss must be a tenth lower.
    """
    if len(measured):
        beats = [value > by.guess + 3 * by.error for value in measured.values]
        epochs = measured.epochs
    else:
        beats = [value < 0.9 * guess_loss for value in losses.values]
        epochs = losses.epochs
    for index, epoch in enumerate(epochs):
        if all(beats[index : index + 2]):
            return epoch
    return None


def show(number: float) -> str:
    """An epoch as people write it: 12, 0.5, 33.25."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _too_early(count: int, best: float | None) -> Verdict:
    have = {0: "There is no validation result yet", 1: "There is one validation result"}
    return Verdict(
        VerdictKind.TOO_EARLY,
        None,
        best,
        f"{have.get(count, f'There are {count} validation results')}: too few to judge the curves.",
        f"Wait for at least {FEWEST_POINTS} validations, then write the report again.",
    )


def _diverges(since: float, best: float | None, what: str) -> Verdict:
    return Verdict(
        VerdictKind.DIVERGES,
        since,
        best,
        f"The training diverges from epoch {show(since)}: {what}.",
        "Lower learning_rate.base by a factor of 3 to 10, or add learning_rate.warmup_epochs. If that does not help, "
        "look for damaged or wrongly labelled pictures.",
    )


def _overfits(since: float, best: float | None) -> Verdict:
    keep = f" The checkpoint with the best validation result (epoch {show(best)}) is kept." if best is not None else ""
    return Verdict(
        VerdictKind.OVERFITS,
        since,
        best,
        f"The network over-fits from epoch {show(since)}: the training loss goes on falling while the validation "
        "loss rises. It learns its training pictures by heart.",
        "Add pictures or augmentation (augment.flip_horizontal, augment.shift_pixels), raise optimizer.weight_decay, "
        f"choose a smaller network, or train for fewer epochs.{keep}",
    )


def _memorises(since: float, best: float | None, by: Yardstick) -> Verdict:
    return Verdict(
        VerdictKind.OVERFITS,
        since,
        best,
        f"The network over-fits from the start (epoch {show(since)}): the training loss falls, but validation "
        f"stays no better than {by.guess_english}.",
        "Check that training and validation pictures show the same things and have the right labels; then add pictures "
        "or augmentation, or choose a smaller network.",
        guessed=True,
    )


def _does_not_learn(best: float | None, by: Yardstick) -> Verdict:
    return Verdict(
        VerdictKind.DOES_NOT_LEARN,
        None,
        best,
        f"The network does not learn: its validation results are no better than {by.guess_english}.",
        "Try learning_rate.base 10 times lower and 10 times higher, another network or optimizer.name: adam, and more "
        "epochs. Check that the labels are right.",
        guessed=True,
    )


def _learns(points: Sequence[Point], since: float, best: float | None, val: Trend, by: Yardstick) -> Verdict:
    value = series(points, "val", by.measure).at(best) if best is not None else None
    reached = (
        f"; validation {by.english} is highest at epoch {show(best)} with {by.show(value)}"
        if value is not None and best is not None
        else ""
    )
    two_thirds = val.smooth[2 * (len(val.smooth) - 1) // 3]
    still_falling = two_thirds - val.end > max(val.threshold / 2, 0.05 * abs(two_thirds))
    has_training = len(series(points, "train", "loss")) > 0
    falls = "training and validation loss both fall" if has_training else "the validation loss falls"
    if still_falling:
        advice = "The validation loss is still falling: more epochs may give a better network."
    else:
        advice = "The validation loss has settled: more epochs alone would change little."
    gap = _gap(points, best)
    if gap is not None:
        advice += (
            f" Training accuracy is {gap * 100:.0f} points above validation accuracy: more pictures or augmentation "
            "would help most."
        )
    return Verdict(
        VerdictKind.LEARNS,
        since,
        best,
        f"The network learns: {falls}{reached}.",
        advice,
        value=value,
        gap=gap,
        still_falling=still_falling,
        has_training=has_training,
    )


def _gap(points: Sequence[Point], best: float | None) -> float | None:
    """Training minus validation accuracy at the best epoch, if it is more than ``GAP``."""
    if best is None:
        return None
    train = series(points, "train", "accuracy").at(best)
    val = series(points, "val", "accuracy").at(best)
    return train - val if train is not None and val is not None and train - val > GAP else None
