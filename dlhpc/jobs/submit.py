"""Crash-safe submission: the intention is on disk before the scheduler is called, the answer right after.

A process may die between any two lines here. What it leaves is then either a run that was not submitted, or a job
that is found again by its tag; never two jobs for one submission.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhpc.errors import CommandError, DlhpcError, StorageError, UserError
from dlhpc.files import current_umask, replace_text, storage_errors
from dlhpc.jobs.header import request_of, tag_of
from dlhpc.jobs.prerequisites import look_at
from dlhpc.process import CommandTimeout
from dlhpc.runs.directory import RunDirectory, create_run
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import Plan, read_plan
from dlhpc.runs.state import Progress, RunState, progress
from dlhpc.schedulers.base import Dependency, Scheduler, get_scheduler

if TYPE_CHECKING:
    from dlhpc.jobs.plan import Planned


_PATIENCE_S = 10.0
"""For somebody who only looks, while a submission is on its way."""


def create(planned: Planned, runs: Path) -> RunDirectory:
    """Make the run directory with all that was decided; nothing is submitted yet."""
    from dlhpc.jobs.render import render
    from dlhpc.jobs.sources import keep_code

    def fill(hidden: RunDirectory, final: RunDirectory) -> None:
        plan = keep_code(planned.plan, hidden, final)
        replace_text(hidden.spec, planned.document.text())
        plan.write(hidden.plan)
        planned.catalog.write(hidden.catalog)
        replace_text(hidden.script, render(plan, final))
        with storage_errors(hidden.script):
            hidden.script.chmod(0o777 & ~current_umask())
        record(hidden, Event.CREATED, run_id=planned.plan.run_id, version=planned.plan.dlhpc_version)

    return create_run(runs, planned.spec.name, fill)


@contextlib.contextmanager
def submission_lock(run: RunDirectory, *, patience: float | None = None) -> Iterator[None]:
    """One submission of a run at a time, among all processes and nodes that share the storage.

    The scheduler's command inherits the lock: should we be killed while it is on its way to the scheduler, nobody looks
    for its job before it has ended. With ``patience`` (seconds) waiting ends in a :class:`StorageError`.
    """
    with storage_errors(run.submission_lock, "lock"):
        descriptor = os.open(run.submission_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with storage_errors(run.submission_lock, "lock"):
            _lock(descriptor, patience)
            os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, patience: float | None) -> None:
    if patience is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return None
    until = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def submit_attempt(run: RunDirectory, attempt: int, *, unless_cancelled: bool = False) -> str | None:
    """Submit attempt number ``attempt`` (from 1) and give the job's id.

    Where a job may not submit the next attempt, those are queued ahead with it. With ``unless_cancelled`` (a job that
    goes on by itself) nothing is done, and None given, if the user has cancelled the run meanwhile.

    Raises :class:`UserError` if it is on record already (somebody was quicker), and what the scheduler raises; a
    refused submission is on record as such, one whose answer was lost stays open until it is looked for.
    """
    plan = read_plan(run.plan)
    with submission_lock(run):
        known = progress(read_journal(run)[0])
        if unless_cancelled and known.ended is RunState.CANCELLED:
            return None
        if attempt != known.begun + len(known.waiting) + 1 or known.open_submission is not None:
            raise UserError(
                f"attempt {attempt} of {run.name} is submitted already", remedy="See `dlhpc status`; nothing was done."
            )
        waiting = look_at(plan)
        if waiting.failed is not None:
            raise UserError(waiting.failed, remedy="Let that run finish first, or remove job.after from the spec.")
        ids = _submit(run, plan, known, after=waiting.waits_for)
        queue_ahead(run, plan)
    return ids[0]


def queue_ahead(run: RunDirectory, plan: Plan) -> None:
    """Where a job may not submit the next attempt: keep as many behind the next or running one as the plan says.

    Under the submission lock.

    Each starts only if the one before ended with another code than 0. What goes wrong here loses nothing: it is on
    record, and whoever looks at the run tries again.
    """
    if not plan.attempts_ahead or get_scheduler(plan.scheduler, plan.dialect).abilities.steps:
        return  # steps are queued in one submission with the first
    while True:
        known = progress(read_journal(run)[0])
        room = plan.max_attempts - known.begun - len(known.waiting)
        if known.final or not known.jobs or len(known.jobs) > plan.attempts_ahead or room <= 0:
            return
        try:
            _submit(run, plan, known, after=(Dependency(known.jobs[-1], "afternotok"),), ahead=True)
        except DlhpcError:
            return


def _submit(
    run: RunDirectory, plan: Plan, known: Progress, *, after: tuple[Dependency, ...] = (), ahead: bool = False
) -> list[str]:
    """One submission with its records."""
    scheduler = get_scheduler(plan.scheduler, plan.dialect)
    number = known.submissions + 1
    attempt = known.begun + len(known.waiting) + 1
    request = request_of(plan, run, number, after=after, steps=_steps(scheduler, plan, known.begun))
    about: dict[str, Any] = {"submission": number, "attempt": attempt, **({"ahead": True} if ahead else {})}
    record(run, Event.SUBMITTING, **about)
    try:
        ids = scheduler.submit(request)
    except CommandTimeout:
        raise  # it may have arrived: `settle` looks for it
    except DlhpcError as error:
        reason = f"{error.what}{f' ({error.where})' if error.where else ''}; submit it with `dlhpc resume`"
        record(run, Event.SUBMIT_FAILED, **about, reason=reason)
        raise
    record(run, Event.SUBMITTED, **about, job_ids=ids, place=[plan.scheduler, plan.dialect])
    return ids


def _steps(scheduler: Scheduler, plan: Plan, begun: int) -> int:
    """How many attempts one submission holds."""
    if not plan.attempts_ahead or not scheduler.abilities.steps:
        return 1
    return max(1, min(plan.attempts_ahead + 1, plan.max_attempts - begun))


def submission_of(plan: Plan, run: RunDirectory) -> list[str]:
    """The command that the first submission will run, for people to see."""
    scheduler = get_scheduler(plan.scheduler, plan.dialect)
    after = look_at(plan).waits_for
    return scheduler.submission(request_of(plan, run, 1, after=after, steps=_steps(scheduler, plan, 0)))


def settle(run: RunDirectory) -> None:
    """If a submission was begun and its answer is not on record, find out what became of it, and record that.

    A failing query leaves it open: not knowing is not the same as not submitted.
    """
    try:
        plan = read_plan(run.plan)
        with submission_lock(run, patience=_PATIENCE_S):
            known = progress(read_journal(run)[0])
            if known.open_submission is None:
                return
            number = known.open_submission
            ids = get_scheduler(plan.scheduler, plan.dialect).find(tag_of(plan, number))
            about: dict[str, Any] = {
                "submission": number,
                "attempt": known.attempt,
                **({"ahead": True} if known.jobs else {}),
            }
            if ids:
                place = [plan.scheduler, plan.dialect]
                record(run, Event.SUBMITTED, **about, job_ids=ids, place=place, found_by_tag=True)
            else:
                record(
                    run,
                    Event.SUBMIT_FAILED,
                    **about,
                    reason="the submission never reached the scheduler; submit it with `dlhpc resume`",
                    lost=True,
                )
    except (CommandError, StorageError):
        return
