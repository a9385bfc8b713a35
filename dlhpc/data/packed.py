"""A packed dataset: every picture at one size in one file, read with one ``pread`` a picture.

A folder holds ``pictures.bin`` (N×C×H×W raw values), ``labels.npy`` (int64), ``pictures.json`` (paths, in order),
``mean_image.npy`` and ``index.json``, which is written last. The file is never memory-mapped: over NFS a map faults in
4 KiB pieces and a vanished server kills the process instead of raising an error.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.samples import Targets
from dlhpc.data.splits import SPLITS, SplitName
from dlhpc.errors import DataError, StorageError
from dlhpc.files import read_json, storage_errors

FORMAT = 1
PICTURES, LABELS, PATHS, MEAN_IMAGE, INDEX = (
    "pictures.bin", "labels.npy", "pictures.json", "mean_image.npy", "index.json",
)  # fmt: skip

Pictures = NDArray[np.uint8] | NDArray[np.uint16]
"""N×C×H×W (or C×H×W for one) with 8 or 16 bits a value, full scale."""


@dataclass(frozen=True)
class Index:
    """``index.json``: all about a packed dataset but the pictures, labels and paths themselves."""

    dtype: str
    """``uint8`` or ``uint16``."""
    byte_order: str
    """``little`` or ``big``: of the machine that packed."""
    shape: tuple[int, int, int, int]
    """N, C, H, W."""
    classes: list[str]
    ranges: dict[str, tuple[int, int]]
    """Split → first picture and the one after the last."""
    skipped: list[tuple[str, str]]
    """Path and reason of each picture that was left out."""
    mean: list[float]
    """Per channel over the training pictures, on the scale where full is 1."""
    std: list[float]
    """Standard deviation, likewise."""
    fingerprint: str
    """SHA-256 over pictures and labels."""
    key: str = ""
    """Of the catalogue that was packed."""
    format: int = FORMAT

    @property
    def picture_bytes(self) -> int:
        """Size of one picture."""
        _, channels, height, width = self.shape
        return channels * height * width * np.dtype(self.dtype).itemsize


class Packed:
    """An open packed dataset. Reading is safe from several threads; ``close`` it or use it in a ``with``."""

    def __init__(self, folder: Path, index: Index, labels: NDArray[np.int64], descriptor: int) -> None:
        self.folder = folder
        self.index = index
        self._labels = labels
        self._descriptor = descriptor
        self._swap = index.byte_order != sys.byteorder and index.dtype == "uint16"

    @property
    def channels(self) -> int:
        return self.index.shape[1]

    @property
    def height(self) -> int:
        return self.index.shape[2]

    @property
    def width(self) -> int:
        return self.index.shape[3]

    @property
    def dtype(self) -> np.dtype[Any]:
        """``uint8`` or ``uint16``."""
        return np.dtype(self.index.dtype)

    @property
    def classes(self) -> list[str]:
        return self.index.classes

    @property
    def mean(self) -> NDArray[np.float64]:
        """C values over the training pictures, on the scale where full (255 or 65535) is 1."""
        return np.array(self.index.mean, dtype=np.float64)

    @property
    def std(self) -> NDArray[np.float64]:
        """C standard deviations, likewise; never zero (1 for a channel that does not vary)."""
        std = np.array(self.index.std, dtype=np.float64)
        return np.where(std > 0, std, 1.0)

    @cached_property
    def mean_image(self) -> NDArray[np.float32]:
        """C×H×W mean over the training pictures, on the scale where full is 1."""
        image = _load_array(self.folder / MEAN_IMAGE)
        if image.shape != self.index.shape[1:]:
            raise _damaged(self.folder / MEAN_IMAGE, f"has the shape {image.shape}")
        return image.astype(np.float32)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all pictures and labels as packed."""
        return self.index.fingerprint

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Path and reason of each broken picture that was left out."""
        return self.index.skipped

    def count(self, split: SplitName) -> int:
        """Pictures in ``split``; 0 if the dataset has none there."""
        first, end = self.index.ranges[split]
        return end - first

    def labels(self, split: SplitName) -> NDArray[np.int64]:
        """Class number of each picture of ``split``."""
        return self._labels[slice(*self.index.ranges[split])]

    def targets(self, split: SplitName) -> Targets:
        """What is to be learnt of each sample of ``split``."""
        return self.labels(split)

    def paths(self, split: SplitName) -> list[str]:
        """Where each picture of ``split`` came from (absolute)."""
        return self._paths[slice(*self.index.ranges[split])]

    @cached_property
    def _paths(self) -> list[str]:
        paths = read_json(self.folder / PATHS)
        if not isinstance(paths, list) or len(paths) != self.index.shape[0]:
            raise _damaged(self.folder / PATHS, "does not name every picture")
        return cast("list[str]", paths)

    def read(self, split: SplitName, indices: NDArray[np.integer[Any]], out: Pictures) -> None:
        """Read the pictures ``indices`` (counted within ``split``) into ``out``, n×C×H×W and C-contiguous.

        Raises :class:`DataError` if the file ends early, :class:`StorageError` if it cannot be read.
        """
        first, end = self.index.ranges[split]
        size = self.index.picture_bytes
        if out.dtype != self.dtype or out.shape != (len(indices), *self.index.shape[1:]) or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}; a contiguous {self.dtype} for {len(indices)} is needed")
        if len(indices) == 0:
            return
        view = out.data.cast("B")
        path = self.folder / PICTURES
        with storage_errors(path, "read"):
            for slot, index in enumerate(indices.tolist()):
                if not 0 <= index < end - first:
                    raise IndexError(f"{split} has {end - first} pictures, not one numbered {index}")
                self._fill(view[slot * size : (slot + 1) * size], (first + index) * size)
        if self._swap:
            out.byteswap(inplace=True)

    def _fill(self, target: memoryview, offset: int) -> None:
        done = 0
        while done < len(target):  # a network file system may give a part only
            got = os.preadv(self._descriptor, [target[done:]], offset + done)
            if got == 0:
                raise _damaged(self.folder / PICTURES, "ends in the middle of a picture")
            done += got

    def close(self) -> None:
        """Close the file; further reads fail."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_packed(folder: Path | str) -> Packed:
    """Open a packed dataset and check that its files fit together.

    Raises :class:`StorageError` if one cannot be read, :class:`DataError` if one is damaged. Costs the index and the
    labels; pictures and paths are read when asked for.
    """
    folder = Path(folder)
    index = read_index(folder)
    labels = _load_array(folder / LABELS)
    if labels.dtype != np.int64 or labels.shape != (index.shape[0],):
        raise _damaged(folder / LABELS, f"holds {labels.shape} {labels.dtype}, not {index.shape[0]} labels")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(index.classes):
        raise _damaged(folder / LABELS, "names classes that do not exist")
    path = folder / PICTURES
    with storage_errors(path, "open"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(descriptor).st_size
    wanted = index.shape[0] * index.picture_bytes
    if size != wanted:
        os.close(descriptor)
        raise _damaged(path, f"is {size} bytes long instead of {wanted}")
    return Packed(folder, index, labels, descriptor)


def read_index(folder: Path) -> Index:
    """The index alone; errors as for :func:`open_packed`."""
    path = folder / INDEX
    try:
        value = read_json(path)
    except StorageError as error:
        if isinstance(error.__cause__, ValueError):
            raise _damaged(path, "is not whole JSON") from error
        raise
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise _damaged(path, "is not an index of this version of dlhpc")
    try:
        channels_first = tuple(int(length) for length in value["shape"])
        ranges = {split: (int(value["ranges"][split][0]), int(value["ranges"][split][1])) for split in SPLITS}
        skipped = [(str(name), str(reason)) for name, reason in value["skipped"]]
        index = Index(**{**value, "shape": channels_first, "ranges": ranges, "skipped": skipped})
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise _damaged(path, f"lacks or garbles {error}") from error
    ends = [0, *(edge for split in SPLITS for edge in ranges[split])]
    fits = len(channels_first) == 4 and index.dtype in ("uint8", "uint16") and ends == sorted(ends)
    if not fits or ends[-1] != channels_first[0] or not len(index.mean) == len(index.std) == channels_first[1]:
        raise _damaged(path, "contradicts itself")
    return index


def _load_array(path: Path) -> NDArray[Any]:
    try:
        with storage_errors(path, "read"):
            return cast("NDArray[Any]", np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise _damaged(path, "is not a whole array") from error


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"the packed dataset is damaged: {path.name} {what}",
        where=path,
        remedy=f"Delete the folder {path.parent} and resume the run: it is then packed anew from the pictures.",
    )
