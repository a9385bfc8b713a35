"""Pictures with boxes in KITTI's layout: picture X.png has its objects in X.txt, one a line.

Columns (KITTI's object development kit, readme.txt): type, truncated (0 to 1), occluded (0 to 3), alpha, left, top,
right, bottom (pixels from 0), then size and place in space, which are not used here. ``DontCare`` regions have −1 for
truncated and occluded.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dlhpc.data.catalog import Catalog, Sample
from dlhpc.data.faults import SHOWN, Faults
from dlhpc.data.folders import EXTENSIONS, FoundFile, absolute, found_file, named_list, natural, show_path
from dlhpc.data.splits import SPLITS, needed, share_out
from dlhpc.errors import DataError, Place
from dlhpc.files import read_user_text, storage_errors

if TYPE_CHECKING:
    from dlhpc.spec.models import Kitti, Split

COLUMNS = 15
_DONT_CARE = -1
_READERS = 16  # label files are small and many: shared storage answers several questions as quickly as one
_DATE = re.compile(r"\d{4}_\d{2}_\d{2}")


class Object(NamedTuple):
    """One line of a label file."""

    type: str
    truncated: float
    occluded: int
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Labelled:
    """A picture with its objects; ``name`` is what picture and label file are called without extension."""

    name: str
    file: FoundFile
    objects: list[Object]


def kitti_catalog(kitti: Kitti, split: Split, base: Path) -> Catalog:
    """The catalogue of KITTI folders, whose paths are relative to ``base``; raises :class:`DataError` or a list."""
    faults, notes = Faults(), []
    found: dict[str, list[Labelled]] = {}
    for which, images, labels in (
        ("train", kitti.images, kitti.labels),
        ("val", kitti.val_images, kitti.val_labels),
        ("unseen", kitti.unseen_images, kitti.unseen_labels),
    ):
        if images is not None and labels is not None:
            found[which], told = read_folder(absolute(base, images), absolute(base, labels), faults)
            notes += told
    faults.raise_if_any()
    where = absolute(base, kitti.images)
    if "val" not in found:
        share = split.train + split.val  # unseen pictures that lie apart need no share of the others
        own = {"train": split.train / share, "val": split.val / share, "unseen": 0.0}
        split = split.model_copy(update=own) if "unseen" in found else split
        unseen = found.get("unseen", [])
        found = _shared_out(found["train"], kitti, split, base, where)
        found["unseen"] = [*found["unseen"], *unseen]
    elif kitti.sequences is not None:
        notes.append("data.kitti.sequences is not used: val lies apart, and nothing is shared out")
    classes, numbers = _classes(found, kitti.mapping, where)
    seen = {one.type.lower() for pictures in found.values() for picture in pictures for one in picture.objects}
    if absent := [kind for kind in kitti.mapping if kind.lower() not in seen | {"dontcare"}]:
        notes.append(f"data.kitti.mapping names {named_list(absent)}, which is in no label file")
    left_out: Counter[str] = Counter()
    splits: dict[str, list[Sample]] = {which: [] for which in SPLITS}
    for which, pictures in found.items():
        for picture in sorted(pictures, key=lambda picture: picture.name):
            boxes = [[_class_of(one, numbers, kitti, left_out), *one[3:]] for one in picture.objects]
            splits[which].append(Sample(picture.file.path, boxes, picture.file.size, picture.file.mtime_ns))
    if left_out:
        shown = ", ".join(f"{count} {why}" for why, count in left_out.most_common())
        notes.append(f"boxes that count as DontCare, neither learnt nor counted as mistakes: {shown}")
    catalog = Catalog(classes, splits, notes, task="detection")
    _check_counts(catalog, where)
    return catalog


# --- Reading ------------------------------------------------------------------------------------------------------


def read_folder(images: Path, labels: Path, faults: Faults) -> tuple[list[Labelled], list[str]]:
    """The pictures of ``images`` with the objects from ``labels``, and notes; what is wrong goes into ``faults``."""
    pictures, texts = _names(images, EXTENSIONS, "images"), _names(labels, {".txt"}, "labels")
    if not pictures:
        inside = [name for name in ("image_2", "images") if (images / name).is_dir()]
        remedy = f"Name {images / inside[0]}." if inside else f"Pictures end in {', '.join(sorted(EXTENSIONS))}."
        raise DataError("holds no pictures", where=images, remedy=remedy)
    for name, files in pictures.items():
        if len(files) > 1:
            both = " and ".join(show_path(file) for file in files)
            faults.add(f"{both} would share one label file", images, "Keep one of them, or rename one with its labels.")
        if name not in texts:
            faults.add(
                f"picture {show_path(files[0])} has no label file {show_path(name)}.txt in {labels}",
                images,
                "Add the file; it may be empty where the picture shows nothing that is to be found.",
            )
    names = sorted(name for name in pictures if name in texts)

    def read(name: str) -> tuple[Labelled, Faults]:
        own = Faults()
        picture = os.path.join(images, pictures[name][0])
        return Labelled(name, found_file(picture, pictures[name][0]), read_objects(labels / texts[name][0], own)), own

    found = []
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="labels")
    try:
        for labelled, own in pool.map(read, names):
            found.append(labelled)
            faults.take(own)
    finally:  # Ctrl-C does not wait for thousands of files
        pool.shutdown(wait=False, cancel_futures=True)
    alone = len(texts.keys() - pictures.keys())
    notes = []
    if alone:
        notes.append(f"{labels}: {alone} label file{'' if alone == 1 else 's'} without a picture not used")
    return found, notes


def _names(folder: Path, extensions: frozenset[str] | set[str], key: str) -> dict[str, list[str]]:
    """Files of a folder by their names without extension."""
    if not folder.is_dir():
        what = "is a file; a folder is needed" if folder.exists() else "there is no such folder"
        raise DataError(what, where=folder, remedy=f"Correct the path of the {key} under data.kitti.")
    names: dict[str, list[str]] = {}
    with storage_errors(folder, "read the folder"), os.scandir(folder) as entries:
        for entry in entries:
            stem, extension = os.path.splitext(entry.name)
            if extension.lower() in extensions and not stem.startswith("."):
                names.setdefault(stem, []).append(entry.name)
    return {name: sorted(files) for name, files in names.items()}


def read_objects(file: Path, faults: Faults) -> list[Object]:
    """The objects of one label file; lines that are wrong go into ``faults``."""
    objects = []
    for number, line in enumerate(read_user_text(file, DataError).split("\n"), 1):
        words = line.split()
        if not words:
            continue
        try:
            objects.append(parse_object(words))
        except ValueError as error:
            faults.add(str(error), Place(str(file), number), "Correct this line of the label file.")
    return objects


def parse_object(words: list[str]) -> Object:
    """One object out of the words of its line; :class:`ValueError` says what is wrong with it."""
    if len(words) < COLUMNS:
        raise ValueError(
            f"{len(words)} columns; KITTI's format has {COLUMNS}: type truncated occluded alpha left top right bottom "
            "height width length x y z rotation_y"
        )
    kind = words[0]
    truncated = _number(words[1], "truncated", kind)
    occluded = _number(words[2], "occluded", kind)
    corners = [_number(word, name, kind) for word, name in zip(words[4:8], ("left", "top", "right", "bottom"))]
    if truncated > 1:
        raise ValueError(f"truncated is {truncated:g}; it is the fraction that is cut off, from 0 to 1 (−1: unknown)")
    if occluded not in (-1, 0, 1, 2, 3):
        raise ValueError(f"occluded is {words[2]}; it is 0, 1, 2 or 3 (−1: unknown)")
    left, top, right, bottom = corners
    if left >= right:
        raise ValueError(f"the box has no width: left is {left:g} and right {right:g}")
    if top >= bottom:
        raise ValueError(f"the box has no height: top is {top:g} and bottom {bottom:g}")
    return Object(kind, truncated, int(occluded), left, top, right, bottom)


def _number(word: str, name: str, kind: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ValueError(f"{name} is `{word}`, not a number (the type, here `{kind}`, must not hold blanks)") from None
    if not math.isfinite(value):
        raise ValueError(f"{name} is {word}")
    return value


# --- Classes ------------------------------------------------------------------------------------------------------


def _classes(
    found: Mapping[str, list[Labelled]], mapping: Mapping[str, str], where: Path
) -> tuple[list[str], dict[str, int]]:
    """The classes, and type (lower case, as in DIGITS) → class number; types that are not in there are DontCare."""
    types = {one.type for pictures in found.values() for picture in pictures for one in picture.objects}
    if mapping:
        classes = sorted({name for name in mapping.values() if name.lower() != "dontcare"}, key=natural)
        named = {kind.lower(): name for kind, name in mapping.items()}
    else:
        classes = sorted({kind for kind in types if kind.lower() != "dontcare"}, key=natural)
        named = {kind: kind for kind in classes}
        if len({kind.lower() for kind in classes}) < len(classes):
            raise DataError(
                f"types differ in capitals alone: {named_list(classes)}",
                where=where,
                remedy="Say in data.kitti.mapping which type is which class.",
            )
        named = {kind.lower(): kind for kind in classes}
    if not classes:
        raise DataError(
            "no object is of a class that can be learnt; all are DontCare",
            where=where,
            remedy="Check the label files, and data.kitti.mapping if you have one.",
        )
    numbers = {kind: classes.index(name) for kind, name in named.items() if name.lower() != "dontcare"}
    numbers.pop("dontcare", None)
    return classes, numbers


def _class_of(one: Object, numbers: Mapping[str, int], kitti: Kitti, left_out: Counter[str]) -> int:
    """Class number, or −1; why is counted in ``left_out``."""
    kind = one.type.lower()
    if kind == "dontcare":
        return _DONT_CARE
    if kind not in numbers:
        why = f"of type {one.type}"
    elif one.truncated > kitti.max_truncated:
        why = "cut off by the edge"
    elif one.occluded > kitti.max_occluded:
        why = "hidden"
    elif one.bottom - one.top < kitti.min_height:
        why = f"lower than {kitti.min_height:g} pixels"
    else:
        return numbers[kind]
    left_out[why] += 1
    return _DONT_CARE


def _check_counts(catalog: Catalog, where: Path) -> None:
    missing = [name for name, count in zip(catalog.classes, catalog.counts("train")) if not count]
    if missing:
        one = len(missing) == 1
        raise DataError(
            f"train has no object of the class{'' if one else 'es'} {named_list(missing)}",
            where=where,
            remedy="Add pictures of it, take it out of data.kitti.mapping, or loosen max_truncated, max_occluded or "
            "min_height.",
        )
    unmeasured = [name for name, count in zip(catalog.classes, catalog.counts("val")) if not count]
    if unmeasured:
        catalog.notes.append(f"val has no object of the class {named_list(unmeasured)}: it cannot be measured")


# --- Sharing out --------------------------------------------------------------------------------------------------


def _shared_out(
    pictures: list[Labelled], kitti: Kitti, split: Split, base: Path, where: Path
) -> dict[str, list[Labelled]]:
    names = [picture.name for picture in pictures]
    groups = None
    if kitti.sequences is not None:
        groups = sequences_of(names, absolute(base, kitti.sequences))
    enough = len(names if groups is None else set(groups))
    if enough < needed(split):
        what = "picture" if groups is None else "sequence"
        raise DataError(
            f"{enough} {what}{'' if enough == 1 else 's'} cannot be shared out; at least {needed(split)} are needed",
            where=where,
            remedy="Add more, or change data.split.",
        )
    return {which: [pictures[at] for at in chosen] for which, chosen in share_out(names, split, groups=groups).items()}


def sequences_of(names: list[str], file: Path) -> list[str]:
    """The sequence of each picture, from lines ``NAME SEQUENCE`` or from KITTI's own ``train_mapping.txt``.

    That one has a line ``DATE DRIVE FRAME`` for each picture, in another order: ``train_rand.txt`` beside it holds, for
    picture 000000, 000001 and so on, the number of the line (from 1), separated by commas.
    """
    faults = Faults()
    lines = [line.split() for line in _user_text(file).split("\n")]
    first = next((words for words in lines if words), [])
    if len(first) == 3 and _DATE.fullmatch(first[0]):
        drives = [words[1] for words in lines if len(words) == 3]
        sequences = _by_order(names, drives, file, faults)
    else:
        sequences = {}
        for number, words in enumerate(lines, 1):
            if len(words) == 2:
                sequences[os.path.splitext(words[0])[0] if _is_picture(words[0]) else words[0]] = words[1]
            elif words:
                faults.add(f"{len(words)} words; NAME SEQUENCE is expected", Place(str(file), number), "Write two.")
        missing = [name for name in names if name not in sequences]
        if missing:
            shown = ", ".join(f"`{show_path(name)}`" for name in missing[:SHOWN])
            more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            faults.add(f"no sequence is given for {shown}{more}", file, "Add a line for each picture: NAME SEQUENCE.")
    faults.raise_if_any()
    return [sequences[name] for name in names]


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _by_order(names: list[str], drives: list[str], mapping: Path, faults: Faults) -> dict[str, str]:
    file = mapping.with_name("train_rand.txt")
    numbers = re.split(r"[\s,]+", _user_text(file).strip().strip(","))
    found = {}
    for name in names:
        if not (name.isascii() and name.isdecimal() and int(name) < len(numbers)):
            faults.add(f"picture `{show_path(name)}` is none of KITTI's 000000 to {len(numbers) - 1:06d}", file)
            continue
        line = numbers[int(name)]
        if not (line.isascii() and line.isdecimal() and 1 <= int(line) <= len(drives)):
            faults.add(f"`{line}` for picture {name} is no line of {mapping.name}", file, "Use KITTI's two files.")
            continue
        found[name] = drives[int(line) - 1]
    return found


def _user_text(file: Path) -> str:
    if not file.is_file():
        raise DataError("there is no such file", where=file, remedy="Check data.kitti.sequences.")
    return read_user_text(file, DataError)
