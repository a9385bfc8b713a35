"""An open packed dataset: samples of one shape in few large files, read with one ``pread`` a picture.

A folder holds ``index.json`` (see :mod:`dlhpc.data.index`), which names all other files:

- shards with raw pictures are NumPy's own format, M×C×H×W, so that anybody's ``numpy.load(…, mmap_mode="r")`` opens
  them; encoded ones are whole JPEG or PNG files, one after the other; rows of tables are N×F float32;
- ``samples``, a structured array with one row a sample, train before val before unseen: in which shard it lies, at
  which byte, how long it is. ``sources`` has its checksum and its file's size and mtime, ``paths`` the files' names;
- ``targets`` (int64 n; uint8 n×K; float64 n×T), or ``corners``, ``box_classes`` and ``box_starts``;
- ``sums`` and ``values``, from which mean picture, mean and σ follow exactly.

The table is plain arrays and not Parquet: a rank opens it with one read and without another library. Shards are never
memory-mapped here: over NFS a map faults in 4 KiB pieces, and a server that vanishes kills the process instead of
raising an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import sys
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.index import Index, Shard, damaged, read_index
from dlhpc.data.samples import Boxes, Targets, take_targets
from dlhpc.data.splits import SPLITS, SplitName
from dlhpc.errors import DataError, StorageError
from dlhpc.files import read_json, storage_errors

Pictures = NDArray[np.uint8] | NDArray[np.uint16]
"""N×C×H×W (or C×H×W for one) with 8 or 16 bits a value, full scale."""

CHECKSUM_BYTES = 16
SAMPLE = np.dtype([("shard", "<i4"), ("offset", "<i8"), ("length", "<i8")])
SOURCE = np.dtype([("checksum", "u1", (CHECKSUM_BYTES,)), ("size", "<i8"), ("mtime_ns", "<i8")])


def checksum(content: bytes | memoryview) -> bytes:
    """What tells one sample from all others: the first 16 bytes of SHA-256, for which processors have instructions."""
    return hashlib.sha256(content).digest()[:CHECKSUM_BYTES]


def crc(content: bytes | memoryview, before: int = 0) -> int:
    """CRC-32, which guards files against accidents as fast as they are read; ``before`` is of what precedes."""
    return zlib.crc32(content, before)


class Packed:
    """An open packed dataset. Reading is safe from several threads; ``close`` it or use it in a ``with``."""

    def __init__(
        self, folder: Path, index: Index, samples: NDArray[Any], targets: Targets, descriptors: list[int]
    ) -> None:
        self.folder = folder
        self.index = index
        self._samples = samples
        self._shard: list[int] = samples["shard"].tolist()
        self._offset: list[int] = samples["offset"].tolist()
        self._targets = targets
        self._descriptors = descriptors
        self._ranges = {split: index.range_of(split) for split in SPLITS}
        self._shape, self._size, self._dtype = index.shape, index.sample_bytes, np.dtype(index.dtype)
        self._swap = index.byte_order != sys.byteorder and index.storage == "raw" and index.dtype != "uint8"

    @property
    def kind(self) -> str:
        """``pictures`` or ``table``."""
        return self.index.kind

    @property
    def task(self) -> str:
        return self.index.task

    @property
    def storage(self) -> str:
        """``raw``, ``jpeg`` or ``png``."""
        return self.index.storage

    @property
    def several_labels(self) -> bool:
        return self.index.several_labels

    @property
    def channels(self) -> int:
        """0 for tables, like height and width."""
        return self.index.channels or 0

    @property
    def height(self) -> int:
        return self.index.height or 0

    @property
    def width(self) -> int:
        return self.index.width or 0

    @property
    def features(self) -> list[str]:
        """Names of a table's F columns after coding."""
        return self.index.features

    @property
    def coding(self) -> dict[str, Any] | None:
        """How a table's columns became features."""
        return self.index.coding

    @property
    def dtype(self) -> np.dtype[Any]:
        """``uint8`` or ``uint16``; ``float32`` for tables."""
        return self._dtype

    @property
    def classes(self) -> list[str]:
        return self.index.classes

    @property
    def target_names(self) -> list[str]:
        return self.index.target_names

    @property
    def target_mean(self) -> NDArray[np.float64]:
        """T values over the training samples, in the user's units."""
        return np.array(self.index.target_mean, dtype=np.float64)

    @property
    def target_std(self) -> NDArray[np.float64]:
        """T standard deviations; never zero (1 for a target that does not vary)."""
        return never_zero(np.array(self.index.target_std, dtype=np.float64))

    @property
    def mean(self) -> NDArray[np.float64]:
        """C values over the training pictures, where full (255 or 65535) is 1; F values in a table's own units."""
        return np.array(self.index.mean, dtype=np.float64)

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviations, likewise; never zero (1 for a channel or feature that does not vary)."""
        return never_zero(np.array(self.index.std, dtype=np.float64))

    @cached_property
    def mean_image(self) -> NDArray[np.float32]:
        """C×H×W mean over the training pictures, on the scale where full is 1."""
        sums = self.load("sums")
        if sums.shape != self.index.shape:
            raise damaged(self._path("sums"), f"has the shape {sums.shape}")
        return (sums / (max(1, self.count("train")) * np.iinfo(self.dtype).max)).astype(np.float32)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all samples and targets as packed."""
        return self.index.fingerprint

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Path and reason of each sample that was left out."""
        return self.index.skipped

    def count(self, split: SplitName) -> int:
        """Samples in ``split``; 0 if the dataset has none there."""
        return self.index.counts[split]

    def labels(self, split: SplitName) -> NDArray[np.int64]:
        """Class number of each picture of ``split``, where a picture has one class."""
        return cast("NDArray[np.int64]", self.targets(split))

    def targets(self, split: SplitName) -> Targets:
        """What is to be learnt of each sample of ``split``; corners of boxes in pixels of width × height."""
        first, end = self._ranges[split]
        if isinstance(self._targets, Boxes):
            return take_targets(self._targets, np.arange(first, end))
        return self._targets[first:end]

    def paths(self, split: SplitName) -> list[str]:
        """Where each sample of ``split`` came from (absolute; for rows the file and the line)."""
        return self._paths[slice(*self._ranges[split])]

    @cached_property
    def _paths(self) -> list[str]:
        paths = read_json(self._path("paths"))
        if not isinstance(paths, list) or len(paths) != self.index.total:
            raise damaged(self._path("paths"), "does not name every sample")
        return cast("list[str]", paths)

    @cached_property
    def sources(self) -> NDArray[Any]:
        """A structured array (``SOURCE``) of all samples."""
        return self.load("sources")

    def _path(self, name: str) -> Path:
        return self.folder / self.index.files[name].file

    def load(self, name: str) -> NDArray[Any]:
        """One of the arrays that the index names."""
        if name not in self.index.files:
            raise damaged(self.folder / "index.json", f"names no file for {name}")
        return _load_array(self._path(name))

    def read(self, split: SplitName, indices: NDArray[np.integer[Any]], out: NDArray[Any]) -> None:
        """Read the samples ``indices`` (counted within ``split``) into ``out``, n×C×H×W or n×F, C-contiguous.

        Encoded pictures are decoded and brought to width × height. Raises :class:`DataError` if a file ends early or
        a picture cannot be decoded, :class:`StorageError` if it cannot be read.
        """
        first, end = self._ranges[split]
        if out.dtype != self._dtype or out.shape != (len(indices), *self._shape) or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}; a contiguous {self.dtype} for {len(indices)} is needed")
        size = self._size
        view = out.data.cast("B") if len(indices) else memoryview(b"")
        for slot, index in enumerate(indices.tolist()):
            if not 0 <= index < end - first:
                raise IndexError(f"{split} has {end - first} samples, not one numbered {index}")
            if self.index.storage == "raw":
                self._fill(first + index, view[slot * size : (slot + 1) * size])
            else:
                out[slot] = self._fitted(first + index)
        if self._swap:
            out.byteswap(inplace=True)

    def decoded(self, split: SplitName, index: int) -> NDArray[Any]:
        """One picture as it is stored, H×W×C: at its own size if storage is ``jpeg`` or ``png``."""
        first, end = self._ranges[split]
        if not 0 <= index < end - first:
            raise IndexError(f"{split} has {end - first} samples, not one numbered {index}")
        if self.index.storage == "raw":
            whole = np.empty((1, *self._shape), self.dtype)
            self.read(split, np.array([index]), whole)
            return np.moveaxis(whole[0], 0, 2)
        return self._decoded(first + index)

    def _fitted(self, sample: int) -> NDArray[Any]:
        from dlhpc.data.pictures import fitted

        return fitted(self._decoded(sample), self.height, self.width, cast(Any, self.index.resize))

    def _decoded(self, sample: int) -> NDArray[Any]:
        from dlhpc.data.encoded import stored_picture
        from dlhpc.data.pictures import BrokenPicture

        content = self.content(sample)
        try:
            return stored_picture(content, self.index.channels or 1, self.dtype)
        except BrokenPicture as error:
            path = self.folder / self.index.shards[self._shard[sample]].file
            if checksum(content) != self.sources["checksum"][sample].tobytes():
                raise damaged(path, f"no longer holds {self._paths[sample]} as it was packed") from error
            raise damaged(path, f"holds {self._paths[sample]}, which {error.reason}") from error

    def content(self, sample: int) -> bytes:
        """The bytes of a sample (counted over all splits) as they are stored."""
        content = bytearray(int(self._samples["length"][sample]))
        self._fill(sample, memoryview(content))
        return bytes(content)

    def _fill(self, sample: int, target: memoryview) -> None:
        shard, offset = self._shard[sample], self._offset[sample]
        done = 0
        try:
            while done < len(target):  # a network file system may give a part only
                got = os.preadv(self._descriptors[shard], [target[done:] if done else target], offset + done)
                if got == 0:
                    raise damaged(self.folder / self.index.shards[shard].file, "ends in the middle of a sample")
                done += got
        except OSError:
            with storage_errors(self.folder / self.index.shards[shard].file, "read"):
                raise

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[tuple[str, str]]:
        """Compare every sample and every file of the table with its checksum: what is damaged, and how."""
        faults = []
        for file in self.index.files.values():
            with contextlib.suppress(StorageError):
                if crc((self.folder / file.file).read_bytes()) == file.crc32:
                    continue
            faults.append((str(self.folder / file.file), "is not as it was written"))
        order = np.lexsort((self._samples["offset"], self._samples["shard"]))  # as they lie: long reads
        expected = self.sources["checksum"]
        for done, sample in enumerate(order.tolist(), 1):
            try:
                if checksum(self.content(sample)) != expected[sample].tobytes():
                    shard = self.index.shards[self._shard[sample]].file
                    faults.append((self._paths[sample], f"is not as it was packed (in {shard})"))
            except (DataError, StorageError) as error:
                faults.append((self._paths[sample], error.what))
            if progress is not None:
                progress(done, len(order))
        return faults

    def close(self) -> None:
        """Close the files; further reads fail."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_packed(folder: Path | str, fingerprint: str | None = None) -> Packed:
    """Open a packed dataset and check that its files fit together; ``fingerprint`` asks for an earlier generation.

    Raises :class:`StorageError` if one cannot be read, :class:`DataError` if one is damaged or no generation has the
    fingerprint. Costs the index, the table and the targets; samples, paths and checksums are read when asked for.
    """
    folder = Path(folder)
    index = read_index(folder, fingerprint)
    samples = _load_named(folder, index, "samples")
    path = folder / index.files["samples"].file
    if samples.dtype != SAMPLE or samples.shape != (index.total,):
        raise damaged(path, f"holds {samples.shape} {samples.dtype}, not {index.total} samples")
    ends = np.array([shard.bytes for shard in index.shards], dtype=np.int64)
    if samples.size:
        shard = samples["shard"]
        if not 0 <= shard.min() <= shard.max() < len(ends):
            raise damaged(path, "names shards that do not exist")
        if samples["offset"].min() < 0 or (samples["offset"] + samples["length"] > ends[shard]).any():
            raise damaged(path, "points beyond the end of a shard")
    if index.storage == "raw" and (samples["length"] != index.sample_bytes).any():
        raise damaged(path, "has samples of another size")
    targets = _read_targets(folder, index)
    return Packed(folder, index, samples, targets, _open_shards(folder, index.shards))


def _open_shards(folder: Path, shards: list[Shard]) -> list[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(shards) + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
            )
    descriptors: list[int] = []
    try:
        for shard in shards:
            path = folder / shard.file
            with storage_errors(path, "open"):
                descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                size = os.fstat(descriptors[-1]).st_size
            if size != shard.bytes:
                raise damaged(path, f"is {size} bytes long instead of {shard.bytes}")
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return descriptors


def _read_targets(folder: Path, index: Index) -> Targets:
    if index.task == "detection":
        corners = _load_named(folder, index, "corners")
        classes = _load_named(folder, index, "box_classes")
        starts = _load_named(folder, index, "box_starts")
        fits = corners.shape == (len(classes), 4) and starts.shape == (index.total + 1,)
        if not fits or starts[0] != 0 or starts[-1] != len(classes) or (np.diff(starts) < 0).any():
            raise damaged(folder / index.files["box_starts"].file, "does not fit the boxes")
        if classes.size and not -1 <= classes.min() <= classes.max() < len(index.classes):
            raise damaged(folder / index.files["box_classes"].file, "names classes that do not exist")
        return Boxes(corners, classes, starts)
    targets = _load_named(folder, index, "targets")
    path = folder / index.files["targets"].file
    if index.task == "regression":
        wanted: tuple[int, ...] = (index.total, len(index.target_names))
    else:
        wanted = (index.total, len(index.classes)) if index.several_labels else (index.total,)
    if targets.shape != wanted:
        raise damaged(path, f"has the shape {targets.shape} instead of {wanted}")
    numbers = index.task == "classification" and not index.several_labels and targets.size > 0
    if numbers and not 0 <= targets.min() <= targets.max() < len(index.classes):
        raise damaged(path, "names classes that do not exist")
    return targets


def _load_named(folder: Path, index: Index, name: str) -> NDArray[Any]:
    if name not in index.files:
        raise damaged(folder / "index.json", f"names no file for {name}")
    return _load_array(folder / index.files[name].file)


def _load_array(path: Path) -> NDArray[Any]:
    try:
        with storage_errors(path, "read"):
            return cast("NDArray[Any]", np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise damaged(path, "is not a whole array") from error


def never_zero(std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviations to divide by: 1 where nothing varies."""
    return np.where(std > 0, std, 1.0)


__all__ = ["CHECKSUM_BYTES", "SAMPLE", "SOURCE", "SPLITS", "Packed", "Pictures", "checksum", "crc", "open_packed"]
