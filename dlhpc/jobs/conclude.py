"""The job script's last step: put the end of an attempt on record, and go on with another attempt if need be.

``python -m dlhpc.jobs.conclude RUN ATTEMPT STATUS JOB_ID`` runs inside the job. Whatever it cannot do is left in the
journal, so that `dlhpc status` tells and `dlhpc resume` mends it.

The entry `concluded` says in ``next`` what comes: ``over`` (nothing), ``waiting`` (a job that was queued ahead),
``requeued`` (this job again), ``submitted`` (a new job) or ``stuck`` (another attempt is needed, and could not be
submitted from here).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dlhpc.errors import AttemptExit, CommandError, DlhpcError
from dlhpc.jobs.submit import submit_attempt
from dlhpc.process import CommandTimeout
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Entry, Event, read_journal, record
from dlhpc.runs.plan import Plan, read_plan
from dlhpc.runs.state import RunState, meaning_of, progress
from dlhpc.runs.sweep import sweep_of
from dlhpc.schedulers.base import JobCancelled, get_scheduler

_PAUSES_S = (5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 120.0, 240.0)
"""Between requests to a scheduler that does not answer: about ten minutes, as for the restart of its controller."""
TAIL_LINES = 15
_TAIL_BYTES = 8192


def next_step(
    plan: Plan, entries: list[Entry], attempt: int, status: int | None, lost: str = ""
) -> tuple[bool, str | None]:
    """Whether to begin another attempt; if not, why the run has failed (None if it has not).

    ``status`` is None for an attempt that left no exit code, with ``lost`` as the sentence about it.
    """
    own = [entry for entry in entries if entry.attempt == attempt]
    if status == AttemptExit.FINISHED or progress(entries).ended is RunState.CANCELLED:
        return False, None
    failed_here = next((entry for entry in reversed(own) if entry.event == Event.FAILED), None)
    if failed_here is not None:
        reason = failed_here.details.get("reason")
    elif status is None:
        reason = lost
    else:
        reason = f"attempt {attempt} crashed with code {status}{meaning_of(status)}"
    if status is not None and not AttemptExit.may_be_retried(status):
        return False, str(reason)
    if attempt >= plan.max_attempts:
        why = f"; {reason}" if failed_here else ""
        return False, f"{attempt} attempts were not enough (job.max_attempts){why}"
    if status == AttemptExit.CONTINUE:
        saved = {entry.attempt for entry in entries if entry.event == Event.CHECKPOINTED}
        # A file system that stalls may cost one attempt; two in a row say that the walltime is too short.
        if not saved & {attempt, attempt - 1}:
            return False, "the attempt was too short to get anywhere; ask for a longer job.walltime"
        return True, None
    crashes = 1 + sum(
        entry.event == Event.FAILED and entry.attempt != attempt and entry.details.get("retried", False)
        for entry in entries
    )
    if crashes > plan.crash_retries:
        return False, f"{reason} (crash number {crashes}; job.crash_retries is {plan.crash_retries})"
    return True, str(reason)


def conclude(run: RunDirectory, attempt: int, status: int, job_id: str = "") -> None:
    """Record how the attempt ended and see to it that the next one comes, if there is to be one."""
    entries, _ = read_journal(run)
    plan = read_plan(run.plan)
    go_on, reason = next_step(plan, entries, attempt, status)
    if reason is not None and (go_on or not _has_said(entries, attempt, reason)):
        record_failure(run, attempt, status, reason, retried=go_on)

    def concluded(following: str) -> None:
        record(run, Event.CONCLUDED, attempt=attempt, job_id=job_id, next=following)

    ahead = progress(entries).waiting
    if not go_on:
        concluded("over")
        with contextlib.suppress(DlhpcError):  # where a job may not, `dlhpc watch` does, and each ends when it begins
            remove_superfluous(run, plan, ahead)
    elif ahead:
        concluded("waiting")
    elif plan.attempts_ahead:
        concluded("stuck")
        print("dlhpc: jobs may not submit jobs here; `dlhpc watch` or `dlhpc resume` goes on", flush=True)
    elif not _requeue(run, plan, attempt, job_id):
        _submit_next(run, attempt, concluded)


def record_failure(run: RunDirectory, attempt: int, status: int | None, reason: str, *, retried: bool) -> None:
    """Put a failure on record with the last lines of the attempt's log, so that they are seen without looking."""
    tail = log_tail(run.log(attempt))
    record(run, Event.FAILED, attempt=attempt, code=status, reason=reason, retried=retried, tail=tail)


def log_tail(path: Path) -> list[str]:
    """The last lines of a log; none if it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        return file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    return []


def _requeue(run: RunDirectory, plan: Plan, attempt: int, job_id: str) -> bool:
    """Send this job back into the queue, which keeps its id and its place in an array; false if that cannot be.

    On record first: the scheduler ends this process as soon as it has taken the request.
    """
    scheduler = get_scheduler(plan.scheduler, plan.dialect)
    if not scheduler.abilities.requeue or not job_id:
        return False
    if progress(read_journal(run)[0]).ended is RunState.CANCELLED:
        return True
    record(run, Event.CONCLUDED, attempt=attempt, job_id=job_id, next="requeued")
    try:
        _ask_until_heard(lambda: scheduler.requeue(job_id))
    except CommandTimeout:
        return True  # it may have been heard: were another submitted, there might be two. `dlhpc watch` looks after it
    except JobCancelled as error:
        record(run, Event.CANCELLED, attempt=attempt, reason=f"{error.what}; `dlhpc resume` goes on from here")
        return True
    except CommandError as error:
        record(run, Event.JOB_OVER, job_ids=[job_id])
        record(run, Event.WARNING, attempt=attempt, message=f"job {job_id} could not be requeued: {error.what}")
        return False
    print(f"dlhpc: attempt {attempt + 1} goes on in the same job {job_id}", flush=True)
    return True


def _ask_until_heard(question: Callable[[], None]) -> None:
    """Repeat what may be repeated while the scheduler does not answer; raises the last :class:`CommandTimeout`.

    A job is requeued once however often that is asked for. While nobody answers, nobody enforces the walltime either.
    """
    for pause in _PAUSES_S:
        try:
            return question()
        except CommandTimeout:
            time.sleep(pause)
    return question()


def _submit_next(run: RunDirectory, attempt: int, concluded: Callable[[str], None]) -> None:
    try:
        job_id = submit_attempt(run, attempt + 1, unless_cancelled=True)
    except DlhpcError as error:
        record(run, Event.WARNING, attempt=attempt, message=f"attempt {attempt + 1} was not submitted: {error.what}")
        concluded("stuck")
        raise
    concluded("over" if job_id is None else "submitted")
    if job_id is not None:
        print(f"dlhpc: attempt {attempt + 1} goes on as job {job_id}", flush=True)


def remove_superfluous(run: RunDirectory, plan: Plan, ahead: tuple[str, ...]) -> None:
    """Take jobs that were queued ahead out of the queue, the last first: none may start when the one before is gone."""
    if ahead:
        get_scheduler(plan.scheduler, plan.dialect).cancel(ahead[::-1])
        record(run, Event.JOB_OVER, job_ids=list(ahead))


def after_the_loss(run: RunDirectory, plan: Plan, entries: list[Entry], attempt: int) -> tuple[bool, str | None]:
    """As :func:`next_step`, for an attempt whose script left no last word; a failure is put on record."""
    status = exit_status(run, attempt)
    lost = f"attempt {attempt} was cut off (its node failed, or it was killed)"
    go_on, reason = next_step(plan, entries, attempt, status, lost)
    if reason is not None and progress(entries).reason != reason:
        record_failure(run, attempt, status, reason, retried=go_on)
    return go_on, reason


def exit_status(run: RunDirectory, attempt: int) -> int | None:
    """What the attempt's script left; None if it was killed before it could."""
    with contextlib.suppress(OSError, ValueError):
        return int(run.exit_file(attempt).read_text())
    return None


def _has_said(entries: list[Entry], attempt: int, reason: str) -> bool:
    return any(
        entry.event == Event.FAILED
        and entry.attempt == attempt
        and entry.details.get("reason") == reason
        and "tail" in entry.details
        for entry in entries
    )


def main() -> int:
    """Give the exit code of ``python -m dlhpc.jobs.conclude``; nothing reads it but the log."""
    run = RunDirectory(Path(sys.argv[1]))
    code = 0
    try:
        conclude(run, int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "")
    except DlhpcError as error:
        print(f"dlhpc: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    if sweep_of(run) is not None:
        from dlhpc.jobs.sweep_follow import go_on_after

        go_on_after(run)  # there is room in the queue for another member now
    return code


if __name__ == "__main__":
    sys.exit(main())
