"""Where a run stands: computed from its journal and what the scheduler says, never stored."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum

from dlhpc.errors import AttemptExit
from dlhpc.runs.journal import Entry, Event


class RunState(StrEnum):
    """The words that `dlhpc status` uses."""

    NOT_SUBMITTED = "not submitted"
    QUEUED = "queued"
    HELD = "held"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @property
    def is_over(self) -> bool:
        """No job of this run is or will be in the queue."""
        return self in (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED, RunState.NOT_SUBMITTED)


@dataclass(frozen=True)
class JobView:
    """What the scheduler said of the latest job: ``queued``, ``held``, ``running``, ``over`` or ``unknown``."""

    state: str
    exit_code: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Progress:
    """What the journal alone says of a run."""

    attempt: int
    """Number of the latest attempt, from 1; 0 if none was ever submitted."""
    job_id: str | None
    submitting: bool
    """A submission was begun, and whether it reached the scheduler is not on record."""
    ended: RunState | None
    """Finished, failed or cancelled, as far as the latest attempt's events say."""
    reason: str | None
    epoch: int
    epochs: int | None
    created: float | None
    changed: float | None
    """Time of the latest event."""


def progress(entries: list[Entry]) -> Progress:
    """Fold the journal. Only events since the latest submission decide whether the run has ended."""
    attempt, epoch = 0, 0
    job_id: str | None = None
    epochs: int | None = None
    ended: RunState | None = None
    reason: str | None = None
    submitting = False
    for entry in entries:
        details = entry.details
        match entry.event:
            case Event.SUBMITTING:
                attempt = entry.attempt or attempt + 1
                submitting, job_id, ended, reason = True, None, None, None
            case Event.SUBMITTED:
                submitting, job_id = False, str(details.get("job_id"))
            case Event.SUBMIT_FAILED:
                submitting, ended, reason = False, RunState.NOT_SUBMITTED, details.get("reason")
            case Event.EPOCH:
                epoch, epochs = int(details.get("epoch", epoch)), details.get("epochs", epochs)
            case Event.FINISHED:
                ended, reason = RunState.FINISHED, None
            case Event.FAILED:
                if ended is not RunState.CANCELLED:
                    ended, reason = RunState.FAILED, details.get("reason")
            case Event.CANCELLED:
                ended, reason = RunState.CANCELLED, None
    return Progress(
        attempt=attempt,
        job_id=job_id,
        submitting=submitting,
        ended=ended,
        reason=reason,
        epoch=epoch,
        epochs=epochs,
        created=entries[0].time if entries else None,
        changed=entries[-1].time if entries else None,
    )


def needs_scheduler(known: Progress, *, script_ended: bool = False) -> bool:
    """Whether the journal alone cannot tell the state: a job may be in the queue.

    A finished training's job is over when its script has left its exit status (``script_ended``).
    """
    if known.ended is RunState.FINISHED:
        return not script_ended
    return known.attempt > 0 and known.ended not in (RunState.CANCELLED, RunState.NOT_SUBMITTED)


def state_of(known: Progress, job: JobView | None) -> tuple[RunState, str | None]:
    """State and reason. ``job`` is None if the scheduler was not asked (see :func:`needs_scheduler`)."""
    if known.attempt == 0:
        return RunState.NOT_SUBMITTED, "submit it with `dlhpc resume`"
    if known.ended in (RunState.CANCELLED, RunState.NOT_SUBMITTED):
        return known.ended, known.reason
    if known.ended is RunState.FINISHED and (job is None or job.state in ("over", "unknown")):
        return known.ended, known.reason
    if job is None or job.state == "unknown":
        return RunState.UNKNOWN, job.reason if job else None
    if job.state != "over":
        # A job that still runs may yet go on with another attempt, whatever this attempt has written.
        return RunState(job.state), job.reason
    if known.submitting and known.job_id is None:
        return RunState.NOT_SUBMITTED, "the submission never reached the scheduler; submit it with `dlhpc resume`"
    if known.ended is not None:
        return known.ended, known.reason
    if job.exit_code == AttemptExit.CONTINUE:
        return RunState.FAILED, "it saved its state and was not submitted again; go on with `dlhpc resume`"
    how = f" ({job.reason})" if job.reason else ""
    code = "" if job.exit_code is None else f" with code {job.exit_code}{meaning_of(job.exit_code)}"
    return RunState.FAILED, f"the job ended{code} without a word{how}; go on with `dlhpc resume`"


def meaning_of(code: int) -> str:
    """What a shell means by an exit code that is none of ours, in brackets; empty if it says nothing."""
    if code in (126, 127):
        return " (a program is missing or may not be run; `dlhpc logs` names it)"
    if code == 128 + signal.SIGKILL:
        return " (killed from outside, as for want of memory)"
    return ""
