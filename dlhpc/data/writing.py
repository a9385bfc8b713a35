"""The table and the index of a packed dataset: what all ways of making one (pack, add, rows of tables) end with."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.catalog import Sample
from dlhpc.data.index import INDEX, Index, Shard
from dlhpc.data.packed import crc
from dlhpc.data.samples import DONT_CARE, Boxes, Targets
from dlhpc.data.splits import SPLITS
from dlhpc.errors import DataError
from dlhpc.files import replace_bytes, replace_json

BINS = 256


@dataclass(frozen=True)
class Table:
    """One row a sample, train before val before unseen."""

    samples: NDArray[Any]
    """``SAMPLE``."""
    sources: NDArray[Any]
    """``SOURCE``."""
    paths: list[str]
    targets: Targets
    counts: dict[str, int]


def write_table(folder: Path, index: Index, table: Table, arrays: dict[str, NDArray[Any]]) -> Index:
    """Write everything but ``index.json``, and give the index that belongs to it (``write_index`` makes it count).

    ``index`` says all but counts, files and fingerprint. ``arrays`` are further ones, such as sums and values.
    """
    targets = _target_arrays(table.targets)
    files = {
        name: save_array(folder, name, array, index.generation)
        for name, array in {"samples": table.samples, "sources": table.sources, **targets, **arrays}.items()
    }
    # ASCII, since a file name need not be valid Unicode.
    text = (json.dumps(table.paths) + "\n").encode()
    files["paths"] = _save(folder, file_name("paths", index.generation, ".json"), text, len(table.paths))
    return dataclasses.replace(
        index,
        counts=table.counts,
        class_counts=class_counts(index, table),
        files=files,
        fingerprint=_fingerprint(index, table, targets),
    )


def write_index(folder: Path, index: Index) -> None:
    """From here on the dataset is what ``index`` says; the generation before stays readable."""
    value = dataclasses.asdict(index)
    replace_json(folder / f"index-g{index.generation}.json", value)
    replace_json(folder / INDEX, value)


def file_name(name: str, generation: int, ending: str = ".npy") -> str:
    """Files of later generations have a number, since files never change."""
    return f"{name}{ending}" if generation == 1 else f"{name}-g{generation}{ending}"


def save_array(folder: Path, name: str, array: NDArray[Any], generation: int = 1) -> Shard:
    """Write a ``.npy`` file durably."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return _save(folder, file_name(name, generation), buffer.getvalue(), len(array))


def _save(folder: Path, name: str, content: bytes, samples: int) -> Shard:
    replace_bytes(folder / name, content)
    return Shard(name, len(content), samples, crc(content))


def _target_arrays(targets: Targets) -> dict[str, NDArray[Any]]:
    if isinstance(targets, Boxes):
        return {"corners": targets.corners, "box_classes": targets.classes, "box_starts": targets.starts}
    return {"targets": targets}


def _fingerprint(index: Index, table: Table, targets: dict[str, NDArray[Any]]) -> str:
    about = [index.kind, index.task, index.dtype, list(index.shape), index.classes, index.target_names, table.counts]
    digest = hashlib.sha256(json.dumps(about).encode())
    digest.update(table.sources["checksum"].tobytes())
    for name in sorted(targets):
        array = targets[name]
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def class_counts(index: Index, table: Table) -> dict[str, list[int]]:
    """Split → samples of each class; in detection boxes."""
    counts: dict[str, list[int]] = {}
    first = 0
    for split in SPLITS:
        end = first + table.counts[split]
        counts[split] = count_classes(table.targets, slice(first, end), len(index.classes), index)
        first = end
    return counts


def count_classes(targets: Targets, part: slice, classes: int, index: Index) -> list[int]:
    """Samples (or boxes) of each class in a part of all samples; nothing for regression."""
    if index.task == "regression":
        return []
    if isinstance(targets, Boxes):
        labels = targets.classes[targets.starts[part.start] : targets.starts[part.stop]]
        counted = np.bincount(labels[labels != DONT_CARE], minlength=classes)
    elif index.several_labels:
        counted = targets[part].sum(axis=0, dtype=np.int64)
    else:
        counted = np.bincount(targets[part], minlength=classes)
    return [int(count) for count in counted]


def targets_of(task: str, several_labels: bool, classes: int, samples: Sequence[Sample]) -> NDArray[Any]:
    """The targets of a catalogue's samples as an array: int64 n, uint8 n×K or float64 n×T; not for boxes."""
    if task == "regression":
        for sample in samples:
            if not np.isfinite(np.array(sample.target, dtype=np.float64)).all():
                raise DataError(
                    f"the target of {sample.path} is not a finite number", remedy="Correct it, or leave the sample out."
                )
        values = [sample.target if isinstance(sample.target, list) else [sample.target] for sample in samples]
        return np.array(values, dtype=np.float64)
    if several_labels:
        marks = np.zeros((len(samples), classes), np.uint8)
        for row, sample in enumerate(samples):
            marks[row, np.array(sample.target, dtype=np.int64)] = 1
        return marks
    return np.array([sample.target for sample in samples], dtype=np.int64)


def target_statistics(targets: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of n×T targets; 1 where a target does not vary."""
    std = targets.std(axis=0)
    return targets.mean(axis=0).tolist(), np.where(std > 0, std, 1.0).tolist()


def value_statistics(values: NDArray[np.int64]) -> tuple[list[float], list[float], list[list[int]]]:
    """Mean and σ per channel where full is 1, and histogram of 256 bins, from how often each value occurs (C×(full+1)).

    The counts are exact integers, so the result does not depend on the order of the pictures.
    """
    full = values.shape[1] - 1
    scale = np.arange(full + 1, dtype=np.float64) / full
    count = np.maximum(values.sum(axis=1), 1)
    mean = (values @ scale) / count
    variance = (values * (scale - mean[:, None]) ** 2).sum(axis=1) / count
    std = np.sqrt(variance)
    histogram = values.reshape(len(values), BINS, -1).sum(axis=2)
    return mean.tolist(), np.where(std > 0, std, 1.0).tolist(), histogram.tolist()
