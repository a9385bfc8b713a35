"""Classification by folders: one folder per class, shared out or in folders of the user's own for each split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlhpc.data.catalog import Catalog, Sample
from dlhpc.data.folders import Folder, FoundFile, named_list, natural, scan_folder
from dlhpc.data.splits import SPLIT_WORDS, SPLITS, in_order, needed, share_out
from dlhpc.errors import DataError, ErrorList, UserError

if TYPE_CHECKING:
    from dlhpc.spec.models import Data, Split

_SHOWN = 20


def one_folder(data: Data, path: Path) -> Catalog:
    """A folder of class folders, each shared out by ``data.split``."""
    folder = scan_folder(path)
    _check_is_no_set_of_splits(folder)
    classes = sorted(folder.classes, key=natural)
    least, for_whom = needed(data.split), _for_whom(data.split)
    if data.max_per_class is not None and data.max_per_class < least:
        raise DataError(
            f"data.max_per_class is {data.max_per_class}, but {for_whom} need at least one picture each",
            remedy=f"Raise data.max_per_class to {least} or more.",
        )
    counts = {name: len(folder.classes[name]) for name in classes}
    why = f"at least one each for {for_whom}; data.min_per_class is {data.min_per_class}"
    _check_counts(path, counts, max(data.min_per_class, least), why)
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for label, name in enumerate(classes):
        files = folder.classes[name]
        ids = [file.relative for file in files]
        for split, chosen in share_out(ids, data.split, name=name, most=data.max_per_class).items():
            splits[split].extend(_samples((files[at] for at in chosen), label))
    return Catalog(classes, splits, _notes([folder]))


def _for_whom(split: Split) -> str:
    words = [f"{split.folds} folds"] if split.folds else ["train", "val"]
    words += ["unseen"] if split.unseen else []
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def separate_folders(data: Data, paths: dict[str, Path]) -> Catalog:
    """Splits that the user made: split → folder of class folders."""
    scanned = {split: scan_folder(path, at_least=2 if split == "train" else 1) for split, path in paths.items()}
    found = {split: folder.classes for split, folder in scanned.items()}
    classes = sorted({name for folder in found.values() for name in folder}, key=natural)
    return separate(data, classes, found, _notes(scanned.values()), paths["train"])


def separate(
    data: Data, classes: list[str], found: dict[str, dict[str, list[FoundFile]]], notes: list[str], where: Path
) -> Catalog:
    """A catalogue out of split → class → files, made by the user; ``data.max_per_class`` holds for each split."""
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
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for split, folder in found.items():
        for label, name in enumerate(classes):
            splits[split].extend(_samples(_some(folder.get(name, []), name, data), label))
    return Catalog(classes, splits, notes)


def _some(files: Sequence[FoundFile], name: str, data: Data) -> list[FoundFile]:
    """``data.max_per_class`` of them."""
    return [files[at] for at in in_order([file.relative for file in files], data.split.seed, name)][
        : data.max_per_class
    ]


def _samples(files: Iterable[FoundFile], label: int) -> list[Sample]:
    chosen = sorted(files, key=lambda file: file.relative)
    return [Sample(file.path, label, file.size, file.mtime_ns) for file in chosen]


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
