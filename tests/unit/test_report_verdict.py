"""What the report says about typical and nasty curves."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlhpc.report.japanese import verdict_in_japanese
from dlhpc.report.verdict import Verdict, VerdictKind, best_epoch, judge
from dlhpc.report.yardstick import percent, yardstick
from dlhpc.runs.curves import Point

Curve = Callable[[float], float]


def curves(
    train: Curve | None, val: Curve | None, accuracy: Curve | None = None, *, epochs: int, every: float = 1.0
) -> list[Point]:
    """Points of the three curves at every validation."""
    points = []
    for index in range(1, round(epochs / every) + 1):
        epoch = index * every
        for split, name, curve in (("train", "loss", train), ("val", "loss", val), ("val", "accuracy", accuracy)):
            if curve is not None:
                points.append(Point(epoch, index * 10, split, name, curve(epoch), 0.0))
    return points


def trembling(curve: Curve, sigma: float, seed: int) -> Curve:
    noise = random.Random(seed)
    return lambda epoch: max(0.0, curve(epoch) + noise.gauss(0, sigma))


def fall(start: float, end: float, epochs: float) -> Curve:
    return lambda epoch: end + (start - end) * math.exp(-epoch / epochs)


def say(points: Sequence[Point], classes: int = 10, **more: float) -> Verdict:
    each = int(more.get("val_count", 200)) // classes
    return judge(points, yardstick("classification", classes, [each] * classes), epochs=more.get("epochs"))


def test_a_good_training_learns() -> None:
    verdict = say(curves(fall(2.3, 0.1, 5), fall(2.3, 0.2, 5), lambda e: 1 - math.exp(-e / 5), epochs=30))
    assert verdict.kind == VerdictKind.LEARNS
    assert verdict.best_epoch == 30
    assert "both fall" in verdict.sentence
    assert "99.8%" in verdict.sentence
    assert "settled" in verdict.advice


def test_a_training_cut_short_is_told_to_go_on() -> None:
    verdict = say(curves(fall(2.3, 0.1, 20), fall(2.3, 0.2, 20), lambda e: min(0.9, 0.1 + e / 20), epochs=12))
    assert verdict.kind == VerdictKind.LEARNS
    assert "more epochs may" in verdict.advice


@pytest.mark.parametrize("count", [3, 4, 5, 6, 8])
@pytest.mark.parametrize("step", [0.5, 1.0])
def test_a_short_steep_fall_is_learning_and_goes_on(count: int, step: float) -> None:
    def loss(epoch: float) -> float:
        return 0.1 + step * (count - epoch)

    verdict = say(curves(loss, loss, lambda e: 0.5 + e / 20, epochs=count))
    assert verdict.kind == VerdictKind.LEARNS
    assert "still falling" in verdict.advice


@pytest.mark.parametrize("seed", range(20))
def test_noise_around_a_good_curve_is_not_over_fitting(seed: int) -> None:
    points = curves(
        trembling(fall(3.7, 0.02, 6), 0.02, seed),
        trembling(fall(3.7, 0.15, 6), 0.06, seed + 1),
        trembling(lambda e: 0.97 * (1 - math.exp(-e / 6)), 0.01, seed + 2),
        epochs=60,
    )
    assert say(points, classes=40, val_count=80).kind == VerdictKind.LEARNS


@pytest.mark.parametrize("seed", range(20))
def test_classic_over_fitting_is_found_with_its_epoch(seed: int) -> None:
    points = curves(
        trembling(fall(2.3, 0.01, 8), 0.02, seed),
        trembling(lambda e: fall(2.3, 1.0, 4)(e) + max(0.0, e - 15) * 0.04, 0.04, seed + 1),
        trembling(lambda e: min(0.65, e / 20), 0.01, seed + 2),
        epochs=50,
    )
    verdict = say(points)
    assert verdict.kind == VerdictKind.OVERFITS
    assert verdict.since_epoch is not None
    assert 9 <= verdict.since_epoch <= 20
    assert "training loss goes on falling while the validation loss rises" in verdict.sentence
    assert "augmentation" in verdict.advice


def test_learning_by_heart_without_any_use_is_over_fitting_from_the_start() -> None:
    verdict = say(curves(fall(2.3, 0.1, 5), lambda e: 2.31, lambda e: 0.1, epochs=20))
    assert (verdict.kind, verdict.since_epoch) == (VerdictKind.OVERFITS, 1)
    assert "guessing" in verdict.sentence


@pytest.mark.parametrize("at", [2, 7, 20])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_divergence_from_that_epoch(at: int, bad: float) -> None:
    verdict = say(curves(lambda e: bad if e >= at else 1.0, fall(2.3, 1, 5), lambda e: 0.5, epochs=20))
    assert (verdict.kind, verdict.since_epoch) == (VerdictKind.DIVERGES, at)
    assert "learning_rate.base" in verdict.advice


@pytest.mark.parametrize("at", [5, 12, 25])
@pytest.mark.parametrize("seed", range(5))
def test_a_jump_of_the_training_loss_is_divergence_from_that_epoch(at: int, seed: int) -> None:
    curve = trembling(lambda e: 2.3 if e >= at else fall(2.3, 0.5, 3)(e), 0.02, seed)
    verdict = say(curves(curve, curve, lambda e: 0.1 if e >= at else 0.6, epochs=30))
    assert (verdict.kind, verdict.since_epoch) == (VerdictKind.DIVERGES, at)


def test_an_absurd_last_loss_is_enough() -> None:
    verdict = say(curves(lambda e: 1e5 if e == 6 else 2.0, lambda e: 2.0, lambda e: 0.3, epochs=6))
    assert (verdict.kind, verdict.since_epoch) == (VerdictKind.DIVERGES, 6)


def test_a_single_bad_validation_in_between_is_forgiven() -> None:
    verdict = say(
        curves(fall(2.3, 0.1, 5), lambda e: math.inf if e == 3 else fall(2.3, 0.2, 5)(e), lambda e: 0.8, epochs=20)
    )
    assert verdict.kind == VerdictKind.LEARNS


@pytest.mark.parametrize("seed", range(20))
def test_guessing_is_not_learning(seed: int) -> None:
    points = curves(
        trembling(lambda e: 2.303, 0.01, seed),
        trembling(lambda e: 2.303, 0.005, seed + 1),
        trembling(lambda e: 0.1, 0.02, seed + 2),
        epochs=25,
    )
    verdict = say(points)
    assert (verdict.kind, verdict.since_epoch) == (VerdictKind.DOES_NOT_LEARN, None)
    assert "10.0%" in verdict.sentence


def test_always_naming_the_commonest_class_is_guessing() -> None:
    points = curves(lambda e: 0.33, lambda e: 0.33, lambda e: 0.9, epochs=10)
    assert judge(points, yardstick("classification", 2, [90, 10])).kind == VerdictKind.DOES_NOT_LEARN


def test_a_constant_curve_that_is_good_is_no_fault() -> None:
    assert say(curves(lambda e: 0.0, lambda e: 0.0, lambda e: 1.0, epochs=10)).kind == VerdictKind.LEARNS


@pytest.mark.parametrize(("epochs", "word"), [(0, "no validation"), (1, "one validation"), (2, "2 validation")])
def test_too_few_points_are_said_to_be_too_few(epochs: int, word: str) -> None:
    verdict = say(curves(fall(2, 1, 1), fall(2, 1, 1), lambda e: 0.5, epochs=epochs))
    assert verdict.kind == VerdictKind.TOO_EARLY
    assert word in verdict.sentence


def test_an_unfinished_training_is_judged_so_far() -> None:
    verdict = say(curves(fall(2.3, 0.1, 5), fall(2.3, 0.2, 5), lambda e: 0.8, epochs=10), epochs=60)
    assert verdict.sentence.startswith("So far (epoch 10 of 60): the network learns")


def test_without_training_losses_the_validation_still_counts() -> None:
    assert say(curves(None, fall(2.3, 0.2, 5), None, epochs=20)).kind == VerdictKind.LEARNS


def test_validations_within_an_epoch_keep_their_fractions() -> None:
    points = curves(
        fall(2.3, 0.01, 2), lambda e: 1 + abs(e - 3.5), lambda e: 0.6 - abs(e - 3.5) / 10, epochs=8, every=0.5
    )
    verdict = say(points)
    assert (verdict.kind, verdict.since_epoch, verdict.best_epoch) == (VerdictKind.OVERFITS, 3.5, 3.5)
    assert "epoch 3.5" in verdict.sentence


@pytest.mark.parametrize(
    ("points", "words", "remedy"),
    [
        (curves(fall(2, 1, 1), fall(2, 1, 1), lambda e: 0.5, epochs=2), "まだ少ない", "3回以上"),
        (curves(fall(2.3, 0.1, 5), fall(2.3, 0.2, 5), lambda e: e / 40, epochs=30), "第30エポックの75.0%", "横ばい"),
        (curves(fall(2.3, 0.1, 20), fall(2.3, 0.2, 20), lambda e: e / 20, epochs=12), "ともに下がって", "増やすと"),
        (curves(None, fall(2.3, 0.2, 5), None, epochs=30), "検証損失が下がっています", "横ばい"),
        (
            curves(fall(2.3, 0.01, 2), lambda e: 1 + abs(e - 5) / 5, lambda e: 0.6, epochs=12),
            "第5エポックから過学習しています",
            "augment.shift_pixels",
        ),
        (curves(fall(2.3, 0.1, 5), lambda e: 2.31, lambda e: 0.1, epochs=20), "当てずっぽう（正答率10.0%）", "ラベル"),
        (
            curves(lambda e: math.nan if e > 6 else 2.0, lambda e: 2.0, lambda e: 0.3, epochs=9),
            "第7エポックから学習が発散しています",
            "learning_rate.base",
        ),
        (curves(lambda e: 2.3, lambda e: 2.3, lambda e: 0.1, epochs=9), "学習できていません", "optimizer.name: adam"),
    ],
)
def test_the_japanese_verdict_says_the_same(points: list[Point], words: str, remedy: str) -> None:
    sentence, advice = verdict_in_japanese(say(points))
    assert words in sentence
    assert remedy in advice


def test_the_japanese_verdict_of_an_unfinished_training_says_so() -> None:
    points = curves(fall(2.3, 0.1, 5), fall(2.3, 0.2, 5), lambda e: 0.8, epochs=10)
    assert verdict_in_japanese(say(points, epochs=60))[0].startswith(
        "ここまで（60エポック中10エポック）の判定：学習は順調"
    )


@pytest.mark.parametrize(
    ("share", "digits", "text"), [(1, 1, "100.0%"), (0.9996, 1, "99.9%"), (0.997, 0, "99%"), (0.975, 1, "97.5%")]
)
def test_one_miss_is_no_hundred_percent(share: float, digits: int, text: str) -> None:
    assert percent(share, digits) == text


def test_the_order_of_lines_does_not_matter() -> None:
    points = curves(fall(2.3, 0.1, 5), fall(2.3, 0.2, 5), lambda e: 0.8, epochs=10)
    assert say(points[::-1]) == say(points)


def test_the_best_epoch_breaks_ties_by_the_lower_loss() -> None:
    points = curves(None, lambda e: 1 / e if e < 5 else e, lambda e: 0.9 if e >= 3 else 0.1, epochs=8)
    assert best_epoch(points) == 4
    assert best_epoch(curves(None, lambda e: abs(e - 2), None, epochs=5)) == 2
    assert best_epoch([]) is None


@given(
    st.lists(st.tuples(st.floats(), st.floats(), st.floats()), max_size=12),
    st.integers(0, 50),
    st.one_of(st.none(), st.lists(st.integers(0, 100))),
)
def test_no_curve_whatsoever_breaks_it(
    values: list[tuple[float, float, float]], classes: int, counts: list[int] | None
) -> None:
    points = [
        Point(float(epoch), epoch, split, name, row[column], 0.0)
        for epoch, row in enumerate(values)
        for column, (split, name) in enumerate((("train", "loss"), ("val", "loss"), ("val", "accuracy")))
    ]
    verdict = judge(points, yardstick("classification", classes, counts))
    assert verdict.sentence.endswith(".")
    assert verdict.advice


# --- Other tasks ------------------------------------------------------------------------------------------------


def measured(losses: Sequence[float], measure: str, values: Sequence[float]) -> list[Point]:
    return [
        Point(float(epoch), epoch, split, name, value, 0.0)
        for epoch, (loss, value) in enumerate(zip(losses, values), 1)
        for split, name, value in (("train", "loss", loss), ("val", "loss", loss), ("val", measure, value))
    ]


def test_a_regression_is_judged_against_the_mean() -> None:
    falling = [math.exp(-epoch / 5) for epoch in range(20)]
    learnt = judge(measured(falling, "r2", [1 - loss for loss in falling]), yardstick("regression", 0))
    assert learnt.sentence == (
        "The network learns: training and validation loss both fall; validation R² is highest at epoch 20 with 0.978."
    )
    assert "決定係数R²は第20エポックの0.978" in verdict_in_japanese(learnt)[0]
    nothing = judge(measured([1.0] * 20, "r2", [0.01, -0.01] * 10), yardstick("regression", 0))
    assert "no better than always saying the mean" in nothing.sentence


def test_a_regression_that_is_judged_by_its_error_is_best_where_that_is_lowest() -> None:
    points = measured([1.0, 0.5, 0.4, 0.45], "rmse", [9.0, 5.0, 4.0, 4.2])
    assert best_epoch(points, "rmse") == 3


def test_a_detection_is_judged_against_finding_nothing() -> None:
    falling = [8 * math.exp(-epoch / 5) for epoch in range(20)]
    learnt = judge(measured(falling, "ap50", [1 - loss / 8 for loss in falling]), yardstick("detection", 1))
    assert "validation AP50 is highest at epoch 20 with 97.8%" in learnt.sentence
    nothing = judge(measured([8.0] * 20, "ap50", [0.0] * 20), yardstick("detection", 1))
    assert "no better than finding nothing" in nothing.sentence
