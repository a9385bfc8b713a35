"""The job script's first step: decide which attempt this job is, or that nothing is left to do.

``python -m dlhpc.jobs.begin RUN JOB_ID`` runs inside the job and prints ``ATTEMPT DEADLINE`` (the deadline in whole
seconds since 1970), or nothing if the job is to end at once. What it says besides goes to standard error.

An attempt has its number from the order in which jobs begin, not from their submission: a scheduler may start one job
twice (after the loss of a node), and jobs that were queued ahead may never begin.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from dlhpc.errors import AttemptExit, DlhpcError, UserError
from dlhpc.files import storage_errors
from dlhpc.jobs.conclude import after_the_loss, exit_status, record_failure
from dlhpc.jobs.prerequisites import look_at
from dlhpc.jobs.submit import submit_attempt
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import Plan, read_plan
from dlhpc.runs.state import Progress, progress, same_job
from dlhpc.schedulers.base import JobState, get_scheduler

_PAUSES_S = (2.0, 5.0, 8.0)
"""Between questions whether another job of the run is still at work."""


def begin(run: RunDirectory, job_id: str) -> int | None:
    """Give the number of the attempt that this job now is, or None if it is to end at once."""
    plan = read_plan(run.plan)
    if not _may_begin(run, plan, job_id):
        return None
    known = progress(read_journal(run)[0])
    attempt = known.begun + 1
    while not _claim(run, attempt, job_id):
        attempt += 1
    record(run, Event.BEGUN, attempt=attempt, job_id=job_id, host=socket.gethostname())
    return attempt


def _may_begin(run: RunDirectory, plan: Plan, job_id: str) -> bool:
    entries, _ = read_journal(run)
    known = progress(entries)
    if known.final:
        _say(f"{run.name} is {known.ended.value if known.ended else 'over'} already")
        return False
    if known.current is not None and known.begun:
        if not same_job(known.current, job_id) and _still_runs(run, plan, known):
            message = f"job {known.current} of this run is training; job {job_id} is one too many, and leaves"
            record(run, Event.WARNING, message=message)
            _say(message)
            return False
        # The attempt before has left no last word: its node went down, or something killed it.
        go_on, reason = after_the_loss(run, plan, entries, known.begun)
        if not go_on:
            _say(reason or f"{run.name} is over already")
            return False
    return _prerequisites_are_met(run, plan, job_id)


def _still_runs(run: RunDirectory, plan: Plan, known: Progress) -> bool:
    """Whether the job that began before this one is at work; a submission without an answer may have made two.

    A scheduler that has just ended a job may say for a moment that it runs. One that cannot be asked from here is
    believed to start jobs in their order.
    """
    if exit_status(run, known.begun) is not None or known.current is None:
        return False
    scheduler = get_scheduler(plan.scheduler, plan.dialect)
    for pause in (*_PAUSES_S, None):
        try:
            state = scheduler.query([known.current])[known.current].state
        except DlhpcError:
            return False
        if state is not JobState.RUNNING:
            return False
        if pause is not None:
            time.sleep(pause)
    return True


def _prerequisites_are_met(run: RunDirectory, plan: Plan, job_id: str) -> bool:
    """Whether the runs that must finish first have. A job of theirs may have ended and another gone on."""
    state = look_at(plan)
    if state.failed:
        record_failure(run, 0, AttemptExit.BAD_CONFIGURATION, state.failed, retried=False)
        record(run, Event.JOB_OVER, job_ids=[job_id])
        _say(state.failed)
        return False
    if not state.waits_for:
        return True
    record(run, Event.JOB_OVER, job_ids=[job_id])
    if plan.attempts_ahead:
        # With a code other than 0 the next one that was queued ahead starts, and looks again.
        known = progress(read_journal(run)[0])
        what, remedy = (
            f"{state.names} has not finished yet, and a job cannot wait again here",
            "`dlhpc resume` submits it",
        )
        record(
            run, Event.SUBMIT_FAILED, submission=known.submissions, attempt=known.attempt, reason=f"{what}; {remedy}"
        )
        raise UserError(what, remedy=f"When that run has finished, {remedy}.")
    _say(f"{state.names} has not finished yet; waiting again")
    submit_attempt(run, progress(read_journal(run)[0]).begun + 1, unless_cancelled=True)
    return False


def _claim(run: RunDirectory, attempt: int, job_id: str) -> bool:
    """Take the number; false if another job has it."""
    path = run.begun_file(attempt)
    with storage_errors(path):
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(f"{job_id}\n")
        except FileExistsError:
            return False
    return True


def _deadline(plan: Plan, now: float) -> int:
    """End of the walltime, or the earlier end that the scheduler names."""
    ends = [now + plan.walltime_seconds]
    told = os.environ.get("SLURM_JOB_END_TIME", "")
    if told.isdecimal():
        ends.append(float(told))
    return int(min(ends))


def _say(sentence: str) -> None:
    print(f"dlhpc: {sentence}", file=sys.stderr, flush=True)


def main() -> int:
    """Give the exit code of ``python -m dlhpc.jobs.begin``."""
    now = time.time()
    run = RunDirectory(Path(sys.argv[1]))
    try:
        attempt = begin(run, sys.argv[2])
        if attempt is not None:
            print(attempt, _deadline(read_plan(run.plan), now))
    except DlhpcError as error:
        _say(str(error))
        return int(error.attempt_exit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
