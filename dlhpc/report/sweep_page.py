"""The report of a sweep or search: one page with its best member, all members in a table, and what mattered."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dlhpc import __version__
from dlhpc.errors import DlhpcError
from dlhpc.files import read_json, replace_text, storage_errors
from dlhpc.report.figures import TRAIN, VAL, WIDTH, Figure, drawing, dressed, javascript
from dlhpc.report.page import page_environment, safe_script
from dlhpc.runs.checkpoints import BEST
from dlhpc.runs.measures import better, measure_in_words, rises
from dlhpc.runs.sweep import SweepDirectory, SweepRecord, read_record

MOST_VALUES = 30
"""A setting with more different texts than this is left out of the drawings."""


REPEATED = {"data.split.fold", "data.split.seed", "training.seed"}
"""Settings that make no other training, only another sample of it: folds of a cross-validation, seeds."""


@dataclass(frozen=True)
class Member:
    """One training of the sweep."""

    index: int
    name: str
    settings: dict[str, Any]
    state: str
    value: float | None
    """The measure at the best epoch; None if none was measured."""
    epoch: float | None


@dataclass(frozen=True)
class Standing:
    """What is known of the sweep beyond its folder: the state in a word and a sentence, and each member's state."""

    word: str
    kind: str
    sentence: str
    states: Mapping[str, str]


def write_sweep_report(sweep: SweepDirectory, stands: Standing, out: Path | None = None) -> Path:
    """Write the page and give its path: ``out``, a file in ``out`` if that is a folder, or ``SWEEP/report.html``."""
    record = read_record(sweep)
    measure, members = read_members(sweep, record, stands.states)
    path = sweep.path / "report.html" if out is None else out / f"{sweep.name}.html" if out.is_dir() else out
    with storage_errors(path.parent, "create"):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, render_sweep(sweep, stands, measure, members))
    return path


def read_members(
    sweep: SweepDirectory, record: SweepRecord, states: Mapping[str, str]
) -> tuple[str | None, list[Member]]:
    """The measure by which the members are judged (None if nothing was measured), and all members in order."""
    measure: str | None = None
    members = []
    for index, settings in enumerate(record.members):
        run = sweep.member(index, record.width)
        value = epoch = None
        try:
            found = read_json(run.checkpoints / BEST)
            value, epoch, measure = float(found["value"]), float(found["epoch"]), str(found["measure"])
        except (DlhpcError, KeyError, TypeError, ValueError):
            pass  # not measured yet
        members.append(Member(index, run.name, settings, states.get(run.name, "unknown"), value, epoch))
    return measure, members


def ranked(measure: str | None, members: Sequence[Member]) -> list[Member]:
    """The best first; those without a value last, in order."""
    sign = -1 if measure is not None and rises(measure) else 1
    return sorted(members, key=lambda one: (one.value is None, sign * (one.value or 0.0), one.index))


def render_sweep(sweep: SweepDirectory, stands: Standing, measure: str | None, members: Sequence[Member]) -> str:
    """The page as text."""
    keys = list(dict.fromkeys(key for one in members for key in one.settings))
    drawn = sweep_figures(measure, members, keys) if measure is not None else []
    order = ranked(measure, members)
    best = order[0] if order and order[0].value is not None else None
    return (
        page_environment()
        .get_template("sweep.html.j2")
        .render(
            sweep=sweep,
            stands=stands,
            measure=measure,
            measure_words=None if measure is None else measure.replace("_", " "),
            best=best,
            best_words=measure_in_words(measure, best.value) if measure and best and best.value is not None else None,
            repeats=_repeats(measure, members, keys),
            members=order,
            keys=keys,
            shown=_shown,
            figures=drawn,
            charts={figure.name: figure.spec for figure in drawn},
            vega=safe_script(javascript()) if drawn else "",
            now=datetime.now(UTC),
            version=__version__,
        )
    )


def _repeats(measure: str | None, members: Sequence[Member], keys: Sequence[str]) -> str | None:
    """Where members are the same training again, on another fold or from another seed: mean and σ of what they got."""
    values = [one.value for one in members if one.value is not None]
    if measure is None or len(values) < 2 or not keys or not set(keys) <= REPEATED:
        return None
    mean, spread = statistics.mean(values), statistics.stdev(values)
    words = measure_in_words(measure, mean)
    over = f"{100 * spread:.1f} %" if words.endswith("%") else f"{spread:.3g}"
    return f"{words} ± {over} (mean and standard deviation of {len(values)} members)"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def sweep_figures(measure: str, members: Sequence[Member], keys: Sequence[str]) -> list[Figure]:
    """How the best came to be, member after member, and the measure against each setting."""
    import altair as alt

    title = measure.replace("_", " ")
    percent = "accuracy" in measure
    axis = alt.Axis(format=".1%" if percent else ".4~g")
    rows = []
    best = math.nan
    for one in members:
        if one.value is not None:
            best = one.value if better(measure, one.value, best) else best
            rows.append(
                {"member": one.index, "name": one.name, "value": one.value, "best": best, **_drawable(one, keys)}
            )
    tooltip = [alt.Tooltip("name:N"), alt.Tooltip("value:Q", title=title, format=".4~g")]
    base = alt.Chart(alt.InlineData(values=rows))
    y = alt.Y("value:Q", title=title, axis=axis, scale=alt.Scale(zero=False))
    dots = base.mark_point(filled=True, size=50, color=TRAIN, opacity=0.7)
    x = alt.X("member:Q", title="Member", axis=alt.Axis(format="d", tickMinStep=1))
    line = base.mark_line(interpolate="step-after", color=VAL, strokeWidth=2).encode(x=x, y=alt.Y("best:Q"))
    history = alt.layer(line, dots.encode(x=x, y=y, tooltip=tooltip)).properties(width=WIDTH, height=240)
    found = [
        _figure("history", f"{title}, member after member", "各試行の結果と、それまでの最良値", history, len(rows))
    ]
    for number, key in enumerate(keys):
        values = [row[f"s{number}"] for row in rows if row[f"s{number}"] is not None]
        if len(set(values)) < 2:
            continue
        numeric = all(isinstance(value, int | float) for value in values)
        if not numeric and len(set(values)) > MOST_VALUES:
            continue
        if numeric:
            wide = min(values) > 0 and max(values) / min(values) >= 30
            kind = alt.Scale(type="log" if wide else "linear", zero=False, nice=False, padding=12)
            place = alt.X(f"s{number}:Q", title=key, scale=kind, axis=alt.Axis(format=".3~g"))
        else:
            place = alt.X(f"s{number}:N", title=key, axis=alt.Axis(labelAngle=0))
        both = [*tooltip, alt.Tooltip(f"s{number}:{'Q' if numeric else 'N'}", title=key)]
        chart = dots.encode(x=place, y=y, tooltip=both).properties(width=WIDTH, height=200)
        found.append(_figure(f"setting-{number}", f"{title} against {key}", "設定との関係", chart, len(rows)))
    return found


def _figure(name: str, title: str, japanese: str, chart: Any, count: int) -> Figure:
    alt = f"{title}: {count} members."
    spec: dict[str, Any] = {"description": alt, **dressed(chart).to_dict()}
    return Figure(name, title, japanese, alt, drawing(name, spec), spec)


def _drawable(one: Member, keys: Sequence[str]) -> dict[str, Any]:
    """Settings under names without dots, which Vega would take for paths."""
    values = (one.settings.get(key) for key in keys)
    return {
        f"s{number}": value
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        else _shown(value)
        for number, value in enumerate(values)
    }
