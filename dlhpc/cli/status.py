"""``dlhpc status``, ``logs``, ``cancel`` and ``resume``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from dlhpc.cli.common import ago, print_json, runs_option, the_entry, the_folder, the_run, wide_console
from dlhpc.runs.state import RunState

if TYPE_CHECKING:
    from pathlib import Path

    from dlhpc.jobs.follow import RunStatus
    from dlhpc.runs.directory import RunDirectory
    from dlhpc.runs.sweep import SweepDirectory

_COLOURS = {
    RunState.RUNNING: "cyan",
    RunState.FINISHED: "green",
    RunState.FAILED: "red",
    RunState.CANCELLED: "magenta",
    RunState.QUEUED: "yellow",
    RunState.HELD: "yellow",
    RunState.UNKNOWN: "red",
}


@click.command()
@click.argument("names", nargs=-1, metavar="[RUN]...")
@runs_option
@click.option("--all", "everything", is_flag=True, help="Every run, not only the latest 20 and the unfinished.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of every run asked for.")
def status(names: tuple[str, ...], runs: str | None, site: str | None, everything: bool, as_json: bool) -> None:
    """Show where runs stand: all of them, or the named ones. RUN is a name, its beginning, a path, or `last`.

    A sweep is one line among all runs, and its members with their settings if it is named.

    \b
    Example:
      dlhpc status
      dlhpc status last --json
    """
    from dlhpc.jobs.follow import statuses
    from dlhpc.runs.directory import RunDirectory
    from dlhpc.runs.find import all_entries, runs_of

    entries = [the_entry(name, runs, site) for name in names] if names else all_entries(the_folder(runs, site))
    for entry in entries:
        if not isinstance(entry, RunDirectory):
            _let_go_on(entry)
    chosen = [runs_of(entry) for entry in entries]
    found = statuses([run for group in chosen for run in group])
    if as_json:
        print_json([one.as_json() for one in found])
        return
    if not found:
        click.echo(f"No runs in {the_folder(runs, site)}. Start one with `dlhpc submit SPEC`.")
        return
    left = iter(found)
    rows: list[_Row] = []
    for entry, group in zip(entries, chosen):
        own = [next(left) for _ in group]
        if isinstance(entry, RunDirectory):
            rows += [_row(one) for one in own]
        else:
            rows += _sweep_rows(entry, own, members=everything or bool(names))
    shown = rows if everything or names else [row for row in rows[:-20] if not row.is_over] + rows[-20:]
    _print_table(shown)
    if len(shown) < len(rows):
        click.echo(f"{len(rows) - len(shown)} older runs are not shown; see them with --all.")
    for one in found:
        if one.damaged:
            click.echo(f"warning: {one.run}: {one.damaged} damaged lines in its journal were skipped", err=True)


@dataclass(frozen=True)
class _Row:
    """One line of the table."""

    run: str
    state: RunState
    epoch: str = ""
    attempt: str = ""
    job: str = ""
    changed: float | None = None
    note: str = ""
    is_over: bool = False


def _row(one: RunStatus, note: str = "", *, waits: str = "") -> _Row:
    reason = waits or one.reason
    return _Row(
        one.run,
        one.state,
        f"{one.epoch}/{one.epochs}" if one.epochs else "",
        str(one.attempt or ""),
        one.job_id or "",
        one.changed,
        "; ".join(part for part in (note, reason) if part),
        one.state.is_over,
    )


def _sweep_rows(sweep: SweepDirectory, found: list[RunStatus], *, members: bool) -> list[_Row]:
    """The sweep in one line, and its members if wanted."""
    from dlhpc.cli.sweep import best_phrase
    from dlhpc.errors import DlhpcError
    from dlhpc.jobs.sweep_status import sweep_status
    from dlhpc.runs.sweep import index_of, read_record

    try:
        now = sweep_status(sweep, found)
        settings = read_record(sweep).members if members else []
    except DlhpcError as error:
        return [_Row(sweep.name, RunState.UNKNOWN, note=error.what), *(_row(one) for one in found)]
    changed = max((one.changed for one in found if one.changed is not None), default=None)
    line = _Row(
        sweep.name,
        now.state,
        attempt="",
        job=" ".join(now.job_ids[:1]),
        changed=changed,
        note=f"{len(found)} member{'' if len(found) == 1 else 's'}: {now.sentence()}{best_phrase(now)}",
        is_over=now.is_over,
    )
    if not members:
        return [line]
    told = {one.run: _in_short(settings[index_of(one.run)]) for one in found}
    waits = f"waits for `dlhpc release {sweep.name}`" if now.held else "waits for room in the queue"
    return [line, *(_row(one, told[one.run], waits=waits if one.run in now.waiting else "") for one in found)]


def _in_short(settings: dict[str, Any]) -> str:
    """A member's settings by the last parts of their keys; what is called `name` or `base` by the part before."""
    short = {key: key.removesuffix(".name").removesuffix(".base").rpartition(".")[2] for key in settings}
    last = list(short.values())
    return " ".join(f"{short[key] if last.count(short[key]) == 1 else key}={value}" for key, value in settings.items())


def _let_go_on(sweep: SweepDirectory) -> None:
    """Submit members for which there is room now; that this is refused does not hide where the runs stand."""
    from dlhpc.errors import DlhpcError
    from dlhpc.jobs.sweep_follow import go_on

    try:
        go_on(sweep)
    except DlhpcError as error:
        click.echo(f"dlhpc: {sweep.name}: not all members could be submitted: {error}", err=True)


def _print_table(rows: list[_Row]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("RUN", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("EPOCH", justify="right", no_wrap=True)
    table.add_column("ATTEMPT", justify="right")
    table.add_column("JOB")
    table.add_column("CHANGED", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(
            row.run,
            Text(row.state.value, style=_COLOURS.get(row.state, "")),
            row.epoch,
            row.attempt,
            Text(row.job),
            f"{ago(row.changed)} ago" if row.changed else "",
            Text(row.note),
        )
    wide_console().print(table)


@click.command()
@click.argument("name", metavar="RUN")
@runs_option
@click.option("-f", "--follow", "following", is_flag=True, help="Go on printing until the run is over.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last so many lines.")
@click.option("--attempt", type=click.IntRange(min=1), help="Of this attempt; else the latest that printed.")
def logs(
    name: str, runs: str | None, site: str | None, following: bool, lines: int | None, attempt: int | None
) -> None:
    """Show what a run's job printed.

    \b
    Example:
      dlhpc logs last -f
    """
    run = the_run(name, runs, site)
    number = attempt or _latest_log(run)
    if number is None and not following:
        click.echo(f"{run.name} has printed nothing yet.", err=True)
        return
    position = 0
    if number is not None:
        position = print_log(run.log(number), 0, lines)
    if following:
        _follow_log(run, number or 1, position, stay=attempt is not None)


def _latest_log(run: RunDirectory) -> int | None:
    numbers = [int(file.stem) for file in run.logs.glob("*.out") if file.stem.isdigit()]
    return max(numbers, default=None)


def print_log(path: Path, start: int, lines: int | None = None) -> int:
    """Print from byte ``start``; gives the position reached."""
    from dlhpc.files import storage_errors

    if not path.exists():
        return start
    with storage_errors(path, "read"), path.open("rb") as file:
        file.seek(start)
        content = file.read()
    reached = start + len(content)
    if lines is not None:
        content = b"".join(content.splitlines(keepends=True)[-lines:] if lines else [])
    click.echo(content, nl=False)  # as bytes: what is followed may end in the middle of a letter
    return reached


def _follow_log(run: RunDirectory, number: int, position: int, *, stay: bool) -> None:
    from dlhpc.jobs.follow import status as status_of

    asked = 0.0
    over = False
    while True:
        # Looked for before reading: an attempt has printed its last line when the next one begins.
        next_has_begun = not stay and run.log(number + 1).exists()
        position = print_log(run.log(number), position)
        if next_has_begun:
            number, position = number + 1, 0
            continue
        if over:
            return
        # The log is a cheap read; the scheduler is asked more seldom.
        if time.monotonic() - asked > 3:
            asked = time.monotonic()
            over = status_of(run).state.is_over
        time.sleep(0.5)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@runs_option
def cancel(names: tuple[str, ...], runs: str | None, site: str | None) -> None:
    """End runs and all their processes. What was trained so far stays, and `dlhpc resume` goes on from there.

    \b
    Example:
      dlhpc cancel last
    """
    from dlhpc.jobs.follow import cancel as cancel_run
    from dlhpc.jobs.sweep_follow import cancel_member, cancel_sweep
    from dlhpc.runs.directory import RunDirectory
    from dlhpc.runs.sweep import sweep_of

    for entry in [the_entry(name, runs, site) for name in names]:
        if not isinstance(entry, RunDirectory):
            click.echo(f"{entry.name}: {cancel_sweep(entry).sentence()}")
        else:
            now = cancel_member(entry) if sweep_of(entry) is not None else cancel_run(entry)
            click.echo(f"{entry.name} is {now.state.value}")


@click.command()
@click.argument("name", metavar="RUN")
@runs_option
@click.option("--wait", is_flag=True, help="Stay and show the progress until the run is over.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: run, path, state, job_id …")
def resume(name: str, runs: str | None, site: str | None, wait: bool, as_json: bool) -> None:
    """Go on with a run that failed, was cancelled or was never submitted, from its last checkpoint.

    \b
    Example:
      dlhpc resume last --wait
    """
    from dlhpc.cli.progress import see_through
    from dlhpc.cli.sweep import see_sweep_through
    from dlhpc.jobs.sweep_follow import resume_member, resume_sweep
    from dlhpc.jobs.sweep_status import sweep_status
    from dlhpc.runs.directory import RunDirectory

    run = the_entry(name, runs, site)
    if not isinstance(run, RunDirectory):
        ids = resume_sweep(run)
        if not as_json and ids:
            click.echo(f"Resumed {run.name} as {len(ids)} job{'' if len(ids) == 1 else 's'} {' '.join(ids[:3])}")
        elif not as_json:
            click.echo(f"Nothing of {run.name} could be submitted yet: {sweep_status(run).sentence()}")
        see_sweep_through(run, wait=wait, as_json=as_json)
        return
    job_id = resume_member(run)
    if not as_json:
        click.echo(f"Resumed {run.name} as job {job_id}")
    see_through(run, wait=wait, as_json=as_json)
