"""The curves as Altair charts: one definition gives the SVG in the page and the chart that can be zoomed.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which people with any colour vision tell apart, and
validation is dashed besides. Every point is drawn, none is left out or averaged.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlhpc.errors import UserError
from dlhpc.report.attempts import Resumption
from dlhpc.report.verdict import series
from dlhpc.runs.curves import Point

if TYPE_CHECKING:
    import altair

TRAIN, VAL, MARK = "#0072B2", "#D55E00", "#767676"
INK, GRID = "#444444", "#E3E3E3"
FONT = "system-ui, 'Liberation Sans', Arial, sans-serif"
WIDTH, HEIGHT = 860, 260
"""Pixels of a static chart, without axes."""
MARGIN, HEADROOM = 1.015, 1.14
"""Axes reach so much beyond the last and the highest value: dots are whole, and the words of marks stand free."""
FEW_POINTS = 80
"""Up to so many points of a curve are drawn as dots too; more would hide the line, and show only under the pointer."""
_DASHES = [[1, 0], [6, 3], [2, 2], [9, 3, 2, 3], [4, 1]]
WHOLE = "datum.value % 1 ? '' : format(datum.value, 'd')"
"""Labels for whole epochs only: below three epochs Vega sets ticks at halves, whatever the least step."""
ZOOM = "wheel![event.ctrlKey]"
"""A plain turn of the wheel scrolls the page; pinching on a touch pad comes as Ctrl + wheel."""


@dataclass(frozen=True)
class Figure:
    """A chart: its name (an HTML id), title, a sentence for those who cannot see it, and its two forms."""

    name: str
    title: str
    japanese: str
    alt: str
    svg: str
    spec: dict[str, Any]
    """Vega-Lite; ``usermeta.log`` is the scale for the page's switch to a logarithmic axis, where that can be drawn."""


@dataclass(frozen=True)
class _Curve:
    split: str
    name: str
    label: str
    color: str


@dataclass(frozen=True)
class _Chart:
    name: str
    title: str
    japanese: str
    axis: str
    curves: tuple[_Curve, ...]
    number_format: str
    best_label: bool = False
    log: bool = True


_CHARTS = (
    _Chart(
        "loss",
        "Loss",
        "損失（小さいほど良い）",
        "Loss",
        (_Curve("train", "loss", "training", TRAIN), _Curve("val", "loss", "validation", VAL)),
        ".4~g",
        best_label=True,
    ),
    _Chart(
        "accuracy",
        "Accuracy",
        "正答率（大きいほど良い）",
        "Accuracy (% of pictures)",
        (_Curve("train", "accuracy", "training", TRAIN), _Curve("val", "accuracy", "validation", VAL)),
        ".1%",
        best_label=True,
        log=False,
    ),
    _Chart(
        "detection",
        "Detection",
        "検出（大きいほど良い）",
        "Fraction",
        (
            _Curve("val", "ap50", "AP50", VAL),
            _Curve("val", "ap", "AP (.50:.95)", TRAIN),
            _Curve("val", "precision", "precision", "#009E73"),
            _Curve("val", "recall", "recall", "#CC79A7"),
            _Curve("val", "digits_map", "precision × recall, DIGITS' mAP", MARK),
        ),
        ".3f",
        best_label=True,
        log=False,
    ),
    _Chart(
        "parts",
        "Parts of the loss",
        "損失の内訳",
        "Loss",
        (
            _Curve("train", "loss_bbox", "boxes, training", TRAIN),
            _Curve("val", "loss_bbox", "boxes, validation", VAL),
            _Curve("train", "loss_coverage", "coverage, training", "#009E73"),
            _Curve("val", "loss_coverage", "coverage, validation", "#CC79A7"),
        ),
        ".4~g",
    ),
    _Chart(
        "error",
        "Error",
        "誤差（小さいほど良い）",
        "Error",
        (
            _Curve("train", "rmse", "RMSE, training", TRAIN),
            _Curve("val", "rmse", "RMSE, validation", VAL),
            _Curve("val", "mae", "mean absolute error, validation", "#009E73"),
        ),
        ".4~g",
        best_label=True,
    ),
    _Chart(
        "r2",
        "R², the explained part of the variance",
        "決定係数（大きいほど良い）",
        "R²",
        (_Curve("train", "r2", "training", TRAIN), _Curve("val", "r2", "validation", VAL)),
        ".4~g",
        log=False,
    ),
    _Chart(
        "labels",
        "F1 and average precision",
        "F値と平均適合率（大きいほど良い）",
        "Fraction",
        (
            _Curve("val", "f1_micro", "F1", VAL),
            _Curve("val", "f1_macro", "F1, mean over classes", TRAIN),
            _Curve("val", "map", "average precision, mean over classes", "#009E73"),
        ),
        ".3f",
        best_label=True,
        log=False,
    ),
    _Chart(
        "rate",
        "Learning rate",
        "学習率",
        "Learning rate",
        (_Curve("train", "learning_rate", "learning rate", TRAIN),),
        ".3~g",
    ),
)


def figures(points: Sequence[Point], *, best: float | None, resumed: Sequence[Resumption] = ()) -> list[Figure]:
    """Charts of the losses, accuracies and learning rate, as far as there are points.

    ``best`` is the best epoch, ``resumed`` where later attempts took over. Raises :class:`UserError` if Altair is not
    installed.
    """
    drawn = [(chart, rows) for chart in _CHARTS if (rows := _rows(points, chart))]
    if not drawn:
        return []
    last = max(row["epoch"] for _, rows in drawn for row in rows)
    found = []
    for chart, rows in drawn:
        alt = _alt(chart, rows, best)
        spec = {"description": alt, **_spec(chart, rows, best, resumed, last)}
        svg = drawing(chart.name, spec)
        found.append(Figure(chart.name, chart.title, chart.japanese, alt, svg, spec))
    return found


@functools.cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script that needs nothing else; it sets ``window.vegaEmbed``."""
    bundle: str = _converter().javascript_bundle()
    return bundle


def _converter() -> Any:
    try:
        import altair  # noqa: F401
        import vl_convert
    except ImportError as error:
        raise UserError(
            f"the figures need the Python package `{error.name}`, which is not installed here",
            remedy="Install it with: python -m pip install 'dlhpc[report]'",
        ) from error
    return vl_convert


def _rows(points: Sequence[Point], chart: _Chart) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for curve in chart.curves:
        found = series(points, curve.split, curve.name)
        rows += [
            {"epoch": epoch, "curve": curve.label, "value": value if math.isfinite(value) else None}
            for epoch, value in zip(found.epochs, found.values)
        ]
    return rows


def _spec(
    chart: _Chart, rows: list[dict[str, Any]], best: float | None, resumed: Sequence[Resumption], last: float
) -> dict[str, Any]:
    import altair as alt

    present = {row["curve"] for row in rows}
    curves = [curve for curve in chart.curves if curve.label in present]
    labels = [curve.label for curve in curves]
    accuracy = chart.name == "accuracy"
    top = 1.0 if accuracy else max((row["value"] for row in rows if row["value"] is not None), default=1.0) or 1.0
    bottom = min(0.0, *(row["value"] for row in rows if row["value"] is not None), 0.0)
    if chart.name == "r2":  # the first epochs may be far below zero, and say nothing
        bottom, top = max(bottom, -1.0), 1.0
    x = alt.X(
        "epoch:Q",
        title="Epoch",
        axis=alt.Axis(labelExpr=WHOLE, tickMinStep=1, labelFlush=False),
        scale=alt.Scale(domain=[0, last * MARGIN], nice=False),
    )
    y = alt.Y(
        "value:Q",
        title=chart.axis,
        axis=alt.Axis(format="%", values=[0, 0.2, 0.4, 0.6, 0.8, 1]) if accuracy else alt.Axis(format=".4~g"),
        scale=alt.Scale(domain=[bottom, top * HEADROOM], nice=False),
    )
    legend = (
        alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=3, symbolSize=600)
        if len(curves) > 1
        else None
    )
    colors = alt.Scale(domain=labels, range=[curve.color for curve in curves])
    dashes = alt.Scale(domain=labels, range=_DASHES[: len(labels)])
    tooltip = [
        # Without a format Vega-Lite 6.4 looks for this in the wrong place when the nearest point is asked for.
        alt.Tooltip("curve:N", title="curve", format="s", formatType="toString"),
        alt.Tooltip("epoch:Q", title="epoch", format=".4~g"),
        alt.Tooltip("value:Q", title=chart.title.lower(), format=chart.number_format),
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, y=y)
    near = alt.selection_point(
        name="near", nearest=True, on="pointerover", clear="pointerout", fields=["epoch", "curve"], empty=False
    )
    zoom = alt.selection_interval(name="zoom", bind="scales", encodings=["x"], zoom=ZOOM)
    few = max(sum(row["curve"] == label for row in rows) for label in labels) <= FEW_POINTS
    shown = alt.selection_point(name="shown", fields=["curve"], bind="legend", toggle="true")
    rest = 0.9 if few else 0.0
    visible = [{"param": "near", "empty": False, "value": 1}, {"param": "shown", "value": rest}]
    line = base.mark_line(strokeWidth=2.2, clip=True).encode(
        color=alt.Color("curve:N", scale=colors, legend=legend),
        strokeDash=alt.StrokeDash("curve:N", scale=dashes, legend=legend),
        opacity=alt.condition(shown, alt.value(1), alt.value(0.12)),
    )
    dots = base.mark_point(filled=True, clip=True).encode(
        color=alt.Color("curve:N", scale=colors, legend=legend),
        opacity=alt.OpacityValue(0, condition=visible),
        size=alt.condition(near, alt.value(110), alt.value(30)),
        tooltip=tooltip,
    )
    marks = _marks(chart, best, resumed, last)
    layers: list[altair.Chart] = [*marks, line.add_params(zoom, shown), dots.add_params(near)]
    layered = dressed(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT))
    spec: dict[str, Any] = layered.to_dict()
    if chart.log and (scale := _log_scale(rows)):
        spec["usermeta"] = {"log": scale}
    return spec


def dressed(chart: Any) -> Any:
    """The chart with the fonts, colours and lines that all charts share."""
    return (
        chart.configure(background="transparent", font=FONT, customFormatTypes=True)
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=12, titleFontSize=12, titleFontWeight="normal", titlePadding=8, labelColor=INK,
            titleColor=INK, domainColor=MARK, tickColor=MARK, gridColor=GRID,
        )
        .configure_axisX(grid=False)
        .configure_legend(labelFontSize=13, labelColor=INK, labelLimit=400)
    )  # fmt: skip


def drawing(name: str, spec: dict[str, Any]) -> str:
    """The chart as SVG; ids get ``name`` before them, since they must be unique among all drawings of a page."""
    return re.sub(r'((?:id="|url\(#))(?=\w)', rf"\g<1>{name}-", _converter().vegalite_to_svg(spec))


def _log_scale(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """A scale on which every value has its place; None if one is not above zero."""
    values = [row["value"] for row in rows if row["value"] is not None]
    if not values or min(values) <= 0:
        return None
    low, high = min(values), max(values)
    return {"type": "log", "domain": [low / 1.2, high * (high / low) ** (HEADROOM - 1) * 1.2], "nice": False}


def _marks(chart: _Chart, best: float | None, resumed: Sequence[Resumption], last: float) -> list[altair.Chart]:
    """Upright lines for the best epoch and for resumptions, each with a word on top."""
    marks: list[dict[str, Any]] = [
        {"epoch": one.epoch, "text": f"#{one.attempt}", "kind": "attempt"} for one in resumed
    ]
    if best is not None and chart.best_label:
        marks.append({"epoch": best, "text": "best", "kind": "best"})
    return [
        layer
        for mark in marks
        for layer in _mark(mark, left=mark["epoch"] > (last / 2 if mark["kind"] == "best" else 0.95 * last))
    ]


def _mark(mark: dict[str, Any], *, left: bool) -> list[altair.Chart]:
    import altair as alt

    best = mark["kind"] == "best"
    base = alt.Chart(alt.InlineData(values=[mark])).encode(x=alt.X("epoch:Q"))
    rule = base.mark_rule(color=MARK, clip=True, strokeWidth=1.5 if best else 1, strokeDash=[1, 0] if best else [2, 3])
    text = base.mark_text(
        color=INK, fontSize=11, fontWeight="bold" if best else "normal", clip=True,
        align="right" if left else "left", dx=-5 if left else 5, dy=8 if best else 20,
    ).encode(y=alt.value(0), text="text:N")  # fmt: skip
    return [rule, text]


def _alt(chart: _Chart, rows: list[dict[str, Any]], best: float | None) -> str:
    """The chart in one sentence."""
    parts = []
    for curve in chart.curves:
        values = [
            (row["epoch"], row["value"]) for row in rows if row["curve"] == curve.label and row["value"] is not None
        ]
        if values:
            (first, start), (last, end) = values[0], values[-1]
            parts.append(f"{curve.label} from {start:.3g} at epoch {first:g} to {end:.3g} at epoch {last:g}")
    marked = f"; the best epoch, {best:g}, is marked" if best is not None and chart.best_label else ""
    return f"{chart.title} against the epoch: {', '.join(parts) or 'no finite value'}{marked}."
