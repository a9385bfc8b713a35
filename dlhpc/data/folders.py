"""Looking into folders of class folders: which pictures lie there, without opening one."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dlhpc.errors import DataError
from dlhpc.files import storage_errors

EXTENSIONS = frozenset(
    [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".pgm", ".ppm", ".pnm", ".pbm", ".bmp", ".tif", ".tiff"]
)
_SHOWN = 20


class FoundFile(NamedTuple):
    """A picture's file: path relative to its class, absolute path, size in bytes, mtime."""

    relative: str
    path: str
    size: int
    mtime_ns: int


@dataclass
class Folder:
    """What a folder of class folders holds."""

    path: Path
    classes: dict[str, list[FoundFile]]
    loose: int
    """Pictures that lie in no class folder."""
    ignored: Counter[str]
    """Files that are no pictures, by extension."""


def scan_folder(path: Path, *, at_least: int = 2) -> Folder:
    """All class folders of ``path`` with their pictures, at any depth; hidden names are passed over.

    Raises :class:`DataError` if there are fewer than ``at_least`` classes or the folder is laid out otherwise.
    """
    _check_is_folder(path)
    folder = Folder(path, {}, 0, Counter())
    with storage_errors(path, "read the folder"), os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folder.classes[readable_name(entry.name, path)] = sorted(_walk(entry.path, folder.ignored))
            elif _is_picture(entry):
                folder.loose += 1
            else:
                folder.ignored[os.path.splitext(entry.name)[1].lower()] += 1
    _check_classes(folder, at_least)
    return folder


def _walk(top: str, ignored: Counter[str]) -> Iterator[FoundFile]:
    """The pictures below ``top``; links to folders are followed, but never into a folder twice."""
    waiting = [top]
    seen: set[tuple[int, int]] = set()
    while waiting:
        here = waiting.pop()
        with storage_errors(show_path(here), "read the folder"):
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        waiting.append(entry.path)
                    elif _is_picture(entry):
                        yield found_file(entry.path, os.path.relpath(entry.path, top) if here != top else entry.name)
                    else:
                        ignored[os.path.splitext(entry.name)[1].lower()] += 1


def _is_picture(entry: os.DirEntry[str]) -> bool:
    """By its extension. A dangling link counts, so that it is named as broken; a pipe or device does not."""
    return os.path.splitext(entry.name)[1].lower() in EXTENSIONS and (entry.is_file() or entry.is_symlink())


def found_file(path: str, relative: str) -> FoundFile:
    """Size and mtime of a file; zeros where it cannot be asked, which packing then reports by name."""
    try:
        status = os.stat(path)
    except OSError:
        return FoundFile(relative, path, 0, 0)
    return FoundFile(relative, path, status.st_size, status.st_mtime_ns)


def absolute(base: Path, path: str) -> Path:
    """``path`` as an absolute one; it is relative to ``base``. Links stay as the user wrote them."""
    return Path(os.path.abspath(os.path.join(base, os.path.expanduser(path))))


def show_path(path: str) -> str:
    """``path`` as text that can be printed, whatever bytes it holds."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def readable_name(name: str, where: Path) -> str:
    """A class name, or an error if it is not text."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the name of the class folder `{show_path(name)}` is not valid UTF-8",
            where=where,
            remedy="Rename the folder.",
        ) from error
    return name


def natural(name: str) -> tuple[bool, int, str]:
    """Sort key: whole numbers by value before everything else by text."""
    whole = name.isdecimal() and name.isascii()
    return (not whole, int(name) if whole else 0, name)


def named_list(names: Sequence[str]) -> str:
    """The names in backquotes, after the first 20 a number."""
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _check_is_folder(path: Path) -> None:
    if path.is_dir():
        return
    if path.exists():
        raise DataError("is a file; a folder of pictures is needed", where=path, remedy="Name the folder it lies in.")
    above = next(parent for parent in path.parents if parent.is_dir())
    lost = path.relative_to(above).parts[0]
    with storage_errors(above, "read the folder"):
        near = difflib.get_close_matches(lost, [entry.name for entry in above.iterdir() if entry.is_dir()], n=1)
    remedy = f"Did you mean {above / near[0]}?" if near else f"{above} exists, but has no `{lost}`. Check the path."
    raise DataError("there is no such folder", where=path, remedy=remedy)


def _check_classes(folder: Folder, at_least: int) -> None:
    if folder.loose and sum(map(len, folder.classes.values())) == 0:
        raise DataError(
            f"holds {folder.loose} pictures, but no class folders with pictures",
            where=folder.path,
            remedy="Make one folder per class inside it and put each picture into the folder of its class "
            "(for example faces/anna/1.jpg), or name list files under data.lists.",
        )
    if not folder.classes:
        raise DataError(
            "holds no class folders" if folder.ignored else "is empty",
            where=folder.path,
            remedy="Put one folder per class inside it, each with its pictures. Picture files end in "
            f"{', '.join(sorted(EXTENSIONS))}.",
        )
    if len(folder.classes) == 1 and at_least > 1:
        (name,) = folder.classes
        raise DataError(
            f"holds only one class folder, `{name}`; a network learns to tell at least two classes apart",
            where=folder.path,
            remedy=f"Add a folder for a second class, or name {folder.path / name} if the classes lie in there.",
        )
