"""The folder in which the local scheduler keeps its jobs, and every change that is ever made to it.

::

    SPOOL/HOST/lock          held (flock) while jobs are made, started and put away
               last          the last number given to a job
               jobs/N-TAG/   waiting and running jobs; N the number, TAG a hash of the job's tag
               ended/N-TAG/  the others, the newest thousand of the last thirty days
    in a job:  job.json, environment.json (until it starts), held (while it may not start), started.json, ended.json,
               reserve (until it ends)

A job's folder appears whole. Whoever creates ``started.json``, which succeeds only once, owns the job: a supervisor
that runs it, or a ``cancel`` that ends it before it began. ``ended.json`` is the last word.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Self

from dlhpc.errors import StorageError
from dlhpc.files import fsync_folder, read_json, replace_bytes, storage_errors

LOCK_PATIENCE_S = 60.0
KEEP_JOBS = 1000
KEEP_S = 30 * 86400.0
_RESERVE_BYTES = 4096


class _Record:
    """A data class that is one JSON file."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file. A missing, damaged or incomplete one is a :class:`StorageError`."""
        content = read_json(path)
        try:
            # What is missing and has no default is the TypeError below.
            return cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})  # type: ignore[arg-type]
        except (KeyError, TypeError) as error:
            raise StorageError(
                f"is damaged: {error}", where=path, remedy="Cancel this job and submit again."
            ) from error

    def encoded(self) -> bytes:
        """The file's content. ASCII, because a path may hold bytes that are not UTF-8."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()  # type: ignore[call-overload]


@dataclass(frozen=True)
class Job(_Record):
    """What was submitted; paths are absolute, ``submitted`` is in seconds since 1970."""

    tag: str
    name: str
    script: str
    log: str
    cores: int
    gpus: int
    walltime_seconds: int
    kill_grace_seconds: int
    submitted: float
    token: str
    """Carried in the environment of every process of the job, so that each can be found again."""
    umask: int | None = None
    """Of the submitting process: the job may be started by another, with another umask."""
    after: list[list[str]] = field(default_factory=list)
    """Jobs that must have ended before: pairs of an id and ``afterok``, ``afternotok`` or ``afterany``."""


@dataclass(frozen=True)
class Started(_Record):
    """Who runs a job, and on what. The process is known by its number, its birth and the boot that it was born in."""

    pid: int
    birth: str
    boot: str
    cores: int
    gpus: list[int]
    started: float


@dataclass(frozen=True)
class Ended(_Record):
    """How a job ended. ``exit_code`` is None where nobody saw it; 128 + signal for a killed script."""

    exit_code: int | None
    reason: str | None
    started: float | None
    """None if it never ran."""
    ended: float


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job, known to lie there. Reading may still raise :class:`StorageError`."""

    path: Path

    @property
    def number(self) -> int:
        """The number in the job's id."""
        return int(self.path.name.partition("-")[0])

    @property
    def hold(self) -> Path:
        """While this file is there, the job may not start. Made and removed only under the lock."""
        return self.path / "held"

    def has_ended(self) -> bool:
        """Whether the job is over."""
        return os.path.exists(f"{self.path}/ended.json")

    def has_started(self) -> bool:
        """Whether somebody owns the job, even if the record of who is damaged."""
        return os.path.exists(f"{self.path}/started.json")

    def job(self) -> Job:
        """What was submitted."""
        return Job.read(self.path / "job.json")

    def started(self) -> Started:
        """Who runs it."""
        return Started.read(self.path / "started.json")

    def ended(self) -> Ended:
        """How it ended."""
        return Ended.read(self.path / "ended.json")

    def environment(self) -> dict[str, str]:
        """The environment to run the script in."""
        return {str(name): str(value) for name, value in read_json(self.path / "environment.json").items()}

    def claim(self, started: Started) -> bool:
        """Take the job, if nobody has. A hard link is the one way to make a whole file that fails if it is there."""
        path = self.path / "started.json"
        beside = self.path / f".started.{secrets.token_hex(4)}.tmp"
        try:
            with storage_errors(path):
                replace_bytes(beside, started.encoded())
                try:
                    os.link(beside, path)
                except FileExistsError:
                    # A file server may have made the link and lost its answer: then our file has two names.
                    return beside.stat().st_nlink == 2
                fsync_folder(self.path)
                return True
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)

    def record_end(self, ended: Ended) -> None:
        """Write the last word, unless it is said. A full disk still has the room reserved at submission."""
        path, reserve = self.path / "ended.json", self.path / "reserve"
        if path.exists():
            return
        try:
            replace_bytes(path, ended.encoded())
        except StorageError:
            if not reserve.exists():
                raise
            with storage_errors(path):
                content = ended.encoded()
                with open(reserve, "r+b", buffering=0) as file:
                    file.write(content.ljust(_RESERVE_BYTES))
                    os.fsync(file.fileno())
                os.replace(reserve, path)
        with contextlib.suppress(OSError):
            for path in (reserve, self.path / "environment.json", self.hold):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Spool:
    """All jobs of one host. ``folder`` need not exist before the first job."""

    folder: Path

    @classmethod
    def base(cls) -> Path:
        """Holds one spool per host, as a home may serve many: ``$DLHPC_LOCAL_SPOOL``, or in XDG's state folder."""
        if chosen := os.environ.get("DLHPC_LOCAL_SPOOL"):
            return Path(chosen).expanduser().absolute()
        state = os.environ.get("XDG_STATE_HOME", "")
        return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "dlhpc" / "local"

    @classmethod
    def of(cls, host: str) -> Spool:
        """The spool of a host by its name."""
        return cls(cls.base() / host)

    @classmethod
    def here(cls) -> Spool:
        """The spool of this machine."""
        return cls.of(os.uname().nodename)

    @property
    def host(self) -> str:
        """The host whose jobs these are."""
        return self.folder.name

    def job_id(self, folder: JobFolder) -> str:
        """The job's id, ``N.HOST``."""
        return f"{folder.number}.{self.host}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the spool alone. The kernel lets go when the holder dies."""
        path = self.folder / "lock"
        with storage_errors(path):
            (self.folder / "jobs").mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.folder / "ended").mkdir(exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            patience = time.monotonic() + LOCK_PATIENCE_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                        raise StorageError(
                            f"cannot be locked: {error.strerror}",
                            where=path,
                            remedy="Set DLHPC_LOCAL_SPOOL to a folder on a disk of this machine.",
                        ) from error
                    if time.monotonic() > patience:
                        raise StorageError(
                            f"is held by another dlhpc process for more than {LOCK_PATIENCE_S:.0f} s",
                            where=path,
                            remedy="Repeat the command; if this stays, see who holds it with `fuser`.",
                        ) from error
                time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)

    def live(self) -> list[JobFolder]:
        """Jobs that wait, run, or have just ended, in the order of submission."""
        return [JobFolder(self.folder / "jobs" / name) for _, name in self._names("jobs")]

    def folder_of(self, number: int) -> JobFolder | None:
        """The job of this number, wherever it is kept."""
        return self.kept().get(number)

    def kept(self) -> dict[int, JobFolder]:
        """Every job that is not forgotten."""
        # Jobs only ever move from `jobs` to `ended`: looked at in this order, one on its way is not missed.
        jobs = self._names("jobs")
        ended = {number: JobFolder(self.folder / "ended" / name) for number, name in self._names("ended")}
        return {number: JobFolder(self.folder / "jobs" / name) for number, name in jobs} | ended

    def tagged(self, tag: str) -> JobFolder | None:
        """The job with this tag, the newest should there be several."""
        ending = f"-{tag_hash(tag)}"
        for place in ("jobs", "ended"):
            found = [name for _, name in self._names(place) if name.endswith(ending)]
            if found:
                return JobFolder(self.folder / place / found[-1])
        return None

    def _names(self, place: str) -> list[tuple[int, str]]:
        """Number and name of every job folder in ``jobs`` or ``ended``, by number. One that is not there has none."""
        names: list[str] = []
        with storage_errors(self.folder / place, "read"), contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.folder / place)
        return sorted((int(first), name) for name in names if (first := name.partition("-")[0]).isdecimal())

    def add(self, job: Job, environment: Mapping[str, str], *, held: bool = False) -> JobFolder:
        """Put a job into the queue, held or not, and give its folder. Only under the lock."""
        counter = self.folder / "last"
        given = 0
        with contextlib.suppress(OSError, ValueError):  # not there yet, or damaged: the folders tell as much
            given = int(counter.read_bytes())
        number = 1 + max([given, *(number for place in ("jobs", "ended") for number, _ in self._names(place))])
        replace_bytes(counter, f"{number}\n".encode())
        path = self.folder / "jobs" / f"{number}-{tag_hash(job.tag)}"
        making = path.with_name(f".making-{secrets.token_hex(6)}")
        try:
            with storage_errors(path):
                making.mkdir(mode=0o700)
                _write_durably(making / "job.json", job.encoded())
                _write_durably(making / "environment.json", json.dumps(dict(environment)).encode())
                _write_durably(making / "reserve", bytes(_RESERVE_BYTES))
                if held:
                    _write_durably(making / "held", b"")
                fsync_folder(making)
                os.rename(making, path)
                fsync_folder(path.parent)
        finally:
            if making.exists():
                shutil.rmtree(making, ignore_errors=True)
        return JobFolder(path)

    def put_away(self, folder: JobFolder) -> None:
        """Move an ended job out of the way of the queue. Only under the lock."""
        with contextlib.suppress(OSError):  # it can be done as well the next time
            os.rename(folder.path, self.folder / "ended" / folder.path.name)

    def prune(self) -> None:
        """Forget ended jobs that are too many or too old, and what a process left that died while it added a job."""
        ended = self._names("ended")
        oldest = time.time() - KEEP_S
        with contextlib.suppress(OSError):
            for place, (_, name) in enumerate(ended):
                path = self.folder / "ended" / name
                if len(ended) - place <= KEEP_JOBS and path.stat().st_mtime >= oldest:
                    break
                shutil.rmtree(path, ignore_errors=True)
            for making in (self.folder / "jobs").glob(".making-*"):
                shutil.rmtree(making, ignore_errors=True)  # under the lock nobody is at it


def _write_durably(path: Path, content: bytes) -> None:
    """Write a file that nobody looks for yet."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def parse_id(job_id: str) -> tuple[int, str] | None:
    """Number and host of an id of ours; None for any other word."""
    number, _, host = job_id.partition(".")
    if not (number.isascii() and number.isdecimal() and host) or "/" in host or host.startswith("."):
        return None
    return int(number), host


def tag_hash(tag: str) -> str:
    """What a folder's name holds of the job's tag, which may be any text."""
    return hashlib.sha256(tag.encode(errors="surrogateescape")).hexdigest()[:24]
