"""Reading tables: CSV with the standard library, Parquet with pyarrow. Nothing is interpreted here but the cells.

Used on the login node: no NumPy. RFC 4180 says what CSV is; beside commas we take semicolons (with decimal commas) and
tabs, as spreadsheets write them.
"""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlhpc.data.faults import SHOWN, Faults
from dlhpc.errors import DataError, Place, UserError
from dlhpc.files import read_user_text, storage_errors

SEPARATORS = ",;\t"
MISSING = frozenset(["", "NA", "N/A", "n/a", "NaN", "nan", "NAN", "null", "NULL", "#N/A", "<NA>"])
"""What spreadsheets, pandas and R write where there is nothing. (Not `Na`, which is sodium.)"""
_NO_NUMBER = MISSING | {"None", "none", "-", "--", "?", "."}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d*(?:[eE][+-]?\d+)?")
_FORTRAN = re.compile(r"([+-]?\d*\.?\d*)[dD]([+-]?\d+)")  # 1.5D+03, as many simulation programs print

Cell = str | float | None
"""What stands in a cell: None where there is nothing; numbers from Parquet; everything in CSV is text."""


@dataclass(frozen=True)
class TableFile:
    """A table as it was read; all columns are equally long."""

    path: Path
    columns: dict[str, list[Cell]]
    lines: Sequence[int]
    """Where each row stands: its line in a CSV file; in Parquet its number from 1."""
    size: int
    mtime_ns: int
    separator: str = ","
    notes: list[str] = field(default_factory=list)
    _numbers: dict[str, list[float | None]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int) -> Place:
        """Where ``row`` (from 0) stands."""
        return Place(str(self.path), self.lines[row])

    def require(self, names: Iterable[str], what: str = "column") -> None:
        """:class:`DataError` for the first of ``names`` that is no column; ``what`` says who asks for it."""
        for name in names:
            if name not in self.columns:
                near = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.5)
                there = ", ".join(f"`{column}`" for column in list(self.columns)[:SHOWN])
                more = f" and {len(self.columns) - SHOWN} more" if len(self.columns) > SHOWN else ""
                raise DataError(
                    f"has no column `{name}`, which {what} names",
                    where=self.path,
                    remedy="".join(f"Did you mean `{one}`? " for one in near) + f"The columns are {there}{more}.",
                )

    def numbers(self, name: str) -> list[float | None]:
        """A column as numbers: NaN where nothing stands, None where what stands there is no number."""
        if name not in self._numbers:  # several checks ask for the same
            comma = self.separator == ";"
            self._numbers[name] = [_as_number(cell, comma) for cell in self.columns[name]]
        return self._numbers[name]

    def words(self, name: str) -> list[str | None]:
        """A column as words: None where nothing stands."""
        return [_as_word(cell) for cell in self.columns[name]]


def _as_number(cell: Cell, decimal_comma: bool) -> float | None:
    if cell is None:
        return math.nan
    if not isinstance(cell, str):
        return float(cell)
    try:
        if "_" not in cell:  # Python takes 1_000 for a number; nobody else does
            return float(cell)
    except ValueError:
        if cell in _NO_NUMBER:
            return math.nan
        if decimal_comma and _DECIMAL_COMMA.fullmatch(cell):
            return _as_number(cell.replace(",", "."), False)
        if fortran := _FORTRAN.fullmatch(cell):
            return _as_number(f"{fortran[1]}e{fortran[2]}", False)
    return None


def _as_word(cell: Cell) -> str | None:
    if cell is None or isinstance(cell, str):
        return cell
    if math.isnan(cell):
        return None
    return str(int(cell)) if float(cell).is_integer() else repr(cell)


def read_table(path: Path) -> TableFile:
    """Read a CSV or Parquet file.

    Raises :class:`DataError` (or several, with lines) if the table is not well-formed, :class:`StorageError` if it
    cannot be read, :class:`UserError` if it is Parquet and pyarrow is not installed.
    """
    if path.is_dir():
        raise DataError("is a folder; a table is needed", where=path, remedy="Name the file inside it.")
    if not path.exists():
        raise DataError("there is no such file", where=path, remedy=_near_file(path))
    with storage_errors(path, "read"), open(path, "rb") as file:
        status = os.fstat(file.fileno())
        start = file.read(4)
    if start == b"PAR1":
        return _read_parquet(path, status)
    if start[:2] in (b"\x1f\x8b", b"BZ") or start == b"\xfd7zX":
        raise DataError("is compressed", where=path, remedy="Unpack it first, for example with gunzip.")
    if start[:2] in (b"PK", b"\xd0\xcf"):
        raise DataError(
            "is a spreadsheet, not a text file", where=path, remedy="Save it as `CSV UTF-8` and name that file."
        )
    return _read_csv(path, status)


def _near_file(path: Path) -> str:
    try:
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    except OSError:
        near = []
    return f"Did you mean {path.with_name(near[0])}?" if near else "Check the path under data.table."


def _read_csv(path: Path, status: os.stat_result) -> TableFile:
    text = read_user_text(path, DataError)
    lines = iter(io.StringIO(text, newline=""))  # the csv module sees to the ends of lines, also inside quotes
    blank = 0
    first = ""
    for first in lines:
        if first.strip():
            break
        blank += 1
    else:
        raise DataError("is empty", where=path, remedy="The first line names the columns, each further line is a row.")
    separator = max(SEPARATORS, key=lambda mark: re.sub(r'"[^"]*"', "", first).count(mark))
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True, skipinitialspace=True)
    rows: list[list[str]] = []
    starts: list[int] = []
    faults = Faults()
    names: list[str] = []
    while True:
        line = blank + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"the quotes of this row do not fit: {error}",
                where=Place(str(path), line),
                remedy='Close each quote; a quote inside a quoted cell is written twice: "3"" pipe".',
            ) from error
        if cells is None:
            break
        if not names:
            names = [name.strip() for name in cells]
            continue
        if not any(cell and not cell.isspace() for cell in cells):
            continue
        if len(cells) != len(names):
            faults.add(
                f"has {len(cells)} fields, but the first line names {len(names)} columns",
                Place(str(path), line),
                _fields_remedy(separator, len(cells) > len(names)),
            )
            continue
        rows.append(cells)
        starts.append(line)
    faults.raise_if_any()
    values: list[list[Cell]] = [[_clean(cell) for cell in column] for column in zip(*rows)] or [[] for _ in names]
    columns, notes = _named(path, names, values, blank + 1)
    return TableFile(path, columns, starts, status.st_size, status.st_mtime_ns, separator, notes)


def _fields_remedy(separator: str, too_many: bool) -> str:
    name = {",": "comma", ";": "semicolon", "\t": "tab"}[separator]
    if too_many:
        return f"Put cells that hold a {name} into double quotes, or take the surplus {name} out."
    return f"Add what is missing; a cell without a value still needs its {name}."


def _clean(cell: str) -> str | None:
    cell = cell.strip()
    return None if cell in MISSING else cell


def _named(
    path: Path, names: Sequence[str], values: Sequence[list[Cell]], line: int | None
) -> tuple[dict[str, list[Cell]], list[str]]:
    """Columns by name. Those without a name, such as the numbers that pandas puts in front, are left out."""
    columns: dict[str, list[Cell]] = {}
    notes = []
    for number, (name, cells) in enumerate(zip(names, values), 1):
        if name in columns:
            raise DataError(
                f"two columns are called `{name}`",
                where=Place(str(path), line),
                remedy="Give each column a name of its own.",
            )
        if name:
            columns[name] = cells
        elif any(cell is not None for cell in cells):
            notes.append(f"{path}: column {number} has no name and is not used")
    if not columns:
        raise DataError(
            "the first line names no column", where=Place(str(path), line), remedy="Write the names of the columns."
        )
    return columns, notes


def _read_parquet(path: Path, status: os.stat_result) -> TableFile:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            "is a Parquet file, and pyarrow, which reads it, is not installed here",
            where=path,
            remedy="Install it with `pip install pyarrow`, or save the table as CSV.",
        ) from error
    try:
        with storage_errors(path, "read"):
            table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"is damaged, or no Parquet file: {str(error).splitlines()[0]}", where=path, remedy="Write it again."
        ) from error
    flat = [number for number, field in enumerate(table.schema) if not pyarrow.types.is_nested(field.type)]
    names = [table.schema.names[number] for number in flat]
    nested = [name for name in table.schema.names if name not in names]
    notes = [f"{path}: column `{name}` holds lists or structures and is not used" for name in nested]
    values = [[_parquet_cell(cell) for cell in table.column(number).to_pylist()] for number in flat]
    columns, unnamed = _named(path, names, values, None)
    lines = range(1, table.num_rows + 1)
    return TableFile(path, columns, lines, status.st_size, status.st_mtime_ns, notes=notes + unnamed)


def _parquet_cell(cell: Any) -> Cell:
    if cell is None or isinstance(cell, float):
        return cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int):
        return float(cell) if abs(cell) < 2**53 else str(cell)
    if isinstance(cell, str):
        return _clean(cell)
    if isinstance(cell, bytes):
        return _clean(cell.decode(errors="replace"))
    try:
        return float(cell)  # Decimal
    except (TypeError, ValueError):
        return _clean(str(cell))  # dates and times
