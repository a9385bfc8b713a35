"""``dlhpc report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dlhpc.cli.common import runs_option, the_entry

if TYPE_CHECKING:
    from dlhpc.runs.directory import RunDirectory
    from dlhpc.runs.sweep import SweepDirectory


@click.command()
@click.argument("name", metavar="RUN")
@runs_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write here (a file or folder) instead of RUN/report.",
)
def report(name: str, runs: str | None, site: str | None, out: Path | None) -> None:
    """Write the report of a run or a sweep as one web page that needs nothing else, and print where it lies.

    It may be written at any time, also while the run goes on or after it failed. RUN is a name, its beginning, a path,
    or `last`.

    \b
    Examples:
      dlhpc report last
      dlhpc report faces-20260105 --out faces.html
    """
    from dlhpc.runs.sweep import SweepDirectory

    entry = the_entry(name, runs, site)
    path = _report_sweep(entry, out) if isinstance(entry, SweepDirectory) else _report_run(entry, out)
    click.echo(f"Report: {path.absolute()}")


def _report_run(run: RunDirectory, out: Path | None) -> Path:
    from dlhpc.jobs.follow import status
    from dlhpc.report.page import write_report

    now = status(run)
    return write_report(run, out, state=now.state, reason=now.reason)


def _report_sweep(sweep: SweepDirectory, out: Path | None) -> Path:
    from dlhpc.jobs.sweep_status import sweep_status
    from dlhpc.report.sweep_page import Standing, write_sweep_report
    from dlhpc.runs.state import RunState

    now = sweep_status(sweep)
    kind = {RunState.FINISHED: "good", RunState.FAILED: "bad", RunState.CANCELLED: "bad"}.get(now.state, "open")
    states = {one.run: one.state.value for one in now.members}
    return write_sweep_report(sweep, Standing(now.state.value, kind, now.sentence(), states), out)
