"""Adding pictures to a packed dataset without packing it again, and without disturbing who trains on it.

New pictures go into new shards, and a new table names them after those that were there; both have names of their own.
Then a new ``index.json`` makes the addition count. Nothing that a running training may read is touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.catalog import Catalog, Sample, Target
from dlhpc.data.index import Index
from dlhpc.data.pack import SHOWN, Packing, Preparation, Progress
from dlhpc.data.packed import Packed, open_packed
from dlhpc.data.samples import DONT_CARE, Boxes, Targets, join_boxes
from dlhpc.data.splits import SPLITS
from dlhpc.data.workplace import remove_stale, workplace
from dlhpc.data.writing import Table, target_statistics, value_statistics, write_index, write_table
from dlhpc.errors import DataError, StorageError, UserError
from dlhpc.files import storage_errors

_GENERATION = re.compile(r"[a-z_]+-g(\d+)(?:-\d+)?\.(?:npy|bin|json)")


@dataclass(frozen=True)
class Added:
    """What came of an addition."""

    packed: Packed
    """Open, in its new generation; the old one if nothing was new."""
    new: int
    known: int
    """Pictures that were in the dataset already: the same file, or the same picture under another name."""


def add_pictures(
    folder: Path, catalog: Catalog, *, skip_broken: bool, threads: int, progress: Progress | None = None
) -> Added:
    """Add the pictures of ``catalog`` that ``folder`` does not hold yet, prepared as those in it were.

    Every picture in it stays in its split and in its place; a new one goes where the catalogue puts it. New classes
    come after those that are there. Raises :class:`DataError` for pictures that are in it but have changed, or that do
    not fit it, :class:`UserError` if the dataset is of another kind or task, and what :func:`dlhpc.data.pack.pack`
    raises.
    """
    with _only_addition(folder), open_packed(folder) as packed:
        index = packed.index
        _check_fits(folder, index, catalog)
        _remove_orphans(folder, index)
        remove_stale(folder)
        classes = [*index.classes, *(name for name in catalog.classes if name not in index.classes)]
        known_paths = {path: place for place, path in enumerate(_all_paths(packed))}
        fresh = _fresh(packed, _renumbered(catalog, classes), known_paths)
        total = sum(map(len, fresh.splits.values()))
        asked = sum(map(len, catalog.splits.values()))
        if total:
            how = Preparation(
                cast(Any, index.color), packed.height, packed.width, cast(Any, index.resize), skip_broken, index.storage
            )
            signature = _signature(index, fresh)
            with workplace(folder / "add", signature) as beside:
                packing = Packing(
                    fresh,
                    how,
                    cast(Any, index.color),
                    packed.dtype,
                    beside,
                    threads,
                    progress,
                    prefix=f"pictures-g{index.generation + 1}",
                    leave_out=frozenset(row.tobytes() for row in packed.sources["checksum"]),
                )
                added = _merge(packed, packing, classes, known_paths)
        if not total or not added:
            return Added(open_packed(folder), 0, asked)
    opened = open_packed(folder)
    left_out = len(opened.skipped) - len(index.skipped)
    return Added(opened, added, asked - added - left_out)


@contextlib.contextmanager
def _only_addition(folder: Path) -> Iterator[None]:
    """Hold the dataset's lock for additions; where there are no locks, :func:`_merge` notices another one."""
    path = folder / ".add.lock"
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                "somebody else is adding pictures to this dataset", where=folder, remedy="Try again when that is done."
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _check_fits(folder: Path, index: Index, catalog: Catalog) -> None:
    if index.kind == "table" or catalog.kind == "table":
        raise UserError(
            "rows of a table cannot be added one by one",
            where=folder,
            remedy="Pack the longer table anew, into another folder; that takes seconds.",
        )
    if catalog.packed is not None:
        raise UserError("what is to be added is packed already", remedy="Name the pictures themselves.")
    of = (index.task, index.several_labels, index.target_names)
    wanted = (catalog.task, catalog.several_labels, catalog.target_names)
    if of != wanted:
        raise UserError(
            f"the dataset is for {_described(*of)}, what is to be added for {_described(*wanted)}",
            where=folder,
            remedy="Pack it into a folder of its own.",
        )


def _described(task: str, several: bool, names: list[str]) -> str:
    of = f" of {', '.join(names)}" if names else ""
    return f"{task}{of}{' with several labels' if several else ''}"


def _all_paths(packed: Packed) -> list[str]:
    return [path for split in SPLITS for path in packed.paths(split)]


def _renumbered(catalog: Catalog, classes: list[str]) -> Catalog:
    """The catalogue with the dataset's class numbers."""
    number = {old: classes.index(name) for old, name in enumerate(catalog.classes)}
    number[DONT_CARE] = DONT_CARE

    def renumber(target: Any) -> Target:
        if catalog.task == "regression":
            return cast(Target, target)
        if catalog.task == "detection":
            return [[number[int(box[0])], *box[1:]] for box in target]
        return [number[label] for label in target] if catalog.several_labels else number[target]

    splits = {
        split: [sample._replace(target=renumber(sample.target)) for sample in samples]
        for split, samples in catalog.splits.items()
    }
    return dataclasses.replace(catalog, classes=classes, splits=splits)


def _fresh(packed: Packed, catalog: Catalog, known: dict[str, int]) -> Catalog:
    """What is not in the dataset, or may have changed since it was packed."""
    sources = packed.sources
    sizes, times = sources["size"].tolist(), sources["mtime_ns"].tolist()
    everything = _joined([packed.targets(split) for split in SPLITS])
    other_target = []

    def wanted(sample: Sample) -> bool:
        place = known.get(sample.path)
        if place is None:
            return True
        if not _same_target(everything, place, sample.target):
            other_target.append(sample.path)
        return (sizes[place], times[place]) != (sample.size, sample.mtime_ns)

    splits = {split: [*filter(wanted, samples)] for split, samples in catalog.splits.items()}
    if other_target:
        raise DataError(
            f"{len(other_target)} pictures of the dataset have another class or target now:\n{_listed(other_target)}",
            where=packed.folder,
            remedy="What is packed does not change; pack everything anew, into another folder.",
        )
    return dataclasses.replace(catalog, splits=splits)


def _same_target(targets: Targets, place: int, target: Any) -> bool:
    """Whether a packed target is this one; of boxes, which were moved and clipped, only that none has been added."""
    if isinstance(targets, Boxes):
        return len(targets.of(place)[1]) <= len(target)
    value = targets[place]
    if targets.dtype == np.uint8:
        return np.flatnonzero(value).tolist() == sorted(set(target))
    return bool(np.array_equal(np.atleast_1d(value), np.atleast_1d(np.array(target, dtype=targets.dtype))))


def _merge(packed: Packed, packing: Packing, classes: list[str], known: dict[str, int]) -> int:
    """Make the shards, put old and new into one table, and let it count; the number of pictures added."""
    folder, old = packed.folder, packed.index
    parts = packing.shards()
    fresh, new, arrays = packing.table(parts)
    changed = [path for path in new.paths if path in known]
    if changed:
        raise DataError(
            f"{len(changed)} pictures of the dataset have changed since they were packed:\n{_listed(changed)}",
            where=folder,
            remedy="What is packed does not change; pack everything anew, into another folder.",
        )
    packing.check_changed(parts, "", None)
    if not new.paths:
        return 0
    with storage_errors(folder, "move the new shards into"):
        for shard in fresh.shards:
            os.rename(packing.folder / shard.file, folder / shard.file)
    index = dataclasses.replace(
        old,
        classes=classes,
        shards=[*old.shards, *fresh.shards],
        generation=old.generation + 1,
        skipped=[*old.skipped, *fresh.skipped],
    )
    table = _joined_tables(packed, new, classes)
    sums, values = packed.load("sums") + arrays["sums"], packed.load("values") + arrays["values"]
    mean, std, histogram = value_statistics(values)
    index = dataclasses.replace(index, mean=mean, std=std, histogram=histogram)
    if index.task == "regression":
        train = cast("NDArray[np.float64]", table.targets)[: table.counts["train"]]
        target_mean, target_std = target_statistics(train)
        index = dataclasses.replace(index, target_mean=target_mean, target_std=target_std)
    index = write_table(folder, index, table, {"sums": sums, "values": values})
    with open_packed(folder) as now:
        if now.fingerprint != old.fingerprint:
            raise StorageError(
                "somebody else has added pictures to this dataset meanwhile", where=folder, remedy="Repeat the command."
            )
    write_index(folder, index)
    return len(new.paths)


def _joined_tables(packed: Packed, new: Table, classes: list[str]) -> Table:
    """Split by split the old samples and then the new ones."""
    old = packed.index
    counts = {split: old.counts[split] + new.counts[split] for split in SPLITS}
    order: list[NDArray[np.int64]] = []
    first_old, first_new = 0, old.total
    for split in SPLITS:
        order += [
            np.arange(first_old, first_old + old.counts[split]),
            np.arange(first_new, first_new + new.counts[split]),
        ]
        first_old, first_new = first_old + old.counts[split], first_new + new.counts[split]
    take = np.concatenate(order)
    later = new.samples.copy()
    later["shard"] += len(old.shards)
    paths = [*_all_paths(packed), *new.paths]
    targets = [packed.targets(split) for split in SPLITS]
    if old.several_labels and len(classes) > len(old.classes):
        more = len(classes) - len(old.classes)
        targets = [np.pad(cast("NDArray[Any]", part), ((0, 0), (0, more))) for part in targets]
    everything = _joined([*targets, new.targets])
    return Table(
        np.concatenate([packed.load("samples"), later])[take],
        np.concatenate([packed.sources, new.sources])[take],
        [paths[place] for place in take.tolist()],
        everything.take(take) if isinstance(everything, Boxes) else everything[take],
        {str(split): count for split, count in counts.items()},
    )


def _joined(parts: list[Targets]) -> Targets:
    boxes = [part for part in parts if isinstance(part, Boxes)]
    if boxes:
        return join_boxes([part.of(place) for part in boxes for place in range(len(part))])
    return np.concatenate([part for part in parts if not isinstance(part, Boxes)])


def _signature(index: Index, fresh: Catalog) -> str:
    digest = hashlib.sha256(index.fingerprint.encode())
    digest.update(repr(sorted(fresh.splits.items())).encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]


def _remove_orphans(folder: Path, index: Index) -> None:
    """Files of an addition that died before it counted."""
    for path in folder.iterdir():
        found = _GENERATION.fullmatch(path.name)
        if found and int(found[1]) > index.generation:
            with contextlib.suppress(OSError):
                path.unlink()


def _listed(paths: list[str]) -> str:
    more = f"\n  … and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return "\n".join(f"  {path}" for path in paths[:SHOWN]) + more
