"""What a prediction is, and how it is written: CSV row by row, JSON for the report."""

from __future__ import annotations

import csv
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from dlhpc.errors import UserError
from dlhpc.files import replace_json, replacing, storage_errors
from dlhpc.runs.checkpoints import CheckpointRecord
from dlhpc.runs.directory import RunDirectory


@dataclass(frozen=True)
class Prediction:
    """One picture's names with their probabilities, likeliest first. ``path`` is printable text."""

    path: str
    top: tuple[tuple[str, float], ...]
    truth: str | None = None

    @property
    def named(self) -> str:
        return self.top[0][0]

    @property
    def right(self) -> bool:
        """Whether the first name is the truth, where that is known."""
        return self.named == self.truth


@dataclass(frozen=True)
class Unreadable:
    """A picture that could not be read; ``reason`` begins with a verb."""

    path: str
    reason: str
    truth: str | None = None


Result = Prediction | Unreadable


class Writer(Protocol):
    """Takes results one by one."""

    def __call__(self, result: Result) -> None: ...


@contextmanager
def csv_file(path: Path, top: int, *, with_truth: bool = False) -> Iterator[Writer]:
    """A CSV table (UTF-8) that appears at ``path`` whole when the block ends, and not at all if it raises.

    Columns: ``path``, ``truth`` and ``right`` if asked for, ``class_1``, ``probability_1`` … up to ``top``, ``error``.
    Text that a spreadsheet would take for a formula has an apostrophe before it (:func:`no_formula`).
    Raises :class:`StorageError` at once if the place cannot be written to.
    """
    if path.is_dir():
        raise UserError("is a folder, not a file", where=path, remedy="Give the name of a file in it.")
    names = [part for rank in range(1, top + 1) for part in (f"class_{rank}", f"probability_{rank}")]
    truth = ["truth", "right"] if with_truth else []
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, ["path", *truth, *names, "error"], restval="", lineterminator="\n")
        rows.writeheader()

        def write(result: Result) -> None:
            row = {"path": result.path}
            if with_truth:
                row["truth"] = result.truth or ""
            if isinstance(result, Unreadable):
                row["error"] = result.reason
            else:
                if with_truth:
                    row["right"] = str(int(result.right))
                for rank, (name, probability) in enumerate(result.top, 1):
                    row |= {f"class_{rank}": name, f"probability_{rank}": f"{probability:.6f}"}
            rows.writerow({column: no_formula(value) for column, value in row.items()})

        yield write


def no_formula(text: str) -> str:
    """``text`` as a CSV cell that no spreadsheet runs: a class may be called ``=…`` by whoever sent the pictures.

    An apostrophe goes before ``=``, ``@``, tab and return, and before ``+`` and ``-`` unless a number follows
    (OWASP, "CSV Injection").
    """
    if text[:1] in ("=", "@", "\t", "\r"):
        return f"'{text}"
    if text[:1] in ("+", "-"):
        try:
            float(text)
        except ValueError:
            return f"'{text}"
    return text


def predictions_folder(run: RunDirectory) -> Path:
    """``RUN/predictions``, made if need be."""
    with storage_errors(run.predictions, "create"):
        run.predictions.mkdir(exist_ok=True)
    return run.predictions


def new_csv_path(run: RunDirectory, now: datetime) -> Path:
    """``RUN/predictions/pictures-YYYYMMDD-HHMMSS-xxxx.csv``: nobody else's at the same moment, without a lock."""
    return predictions_folder(run) / f"pictures-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}.csv"


@dataclass
class Tally:
    """Counts over all results of one call."""

    predicted: int = 0
    right: int = 0
    unreadable: int = 0

    def add(self, result: Result) -> None:
        if isinstance(result, Unreadable):
            self.unreadable += 1
        else:
            self.predicted += 1
            self.right += result.right

    @property
    def accuracy(self) -> float:
        """Fraction of the predicted pictures that were named right."""
        return self.right / self.predicted if self.predicted else 0.0


def write_unseen(path: Path, predictions: list[Prediction], tally: Tally, record: CheckpointRecord) -> None:
    """``unseen.json``, which the report shows."""
    replace_json(
        path,
        {
            "accuracy": tally.accuracy,
            "count": tally.predicted,
            "unreadable": tally.unreadable,
            "checkpoint": record.name,
            "epoch": record.epoch,
            "rows": [{"path": one.path, "truth": one.truth, "top": one.top} for one in predictions],
        },
    )
