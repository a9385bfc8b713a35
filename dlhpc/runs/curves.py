"""The curves: one JSON line per measured number, only ever appended by rank 0.

A value that is not finite is written as ``null``. Where the same (step, split, name) was measured twice, the later
line counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlhpc.files import append_lines, read_json_lines, replace_text, storage_errors


@dataclass(frozen=True, slots=True)
class Point:
    """One measured number; ``epoch`` counts finished epochs (1.0 after the first), ``time`` is seconds since 1970."""

    epoch: float
    step: int
    split: str
    name: str
    value: float
    time: float


def write_points(path: Path, points: Iterable[Point], *, durable: bool = True) -> None:
    """Append points in one write; ``durable`` waits until they are on the disk."""
    lines = [
        json.dumps(
            {
                "epoch": point.epoch,
                "step": point.step,
                "split": point.split,
                "name": point.name,
                "value": point.value if math.isfinite(point.value) else None,
                "time": round(point.time, 3),
            }
        )
        for point in points
    ]
    if lines:
        append_lines(path, lines, durable=durable)


def read_points(path: Path) -> tuple[list[Point], int]:
    """All points in the order of first measurement, and how many lines were damaged."""
    rows, damaged = read_json_lines(path)
    points: dict[tuple[int, str, str], Point] = {}
    for row in rows:
        try:
            point = _point(row)
        except (KeyError, TypeError, ValueError):
            damaged += 1
            continue
        points[point.step, point.split, point.name] = point
    return list(points.values()), damaged


def _point(row: dict[str, Any]) -> Point:
    value = row["value"]
    return Point(
        float(row["epoch"]),
        int(row["step"]),
        str(row["split"]),
        str(row["name"]),
        math.nan if value is None else float(value),
        float(row["time"]),
    )


def forget_after(path: Path, step: int) -> int:
    """Drop what was measured after ``step``, because it will be measured again; gives the number of dropped lines.

    Damaged lines are dropped too. The file is replaced atomically; nothing happens if nothing is to be dropped.
    """
    if not path.exists():
        return 0
    with storage_errors(path, "read"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept: list[str] = []
    for line in lines:
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    if len(kept) < len(lines):
        replace_text(path, "".join(line + "\n" for line in kept))
    return len(lines) - len(kept)
