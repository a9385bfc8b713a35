"""Which columns of a table the network is given, whether as numbers or as categories, and which cells are in the way.

The same rules choose at submission and when the table is coded for the network. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dlhpc.data.faults import Faults
from dlhpc.data.table_files import TableFile
from dlhpc.errors import DataError

Kind = Literal["number", "category"]
MOST_CATEGORIES = 1000
_NAMES_FROM = 20  # a column with more different words than this, in most rows another, names the rows


@dataclass(frozen=True)
class Wanted:
    """The spec's section ``data.table``, as far as it says what is predicted from what."""

    targets: tuple[str, ...]
    inputs: tuple[str, ...] | None
    categories: tuple[str, ...]
    others: tuple[str, ...]
    """Columns that say something of a row and are no inputs: the group, the path of a picture."""
    missing: Literal["fail", "drop", "fill"]

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Wanted:
        """Out of the section as a mapping, as ``plan.json`` has it."""
        inputs = table.get("inputs")
        others = tuple(name for name in (table.get("group"), table.get("pictures")) if name is not None)
        return cls(
            tuple(table["targets"]), None if inputs is None else tuple(inputs), tuple(table.get("categories", ())),
            others, table.get("missing", "fail"),
        )  # fmt: skip


@dataclass(frozen=True)
class Column:
    """An input column."""

    name: str
    kind: Kind


def choose_inputs(table: TableFile, wanted: Wanted) -> tuple[list[Column], list[str]]:
    """The input columns in the order of the table, or of ``data.table.inputs``; and what the user should know of it.

    A column is numbers if each of its cells is one (or empty), else categories. If most cells are numbers, the others
    are taken for mistakes. Columns that name the rows, a word of its own in most of them, are left out unless asked
    for. Raises :class:`DataError`, or several.
    """
    table.require(wanted.inputs or (), "data.table.inputs")
    table.require(wanted.categories, "data.table.categories")
    asked = wanted.inputs is not None
    aside = {*wanted.targets, *wanted.others}
    names = wanted.inputs if wanted.inputs is not None else [name for name in table.columns if name not in aside]
    for name in names:
        if name in wanted.targets:
            raise DataError(
                f"column `{name}` is among data.table.inputs and data.table.targets",
                where=table.path,
                remedy="A network that is given the answer learns nothing: take it out of the inputs.",
            )
        if list(names).count(name) > 1:
            raise DataError(f"data.table.inputs names `{name}` twice", where=table.path, remedy="Name it once.")
    for name in wanted.categories:
        if name not in names:
            raise DataError(
                f"data.table.categories names `{name}`, which is no input",
                where=table.path,
                remedy="Add it to data.table.inputs, or take it out of data.table.categories.",
            )
    chosen, notes, faults = [], [], Faults()
    for name in names:
        kind, why_not = _kind(table, name, name in wanted.categories, faults)
        if why_not is None:
            chosen.append(Column(name, kind))
            if not asked and kind == "number" and _counts_rows(table, name):
                what = f"{table.path}: column `{name}` holds another whole number in each row; if it numbers the rows"
                notes.append(f"{what}, name data.table.inputs without it")
        elif asked:
            faults.add(f"column `{name}` {why_not}", table.path, "Take it out of data.table.inputs.")
        else:
            notes.append(f"{table.path}: column `{name}` {why_not}; it is not used")
    faults.raise_if_any()
    if not chosen:
        raise DataError(
            "has no column to predict from", where=table.path, remedy="Add columns of numbers or of categories."
        )
    return chosen, notes


def _kind(table: TableFile, name: str, as_category: bool, faults: Faults) -> tuple[Kind, str | None]:
    """Number or category, and why the column is of no use (None if it is)."""
    if not as_category:
        numbers = table.numbers(name)
        words = [row for row, number in enumerate(numbers) if number is None]
        real = sum(number is not None and number == number for number in numbers)  # NaN equals nothing
        if not words:
            return "number", None if real else "is empty"
        if real > len(words):
            for row in words:
                faults.add(
                    f"`{_short(table.columns[name][row])}` in column `{name}` is no number, as most of its cells are",
                    table.place(row),
                    f"Correct it, or, if the numbers in `{name}` are names, add it to data.table.categories.",
                )
            return "number", None
    found = [word for word in table.words(name) if word is not None]
    different = len(set(found))
    if not found:
        return "category", "is empty"
    if different > MOST_CATEGORIES:
        return "category", f"holds {different} different words; at most {MOST_CATEGORIES} can be told apart"
    if different > _NAMES_FROM and different > 0.5 * len(found):
        return "category", f"holds {different} different words in {len(found)} rows, so it names rows"
    return "category", None


def _counts_rows(table: TableFile, name: str) -> bool:
    numbers = table.numbers(name)
    return (
        len(numbers) > _NAMES_FROM
        and all(number is not None and number % 1 == 0 for number in numbers)
        and len(set(numbers)) == len(numbers)
    )


def rows_with_gaps(table: TableFile, columns: Sequence[Column], missing: str, faults: Faults) -> dict[str, list[int]]:
    """Column → rows (from 0) without a value there; with ``fail`` each such cell is a fault.

    A cell that is no finite number in a column of numbers is a fault always.
    """
    gaps: dict[str, list[int]] = {}
    for column in columns:
        name = column.name
        if column.kind == "number":
            numbers = table.numbers(name)
            odd = [row for row, number in enumerate(numbers) if number is None or not math.isfinite(number)]
            gaps[name] = [row for row in odd if (number := numbers[row]) is not None and math.isnan(number)]
            for row in sorted({*odd} - {*gaps[name]}):
                faults.add(
                    f"`{_short(table.columns[name][row])}` in column `{name}` is no "
                    f"{'finite ' * (numbers[row] is not None)}number",
                    table.place(row),
                    "Correct it, or empty the cell if the value is not known.",
                )
        else:
            gaps[name] = [row for row, word in enumerate(table.words(name)) if word is None]
        if missing == "fail":
            for row in gaps[name]:
                faults.add(
                    f"column `{name}` has no value here",
                    table.place(row),
                    "Fill it in, or set data.table.missing to `drop` (leave such rows out) or `fill` (the mean).",
                )
    return gaps


def _short(cell: object) -> str:
    text = str(cell)
    return text if len(text) <= 60 else f"{text[:57]}…"
