"""Tables about classes: accuracy of each, what is taken for what, and the person × picture table of unseen pictures."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from dlhpc.report.collect import Evaluation, NamedPicture, Unseen


@dataclass(frozen=True)
class ClassRow:
    """One class on the validation pictures. Fractions are from 0 to 1, None where nothing was to be counted."""

    name: str
    count: int
    right: int
    accuracy: float | None
    """Of this class's pictures, the fraction that was named right (recall)."""
    precision: float | None
    """Of the pictures that were given this name, the fraction that deserved it."""
    taken_for: str
    """The class that it was most often mistaken for, or nothing."""


@dataclass(frozen=True)
class Confused:
    """Pictures of one class that were given the name of another."""

    truth: str
    named: str
    count: int
    share: float
    """Of the true class's pictures."""


def class_rows(evaluation: Evaluation) -> list[ClassRow]:
    """One row a class, worst accuracy first; equally bad ones with more pictures first, then by name (``s2`` before
    ``s10``)."""
    given = [sum(column) for column in zip(*evaluation.confusion)]
    rows = []
    for index, (name, counts) in enumerate(zip(evaluation.classes, evaluation.confusion)):
        total, right = sum(counts), counts[index]
        wrong = [(count, -other) for other, count in enumerate(counts) if other != index and count > 0]
        rows.append(
            ClassRow(
                name=name,
                count=total,
                right=right,
                accuracy=right / total if total else None,
                precision=right / given[index] if given[index] else None,
                taken_for=evaluation.classes[-max(wrong)[1]] if wrong else "",
            )
        )
    return sorted(rows, key=lambda row: (2.0 if row.accuracy is None else row.accuracy, -row.count, natural(row.name)))


def most_confused(evaluation: Evaluation, limit: int = 15) -> list[Confused]:
    """The most frequent confusions, by count, then by share."""
    found = [
        Confused(evaluation.classes[truth], evaluation.classes[named], count, count / sum(counts))
        for truth, counts in enumerate(evaluation.confusion)
        for named, count in enumerate(counts)
        if truth != named and count > 0
    ]
    return sorted(found, key=lambda one: (-one.count, -one.share, one.truth, one.named))[:limit]


@dataclass(frozen=True)
class HeatCell:
    """One field of the confusion matrix; ``share`` is of its row, from 0 to 1."""

    row: int
    column: int
    count: int
    share: float

    @property
    def right(self) -> bool:
        return self.row == self.column


def heat_rows(evaluation: Evaluation) -> list[list[HeatCell]]:
    """The confusion matrix with the shares of its rows."""
    return [
        [HeatCell(row, column, count, count / (sum(counts) or 1)) for column, count in enumerate(counts)]
        for row, counts in enumerate(evaluation.confusion)
    ]


@dataclass(frozen=True)
class HeatLabels:
    """Names beside a drawn confusion matrix, in units of its fields."""

    marks: tuple[tuple[int, str], ...]
    """Index and name, shortened; every so many classes only, where there are many."""
    size: float
    """Of the letters."""
    margin: float
    """Room for the longest name."""


def heat_labels(classes: Sequence[str], most: int = 40, letters: int = 10) -> HeatLabels:
    """At most ``most`` names of at most ``letters`` letters."""
    step = max(1, math.ceil(len(classes) / most))
    marks = tuple((index, _shortened(classes[index], letters)) for index in range(0, len(classes), step))
    size = 0.8 * max(step, len(classes) / most)
    widest = max((sum(_width(letter) for letter in text) for _, text in marks), default=0.0)
    return HeatLabels(marks, size, (widest + 0.6) * size)


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def _width(letter: str) -> float:
    """About, in units of the size: Japanese and Chinese letters are square."""
    return 1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.65


@dataclass(frozen=True)
class UnseenRow:
    """One class's unseen pictures, in the order of their paths."""

    truth: str
    pictures: tuple[NamedPicture, ...]

    @property
    def right(self) -> int:
        return sum(picture.right for picture in self.pictures)


def unseen_rows(unseen: Unseen) -> list[UnseenRow]:
    """The person × picture table: classes and pictures in natural order (``s2`` before ``s10``)."""
    by_class: dict[str, list[NamedPicture]] = {}
    for picture in unseen.pictures:
        by_class.setdefault(picture.truth, []).append(picture)
    return [
        UnseenRow(truth, tuple(sorted(pictures, key=lambda picture: natural(picture.path))))
        for truth, pictures in sorted(by_class.items(), key=lambda item: natural(item[0]))
    ]


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that takes runs of digits as numbers."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for letter in [*text, ""]:
        if letter.isascii() and letter.isdigit():
            digits += letter
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        parts.append((1, 0, letter))
    return parts


def file_name(path: str) -> str:
    """The last part of a path."""
    return PurePath(path).name
