"""Following runs: where they stand (one question to each scheduler), resuming and cancelling them."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dlhpc.errors import CommandError, DlhpcError, StorageError, UserError
from dlhpc.files import storage_errors
from dlhpc.jobs.submit import settle, submission_lock, submit_attempt
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import read_plan
from dlhpc.runs.state import JobView, Progress, RunState, needs_scheduler, progress, state_of
from dlhpc.schedulers.base import JobState, JobStatus, get_scheduler, is_private


@dataclass(frozen=True)
class RunStatus:
    """Where one run stands. Times are seconds since 1970; ``damaged`` counts unreadable journal lines."""

    run: str
    path: str
    state: RunState
    job_id: str | None
    attempt: int
    epoch: int
    epochs: int | None
    reason: str | None
    created: float | None
    changed: float | None
    damaged: int = 0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state.value}


def statuses(runs: Sequence[RunDirectory]) -> list[RunStatus]:
    """Where these runs stand. A run that cannot be read is ``unknown``, the others are not affected."""
    known: dict[int, tuple[Progress, int]] = {}
    unreadable: dict[int, str] = {}
    asked: dict[str, dict[int, str]] = {}
    jobs: dict[int, JobView] = {}
    for index, run in enumerate(runs):
        try:
            now, damaged = _read_progress(run)
            if now.submitting and _foreign_owner(run) is None:
                settle(run)
                now, damaged = _read_progress(run)
            known[index] = (now, damaged)
            if not needs_scheduler(now, script_ended=run.exit_file(now.attempt).exists()):
                continue
            if (owner := _foreign_owner(run)) is not None:
                jobs[index] = JobView("unknown", reason=f"its job is in the queue of {owner}, who can ask")
            elif now.job_id is not None:
                asked.setdefault(read_plan(run.plan).scheduler, {})[index] = now.job_id
        except DlhpcError as error:
            unreadable[index] = error.what
    for scheduler, wanted in asked.items():
        jobs.update(_ask(scheduler, wanted))
    return [
        _unreadable(run, unreadable[index]) if index in unreadable else _status(run, *known[index], jobs.get(index))
        for index, run in enumerate(runs)
    ]


def status(run: RunDirectory) -> RunStatus:
    """Where one run stands."""
    return statuses([run])[0]


def _read_progress(run: RunDirectory) -> tuple[Progress, int]:
    """What the journal says now, and how many of its lines are damaged."""
    entries, damaged = read_journal(run)
    return progress(entries), damaged


def _ask(scheduler: str, wanted: dict[int, str]) -> dict[int, JobView]:
    try:
        answers = get_scheduler(scheduler).query(list(wanted.values()))
    except (CommandError, StorageError, UserError) as error:
        return {index: JobView("unknown", reason=error.what) for index in wanted}
    return {index: _view(answers.get(job_id)) for index, job_id in wanted.items()}


def _foreign_owner(run: RunDirectory) -> str | None:
    """Who submitted this run, if that is somebody else and the scheduler answers only them."""
    with storage_errors(run.journal, "read"):
        uid = run.journal.stat().st_uid
    if uid == os.geteuid() or not is_private(read_plan(run.plan).scheduler):
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _view(answer: JobStatus | None) -> JobView:
    if answer is None:
        return JobView("unknown", reason="the scheduler said nothing of this job")
    state = "over" if answer.state in (JobState.ENDED, JobState.GONE) else answer.state.value
    return JobView(state, answer.exit_code, answer.reason)


def _status(run: RunDirectory, known: Progress, damaged: int, job: JobView | None) -> RunStatus:
    if job is not None and job.state == "over":
        # The job may have written its last words between our reading and the scheduler's answer.
        newer, damaged = _read_progress(run)
        if newer.attempt != known.attempt:
            return status(run)
        known = newer
    if known.submitting and job is None:
        job = JobView("unknown", reason="whether the submission arrived is not known yet")
    state, reason = state_of(known, job)
    return RunStatus(
        run=run.name,
        path=str(run.path),
        state=state,
        job_id=known.job_id,
        attempt=known.attempt,
        epoch=known.epoch,
        epochs=known.epochs,
        reason=reason,
        created=known.created,
        changed=known.changed,
        damaged=damaged,
    )


def _unreadable(run: RunDirectory, reason: str) -> RunStatus:
    return RunStatus(run.name, str(run.path), RunState.UNKNOWN, None, 0, 0, None, reason, None, None)


def resume(run: RunDirectory) -> str:
    """Submit another attempt of a run that is over but not finished; gives the job's id."""
    now = status(run)
    if now.state is RunState.FINISHED:
        raise UserError(
            f"{run.name} is finished", remedy="To train longer, submit its spec.yaml with --set training.epochs=N."
        )
    if not now.state.is_over:
        raise UserError(
            f"{run.name} is {now.state.value}{f' ({now.reason})' if now.reason else ''}",
            remedy="Only a run that is over can be resumed; see `dlhpc watch` or `dlhpc cancel`.",
        )
    never_arrived = now.state is RunState.NOT_SUBMITTED and now.attempt > 0
    job_id = submit_attempt(run, now.attempt if never_arrived else now.attempt + 1)
    assert job_id is not None
    return job_id


def cancel(run: RunDirectory) -> RunStatus:
    """Cancel the run: no further attempt is submitted, and the present one ends with all its processes."""
    now = status(run)
    # A cancelled run is cancelled again: the scheduler may not have answered the first time, and the job still run.
    if now.state.is_over and not (now.state is RunState.CANCELLED and now.job_id is not None):
        return now
    if (owner := _foreign_owner(run)) is not None:
        raise UserError(f"{run.name} belongs to {owner}", remedy="Only they can cancel it.")
    if now.state is RunState.UNKNOWN and now.job_id is None:
        raise UserError(f"where {run.name} stands is unknown: {now.reason}", remedy="Try again in a moment.")
    with submission_lock(run):
        # Under the lock: an attempt that is just ending either sees this entry or has submitted its successor already.
        known, _ = _read_progress(run)
        if known.ended is RunState.FINISHED:
            return status(run)
        if known.ended is not RunState.CANCELLED:
            record(run, Event.CANCELLED, attempt=known.attempt)
    if known.job_id is not None:
        get_scheduler(read_plan(run.plan).scheduler).cancel(known.job_id)
    return status(run)
