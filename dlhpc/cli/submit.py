"""``dlhpc submit``: from a spec to a job in the queue, and with ``--wait`` to its end."""

from __future__ import annotations

from pathlib import Path

import click

from dlhpc.cli.common import runs_option, set_option, the_folder
from dlhpc.cli.sweep import planned_sweep, submit_sweep, sweep_options


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@runs_option
@set_option
@sweep_options
@click.option("--wait", is_flag=True, help="Stay and show the progress until the run is over.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: run, path, state, job_id …")
def submit(
    spec: Path,
    runs: str | None,
    site: str | None,
    settings: tuple[str, ...],
    axes: tuple[str, ...],
    cap: int | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Submit the training that SPEC asks for, or a sweep of many.

    \b
    Examples:
      dlhpc submit photos.yaml --wait
      dlhpc submit photos.yaml --set training.epochs=60 --set job.ranks_per_node=2
      dlhpc submit photos.yaml --sweep lr=0.1,0.01 --sweep batch_size=32,64
    """
    from dlhpc.cli.progress import see_through
    from dlhpc.errors import DlhpcError
    from dlhpc.jobs.plan import make_plan
    from dlhpc.jobs.submit import create, submit_attempt

    folder = the_folder(runs, site)
    if (sweep := planned_sweep(spec, folder, site, settings, axes, cap)) is not None:
        submit_sweep(sweep, folder, wait=wait, as_json=as_json)
        return
    planned = make_plan(spec, runs=folder, site=site, settings=settings)
    for warning in planned.plan.warnings:
        click.echo(f"warning: {warning}", err=True)
    run = create(planned, folder)
    try:
        job_id = submit_attempt(run, 1)
    except DlhpcError as error:
        again = f"The run is kept: `dlhpc resume {run.name}` submits it."
        error.remedy = f"{error.remedy} {again}" if error.remedy else again
        raise
    if not as_json:
        click.echo(f"Submitted {run.name} as job {job_id}\n  {run.path}")
        if not wait:
            click.echo(f"Follow it with:  dlhpc watch {run.name}")
    see_through(run, wait=wait, as_json=as_json)
