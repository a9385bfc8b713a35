"""What `submit`, `status` and the others do when a sweep is meant: nothing here is a command of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlhpc.runs.state import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dlhpc.jobs.sweep import PlannedSweep
    from dlhpc.jobs.sweep_status import SweepStatus
    from dlhpc.runs.sweep import SweepDirectory


def sweep_options(command: Any) -> Any:
    """``--sweep KEY=VALUES`` (repeatable) and ``--cap N``, given to the command as ``axes`` and ``cap``."""
    command = click.option(
        "--cap", type=click.IntRange(min=1), help="Of a sweep: at most so many members in the queue at a time."
    )(command)
    return click.option(
        "--sweep",
        "axes",
        multiple=True,
        metavar="KEY=VALUE,…",
        help="Train once with each value, for example --sweep lr=0.1,0.01. Repeated: every combination.",
    )(command)


def planned_sweep(
    spec: Path, folder: Path, site: str | None, settings: tuple[str, ...], axes: tuple[str, ...], cap: int | None
) -> PlannedSweep | None:
    """The sweep that the spec or the options ask for; None if it is a single training."""
    from dlhpc.errors import UserError
    from dlhpc.jobs.sweep import make_sweep, read_sweep

    document, sweep = read_sweep(spec, settings, axes, cap)
    if sweep is None:
        if cap is not None:
            raise UserError("--cap is for sweeps, and this is a single training", remedy="Add --sweep key=value,….")
        return None
    return make_sweep(document, sweep, spec, runs=folder, site=site)


def submit_sweep(planned: PlannedSweep, folder: Path, *, wait: bool, as_json: bool) -> None:
    """Make the sweep, submit what there is room for, and see it through if asked to."""
    from dlhpc.errors import DlhpcError
    from dlhpc.jobs.sweep_follow import start
    from dlhpc.jobs.sweep_status import sweep_status
    from dlhpc.jobs.sweep_write import create_sweep

    for warning in planned.warnings:
        click.echo(f"warning: {warning}", err=True)
    sweep = create_sweep(planned, folder)
    try:
        ids = start(sweep)
    except DlhpcError as error:
        again = f"The sweep is kept: `dlhpc resume {sweep.name}` submits the rest of it."
        error.remedy = f"{error.remedy} {again}" if error.remedy else again
        raise
    number = len(planned.record.members)
    if not as_json:
        jobs = f"job {ids[0]}" if len(ids) == 1 else f"jobs {ids[0]} … {ids[-1]}" if ids else "no job yet"
        most = planned.record.most
        members = f"{number} member{'' if number == 1 else 's'}"
        what = f"a sweep of {members}" if most == number else f"a search of up to {most} members, {number} at first"
        click.echo(f"Submitted {sweep.name}, {what}, as {jobs}\n  {sweep.path}")
        now = sweep_status(sweep)
        if now.waiting:
            how = (
                "as others end"
                if planned.site.compute_may_submit
                else "when `dlhpc status` or `dlhpc watch` finds room"
            )
            click.echo(f"{len(now.waiting)} of them wait for room in the queue and follow {how}.")
        if not wait:
            click.echo(f"Follow it with:  dlhpc status {sweep.name}")
    see_sweep_through(sweep, wait=wait, as_json=as_json)


def see_sweep_through(sweep: SweepDirectory, *, wait: bool, as_json: bool) -> None:
    """Wait for all members if asked to, and answer as JSON if asked to; leaves with 1 if not all have finished."""
    from dlhpc.cli.common import print_json
    from dlhpc.jobs.sweep_status import sweep_status

    if not (wait or as_json):
        return
    now = _wait_for(sweep, quiet=as_json) if wait else sweep_status(sweep)
    if as_json:
        print_json(as_value(sweep, now))
    else:
        _tell(now)
    if wait and now.state is not RunState.FINISHED:
        raise SystemExit(1)


def tell_sweep(sweep: SweepDirectory) -> None:
    """One line on where the sweep stands."""
    from dlhpc.jobs.sweep_status import sweep_status

    _tell(sweep_status(sweep))


def _tell(now: SweepStatus) -> None:
    click.echo(f"{now.sweep}: {now.sentence()}{best_phrase(now)}")


def as_value(sweep: SweepDirectory, now: SweepStatus) -> dict[str, Any]:
    """The sweep for JSON: as a run, and its members with their settings."""
    from dlhpc.runs.sweep import index_of, read_record

    settings = read_record(sweep).members
    return {
        "run": now.sweep,
        "sweep": now.sweep,
        "path": now.path,
        "state": now.state.value,
        "job_id": now.job_ids[0] if now.job_ids else None,
        "job_ids": now.job_ids,
        "counts": {state.value: count for state, count in now.counts.items() if count},
        "to_be_submitted": len(now.waiting),
        "best": None if now.best is None else vars(now.best),
        "members": [{**one.as_json(), "settings": settings[index_of(one.run)]} for one in now.members],
    }


def best_phrase(now: SweepStatus) -> str:
    """`; best so far NAME with val accuracy 93.1 % after 12 epochs`, or nothing."""
    if now.best is None:
        return ""
    from dlhpc.runs.measures import measure_in_words

    so_far = "" if now.is_over else " so far"
    told = measure_in_words(now.best.measure, now.best.value)
    return f"; best{so_far} {now.best.run} with {told} after {now.best.epoch:g} epochs"


def _wait_for(sweep: SweepDirectory, *, quiet: bool) -> SweepStatus:
    try:
        said = ""
        for now in _follow(sweep):
            line = f"{now.sentence()}{best_phrase(now)}"
            if not quiet and line != said:
                click.echo(line)
            said = line
    except KeyboardInterrupt:
        click.echo(
            f"\nStopped waiting; what is in the queue goes on. See it with `dlhpc status {sweep.name}`, "
            f"end it with `dlhpc cancel {sweep.name}`.",
            err=True,
        )
        raise SystemExit(130) from None
    return now


def _follow(sweep: SweepDirectory) -> Iterator[SweepStatus]:
    """The sweep's status again and again until it is over, looked after on the way; pauses grow to a minute."""
    from dlhpc.errors import DlhpcError
    from dlhpc.jobs.sweep_follow import look_after_sweep
    from dlhpc.jobs.sweep_status import sweep_status

    pause, before = 1.0, ""
    refused = 0
    while True:
        now = sweep_status(sweep)
        went_on = False
        try:
            went_on = look_after_sweep(sweep, now)
            refused = 0
        except DlhpcError as error:
            refused += 1
            click.echo(f"dlhpc: not all members could be submitted: {error}", err=True)
        if not went_on:
            yield now
            # What is refused again and again while nothing of ours is in the queue will be refused for ever.
            if now.is_over or (refused >= 3 and all(one.state.is_over for one in now.members)):
                return
        pause = 1.0 if went_on or now.sentence() != before else min(60.0, pause * 4 / 3)
        before = now.sentence()
        time.sleep(pause)


# --- plan and render --------------------------------------------------------------------------------------------


_MOST_SHOWN = 100


def show_sweep(planned: PlannedSweep, *, as_json: bool) -> None:
    """All that submitting the sweep would do: how it is submitted, every member, and the script."""
    import dataclasses

    from dlhpc.cli.common import print_json

    record = planned.record
    if as_json:
        plans = sorted(((one.index, dataclasses.asdict(one.plan)) for one in planned.members()), key=lambda one: one[0])
        members = [{"settings": record.members[index], "plan": plan} for index, plan in plans]
        print_json({**dataclasses.asdict(record), "members": members})
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    keys = list(dict.fromkeys(key for settings in record.members for key in settings))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("MEMBER", *keys, "STEPS", "BATCH"):
        table.add_column(title, overflow="fold")
    decided = sorted((one.index, one.plan.total_steps, one.plan.global_batch) for one in planned.members())
    for index, steps, batch in decided[:_MOST_SHOWN]:
        values = [Text(str(record.members[index].get(key, ""))) for key in keys]
        table.add_row(f"{index:0{record.width}d}", *values, str(steps), str(batch))
    console = Console()
    console.print(table)
    if len(decided) > _MOST_SHOWN:
        click.echo(f"… and {len(decided) - _MOST_SHOWN} more; --json has them all.")
    for warning in planned.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    click.echo(f"\n{how_submitted(planned)}")
    console.print("\n[bold]Job script[/]")
    click.echo(first_script(planned), nl=False)


def how_submitted(planned: PlannedSweep) -> str:
    """One sentence: in how many arrays, or one by one, and how many at a time."""
    record = planned.record
    number = len(record.members)
    at_a_time = "" if record.cap is None else f", at most {record.cap} of them in the queue at a time"
    running = "" if record.running is None else f", at most {record.running} running at a time"
    further = ""
    if record.most > number:
        further = f" Further generations of {number} are decided by the results, up to {record.most} members in all."
    if record.portion == 1:
        return (
            f"{number} members, submitted one by one to {planned.site.name} ({record.scheduler}){at_a_time}.{further}"
        )
    size = min(record.portion, number, record.cap or number)
    arrays = "one array" if size >= number else f"arrays of at most {size}"
    how = f"submitted to {planned.site.name} ({record.scheduler}) as {arrays}{at_a_time}{running}"
    return f"{number} members, {how}.{further}"


def first_script(planned: PlannedSweep) -> str:
    """The script of the first submission: an array's, or the first member's own."""
    from dlhpc.jobs.render import render
    from dlhpc.jobs.sweep_submit import array_script
    from dlhpc.runs.directory import placeholder_run
    from dlhpc.runs.sweep import SweepDirectory

    record = planned.record
    sweep = SweepDirectory(placeholder_run(planned.runs, record.name).path)
    first = next(planned.members())
    size = min(record.portion, len(record.members), record.cap or len(record.members))
    if record.portion == 1 or size < record.least_portion:
        return render(first.plan, sweep.member(0, record.width))
    return array_script(first.plan, sweep, record, range(size))
