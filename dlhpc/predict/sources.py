"""Where pictures to be named come from: files and folders, or the split that a run kept aside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from dlhpc.data.augment import middle
from dlhpc.data.catalog import Catalog
from dlhpc.data.folders import EXTENSIONS, natural, show_path
from dlhpc.data.packed import Pictures, open_packed
from dlhpc.data.pictures import BrokenPicture, read_picture
from dlhpc.data.pixels import Scratch, place
from dlhpc.errors import DataError, ErrorList, StorageError, UserError
from dlhpc.files import storage_errors
from dlhpc.predict.results import Unreadable
from dlhpc.runs.checkpoints import CheckpointRecord
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import read_plan


@dataclass(frozen=True)
class Loaded:
    """A picture as the network wants it: C×H×W, uint8 or uint16, after the centre crop."""

    path: str
    values: Pictures
    truth: str | None = None


Chunk = list[Loaded | Unreadable]


@dataclass(frozen=True)
class Wanted:
    """How the network that will see the pictures was fed in training."""

    channels: int
    picture_height: int
    picture_width: int
    height: int
    """After the centre crop, as ``width``."""
    width: int
    resize: str
    resized_crop: bool = False
    """Training saw parts brought to size, and so does prediction: see :func:`dlhpc.data.augment.middle`."""
    antialias: bool = False

    @classmethod
    def of(cls, record: CheckpointRecord) -> Wanted:
        """Out of a checkpoint's manifest; :class:`StorageError` if that lacks something."""
        given = record.input
        try:
            return cls(
                int(given["channels"]), int(given["picture_height"]), int(given["picture_width"]),
                int(given["height"]), int(given["width"]), str(given["resize"]),
                bool(given.get("resized_crop")), bool(given.get("antialias")),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"does not say how pictures are prepared ({error})",
                where=record.manifest,
                remedy="Take another checkpoint with --checkpoint.",
            ) from error

    def read(self, path: str) -> Pictures:
        """Read one picture just as packing and validation did; errors as :func:`read_picture`."""
        color = "grey" if self.channels == 1 else "rgb"
        return self.crop(read_picture(path, color, self.picture_height, self.picture_width, self.resize))  # type: ignore[arg-type]

    def crop(self, values: Pictures) -> Pictures:
        """The middle of a picture C×H×W, as validation saw it."""
        size = (self.height, self.width)
        change = middle(self.picture_height, self.picture_width, size, resized=self.resized_crop)
        out: Pictures = np.empty((len(values), *size), values.dtype)
        whole: Pictures = np.ascontiguousarray(values)  # type: ignore[assignment]  # of the same type as before
        place(whole, change, out, Scratch(), antialias=self.antialias)
        return out


def picture_paths(given: Sequence[str]) -> Iterator[str]:
    """Every picture that ``given`` files and folders mean, folders at any depth and in order; not listed beforehand.

    A file that is given by name is taken whatever its name ends in. What does not exist is found out before the first
    picture: :class:`UserError`, or a list of them. A folder without pictures is an error when its turn comes.
    """
    faults = [
        UserError("there is no such file or folder", where=path, remedy="Check the path.")
        for path in given
        if not os.path.lexists(path)
    ]
    if faults:
        raise faults[0] if len(faults) == 1 else ErrorList(list(faults))
    return _each(given)


def _each(given: Sequence[str]) -> Iterator[str]:
    for path in given:
        if not os.path.isdir(path):
            yield path
            continue
        found = False
        for below in _walk(path, ()):
            found = True
            yield below
        if not found:
            raise DataError(
                "there is no picture in this folder",
                where=path,
                remedy=f"Known endings: {', '.join(sorted(EXTENSIONS))}",
            )


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Pictures below ``folder`` in natural order; hidden names are passed over, and links that lead in a circle."""
    with storage_errors(show_path(folder), "read the folder"):
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(folder) as entries:
            found = sorted(
                (_sort_key(entry.name), entry.is_dir(), entry.path) for entry in entries if entry.name[0] != "."
            )
    for _, is_folder, path in found:
        if is_folder:
            yield from _walk(path, (*above, here))
        elif os.path.splitext(path)[1].lower() in EXTENSIONS:
            yield path


def _sort_key(name: str) -> tuple[bool, int, str]:
    stem, ending = os.path.splitext(name)
    whole, number, text = natural(stem)
    return whole, number, text + ending


def from_files(paths: Iterator[str], wanted: Wanted, size: int) -> Iterator[Chunk]:
    """The pictures in chunks of ``size``, decoded by threads; while one chunk is in use the next is being read."""
    return _decoded(((path, None) for path in paths), wanted, size)


def _decoded(sources: Iterator[tuple[str, str | None]], wanted: Wanted, size: int) -> Iterator[Chunk]:
    def load(source: tuple[str, str | None]) -> Loaded | Unreadable:
        path, truth = source
        try:
            return Loaded(show_path(path), wanted.read(path), truth)
        except BrokenPicture as error:
            return Unreadable(show_path(path), error.reason, truth)

    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        try:
            ahead = [pool.submit(load, source) for source in islice(sources, size)]
            while ahead:
                now, ahead = ahead, [pool.submit(load, source) for source in islice(sources, size)]
                yield [future.result() for future in now]
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class UnseenSplit:
    """The pictures that a run kept aside."""

    count: int
    chunks: Callable[[int], Iterator[Chunk]]
    """Gives them in chunks of a size."""
    note: str | None = None


def unseen_split(run: RunDirectory, record: CheckpointRecord, wanted: Wanted) -> UnseenSplit:
    """From the packed dataset if it is still there, else from the user's own files by the run's catalogue.

    Raises :class:`UserError` if the run has no unseen pictures.
    """
    folder = Path(read_plan(run.plan).dataset.packed)
    try:
        with open_packed(folder) as packed:
            count, classes = packed.count("unseen"), packed.classes
        if classes != record.classes:
            raise DataError("its classes are not those of the checkpoint", where=folder)
    except (StorageError, DataError) as error:
        note = f"the packed dataset cannot be used ({error.what}); the original pictures are read"
    else:
        _demand_some(count, run)
        return UnseenSplit(count, lambda size: _from_packed(folder, wanted, size))
    catalog = Catalog.read(run.catalog)
    pictures = catalog.splits["unseen"]
    _demand_some(len(pictures), run)
    named = [(picture.path, catalog.classes[picture.label]) for picture in pictures]
    return UnseenSplit(len(named), lambda size: _decoded(iter(named), wanted, size), note)


def _demand_some(count: int, run: RunDirectory) -> None:
    if count == 0:
        raise UserError(
            f"{run.name} kept no pictures aside",
            remedy="Give pictures or folders instead of --unseen; for the next run set data.split.unseen, or an unseen "
            "folder or list.",
        )


def _from_packed(folder: Path, wanted: Wanted, size: int) -> Iterator[Chunk]:
    with open_packed(folder) as packed:
        labels, paths, count = packed.labels("unseen"), packed.paths("unseen"), packed.count("unseen")
        for start in range(0, count, size):
            indices = np.arange(start, min(count, start + size))
            shape = (len(indices), packed.channels, packed.height, packed.width)
            values: Pictures = np.empty(shape, packed.dtype)
            packed.read("unseen", indices, values)
            yield [
                Loaded(show_path(paths[index]), wanted.crop(values[slot]), packed.classes[int(labels[index])])
                for slot, index in enumerate(indices.tolist())
            ]
