"""``dlhpc hold`` and ``dlhpc release``: keep waiting jobs from starting, and let them go."""

from __future__ import annotations

import click

from dlhpc.cli.common import runs_option, the_entry


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
    from dlhpc.jobs.sweep_follow import hold_sweep
    from dlhpc.runs.directory import RunDirectory

    for entry in [the_entry(name, runs, site) for name in names]:
        if isinstance(entry, RunDirectory):
            hold_runs([entry])
            click.echo(f"{entry.name} is held; let it go with `dlhpc release {entry.name}`")
        else:
            number = hold_sweep(entry)
            click.echo(
                f"{entry.name}: {number} waiting job{' is' if number == 1 else 's are'} held and no further member is "
                "submitted; "
                f"let it go with `dlhpc release {entry.name}`"
            )


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
    from dlhpc.jobs.sweep_follow import release_sweep
    from dlhpc.runs.directory import RunDirectory

    for entry in [the_entry(name, runs, site) for name in names]:
        if isinstance(entry, RunDirectory):
            release_runs([entry])
        else:
            release_sweep(entry)
        click.echo(f"{entry.name} may start")
