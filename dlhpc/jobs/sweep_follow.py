"""Seeing a sweep through: submitting members as there is room for them, and all that is done to a sweep as a whole.

Who ends a job, asks for the status or waits for the sweep calls :func:`go_on`; there is no daemon. Members are
submitted by one process at a time, which holds the sweep's lock. Whoever finds it taken leaves a mark, and the holder
looks again.
"""

from __future__ import annotations

import os
import sys

from dlhpc.errors import DlhpcError, UserError
from dlhpc.files import storage_errors
from dlhpc.jobs.follow import RunStatus, cancel, look_after, resume, status, statuses
from dlhpc.jobs.search import grow
from dlhpc.jobs.submit import submission_lock, submit_attempt
from dlhpc.jobs.sweep_status import SweepStatus, sweep_status
from dlhpc.jobs.sweep_submit import settle_locked, submit_portion
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import read_plan
from dlhpc.runs.state import Progress, RunState, progress
from dlhpc.runs.sweep import (
    SweepDirectory,
    SweepEvent,
    SweepProgress,
    SweepRecord,
    index_of,
    log,
    read_progress,
    read_record,
    sweep_lock,
    sweep_of,
    to_ranges,
)
from dlhpc.schedulers.base import get_scheduler

# --- Submitting as there is room --------------------------------------------------------------------------------


def start(sweep: SweepDirectory) -> list[str]:
    """Submit the first members of a new sweep, as many as there is room for; gives the ids of the jobs."""
    return _go_on(sweep, at_first=True)


def go_on(sweep: SweepDirectory) -> list[str]:
    """Submit members for which there is room; gives the ids of the jobs. Somebody else's sweep is left alone, and one
    of which nothing was ever submitted (`dlhpc submit` was killed, or refused): that waits for `dlhpc resume`.

    Raises what submitting raises; what was not submitted then waits for the next call.
    """
    if _is_foreign(sweep) or not _wants_something(sweep):
        return []
    return _go_on(sweep)


def _go_on(sweep: SweepDirectory, *, at_first: bool = False) -> list[str]:
    with storage_errors(sweep.again):
        sweep.again.touch()
    ids: list[str] = []
    while sweep.again.exists():
        with sweep_lock(sweep, wait=False) as had:
            if not had:
                break  # the holder will see the mark
            with storage_errors(sweep.again):
                sweep.again.unlink(missing_ok=True)
            ids += _submit_some(sweep, at_first)
    return ids


def go_on_after(run: RunDirectory) -> None:
    """:func:`go_on` at the end of a job of ``run``, if that is a member of a sweep. Failing is no fault of the job."""
    sweep = sweep_of(run)
    if sweep is None or not sweep.exists():
        return
    try:
        if read_plan(run.plan).attempts_ahead:
            return  # a job may not submit jobs here: `dlhpc status` and `dlhpc watch` do
        for job_id in go_on(sweep):
            print(f"dlhpc: the sweep goes on with job {job_id}", flush=True)
    except DlhpcError as error:
        print(f"dlhpc: no further member of the sweep was submitted: {error}", file=sys.stderr, flush=True)


def _wants_something(sweep: SweepDirectory) -> bool:
    """Whether a member may have to be submitted, by the sweep's own log alone."""
    known = read_progress(sweep)
    if known.open is not None:
        return True
    if not known.begun or known.cancelled:
        return False
    if known.again or len(known.submitted) < len(read_record(sweep).members):
        return True
    return sweep.is_search and known.searched is None


def _submit_some(sweep: SweepDirectory, at_first: bool) -> list[str]:
    """Under the lock: as many members as there is room for."""
    decided = read_record(sweep)
    settle_locked(sweep)
    known = read_progress(sweep)
    submitted = known.submitted
    held = decided.hold if known.held is None else known.held
    if known.open is not None or known.cancelled or (held and submitted) or not (known.begun or at_first):
        return []
    if sweep.is_search and known.begun and known.searched is None:
        decided = grow(sweep, decided, known)
    there = [index_of(run.name) for run in sweep.found_members()]
    fresh = [index for index in there if index not in submitted]
    again = [index for index, count in known.again.items() if _to_resume(sweep.member(index, decided.width), count)]
    if not fresh and not again:
        return []
    in_queue, over = _in_queue(sweep, decided, known)
    if over:
        log(sweep, SweepEvent.TAKEN, over=to_ranges(sorted(over)))
    room = len(fresh) + len(again) if decided.cap is None else decided.cap - in_queue
    ids: list[str] = []
    not_yet: UserError | None = None
    for index in again[: max(0, room)]:
        try:
            ids.append(resume(sweep.member(index, decided.width)))
        except UserError as error:  # as one whose job has not quite ended; it must not hold up the others
            not_yet = error
            continue
        log(sweep, SweepEvent.TAKEN, members=[[index, index]])
        room -= 1
    if not_yet is not None and not ids and not fresh:
        raise not_yet
    if decided.portion > 1 and decided.running is not None and in_queue + len(ids):
        return ids  # the limit on running members is a property of one array
    while fresh and room > 0:
        size = min(decided.portion, room, len(fresh))
        if others := _submitted_alone(sweep, decided, fresh[:size]):
            fresh = [index for index in fresh if index not in others]
            room -= len(others)
            continue
        if in_queue and size < len(fresh) and decided.cap is not None and room < _worth_an_array(decided):
            break  # a few large arrays rather than many small ones
        if size < decided.least_portion or decided.portion == 1:
            ids.append(_submit_alone(sweep, decided, fresh[0], release=decided.hold and not held))
            size = 1
        else:
            ids.append(submit_portion(sweep, decided, fresh[:size], held=held))
        fresh, room = fresh[size:], room - size
        if decided.running is not None and decided.portion > 1:
            break
    return ids


def _worth_an_array(decided: SweepRecord) -> int:
    return 1 if decided.portion == 1 or decided.cap is None else max(2, decided.cap // 4)


def _submitted_alone(sweep: SweepDirectory, decided: SweepRecord, fresh: list[int]) -> set[int]:
    """Those of ``fresh`` that somebody has submitted by their own name, which is put on record."""
    members = {index: sweep.member(index, decided.width) for index in fresh}
    alone = {index for index, run in members.items() if not (_is_new(run) or _is_untouched(_known(run)))}
    if alone:
        log(sweep, SweepEvent.TAKEN, members=to_ranges(sorted(alone)))
    return alone


def _known(run: RunDirectory) -> Progress:
    return progress(read_journal(run)[0])


def _is_new(run: RunDirectory) -> bool:
    """Whether the journal says no more than that the run was made; quickly, as of all members of a new sweep."""
    with storage_errors(run.journal, "read"):
        return run.journal.read_bytes().count(b"\n") <= 1


def _is_untouched(known: Progress) -> bool:
    """Never submitted, or refused whenever it was."""
    submitted = known.jobs or known.begun or known.open_submission is not None or known.last_job
    return not submitted and known.ended in (None, RunState.NOT_SUBMITTED)


def _to_resume(run: RunDirectory, submissions: int) -> bool:
    """Whether a member that is to be submitted anew has not been, and has not begun again by itself."""
    known = _known(run)
    refused = known.ended is RunState.NOT_SUBMITTED and not known.jobs
    return (known.submissions == submissions or refused) and status(run).state.is_over


def _in_queue(sweep: SweepDirectory, decided: SweepRecord, known: SweepProgress) -> tuple[int, set[int]]:
    """How many members wait or run, and which are newly known to be over."""
    if decided.cap is None and decided.running is None:
        return 0, set()
    asked = sorted(known.submitted - known.over - known.again.keys())
    found = statuses([sweep.member(index, decided.width) for index in asked])
    over = {index for index, one in zip(asked, found) if one.state in (RunState.FINISHED, RunState.CANCELLED)}
    return sum(not one.state.is_over for one in found), over


def _submit_alone(sweep: SweepDirectory, decided: SweepRecord, index: int, *, release: bool) -> str:
    """Submit a member's own job script."""
    run = sweep.member(index, decided.width)
    job_id = submit_attempt(run, 1)
    assert job_id is not None
    log(sweep, SweepEvent.TAKEN, members=[[index, index]])
    if release:
        get_scheduler(decided.scheduler, decided.dialect).release([job_id])
    return job_id


# --- What people do to a sweep ----------------------------------------------------------------------------------


def look_after_sweep(sweep: SweepDirectory, now: SweepStatus) -> bool:
    """Go on with members whose jobs were killed, and submit those that wait; true if something was submitted.

    Raises what submitting raises; a member that cannot go on (:class:`UserError`) does not keep the others from it.
    """
    went_on = False
    refused: UserError | None = None
    for one in now.members:
        if one.state is RunState.FAILED:
            try:
                went_on = look_after(RunDirectory(sweep.path / one.run), one) or went_on
            except UserError as error:
                refused = refused or error
    went_on = bool(go_on(sweep)) or went_on
    if refused is not None:
        raise refused
    return went_on


def cancel_sweep(sweep: SweepDirectory) -> SweepStatus:
    """Cancel every member that is not over; none is submitted any more."""
    _refuse_foreign(sweep, "cancel")
    decided = read_record(sweep)
    jobs: list[str] = []
    with sweep_lock(sweep):
        _settle_or_refuse(sweep)
        log(sweep, SweepEvent.CANCELLED)
        members = sweep.found_members()
        for run, now in zip(members, statuses(members)):
            if now.state.is_over and now.state is not RunState.CANCELLED:
                continue
            with submission_lock(run):
                known = _known(run)
                if known.ended is RunState.FINISHED:
                    continue
                if known.ended is not RunState.CANCELLED:
                    record(run, Event.CANCELLED, attempt=known.attempt)
                jobs += known.jobs
    if jobs:
        # The last first: were the first ended before the others, the next ones would start.
        get_scheduler(decided.scheduler, decided.dialect).cancel(tuple(reversed(jobs)))
    return sweep_status(sweep)


def resume_sweep(sweep: SweepDirectory) -> list[str]:
    """Submit every member anew that failed or was cancelled, and those that were never submitted; gives the jobs."""
    _refuse_foreign(sweep, "resume")
    with sweep_lock(sweep):
        _settle_or_refuse(sweep)
        members = sweep.found_members()
        again: list[list[int]] = []
        idle = 0
        for run, now in zip(members, statuses(members)):
            if now.state in (RunState.FAILED, RunState.CANCELLED, RunState.NOT_SUBMITTED):
                known = _known(run)
                if _is_untouched(known):
                    idle += 1
                else:
                    again.append([index_of(run.name), known.submissions])
        known_now = read_progress(sweep)
        goes_on = sweep.is_search and known_now.searched is None and known_now.cancelled
        if not again and not idle and not goes_on:
            raise UserError(
                f"no member of {sweep.name} failed or was cancelled", remedy=f"See `dlhpc status {sweep.name}`."
            )
        if known_now.cancelled:  # what had been held was cancelled: nothing is left that could be released
            log(sweep, SweepEvent.RELEASED)
        log(sweep, SweepEvent.RESUMED, again=again)
    return go_on(sweep)


def resume_member(run: RunDirectory) -> str:
    """:func:`dlhpc.jobs.follow.resume`, with the sweep kept from submitting the same member at the same moment."""
    sweep = sweep_of(run)
    if sweep is None or not sweep.exists():
        return resume(run)
    with sweep_lock(sweep):
        _settle_or_refuse(sweep)
        job_id = resume(run)
        log(sweep, SweepEvent.TAKEN, members=[[index_of(run.name)] * 2])
    return job_id


def cancel_member(run: RunDirectory) -> RunStatus:
    """:func:`dlhpc.jobs.follow.cancel`; a member that waits for its turn loses it."""
    sweep = sweep_of(run)
    if sweep is None or not sweep.exists() or not _is_untouched(_known(run)):
        return cancel(run)
    _refuse_foreign(sweep, "cancel")
    with sweep_lock(sweep):
        _settle_or_refuse(sweep)
        if _is_untouched(_known(run)):
            with submission_lock(run):
                record(run, Event.CANCELLED, attempt=1)
            log(sweep, SweepEvent.TAKEN, members=[[index_of(run.name)] * 2])
    return cancel(run)


def hold_sweep(sweep: SweepDirectory) -> int:
    """Keep waiting members from starting, and submit no more; gives how many jobs are held."""
    return _hold_or_release(sweep, "hold")


def release_sweep(sweep: SweepDirectory) -> int:
    """Let held members start; gives how many."""
    number = _hold_or_release(sweep, "release")
    go_on(sweep)
    return number


def _hold_or_release(sweep: SweepDirectory, what: str) -> int:
    _refuse_foreign(sweep, what)
    decided = read_record(sweep)
    scheduler = get_scheduler(decided.scheduler, decided.dialect)
    with sweep_lock(sweep):
        _settle_or_refuse(sweep)
        # A member that was cancelled has no job left that waits, though none of its jobs has said so.
        jobs = [job for run in sweep.found_members() if not (known := _known(run)).final for job in known.waiting]
        log(sweep, SweepEvent.HELD if what == "hold" else SweepEvent.RELEASED)
        if jobs and scheduler.abilities.hold:
            (scheduler.hold if what == "hold" else scheduler.release)(jobs)
            return len(jobs)
    return 0


def _settle_or_refuse(sweep: SweepDirectory) -> None:
    """Under the lock: nothing can be done to members of which it is not known whether they were submitted."""
    settle_locked(sweep)
    if read_progress(sweep).open is not None:
        raise UserError(
            f"whether the last members of {sweep.name} were submitted is not known: the scheduler does not answer",
            remedy="Try again in a moment.",
        )


def _is_foreign(sweep: SweepDirectory) -> bool:
    with storage_errors(sweep.record, "read"):
        return sweep.record.stat().st_uid != os.geteuid()


def _refuse_foreign(sweep: SweepDirectory, what: str) -> None:
    if _is_foreign(sweep):
        raise UserError(f"{sweep.name} belongs to somebody else", remedy=f"Only its owner can {what} it.")
