"""A packed dataset on the node's own disk: copied there once with long reads, then read without the shared storage.

Whichever process of a node comes first copies, whatever job it belongs to; the others wait and find the copy. It stays
for the next attempt, under the name of its fingerprint, until its room is needed. Staging is a gain and never a
condition: if anything fails, the dataset is read where it lies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dlhpc.data.index import INDEX, Index, Shard, read_index
from dlhpc.errors import DlhpcError, StorageError
from dlhpc.files import replace_json

_PIECE = 1 << 23
_KEPT_SECONDS = 86400.0  # a copy that was used within this time is not removed for another dataset
_REFUSED_SECONDS = 600.0  # so long after a failure nobody tries again: the other ranks of the node, above all
_POLL_SECONDS = 0.2


def scratch_of(environment: Mapping[str, str]) -> Path | None:
    """The node's own disk, where the job script has one: above ``DLHPC_SCRATCH``, which goes with the job."""
    given = environment.get("DLHPC_SCRATCH", "")
    return Path(given).parent if os.path.isabs(given) else None


def staged(
    folder: Path,
    scratch: Path | None,
    *,
    fingerprint: str | None = None,
    warn: Callable[[str], None] = print,
) -> Path:
    """The folder to open instead of ``folder``: its copy below ``scratch``, made now if need be, or ``folder`` itself.

    ``fingerprint`` asks for a generation of the dataset, as in :func:`dlhpc.data.packed.open_packed`. Every rank calls
    this; no rank needs to wait for another afterwards. Raises only what :func:`read_index` raises for ``folder``.
    """
    if scratch is None:
        return folder
    index = read_index(folder, fingerprint)
    try:
        if not scratch.is_dir() or _on_one_disk(folder, scratch):
            return folder  # other nodes of the job may lack it; on one disk a copy gains nothing
        return _copy_once(folder, index, _own_folder(scratch))
    except _Refused:
        return folder
    except (OSError, DlhpcError) as error:
        reason = error.what if isinstance(error, DlhpcError) else error.strerror or str(error)
        warn(f"the dataset is read from shared storage, not from {scratch}: {reason}")
        return folder


def _on_one_disk(first: Path, second: Path) -> bool:
    return first.stat().st_dev == second.stat().st_dev


class _Refused(Exception):
    """Somebody has tried just now and told why it failed."""


def _own_folder(scratch: Path) -> Path:
    """A folder of this user alone, since others may write into ``scratch`` too."""
    own = scratch / f"dlhpc-datasets-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        own.mkdir(mode=0o700)
    found = os.lstat(own)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise StorageError(f"{own} is not a folder of yours alone")
    return own


def _copy_once(folder: Path, index: Index, own: Path) -> Path:
    target = own / index.fingerprint[:32]
    refused = target.with_suffix(".refused")
    with _locked(target.with_suffix(".lock")):
        if _is_whole(target, index):
            os.utime(target)
            return target
        with contextlib.suppress(FileNotFoundError):
            if time.time() - refused.stat().st_mtime < _REFUSED_SECONDS:
                raise _Refused
        try:
            _copy(folder, index, target)
        except BaseException:
            with contextlib.suppress(OSError):
                refused.touch()
            raise
        with contextlib.suppress(OSError):
            refused.unlink()
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock of the node. It is asked for again and again, so that signals are served meanwhile."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _files(index: Index) -> list[Shard]:
    return [*index.files.values(), *index.shards]


def _is_whole(target: Path, index: Index) -> bool:
    """Every file was compared with its checksum when it was copied; sizes tell whether something was removed since."""
    try:
        sizes = all((target / file.file).stat().st_size == file.bytes for file in _files(index))
        return sizes and read_index(target).fingerprint == index.fingerprint
    except (OSError, DlhpcError):
        return False


def _copy(folder: Path, index: Index, target: Path) -> None:
    beside = target.with_suffix(".tmp")
    for left in (beside, target):  # of one who was killed; a copy that is not whole
        shutil.rmtree(left, ignore_errors=True)
    _make_room(target.parent, sum(file.bytes for file in _files(index)) + 4 * 1024**2)
    beside.mkdir(mode=0o700)
    try:
        for file in _files(index):
            if _copied(folder / file.file, beside / file.file) != file.crc32:
                raise StorageError(f"{folder / file.file} does not have the checksum that it was packed with")
        replace_json(beside / INDEX, dataclasses.asdict(index))
        os.rename(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _copied(source: Path, target: Path) -> int:
    """Copy a file in long reads, durably (after a crash a file might be whole in size only); its CRC-32."""
    crc = 0
    buffer = memoryview(bytearray(_PIECE))
    with open(source, "rb", buffering=0) as reading, open(target, "wb", buffering=0) as writing:
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(reading.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while got := reading.readinto(buffer):
            crc = zlib.crc32(buffer[:got], crc)
            done = 0
            while done < got:
                done += writing.write(buffer[done:got]) or 0
        os.fsync(writing.fileno())
    return crc


def _make_room(own: Path, needed: int) -> None:
    """Remove copies that nobody has used of late, the oldest first, until ``needed`` bytes are free."""
    others = sorted((path for path in own.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for other in others:
        if shutil.disk_usage(own).free >= needed:
            return
        if time.time() - other.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    free = shutil.disk_usage(own).free
    if free < needed:
        raise StorageError(f"it needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
