"""Where a run stands: computed from its journal and what the scheduler says, never stored."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

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


STUCK = "it saved its state, and its job could not submit another; `dlhpc watch` or `dlhpc resume` goes on"


@dataclass(frozen=True)
class JobView:
    """What the scheduler said of a job: ``queued``, ``held``, ``running``, ``over`` or ``unknown``."""

    state: str
    exit_code: int | None = None
    reason: str | None = None
    cancelled: bool = False


@dataclass
class Progress:
    """What the journal alone says of a run; :func:`progress` makes it, and nothing changes it after that."""

    begun: int = 0
    """How many attempts have begun; the next to begin has one number more."""
    submissions: int = 0
    open_submission: int | None = None
    """Number of a submission that was begun, and whether it reached the scheduler is not on record."""
    current: str | None = None
    """The job of the attempt that has begun and not concluded."""
    waiting: tuple[str, ...] = ()
    """Jobs that have not begun, in the order in which they will."""
    begun_meanwhile: tuple[str, ...] = ()
    """Jobs that began while a submission was open: a quick scheduler starts one before its id is on record."""
    last_job: str | None = None
    place: tuple[str, str | None] | None = None
    """Scheduler and dialect of the latest submission, so that no plan need be read to ask after its jobs."""
    ended: RunState | None = None
    """Finished, failed, cancelled or not submitted, as far as the latest attempt's events say."""
    reason: str | None = None
    final: bool = False
    """Nothing but `dlhpc resume` makes another attempt begin."""
    tail: tuple[str, ...] = ()
    """The log's last lines of the latest failure."""
    epoch: int = 0
    epochs: int | None = None
    created: float | None = None
    changed: float | None = None
    """Time of the latest event."""

    @property
    def jobs(self) -> tuple[str, ...]:
        """Every job that may be in the queue or run."""
        return self.waiting if self.current is None else (self.current, *self.waiting)

    @property
    def job_id(self) -> str | None:
        """The one job to name when one is to be named."""
        return self.jobs[0] if self.jobs and not self.final else self.last_job

    @property
    def attempt(self) -> int:
        """The attempt that runs, or else the one that waits, or else the last one; 0 if none was ever submitted."""
        waits = self.current is None and (self.waiting or self.open_submission is not None)
        return self.begun + 1 if (waits and not self.final) or (self.begun == 0 and self.submissions) else self.begun


def same_job(one: object, other: object) -> bool:
    """Whether two ids name one job."""
    return _core(one) == _core(other)


def _core(job_id: object) -> tuple[str, ...]:
    """An id without the domain that some commands add and others leave out.

    LoadLeveler says `c1.site.org.7.0` at submission and `c1.7.0` elsewhere, PBS servers have long and short names.
    """
    first, *others = str(job_id).split(".")
    return (first, *(part for part in others if part.isdigit()))


def progress(entries: Sequence[Entry]) -> Progress:
    """Fold the journal. Only events since the latest submission or beginning decide whether the run has ended."""
    now = Progress()
    for entry in entries:
        for name, value in _changes(now, entry).items():
            setattr(now, name, value)
    if entries:
        now.created, now.changed = entries[0].time, entries[-1].time
    return now


def _changes(now: Progress, entry: Entry) -> dict[str, Any]:
    """What one entry changes."""
    details = entry.details
    job = details.get("job_id")
    match entry.event:
        case Event.SUBMITTING:
            number = now.submissions + 1
            again = {} if details.get("ahead") else {"ended": None, "reason": None, "final": False, "tail": ()}
            return {"submissions": number, "open_submission": number, "begun_meanwhile": (), **again}
        case Event.SUBMITTED:
            ids = tuple(str(one) for one in details.get("job_ids", ()))
            begun = [_core(one) for one in now.begun_meanwhile]
            new = tuple(one for one in ids if _core(one) not in begun)
            named = now.last_job if details.get("ahead") or not ids else ids[0]
            place = details.get("place")
            return {
                "open_submission": None,
                "waiting": now.waiting + new,
                "last_job": named,
                "place": now.place if place is None else (place[0], place[1]),
            }
        case Event.SUBMIT_FAILED:
            if details.get("ahead"):
                return {"open_submission": None}
            if now.begun:  # the run has failed for now, and whoever looks after it tries again
                why = f"attempt {now.begun + 1} was not submitted: {details.get('reason')}"
                return {"open_submission": None, "ended": RunState.FAILED, "reason": why, "final": False}
            return {"open_submission": None, "ended": RunState.NOT_SUBMITTED, "reason": details.get("reason")}
        case Event.BEGUN:
            # As the submission called it, which is what the scheduler is asked with.
            name = next((one for one in now.waiting if _core(one) == _core(job)), job)
            changes = {
                "begun": entry.attempt or now.begun + 1,
                "current": name,
                "waiting": tuple(one for one in now.waiting if one != name),
                "begun_meanwhile": (*now.begun_meanwhile, str(job)) if now.open_submission is not None else (),
                "last_job": name,
            }
            return changes if now.final else {**changes, "ended": None, "reason": None, "tail": ()}
        case Event.CONCLUDED if _core(job) == _core(now.current):
            again_waiting = (str(now.current), *now.waiting) if details.get("next") == "requeued" else now.waiting
            quiet = details.get("next") == "stuck" and now.ended is None
            stuck = {"ended": RunState.FAILED, "reason": STUCK} if quiet else {}
            return {"current": None, "waiting": again_waiting, **stuck}
        case Event.JOB_OVER:
            over = set(details.get("job_ids", ()))
            left = tuple(one for one in now.waiting if one not in over)
            return {"waiting": left, "current": None if now.current in over else now.current}
        case Event.EPOCH:
            return {"epoch": int(details.get("epoch", now.epoch)), "epochs": details.get("epochs", now.epochs)}
        case Event.FINISHED:
            return {"ended": RunState.FINISHED, "reason": None, "final": True, "tail": ()}
        case Event.FAILED if now.ended is not RunState.CANCELLED:
            final = details.get("retried") is not True
            tail = tuple(details.get("tail", ()))
            return {"ended": RunState.FAILED, "reason": details.get("reason"), "final": final, "tail": tail}
        case Event.CANCELLED:
            reason = details.get("reason")  # where it was not dlhpc that cancelled the job
            return {"ended": RunState.CANCELLED, "reason": reason, "final": True, "tail": ()}
    return {}


def needs_scheduler(known: Progress, *, script_ended: bool = False) -> bool:
    """Whether the journal alone cannot tell the state: a job may be in the queue.

    A finished training's job is over when its script has left its exit status (``script_ended``).
    """
    if known.ended is RunState.FINISHED and script_ended:
        return False
    return bool(known.jobs) and known.ended is not RunState.CANCELLED


def state_of(known: Progress, jobs: Mapping[str, JobView]) -> tuple[RunState, str | None]:
    """State and reason; ``jobs`` holds what the scheduler said, of no job where it was not asked."""
    if known.submissions == 0 and not known.jobs and not known.begun:
        return RunState.NOT_SUBMITTED, "submit it with `dlhpc resume`"
    if known.ended is RunState.CANCELLED:
        return RunState.CANCELLED, known.reason
    current = jobs.get(known.current or "")
    if known.ended is RunState.FINISHED:
        # Jobs that were queued ahead do not matter any more; the one that trained may still have a word to write.
        running = current is not None and current.state == "running"
        return (RunState.RUNNING, current.reason) if running and current else (RunState.FINISHED, known.reason)
    asked = known.jobs[:1] if known.final else known.jobs
    views = [jobs.get(one, JobView("unknown", reason="the scheduler was not asked")) for one in asked]
    for word in ("running", "unknown"):
        for view in views:
            # A job that still runs may yet go on with another attempt, whatever this attempt has written.
            if view.state == word:
                return RunState(word), view.reason
    for view in views:  # the first that waits is the next to start: if it is held, all are
        if view.state in ("queued", "held"):
            return RunState(view.state), view.reason
    if known.open_submission is not None:
        return RunState.UNKNOWN, "whether the submission arrived is not known yet"
    if known.ended is not None:
        return known.ended, known.reason
    last = views[0] if views else JobView("over")
    if last.cancelled:
        return RunState.CANCELLED, "with the batch system's own command; `dlhpc resume` goes on from its checkpoint"
    return RunState.FAILED, _silent_end(last)


def _silent_end(job: JobView) -> str:
    """Why a run failed whose attempt left no word."""
    if job.exit_code == AttemptExit.CONTINUE:
        return "it saved its state and was not submitted again; go on with `dlhpc resume`"
    how = f" ({job.reason})" if job.reason else ""
    code = "" if job.exit_code is None else f" with code {job.exit_code}{meaning_of(job.exit_code)}"
    return f"the job ended{code} without a word{how}; go on with `dlhpc resume`"


def meaning_of(code: int) -> str:
    """What a shell means by an exit code that is none of ours, in brackets; empty if it says nothing."""
    if code in (126, 127):
        return " (a program is missing or may not be run; `dlhpc logs` names it)"
    if code == 128 + signal.SIGKILL:
        return " (killed from outside, as for want of memory)"
    return ""
