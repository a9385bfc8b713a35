"""A table as a catalogue: which of its rows, or of the pictures that it names, are learnt from and which measure.

Runs on the login node: standard library, and pyarrow for Parquet. Every cell that will be needed is looked at, so that
what is wrong with the table is said at submission, with the lines.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlhpc.data.catalog import Catalog, Rows, Sample
from dlhpc.data.faults import Faults
from dlhpc.data.folders import absolute, found_file, named_list, natural
from dlhpc.data.splits import SPLITS, SplitName, in_order, needed, share_out
from dlhpc.data.table_columns import Column, Wanted, choose_inputs, rows_with_gaps
from dlhpc.data.table_files import TableFile, read_table
from dlhpc.data.table_leaks import check_not_given_away, same_inputs
from dlhpc.errors import DataError

if TYPE_CHECKING:
    from dlhpc.spec.data import Data, Split, Table
    from dlhpc.spec.models import TaskName

Truth = list[float] | str | list[int]
"""What is to be predicted of a row: numbers; the name of a class; the numbers of the classes that apply."""

_YES_OR_NO = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1}


@dataclass(frozen=True)
class _Source:
    """A table file with the rows of it that can be used."""

    table: TableFile
    truths: list[Truth | None]
    rows: list[int]


def table_catalog(data: Data, base: Path, task: TaskName) -> Catalog:
    """The catalogue of ``data.table``, whose paths are relative to the folder ``base``.

    Raises :class:`DataError` (or several, with file and line) if the table cannot be learnt from,
    :class:`StorageError` if it cannot be read, :class:`UserError` for Parquet without pyarrow.
    """
    settings = data.table
    assert settings is not None
    wanted = Wanted.of(settings.model_dump())
    main = _read(absolute(base, settings.file))
    _check_settings(main, settings, data, task)
    columns: list[Column] = []
    notes: list[str] = []
    if settings.pictures is None:
        columns, notes = choose_inputs(main, wanted)
    sources: dict[SplitName, _Source] = {}
    for split in SPLITS:
        file = settings.file if split == "train" else getattr(settings, split)
        if file is not None:
            table = main if split == "train" else _read(absolute(base, file))
            sources[split], dropped = _usable(table, columns, settings, data, task)
            notes += [*table.notes, *dropped]
    classes = _classes(settings, data, task, sources)
    shares = _shares(data, settings, task, sources, classes)
    _check_targets(sources, shares, settings, task, classes)
    first = sources["train"]
    notes += check_not_given_away(main, first.rows, columns, settings.targets, task)
    notes += same_inputs(main, shares["train"], sources.get("val", first).table, shares["val"], columns)
    every: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    rows: dict[str, Rows] = {}
    labels = {name: number for number, name in enumerate(classes)}
    for split, numbers in shares.items():
        source = sources.get(split, sources["train"])
        if settings.pictures is not None:
            every[split] = _samples(source, numbers, settings, base, labels)
        elif numbers:
            named = Counter(label for row in numbers for label in _labels(source.truths[row], labels))
            counts = [named[label] for label in range(len(classes))]
            rows[split] = Rows(str(source.table.path), source.table.size, source.table.mtime_ns, numbers, counts)
    return Catalog(
        classes,
        every,
        list(dict.fromkeys(notes)),
        task=task,
        several_labels=data.several_labels,
        target_names=list(settings.targets) if task == "regression" else [],
        kind="table" if settings.pictures is None else "pictures",
        rows=rows,
    )


def _read(path: Path) -> TableFile:
    table = read_table(path)
    if not len(table):
        raise DataError("has no rows below the names of the columns", where=table.path, remedy="Add rows.")
    return table


def read_truths(
    table: TableFile, targets: Sequence[str], task: str, several_labels: bool, faults: Faults
) -> list[Truth | None]:
    """What is to be predicted of each row; None where a target has no value. What is no value goes to ``faults``."""
    table.require(targets, "data.table.targets")
    if task == "classification" and not several_labels:
        return list(table.words(targets[0]))
    if task == "classification":
        return [
            _several_labels(table, row, targets, words, faults)
            for row, words in enumerate(zip(*(table.words(name) for name in targets)))
        ]
    return [
        _whole(table, row, targets, numbers, faults)
        for row, numbers in enumerate(zip(*(table.numbers(name) for name in targets)))
    ]


def _several_labels(
    table: TableFile, row: int, targets: Sequence[str], words: Sequence[str | None], faults: Faults
) -> list[int] | None:
    for name, word in zip(targets, words):
        if word is not None and word.lower() not in _YES_OR_NO:
            what = f"`{word}` in column `{name}` is not 0 or 1"
            faults.add(what, table.place(row), "With data.several_labels each target column holds 0 and 1.")
    if None in words:
        return None
    return [number for number, word in enumerate(words) if word and _YES_OR_NO.get(word.lower())]


def _whole(
    table: TableFile, row: int, targets: Sequence[str], numbers: Sequence[float | None], faults: Faults
) -> list[float] | None:
    for name, number in zip(targets, numbers):
        if number is None or math.isinf(number):
            faults.add(
                f"`{table.columns[name][row]}` in the target column `{name}` is no "
                f"{'finite ' * (number is not None)}number",
                table.place(row),
                "Correct it; if the column holds names, the task is classification.",
            )
    if any(number is not None and math.isnan(number) for number in numbers):
        return None
    return [math.nan if number is None else number for number in numbers]


def _check_settings(table: TableFile, settings: Table, data: Data, task: str) -> None:
    table.require(settings.targets, "data.table.targets")
    if settings.group is not None:
        table.require([settings.group], "data.table.group")
    if settings.pictures is not None:
        table.require([settings.pictures], "data.table.pictures")
        if settings.inputs is not None:
            raise DataError(
                "data.table.inputs and data.table.pictures are both given",
                where=table.path,
                remedy="The network sees either the pictures or the columns; take one of the two out.",
            )
    if len(set(settings.targets)) < len(settings.targets):
        raise DataError("data.table.targets names a column twice", where=table.path, remedy="Name each once.")
    if task == "classification" and not data.several_labels and len(settings.targets) > 1:
        raise DataError(
            f"classification has one column of classes, but data.table.targets names {len(settings.targets)}",
            where=table.path,
            remedy="Name one; or, for columns of 0 and 1, data.several_labels: true; for numbers, task: regression.",
        )


def _usable(
    table: TableFile, columns: Sequence[Column], settings: Table, data: Data, task: str
) -> tuple[_Source, list[str]]:
    """The rows of a file that have all that is needed, and a note on those that have not."""
    table.require([column.name for column in columns], "the table to train on")
    faults = Faults()
    truths = read_truths(table, settings.targets, task, data.several_labels, faults)
    by_column = rows_with_gaps(table, columns, settings.missing, faults)
    if settings.pictures is not None:
        words = table.words(settings.pictures)
        by_column = {settings.pictures: [row for row, word in enumerate(words) if word is None]}
        if settings.missing != "drop":
            for row in by_column[settings.pictures]:
                faults.add(f"column `{settings.pictures}` names no picture here", table.place(row), "Name one.")
    gaps = {row for rows in by_column.values() for row in rows}
    if settings.missing != "drop":
        for row, truth in enumerate(truths):
            if truth is None:
                faults.add(
                    f"the target ({', '.join(settings.targets)}) has no value here",
                    table.place(row),
                    "Fill it in, delete the row, or set `missing: drop` under data.table to leave such rows out.",
                )
    faults.raise_if_any()
    left_out = gaps if settings.missing == "drop" or settings.pictures is not None else set()
    rows = [row for row, truth in enumerate(truths) if truth is not None and row not in left_out]
    worst = sorted(((len(rows), name) for name, rows in by_column.items() if rows), reverse=True)[:3]
    where = ", ".join(f"`{name}` {count}" for count, name in worst)
    if not rows:
        raise DataError(
            f"has no row in which nothing is missing (gaps: {where or 'the target'})",
            where=table.path,
            remedy="Fill them in, or name data.table.inputs without the emptiest columns.",
        )
    if len(rows) < len(table):
        what = f"{len(table) - len(rows)} of {len(table)} rows lack a value and are left out"
        return _Source(table, truths, rows), [f"{table.path}: {what}" + (f" (gaps: {where})" if where else "")]
    if gaps:
        what = f"{len(gaps)} of {len(table)} rows lack an input; the mean of the training rows stands in for it"
        return _Source(table, truths, rows), [f"{table.path}: {what} (gaps: {where})"]
    return _Source(table, truths, rows), []


def _classes(settings: Table, data: Data, task: str, sources: dict[SplitName, _Source]) -> list[str]:
    if task != "classification":
        return []
    if data.several_labels:
        return list(settings.targets)
    found = {str(source.truths[row]) for source in sources.values() for row in source.rows}
    return sorted(found, key=natural)


def _labels(truth: Truth | None, labels: dict[str, int]) -> list[int]:
    """The class numbers that a truth names."""
    if isinstance(truth, str):
        return [labels[truth]]
    return [number for number in truth or [] if isinstance(number, int)]


def _shares(
    data: Data, settings: Table, task: str, sources: dict[SplitName, _Source], classes: list[str]
) -> dict[SplitName, list[int]]:
    """Split → row numbers, ascending."""
    main = sources["train"]
    by_class: dict[str, list[int]] = {"": list(main.rows)}
    if task == "classification" and not data.several_labels:
        by_class = {name: [row for row in main.rows if main.truths[row] == name] for name in classes}
        _check_rows_of_classes(main.table, by_class, data, settings)
    if "val" in sources:
        shares = {split: list(source.rows) for split, source in sources.items()}
        if data.max_per_class is not None and "" not in by_class:
            shares["train"] = sorted(
                rows[at]
                for name, rows in by_class.items()
                for at in in_order(_ids(main, rows, settings), data.split.seed, name)[: data.max_per_class]
            )
        return shares
    split = _without_unseen(data.split) if "unseen" in sources else data.split
    groups = _groups(main, settings)
    shared: dict[SplitName, list[int]] = {which: [] for which in SPLITS}
    if groups is not None:
        chosen = share_out(_ids(main, main.rows, settings), split, groups=groups)
        shared = {which: [main.rows[at] for at in chosen[which]] for which in SPLITS}
    else:
        for name, rows in by_class.items():
            most = data.max_per_class if name else None
            for which, places in share_out(_ids(main, rows, settings), split, name=name, most=most).items():
                shared[which] += [rows[at] for at in places]
    if "unseen" in sources:
        shared["unseen"] = list(sources["unseen"].rows)
    return {which: sorted(rows) for which, rows in shared.items()}


def _ids(source: _Source, rows: Sequence[int], settings: Table) -> list[str]:
    """What decides on a row's split: its picture, else its number."""
    if settings.pictures is None:
        return [str(row) for row in rows]
    paths = source.table.words(settings.pictures)
    return [str(paths[row]) for row in rows]


def _groups(source: _Source, settings: Table) -> list[str] | None:
    """Which rows stay together: those of one group, or of one picture; a row without a group is one by itself."""
    name = settings.group or settings.pictures
    if name is None:
        return None
    words = source.table.words(name)
    groups = [f"\0{row}" if words[row] is None else str(words[row]) for row in source.rows]
    return groups if settings.group is not None or len(set(groups)) < len(groups) else None


def _without_unseen(split: Split) -> Split:
    whole = split.train + split.val
    return split.model_copy(update={"train": split.train / whole, "val": split.val / whole, "unseen": 0.0})


def _check_rows_of_classes(table: TableFile, by_class: dict[str, list[int]], data: Data, settings: Table) -> None:
    alone = settings.val is None
    least = max(data.min_per_class, needed(data.split)) if alone else data.min_per_class
    few = {name: len(rows) for name, rows in by_class.items() if len(rows) < least}
    if len(by_class) < 2:
        raise DataError(
            f"the target column `{settings.targets[0]}` holds a single class", where=table.path,
            remedy="Add rows of a second class, or name another column in data.table.targets.",
        )  # fmt: skip
    if few:
        shown = ", ".join(f"`{name}` {count}" for name, count in list(few.items())[:20])
        more = f" and {len(few) - 20} more" if len(few) > 20 else ""
        numbers = table.numbers(settings.targets[0])
        fractions = any(number is not None and number % 1 > 0 for number in numbers)
        raise DataError(
            f"these classes have too few rows: {shown}{more}; {least} are needed",
            where=table.path,
            remedy=f"The column `{settings.targets[0]}` looks like numbers to be predicted: set task: regression."
            if fractions
            else "Add rows, take these out, or change data.split or data.min_per_class.",
        )


def _check_targets(
    sources: dict[SplitName, _Source],
    shares: dict[SplitName, list[int]],
    settings: Table,
    task: str,
    classes: list[str],
) -> None:
    """Training rows must differ in what is to be learnt, and each class must be there where it is measured."""
    where = sources["train"].table.path
    train = [sources["train"].truths[row] for row in shares["train"]]
    if len(train) < 2 or not shares["val"]:
        raise DataError(
            f"{len(train)} rows to train on and {len(shares['val'])} to measure by are too few", where=where,
            remedy="Add rows, or change data.split.",
        )  # fmt: skip
    if task == "regression":
        for number, name in enumerate(settings.targets):
            values = {truth[number] for truth in train if isinstance(truth, list)}
            if len(values) == 1:
                raise DataError(
                    f"the target `{name}` is {values.pop():g} in all {len(train)} training rows", where=where,
                    remedy="There is nothing to learn: take it out of data.table.targets, or add other rows.",
                )  # fmt: skip
        return
    labels = {name: number for number, name in enumerate(classes)}
    for split in ("train", "val"):
        source = sources.get(split, sources["train"])
        there = {label for row in shares[split] for label in _labels(source.truths[row], labels)}
        if lacking := [name for name, label in labels.items() if label not in there]:
            raise DataError(
                f"{split} has no row of the class{'' if len(lacking) == 1 else 'es'} {named_list(lacking)}",
                where=source.table.path,
                remedy="Every class needs rows in train and val: add some, or take it out"
                + (", or change data.split.seed (whole groups were shared out)." if settings.group else "."),
            )


def _samples(source: _Source, rows: Sequence[int], settings: Table, base: Path, labels: dict[str, int]) -> list[Sample]:
    """The pictures that these rows name."""
    assert settings.pictures is not None
    table, faults, samples = source.table, Faults(), []
    root = table.path.parent if settings.root is None else absolute(base, settings.root)
    words = table.words(settings.pictures)
    for row in rows:
        relative, truth = str(words[row]), source.truths[row]
        path = os.path.abspath(os.path.join(root, os.path.expanduser(relative)))
        if not os.path.isfile(path):
            remedy = "Correct the path, or data.table.root, the folder that paths are relative to."
            faults.add(f"there is no file {path}", table.place(row), remedy)
            continue
        assert truth is not None
        file = found_file(path, relative)
        target = labels[truth] if isinstance(truth, str) else truth
        samples.append(Sample(path, target, file.size, file.mtime_ns))
    faults.raise_if_any()
    return samples
