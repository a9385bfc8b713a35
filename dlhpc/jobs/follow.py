"""Following runs: where they stand (one question to each scheduler), resuming, cancelling, holding them."""

from __future__ import annotations

import functools
import os
import pwd
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlhpc.errors import CommandError, DlhpcError, StorageError, UserError
from dlhpc.files import storage_errors
from dlhpc.jobs.conclude import after_the_loss, remove_superfluous
from dlhpc.jobs.header import tag_of
from dlhpc.jobs.submit import queue_ahead, submission_lock, submit_attempt
from dlhpc.jobs.sweep_submit import settle_each
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import Plan, read_plan
from dlhpc.runs.state import JobView, Progress, RunState, needs_scheduler, progress, state_of
from dlhpc.runs.sweep import SweepDirectory, SweepProgress, read_progress, sweep_of
from dlhpc.schedulers.base import JobState, JobStatus, Scheduler, get_scheduler, is_private


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
    unknown_since: float | None = None
    """If the state is unknown: when the run was last heard of."""
    tail: tuple[str, ...] = ()
    """Of a failed run: the last lines of its log."""
    damaged: int = 0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state.value}


def statuses(runs: Sequence[RunDirectory]) -> list[RunStatus]:
    """Where these runs stand. A run that cannot be read is ``unknown``, the others are not affected."""
    return _examine(runs)[0]


def _examine(runs: Sequence[RunDirectory]) -> tuple[list[RunStatus], dict[int, dict[str, JobView]]]:
    """Where these runs stand, and what the schedulers said of their jobs, by the run's place in the list."""
    known: dict[int, tuple[Progress, int]] = {}
    unreadable: dict[int, str] = {}
    asked: dict[tuple[str, str | None], dict[int, tuple[str, ...]]] = {}
    views: dict[int, dict[str, JobView]] = {}
    tried: set[SweepDirectory] = set()
    places: dict[Path, tuple[str, str | None]] = {}
    sweep_now = functools.cache(read_progress)
    for index, run in enumerate(runs):
        try:
            now, damaged = _read_progress(run, sweep_now)
            if now.open_submission is not None and _foreign_owner(run) is None:
                settle_each(run, tried)
                sweep_now.cache_clear()
                now, damaged = _read_progress(run, sweep_now)
            known[index] = (now, damaged)
            finished = now.ended is RunState.FINISHED
            if not needs_scheduler(now, script_ended=finished and run.exit_file(now.begun).exists()):
                continue
            scheduler, dialect = now.place or _place(run, places)
            if is_private(scheduler) and (owner := _foreign_owner(run)) is not None:
                view = JobView("unknown", reason=f"its job is in the queue of {owner}, who can ask")
                views[index] = dict.fromkeys(now.jobs, view)
            else:
                asked.setdefault((scheduler, dialect), {})[index] = now.jobs
        except DlhpcError as error:
            unreadable[index] = error.what
    for (name, dialect), wanted in asked.items():
        answers = _ask(name, dialect, [job for jobs in wanted.values() for job in jobs])
        views.update((index, {job: answers[job] for job in jobs}) for index, jobs in wanted.items())
    found = [
        _unreadable(run, unreadable[index])
        if index in unreadable
        else _status(run, *known[index], views.get(index, {}))
        for index, run in enumerate(runs)
    ]
    return found, views


def _place(run: RunDirectory, known: dict[Path, tuple[str, str | None]]) -> tuple[str, str | None]:
    """Scheduler and dialect of a run; all members of a sweep have the same, and only one plan is read for them."""
    if (place := known.get(run.path.parent)) is not None:
        return place
    plan = read_plan(run.plan)
    place = (plan.scheduler, plan.dialect)
    if (sweep := sweep_of(run)) is not None and sweep.exists():
        known[sweep.path] = place
    return place


def status(run: RunDirectory) -> RunStatus:
    """Where one run stands."""
    return statuses([run])[0]


class Watch:
    """One run looked at again and again: the journal every time, the scheduler ever more seldom.

    Pauses between questions to the scheduler (seconds) grow from ``shortest`` to ``longest`` by a third each time, and
    are short again when a job begins, ends or is submitted. What a run writes into its journal is seen at once.
    """

    def __init__(self, run: RunDirectory, *, shortest: float = 1.0, longest: float = 60.0) -> None:
        self.run = run
        self.shortest = shortest
        self.longest = longest
        self._pause = shortest
        self._next = 0.0
        self._views: dict[str, JobView] = {}
        self._before: tuple[object, ...] = ()

    def look(self) -> RunStatus:
        """Where the run stands now."""
        known, damaged = _read_progress(self.run)
        here = (known.jobs, known.ended, known.open_submission, known.current)
        if here == self._before and time.monotonic() < self._next and self._views:
            return _status(self.run, known, damaged, self._views)
        self._pause = self.shortest if here != self._before else min(self.longest, self._pause * 4 / 3)
        self._before = here
        (now,), views = _examine([self.run])
        self._views = views.get(0, {})
        self._next = time.monotonic() + self._pause
        return now


def _read_progress(
    run: RunDirectory, sweep_now: Callable[[SweepDirectory], SweepProgress] = read_progress
) -> tuple[Progress, int]:
    """What the journal says now, and how many of its lines are damaged."""
    entries, damaged = read_journal(run, sweep_now)
    return progress(entries), damaged


def _ask(name: str, dialect: str | None, jobs: Sequence[str]) -> dict[str, JobView]:
    """What the scheduler says of these jobs; nothing is certain of any if it does not answer."""
    try:
        answers = get_scheduler(name, dialect).query(jobs)
    except (CommandError, StorageError, UserError) as error:
        return dict.fromkeys(jobs, JobView("unknown", reason=error.what))
    return {job: _view(answers.get(job)) for job in jobs}


def _foreign_owner(run: RunDirectory) -> str | None:
    """Who submitted this run, if that is somebody else."""
    with storage_errors(run.journal, "read"):
        uid = run.journal.stat().st_uid
    if uid == os.geteuid():
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _view(answer: JobStatus | None) -> JobView:
    if answer is None:
        return JobView("unknown", reason="the scheduler said nothing of this job")
    state = "over" if answer.state in (JobState.ENDED, JobState.GONE) else answer.state.value
    return JobView(state, answer.exit_code, answer.reason, answer.cancelled)


def _status(run: RunDirectory, known: Progress, damaged: int, views: dict[str, JobView]) -> RunStatus:
    if any(view.state == "over" for view in views.values()):
        # The job may have written its last words between our reading and the scheduler's answer.
        newer, damaged = _read_progress(run)
        if newer.jobs != known.jobs and not set(newer.jobs) <= set(views):
            return status(run)
        known = newer
    state, reason = state_of(known, views)
    unknown_since = None
    if state is RunState.UNKNOWN:
        unknown_since = known.changed
        reason = f"since {_clock(known.changed)}: {reason}"
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
        unknown_since=unknown_since,
        tail=known.tail if state is RunState.FAILED else (),
        damaged=damaged,
    )


def _clock(then: float | None) -> str:
    """A time of day, with the date if it is not today's."""
    if then is None:
        return "its beginning"
    same_day = time.localtime(then)[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", time.localtime(then))


def _unreadable(run: RunDirectory, reason: str) -> RunStatus:
    return RunStatus(run.name, str(run.path), RunState.UNKNOWN, None, 0, 0, None, reason, None, None)


def look_after(run: RunDirectory, now: RunStatus) -> bool:
    """Do for a run what its jobs could not: go on after one that was killed, keep attempts queued ahead, remove them.

    True if something was submitted. A run of somebody else is left alone. Raises what submitting raises.
    """
    entries, _ = read_journal(run)
    known = progress(entries)
    if (now.state.is_over and now.state is not RunState.FAILED and not known.waiting) or _foreign_owner(
        run
    ) is not None:
        return False
    plan = read_plan(run.plan)
    if now.state.is_over and known.final:
        remove_superfluous(run, plan, known.waiting)
        return False
    if not now.state.is_over:
        if plan.attempts_ahead and known.current is not None and len(known.waiting) < plan.attempts_ahead:
            with submission_lock(run):
                queue_ahead(run, plan)
            return len(progress(read_journal(run)[0]).waiting) > len(known.waiting)
        return False
    if now.state is not RunState.FAILED or not known.begun or known.changed != now.changed:
        return False  # or somebody was quicker: the next look sees it
    go_on, _ = after_the_loss(run, plan, entries, known.begun)
    if go_on:
        _bury(run, plan, known)
        submit_attempt(run, known.begun + 1, unless_cancelled=True)
    return go_on


def _bury(run: RunDirectory, plan: Plan, known: Progress) -> None:
    """Make sure that no job of the run is left, and put that on record, before another is submitted."""
    if not known.jobs:
        return
    scheduler = get_scheduler(plan.scheduler, plan.dialect)
    answers = scheduler.query(known.jobs)
    running = [job for job, answer in answers.items() if answer.state in (JobState.RUNNING, JobState.UNKNOWN)]
    if running:
        raise UserError(f"job {', '.join(running)} of {run.name} has not ended yet", remedy="Try again in a moment.")
    waiting = [job for job, answer in answers.items() if answer.state in (JobState.QUEUED, JobState.HELD)]
    if waiting:
        scheduler.cancel(waiting)
    record(run, Event.JOB_OVER, job_ids=list(known.jobs))


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
    known, _ = _read_progress(run)
    _bury(run, read_plan(run.plan), known)
    job_id = submit_attempt(run, known.begun + 1)
    assert job_id is not None
    return job_id


def cancel(run: RunDirectory) -> RunStatus:
    """Cancel the run: no further attempt is submitted, and its jobs end with all their processes."""
    now = status(run)
    # A cancelled run is cancelled again: the scheduler may not have answered the first time, and the job still run.
    repeated = now.state is RunState.CANCELLED and now.job_id is not None
    # A submission that was taken for lost may have arrived meanwhile.
    if now.state.is_over and not repeated and not (now.state is RunState.NOT_SUBMITTED and _late_jobs(run)):
        return now
    _refuse_foreign(run, "cancel")
    if now.state is RunState.UNKNOWN and now.job_id is None:
        raise UserError(f"where {run.name} stands is unknown: {now.reason}", remedy="Try again in a moment.")
    with submission_lock(run):
        # Under the lock: an attempt that is just ending either sees this entry or has submitted its successor already.
        known, _ = _read_progress(run)
        if known.ended is RunState.FINISHED:
            return status(run)
        if known.ended is not RunState.CANCELLED:
            record(run, Event.CANCELLED, attempt=known.attempt, reason=_UNCONFIRMED)
    # The last first: were the first ended before the others, the next one would start.
    jobs = [*reversed(known.jobs), *_late_jobs(run)]
    if jobs:
        _scheduler_of(run).cancel(jobs)
    record(run, Event.CANCELLED, attempt=known.attempt)
    return status(run)


_UNCONFIRMED = "the scheduler has not confirmed it: repeat `dlhpc cancel`"


def _late_jobs(run: RunDirectory) -> list[str]:
    """Jobs of submissions that were taken for lost, because they arrived after somebody had looked for them."""
    plan = read_plan(run.plan)
    entries, _ = read_journal(run)
    lost = [entry for entry in entries if entry.event == Event.SUBMIT_FAILED and entry.details.get("lost")]
    scheduler = get_scheduler(plan.scheduler, plan.dialect)
    return [job for entry in lost for job in scheduler.find(tag_of(plan, int(entry.details["submission"])))]


def hold(runs: Iterable[RunDirectory]) -> None:
    """Keep the waiting jobs of these runs from starting."""
    for run in runs:
        _scheduler_of(run).hold(_waiting_jobs(run, "hold"))


def release(runs: Iterable[RunDirectory]) -> None:
    """Let the held jobs of these runs start."""
    for run in runs:
        _scheduler_of(run).release(_waiting_jobs(run, "release"))


def _waiting_jobs(run: RunDirectory, what: str) -> tuple[str, ...]:
    _refuse_foreign(run, what)
    settle_each(run, set())
    known = _read_progress(run)[0]
    waiting = () if known.final else known.waiting
    if not waiting:
        now = status(run)
        raise UserError(f"{run.name} is {now.state.value}: it has no job that waits", remedy="Nothing was done.")
    plan = read_plan(run.plan)
    if not get_scheduler(plan.scheduler, plan.dialect).abilities.hold:
        raise UserError(f"the scheduler `{plan.scheduler}` cannot hold a job", remedy="Cancel it and submit it later.")
    return waiting


def _refuse_foreign(run: RunDirectory, what: str) -> None:
    if (owner := _foreign_owner(run)) is not None:
        raise UserError(f"{run.name} belongs to {owner}", remedy=f"Only they can {what} it.")


def _scheduler_of(run: RunDirectory) -> Scheduler:
    plan = read_plan(run.plan)
    return get_scheduler(plan.scheduler, plan.dialect)
