"""``dlhpc hold`` and ``dlhpc release``: keep waiting jobs from starting, and let them go."""

from __future__ import annotations

import click

from dlhpc.cli.common import runs_option, the_run


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@runs_option
def hold(names: tuple[str, ...], runs: str | None, site: str | None) -> None:
    """Keep runs that wait in the queue from starting, until `dlhpc release`.

    \b
    Example:
      dlhpc hold last
    """
    from dlhpc.jobs.follow import hold as hold_runs

    chosen = [the_run(name, runs, site) for name in names]
    hold_runs(chosen)
    for run in chosen:
        click.echo(f"{run.name} is held; let it go with `dlhpc release {run.name}`")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@runs_option
def release(names: tuple[str, ...], runs: str | None, site: str | None) -> None:
    """Let held runs start.

    \b
    Example:
      dlhpc release last
    """
    from dlhpc.jobs.follow import release as release_runs

    chosen = [the_run(name, runs, site) for name in names]
    release_runs(chosen)
    for run in chosen:
        click.echo(f"{run.name} may start")
