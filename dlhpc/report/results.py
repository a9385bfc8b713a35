"""Results of detection, regression and several labels: a table of classes or targets, and a drawing of each.

(Classification by one class has tables of its own, in ``classes``.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlhpc.report.figures import MARK, TRAIN, VAL, WIDTH, Figure, drawing, dressed

MOST_DRAWN = 12
"""Targets of which truth and prediction are drawn."""

COLORS = (TRAIN, VAL, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", MARK)

_HEADS = {
    "name": "Name", "count": "There", "found": "Found", "named": "Named", "right": "Right", "wrong": "Wrong",
    "true": "There", "precision": "Precision", "recall": "Recall", "f1": "F1", "ap": "AP", "ap50": "AP50",
    "ap75": "AP75", "mae": "Mean absolute error", "rmse": "RMSE", "r2": "R²", "mean": "Mean in training",
    "std": "σ in training", "mean_predictor_mae": "The mean's absolute error", "mean_predictor_rmse": "The mean's RMSE",
    "mean_predictor_r2": "The mean's R²",
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """How the best checkpoint did on a split."""

    task: str
    epoch: float
    rows: tuple[Mapping[str, Any], ...]
    """A class or target each: name, then numbers (None where there was nothing to be counted)."""
    pairs: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """Regression: target → truth and prediction of some samples."""
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """Detection: class → recall and precision."""

    @property
    def columns(self) -> list[str]:
        """Of all rows, in order."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def head(self, column: str) -> str:
        """A column in words."""
        return _HEADS.get(column, column.replace("_", " "))


def as_result(value: Any) -> Result:
    """Check and convert ``evaluation.json``; raises ValueError, TypeError or KeyError for anything unexpected."""
    given = value.get("per_class") or value.get("targets") or []
    curves = {str(row["name"]): _pairs(row["curve"]) for row in given if row.get("curve")}
    pairs = {str(name): _pairs(some) for name, some in (value.get("pairs") or {}).items()}
    return Result(str(value["task"]), float(value["epoch"]), tuple(_row(row) for row in given), pairs, curves)


def _row(given: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, Mapping):
            row |= {f"{key}_{below}": _number(one) for below, one in value.items()}
        elif not isinstance(value, list):
            row[str(key)] = str(value) if key == "name" else _number(value)
    return row


def _number(value: Any) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(float(value)) else None


def _pairs(given: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return [(float(first), float(second)) for first, second in given]


def result_figures(result: Result) -> list[Figure]:
    """Prediction against truth of each target, or precision against recall of each class."""
    found = [_against_truth(number, name, some) for number, (name, some) in enumerate(result.pairs.items()) if some]
    if result.curves:
        found.append(_precision_recall(result.curves))
    return found[:MOST_DRAWN]


def _against_truth(number: int, name: str, pairs: Sequence[tuple[float, float]]) -> Figure:
    import altair as alt

    rows = [{"truth": truth, "prediction": said} for truth, said in pairs if math.isfinite(truth + said)]
    ends = [value for row in rows for value in row.values()] or [0.0, 1.0]
    scale = alt.Scale(domain=[min(ends), max(ends)], nice=True)
    x = alt.X("truth:Q", title=f"{name}, truth", scale=scale)
    y = alt.Y("prediction:Q", title=f"{name}, prediction", scale=scale)
    diagonal = [{"truth": end, "prediction": end} for end in (min(ends), max(ends))]
    line = alt.Chart(alt.InlineData(values=diagonal)).mark_line(color=MARK, strokeDash=[4, 3]).encode(x=x, y=y)
    tooltip = [alt.Tooltip("truth:Q", format=".5~g"), alt.Tooltip("prediction:Q", format=".5~g")]
    dots = alt.Chart(alt.InlineData(values=rows)).mark_point(filled=True, size=30, color=TRAIN, opacity=0.6)
    chart = alt.layer(line, dots.encode(x=x, y=y, tooltip=tooltip)).properties(width=420, height=420)
    return _figure(
        f"truth-{number}", f"{name}: prediction against truth", "予測値と正解", chart,
        f"{name}: {len(rows)} samples, prediction against truth; on the dashed line both are equal.",
    )  # fmt: skip


def _precision_recall(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    import altair as alt

    rows = [
        {"class": name, "recall": recall, "precision": precision}
        for name, some in curves.items()
        for recall, precision in some
    ]
    names = list(curves)
    colors = alt.Scale(domain=names, range=[COLORS[number % len(COLORS)] for number in range(len(names))])
    ends = alt.Scale(domain=[0, 1.02], nice=False)
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(strokeWidth=2.2, clip=True)
        .encode(
            x=alt.X("recall:Q", title="Recall", scale=ends),
            y=alt.Y("precision:Q", title="Precision", scale=ends),
            color=alt.Color("class:N", scale=colors, legend=alt.Legend(title=None, orient="top")),
            tooltip=[alt.Tooltip("class:N"), alt.Tooltip("recall:Q"), alt.Tooltip("precision:Q")],
        )
        .properties(width=WIDTH, height=260)
    )
    about = f"Precision against recall of {len(names)} class{'' if len(names) == 1 else 'es'}."
    return _figure("precision-recall", "Precision against recall", "適合率と再現率", chart, about)


def _figure(name: str, title: str, japanese: str, chart: Any, about: str) -> Figure:
    spec: dict[str, Any] = {"description": about, **dressed(chart).to_dict()}
    return Figure(name, title, japanese, about, drawing(name, spec), spec)
