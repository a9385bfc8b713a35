"""Reading a run directory into plain values, so that everything after this is a pure function.

Only the plan must be readable. Whatever else is missing is simply not there yet, and a damaged file is named among the
report's warnings instead of stopping it: the report is most wanted when something went wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlhpc.errors import StorageError
from dlhpc.files import read_json
from dlhpc.report.results import Result, as_result
from dlhpc.runs.curves import Point, read_points
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Entry, read_journal
from dlhpc.runs.plan import Plan, read_plan


@dataclass(frozen=True)
class Evaluation:
    """How the best checkpoint did on a split; ``confusion[truth][named]`` counts pictures."""

    split: str
    epoch: float
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    loss: float | None
    accuracy: float


@dataclass(frozen=True)
class NamedPicture:
    """One prediction with its truth; ``top`` holds class and probability, best first."""

    path: str
    truth: str
    top: tuple[tuple[str, float], ...]

    @property
    def named(self) -> str:
        return self.top[0][0]

    @property
    def right(self) -> bool:
        return self.named == self.truth


@dataclass(frozen=True)
class Unseen:
    """Predictions on the pictures that were kept aside."""

    accuracy: float
    count: int
    pictures: tuple[NamedPicture, ...]


@dataclass(frozen=True)
class Facts:
    """All that a report tells of."""

    run: RunDirectory
    plan: Plan
    points: list[Point]
    entries: list[Entry]
    evaluation: Evaluation | None
    result: Result | None
    """As ``evaluation``, for tasks whose answer is not one class."""
    unseen: Unseen | None
    provenance: dict[str, Any]
    spec_text: str
    problems: list[str] = field(default_factory=list)
    """Files and lines that could not be read."""


def collect(run: RunDirectory) -> Facts:
    """Read everything. Raises :class:`StorageError` if the plan, the journal or the curves cannot be read at all."""
    problems: list[str] = []
    plan = read_plan(run.plan)
    points, damaged_points = read_points(run.curves)
    entries, damaged_entries = read_journal(run)
    for path, damaged in ((run.curves, damaged_points), (run.journal, damaged_entries)):
        if damaged:
            lines = "line was" if damaged == 1 else "lines were"
            problems.append(f"{path.name}: {damaged} damaged {lines} skipped")
    one_class = plan.spec.get("task") in (None, "classification") and not plan.spec.get("data", {}).get(
        "several_labels"
    )
    return Facts(
        run=run,
        plan=plan,
        points=points,
        entries=entries,
        evaluation=_read(run.evaluation, as_evaluation, problems) if one_class else None,
        result=None if one_class else _read(run.evaluation, as_result, problems),
        unseen=_read(run.predictions / "unseen.json", as_unseen, problems),
        provenance=_read(run.provenance, _as_mapping, problems) or {},
        spec_text=_spec_text(run.spec, problems),
        problems=problems,
    )


def _read(path: Path, convert: Any, problems: list[str]) -> Any:
    if not path.exists():
        return None
    try:
        return convert(read_json(path))
    except StorageError as error:
        problems.append(f"{path.name}: {error.what}")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        problems.append(f"{path.name} does not hold what it should ({error}); it was left out")
    return None


def _spec_text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return ""


def _as_mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def as_evaluation(value: Any) -> Evaluation:
    """Check and convert ``evaluation.json``; raises ValueError, TypeError or KeyError for anything unexpected."""
    classes = tuple(str(name) for name in value["classes"])
    confusion = tuple(tuple(int(count) for count in row) for row in value["confusion"])
    if len(confusion) != len(classes) or any(len(row) != len(classes) for row in confusion):
        raise ValueError(f"the confusion matrix does not fit {len(classes)} classes")
    loss = value.get("loss")
    return Evaluation(
        split=str(value["split"]),
        epoch=float(value["epoch"]),
        classes=classes,
        confusion=confusion,
        loss=None if loss is None or not math.isfinite(loss) else float(loss),
        accuracy=float(value["accuracy"]),
    )


def as_unseen(value: Any) -> Unseen:
    """Check and convert ``predictions/unseen.json``; raises as :func:`as_evaluation`."""
    pictures = tuple(
        NamedPicture(
            str(row["path"]), str(row["truth"]), tuple((str(name), float(share)) for name, share in row["top"])
        )
        for row in value["rows"]
        if row["top"]
    )
    return Unseen(float(value["accuracy"]), int(value["count"]), pictures)
