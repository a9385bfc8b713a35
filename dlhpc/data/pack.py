"""Bring all samples of a catalogue to one shape and write them as one packed dataset, once for all runs that share it.

Threads decode (Pillow, NumPy and the decoders let other threads run meanwhile) while this one writes and sums in the
catalogue's order, so the result does not depend on timing. Everything is written in a hidden folder beside the final
one and renamed at the end: a pack that dies leaves nothing that counts, though its finished shards are used by who
starts again, and of two that run at once the first to end wins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlhpc.data import shards as shard_files
from dlhpc.data.boxes import boxes_in_frame
from dlhpc.data.catalog import Catalog, Sample
from dlhpc.data.encoded import encoded, stored_picture
from dlhpc.data.folders import show_path
from dlhpc.data.index import Index
from dlhpc.data.packed import SAMPLE, SOURCE, Packed, checksum, open_packed
from dlhpc.data.pictures import (
    BrokenPicture,
    Color,
    Resize,
    Storage,
    as_color,
    decode,
    decode_content,
    file_content,
    fitted,
    is_grey,
    window,
)
from dlhpc.data.samples import Boxes, Targets, join_boxes
from dlhpc.data.shards import Finished, Made, ShardWriter, finished_shard, value_counts
from dlhpc.data.splits import SPLITS
from dlhpc.data.workplace import check_space, publish, remove_stale, workplace
from dlhpc.data.writing import (
    Table,
    class_counts,
    target_statistics,
    targets_of,
    value_statistics,
    write_index,
    write_table,
)
from dlhpc.errors import DataError, StorageError
from dlhpc.files import storage_errors

SHOWN = 20
"""So many broken pictures are told by name."""
_LOOKED_AT = 32  # pictures that decide on colour and depth before all are read
_NOTHING = np.zeros((1, 1), np.int64)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Preparation:
    """How pictures are brought to one shape; ``color`` None means that the first pictures looked at decide."""

    color: Color | None
    height: int
    width: int
    resize: Resize
    skip_broken: bool
    storage: Storage = "raw"


class BrokenPictures(DataError):
    """Pictures of the dataset that cannot be read, when the spec does not allow to skip them."""

    def __init__(self, broken: Sequence[BrokenPicture], count: int) -> None:
        self.broken = broken
        listed = "\n".join(f"  {fault.path}: {fault.reason}" for fault in broken[:SHOWN])
        more = f"\n  … and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        one = len(broken) == 1
        super().__init__(
            f"{len(broken)} of {count} pictures cannot be read:\n{listed}{more}",
            remedy=f"Replace or delete {'it' if one else 'them'} and submit again, or set `broken: skip` under `data:` "
            f"to train without {'it' if one else 'them'}.",
        )


class ChangedPictures(DataError):
    """Files that are not those any more which the run was submitted with."""

    def __init__(self, paths: Sequence[str], what: str = "picture") -> None:
        listed = "\n".join(f"  {path}" for path in paths[:SHOWN])
        more = f"\n  … and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        one = len(paths) == 1
        super().__init__(
            f"{len(paths)} {what}{' has' if one else 's have'} changed since the run was submitted:\n{listed}{more}",
            remedy=f"Submit its spec.yaml again to train on the {what}s as they are now.",
        )


class _Deeper(DataError):
    """A 16-bit picture turned up in a set that had looked like 8 bits; what was packed so far is of no use."""


def pack(
    catalog: Catalog,
    how: Preparation,
    folder: Path,
    *,
    key: str,
    threads: int,
    progress: Progress | None = None,
    trained_on: str | None = None,
    replace_damaged: bool = True,
) -> Packed:
    """The packed pictures in ``folder``, made now if they are not there; ``progress(done, total)`` is called a picture.

    One 16-bit picture makes the whole set ``uint16``, 8-bit values being multiplied by 257. Files that have changed
    since they were listed are refused, unless the whole has the fingerprint ``trained_on``. A damaged dataset in
    ``folder`` is replaced only with ``replace_damaged``. Raises :class:`ChangedPictures`, :class:`BrokenPictures` (all
    of them found) unless they are skipped, :class:`DataError` if skipping leaves a class without pictures in train or
    val, :class:`StorageError` if the disk is too full, before or while writing.
    """
    with contextlib.suppress(DataError, StorageError):
        return open_packed(folder)
    with storage_errors(folder.parent, "create"):
        folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder.parent)
    looked_at = look(catalog.splits["train"])
    color: Color = how.color or ("grey" if all(grey for grey, _ in looked_at) else "rgb")
    dtype = np.dtype(np.uint16 if any(dtype == np.uint16 for _, dtype in looked_at) else np.uint8)
    if folder.with_name(f".{folder.name}.{_signature(key, how, color, np.dtype(np.uint16))}.part").is_dir():
        dtype = np.dtype(np.uint16)  # an attempt that died has found out that it must be
    while True:
        try:
            with workplace(folder, _signature(key, how, color, dtype)) as beside:
                packing = Packing(catalog, how, color, dtype, beside, threads, progress)
                index = packing.run(trained_on)
                write_index(beside, dataclasses.replace(index, key=key))
                publish(beside, folder, replace_damaged=replace_damaged)
            return open_packed(folder)
        except _Deeper:
            dtype = np.dtype(np.uint16)
        except StorageError:
            # Where locks do not reach from node to node, another may have finished this very folder meanwhile.
            with contextlib.suppress(DataError, StorageError):
                return open_packed(folder)
            raise


def _signature(key: str, how: Preparation, color: Color, dtype: np.dtype[Any]) -> str:
    """Equal for packs that give the same shards."""
    about = [key, dataclasses.asdict(how), color, dtype.name, shard_files.SHARD_BYTES, shard_files.SHARD_SAMPLES]
    return hashlib.sha256(json.dumps([*about, sys.byteorder]).encode()).hexdigest()[:12]


def look(train: Sequence[Sample]) -> list[tuple[bool, np.dtype[Any]]]:
    """Whether grey, and depth, of some pictures spread over all classes; broken ones say nothing."""
    chosen = sorted({round(place) for place in np.linspace(0, len(train) - 1, min(_LOOKED_AT, len(train)))})
    found = []
    for place in chosen:
        with contextlib.suppress(BrokenPicture):
            values = decode(train[place].path)
            found.append((is_grey(values), values.dtype))
    return found


@dataclass
class Packing:
    """One pass over all pictures of a catalogue, into shards in one folder."""

    catalog: Catalog
    how: Preparation
    color: Color
    dtype: np.dtype[Any]
    folder: Path
    threads: int
    progress: Progress | None = None
    prefix: str = "pictures"
    """What the shards' names begin with."""
    leave_out: frozenset[bytes] = frozenset()
    """Checksums of samples that are not to be written."""
    broken: list[BrokenPicture] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    _done: int = 0

    def __post_init__(self) -> None:
        self.items = [sample for split in SPLITS for sample in self.catalog.splits[split]]
        self.train = len(self.catalog.splits["train"])
        self.shape = (3 if self.color == "rgb" else 1, self.how.height, self.how.width)
        self.sums = np.zeros(self.shape, np.int64)
        self.values = np.zeros((self.shape[0], int(np.iinfo(self.dtype).max) + 1), np.int64)

    def run(self, trained_on: str | None = None) -> Index:
        """Write shards and table; the index of the dataset, without its key."""
        parts = self.shards()
        index, table, arrays = self.table(parts)
        self._check_classes(index, table)
        index = write_table(self.folder, index, table, arrays)
        self.check_changed(parts, index.fingerprint, trained_on)
        for record in self.folder.glob(f"{self.prefix}-*.npz"):
            record.unlink()
        return index

    def check_changed(self, parts: list[Finished], fingerprint: str, trained_on: str | None) -> None:
        """Refuse files that changed after they were listed: the key would promise what is not in here."""
        changed = sorted({path for part in parts for path in part.changed})
        if changed and fingerprint != trained_on:
            raise ChangedPictures(changed)

    def shards(self) -> list[Finished]:
        """Make every shard that is not finished yet. Raises :class:`BrokenPictures` unless they may be skipped."""
        planned = [*enumerate(self._planned())]
        found = [finished_shard(self.folder, self._name(number)) for number, _ in planned]
        missing = sum(end - first for (_, (first, end)), part in zip(planned, found) if part is None)
        check_space(self.folder, self._bytes(missing))
        parts = []
        for (number, (first, end)), part in zip(planned, found):
            if part is None:
                part = self._shard(number, first, end)
            else:
                self._advance(end - first)
            self.sums += part.sums
            self.values += part.values
            parts.append(dataclasses.replace(part, sums=_NOTHING, values=_NOTHING))
        if self.broken and not self.how.skip_broken:
            raise BrokenPictures(self.broken, len(self.items))
        return parts

    def _planned(self) -> list[tuple[int, int]]:
        """First and end of each shard's samples."""
        if self.how.storage == "raw":
            size = int(np.prod(self.shape)) * self.dtype.itemsize
            most = max(1, min(shard_files.SHARD_BYTES // size, shard_files.SHARD_SAMPLES))
            return [(first, min(first + most, len(self.items))) for first in range(0, len(self.items), most)]
        planned, first, filled = [], 0, 0
        for place, sample in enumerate(self.items):
            full = filled + sample.size > shard_files.SHARD_BYTES or place - first >= shard_files.SHARD_SAMPLES
            if full and place > first:
                planned.append((first, place))
                first, filled = place, 0
            filled += sample.size
        return [*planned, (first, len(self.items))] if self.items else planned

    def _bytes(self, samples: int) -> float:
        """What so many samples take on disk; an estimate for encoded ones, whose originals are mostly kept."""
        if self.how.storage == "raw":
            return samples * float(np.prod(self.shape)) * self.dtype.itemsize
        return 1.1 * sum(sample.size for sample in self.items) * samples / max(1, len(self.items))

    def _name(self, number: int) -> str:
        return f"{self.prefix}-{number:05d}"

    def _shard(self, number: int, first: int, end: int) -> Finished:
        already = len(self.broken)
        self.changed = []
        raw = self.how.storage == "raw"
        writer = ShardWriter(
            self.folder, self._name(number), dtype=self.dtype, shape=self.shape, raw=raw, planned=end - first
        )
        with writer, contextlib.closing(self._made(first, end)) as made:
            for item, sample in made:
                self._advance(1)
                fatal = self.broken and not self.how.skip_broken
                if sample is not None and not fatal and sample.checksum not in self.leave_out:
                    writer.add(item, sample)
            skipped = [(fault.path, fault.reason) for fault in self.broken[already:]]
            if skipped and not self.how.skip_broken:  # all are looked for, but no shard counts any more
                return Finished(None, np.zeros(0, shard_files.ROW), join_boxes([]), _NOTHING, _NOTHING, [], [])
            return writer.finish(skipped, self.changed)

    def _advance(self, samples: int) -> None:
        self._done += samples
        if self.progress is not None:
            self.progress(self._done, len(self.items))

    def _made(self, first: int, end: int) -> Generator[tuple[int, Made | None], None, None]:
        """Each sample, in order; None for a broken one. Few are held at a time."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            under_way: deque[tuple[int, Future[Made]]] = deque()
            waiting = iter(range(first, end))
            try:
                while True:
                    while len(under_way) < 4 * self.threads and (item := next(waiting, None)) is not None:
                        under_way.append((item, pool.submit(self._make, item)))
                    if not under_way:
                        return
                    item, future = under_way.popleft()
                    try:
                        made = future.result()
                    except BrokenPicture as fault:
                        self.broken.append(fault)
                        yield item, None
                    else:
                        yield item, made
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, item: int) -> Made:
        sample = self.items[item]
        with contextlib.suppress(OSError):  # reading will say so
            now = os.stat(sample.path)
            if sample.mtime_ns and (now.st_size, now.st_mtime_ns) != (sample.size, sample.mtime_ns):
                self.changed.append(sample.path)
        content = file_content(sample.path)
        values = as_color(decode_content(content, sample.path), self.color)
        if values.dtype != self.dtype:
            if values.dtype == np.uint16:
                raise _Deeper(
                    "has 16 bits a value, but the packed dataset has 8",
                    where=show_path(sample.path),
                    remedy="Pack everything anew, into another folder: it will then have 16 bits.",
                )
            values = values.astype(np.uint16) * np.uint16(257)
        boxes = None
        if self.catalog.task == "detection":
            height, width = values.shape[:2]
            frame = window(height, width, self.how.height, self.how.width, self.how.resize)
            boxes = boxes_in_frame(sample.target, height, width, frame, sample.path, self.catalog.classes)  # type: ignore[arg-type]
        if self.how.storage != "raw":
            stored = encoded(content, values, self.color, self.how.storage, sample.path)
            if stored is not content and self.how.storage == "jpeg":
                values = stored_picture(stored, self.shape[0], self.dtype)  # what training will see
        fit = fitted(values, self.how.height, self.how.width, self.how.resize)
        bytes_ = fit.data.cast("B") if self.how.storage == "raw" else stored
        counts = value_counts(fit) if item < self.train else None
        return Made(bytes_, checksum(bytes_), fit, counts, boxes)

    def table(self, parts: list[Finished]) -> tuple[Index, Table, dict[str, NDArray[Any]]]:
        """Table and index of what the shards hold; the index lacks what :func:`write_table` adds."""
        rows = np.concatenate([part.rows for part in parts])
        kept = [self.items[item] for item in rows["item"].tolist()]
        written = [part for part in parts if part.shard is not None]
        samples, sources = np.zeros(len(rows), SAMPLE), np.zeros(len(rows), SOURCE)
        samples["shard"] = np.repeat(np.arange(len(written)), [len(part.rows) for part in written])
        samples["offset"], samples["length"] = rows["offset"], rows["length"]
        sources["checksum"] = rows["checksum"]
        sources["size"] = [sample.size for sample in kept]
        sources["mtime_ns"] = [sample.mtime_ns for sample in kept]
        ends = np.cumsum([len(self.catalog.splits[split]) for split in SPLITS])
        edges = np.searchsorted(rows["item"], ends).tolist()
        counts: dict[str, int] = {split: edge - before for split, edge, before in zip(SPLITS, edges, [0, *edges])}
        targets = self._targets(parts, kept)
        mean, std, histogram = value_statistics(self.values)
        index = Index(
            kind="pictures",
            task=self.catalog.task,
            storage=self.how.storage,
            dtype=self.dtype.name,
            byte_order=sys.byteorder,
            classes=self.catalog.classes,
            counts=counts,
            class_counts={},
            mean=mean,
            std=std,
            shards=[part.shard for part in written if part.shard is not None],
            files={},
            fingerprint="",
            several_labels=self.catalog.several_labels,
            target_names=self.catalog.target_names,
            channels=self.shape[0],
            height=self.shape[1],
            width=self.shape[2],
            color=self.color,
            resize=self.how.resize,
            histogram=histogram,
            skipped=[fault for part in parts for fault in part.skipped],
        )
        if not isinstance(targets, Boxes) and index.task == "regression" and counts["train"]:
            target_mean, target_std = target_statistics(targets[: counts["train"]])
            index = dataclasses.replace(index, target_mean=target_mean, target_std=target_std)
        table = Table(samples, sources, [sample.path for sample in kept], targets, counts)
        return index, table, {"sums": self.sums, "values": self.values}

    def _targets(self, parts: list[Finished], kept: list[Sample]) -> Targets:
        catalog = self.catalog
        if catalog.task == "detection":
            return join_boxes([part.boxes.of(place) for part in parts for place in range(len(part.boxes))])
        return targets_of(catalog.task, catalog.several_labels, len(catalog.classes), kept)

    def _check_classes(self, index: Index, table: Table) -> None:
        """Skipping must leave every class something to learn from and to measure on."""
        faults = []
        left = class_counts(index, table)
        for split in ("train", "val"):
            if self.catalog.count(split) and not table.counts[split]:
                faults.append(f"all {self.catalog.count(split)} pictures in {split} are broken")
                continue
            for label, asked in enumerate(self.catalog.counts(split)):
                if asked and not left[split][label] and index.task == "classification":
                    faults.append(f"class `{self.catalog.classes[label]}`: all {asked} pictures in {split} are broken")
        if faults:
            more = f"\n  … and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise DataError(
                "after skipping broken pictures some classes are empty:\n  " + "\n  ".join(faults[:SHOWN]) + more,
                remedy="Replace the broken pictures, add others, or take the class out.",
            )
