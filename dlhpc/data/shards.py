"""Writing the shards of a packed dataset, each whole or not at all.

A shard is finished when its record (``NAME.npz``) lies beside it: the rows of its samples, what it adds to the
statistics, and the checksum of the file. Who starts again after a death takes every finished shard whose file still has
that checksum, and makes only the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.boxes import OneOfBoxes
from dlhpc.data.index import Shard, damaged
from dlhpc.data.packed import CHECKSUM_BYTES, Pictures, crc
from dlhpc.data.samples import Boxes, join_boxes
from dlhpc.files import replace_bytes, storage_errors

SHARD_BYTES = 1 << 30
"""A shard grows to about this size; a picture is never cut in two."""
SHARD_SAMPLES = 1 << 16
HEADER_BYTES = 128

ROW = np.dtype([("item", "<i8"), ("offset", "<i8"), ("length", "<i8"), ("checksum", "u1", (CHECKSUM_BYTES,))])
"""``item`` counts the samples of the catalogue, those of train before those of val before those of unseen."""


@dataclass(frozen=True)
class Made:
    """A sample that is ready to be written."""

    content: bytes | memoryview
    checksum: bytes
    values: Pictures
    """C×H×W, as it will be read."""
    counts: NDArray[np.int64] | None = None
    """C×(full + 1): how often each value occurs, of training pictures."""
    boxes: OneOfBoxes | None = None


@dataclass(frozen=True)
class Finished:
    """One shard with all that is known of it."""

    shard: Shard | None
    """None if all its samples were left out."""
    rows: NDArray[Any]
    boxes: Boxes
    sums: NDArray[np.int64]
    """C×H×W, over training pictures."""
    values: NDArray[np.int64]
    """C×(full + 1): how often the training pictures have each value."""
    skipped: list[tuple[str, str]]
    changed: list[str]


def value_counts(values: Pictures) -> NDArray[np.int64]:
    """How often each value occurs in each channel: C×(full + 1)."""
    bins = int(np.iinfo(values.dtype).max) + 1
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        return np.stack([np.bincount(channel.ravel(), minlength=bins) for channel in values])
    if values[0].size > 1 << 24:  # its counts are float32
        return np.stack([np.bincount(channel.ravel(), minlength=bins) for channel in values])
    # Several times faster, and it lets other threads run.
    found = [cv2.calcHist([channel], [0], None, [bins], [0, bins]).ravel() for channel in values]
    return np.stack(found).astype(np.int64)


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The first ``HEADER_BYTES`` bytes of a file of NumPy's format 1.0.

    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}"
    magic = b"\x93NUMPY\x01\x00"
    length = HEADER_BYTES - len(magic) - 2
    return magic + struct.pack("<H", length) + text.encode().ljust(length - 1) + b"\n"


class ShardWriter:
    """Takes the samples of one shard in order; ``finish`` makes it count.

    The file is written under a hidden name, which is removed if the block is left by an exception.
    """

    def __init__(
        self, folder: Path, name: str, *, dtype: np.dtype[Any], shape: tuple[int, int, int], raw: bool, planned: int
    ) -> None:
        self._folder, self._name = folder, name
        self._file_name = name + (".npy" if raw else ".bin")
        self._hidden = folder / f".{self._file_name}.{os.getpid()}"
        self._dtype, self._shape, self._planned = dtype, shape, planned
        self._raw = raw
        self._rows: list[tuple[int, int, int, bytes]] = []
        self._boxes: list[OneOfBoxes] = []
        self._sums = np.zeros(shape, np.uint32)  # enough for SHARD_SAMPLES of 16 bits
        self._values = np.zeros((shape[0], int(np.iinfo(dtype).max) + 1), np.int64)
        self._crc = 0
        self._file = None
        with storage_errors(folder):
            self._file = open(self._hidden, "wb")  # noqa: SIM115  # closed by __exit__
            self._offset = 0
            if raw:
                self._append(npy_header(dtype, (planned, *shape)))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        with contextlib.suppress(OSError):
            self._hidden.unlink()

    def _append(self, content: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(content)
        self._crc = crc(content, self._crc)
        self._offset += len(content)

    def add(self, item: int, made: Made) -> None:
        """Write one sample; training pictures, which have counts, enter the statistics."""
        offset = self._offset
        with storage_errors(self._folder / self._file_name):
            self._append(made.content)
        self._rows.append((item, offset, len(made.content), made.checksum))
        if made.boxes is not None:
            self._boxes.append(made.boxes)
        if made.counts is not None:
            self._sums += made.values
            self._values += made.counts

    def finish(self, skipped: list[tuple[str, str]], changed: list[str]) -> Finished:
        """Give the shard its name and write its record."""
        assert self._file is not None
        rows = np.zeros(len(self._rows), ROW)
        for place, (item, offset, length, digest) in enumerate(self._rows):
            rows[place] = (item, offset, length, np.frombuffer(digest, np.uint8))
        shard = None
        if self._rows:
            path = self._folder / self._file_name
            with storage_errors(path):
                if self._raw and len(rows) != self._planned:
                    self._file.seek(0)
                    self._file.write(npy_header(self._dtype, (len(rows), *self._shape)))
                    self._file.flush()
                    self._crc = file_crc(self._hidden)
                self._file.flush()
                os.fsync(self._file.fileno())
                os.replace(self._hidden, path)
            shard = Shard(self._file_name, self._offset, len(rows), self._crc)
        done = Finished(
            shard, rows, join_boxes(self._boxes), self._sums.astype(np.int64), self._values, skipped, changed
        )
        _write_record(self._folder / f"{self._name}.npz", done)
        return done


def file_crc(path: Path) -> int:
    """CRC-32 of a whole file, read in large pieces."""
    value = 0
    for piece in pieces(path):
        value = crc(piece, value)
    return value


def check_shards(folder: Path, shards: Sequence[Shard], threads: int, patience: float) -> int:
    """Compare shards with their checksums and give how many were looked at: as many as can be begun within ``patience``
    seconds. Raises :class:`DataError` for the first that is not as it was written, :class:`StorageError`.
    """
    until = time.monotonic() + patience

    def is_whole(shard: Shard) -> bool | None:
        if time.monotonic() > until:
            return None
        with storage_errors(folder / shard.file, "read"):
            return file_crc(folder / shard.file) == shard.crc32

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(is_whole, shards))
    for shard, whole in zip(shards, answers, strict=True):
        if whole is False:
            raise damaged(folder / shard.file, "is not as it was written (its checksum differs)")
    return sum(whole is not None for whole in answers)


def pieces(path: Path, size: int = 1 << 23) -> Iterator[memoryview]:
    """A file from beginning to end; each piece may be used until the next is asked for."""
    buffer = memoryview(bytearray(size))
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            yield buffer[:got]


def _write_record(path: Path, done: Finished) -> None:
    about = {
        "shard": None if done.shard is None else vars(done.shard),
        "skipped": done.skipped,
        "changed": done.changed,
    }
    buffer = io.BytesIO()
    np.savez(
        buffer, rows=done.rows, corners=done.boxes.corners, classes=done.boxes.classes, starts=done.boxes.starts,
        sums=done.sums, values=done.values, about=np.frombuffer(json.dumps(about).encode(), np.uint8),
    )  # fmt: skip
    content = buffer.getvalue()
    replace_bytes(path, hashlib.sha256(content).digest() + content)


def finished_shard(folder: Path, name: str) -> Finished | None:
    """A shard that an earlier attempt finished in ``folder``; None if there is none or it is damaged."""
    try:
        content = (folder / f"{name}.npz").read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            return None
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as found:
            about = json.loads(found["about"].tobytes())
            shard = None if about["shard"] is None else Shard(**about["shard"])
            if shard is not None:
                path = folder / shard.file
                if path.stat().st_size != shard.bytes or file_crc(path) != shard.crc32:
                    return None
            boxes = Boxes(found["corners"], found["classes"], found["starts"])
            skipped = [(str(path), str(reason)) for path, reason in about["skipped"]]
            return Finished(
                shard, found["rows"], boxes, found["sums"], found["values"], skipped, [*map(str, about["changed"])]
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
