"""``dlhpc plan`` and ``dlhpc render``: all that submit would do, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dlhpc.cli.common import print_json, runs_option, set_option, the_folder
from dlhpc.cli.sweep import first_script, planned_sweep, show_sweep, sweep_options

if TYPE_CHECKING:
    from dlhpc.jobs.plan import Planned


def _make(spec: Path, runs: str | None, site: str | None, settings: tuple[str, ...]) -> Planned:
    from dlhpc.jobs.plan import make_plan

    return make_plan(spec, runs=the_folder(runs, site), site=site, settings=settings)


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@runs_option
@set_option
@sweep_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(
    spec: Path,
    runs: str | None,
    site: str | None,
    settings: tuple[str, ...],
    axes: tuple[str, ...],
    cap: int | None,
    as_json: bool,
) -> None:
    """Show everything that `dlhpc submit SPEC` would do: data, network, ranks, times, files and the job script.

    \b
    Example:
      dlhpc plan photos.yaml --set job.ranks_per_node=2
    """
    import dataclasses

    from dlhpc.jobs.render import render
    from dlhpc.runs.directory import placeholder_run

    if (sweep := planned_sweep(spec, the_folder(runs, site), site, settings, axes, cap)) is not None:
        show_sweep(sweep, as_json=as_json)
        return
    planned = _make(spec, runs, site, settings)
    if as_json:
        print_json(dataclasses.asdict(planned.plan))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(planned):
        table.add_row(name, value)
    console.print(table)
    for warning in planned.plan.warnings:
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)
    run = placeholder_run(the_folder(runs, site), planned.spec.name)
    console.print("\n[bold]Job script[/]")
    click.echo(render(planned.plan, run), nl=False)


def _rows(planned: Planned) -> list[tuple[str, str]]:
    from rich.markup import escape

    from dlhpc.runs.directory import placeholder_run
    from dlhpc.spec.base import format_duration

    plan, spec = planned.plan, planned.spec
    data, rate = plan.dataset, spec.learning_rate
    height, width = spec.input_size
    portions = f" × {spec.training.accumulate} portions" if spec.training.accumulate > 1 else ""
    memory = f", {plan.memory_bytes / 1e9:.1f} GB" if plan.memory_bytes else ""
    rows = [
        ("Data", f"{data.classes} classes: {data.train} train, {data.val} validation, {data.unseen} unseen pictures"),
        (
            "Pictures",
            f"{spec.data.width}×{spec.data.height} {spec.data.color}, {spec.data.resize}; input {width}×{height}",
        ),
        ("Packed into", _packed_folder(plan.dataset.packed)),
        ("Network", spec.network.name),
        (
            "Training",
            (
                f"{spec.training.epochs} epochs × {plan.steps_per_epoch} steps, global batch {plan.global_batch} "
                f"({spec.training.batch_size} × {plan.ranks} ranks{portions})"
            ),
        ),
        ("Optimiser", f"{spec.optimizer.name}, learning rate {plan.base_rate:g}, policy {rate.policy}"),
        ("Validation", f"every {_epochs(spec.training.validation_interval)}"),
        ("Checkpoint", f"every {_epochs(spec.training.snapshot_interval)}; last two and best are kept"),
        ("Site", f"{plan.site} ({plan.scheduler}), queue {plan.queue}"),
        (
            "Job",
            (
                f"{plan.nodes} node × {plan.ranks_per_node} ranks × {plan.cores_per_rank} cores, "
                f"{plan.gpus_per_rank} GPUs a rank{memory}"
            ),
        ),
        (
            "Walltime",
            (
                f"{format_duration(plan.walltime_seconds)}; saves {plan.save_margin_seconds} s before its end, then "
                f"goes on in the next attempt, up to {plan.max_attempts}; {plan.crash_retries} retries after crashes"
            ),
        ),
        ("Launcher", " ".join([*plan.launch, "python -m dlhpc.train"])),
        ("Environment", f"{plan.environment}: {plan.environment_prefix}"),
        ("Run directory", str(placeholder_run(Path(data.packed).parent.parent, spec.name).path)),
    ]
    return [(name, escape(value)) for name, value in rows]


def _epochs(number: float) -> str:
    return "epoch" if number == 1 else f"{number:g} epochs"


def _packed_folder(packed: str) -> str:
    """The packed dataset's folder, and whether it is there already."""
    return f"{packed} ({'ready' if (Path(packed) / 'index.json').exists() else 'made by the job'})"


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@runs_option
@set_option
@sweep_options
def render(
    spec: Path, runs: str | None, site: str | None, settings: tuple[str, ...], axes: tuple[str, ...], cap: int | None
) -> None:
    """Write the job script, and nothing else, to standard output; of a sweep that of its first array.

    \b
    Example:
      dlhpc render photos.yaml --site local
    """
    from dlhpc.jobs.render import render as render_script
    from dlhpc.runs.directory import placeholder_run

    if (sweep := planned_sweep(spec, the_folder(runs, site), site, settings, axes, cap)) is not None:
        click.echo(first_script(sweep), nl=False)
        return
    planned = _make(spec, runs, site, settings)
    click.echo(render_script(planned.plan, placeholder_run(the_folder(runs, site), planned.spec.name)), nl=False)
