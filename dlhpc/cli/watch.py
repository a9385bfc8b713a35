"""``dlhpc watch``: the curves of a run, drawn in the terminal as they grow."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import click

from dlhpc.cli.common import runs_option, the_entry

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dlhpc.jobs.follow import RunStatus
    from dlhpc.runs.curves import Point
    from dlhpc.runs.directory import RunDirectory


@click.command()
@click.argument("name", metavar="[RUN]", default="last")
@runs_option
@click.option("--once", is_flag=True, help="Draw the curves once and leave.")
def watch(name: str, runs: str | None, site: str | None, once: bool) -> None:
    """Follow RUN (else the latest) with live curves of loss and accuracy; Ctrl-C leaves, the run goes on.

    \b
    Example:
      dlhpc watch last
    """
    from dlhpc.cli.progress import follow, see_through, tell_end
    from dlhpc.cli.sweep import see_sweep_through, tell_sweep
    from dlhpc.jobs.follow import status
    from dlhpc.runs.directory import RunDirectory

    run = the_entry(name, runs, site)
    if not isinstance(run, RunDirectory):
        if once:
            tell_sweep(run)
        else:
            see_sweep_through(run, wait=True, as_json=False)
        return
    if not once and not sys.stdout.isatty():
        see_through(run, wait=True, as_json=False)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if once:
        console.print(_view(run, status(run), console.width, 16))
        return
    try:
        with Live(console=console, screen=False, auto_refresh=False) as live:
            for now in follow(run):
                height = max(8, (console.height - 4) // 2)
                live.update(_view(run, now, console.width, height), refresh=True)
    except KeyboardInterrupt:
        click.echo(f"Stopped watching; {run.name} goes on.")
        raise SystemExit(130) from None
    tell_end(run, now)


def _view(run: RunDirectory, now: RunStatus, width: int, height: int) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from dlhpc.cli.progress import latest_numbers
    from dlhpc.runs.curves import read_points
    from dlhpc.runs.measures import HEADLINES

    points, _ = read_points(run.curves)
    title = Text.assemble((run.name, "bold"), f"  {now.state.value}")
    if now.attempt > 1:
        title.append(f"  attempt {now.attempt}")
    if now.epochs:
        title.append(f"  epoch {now.epoch}/{now.epochs}  {latest_numbers(run)}")
    elif now.reason:
        title.append(f"  {now.reason}")
    parts = [title]
    for measure in ("loss", *(name.removeprefix("val_") for name in HEADLINES)):
        chart = draw(points, measure, width, height)
        if chart:
            parts.append(Text.from_ansi(chart))
    return Group(*parts)


def draw(points: list[Point], measure: str, width: int, height: int) -> str:
    """One chart of ``measure`` against the epoch, train and val, as terminal text; empty if nothing was measured."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, height)
    plotext.title(f"{measure} against epoch")
    drawn = False
    last = math.ceil(max((point.epoch for point in points), default=0))
    plotext.xticks(range(0, last + 1, max(1, round(last / 6))))
    for split, colour in (("train", "blue"), ("val", "orange")):
        own = [
            point for point in points if (point.split, point.name) == (split, measure) and math.isfinite(point.value)
        ]
        if own:
            epochs, values = [point.epoch for point in own], [point.value for point in own]
            plotext.plot(epochs, values, label=split, color=colour, marker="braille")
            drawn = True
    return str(plotext.build()) if drawn else ""
