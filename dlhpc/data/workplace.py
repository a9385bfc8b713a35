"""The hidden folder in which a dataset is packed, beside the one that it becomes by a rename.

Its name follows from what is packed, so that who starts again after a death finds the finished shards. Of two that pack
the same at once, one holds the folder's lock; the other works in a folder of its own, and the first to end wins.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from dlhpc.data.packed import open_packed
from dlhpc.errors import DataError, StorageError, UserError
from dlhpc.files import fsync_folder, storage_errors

_LOCK = ".lock"
_STALE_SECONDS = {".tmp": 86400.0, ".part": 7 * 86400.0}


@contextlib.contextmanager
def workplace(folder: Path, signature: str) -> Iterator[Path]:
    """A hidden folder to pack ``folder`` in. It stays if it holds finished shards that another attempt can use.

    A :class:`DataError` in the block removes it: the next attempt is about other data.
    """
    shared = folder.with_name(f".{folder.name}.{signature}.part")
    descriptor = _lock(shared)
    beside = shared if descriptor is not None else folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    if descriptor is None:
        with storage_errors(beside, "create"):
            beside.mkdir()
    keep = False
    try:
        yield beside
    except BaseException as error:
        keep = descriptor is not None and not isinstance(error, DataError)
        raise
    finally:
        if not (keep and any(beside.glob("*.npz"))):
            shutil.rmtree(beside, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Make ``folder`` if need be and lock it; None if another holds it, or the file system knows no locks."""
    path = folder / _LOCK
    for _ in range(20):
        try:
            with storage_errors(folder, "create"):
                folder.mkdir(exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # its owner has just removed or renamed it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)
    return None


def publish(beside: Path, folder: Path, *, replace_damaged: bool) -> None:
    """Give the finished folder its name, unless another has done so meanwhile.

    What stands there and is no whole dataset is replaced with ``replace_damaged``, else refused, since it may be
    anything of the user's.
    """
    with contextlib.suppress(OSError):
        (beside / _LOCK).unlink()
    fsync_folder(beside)
    for _ in range(3):
        with contextlib.suppress(OSError):
            os.rename(beside, folder)
            fsync_folder(folder.parent)
            return
        with contextlib.suppress(DataError, StorageError):
            open_packed(folder).close()
            return
        if not replace_damaged:
            raise UserError("exists already, and is no packed dataset", where=folder, remedy="Choose another place.")
        with storage_errors(folder, "replace"):
            damaged = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    with storage_errors(folder, "create"):
        os.rename(beside, folder)


def remove_stale(parent: Path) -> None:
    """Delete what packs that died left behind: finished shards after a week, all else after a day."""
    now = time.time()
    for ending, seconds in _STALE_SECONDS.items():
        for beside in parent.glob(f".*{ending}"):
            with contextlib.suppress(OSError):
                newest = max(path.stat().st_mtime for path in [beside, *beside.iterdir()])
                if now - newest > seconds:
                    shutil.rmtree(beside, ignore_errors=True)


def check_space(folder: Path, needed: float) -> None:
    """Refuse before starting if the disk that holds ``folder`` has no room for ``needed`` bytes."""
    with storage_errors(folder, "ask for free space"):
        free = shutil.disk_usage(folder).free
    with_the_rest = needed * 1.02 + 1_000_000  # targets, paths and what the file system keeps for itself
    if free < with_the_rest:
        size, unit = (1e9, "GB") if with_the_rest >= 1e9 else (1e6, "MB")
        raise StorageError(
            f"packing needs {with_the_rest / size:.1f} {unit}, but only {free / size:.1f} {unit} are free here",
            where=folder.parent,
            remedy="Free some space (old folders in here are packed datasets and may go), choose smaller pictures "
            "(data.width, data.height), `storage: jpeg`, or keep runs elsewhere (--runs).",
        )
