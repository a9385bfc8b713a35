"""Waiting for a run with a progress display: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from dlhpc.runs.state import RunState

if TYPE_CHECKING:
    from rich.progress import Progress

    from dlhpc.jobs.follow import RunStatus
    from dlhpc.runs.directory import RunDirectory


def follow(run: RunDirectory, *, pause: float = 0.5) -> Iterator[RunStatus]:
    """The run's status again and again until it is over, looked after on the way; ``pause`` in seconds."""
    from dlhpc.errors import DlhpcError
    from dlhpc.jobs.follow import Watch, look_after

    watch = Watch(run)
    while True:
        now = watch.look()
        went_on = False
        try:
            went_on = look_after(run, now)
        except DlhpcError as error:
            if now.state.is_over:
                now = watch.look()  # perhaps somebody else was quicker to go on
            if now.state.is_over:
                click.echo(f"dlhpc: {run.name} could not go on by itself: {error}", err=True)
        if not went_on:
            yield now
            if now.state.is_over:
                return
        time.sleep(pause)


def wait_for(run: RunDirectory, *, quiet: bool = False) -> RunStatus:
    """Wait until the run is over; Ctrl-C stops the waiting, not the run."""
    try:
        if quiet:
            for final in follow(run):  # noqa: B007 - the last one counts, days of others are not kept
                pass
        elif sys.stdout.isatty():
            final = _with_bar(run)
        else:
            final = _with_lines(run)
    except KeyboardInterrupt:
        click.echo(
            f"\nStopped waiting; the run goes on. See it with `dlhpc watch {run.name}`, "
            f"end it with `dlhpc cancel {run.name}`.",
            err=True,
        )
        raise SystemExit(130) from None
    if not quiet:
        tell_end(run, final)
    return final


def see_through(run: RunDirectory, *, wait: bool, as_json: bool) -> None:
    """What every command does after it has put a run into the queue: wait if asked to, and answer as JSON if asked to.

    Leaves with 1 if it waited and the run did not finish.
    """
    from dlhpc.cli.common import print_json
    from dlhpc.jobs.follow import status

    if not (wait or as_json):
        return
    final = wait_for(run, quiet=as_json) if wait else status(run)
    if as_json:
        print_json(final.as_json())
    if wait and final.state is not RunState.FINISHED:
        raise SystemExit(1)


def tell_end(run: RunDirectory, final: RunStatus) -> None:
    """One or two lines on how the run ended, and where to look next."""
    if final.state is RunState.FINISHED:
        click.echo(f"Finished {run.name} after {final.epoch} epochs.")
        return
    click.echo(f"{run.name} {final.state.value}: {final.reason or 'no reason on record'}", err=True)
    for line in final.tail:
        click.echo(f"  | {line}", err=True)
    click.echo(f"  → dlhpc logs {run.name}", err=True)


def latest_numbers(run: RunDirectory) -> str:
    """The last measured losses and what people look at first, for one line."""
    from dlhpc.runs.curves import read_points
    from dlhpc.runs.measures import HEADLINES, measure_in_words

    last = {f"{point.split}_{point.name}": point.value for point in read_points(run.curves)[0]}
    return "  ".join(
        measure_in_words(name, last[name]) for name in ("train_loss", "val_loss", *HEADLINES) if name in last
    )


def progress_bar(width: int) -> Progress:
    """State, bar, epochs, time so far and time left, in one line of a terminal that is ``width`` columns wide."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        # What the longest of the others need is kept free, or rich would cut the times short for the sake of the bar.
        BarColumn(bar_width=min(40, max(4, width - len("running (attempt 10)  1000/1000 0:00:00 0:00:00 ")))),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _with_bar(run: RunDirectory) -> RunStatus:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console()
    bar = progress_bar(console.width)
    task = bar.add_task("queued", total=None)
    with Live(bar, console=console) as live:
        for now in follow(run):
            again = f" (attempt {now.attempt})" if now.attempt > 1 else ""
            bar.update(task, description=f"{now.state.value}{again}", completed=now.epoch, total=now.epochs)
            beneath = latest_numbers(run) or (now.reason if now.state in (RunState.QUEUED, RunState.UNKNOWN) else None)
            # The numbers have a line of their own: beside the bar there is no room on 80 columns.
            live.update(Group(bar, Text(beneath)) if beneath else bar)
    return now


def _with_lines(run: RunDirectory) -> RunStatus:
    said = None
    for now in follow(run):
        if said == (said := (now.state, now.attempt, now.epoch)):
            continue
        line = f"{now.state.value}{f'  attempt {now.attempt}' if now.attempt > 1 else ''}"
        if now.epochs:
            line += f"  epoch {now.epoch}/{now.epochs}  {latest_numbers(run)}"
        elif now.reason:
            line += f"  {now.reason}"
        click.echo(line)
    return now
