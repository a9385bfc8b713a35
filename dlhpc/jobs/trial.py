"""A short measured run of a spec, so that `dlhpc plan` knows how long the whole training takes.

A trial is a run like any other, called NAME-trial: of two epochs, or ended after two minutes of training. What it took
is then read from its journal like that of every earlier run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from dlhpc.errors import DlhpcError, UserError
from dlhpc.files import storage_errors
from dlhpc.jobs.experience import measure
from dlhpc.jobs.follow import cancel
from dlhpc.jobs.plan import Planned, make_plan
from dlhpc.jobs.submit import create, submission_lock, submit_attempt
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import read_plan
from dlhpc.runs.state import progress
from dlhpc.sites.models import Site
from dlhpc.spec.base import format_duration

EPOCHS = 2
TRAINING_S = 120.0
"""A trial of longer epochs is ended after so much training."""

WALLTIME_S = 900
"""Room for packing the pictures, which the first job has to do."""

_PATIENCE_S = 600.0
"""A large network's step, at the end of which the ranks leave, may take minutes where it trains on few cores."""


def trial_settings(planned: Planned, site: Site) -> list[str]:
    """What the trial has different from the spec, as ``key=value``."""
    limit = next((queue.max_walltime for queue in site.queues if queue.name == planned.plan.queue), None)
    walltime = WALLTIME_S if limit is None else min(WALLTIME_S, round(limit.total_seconds()))
    return [
        f"name={planned.spec.name[:34]}-trial",
        f"training.epochs={min(EPOCHS, planned.spec.training.epochs)}",
        f"job.walltime={format_duration(walltime)}",
        "job.max_attempts=1",
        "job.hold=false",
        "job.after=[]",
        "job.mail=null",
    ]


def start_trial(
    spec_file: Path, planned: Planned, profile: Site, *, runs: Path, site: str | None, settings: Sequence[str]
) -> RunDirectory:
    """Submit the trial of a spec that ``planned`` was made of; raises what submitting raises."""
    chosen = [*settings, *trial_settings(planned, profile)]
    trial = make_plan(spec_file, runs=runs, site=site, settings=chosen)
    run = create(trial, runs)
    submit_attempt(run, 1)
    return run


def has_enough(run: RunDirectory, now: float) -> bool:
    """Whether the trial has trained for as long as need be, and can be ended."""
    entries, _ = read_journal(run)
    started = next((entry.time for entry in entries if entry.event == Event.STARTED), None)
    return started is not None and now - started > TRAINING_S


def end_trial(run: RunDirectory) -> None:
    """Let the trial save and leave, which puts the steps that it has done on record; then make sure that it is over."""
    with submission_lock(run):
        known = progress(read_journal(run)[0])
        if known.final:
            return
        # On record first: whoever sees the attempt end makes no further one.
        record(run, Event.CANCELLED, attempt=known.attempt)
    if known.current is not None:
        stop = run.stop_file(known.begun)
        with storage_errors(stop):
            stop.touch()
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until and progress(read_journal(run)[0]).current is not None:
            time.sleep(1.0)
    if progress(read_journal(run)[0]).jobs:
        cancel(run)


def check_measured(run: RunDirectory) -> None:
    """Raises :class:`DlhpcError` with the reason if nothing can be learnt from the trial."""
    if measure(run, read_plan(run.plan)) is not None:
        return
    known = progress(read_journal(run)[0])
    what = f"the trial {run.name} ended before anything could be measured"
    look = f"See `dlhpc logs {run.name}`"
    if known.reason:
        raise UserError(f"{what}: {known.reason}", where=run.path, remedy=f"{look}.")
    raise DlhpcError(what, where=run.path, remedy=f"{look}; if packing the pictures took too long, try once more.")
