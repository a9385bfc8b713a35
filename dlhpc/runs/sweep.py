"""A sweep's folder: the names of its files, what was decided, and what has happened to it.

    RUNS/SWEEP/  sweep.json    what was decided: members' settings, portions, cap; never changed
                 sweep.jsonl   what happened: portions submitted, cancelled, resumed …; only ever appended
                 spec.yaml     as the user asked, `sweep:` included
                 arrays/K.sh   job script of the K-th array
                 generations/K.json  of a search: what its K-th generation tries, from 1
                 SWEEP.0000/   members: ordinary run directories, from 0000

An array's submission is on record in the sweep alone, so that submitting a thousand members writes one line. Whoever
reads a member's journal (:func:`dlhpc.runs.journal.read_journal`) is given what it says of that member as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from dlhpc.errors import StorageError
from dlhpc.files import append_lines, read_json, read_json_lines, replace_text, storage_errors
from dlhpc.runs.directory import RunDirectory

FORMAT = 2


@dataclass(frozen=True)
class SweepDirectory:
    """One sweep's folder on shared storage."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def record(self) -> Path:
        return self.path / "sweep.json"

    @property
    def log(self) -> Path:
        return self.path / "sweep.jsonl"

    @property
    def spec(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def lock(self) -> Path:
        """Taken (flock) while members are being submitted."""
        return self.path / ".submit.lock"

    @property
    def again(self) -> Path:
        """Its existence asks whoever holds the lock to look once more whether members can be submitted."""
        return self.path / ".again"

    def script(self, portion: int) -> Path:
        """The job script of array number ``portion``, from 1."""
        return self.path / "arrays" / f"{portion}.sh"

    @property
    def generations(self) -> Path:
        """What a search has decided beside its first members; only a search has this folder."""
        return self.path / "generations"

    def generation(self, number: int) -> Path:
        """The members of generation ``number``, from 1; those of generation 0 are in ``sweep.json``."""
        return self.generations / f"{number:04d}.json"

    @property
    def is_search(self) -> bool:
        """Whether further members are decided by how earlier ones did."""
        return self.generations.is_dir()

    def exists(self) -> bool:
        return self.record.exists()

    def member_name(self, index: int, width: int) -> str:
        return f"{self.name}.{index:0{width}d}"

    def member(self, index: int, width: int) -> RunDirectory:
        return RunDirectory(self.path / self.member_name(index, width))

    def found_members(self) -> list[RunDirectory]:
        """The members whose folders are there, in order; one listing, nothing is opened."""
        with storage_errors(self.path, "list"), os.scandir(self.path) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(f"{self.name}.")]
        numbered = sorted((index_of(name), name) for name in names if name[len(self.name) + 1 :].isdecimal())
        return [RunDirectory(self.path / name) for _, name in numbered]


def index_of(name: str) -> int:
    """The number at the end of a member's name."""
    return int(name.rpartition(".")[2])


def sweep_of(run: RunDirectory) -> SweepDirectory | None:
    """The sweep that a run is a member of; by names alone."""
    stem, dot, number = run.name.rpartition(".")
    if dot and number.isdecimal() and stem == (folder := run.path.parent).name:
        return SweepDirectory(folder)
    return None


@dataclass(frozen=True)
class SweepRecord:
    """What was decided for a sweep."""

    sweep_id: str
    """Travels in the names of its arrays, so that one whose answer was lost is found again."""
    name: str
    """As the spec has it."""
    version: str
    """Of dlhpc."""
    created: str
    """ISO 8601 with offset."""
    scheduler: str
    dialect: str | None
    portion: int
    """Members of one submission: more than 1 is an array of that many at most."""
    least_portion: int
    cap: int | None
    """At most so many members in the queue, waiting and running."""
    running: int | None
    """At most so many members run at once."""
    hold: bool
    """Submitted held."""
    width: int
    """Digits of the members' numbers."""
    site: str
    """The profile's file."""
    most: int
    """Members at most; more than there are where a search goes on."""
    members: list[dict[str, Any]]
    """Each member's settings: dotted key of the spec → value."""
    format: int = FORMAT

    def write(self, path: Path) -> None:
        """One line for each member: a person may look for one."""
        head = {name: value for name, value in vars(self).items() if name != "members"}
        lines = ",\n".join(f"    {json.dumps(one, ensure_ascii=False)}" for one in self.members)
        text = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
        replace_text(path, f'{text},\n  "members": [\n{lines}\n  ]\n}}\n')


def read_record(sweep: SweepDirectory) -> SweepRecord:
    """Read ``sweep.json``; :class:`StorageError` if it is missing, damaged or of a newer format."""
    value = read_json(sweep.record)
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']}")
        known = SweepRecord(**{one.name: value[one.name] for one in dataclasses.fields(SweepRecord)})
        return known if known.most == len(known.members) else _with_generations(sweep, known)
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"is not a sweep of this version of dlhpc: {error}",
            where=sweep.record,
            remedy="Use the version that submitted it.",
        ) from error


def _with_generations(sweep: SweepDirectory, first: SweepRecord) -> SweepRecord:
    with storage_errors(sweep.generations, "list"):
        files = sorted(sweep.generations.glob("[0-9]*.json"))
    members = [*first.members, *(dict(settings) for file in files for settings in read_json(file))]
    return dataclasses.replace(first, members=members)


# --- What happened ----------------------------------------------------------------------------------------------


class SweepEvent(StrEnum):
    """Every kind of event of a sweep. Members are written as ranges, ``[[0, 99], [101, 101]]``."""

    CREATED = "created"
    SUBMITTING = "submitting"  # portion (number, from 1), members: the n-th is task n of the array, from 0
    SUBMITTED = "submitted"  # portion, array_id, job_ids
    SUBMIT_FAILED = "submit_failed"  # portion, reason
    TAKEN = "taken"  # members whose own journals have their submission; over: members known to be over
    CANCELLED = "cancelled"
    RESUMED = "resumed"  # again: [member, submissions it has had] of those to be submitted anew
    HELD = "held"
    RELEASED = "released"
    SEARCHED = "searched"  # reason: why no further generation follows


def log(sweep: SweepDirectory, event: SweepEvent, **details: Any) -> None:
    """Append one event, durably."""
    append_lines(sweep.log, [log_line(event, **details)])


def log_line(event: SweepEvent, **details: Any) -> str:
    """One event as it stands in ``sweep.jsonl``."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": event.value, **details}, ensure_ascii=False)


def to_ranges(indices: Iterable[int]) -> list[list[int]]:
    """Rising numbers as ``[first, last]`` pairs."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ranges


def from_ranges(ranges: Iterable[Iterable[int]]) -> list[int]:
    """The reverse of :func:`to_ranges`."""
    return [index for first, last in ranges for index in range(first, last + 1)]


@dataclass
class Portion:
    """One array submission."""

    number: int
    members: list[int]
    submitting: str
    """When, as the log has it."""
    answered: str | None = None
    """When its answer was put on record; None while it is open."""
    array_id: str | None = None
    job_ids: dict[int, str] = field(default_factory=dict)
    """Member → id of its job."""
    reason: str | None = None
    """Why it was refused."""


@dataclass
class SweepProgress:
    """What the sweep's log says; :func:`read_progress` makes it, and nothing changes it after that."""

    portions: dict[int, Portion] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    over: set[int] = field(default_factory=set)
    """Members that were over when somebody looked."""
    again: dict[int, int] = field(default_factory=dict)
    """Members to be submitted anew → how many submissions they had had."""
    cancelled: bool = False
    held: bool | None = None
    """None: as the spec says."""
    searched: str | None = None
    """Why a search has ended."""
    begun: bool = False
    """A member was submitted, or the user has asked for that since: the others follow by themselves."""
    of_member: dict[int, list[Portion]] = field(default_factory=dict)

    @property
    def open(self) -> Portion | None:
        """A submission that was begun, and whether it reached the scheduler is not on record."""
        return next((one for one in self.portions.values() if one.answered is None), None)

    @property
    def submitted(self) -> set[int]:
        """Members that have been submitted, in an array or alone."""
        in_arrays = (one.job_ids for one in self.portions.values())
        return self.taken.union(*in_arrays)


def read_progress(sweep: SweepDirectory) -> SweepProgress:
    """What has happened to the sweep. Not to be changed: whoever asks again is given the same."""
    log = sweep.log
    with storage_errors(log, "read"):
        now = log.stat()
    return _progress_at(log, now.st_ino, now.st_size, now.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _progress_at(path: Path, _inode: int, _size: int, _mtime_ns: int) -> SweepProgress:
    """Read once for all members of a sweep: the log is only ever appended, so its size names its content."""
    known = SweepProgress()
    for row in read_json_lines(path)[0]:
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a damaged line loses what it said, no more
            _take_in(known, row)
    return known


def _take_in(known: SweepProgress, row: dict[str, Any]) -> None:
    match row["event"]:
        case SweepEvent.SUBMITTING:
            portion = Portion(int(row["portion"]), from_ranges(row["members"]), str(row["time"]))
            known.portions[portion.number] = portion
            for index in portion.members:
                known.of_member.setdefault(index, []).append(portion)
        case SweepEvent.SUBMITTED:
            portion = known.portions[row["portion"]]
            portion.answered, portion.array_id = row["time"], str(row["array_id"])
            portion.job_ids = dict(zip(portion.members, map(str, row["job_ids"])))
            known.begun = True
        case SweepEvent.SUBMIT_FAILED:
            portion = known.portions[row["portion"]]
            portion.answered, portion.reason = row["time"], str(row["reason"])
        case SweepEvent.TAKEN:
            submitted = from_ranges(row.get("members", ()))
            known.taken.update(submitted)
            known.begun = known.begun or bool(submitted)
            known.over.difference_update(submitted)
            for index in submitted:
                known.again.pop(index, None)
            known.over.update(from_ranges(row.get("over", ())))
        case SweepEvent.CANCELLED:
            known.cancelled = True
            known.again.clear()
        case SweepEvent.RESUMED:
            known.cancelled = False
            known.begun = True
            known.again.update({int(index): int(count) for index, count in row["again"]})
            known.over.difference_update(known.again)
        case SweepEvent.HELD:
            known.held = True
        case SweepEvent.RELEASED:
            known.held = False
        case SweepEvent.SEARCHED:
            known.searched = str(row["reason"])


def member_rows(
    run: RunDirectory, progress_of: Callable[[SweepDirectory], SweepProgress] = read_progress
) -> list[dict[str, Any]]:
    """What the sweep's log says of a member, as rows of that member's journal; none for a run that is no member."""
    sweep = sweep_of(run)
    if sweep is None:
        return []
    try:
        index = index_of(run.name)
        portions = progress_of(sweep).of_member.get(index, [])
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # a folder that only has a member's name
            return []
        raise
    rows: list[dict[str, Any]] = []
    for portion in portions:
        about = {"attempt": 1, "portion": portion.number}
        rows.append({"time": portion.submitting, "event": "submitting", **about})
        if portion.reason is not None:
            rows.append({"time": portion.answered, "event": "submit_failed", "reason": portion.reason, **about})
        elif (job := portion.job_ids.get(index)) is not None:
            rows.append({"time": portion.answered, "event": "submitted", "job_ids": [job], **about})
    return rows


# --- One at a time ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sweep_lock(sweep: SweepDirectory, *, wait: bool = True) -> Iterator[bool]:
    """Submitting members is for one process at a time, on all nodes that share the storage.

    Gives whether the lock was had: with ``wait=False`` it may be somebody else's. The scheduler's command inherits
    it, as that of a single run's submission does.
    """
    with storage_errors(sweep.lock, "lock"):
        descriptor = os.open(sweep.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        had = True
        with storage_errors(sweep.lock, "lock"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                os.set_inheritable(descriptor, True)
            except BlockingIOError:
                had = False
        yield had
    finally:
        os.close(descriptor)
