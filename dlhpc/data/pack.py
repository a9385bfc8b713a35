"""Bring all pictures of a run to one size and write them as one packed dataset, once for all runs that share it.

A thread decodes each picture (Pillow, NumPy and the decoders let other threads run meanwhile) while this one writes,
hashes and sums in the catalogue's order, so the result does not depend on timing. Everything is written in a hidden
folder beside the final one and renamed at the end: a pack that dies leaves nothing that counts, and of two that run
at once the first to end wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.catalog import Catalog, Picture
from dlhpc.data.packed import (
    INDEX,
    LABELS,
    MEAN_IMAGE,
    PATHS,
    PICTURES,
    Index,
    Packed,
    Pictures,
    open_packed,
)
from dlhpc.data.pictures import BrokenPicture, Color, Resize, decode, is_grey, read_picture
from dlhpc.data.splits import SPLITS
from dlhpc.errors import DataError, StorageError
from dlhpc.files import fsync_folder, replace_json, replace_text, storage_errors

SHOWN = 20
"""So many broken pictures are told by name."""
_LOOKED_AT = 32  # pictures that decide on colour and depth before all are read
_STALE_SECONDS = 86400


@dataclass(frozen=True)
class Preparation:
    """How pictures are brought to one shape; ``color`` None means that the first pictures looked at decide."""

    color: Color | None
    height: int
    width: int
    resize: Resize
    skip_broken: bool


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
    """Pictures that are not those any more which the run was submitted with."""

    def __init__(self, paths: Sequence[str]) -> None:
        listed = "\n".join(f"  {path}" for path in paths[:SHOWN])
        more = f"\n  … and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        one = len(paths) == 1
        super().__init__(
            f"{len(paths)} picture{' has' if one else 's have'} changed since the run was submitted:\n{listed}{more}",
            remedy="Submit its spec.yaml again to train on the pictures as they are now.",
        )


class _Deeper(Exception):
    """A 16-bit picture turned up in a set that had looked like 8 bits."""


def pack(
    catalog: Catalog,
    how: Preparation,
    folder: Path,
    *,
    key: str,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
    trained_on: str | None = None,
) -> Packed:
    """The packed dataset in ``folder``, made now if it is not there; ``progress(done, total)`` is called a picture.

    One 16-bit picture makes the whole set ``uint16``, 8-bit values being multiplied by 257. Files that have changed
    since they were listed are refused, unless the whole has the fingerprint ``trained_on``. Raises
    :class:`ChangedPictures`, :class:`BrokenPictures` (all of them found) unless they are skipped, :class:`DataError`
    if skipping leaves a class without pictures in train or val, :class:`StorageError` if the disk is too full, before
    or while writing.
    """
    with contextlib.suppress(DataError, StorageError):
        return open_packed(folder)
    with storage_errors(folder.parent, "create"):
        folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder.parent)
    looked_at = _look(catalog)
    color: Color = how.color or ("grey" if all(grey for grey, _ in looked_at) else "rgb")
    dtype = np.uint16 if any(dtype == np.uint16 for _, dtype in looked_at) else np.uint8
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        while True:
            with storage_errors(beside, "create"):
                beside.mkdir()
            try:
                _Pack(catalog, how, color, np.dtype(dtype), beside, key, threads, progress, trained_on).run()
                break
            except _Deeper:
                dtype = np.uint16
                shutil.rmtree(beside)
        _publish(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return open_packed(folder)


def remove_stale(parent: Path) -> None:
    """Delete what packs that died left behind more than a day ago."""
    now = time.time()
    for beside in parent.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in [beside, *beside.iterdir()])
            if now - newest > _STALE_SECONDS:
                shutil.rmtree(beside, ignore_errors=True)


def _publish(beside: Path, folder: Path) -> None:
    """Give the finished folder its name, unless another run has done so meanwhile; a damaged one is put aside."""
    fsync_folder(beside)
    for _ in range(3):
        with contextlib.suppress(OSError):
            os.rename(beside, folder)
            fsync_folder(folder.parent)
            return
        with contextlib.suppress(DataError, StorageError):
            open_packed(folder).close()
            return
        with storage_errors(folder, "replace"):
            damaged = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    with storage_errors(folder, "create"):
        os.rename(beside, folder)


def _look(catalog: Catalog) -> list[tuple[bool, np.dtype[Any]]]:
    """Whether grey, and depth, of some training pictures spread over all classes; broken ones say nothing."""
    train = catalog.splits["train"]
    chosen = sorted({round(place) for place in np.linspace(0, len(train) - 1, min(_LOOKED_AT, len(train)))})
    found = []
    for place in chosen:
        with contextlib.suppress(BrokenPicture):
            values = decode(train[place].path)
            found.append((is_grey(values), values.dtype))
    return found


@dataclass
class _Pack:
    """One pass over all pictures into one new folder."""

    catalog: Catalog
    how: Preparation
    color: Color
    dtype: np.dtype[Any]
    folder: Path
    key: str
    threads: int
    progress: Callable[[int, int], None] | None
    trained_on: str | None
    broken: list[BrokenPicture] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def run(self) -> None:
        shape = (3 if self.color == "rgb" else 1, self.how.height, self.how.width)
        total = sum(map(len, self.catalog.splits.values()))
        _check_space(self.folder, total * int(np.prod(shape)) * self.dtype.itemsize)
        digest = hashlib.sha256()
        labels: list[int] = []
        paths: list[str] = []
        ranges: dict[str, tuple[int, int]] = {}
        sums, squares = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        done = 0
        with storage_errors(self.folder / PICTURES), open(self.folder / PICTURES, "wb") as file:
            for split in SPLITS:
                first = len(labels)
                with contextlib.closing(self._decoded(self.catalog.splits[split])) as decoded:
                    for picture, values in decoded:
                        done += 1
                        if self.progress is not None:
                            self.progress(done, total)
                        if values is None or (self.broken and not self.how.skip_broken):
                            continue
                        file.write(values.data)
                        digest.update(values.data)
                        if split == "train":
                            sums += values
                            squares += np.square(values, dtype=np.int64)
                        labels.append(picture.label)
                        paths.append(picture.path)
                ranges[split] = (first, len(labels))
            _settle(file)
        if self.broken and not self.how.skip_broken:
            raise BrokenPictures(self.broken, total)
        self._check_classes(labels, ranges)
        mean_image, mean, std = _statistics(sums, squares, ranges["train"][1], np.iinfo(self.dtype).max)
        numbers = np.array(labels, dtype=np.int64)
        digest.update(numbers.astype("<i8").tobytes())
        if self.changed and digest.hexdigest() != self.trained_on:  # the key would promise what is not in here
            raise ChangedPictures(sorted(self.changed))
        with storage_errors(self.folder):
            for name, array in ((LABELS, numbers), (MEAN_IMAGE, mean_image.astype(np.float32))):
                with open(self.folder / name, "wb") as file:
                    np.save(file, array, allow_pickle=False)
                    _settle(file)
        replace_text(self.folder / PATHS, json.dumps(paths) + "\n")  # ASCII: file names need not be Unicode
        index = Index(
            dtype=self.dtype.name,
            byte_order=sys.byteorder,
            shape=(len(labels), *shape),
            classes=self.catalog.classes,
            ranges=ranges,
            skipped=[(fault.path, fault.reason) for fault in self.broken],
            mean=mean.tolist(),
            std=std.tolist(),
            fingerprint=digest.hexdigest(),
            key=self.key,
        )
        replace_json(self.folder / INDEX, asdict(index))

    def _decoded(self, pictures: Sequence[Picture]) -> Generator[tuple[Picture, Pictures | None], None, None]:
        """Each picture with its values, in order; None for a broken one. Few are held at a time."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            under_way: deque[tuple[Picture, Future[Pictures]]] = deque()
            waiting = iter(pictures)
            try:
                while True:
                    while len(under_way) < 4 * self.threads and (picture := next(waiting, None)) is not None:
                        under_way.append((picture, pool.submit(self._read, picture)))
                    if not under_way:
                        return
                    picture, future = under_way.popleft()
                    try:
                        values = future.result()
                    except BrokenPicture as fault:
                        self.broken.append(fault)
                        yield picture, None
                    else:
                        yield picture, values
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, picture: Picture) -> Pictures:
        with contextlib.suppress(OSError):  # reading will say so
            now = os.stat(picture.path)
            if picture.mtime_ns and (now.st_size, now.st_mtime_ns) != (picture.size, picture.mtime_ns):
                self.changed.append(picture.path)
        values = read_picture(picture.path, self.color, self.how.height, self.how.width, self.how.resize)
        if values.dtype == self.dtype:
            return values
        if values.dtype == np.uint16:
            raise _Deeper
        return values.astype(np.uint16) * np.uint16(257)

    def _check_classes(self, labels: list[int], ranges: dict[str, tuple[int, int]]) -> None:
        """Skipping must leave every class something to learn from and to measure on."""
        faults = []
        for split in ("train", "val"):
            left = Counter(labels[slice(*ranges[split])])
            for label, asked in enumerate(self.catalog.counts(split)):
                if asked and not left[label]:
                    faults.append(f"class `{self.catalog.classes[label]}`: all {asked} pictures in {split} are broken")
        if faults:
            more = f"\n  … and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise DataError(
                "after skipping broken pictures some classes are empty:\n  " + "\n  ".join(faults[:SHOWN]) + more,
                remedy="Replace the broken pictures, add others, or take the class out.",
            )


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_space(folder: Path, needed: int) -> None:
    with storage_errors(folder, "ask for free space"):
        free = shutil.disk_usage(folder).free
    with_the_rest = needed * 1.02 + 1_000_000  # labels, paths and what the file system keeps for itself
    if free < with_the_rest:
        size, unit = (1e9, "GB") if with_the_rest >= 1e9 else (1e6, "MB")
        raise StorageError(
            f"packing needs {with_the_rest / size:.1f} {unit}, but only {free / size:.1f} {unit} are free here",
            where=folder.parent,
            remedy="Free some space (old folders in here are packed datasets and may go), choose smaller pictures "
            "(data.width, data.height), or keep runs elsewhere (--runs).",
        )


def _statistics(
    sums: NDArray[np.int64], squares: NDArray[np.int64], count: int, full: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean picture (C×H×W), mean and standard deviation per channel, on the scale where full is 1.

    The sums are exact integers, so the result does not depend on the order of the pictures.
    """
    mean_image = sums / (count * full)
    mean = mean_image.mean(axis=(1, 2))
    variance = (squares / (count * float(full) ** 2)).mean(axis=(1, 2)) - mean**2
    return mean_image, mean, np.sqrt(np.maximum(variance, 0))
