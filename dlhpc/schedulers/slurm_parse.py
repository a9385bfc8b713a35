"""What squeue, sacct and sbatch print → values. Pure; whatever the text, nothing but a value comes out.

Formats: squeue(1), sacct(1), sbatch(1); states: JOB STATE CODES of squeue(1) and sacct(1).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from dlhpc.schedulers.base import JobState, JobStatus

SEPARATOR = "\x1f"
"""Between two fields: no name holds it. (Not 1C–1E: Python takes these for line ends.)"""

_Q, _H, _R, _E, _U = JobState.QUEUED, JobState.HELD, JobState.RUNNING, JobState.ENDED, JobState.UNKNOWN

STATES: dict[str, tuple[str, JobState]] = {
    "BF": ("BOOT_FAIL", _E),
    "CA": ("CANCELLED", _E),
    "CD": ("COMPLETED", _E),
    "CF": ("CONFIGURING", _Q),  # its nodes are being switched on; nothing of it runs yet
    "CG": ("COMPLETING", _R),  # some process or the epilog is still there
    "DL": ("DEADLINE", _E),
    "F": ("FAILED", _E),
    "NF": ("NODE_FAIL", _E),
    "OOM": ("OUT_OF_MEMORY", _E),
    "PD": ("PENDING", _Q),
    "PR": ("PREEMPTED", _E),
    "R": ("RUNNING", _R),
    "RD": ("RESV_DEL_HOLD", _H),
    "RF": ("REQUEUE_FED", _Q),
    "RH": ("REQUEUE_HOLD", _H),
    "RQ": ("REQUEUED", _Q),
    "RS": ("RESIZING", _R),
    "RV": ("REVOKED", _U),  # another cluster of the federation took it
    "S": ("SUSPENDED", _R),
    "SE": ("SPECIAL_EXIT", _H),
    "SI": ("SIGNALING", _R),
    "SO": ("STAGE_OUT", _R),
    "ST": ("STOPPED", _R),
    "TO": ("TIMEOUT", _E),
}
"""Every documented state: compact form → long form, ours."""

_LONG = dict(STATES.values())
_HELD_REASONS = ("JobHeldUser", "JobHeldAdmin")
_CLOCKS_DIFFER_S = 30.0
"""Those of a compute node and of slurmctld, at most; an attempt is longer, as Slurm knows no limit below a minute."""
_NO_REASON = ("", "None", "(null)", "N/A")

_JOB_ID = re.compile(r"([0-9]{1,18})(?:_([0-9]{1,9}))?(?:;([A-Za-z0-9_.-]{1,80}))?", re.ASCII)
_LISTED_ID = re.compile(r"([0-9]{1,18})(?:_(?:([0-9]{1,9})|\[([^\]]*)\]?))?(?:\+[0-9]+)?", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?", re.ASCII)
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}", re.ASCII)


@dataclass(frozen=True)
class JobId:
    """An id as ``submit`` gives it: ``123``, ``123_7`` (a task of an array), ``123;cluster``."""

    job: str
    task: int | None = None
    cluster: str | None = None

    @property
    def word(self) -> str:
        """As the commands take it; the cluster is told by ``-M``."""
        return self.job if self.task is None else f"{self.job}_{self.task}"


def parse_job_id(text: str) -> JobId | None:
    """None if this is no id of Slurm's."""
    found = _JOB_ID.fullmatch(text)
    if found is None:
        return None
    return JobId(found[1], None if found[2] is None else int(found[2]), found[3])


def parse_submit(out: str) -> str | None:
    """The new job's id in what ``sbatch --parsable`` printed, perhaps among a site's banner lines; or None.

    A wrapper may drop ``--parsable``; then it is ``Submitted batch job 123`` (``on cluster NAME``).
    """
    for line in reversed(out.split("\n")):
        word = line.strip()
        if (known := parse_job_id(word)) is not None and known.task is None:
            return word
        said = re.fullmatch(r"Submitted batch job ([0-9]{1,18})(?: on cluster ([A-Za-z0-9_.-]+))?", word, re.ASCII)
        if said is not None:
            return said[1] if said[2] is None else f"{said[1]};{said[2]}"
    return None


def parse_time(text: str) -> float | None:
    """Seconds since 1970 from such seconds (``SLURM_TIME_FORMAT=%s``) or local ``2026-11-24T01:00:00``."""
    word = text.strip()
    if re.fullmatch(r"[0-9]{1,12}", word, re.ASCII):
        return float(word) or None
    if _ISO.fullmatch(word):
        try:
            return datetime.fromisoformat(word).timestamp()
        except (ValueError, OverflowError, OSError):
            return None
    return None


def parse_start(err: str) -> float | None:
    """The start in what ``sbatch --test-only`` says: ``Job 12 to start at TIME using 1 processors on nodes …``."""
    found = re.search(r"Job [0-9]+ to start at (\S+)", err)
    return None if found is None else parse_time(found[1])


def state_of(word: str, reason: str = "") -> tuple[JobState, str | None]:
    """Slurm's state (long, compact, ``CANCELLED by 123``, ``CANCELLED+``) and reason → ours and what to tell of it."""
    said = word.strip()
    name = said.partition(" ")[0].rstrip("+").upper()
    name = STATES[name][0] if name in STATES else name
    if name not in _LONG and said.endswith("+"):  # a column was too narrow
        name = next((known for known in _LONG if len(name) > 4 and known.startswith(name)), name)
    why = "" if reason.strip() in _NO_REASON else reason.strip()
    if name not in _LONG:
        return JobState.UNKNOWN, f"Slurm calls its state `{said}`" if said else "Slurm names no state"
    state = _LONG[name]
    if name == "PENDING":
        return (JobState.HELD if why in _HELD_REASONS else state), why or None
    if name in ("RUNNING", "COMPLETED"):
        return state, None
    if name == "REVOKED":
        return state, "REVOKED: another cluster of the federation has it"
    if name == "CANCELLED" and why != "DependencyNeverSatisfied":
        why = ""  # it is why the job had been waiting
    return state, (f"{said}: {why}" if why else said)


def exit_code_of(word: str, code: str) -> int | None:
    """sacct's ``ExitCode`` (``75:0`` → 75, ``0:9`` → 137); None where it says nothing, as 0 of a job that timed out."""
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", code.strip(), re.ASCII)
    if found is None:
        return None
    status, signal = int(found[1]), int(found[2])
    if signal:
        return 128 + signal if signal <= 64 else None  # 0:125 is Slurm's word for out of memory
    if status == 0 and word.strip().partition(" ")[0] not in ("COMPLETED", "CD", "FAILED", "F"):
        return None
    return status


@dataclass(frozen=True)
class Entry:
    """One line of squeue or sacct: a job, a task of an array, or several tasks (``tasks``) that wait together."""

    job: str
    task: int | None
    tasks: tuple[range, ...]
    state: JobState
    reason: str | None = None
    exit_code: int | None = None
    started: float | None = None
    ended: float | None = None

    def status(self, job_id: str) -> JobStatus:
        # With a colon and more, Slurm itself cancelled it: what it waited for can never come.
        cancelled = self.state is JobState.ENDED and re.match(r"CANCELLED[^:]*$", self.reason or "") is not None
        return JobStatus(job_id, self.state, self.exit_code, self.reason, self.started, self.ended, cancelled)


def parse_queue(out: str) -> list[Entry]:
    """What squeue prints for ``%i %T %r %S %e`` with :data:`SEPARATOR` between; other lines are passed over."""
    return [
        entry
        for fields in _lines(out, 5)
        if (entry := _entry(fields[0], fields[1], fields[2], None, fields[3], fields[4])) is not None
    ]


def parse_accounting(out: str) -> list[Entry]:
    """What sacct prints for ``JobID,State,ExitCode,Start,End`` with :data:`SEPARATOR` between."""
    return [
        entry
        for fields in _lines(out, 5)
        if (entry := _entry(fields[0], fields[1], "", fields[2], fields[3], fields[4])) is not None
    ]


def parse_names(out: str, tag: str) -> list[str]:
    """From lines of id and job name: the ids of the jobs with this name; an array's own id, once."""
    found = [_LISTED_ID.fullmatch(fields[0].strip()) for fields in _lines(out, 2) if fields[1] == tag]
    return list(dict.fromkeys(known[1] for known in found if known is not None))


def was_cancelled(out: str, now: float) -> bool:
    """Whether somebody cancelled the job whose script still runs; of ``%T %r %S %e`` with :data:`SEPARATOR` between.

    Seen on Slurm 22.05 between TERM and KILL, while all are ``COMPLETING``: at the walltime's end the reason is
    ``TimeLimit``; of a job that Slurm itself puts back into the queue the end lies ahead, or is ``N/A``.
    """
    for state, reason, start, end in _lines(out, 4):
        begun, ended = parse_time(start), parse_time(end)
        if state == "COMPLETING" and reason in _NO_REASON and begun is not None and ended is not None:
            return ended < now + _CLOCKS_DIFFER_S
    return False


def _lines(out: str, count: int) -> Iterable[list[str]]:
    # The last field takes all that is left.
    rows = (line.split(SEPARATOR, count - 1) for line in out.split("\n"))
    return (fields for fields in rows if len(fields) == count)


def _entry(listed: str, word: str, reason: str, code: str | None, start: str, end: str) -> Entry | None:
    found = _LISTED_ID.fullmatch(listed.strip())
    if found is None:
        return None
    state, why = state_of(word, reason)
    over = state is JobState.ENDED
    exit_code = None
    if over:
        exit_code = (
            exit_code_of(word, code) if code is not None else (0 if word.strip() in ("COMPLETED", "CD") else None)
        )
    return Entry(
        job=found[1],
        task=None if found[2] is None else int(found[2]),
        tasks=() if found[3] is None else _tasks(found[3]),
        state=state,
        reason=why,
        exit_code=exit_code,
        # Of a waiting job they are forecasts.
        started=parse_time(start) if over or state is JobState.RUNNING else None,
        ended=parse_time(end) if over else None,
    )


def _tasks(expression: str) -> tuple[range, ...]:
    """``0-5,8,11-20:3%2`` → ranges. A list that was cut (``…,7,...``) goes on for ever: its tasks are not gone."""
    ranges = []
    last = -1
    for part in expression.partition("%")[0].split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is not None:
            first = int(found[1])
            last = first if found[2] is None else int(found[2])
            ranges.append(range(first, last + 1, max(1, int(found[3] or 1))))
        else:
            ranges.append(range(last + 1, 2**31))
    return tuple(ranges)


@dataclass
class Table:
    """Entries, found by id. Made for thousands of ids."""

    single: dict[tuple[str, int | None], Entry] = field(default_factory=dict)
    together: defaultdict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    """By job: the entries that stand for several tasks."""
    members: defaultdict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    """By job: all its entries."""
    mixed: set[str] = field(default_factory=set)
    """Jobs with an entry for several tasks of which some are held: squeue tells only all their reasons together."""

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.tasks:
                self.together[entry.job].append(entry)
                if entry.reason is not None and "," in entry.reason and "JobHeld" in entry.reason:
                    self.mixed.add(entry.job)
            else:
                self.single[entry.job, entry.task] = entry
            self.members[entry.job].append(entry)

    def look(self, known: JobId) -> Entry | None:
        """What is known of this job or task; of a whole array, what is most alive of it."""
        entry = self.single.get((known.job, known.task))
        if entry is not None:
            return entry
        if known.task is None:
            return _summary(self.members.get(known.job, ()))
        waiting = self.together.get(known.job, ())
        return next((entry for entry in waiting if any(known.task in tasks for tasks in entry.tasks)), None)


def _summary(members: Sequence[Entry]) -> Entry | None:
    """An array as one job: running while one task runs, ended when all have."""
    for state in (JobState.RUNNING, JobState.QUEUED, JobState.HELD, JobState.UNKNOWN):
        for entry in members:
            if entry.state is state:
                return entry
    failed = [entry for entry in members if entry.exit_code != 0]
    return next(iter([*failed, *members]), None)
