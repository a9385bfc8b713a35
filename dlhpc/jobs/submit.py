"""Crash-safe submission: the intention is on disk before the scheduler is called, the answer right after.

A process may die between any two lines here. What it leaves is then either a run that was not submitted, or a job
that is found again by its tag; never two jobs for one attempt.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dlhpc.errors import CommandError, DlhpcError, StorageError, UserError
from dlhpc.files import current_umask, replace_text, storage_errors
from dlhpc.process import CommandTimeout
from dlhpc.runs.directory import RunDirectory, create_run
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import Plan, read_plan
from dlhpc.runs.state import RunState, progress
from dlhpc.schedulers.base import JobRequest, get_scheduler

if TYPE_CHECKING:
    from dlhpc.jobs.plan import Planned


def create(planned: Planned, runs: Path) -> RunDirectory:
    """Make the run directory with all that was decided; nothing is submitted yet."""
    from dlhpc.jobs.render import render

    def fill(hidden: RunDirectory, final: RunDirectory) -> None:
        replace_text(hidden.spec, planned.document.text())
        planned.plan.write(hidden.plan)
        planned.catalog.write(hidden.catalog)
        replace_text(hidden.script, render(planned.plan, final))
        with storage_errors(hidden.script):
            hidden.script.chmod(0o777 & ~current_umask())
        record(hidden, Event.CREATED, run_id=planned.plan.run_id, version=planned.plan.dlhpc_version)

    return create_run(runs, planned.spec.name, fill)


def tag_of(plan: Plan, attempt: int) -> str:
    """What the scheduler carries for this attempt."""
    return f"dlhpc-{plan.run_id}-{attempt}"


@contextlib.contextmanager
def submission_lock(run: RunDirectory) -> Iterator[None]:
    """One submission of a run at a time, among all processes and nodes that share the storage."""
    with storage_errors(run.submission_lock, "lock"):
        descriptor = os.open(run.submission_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with storage_errors(run.submission_lock, "lock"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def submit_attempt(run: RunDirectory, attempt: int, *, unless_cancelled: bool = False) -> str | None:
    """Submit attempt number ``attempt`` (from 1) and give the job's id.

    With ``unless_cancelled`` (a job that goes on by itself) nothing is done, and None given, if the user has
    cancelled the run meanwhile.

    Raises :class:`UserError` if it is on record already (somebody was quicker), and what the scheduler raises; a
    refused submission is on record as such, one whose answer was lost stays open until it is looked for.
    """
    plan = read_plan(run.plan)
    scheduler = get_scheduler(plan.scheduler)
    with submission_lock(run):
        known = progress(read_journal(run)[0])
        if unless_cancelled and known.ended is RunState.CANCELLED:
            return None
        again = known.attempt == attempt and known.job_id is None and not known.submitting
        if attempt != known.attempt + 1 and not again:
            raise UserError(
                f"attempt {attempt} of {run.name} is submitted already", remedy="See `dlhpc status`; nothing was done."
            )
        record(run, Event.SUBMITTING, attempt=attempt)
        try:
            job_id = scheduler.submit(
                JobRequest(
                    tag=tag_of(plan, attempt),
                    name=run.name,
                    script=run.script,
                    log=run.log(attempt),
                    arguments=(str(attempt),),
                    cores=plan.ranks_per_node * plan.cores_per_rank,
                    gpus=plan.ranks_per_node * plan.gpus_per_rank,
                    walltime_seconds=plan.walltime_seconds,
                    kill_grace_seconds=plan.kill_grace_seconds,
                )
            )
        except CommandTimeout:
            raise  # it may have arrived: `settle` looks for it
        except DlhpcError as error:
            reason = f"{error.what}{f' ({error.where})' if error.where else ''}; submit it with `dlhpc resume`"
            record(run, Event.SUBMIT_FAILED, attempt=attempt, reason=reason)
            raise
        record(run, Event.SUBMITTED, attempt=attempt, job_id=job_id)
    return job_id


def settle(run: RunDirectory) -> None:
    """If a submission was begun and its answer is not on record, find out what became of it, and record that.

    A failing query leaves it open: not knowing is not the same as not submitted.
    """
    try:
        plan = read_plan(run.plan)
        with submission_lock(run):
            known = progress(read_journal(run)[0])
            if not known.submitting:
                return
            job_id = get_scheduler(plan.scheduler).find(tag_of(plan, known.attempt))
            if job_id is None:
                record(
                    run,
                    Event.SUBMIT_FAILED,
                    attempt=known.attempt,
                    reason="the submission never reached the scheduler; submit it with `dlhpc resume`",
                )
            else:
                record(run, Event.SUBMITTED, attempt=known.attempt, job_id=job_id, found_by_tag=True)
    except (CommandError, StorageError):
        return
