"""``dlhpc report``."""

from __future__ import annotations

from pathlib import Path

import click

from dlhpc.cli.common import runs_option, the_run


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
    """Write the report of a run as one web page that needs nothing else, and print where it lies.

    It may be written at any time, also while the run goes on or after it failed. RUN is a name, its beginning, a path,
    or `last`.

    \b
    Example:
      dlhpc report last
      dlhpc report faces-20260105 --out faces.html
    """
    from dlhpc.jobs.follow import status
    from dlhpc.report.page import write_report

    run = the_run(name, runs, site)
    now = status(run)
    path = write_report(run, out, state=now.state, reason=now.reason)
    click.echo(f"Report: {path.absolute()}")
