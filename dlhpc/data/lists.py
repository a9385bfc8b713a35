"""List files: one ``PATH LABEL`` a line, as Caffe and DIGITS write them, with every fault at its line.

With several labels ``PATH a,b`` (or the path alone, for none of the classes), for regression ``PATH 1.5 -3``.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dlhpc.data.catalog import Catalog, Sample, Target
from dlhpc.data.class_folders import separate
from dlhpc.data.faults import Faults
from dlhpc.data.folders import EXTENSIONS, FoundFile, absolute, found_file, named_list, natural
from dlhpc.data.splits import SPLITS
from dlhpc.errors import DataError, Place
from dlhpc.files import read_user_text

if TYPE_CHECKING:
    from dlhpc.spec.models import Data, Lists, TaskName

_MANY = 1000  # more distinct labels than this without a labels file are taken for a mistake in the lists
_PATH = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, sorted(EXTENSIONS)))}))(?:\s+(.*))?", re.IGNORECASE)


class _Line(NamedTuple):
    """What one line of a list says."""

    split: str
    file: FoundFile
    said: tuple[str, ...] | tuple[float, ...]
    """Names of classes, or numbers."""


@dataclass
class _Reader:
    """How lines are understood, and what was wrong with them."""

    lists: Lists
    task: TaskName
    several: bool
    names: list[str] | None = None
    """From the labels file: classes, or what the numbers are called."""
    numbers: int | None = None
    """So many a line, by the first line that has any."""
    faults: Faults = field(default_factory=Faults)

    def read(self, line: str, place: Place) -> tuple[str, tuple[str, ...] | tuple[float, ...]] | None:
        """The path and what is said of it, or None after a fault."""
        path, label = self._cut(line)
        if not label and not self.several:
            number = "number" if self.task == "regression" else "class"
            self.faults.add(f"`{line}` has no label", place, f"Write the path, a blank and the {number}.")
            return None
        if self.task == "regression":
            numbers = self._numbers(label, place)
            return None if numbers is None else (path, numbers)
        words = [label] if not self.several else [word for word in map(str.strip, label.split(",")) if word]
        classes = [self._class_of(word, place) for word in dict.fromkeys(words)]
        known = tuple(dict.fromkeys(name for name in classes if name is not None))
        return None if None in classes else (path, known)

    def _cut(self, line: str) -> tuple[str, str]:
        """One label is the last word, everything before it the path; more begin where the picture's name ends."""
        if (self.several or self.task == "regression") and (found := _PATH.fullmatch(line)):
            return found[1], found[2] or ""
        path, *label = line.rsplit(maxsplit=1)
        return path, label[0] if label else ""

    def _class_of(self, label: str, place: Place) -> str | None:
        if self.names is None or label in self.names:
            return label
        if label.isascii() and label.isdecimal():
            if int(label) < len(self.names):
                return self.names[int(label)]
            what = f"class number {label} is not in the labels file, which has {len(self.names)} classes from 0 on"
        else:
            what = f"class `{label}` is not in the labels file"
        self.faults.add(what, place, "Correct the label, or add the class to the labels file.")
        return None

    def _numbers(self, text: str, place: Place) -> tuple[float, ...] | None:
        numbers = []
        for word in re.split(r"[\s,]+", text.strip().strip(",")):
            try:
                value = float(word)
            except ValueError:
                self.faults.add(f"`{word}` is not a number", place, "Write numbers such as 1.5, separated by blanks.")
                return None
            if not math.isfinite(value):
                self.faults.add(f"the target is {word}; nothing can be learnt from it", place, "Take the line out.")
                return None
            numbers.append(value)
        if self.numbers is None:
            self.numbers = len(numbers) if self.names is None else len(self.names)
        if len(numbers) != self.numbers:
            why = "earlier lines have" if self.names is None else "the labels file names"
            self.faults.add(
                f"{len(numbers)} number{'' if len(numbers) == 1 else 's'} here, but {why} {self.numbers}",
                place,
                "Every picture needs as many targets as the others.",
            )
            return None
        return tuple(numbers)


def list_catalog(data: Data, base: Path, task: TaskName) -> Catalog:
    """The catalogue of ``data.lists``, whose paths are relative to ``base``.

    Lines that are empty or begin with ``#`` are passed over. Raises :class:`ErrorList` with up to 20 faults and the
    number of the others.
    """
    assert data.lists is not None
    lists, several = data.lists, data.several_labels
    reader = _Reader(lists, task, several)
    if lists.labels is not None:
        reader.names = _read_labels(absolute(base, lists.labels), reader.faults)
    lines, notes = _read_lines(reader, base)
    reader.faults.raise_if_any()
    train = absolute(base, lists.train)
    _check_not_empty(lines, lists, base)
    if task == "regression":
        count = reader.numbers or 1
        names = reader.names or (["target"] if count == 1 else [f"target {number}" for number in range(1, count + 1)])
        splits = _samples(lines, lambda said: [float(value) for value in said])
        return Catalog([], splits, [*notes, *_constant(splits["train"], names)], task=task, target_names=names)
    classes = reader.names
    if classes is None:
        classes = sorted({str(name) for line in lines for name in line.said}, key=natural)
        _check_not_too_many(classes, train)
    if several:
        numbers = {name: number for number, name in enumerate(classes)}
        splits = _samples(lines, lambda said: sorted(numbers[str(name)] for name in said))
        catalog = Catalog(classes, splits, notes, several_labels=True)
        _check_labels(catalog, data, train)
        return catalog
    found: dict[str, dict[str, list[FoundFile]]] = {split: {} for split in SPLITS if getattr(lists, split) is not None}
    for line in lines:
        found[line.split].setdefault(str(line.said[0]), []).append(line.file)
    return separate(data, classes, found, notes, train)


def _read_lines(reader: _Reader, base: Path) -> tuple[list[_Line], list[str]]:
    """All lines of all lists, and notes on pictures that are named more than once."""
    lists, faults = reader.lists, reader.faults
    lines: list[_Line] = []
    earlier: dict[str, _Line] = {}
    repeated: Counter[str] = Counter()
    for split in SPLITS:
        named = getattr(lists, split)
        if named is None:
            continue
        file = absolute(base, named)
        root = file.parent if lists.root is None else absolute(base, lists.root)
        for number, text in _lines(file):
            place = Place(str(file), number)
            read = reader.read(text, place)
            if read is None:
                continue
            relative, said = read
            path = os.path.abspath(os.path.join(root, os.path.expanduser(relative)))
            if (before := earlier.get(path)) is not None:
                if sorted(map(str, before.said)) != sorted(map(str, said)):
                    faults.add(
                        f"{relative} is {_shown(said)} here and {_shown(before.said)} in {before.split}",
                        place,
                        "Keep the right one.",
                    )
                repeated[" and ".join(dict.fromkeys([before.split, split]))] += 1
                if before.split == split:
                    continue
            elif not os.path.isfile(path):
                faults.add(f"there is no file {path}", place, _path_remedy(lists))
                continue
            line = _Line(split, found_file(path, relative), said)
            earlier.setdefault(path, line)
            lines.append(line)
    return lines, _notes(repeated)


def _shown(said: tuple[str, ...] | tuple[float, ...]) -> str:
    if said and isinstance(said[0], float):
        return " ".join(f"{value:g}" for value in said)
    return f"of class {named_list(list(map(str, said)))}" if said else "of no class"


def _samples(lines: list[_Line], target: Callable[[Sequence[str | float]], Target]) -> dict[str, list[Sample]]:
    """Split → samples in an order that does not depend on that of the list."""
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for line in sorted(lines, key=lambda line: line.file.relative):
        splits[line.split].append(Sample(line.file.path, target(line.said), line.file.size, line.file.mtime_ns))
    return splits


def _check_not_empty(lines: list[_Line], lists: Lists, base: Path) -> None:
    counts = Counter(line.split for line in lines)
    for split in ("train", "val"):
        if not counts[split]:
            raise DataError(
                f"the list for {split} names no pictures",
                where=absolute(base, getattr(lists, split)),
                remedy="Write one picture a line, or name another list.",
            )


def _check_not_too_many(classes: list[str], where: Path) -> None:
    if len(classes) > _MANY:
        raise DataError(
            f"the lists name {len(classes)} different classes, such as `{classes[0]}` and `{classes[1]}`",
            where=where,
            remedy="Check that the class is the last word of each line; if it is, name them in data.lists.labels.",
        )


def _check_labels(catalog: Catalog, data: Data, where: Path) -> None:
    """Every class of a set with several labels needs some pictures to learn it from."""
    if not catalog.classes:
        raise DataError("no picture has a label", where=where, remedy="Write classes behind the paths: PATH a,b.")
    few = [
        f"`{name}` {count}"
        for name, count in zip(catalog.classes, catalog.counts("train"))
        if count < data.min_per_class
    ]
    if few:
        raise DataError(
            f"too few pictures in train have these labels: {', '.join(few[:20])}; data.min_per_class is "
            f"{data.min_per_class}",
            where=where,
            remedy="Add pictures with the label, take it out, or change data.min_per_class.",
        )
    unmeasured = [name for name, count in zip(catalog.classes, catalog.counts("val")) if not count]
    if unmeasured:
        catalog.notes.append(f"no picture in val has the label {named_list(unmeasured)}: it cannot be measured")


def _constant(train: list[Sample], names: list[str]) -> list[str]:
    """Targets that never vary."""
    columns = zip(*(sample.target for sample in train))
    return [
        f"the target `{name}` is {values[0]:g} for every training picture: there is nothing to learn"
        for name, values in zip(names, columns)
        if min(values) == max(values)
    ]


def _read_labels(file: Path, faults: Faults) -> list[str]:
    classes: list[str] = []
    for number, line in _lines(file, comments=False):
        place = Place(str(file), number)
        if number != len(classes) + 1:
            faults.add("an empty line before this one shifts the numbers of the classes", place, "Delete it.")
        if line in classes:
            faults.add(f"class `{line}` is named twice", place, "Take one of the two out.")
        classes.append(line)
    return classes


def _lines(file: Path, *, comments: bool = True) -> Iterator[tuple[int, str]]:
    if file.is_dir():
        raise DataError("is a folder; a list file is needed", where=file, remedy="Name the list inside it.")
    if not file.exists():
        raise DataError("there is no such file", where=file, remedy="Check the path under data.lists.")
    for number, line in enumerate(read_user_text(file, DataError).split("\n"), 1):
        stripped = line.strip()
        if stripped and not (comments and stripped.startswith("#")):
            yield number, stripped


def _notes(repeated: Counter[str]) -> list[str]:
    notes = []
    for splits, count in repeated.items():
        times = "picture is" if count == 1 else "pictures are"
        if " and " in splits:
            notes.append(f"{count} {times} listed in {splits}: accuracy measured on known pictures looks too good")
        else:
            notes.append(f"{count} {times} listed twice in {splits}; each is used once")
    return notes


def _path_remedy(lists: Lists) -> str:
    if lists.root is None:
        return "Correct the path, or name the folder that paths are relative to as data.lists.root."
    return "Correct the path, or data.lists.root."
