"""Rows of a table as numbers for the network: what is decided from the training rows, and applied to any others.

A :class:`Coding` travels as JSON in the packed dataset and in each checkpoint's manifest, so that new rows are coded
just as those that were learnt from.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.catalog import Catalog, Rows
from dlhpc.data.faults import Faults
from dlhpc.data.folders import natural
from dlhpc.data.table_columns import Column, Kind, Wanted, choose_inputs
from dlhpc.data.table_files import TableFile, read_table
from dlhpc.data.tables import read_truths
from dlhpc.errors import DataError

_FAR = 1000.0  # standard deviations from zero beyond which float32 begins to lose what differs between rows
_HUGE, _TINY = 1e30, 1e-30
_SHOWN = 5


@dataclass(frozen=True)
class Input:
    """How one column becomes features."""

    name: str
    kind: Kind
    categories: list[str] = field(default_factory=list)
    """Of a column of categories: those of the training rows. Each is a feature, 1 where it applies, else 0."""
    offset: float = 0.0
    scale: float = 1.0
    """Of a column of numbers: the feature is (number − offset) / scale. 0 and 1 unless float32 were too coarse."""
    fill: float | None = None
    """Stands in for a number that is missing: the mean over the training rows. None: a row without it has no code."""
    flagged: bool = False
    """Whether a further feature is 1 where the value is missing, else 0; for columns with gaps in training rows."""

    @property
    def features(self) -> list[str]:
        """Names of the features, in order."""
        names = [self.name] if self.kind == "number" else [f"{self.name}={category}" for category in self.categories]
        return [*names, f"{self.name} missing"] if self.flagged else names


@dataclass(frozen=True)
class Coding:
    """How rows of a table become F numbers each."""

    inputs: list[Input]
    missing: str = "fail"
    """As ``data.table.missing``: rows with gaps have a code with ``fill`` alone."""

    @property
    def features(self) -> list[str]:
        """F names."""
        return [name for one in self.inputs for name in one.features]

    def to_json(self) -> dict[str, Any]:
        """JSON-able; :meth:`from_json` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Coding:
        """Raises KeyError or TypeError if ``value`` is no coding."""
        return cls([Input(**one) for one in value["inputs"]], str(value["missing"]))


@dataclass(frozen=True)
class EncodedRows:
    """Rows of a table as the network takes them."""

    values: NDArray[np.float32]
    """n×F; all finite, but of no use for rows in ``faults``."""
    faults: dict[int, str]
    """Position among the rows asked for → why it has no code, with the line."""
    unknown: Counter[tuple[str, str]]
    """(Column, category) → rows whose category no training row has; it is coded as none of the known ones."""
    gaps: Counter[str]
    """Column → rows without a value, which the mean stands in for."""


@dataclass(frozen=True)
class CodedTable:
    """All that is packed of a table, by split."""

    inputs: dict[str, NDArray[np.float32]]
    """n×F."""
    targets: dict[str, NDArray[Any]]
    """Regression float64 n×T in the user's units; classification int64 n, or uint8 n×K of 0 and 1."""
    origins: dict[str, list[str]]
    """``FILE:LINE`` of each row."""
    features: list[str]
    mean: NDArray[np.float64]
    """F means over the training rows; 0 for features that are 0 or 1, which need no standardising."""
    std: NDArray[np.float64]
    """F standard deviations, likewise; 1 for such features and for those that do not vary."""
    target_mean: NDArray[np.float64]
    """Regression: T means over the training rows, else none."""
    target_std: NDArray[np.float64]
    """Regression: T standard deviations, never 0."""
    coding: dict[str, Any]
    """:meth:`Coding.to_json`."""
    notes: list[str]
    changed: list[str]
    """Files that are not those any more which the catalogue was made of."""


def learn_coding(table: TableFile, rows: Sequence[int], columns: Sequence[Column], missing: str) -> Coding:
    """The coding that the training rows ``rows`` of ``table`` ask for."""
    return Coding([_input(table, rows, column, missing) for column in columns], missing)


def _input(table: TableFile, rows: Sequence[int], column: Column, missing: str) -> Input:
    if column.kind == "category":
        words = table.words(column.name)
        found = [words[row] for row in rows]
        known = sorted({word for word in found if word is not None}, key=natural)
        return Input(column.name, "category", known, flagged=missing == "fill" and None in found)
    values = _numbers(table, column.name, rows)
    real = values[np.isfinite(values)]
    if not len(real):
        raise DataError(
            f"column `{column.name}` has no value in any training row",
            where=table.path,
            remedy="Take it out of data.table.inputs, or share the rows out otherwise (data.split.seed).",
        )
    with np.errstate(over="ignore"):
        mean, std, largest = float(real.mean()), float(real.std()), float(np.abs(real).max())
    if not np.isfinite([mean, std]).all():
        raise DataError(
            f"the numbers in column `{column.name}` are too large to be squared", where=table.path,
            remedy="Write it in another unit, or as a logarithm.",
        )  # fmt: skip
    far = std > 0 and abs(mean) > _FAR * std
    odd = std > 0 and (largest > _HUGE or std < _TINY)
    return Input(
        column.name,
        "number",
        offset=mean if far else 0.0,
        scale=std if odd else 1.0,
        fill=mean if missing == "fill" else None,
        flagged=missing == "fill" and bool(np.isnan(values).any()),
    )


def _numbers(table: TableFile, name: str, rows: Sequence[int]) -> NDArray[np.float64]:
    """NaN where nothing stands, infinity for what is no number."""
    numbers = table.numbers(name)
    return np.array([np.inf if (number := numbers[row]) is None else number for row in rows], dtype=np.float64)


def encode_rows(coding: Coding | Mapping[str, Any], table: TableFile, rows: Sequence[int] | None = None) -> EncodedRows:
    """Code ``rows`` of a table (all, if absent), for example for prediction with the ``coding`` of a checkpoint.

    Raises :class:`DataError` if the table lacks a column. What is wrong with single rows is in the answer's faults.
    """
    coding = coding if isinstance(coding, Coding) else Coding.from_json(coding)
    rows = range(len(table)) if rows is None else rows
    table.require([one.name for one in coding.inputs], "the table that was trained on")
    encoded = EncodedRows(np.zeros((len(rows), len(coding.features)), np.float32), {}, Counter(), Counter())
    first = 0
    for one in coding.inputs:
        block = encoded.values[:, first : first + len(one.features)]
        first += len(one.features)
        gaps = _encode_numbers(one, table, rows, block, encoded) if one.kind == "number" else None
        if gaps is None:
            gaps = _encode_words(one, table, rows, block, encoded)
        if one.flagged:
            block[:, -1] = gaps
        places = np.flatnonzero(gaps).tolist()
        if coding.missing == "fill":
            encoded.gaps[one.name] += len(places)
            continue
        for place in places:
            what = f"column `{one.name}` has no value here, and in training all rows had one"
            encoded.faults.setdefault(place, f"{table.place(rows[place])}: {what}")
    return dataclasses.replace(encoded, faults=dict(sorted(encoded.faults.items())))


def _encode_numbers(
    one: Input, table: TableFile, rows: Sequence[int], block: NDArray[np.float32], encoded: EncodedRows
) -> NDArray[np.bool_]:
    """Fill the feature; gives where values are missing."""
    values = _numbers(table, one.name, rows)
    gaps = np.isnan(values)
    if one.fill is not None:
        values[gaps] = one.fill
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = ((values - one.offset) / one.scale).astype(np.float32)
    for place in np.flatnonzero(~np.isfinite(scaled) & ~gaps).tolist():
        shown = table.columns[one.name][rows[place]]
        encoded.faults.setdefault(place, f"{table.place(rows[place])}: `{shown}` in column `{one.name}` is no number")
    block[:, 0] = np.where(np.isfinite(scaled), scaled, 0)
    return gaps


def _encode_words(
    one: Input, table: TableFile, rows: Sequence[int], block: NDArray[np.float32], encoded: EncodedRows
) -> NDArray[np.bool_]:
    words = table.words(one.name)
    number = {category: number for number, category in enumerate(one.categories)}
    gaps = np.zeros(len(rows), np.bool_)
    for place, row in enumerate(rows):
        word = words[row]
        if word is None:
            gaps[place] = True
        elif word in number:
            block[place, number[word]] = 1
        else:
            encoded.unknown[one.name, word] += 1
    return gaps


def code_table(catalog: Catalog, table: Mapping[str, Any]) -> CodedTable:
    """The rows of ``catalog`` coded; ``table`` is the spec's section ``data.table`` as the plan has it.

    Raises :class:`DataError` where the files do not hold any more what the catalogue says, :class:`StorageError`.
    """
    wanted = Wanted.of(table)
    files = {rows.path: read_table(Path(rows.path)) for rows in catalog.rows.values()}
    train = catalog.rows["train"]
    for split, rows in catalog.rows.items():
        if rows.numbers and rows.numbers[-1] >= len(files[rows.path]):
            raise _changed(rows, f"has {len(files[rows.path])} rows; row {rows.numbers[-1] + 1} was in {split}")
    columns, _ = choose_inputs(files[train.path], wanted)
    coding = learn_coding(files[train.path], train.numbers, columns, wanted.missing)
    inputs: dict[str, NDArray[np.float32]] = {}
    targets: dict[str, NDArray[Any]] = {}
    notes: list[str] = []
    for split, rows in catalog.rows.items():
        encoded = encode_rows(coding, files[rows.path], rows.numbers)
        if encoded.faults:
            raise _changed(rows, next(iter(encoded.faults.values())))
        inputs[split] = encoded.values
        targets[split] = _targets(catalog, wanted, files[rows.path], rows)
        notes += _notes(split, encoded, coding)
    mean, std = _statistics(inputs["train"], coding)
    notes += _constant(coding, inputs["train"])
    truths = targets["train"] if catalog.task == "regression" else np.zeros((1, 0))
    target_std = truths.std(axis=0)
    return CodedTable(
        inputs,
        targets,
        {split: [str(files[r.path].place(row)) for row in r.numbers] for split, r in catalog.rows.items()},
        coding.features,
        mean,
        std,
        truths.mean(axis=0),
        np.where(target_std > 0, target_std, 1.0),
        coding.to_json(),
        notes,
        [path for path, file in files.items() if _has_changed(file, catalog.rows.values())],
    )


def _changed(rows: Rows, what: str) -> DataError:
    return DataError(
        f"does not fit the run any more: {what}", where=rows.path,
        remedy="The file has changed since the run was submitted: submit its spec.yaml again.",
    )  # fmt: skip


def _has_changed(file: TableFile, listed: Any) -> bool:
    return any(
        rows.path == str(file.path) and (rows.size, rows.mtime_ns) != (file.size, file.mtime_ns) for rows in listed
    )


def _targets(catalog: Catalog, wanted: Wanted, file: TableFile, rows: Rows) -> NDArray[Any]:
    faults = Faults()
    truths = read_truths(file, wanted.targets, catalog.task, catalog.several_labels, faults)
    faults.raise_if_any()
    chosen = [truths[row] for row in rows.numbers]
    if None in chosen:
        place = file.place(rows.numbers[chosen.index(None)])
        raise _changed(rows, f"{place} has no target")
    if catalog.task == "regression":
        return np.array(chosen, dtype=np.float64)
    if catalog.several_labels:
        several = np.zeros((len(chosen), len(catalog.classes)), np.uint8)
        for at, labels in enumerate(chosen):
            several[at, [label for label in labels or [] if isinstance(label, int)]] = 1
        return several
    number = {name: number for number, name in enumerate(catalog.classes)}
    if unknown := [name for name in chosen if name not in number]:
        raise _changed(rows, f"there was no class `{unknown[0]}`")
    return np.array([number[str(name)] for name in chosen], dtype=np.int64)


def _statistics(rows: NDArray[np.float32], coding: Coding) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and σ of each feature over the training rows, as :class:`CodedTable` has them."""
    numbers = np.array([one.kind == "number" and name == one.name for one in coding.inputs for name in one.features])
    mean, std = rows.mean(axis=0, dtype=np.float64), rows.astype(np.float64).std(axis=0)
    return np.where(numbers, mean, 0.0), np.where(numbers & (std > 0), std, 1.0)


def _constant(coding: Coding, rows: NDArray[np.float32]) -> list[str]:
    same = (rows == rows[:1]).all(axis=0)
    names = [name for name, constant in zip(coding.features, same.tolist()) if constant]
    return [f"the input{'s' * (len(names) > 1)} {_listed(names)} never vary in the training rows"] if names else []


def _notes(split: str, encoded: EncodedRows, coding: Coding) -> list[str]:
    notes = []
    by_column: dict[str, list[str]] = {}
    for column, word in encoded.unknown:
        by_column.setdefault(column, []).append(word)
    for column, words in by_column.items():
        count = sum(encoded.unknown[column, word] for word in words)
        notes.append(
            f"{count} rows in {split} have categories in `{column}` that no training row has: {_listed(words)}"
        )
    flagged = {one.name for one in coding.inputs if one.flagged}
    for column, count in encoded.gaps.items():
        if count:
            told = "" if column in flagged else " (no training row has such a gap, so the network is not told)"
            notes.append(f"{count} rows in {split} have no `{column}`: the training rows' mean stands in{told}")
    return notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + more
