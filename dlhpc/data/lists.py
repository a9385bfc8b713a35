"""List files: one ``PATH LABEL`` a line, as Caffe and DIGITS write them, with every fault at its line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dlhpc.data.folders import FoundFile, absolute, found_file, natural
from dlhpc.data.splits import SPLITS
from dlhpc.errors import DataError, ErrorList, Place, UserError
from dlhpc.files import read_user_text

if TYPE_CHECKING:
    from dlhpc.spec.models import Lists

_SHOWN = 20
_MANY = 1000  # more distinct labels than this without a labels file are taken for a mistake in the lists


@dataclass
class _Faults:
    """The first faults in full and the number of all."""

    shown: list[UserError] = field(default_factory=list)
    count: int = 0

    def add(self, what: str, file: Path, line: int, remedy: str) -> None:
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(DataError(what, where=Place(str(file), line), remedy=remedy))

    def raise_if_any(self) -> None:
        if self.count > len(self.shown):
            self.shown.append(DataError(f"… and {self.count - len(self.shown)} more faults in the lists"))
        if self.shown:
            raise ErrorList(self.shown)


def read_lists(lists: Lists, base: Path) -> tuple[list[str], dict[str, dict[str, list[FoundFile]]], list[str]]:
    """Classes, and per split the files of each class, and notes for the user.

    LABEL is the last word of a line, everything before it is the path (blanks allowed). Lines that are empty or begin
    with ``#`` are passed over. Raises :class:`ErrorList` with up to 20 faults and the number of the others.
    """
    faults = _Faults()
    classes = None if lists.labels is None else _read_labels(absolute(base, lists.labels), faults)
    found: dict[str, dict[str, list[FoundFile]]] = {}
    earlier: dict[str, tuple[str, str]] = {}  # path → split and class where it stood first
    repeated: Counter[str] = Counter()
    for split in SPLITS:
        named = getattr(lists, split)
        if named is None:
            continue
        file = absolute(base, named)
        root = file.parent if lists.root is None else absolute(base, lists.root)
        found[split] = {}
        for number, line in _lines(file):
            words = line.rsplit(maxsplit=1)
            if len(words) < 2:
                faults.add(f"`{line}` has no label", file, number, "Write the path, a blank and the class.")
                continue
            relative, label = words
            name = _class_of(label, classes, file, number, faults)
            if name is None:
                continue
            path = os.path.abspath(os.path.join(root, os.path.expanduser(relative)))
            if path in earlier:
                first_split, first_name = earlier[path]
                if first_name != name:
                    faults.add(
                        f"{relative} is of class `{name}` here and of class `{first_name}` in {first_split}",
                        file, number, "Keep the right one.",
                    )  # fmt: skip
                repeated[" and ".join(dict.fromkeys([first_split, split]))] += 1
                if first_split == split:
                    continue
            elif not os.path.isfile(path):
                faults.add(f"there is no file {path}", file, number, _path_remedy(lists))
                continue
            earlier.setdefault(path, (split, name))
            found[split].setdefault(name, []).append(found_file(path, relative))
    faults.raise_if_any()
    if classes is None:
        classes = sorted({name for split in found.values() for name in split}, key=natural)
        if len(classes) > _MANY:
            raise DataError(
                f"the lists name {len(classes)} different classes, such as `{classes[0]}` and `{classes[1]}`",
                where=absolute(base, lists.train),
                remedy="Check that the class is the last word of each line; if it is, name them in data.lists.labels.",
            )
    return classes, found, _notes(repeated)


def _class_of(label: str, classes: list[str] | None, file: Path, number: int, faults: _Faults) -> str | None:
    if classes is None or label in classes:
        return label
    if label.isascii() and label.isdecimal():
        if int(label) < len(classes):
            return classes[int(label)]
        what = f"class number {label} is not in the labels file, which has {len(classes)} classes from 0 on"
    else:
        what = f"class `{label}` is not in the labels file"
    faults.add(what, file, number, "Correct the label, or add the class to the labels file.")
    return None


def _read_labels(file: Path, faults: _Faults) -> list[str]:
    classes: list[str] = []
    for number, line in _lines(file, comments=False):
        if number != len(classes) + 1:
            faults.add("an empty line before this one shifts the numbers of the classes", file, number, "Delete it.")
        if line in classes:
            faults.add(f"class `{line}` is named twice", file, number, "Take one of the two out.")
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
