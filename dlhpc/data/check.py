"""``dlhpc data check``: look at every sample once, and tell what would harm training or make its figures lie.

Pictures are read by a few threads (decoders let others run meanwhile); of each only a digest, a hash and a thumbnail
are kept. What is concluded from them is in :mod:`dlhpc.data.findings`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlhpc.data import findings
from dlhpc.data.catalog import Catalog, Target
from dlhpc.data.findings import Finding, Look, Severity
from dlhpc.data.folders import show_path
from dlhpc.data.pictures import BrokenPicture, decode_content, file_content, is_grey, window
from dlhpc.data.samples import Boxes, Targets
from dlhpc.data.similar import fingerprint
from dlhpc.data.splits import SPLITS, SplitName

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed
    from dlhpc.spec.models import Data

Progress = Callable[[int, int], None]
"""Called with how many samples were looked at, of how many."""


def check(catalog: Catalog, data: Data, *, threads: int = 2, progress: Progress | None = None) -> list[Finding]:
    """What is to be said of the files of a catalogue, worst first. ``data`` says how they will be prepared.

    Raises what reading raises if storage fails; files that are broken are findings.
    """
    if catalog.packed is not None:
        from dlhpc.data.packed import open_packed

        with open_packed(catalog.packed.folder, catalog.packed.fingerprint) as packed:
            return check_packed(packed, threads=threads, progress=progress)
    if catalog.kind == "table":
        from dlhpc.data.coding import code_table

        assert data.table is not None
        coded = code_table(catalog, data.table.model_dump(mode="json"))
        return _sorted(_of_rows(coded.inputs, coded.targets, coded.origins, coded.features, _About.of_catalog(catalog)))
    about = _About.of_catalog(catalog)
    found = list(_looked_at(_of_files(catalog), threads, progress))

    def scale(height: int, width: int) -> tuple[float, float]:
        frame = window(height, width, data.height, data.width, data.resize)
        left, top, right, bottom = frame.box
        return frame.rows / (bottom - top), frame.columns / (right - left)

    return _sorted(
        itertools.chain(
            findings.broken(found, skipped=data.broken == "skip"),
            _of_pictures(found, about),
            findings.boxes(found, catalog.classes, scale) if catalog.task == "detection" else (),
            findings.shapes(found, data.height, data.width),
        )
    )


def check_packed(packed: Packed, *, threads: int = 2, progress: Progress | None = None) -> list[Finding]:
    """The same for a packed dataset, whose checksums are compared first."""
    damaged = [f"{show_path(path)}: {reason}" for path, reason in packed.verify()]
    if damaged:
        what = f"{len(damaged)} samples or files of the packed dataset are damaged"
        remedy = "Restore the folder from a copy, or delete it and pack the data anew."
        return [Finding(Severity.ERROR, "damaged", what, len(damaged), remedy, damaged[: findings.SHOWN])]
    about = _About.of_packed(packed)
    said = [_skipped(packed)]
    if packed.kind == "table":
        inputs: dict[str, NDArray[np.float32]] = {split: _rows(packed, split) for split in SPLITS}
        targets: dict[str, Targets] = {split: packed.targets(split) for split in SPLITS}
        origins: dict[str, list[str]] = {split: packed.paths(split) for split in SPLITS}
        said.append(_of_rows(inputs, targets, origins, packed.features, about))
    else:
        found = list(_looked_at(_of_packed(packed), threads, progress))
        said.append(_of_pictures(found, about))
        if packed.task == "detection":  # boxes are in pixels of the packed size, whatever size pictures are kept at
            framed = (dataclasses.replace(look, height=packed.height, width=packed.width) for look in found)
            said.append(findings.boxes(framed, packed.classes, lambda _height, _width: (1.0, 1.0)))
        said.append(findings.shapes(found, packed.height, packed.width))
    return _sorted(itertools.chain(*said))


def _sorted(found: Iterable[Finding]) -> list[Finding]:
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))


@dataclass(frozen=True)
class _About:
    """What is known of the whole set."""

    classes: list[str]
    target_names: list[str]
    several_labels: bool
    detection: bool
    counts: dict[str, int]
    class_counts: dict[str, list[int]]

    @classmethod
    def of_catalog(cls, catalog: Catalog) -> _About:
        return cls(
            catalog.classes,
            catalog.target_names,
            catalog.several_labels,
            catalog.task == "detection",
            {split: catalog.count(split) for split in SPLITS},
            {split: catalog.counts(split) for split in SPLITS},
        )

    @classmethod
    def of_packed(cls, packed: Packed) -> _About:
        return cls(
            packed.classes,
            packed.target_names,
            packed.several_labels,
            packed.task == "detection",
            {split: packed.count(split) for split in SPLITS},
            {split: packed.index.class_counts.get(split, []) for split in SPLITS},
        )

    def of_classes_and_splits(self) -> Iterator[Finding]:
        yield from findings.classes(self.classes, self.class_counts, what="boxes" if self.detection else "samples")
        yield from findings.few_to_measure(self.counts)


def _of_pictures(found: Sequence[Look], about: _About) -> Iterator[Finding]:
    yield from findings.duplicates(found)
    yield from findings.near_duplicates(found)
    yield from about.of_classes_and_splits()
    if about.target_names:
        width = len(about.target_names)
        values, where = {}, {}
        for split in about.counts:
            there = [look for look in found if look.split == split]
            values[split] = np.array([look.target for look in there], dtype=np.float64).reshape(len(there), width)
            where[split] = [look.path for look in there]
        yield from findings.targets(values, about.target_names, where)


def _of_rows(
    inputs: Mapping[str, NDArray[np.float32]],
    targets: Mapping[str, Targets],
    origins: Mapping[str, Sequence[str]],
    features: Sequence[str],
    about: _About,
) -> Iterator[Finding]:
    looks = [
        Look(split, origins[split][at], _plain(targets[split], at), content=hashlib.sha256(row.tobytes()).digest())
        for split in inputs
        for at, row in enumerate(inputs[split])
    ]
    yield from findings.duplicates(looks, rows=True)
    yield from about.of_classes_and_splits()
    train = inputs["train"]
    constant = [name for name, low, high in zip(features, train.min(axis=0), train.max(axis=0)) if low == high]
    if constant:
        what = f"{len(constant)} of {len(features)} inputs never vary in the training rows"
        remedy = "They tell nothing; leave them out of data.table.inputs."
        yield Finding(Severity.NOTE, "constant-input", what, len(constant), remedy, constant[: findings.SHOWN])
    if about.target_names:
        values = {split: np.asarray(of_split, dtype=np.float64) for split, of_split in targets.items()}
        yield from findings.targets(values, about.target_names, origins)


def _skipped(packed: Packed) -> Iterator[Finding]:
    if packed.skipped:
        what = f"{len(packed.skipped)} samples were left out when the dataset was packed"
        examples = [f"{show_path(path)}: {reason}" for path, reason in packed.skipped[: findings.SHOWN]]
        yield Finding(
            Severity.WARNING, "skipped", what, len(packed.skipped), "Replace the files and pack anew.", examples
        )


# --- Looking at samples -------------------------------------------------------------------------------------------

_Picture = tuple[str, str, Target, Callable[[], tuple[bytes, NDArray[Any]]]]
"""Split, path, target, and what reads it: a digest and the values H×W×C."""


def _of_files(catalog: Catalog) -> Iterator[_Picture]:
    def reader(path: str) -> tuple[bytes, NDArray[Any]]:
        content = file_content(path)
        return hashlib.sha256(content).digest(), decode_content(content, path)

    for split in SPLITS:
        for sample in catalog.splits[split]:
            yield split, sample.path, sample.target, functools.partial(reader, sample.path)


def _of_packed(packed: Packed) -> Iterator[_Picture]:
    def reader(split: SplitName, at: int) -> tuple[bytes, NDArray[Any]]:
        values = packed.decoded(split, at)
        return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).digest(), values

    for split in SPLITS:
        targets = packed.targets(split)
        for at, path in enumerate(packed.paths(split)):
            yield split, path, _plain(targets, at), functools.partial(reader, split, at)


def _looked_at(pictures: Iterable[_Picture], threads: int, progress: Progress | None) -> Iterator[Look]:
    """A look at each picture, in order; a few are in memory at a time."""
    waiting = list(pictures)
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="look") as pool:
        under_way: deque[Future[Look]] = deque()
        try:
            for done in range(len(waiting)):
                while len(under_way) < 4 * threads and (at := done + len(under_way)) < len(waiting):
                    under_way.append(pool.submit(_look, *waiting[at]))
                yield under_way.popleft().result()
                if progress is not None:
                    progress(done + 1, len(waiting))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _look(split: str, path: str, target: Target, read: Callable[[], tuple[bytes, NDArray[Any]]]) -> Look:
    try:
        content, values = read()
    except BrokenPicture as error:
        return Look(split, path, target, broken=error.reason)
    code, thumbnail = fingerprint(values)
    return Look(
        split,
        path,
        target,
        content=content,
        height=values.shape[0],
        width=values.shape[1],
        grey=is_grey(values),
        bits=values.dtype.itemsize * 8,
        flat=bool(values.min() == values.max()),
        hash=code,
        thumbnail=thumbnail,
    )


def _plain(targets: Targets, at: int) -> Target:
    """The target of one sample as a catalogue has it."""
    if isinstance(targets, Boxes):
        corners, labels = targets.of(at)
        return [[int(label), *map(float, box)] for label, box in zip(labels, corners)]
    value = targets[at]
    if np.ndim(value) == 0:
        return int(value)
    if targets.dtype == np.uint8:  # several labels: of each class whether it applies
        return np.flatnonzero(value).tolist()
    return [float(one) for one in value]


def _rows(packed: Packed, split: SplitName) -> NDArray[np.float32]:
    rows = np.empty((packed.count(split), len(packed.features)), np.float32)
    packed.read(split, np.arange(len(rows)), rows)
    return rows
