"""The job script's last step: put the end of an attempt on record, and go on with another attempt if need be.

``python -m dlhpc.jobs.conclude RUN ATTEMPT STATUS`` runs inside the job. Whatever it cannot do is left in the journal,
so that `dlhpc status` tells and `dlhpc resume` mends it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dlhpc.errors import AttemptExit, DlhpcError
from dlhpc.jobs.submit import submit_attempt
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Entry, Event, read_journal, record
from dlhpc.runs.plan import Plan, read_plan
from dlhpc.runs.state import RunState, meaning_of, progress


def next_step(plan: Plan, entries: list[Entry], attempt: int, status: int) -> tuple[bool, str | None]:
    """Whether to submit another attempt; if not, why the run has failed (None if it has not)."""
    own = [entry for entry in entries if entry.attempt == attempt]
    if status == AttemptExit.FINISHED or progress(entries).ended is RunState.CANCELLED:
        return False, None
    failed_here = next((entry for entry in reversed(own) if entry.event == Event.FAILED), None)
    if failed_here is not None:
        reason = failed_here.details.get("reason")
    else:
        reason = f"attempt {attempt} crashed with code {status}{meaning_of(status)}"
    if not AttemptExit.may_be_retried(status):
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


def conclude(run: RunDirectory, attempt: int, status: int) -> None:
    """Record how the attempt ended and submit the next one if there is to be one."""
    entries, _ = read_journal(run)
    plan = read_plan(run.plan)
    go_on, reason = next_step(plan, entries, attempt, status)
    if reason is not None and (go_on or not _has_said(entries, attempt, reason)):
        record(run, Event.FAILED, attempt=attempt, code=status, reason=reason, retried=go_on)
    if not go_on:
        return
    try:
        job_id = submit_attempt(run, attempt + 1, unless_cancelled=True)
    except DlhpcError as error:
        record(run, Event.WARNING, attempt=attempt, message=f"attempt {attempt + 1} was not submitted: {error.what}")
        raise
    if job_id is not None:
        print(f"dlhpc: attempt {attempt + 1} goes on as job {job_id}", flush=True)


def _has_said(entries: list[Entry], attempt: int, reason: str) -> bool:
    return any(
        entry.event == Event.FAILED and entry.attempt == attempt and entry.details.get("reason") == reason
        for entry in entries
    )


def main() -> int:
    """Give the exit code of ``python -m dlhpc.jobs.conclude``; nothing reads it but the log."""
    run = RunDirectory(Path(sys.argv[1]))
    try:
        conclude(run, int(sys.argv[2]), int(sys.argv[3]))
    except DlhpcError as error:
        print(f"dlhpc: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
