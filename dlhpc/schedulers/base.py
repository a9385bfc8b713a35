"""What every batch system offers to the rest of dlhpc."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from dlhpc.errors import UserError


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


@dataclass(frozen=True)
class JobRequest:
    """One job to submit. The script holds all directives; these are what the scheduler must know besides."""

    tag: str
    """Unique for (run, attempt); travels with the job, so that it is found again after a lost answer."""
    name: str
    script: Path
    log: Path
    """Where both output streams go."""
    arguments: tuple[str, ...]
    """Words after the script's name."""
    cores: int
    gpus: int
    walltime_seconds: int
    kill_grace_seconds: int


class Scheduler(Protocol):
    """A batch system. Every method may raise :class:`dlhpc.errors.CommandError` or ``StorageError``."""

    def submit(self, request: JobRequest) -> str:
        """Queue the job and give its id, exactly as the batch system names it."""
        ...

    def query(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Where these jobs stand, in one question; every id asked for is in the answer."""
        ...

    def find(self, tag: str) -> str | None:
        """The id of the job with this tag, whether waiting, running or recently ended; None if there is none."""
        ...

    def cancel(self, job_id: str) -> None:
        """End the job and every process of it; a job that is already over is no error."""
        ...


def is_private(name: str) -> bool:
    """Whether only the user who submitted a job can ask after it and cancel it; batch systems know everybody's."""
    return name == "local"


def get_scheduler(name: str) -> Scheduler:
    """The batch system that a site profile names."""
    if name == "local":
        from dlhpc.schedulers.local import LocalScheduler

        return LocalScheduler()
    raise UserError(f"this version of dlhpc has no scheduler `{name}`", remedy="Known: local.")
