"""``dlhpc status``, ``logs``, ``cancel`` and ``resume``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from dlhpc.cli.common import ago, print_json, runs_option, the_folder, the_run
from dlhpc.runs.state import RunState

if TYPE_CHECKING:
    from pathlib import Path

    from dlhpc.jobs.follow import RunStatus
    from dlhpc.runs.directory import RunDirectory

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

    \b
    Example:
      dlhpc status
      dlhpc status last --json
    """
    from dlhpc.jobs.follow import statuses
    from dlhpc.runs.find import all_runs

    chosen = [the_run(name, runs, site) for name in names] if names else all_runs(the_folder(runs, site))
    found = statuses(chosen)
    if as_json:
        print_json([one.as_json() for one in found])
        return
    if not found:
        click.echo(f"No runs in {the_folder(runs, site)}. Start one with `dlhpc submit SPEC`.")
        return
    shown = found if everything or names else [one for one in found[:-20] if not one.state.is_over] + found[-20:]
    _print_table(shown)
    if len(shown) < len(found):
        click.echo(f"{len(found) - len(shown)} older runs are not shown; see them with --all.")
    for one in found:
        if one.damaged:
            click.echo(f"warning: {one.run}: {one.damaged} damaged lines in its journal were skipped", err=True)


def _print_table(found: list[RunStatus]) -> None:
    from rich.console import Console
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
    for one in found:
        table.add_row(
            one.run,
            Text(one.state.value, style=_COLOURS.get(one.state, "")),
            f"{one.epoch}/{one.epochs}" if one.epochs else "",
            str(one.attempt or ""),
            Text(one.job_id or ""),
            f"{ago(one.changed)} ago" if one.changed else "",
            Text(one.reason or ""),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)


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

    for run in [the_run(name, runs, site) for name in names]:
        click.echo(f"{run.name} is {cancel_run(run).state.value}")


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
    from dlhpc.jobs.follow import resume as resume_run

    run = the_run(name, runs, site)
    job_id = resume_run(run)
    if not as_json:
        click.echo(f"Resumed {run.name} as job {job_id}")
    see_through(run, wait=wait, as_json=as_json)
