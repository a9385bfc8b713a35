"""Which picture belongs to which class and split. Runs on the login node: standard library only, no picture is opened.

The catalogue is decided once, at submission, and travels in the run directory; what the job trains on is therefore
what the user saw in the plan, even when pictures are added meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dlhpc.data.folders import Folder, FoundFile, absolute, named_list, natural, scan_folder
from dlhpc.data.splits import SPLIT_WORDS, SPLITS, shuffled, split_counts
from dlhpc.errors import DataError, ErrorList, StorageError, UserError
from dlhpc.files import read_json, replace_text

if TYPE_CHECKING:
    from dlhpc.spec.models import Data

FORMAT = 1
PREPARATION = 1  # raise it when the same settings begin to give other pixels
_SHOWN = 20


class Picture(NamedTuple):
    """One file: absolute path, class number, and size in bytes and mtime as they were when it was listed."""

    path: str
    label: int
    size: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True)
class Catalog:
    """All pictures of a dataset. ``splits`` has the keys train, val and unseen (perhaps empty)."""

    classes: list[str]
    splits: dict[str, list[Picture]]
    notes: list[str] = field(default_factory=list)
    """What the user should know although it is no error, for example how many files were ignored."""

    def counts(self, split: str) -> list[int]:
        """Pictures of each class in ``split``."""
        counted = Counter(picture.label for picture in self.splits[split])
        return [counted[label] for label in range(len(self.classes))]

    def key(self, data: Data) -> str:
        """SHA-256 (hex) over the files with sizes and mtimes and over all settings that change the packed pictures."""
        settings = [PREPARATION, data.color, data.width, data.height, data.resize, data.broken, self.classes]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for split in SPLITS:
            rows = (f"{split}\0{path}\0{label}\0{size}\0{time}\n" for path, label, size, time in self.splits[split])
            digest.update("".join(rows).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write as JSON, atomically. ASCII, since a file name need not be valid Unicode."""
        value = {"format": FORMAT, "classes": self.classes, "splits": self.splits, "notes": self.notes}
        replace_text(path, json.dumps(value, separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, path: Path) -> Catalog:
        """Read what :meth:`write` wrote; :class:`StorageError` if it is missing or damaged."""
        value = read_json(path)
        try:
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']}")
            splits: dict[str, list[Picture]] = {
                name: [Picture(str(p), int(n), int(s), int(t)) for p, n, s, t in value["splits"][name]]
                for name in SPLITS
            }
            return cls([str(name) for name in value["classes"]], splits, [str(note) for note in value["notes"]])
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"is not a catalogue of this version of dlhpc: {error}", where=path, remedy="Submit the run anew."
            ) from error


def make_catalog(data: Data, base: Path) -> Catalog:
    """List and split the pictures that ``data`` asks for; its paths are relative to the folder ``base``.

    Raises :class:`DataError` (or an :class:`ErrorList` of them) when the pictures cannot be trained on as they are,
    :class:`StorageError` when a folder cannot be read.
    """
    if data.folder is not None:
        return _from_folder(data, absolute(base, data.folder))
    if data.folders is not None:
        named = {split: getattr(data.folders, split) for split in SPLITS}
        return _from_folders(data, {split: absolute(base, path) for split, path in named.items() if path is not None})
    from dlhpc.data.lists import read_lists  # most users have folders

    assert data.lists is not None  # the spec has exactly one of the three
    classes, found, notes = read_lists(data.lists, base)
    return _separate(data, classes, found, notes, absolute(base, data.lists.train))


def _from_folder(data: Data, path: Path) -> Catalog:
    folder = scan_folder(path)
    _check_is_no_set_of_splits(folder)
    shares = {"train": data.split.train, "val": data.split.val, "unseen": data.split.unseen}
    wanted = [split for split, fraction in shares.items() if fraction > 0]
    classes = sorted(folder.classes, key=natural)
    needed = max(data.min_per_class, len(wanted))
    counts = {name: len(folder.classes[name]) for name in classes}
    if data.max_per_class is not None and data.max_per_class < len(wanted):
        raise DataError(
            f"data.max_per_class is {data.max_per_class}, but {_listed(wanted)} need at least one picture each",
            remedy=f"Raise data.max_per_class to {len(wanted)} or more.",
        )
    _check_counts(
        path, counts, needed, f"at least one each for {_listed(wanted)}; data.min_per_class is {data.min_per_class}"
    )
    splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for label, name in enumerate(classes):
        files = shuffled(folder.classes[name], name, data.split)[: data.max_per_class]
        first = 0
        for split, count in zip(SPLITS, split_counts(len(files), list(shares.values()))):
            splits[split].extend(_pictures(files[first : first + count], label))
            first += count
    return Catalog(classes, splits, _notes([folder]))


def _from_folders(data: Data, paths: dict[str, Path]) -> Catalog:
    scanned = {split: scan_folder(path, at_least=2 if split == "train" else 1) for split, path in paths.items()}
    found = {split: folder.classes for split, folder in scanned.items()}
    classes = sorted({name for folder in found.values() for name in folder}, key=natural)
    return _separate(data, classes, found, _notes(scanned.values()), paths["train"])


def _separate(
    data: Data, classes: list[str], found: dict[str, dict[str, list[FoundFile]]], notes: list[str], where: Path
) -> Catalog:
    """A catalogue from splits that the user made; ``data.max_per_class`` holds for each split."""
    faults: list[UserError] = []
    for split in ("train", "val"):
        missing = [name for name in classes if not found[split].get(name)]
        if missing:
            one = len(missing) == 1
            faults.append(
                DataError(
                    f"{split} has no picture of the class{'' if one else 'es'} {named_list(missing)}",
                    where=where,
                    remedy=f"Every class needs pictures in train and val. Add some to {split}, or take "
                    f"{'it' if one else 'them'} out of the other splits.",
                )
            )
    if faults:
        raise faults[0] if len(faults) == 1 else ErrorList(faults)
    counts = {name: len(found["train"][name]) for name in classes}
    _check_counts(where, counts, data.min_per_class, "data.min_per_class, counted in train")
    splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for split, folder in found.items():
        for label, name in enumerate(classes):
            files = shuffled(folder.get(name, []), name, data.split)
            splits[split].extend(_pictures(files[: data.max_per_class], label))
    return Catalog(classes, splits, notes)


def _pictures(files: Iterable[FoundFile], label: int) -> list[Picture]:
    chosen = sorted(files, key=lambda file: file.relative)
    return [Picture(file.path, label, file.size, file.mtime_ns) for file in chosen]


def _check_is_no_set_of_splits(folder: Folder) -> None:
    splits = {SPLIT_WORDS.get(name.lower()): name for name in folder.classes}
    if None in splits or "train" not in splits:
        return
    lines = ", ".join(f"{split}: {folder.path / name}" for split, name in splits.items())
    raise DataError(
        f"holds the folders {named_list(sorted(folder.classes))}: these look like splits, not classes",
        where=folder.path,
        remedy=f"Write `folders:` with {lines} in place of `folder:` under `data:`.",
    )


def _check_counts(where: Path, counts: dict[str, int], needed: int, why: str) -> None:
    few = [(name, count) for name, count in counts.items() if count < needed]
    if len(counts) < 2:
        raise DataError(
            f"only {len(counts)} class is there; at least two are needed", where=where, remedy="Add a second class."
        )
    if not few:
        return
    (name, count), *others = few
    if not others:
        what = f"class `{name}` has {count} picture{'' if count == 1 else 's'}; {needed} are needed: {why}"
    else:
        shown = ", ".join(f"`{name}` {count}" for name, count in few[:_SHOWN])
        more = f" and {len(few) - _SHOWN} more" if len(few) > _SHOWN else ""
        what = f"{len(few)} classes have too few pictures: {shown}{more}; {needed} are needed: {why}"
    remedy = "Add pictures to the class, take it out, or change data.split or data.min_per_class."
    raise DataError(what, where=where, remedy=remedy)


def _notes(folders: Iterable[Folder]) -> list[str]:
    notes = []
    for folder in folders:
        if folder.loose:
            notes.append(f"{folder.path}: {folder.loose} pictures that lie in no class folder are not used")
        if folder.ignored:
            kinds = ", ".join(f"{count} {kind or 'without extension'}" for kind, count in folder.ignored.most_common(5))
            notes.append(f"{folder.path}: {folder.ignored.total()} files that are no pictures are not used ({kinds})")
    return notes


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
