"""The report: one HTML page that holds all it needs, works from a file without a network, and prints.

The page is complete without scripts: curves are SVG. Where scripts run, the same charts become ones that can be zoomed,
and tables can be sorted. Every text of the user passes Jinja2's autoescape, JSON inside scripts its ``tojson``, and a
content security policy forbids the page to load anything.
"""

from __future__ import annotations

import base64
import csv
import functools
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhpc import __version__, resources
from dlhpc.files import replace_text, storage_errors
from dlhpc.predict.results import no_formula
from dlhpc.report.attempts import attempt_rows, resumptions, warnings_of
from dlhpc.report.classes import class_rows, file_name, heat_labels, heat_rows, most_confused, unseen_rows
from dlhpc.report.collect import Evaluation, Facts, collect
from dlhpc.report.figures import figures, javascript
from dlhpc.report.japanese import STANDINGS, verdict_in_japanese
from dlhpc.report.results import result_figures
from dlhpc.report.settings import settings_of
from dlhpc.report.verdict import judge, series, show
from dlhpc.report.yardstick import percent, yardstick
from dlhpc.runs.curves import Point
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.measures import DEFAULT_BEST
from dlhpc.runs.state import RunState, progress

if TYPE_CHECKING:
    from jinja2 import Environment

TABLE_CLASSES = 20
"""Up to so many classes the confusion matrix is a table with numbers, above it a drawing."""
DRAWN_CLASSES = 400
"""Above so many classes a field would be smaller than a pixel; the list of confusions then stands alone."""
GRID_COLUMNS, GRID_PICTURES = 12, 800
"""Largest person × picture table; above it only the misses are listed."""
MISSES = 200


@dataclass(frozen=True)
class Standing:
    """Where the run stands, in words."""

    word: str
    kind: str
    """``good``, ``bad`` or ``open``: how to colour it."""
    reason: str | None


def write_report(
    run: RunDirectory, out: Path | None = None, *, state: RunState | None = None, reason: str | None = None
) -> Path:
    """Write the page and give its path: ``out``, a file in ``out`` if that is a folder, or ``RUN/report/report.html``.

    ``state`` and ``reason`` are what the scheduler says of a run that is not over; without them the journal alone
    speaks. The page is replaced atomically. Raises :class:`UserError` if the packages for figures are missing,
    :class:`StorageError` if the run cannot be read or the page not be written.
    """
    facts = collect(run)
    path = run.report / "report.html" if out is None else out / f"{run.name}.html" if out.is_dir() else out
    page = render(facts, standing(facts, state, reason))
    with storage_errors(path.parent, "create"):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page)
    return path


def standing(facts: Facts, state: RunState | None = None, reason: str | None = None) -> Standing:
    """Where the run stands: ``state`` if known, else what the journal says."""
    known = progress(facts.entries)
    if state is None:
        state, reason = known.ended, known.reason
    if state is None:
        return Standing("not finished", "open", "No end of it is on record when this page was written.")
    kind = {RunState.FINISHED: "good", RunState.FAILED: "bad", RunState.CANCELLED: "bad"}.get(state, "open")
    return Standing(state.value, kind, reason)


def render(facts: Facts, stands: Standing, *, now: datetime | None = None) -> str:
    """The page as text; everything in it comes from ``facts``."""
    plan, evaluation, unseen = facts.plan, facts.evaluation, facts.unseen
    epochs = plan.spec.get("training", {}).get("epochs")
    truths = [sum(row) for row in evaluation.confusion] if evaluation else None
    task = str(plan.spec.get("task", "classification"))
    several = bool(plan.spec.get("data", {}).get("several_labels"))
    by = yardstick(task, plan.dataset.classes, truths, several=several)
    best_by = plan.spec.get("training", {}).get("best") or DEFAULT_BEST.get(task, "val_loss")
    verdict = judge(facts.points, by, epochs=epochs, best_by=best_by.removeprefix("val_"))
    attempts = attempt_rows(facts.entries, facts.provenance)
    resumed = resumptions(facts.entries, plan.steps_per_epoch)
    drawn = figures(facts.points, best=verdict.best_epoch, resumed=resumed)
    results = result_figures(facts.result) if facts.result is not None else []
    measured = series(facts.points, "val", by.measure)
    best_value = measured.at(verdict.best_epoch) if verdict.best_epoch is not None else None
    rows = unseen_rows(unseen) if unseen else []
    columns = max((len(row.pictures) for row in rows), default=0)
    ran = [row.ran_seconds for row in attempts if row.ran_seconds is not None]
    return (
        page_environment()
        .get_template("page.html.j2")
        .render(
            run=facts.run,
            plan=plan,
            spec=plan.spec,
            stands=stands,
            verdict=verdict,
            verdict_japanese=verdict_in_japanese(verdict),
            stands_japanese=STANDINGS[stands.word],
            by=by,
            best_value=best_value,
            reached=max((point.epoch for point in facts.points), default=0.0),
            epochs=epochs,
            unseen=unseen,
            unseen_right=sum(row.right for row in rows),
            unseen_rows=rows,
            unseen_columns=columns,
            unseen_grid=columns <= GRID_COLUMNS and sum(len(row.pictures) for row in rows) <= GRID_PICTURES,
            unseen_misses=[picture for row in rows for picture in row.pictures if not picture.right][:MISSES],
            figures=drawn,
            resumed=resumed,
            result=facts.result,
            result_figures=results,
            charts={figure.name: figure.spec for figure in [*drawn, *results]},
            vega=safe_script(javascript()) if drawn or results else "",
            evaluation=evaluation,
            classes=class_rows(evaluation) if evaluation else [],
            confused=most_confused(evaluation) if evaluation else [],
            heat=heat_rows(evaluation) if evaluation and len(evaluation.classes) <= DRAWN_CLASSES else [],
            heat_labels=heat_labels(evaluation.classes) if evaluation else None,
            heat_is_table=len(evaluation.classes) <= TABLE_CLASSES if evaluation else False,
            attempts=attempts,
            ran_seconds=sum(ran) if ran else None,
            core_hours=sum(ran) / 3600 * plan.ranks * plan.cores_per_rank if ran else None,
            gpu_hours=sum(ran) / 3600 * plan.ranks * plan.gpus_per_rank if ran else None,
            settings=settings_of(facts),
            warnings=[*facts.problems, *warnings_of(facts.entries)],
            spec_text=facts.spec_text,
            repeat=f"dlhpc submit {shlex.quote(str(facts.run.spec))}",
            downloads=_downloads(facts),
            now=now or datetime.now(UTC),
            version=__version__,
        )
    )


@dataclass(frozen=True)
class Download:
    """A table to save from the page."""

    name: str
    label: str
    uri: str


def _downloads(facts: Facts) -> list[Download]:
    found = []
    if facts.points:
        found.append(_download(f"{facts.run.name}-curves.csv", "Curves (CSV)", curve_table(facts.points)))
    if facts.evaluation is not None:
        found.append(
            _download(f"{facts.run.name}-confusion.csv", "Confusion matrix (CSV)", confusion_table(facts.evaluation))
        )
    return found


def curve_table(points: Sequence[Point]) -> list[list[Any]]:
    """The curves with a head line: a row for each step that was measured, a column for each curve."""
    names = list(dict.fromkeys(f"{point.split} {point.name}" for point in points))
    rows: dict[int, dict[str, float]] = {}
    epochs: dict[int, float] = {}
    for point in points:
        rows.setdefault(point.step, {})[f"{point.split} {point.name}"] = point.value
        epochs[point.step] = point.epoch
    return [
        ["epoch", "step", *names],
        *([epochs[step], step, *(rows[step].get(name, "") for name in names)] for step in sorted(rows)),
    ]


def confusion_table(evaluation: Evaluation) -> list[list[Any]]:
    """The confusion matrix with a head line; a row for each true class, a column for each given name."""
    names = [no_formula(name) for name in evaluation.classes]
    return [["true \\ named", *names], *([name, *counts] for name, counts in zip(names, evaluation.confusion))]


def _download(name: str, label: str, rows: list[list[Any]]) -> Download:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    # Without a byte order mark Excel takes the Japanese in it for Shift JIS.
    content = base64.b64encode(text.getvalue().encode("utf-8-sig")).decode()
    return Download(name, label, f"data:text/csv;charset=utf-8;base64,{content}")


def safe_script(script: str) -> Any:
    """Our own script as markup; nothing in it may end the element that it stands in."""
    from markupsafe import Markup

    return Markup(script.replace("</script", "<\\/script").replace("<!--", "\\u003c!--"))


@functools.cache
def page_environment() -> Environment:
    """Where the pages' templates are, with autoescape and our filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(resources.folder("jobtemplates") / "report"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent_or_dash,
        "duration": duration,
        "epoch": show,
        "when": when,
        "iso": lambda seconds: datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds"),
        "file_name": file_name,
        "drawing": Markup,
    }
    return environment


def _percent_or_dash(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else percent(share, digits)


def duration(seconds: float | None) -> str:
    """``8 s``, ``3 min 12 s``, ``5 h 04 min``; a dash for None."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole // 60 % 60:02d} min"


def when(seconds: float | None) -> str:
    """Local time of the machine that writes the page, with its zone; a dash for None."""
    return "–" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
