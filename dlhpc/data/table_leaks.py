"""What would make a network look better than it is: inputs that hold the answer, validation rows that were learnt."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from dlhpc.data.table_columns import Column
from dlhpc.data.table_files import TableFile
from dlhpc.errors import DataError

_COMPARED = 10_000  # so many rows decide
_GIVEN_AWAY = 1 - 1e-9  # |correlation| from which on an input is the target in other units


def check_not_given_away(
    table: TableFile, rows: Sequence[int], columns: Sequence[Column], targets: Sequence[str], task: str
) -> list[str]:
    """:class:`DataError` for an input that equals a target; a note for one that is a target in other units."""
    notes = []
    for target in targets:
        truths = table.numbers(target) if task == "regression" else table.words(target)
        for column in columns:
            values = table.numbers(column.name) if task == "regression" else table.words(column.name)
            pairs = [(values[row], truths[row]) for row in rows[:_COMPARED]]
            real = [(value, truth) for value, truth in pairs if value is not None and truth is not None]
            real = [(value, truth) for value, truth in real if value == value]  # NaN is a gap
            if len(real) < 3:
                continue
            if all(value == truth for value, truth in real):
                raise DataError(
                    f"the input column `{column.name}` equals the target `{target}` in all rows",
                    where=table.path,
                    remedy="A network that is given the answer learns nothing: name data.table.inputs without "
                    f"`{column.name}`.",
                )
            if task == "regression" and _correlation(real) > _GIVEN_AWAY:
                notes.append(
                    f"the input `{column.name}` is the target `{target}` on another scale, perhaps in other units: "
                    "the network is given the answer"
                )
    return notes


def _correlation(pairs: Sequence[tuple[float | str, float | str]]) -> float:
    first, second = ([float(value) for value in side] for side in zip(*pairs))
    try:
        found = abs(statistics.correlation(first, second))
    except (statistics.StatisticsError, OverflowError):  # one of them is constant, or huge
        return 0.0
    return found if math.isfinite(found) else 0.0


def same_inputs(
    train: TableFile, train_rows: Sequence[int], val: TableFile, val_rows: Sequence[int], columns: Sequence[Column]
) -> list[str]:
    """A note on validation rows whose inputs all stand in the training rows too: errors on them look small."""

    def inputs(table: TableFile, rows: Sequence[int]) -> list[tuple[object, ...]]:
        cells = [table.columns[column.name] for column in columns]
        return [tuple(column[row] for column in cells) for row in rows]

    known = set(inputs(train, train_rows))
    count = sum(row in known for row in inputs(val, val_rows))
    if not columns or not count:
        return []
    what = f"{count} of {len(val_rows)} validation rows have the very inputs of a training row, so errors look smaller"
    return [f"{what} than they are; data.table.group keeps rows of the same thing together"]
