"""Crash-safe submission of a sweep's members in arrays: as :mod:`dlhpc.jobs.submit` does for one run.

The intention is in the sweep's log before the scheduler is called, the answer right after. An array whose answer was
lost is found again by its tag.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlhpc import resources
from dlhpc.errors import CommandError, DlhpcError, StorageError, UserError
from dlhpc.files import replace_text
from dlhpc.jobs.header import header_of
from dlhpc.jobs.prerequisites import look_at
from dlhpc.jobs.render import job_templates, refuse_control
from dlhpc.jobs.submit import settle
from dlhpc.process import CommandTimeout
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import Plan, read_plan
from dlhpc.runs.sweep import (
    SweepDirectory,
    SweepEvent,
    SweepRecord,
    index_of,
    log,
    read_progress,
    read_record,
    sweep_lock,
    sweep_of,
    to_ranges,
)
from dlhpc.schedulers.base import Header, JobRequest, get_scheduler


def array_tag(record: SweepRecord, portion: int) -> str:
    """The array's name: what the scheduler carries of it, and finds it by."""
    return f"{record.name}-{record.sweep_id}-{portion}"


def array_header(plan: Plan, sweep: SweepDirectory, record: SweepRecord, tasks: int) -> Header:
    """What an array of so many tasks asks for; all members ask for the same, so ``plan`` is any member's."""
    return header_of(plan, RunDirectory(sweep.path), array=tuple(range(tasks)), running=record.running)


def array_script(plan: Plan, sweep: SweepDirectory, record: SweepRecord, members: Sequence[int]) -> str:
    """The job script of an array whose task n is the n-th of ``members``."""
    header = array_header(plan, sweep, record, len(members))
    directives = get_scheduler(record.scheduler, record.dialect).directives(header)
    refuse_control(directives)
    follow_each_other = members[-1] - members[0] == len(members) - 1
    return (
        job_templates((resources.folder("jobtemplates"),))
        .get_template("array.sh.j2")
        .render(
            plan=plan,
            sweep=sweep,
            directives=directives,
            members=members,
            offset=members[0] if follow_each_other else None,
            width=record.width,
        )
    )


def submit_portion(sweep: SweepDirectory, record: SweepRecord, members: Sequence[int], *, held: bool) -> str:
    """Submit these members as one array, in one call, and give its id. Under the sweep's lock.

    Raises what the scheduler raises; a refusal is on record as such, a lost answer stays open until it is looked for.
    """
    number = max(read_progress(sweep).portions, default=0) + 1
    plan = read_plan(sweep.member(members[0], record.width).plan)
    waiting = look_at(plan)
    if waiting.failed is not None:
        raise UserError(waiting.failed, remedy="Let that run finish first, or remove job.after from the spec.")
    script = sweep.script(number)
    replace_text(script, array_script(plan, sweep, record, members))
    scheduler = get_scheduler(record.scheduler, record.dialect)
    request = JobRequest(
        tag=array_tag(record, number),
        script=script,
        header=array_header(plan, sweep, record, len(members)),
        after=waiting.waits_for,
        held=held,
        kill_grace_seconds=plan.kill_grace_seconds,
    )
    log(sweep, SweepEvent.SUBMITTING, portion=number, members=to_ranges(members))
    try:
        array_id = scheduler.submit(request)[0]
    except CommandTimeout:
        raise  # it may have arrived: `settle_sweep` looks for it
    except DlhpcError as error:
        log(sweep, SweepEvent.SUBMIT_FAILED, portion=number, reason=f"{error.what}; submit it with `dlhpc resume`")
        raise
    _log_submitted(sweep, record, number, array_id, len(members))
    return array_id


def _log_submitted(
    sweep: SweepDirectory, record: SweepRecord, number: int, array_id: str, tasks: int, *, found: bool = False
) -> None:
    ids = get_scheduler(record.scheduler, record.dialect).member_ids(array_id, range(tasks))
    about = {"found_by_tag": True} if found else {}
    log(sweep, SweepEvent.SUBMITTED, portion=number, array_id=array_id, job_ids=ids, **about)


def settle_sweep(sweep: SweepDirectory) -> None:
    """As :func:`dlhpc.jobs.submit.settle` for an array: find out what became of one whose answer is not on record."""
    if read_progress(sweep).open is None:
        return
    try:
        with sweep_lock(sweep):
            settle_locked(sweep)
    except StorageError:
        return


def settle_locked(sweep: SweepDirectory) -> None:
    """As :func:`settle_sweep`, under the sweep's lock."""
    portion = read_progress(sweep).open
    if portion is None:
        return
    try:
        record = read_record(sweep)
        found = get_scheduler(record.scheduler, record.dialect).find(array_tag(record, portion.number))
    except (CommandError, StorageError):
        return
    if found:
        _log_submitted(sweep, record, portion.number, found[0], len(portion.members), found=True)
    else:
        reason = "the submission never reached the scheduler; submit it with `dlhpc resume`"
        log(sweep, SweepEvent.SUBMIT_FAILED, portion=portion.number, reason=reason)


def settle_each(run: RunDirectory, tried: set[SweepDirectory]) -> None:
    """:func:`dlhpc.jobs.submit.settle` for any run. A member of an array that is open has no submission of its own:
    the array is looked for, once for all its members (``tried`` remembers).
    """
    sweep = sweep_of(run)
    if sweep is not None and (portion := _open_of(sweep, run)) is not None:
        if sweep not in tried:
            tried.add(sweep)
            settle_sweep(sweep)
            portion = _open_of(sweep, run)
        if portion is not None:
            return
    settle(run)


def _open_of(sweep: SweepDirectory, run: RunDirectory) -> object | None:
    if not sweep.exists():
        return None
    portion = read_progress(sweep).open
    return portion if portion is not None and index_of(run.name) in portion.members else None
