"""``index.json`` of a packed dataset: all that is small about it. Standard library only, for login nodes.

Files of a packed dataset never change. What is added later lies in new files, and a new ``index.json`` names them; the
one before stays as ``index-gGENERATION.json``, so that a run which was planned with it still finds its data.
"""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dlhpc.data.splits import SPLITS
from dlhpc.errors import DataError, StorageError
from dlhpc.files import read_json

FORMAT = 2
INDEX = "index.json"

_OLDER = re.compile(r"index-g(\d+)\.json")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # of a file in the folder itself, whatever an index says


@dataclass(frozen=True)
class Shard:
    """One large file of samples."""

    file: str
    bytes: int
    samples: int
    crc32: int
    """Of the whole file, as zlib computes it."""


@dataclass(frozen=True)
class Index:
    """All about a packed dataset but the samples, their targets and paths."""

    kind: Literal["pictures", "table"]
    task: str
    """``classification``, ``detection`` or ``regression``."""
    storage: Literal["raw", "jpeg", "png"]
    dtype: str
    """``uint8`` or ``uint16``; ``float32`` for tables."""
    byte_order: str
    """``little`` or ``big``: of raw values with more than 8 bits."""
    classes: list[str]
    """Empty for regression."""
    counts: dict[str, int]
    """Split → samples."""
    class_counts: dict[str, list[int]]
    """Split → samples of each class (detection: boxes); empty lists for regression."""
    mean: list[float]
    """Per channel over the training pictures, on the scale where full is 1; per feature for tables."""
    std: list[float]
    """Standard deviation, likewise; never 0."""
    shards: list[Shard]
    files: dict[str, Shard]
    """What a file holds (``samples``, ``sources``, ``paths``, ``targets``, ``corners`` …) → that file."""
    fingerprint: str
    """SHA-256 over samples and targets of all splits."""
    several_labels: bool = False
    target_names: list[str] = field(default_factory=list)
    """Regression: T names."""
    target_mean: list[float] = field(default_factory=list)
    """Regression: T values over the training samples, in the user's units."""
    target_std: list[float] = field(default_factory=list)
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    color: str | None = None
    """``grey`` or ``rgb``."""
    resize: str | None = None
    features: list[str] = field(default_factory=list)
    """Tables: F names."""
    coding: dict[str, Any] | None = None
    """Tables: what codes a further row as these were."""
    histogram: list[list[int]] = field(default_factory=list)
    """Pictures: for each channel how often the training pictures have a value in each 256th of the full scale."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of each sample that was left out."""
    notes: list[str] = field(default_factory=list)
    key: str = ""
    """Of the catalogue that was packed."""
    generation: int = 1
    """One more with each addition."""
    format: int = FORMAT

    @property
    def shape(self) -> tuple[int, ...]:
        """C, H, W of one sample, or F."""
        if self.kind == "table":
            return (len(self.features),)
        return (self.channels or 0, self.height or 0, self.width or 0)

    @property
    def sample_bytes(self) -> int:
        """Size of one sample as :meth:`dlhpc.data.packed.Packed.read` gives it."""
        return math.prod(self.shape) * {"uint8": 1, "uint16": 2, "float32": 4}[self.dtype]

    def range_of(self, split: str) -> tuple[int, int]:
        """First sample of ``split`` and the one after its last: splits follow each other in the order of SPLITS."""
        first = sum(self.counts[before] for before in SPLITS[: SPLITS.index(split)])
        return first, first + self.counts[split]

    @property
    def total(self) -> int:
        """Samples of all splits."""
        return sum(self.counts[split] for split in SPLITS)


def read_index(folder: Path | str, fingerprint: str | None = None) -> Index:
    """The index of a packed dataset, or of its earlier generation that has ``fingerprint``.

    Raises :class:`StorageError` if it cannot be read, :class:`DataError` if it is damaged, of another version of
    dlhpc, or if no generation has the fingerprint.
    """
    folder = Path(folder)
    index = _read(folder / INDEX)
    if fingerprint is None or index.fingerprint == fingerprint:
        return index
    older = []
    with contextlib.suppress(OSError):
        older = [path for path in folder.iterdir() if _OLDER.fullmatch(path.name)]
    for path in older:
        with contextlib.suppress(DataError, StorageError):
            if (index := _read(path)).fingerprint == fingerprint:
                return index
    raise DataError(
        "the packed dataset is not the one any more that the run was planned with (its fingerprint has changed)",
        where=folder,
        remedy="Submit the run's spec.yaml again to train on the data as it is now.",
    )


def damaged(path: Path, what: str) -> DataError:
    """The error for a file of a packed dataset that is not as it was written; ``what`` begins with a verb."""
    return DataError(
        f"the packed dataset is damaged: {path.name} {what}",
        where=path,
        remedy=f"Delete the folder {path.parent}, then resume the run (it is packed anew from the pictures), or repeat "
        "`dlhpc data pack` if that made it.",
    )


def _read(path: Path) -> Index:
    try:
        value = read_json(path)
    except StorageError as error:
        if isinstance(error.__cause__, ValueError):
            raise damaged(path, "is not whole JSON") from error
        if isinstance(error.__cause__, FileNotFoundError) and path.parent.is_dir():
            raise StorageError(
                "there is no packed dataset here: index.json is missing",
                where=path.parent,
                remedy="Make one with `dlhpc data pack SOURCE --to FOLDER`, or correct the path.",
            ) from error
        raise
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise damaged(path, "is not an index of this version of dlhpc")
    try:
        index = Index(
            **{
                **value,
                "shards": [Shard(**shard) for shard in value["shards"]],
                "files": {name: Shard(**file) for name, file in value["files"].items()},
                "skipped": [(str(name), str(reason)) for name, reason in value["skipped"]],
            }
        )
        _check(index)
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise damaged(path, f"lacks or garbles {error}") from error
    return index


def _check(index: Index) -> None:
    """What would otherwise fail far from its cause, or lead out of the folder."""
    width = index.shape[0]
    for fine, what in (
        (index.kind in ("pictures", "table"), "kind"),
        (index.task in ("classification", "detection", "regression"), "task"),
        (index.storage in ("raw", "jpeg", "png"), "storage"),
        (index.dtype in (("uint8", "uint16") if index.kind == "pictures" else ("float32",)), "dtype"),
        (all(isinstance(size, int) and size > 0 for size in index.shape), "shape"),
        (len(index.mean) == len(index.std) == width, "mean"),
        (all(index.counts[split] >= 0 and isinstance(index.class_counts[split], list) for split in SPLITS), "counts"),
        (
            all(_NAME.fullmatch(file.file) for file in [*index.shards, *index.files.values()]),
            "names of files",
        ),
    ):
        if not fine:
            raise ValueError(what)
