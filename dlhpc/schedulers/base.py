"""What every batch system offers to the rest of dlhpc.

An adapter is made of pure pairs (build a command, parse what it says) and one thin class that calls them. Everything
here knows jobs, not runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from dlhpc.errors import CommandError, UserError


class JobState(StrEnum):
    """Where a job stands, in the words that all batch systems share."""

    QUEUED = "queued"
    HELD = "held"
    RUNNING = "running"
    ENDED = "ended"
    GONE = "gone"  # the scheduler answered, and does not know this job (any more)
    UNKNOWN = "unknown"  # the scheduler did not answer, or with a word we do not know


@dataclass(frozen=True)
class JobStatus:
    """What the scheduler says of one job. Times are seconds since 1970."""

    job_id: str
    state: JobState
    exit_code: int | None = None
    """Of an ended job, where the scheduler knows it; 128 + signal for a killed one."""
    reason: str | None = None
    """Why it waits, or why it ended, in the scheduler's words."""
    started: float | None = None
    ended: float | None = None
    cancelled: bool = False
    """It ended because somebody told the scheduler so, and the scheduler says it."""


@dataclass(frozen=True)
class Header:
    """All that the head of a job script asks of the batch system; numbers are final, words are checked."""

    name: str
    """The job's name where the submission gives none."""
    output: Path
    """Where what the job prints before it has opened its own log goes, both streams."""
    queue: str | None
    nodes: int
    ranks_per_node: int
    cores_per_rank: int
    gpus_per_node: int
    memory_bytes: int | None
    """Per node."""
    walltime_seconds: int
    warning_seconds: int
    """The system sends a signal so long before the walltime, where it can."""
    account: str | None = None
    mail: str | None = None
    mail_on: tuple[str, ...] = ()
    """Of ``begin``, ``end``, ``fail``."""
    exclusive: bool = False
    reservation: str | None = None
    qos: str | None = None
    array: tuple[int, ...] = ()
    """Rising indices of the tasks; empty for a job that is no array."""
    array_running: int | None = None
    """At most so many tasks run at once."""
    gpu_resource: str | None = None
    """What the site calls a GPU: a gres (Slurm), a resource (PBS), a consumable resource (LoadLeveler)."""
    gpu_feature: str | None = None
    """LoadLeveler: the feature of nodes with GPUs, where they are no consumable resource."""
    network: str | None = None
    """LoadLeveler: the value of ``network.MPI``."""
    extra: tuple[str, ...] = ()
    """The user's and the site's own directives, without the leading ``#SBATCH`` and the like."""


@dataclass(frozen=True)
class Dependency:
    """A job that must have ended before this one may start."""

    job_id: str
    kind: str
    """``afterok``, ``afternotok`` or ``afterany``."""


@dataclass(frozen=True)
class JobRequest:
    """One job to submit. The script's head holds the directives; these are what goes beside it."""

    tag: str
    """Unique for every submission; travels as the job's name, so that it is found again after a lost answer."""
    script: Path
    header: Header
    after: tuple[Dependency, ...] = ()
    held: bool = False
    steps: int = 1
    """So many jobs one after another, each run only if the one before left a code other than 0; more than 1 only
    where the system's :attr:`Abilities.steps` says so."""
    kill_grace_seconds: int = 10


@dataclass(frozen=True)
class Abilities:
    """What a batch system can do; the plan decides by it, and says in one sentence what cannot be done."""

    arrays: bool = False
    least_array: int = 1
    """An array has at least so many tasks."""
    dependencies: bool = False
    """Between jobs that are submitted one by one."""
    steps: bool = False
    """One submission may hold several jobs that follow each other."""
    requeue: bool = False
    """A running job may send itself back into the queue."""
    hold: bool = False


@dataclass(frozen=True)
class StartEstimate:
    """When a job would start, and how that is known."""

    start: float | None
    """Seconds since 1970; None where nothing is known."""
    how: str
    """One phrase for the user: `Slurm's own plan`, `median wait of the last 14 jobs` …"""


class JobCancelled(CommandError):
    """The job is being ended by somebody's own command (`scancel`): it must not come back."""


class Scheduler(Protocol):
    """A batch system. Every method may raise :class:`dlhpc.errors.CommandError` or ``StorageError``.

    A submission that may have arrived without an answer raises :class:`dlhpc.process.CommandTimeout`; every other error
    of ``submit`` means that no job was made.
    """

    @property
    def abilities(self) -> Abilities: ...

    def directives(self, header: Header) -> list[str]:
        """The lines at the head of the script, complete (``#SBATCH --nodes=2``).

        Raises :class:`UserError` (or ``ErrorList``) in one sentence for what this system cannot say. Pure.
        """
        ...

    def submission(self, request: JobRequest) -> list[str]:
        """The command that :meth:`submit` would run, for `dlhpc plan` to show. Pure."""
        ...

    def submit(self, request: JobRequest) -> list[str]:
        """Queue the job and give its id (an array's own id; one id per step), exactly as the batch system names it."""
        ...

    def member_ids(self, array_id: str, indices: Sequence[int]) -> list[str]:
        """The ids of an array's tasks, as :meth:`query` takes them. Pure."""
        ...

    def query(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Where these jobs stand, in one question; every id asked for is in the answer."""
        ...

    def find(self, tag: str) -> list[str]:
        """The ids of the job with this tag (as ``submit`` gives them), waiting, running or recently ended; or none."""
        ...

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End the jobs and every process of them; a job that is already over is no error."""
        ...

    def hold(self, job_ids: Sequence[str]) -> None:
        """Keep waiting jobs from starting."""
        ...

    def release(self, job_ids: Sequence[str]) -> None:
        """Let held jobs start."""
        ...

    def requeue(self, job_id: str) -> None:
        """From inside a running job: send it back into the queue (where :attr:`Abilities.requeue`).

        Raises :class:`JobCancelled` for a job that its owner or the staff cancelled meanwhile.
        """
        ...

    def estimate_start(self, request: JobRequest) -> StartEstimate:
        """When the job would start if it were submitted now; queues nothing."""
        ...


def is_private(name: str) -> bool:
    """Whether only the user who submitted a job can ask after it and cancel it; batch systems know everybody's."""
    return name == "local"


def get_scheduler(name: str, dialect: str | None = None) -> Scheduler:
    """The batch system that a site profile names; ``dialect`` as :class:`dlhpc.sites.models.Site` has it."""
    if name == "local":
        from dlhpc.schedulers.local import LocalScheduler

        return LocalScheduler()
    if name == "slurm":
        from dlhpc.schedulers.slurm import SlurmScheduler

        return SlurmScheduler()
    if name == "pbs":
        from dlhpc.schedulers.pbs import PbsScheduler

        return PbsScheduler(dialect or "select")
    if name == "loadleveler":
        from dlhpc.schedulers.loadleveler import LoadLevelerScheduler

        return LoadLevelerScheduler()
    raise UserError(f"this version of dlhpc has no scheduler `{name}`", remedy="Known: local, slurm, pbs, loadleveler.")
