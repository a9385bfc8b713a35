"""Which picture belongs to which class and split. Runs on the login node: standard library only, no picture is opened.

The catalogue is decided once, at submission, and travels in the run directory; what the job trains on is therefore
what the user saw in the plan, even when pictures are added meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from dlhpc.data.folders import absolute
from dlhpc.data.splits import SPLITS
from dlhpc.errors import DataError, StorageError, UserError
from dlhpc.files import read_json, replace_text

if TYPE_CHECKING:
    from dlhpc.spec.models import Data, TaskName

FORMAT = 2
PREPARATION = 2  # raise it when the same settings begin to give other pixels

Target = int | list[int] | list[float] | list[list[float]]
"""By task: a class number; with several labels the numbers of all that apply; regression one number a target;
detection one ``[class, left, top, right, bottom]`` a box, in pixels of the file's picture, class −1 for DontCare."""


class Sample(NamedTuple):
    """One picture: absolute path, what is to be learnt, and size in bytes and mtime as they were when it was listed."""

    path: str
    target: Target
    size: int = 0
    mtime_ns: int = 0

    @property
    def label(self) -> int:
        """The class number, in classification with one label a picture."""
        assert isinstance(self.target, int)
        return self.target


class Rows(NamedTuple):
    """The rows of one table that make a split."""

    path: str
    size: int
    mtime_ns: int
    numbers: list[int]
    """Ascending, 0 for the first row of data; the header does not count."""
    counts: list[int]
    """Classification: rows of each class."""


class PackedSet(NamedTuple):
    """A dataset that was packed before, as its index tells."""

    folder: str
    """Absolute."""
    fingerprint: str
    counts: dict[str, int]
    """Samples of each split."""
    class_counts: dict[str, list[int]]
    """Split → samples (detection: boxes) of each class."""
    storage: str
    channels: int | None
    height: int | None
    width: int | None
    """Of the pictures; None for rows of a table."""


@dataclass(frozen=True)
class Catalog:
    """All samples of a dataset. ``splits`` has the keys train, val and unseen (perhaps empty).

    Rows of a table are in ``rows``, a packed dataset in ``packed``; ``splits`` is empty then.
    """

    classes: list[str]
    """Empty for regression."""
    splits: dict[str, list[Sample]]
    notes: list[str] = field(default_factory=list)
    """What the user should know although it is no error, for example how many files were ignored."""
    task: TaskName = "classification"
    several_labels: bool = False
    target_names: list[str] = field(default_factory=list)
    """Regression: what the numbers of a target are called."""
    kind: Literal["pictures", "table"] = "pictures"
    rows: dict[str, Rows] = field(default_factory=dict)
    packed: PackedSet | None = None

    def count(self, split: str) -> int:
        """Samples in ``split``."""
        if self.packed is not None:
            return self.packed.counts.get(split, 0)
        if self.kind == "table":
            return len(self.rows[split].numbers) if split in self.rows else 0
        return len(self.splits[split])

    def counts(self, split: str) -> list[int]:
        """Samples of each class in ``split``; in detection boxes of each class."""
        if self.packed is not None:
            return self.packed.class_counts.get(split) or [0] * len(self.classes)
        if self.kind == "table":
            return self.rows[split].counts if split in self.rows else [0] * len(self.classes)
        counted: Counter[float] = Counter()
        for sample in self.splits[split]:
            counted.update(_labels(sample.target))
        return [counted[label] for label in range(len(self.classes))]

    def key(self, data: Data) -> str:
        """SHA-256 (hex) over the files with sizes and mtimes and over all settings that change the packed samples."""
        if self.packed is not None:
            return hashlib.sha256(f"packed\0{self.packed.fingerprint}".encode()).hexdigest()
        settings: list[object] = [
            PREPARATION, self.task, self.several_labels, self.target_names, self.kind, self.classes, data.broken,
        ]  # fmt: skip
        if self.kind == "pictures":
            settings += [data.color, data.width, data.height, data.resize, data.storage]
        elif data.table is not None:
            settings.append(data.table.model_dump(mode="json", include={"targets", "inputs", "categories", "missing"}))
        digest = hashlib.sha256(json.dumps(settings).encode())
        for split in SPLITS:
            found = (f"{split}\0{path}\0{what}\0{size}\0{time}\n" for path, what, size, time in self.splits[split])
            digest.update("".join(found).encode(errors="surrogateescape"))
            if split in self.rows:
                digest.update(json.dumps([split, *self.rows[split]]).encode())
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write as JSON, atomically. ASCII, since a file name need not be valid Unicode."""
        value = {"format": FORMAT, **{name: getattr(self, name) for name in _FIELDS}}
        replace_text(path, json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Catalog:
        """Read what :meth:`write` wrote; :class:`StorageError` if it is missing or damaged."""
        value = read_json(path)
        try:
            if value["format"] not in (1, FORMAT):  # 1 had classification alone, and is otherwise the same
                raise ValueError(f"format {value['format']}")
            splits: dict[str, list[Sample]] = {
                name: [Sample(str(p), target, int(n), int(t)) for p, target, n, t in value["splits"][name]]
                for name in SPLITS
            }
            packed = value.get("packed")
            return cls(
                [str(name) for name in value["classes"]],
                splits,
                [str(note) for note in value["notes"]],
                task=value.get("task", "classification"),
                several_labels=bool(value.get("several_labels", False)),
                target_names=list(value.get("target_names", [])),
                kind=value.get("kind", "pictures"),
                rows={split: Rows(*rows) for split, rows in value.get("rows", {}).items()},
                packed=None if packed is None else PackedSet(*packed),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"is not a catalogue of this version of dlhpc: {error}", where=path, remedy="Submit the run anew."
            ) from error


_FIELDS = ("classes", "splits", "notes", "task", "several_labels", "target_names", "kind", "rows", "packed")


def _labels(target: Target) -> list[float]:
    """The classes that a target names; regression has none of them."""
    if isinstance(target, int):
        return [target]
    return [one[0] if isinstance(one, list) else one for one in target]


def make_catalog(data: Data, base: Path, task: TaskName = "classification") -> Catalog:
    """List and split the samples that ``data`` asks for; its paths are relative to the folder ``base``.

    Raises :class:`DataError` (or an :class:`ErrorList` of them) when they cannot be trained on as they are,
    :class:`StorageError` when a folder cannot be read, :class:`UserError` when a packed set is of another task.
    """
    _check_folds(data)
    # Each kind of source is a module of its own, loaded when it is used.
    if data.packed is not None:
        return _from_packed(absolute(base, data.packed), task)
    if data.table is not None:
        from dlhpc.data.tables import table_catalog

        return table_catalog(data, base, task)
    if data.kitti is not None:
        from dlhpc.data.kitti import kitti_catalog

        return kitti_catalog(data.kitti, data.split, base)
    if data.lists is not None:
        from dlhpc.data.lists import list_catalog

        return list_catalog(data, base, task)
    from dlhpc.data.class_folders import one_folder, separate_folders

    if data.folder is not None:
        return one_folder(data, absolute(base, data.folder))
    assert data.folders is not None  # the spec has exactly one of the sources
    named = {split: getattr(data.folders, split) for split in SPLITS}
    return separate_folders(data, {split: absolute(base, path) for split, path in named.items() if path is not None})


def _check_folds(data: Data) -> None:
    """Folds are cut from one source."""
    if data.split.folds is None:
        return
    if data.kitti is not None:
        own = data.kitti.val_images is not None
    elif data.table is not None:
        own = data.table.val is not None
    else:
        own = data.folder is None
    if own:
        raise UserError(
            "data.split.folds cuts one set of samples into parts, but here val is given apart",
            remedy="Remove data.split.folds, or give all samples in one place.",
        )


def _from_packed(folder: Path, task: TaskName) -> Catalog:
    from dlhpc.data.index import read_index

    index = read_index(folder)
    if index.task != task:
        raise UserError(
            f"this packed dataset was made for {index.task}, but the task is {task}",
            where=folder,
            remedy=f"Write `task: {index.task}` into the spec, or name another dataset.",
        )
    for split in ("train", "val"):
        if not index.counts.get(split):
            raise DataError(
                f"this packed dataset has no samples in {split}", where=folder, remedy="Pack it anew with such samples."
            )
    packed = PackedSet(
        str(folder), index.fingerprint, index.counts, index.class_counts, index.storage, index.channels, index.height,
        index.width,
    )  # fmt: skip
    return Catalog(
        index.classes,
        {split: [] for split in SPLITS},
        list(index.notes),
        task=task,
        several_labels=index.several_labels,
        target_names=index.target_names,
        kind=index.kind,
        packed=packed,
    )
