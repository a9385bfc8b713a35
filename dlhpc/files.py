"""The only places where dlhpc replaces a file or appends to one.

Shared storage is slow and shared, and a process may die at any instruction. A replaced file is therefore always
either the old one or the new one, and an appended line is either whole or recognisably cut.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlhpc.errors import Place, StorageError, UserError

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def storage_errors(path: Path | str, doing: str = "write") -> Iterator[None]:
    """Turn an ``OSError`` in the block into a :class:`StorageError` that names the file and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            remedy = "Free some space or quota on this file system, then repeat the command; nothing was half-written."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            may = "read it" if doing.startswith(("read", "list", "open")) else "write there"
            remedy = f"Check who owns this place and whether you may {may}."
        elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP):
            remedy = "Something of another kind stands here, or the name cannot be used; choose another place."
        else:
            remedy = "Check that the file system is mounted and answers, then repeat the command."
        raise StorageError(f"cannot {doing}: {error.strerror or error}", where=path, remedy=remedy) from error


def current_umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable. Some network file systems refuse this; their rename is durable anyway."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; at the end of the block it is fsynced and renamed over ``path``.

    If the block raises, ``path`` is left as it was and the file beside it is removed.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with storage_errors(path):
            yield beside
            descriptor = os.open(beside, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(beside, path)
            fsync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # what went wrong has been said already
            beside.unlink()


def replace_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` atomically by ``content``."""
    with replacing(path) as beside:
        beside.write_bytes(content)


def replace_text(path: Path, content: str) -> None:
    """Replace ``path`` atomically by ``content`` in UTF-8, newlines as given."""
    replace_bytes(path, content.encode())


def replace_json(path: Path, value: Any) -> None:
    """Replace ``path`` atomically by ``value`` as indented JSON; NaN is refused because JSON has none."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_user_text(path: Path, fault: type[UserError] = UserError) -> str:
    """A file that somebody wrote, as text without a byte order mark; ``fault`` says at which line it is not UTF-8."""
    with storage_errors(path, "read"):
        content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise fault(
            "is not UTF-8 text", where=Place(str(path), line), remedy="Save the file with the encoding UTF-8."
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file of ours; a missing or damaged one is a :class:`StorageError` that says which."""
    with storage_errors(path, "read"):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except ValueError as error:
        raise StorageError(
            f"is damaged: {error}", where=path, remedy="Restore the file from a backup, or submit the run anew."
        ) from error


def append_lines(path: Path, lines: list[str], *, durable: bool = True) -> None:
    """Append whole lines with one ``write`` on an ``O_APPEND`` descriptor; ``durable`` adds an fsync.

    If an earlier writer died in the middle of a line, that line is ended first, so that ours stays readable.
    A short write (disk full) is cut off again before the error is raised.
    """
    content = "".join(line + "\n" for line in lines).encode()
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                content = b"\n" + content
            written = os.write(descriptor, content)
            if written != len(content):
                end = os.fstat(descriptor).st_size
                if end == size + written:
                    os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All whole JSON objects of a file of lines, and how many lines were damaged. A missing file has none."""
    try:
        with storage_errors(path, "read"):
            content = path.read_bytes()
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return [], 0
        raise
    lines: list[str] | list[bytes]
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError:
        lines = content.split(b"\n")  # each is decoded by itself
    rows: list[dict[str, Any]] = []
    damaged = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            damaged += 1
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += 1
    return rows, damaged
