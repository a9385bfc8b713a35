"""``dlhpc plan`` and ``dlhpc render``: all that submit would do, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dlhpc.cli.common import print_json, runs_option, set_option, the_folder, wide_console
from dlhpc.cli.sweep import first_script, planned_sweep, show_sweep, sweep_options

if TYPE_CHECKING:
    from dlhpc.jobs.estimate import Prediction
    from dlhpc.jobs.experience import Experience
    from dlhpc.jobs.plan import Planned
    from dlhpc.sites.models import Site


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@runs_option
@set_option
@sweep_options
@click.option(
    "--trial", is_flag=True, help="Measure first: submit a run of two epochs or two minutes, and wait for it."
)
@click.option("--pick", type=click.IntRange(min=1), metavar="N", help="Write candidate N into SPEC.")
@click.option("--no-candidates", is_flag=True, help="Do not compare queues, nodes and lengths; ask no scheduler.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan and the comparison as JSON.")
def plan(
    spec: Path,
    runs: str | None,
    site: str | None,
    settings: tuple[str, ...],
    axes: tuple[str, ...],
    cap: int | None,
    trial: bool,
    pick: int | None,
    no_candidates: bool,
    as_json: bool,
) -> None:
    """Show everything that `dlhpc submit SPEC` would do: data, network, ranks, times, files and the job script.

    Then compare what else could be asked of the batch system, and when each would be done: queues, numbers of nodes,
    lengths of an attempt. --pick N writes one of them into SPEC.

    \b
    Examples:
      dlhpc plan photos.yaml --set job.ranks_per_node=2
      dlhpc plan photos.yaml --trial
      dlhpc plan photos.yaml --pick 3
    """
    from dlhpc.errors import UserError
    from dlhpc.jobs.experience import Experience
    from dlhpc.jobs.plan import kinds_of_nodes, make_plan
    from dlhpc.sites.load import load_site

    folder = the_folder(runs, site)
    if (sweep := planned_sweep(spec, folder, site, settings, axes, cap)) is not None:
        if trial or pick is not None:
            raise UserError(
                f"{'--trial' if trial else '--pick'} is for a single training, and this is a sweep",
                remedy="Try it with a copy of the spec without `sweep`.",
            )
        show_sweep(sweep, as_json=as_json)
        return
    profile = load_site(site)
    experience = Experience(folder, kinds_of_nodes(profile))
    planned = make_plan(spec, runs=folder, site=site, settings=settings, experience=experience)
    if trial:
        from dlhpc.cli.candidates import run_trial

        run_trial(spec, planned, profile, folder=folder, site=site, settings=settings)
        experience = Experience(folder, kinds_of_nodes(profile))
        planned = make_plan(spec, runs=folder, site=site, settings=settings, experience=experience)
    if pick is not None:
        _pick(spec, planned, profile, folder, experience, pick, as_json=as_json)
    elif as_json:
        _print_json(planned, profile, folder, experience, compared=not no_candidates)
    else:
        _show(planned, profile, folder, experience, compared=not no_candidates)


def _pick(
    spec: Path, planned: Planned, profile: Site, folder: Path, experience: Experience, number: int, *, as_json: bool
) -> None:
    from dlhpc.cli.candidates import write_choice
    from dlhpc.errors import UserError
    from dlhpc.jobs.candidates import choices

    there = choices(planned, profile, folder, experience)[0]
    chosen = next((choice for choice in there if choice.number == number), None)
    if chosen is None:
        raise UserError(f"there is no candidate {number}", remedy=f"`dlhpc plan {spec}` lists 1 to {len(there)}.")
    lines = write_choice(spec, chosen)
    if as_json:
        print_json({"picked": number, "spec": str(spec), "job": dict(line.split(": ", 1) for line in lines)})
        return
    click.echo(f"Wrote candidate {number} into {spec}:")
    for line in lines:
        click.echo(f"  {line}")


def _print_json(planned: Planned, profile: Site, folder: Path, experience: Experience, *, compared: bool) -> None:
    import dataclasses

    from dlhpc.jobs.compare import compare
    from dlhpc.jobs.estimate import estimate, work_of

    expected = estimate(experience.like(planned.plan), work_of(planned.plan))
    comparison = compare(planned, profile, folder, experience) if compared else None
    print_json(
        {
            **dataclasses.asdict(planned.plan),
            "estimate": None if expected is None else dataclasses.asdict(expected),
            "comparison": None if comparison is None else dataclasses.asdict(comparison),
        }
    )


def _show(planned: Planned, profile: Site, folder: Path, experience: Experience, *, compared: bool) -> None:
    from rich.table import Table

    from dlhpc.jobs.estimate import estimate, work_of
    from dlhpc.jobs.render import render
    from dlhpc.runs.directory import placeholder_run

    console = wide_console(160)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    expected = estimate(experience.like(planned.plan), work_of(planned.plan))
    for name, value in _rows(planned, expected, folder):
        table.add_row(name, value)
    console.print(table)
    for warning in planned.plan.warnings:
        console.print(f"warning: {warning}", style="yellow")
    console.print("\nJob script", style="bold")
    click.echo(render(planned.plan, placeholder_run(folder, planned.spec.name)), nl=False)
    if not compared or planned.plan.scheduler == "local":
        return
    from dlhpc.cli.candidates import show_comparison
    from dlhpc.jobs.compare import compare

    with console.status("Asking the scheduler when each candidate would start …"):
        comparison = compare(planned, profile, folder, experience)
    show_comparison(comparison, console)


def _rows(planned: Planned, expected: Prediction | None, folder: Path) -> list[tuple[str, str]]:
    import shlex

    from dlhpc.jobs.compare import in_words
    from dlhpc.jobs.submit import submission_of
    from dlhpc.runs.directory import placeholder_run
    from dlhpc.spec.base import format_duration

    plan, spec = planned.plan, planned.spec
    run = placeholder_run(folder, spec.name)
    rate = spec.learning_rate
    portions = f" × {spec.training.accumulate} portions" if spec.training.accumulate > 1 else ""
    memory = f", {plan.memory_bytes / 1e9:.1f} GB" if plan.memory_bytes else ""
    rows = [
        *_data_rows(planned),
        ("Network", spec.network.file or spec.network.name),
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
                f"{_count(plan.nodes, 'node')} × {_count(plan.ranks_per_node, 'rank')} × "
                f"{_count(plan.cores_per_rank, 'core')}, {_count(plan.gpus_per_rank, 'GPU')} a rank{memory}"
            ),
        ),
        (
            "Walltime",
            (
                f"{format_duration(plan.walltime_seconds)}{_walltime_source(planned, expected)}; saves "
                f"{plan.save_margin_seconds} s before its end, then goes on in the next attempt, up to "
                f"{plan.max_attempts}; {plan.crash_retries} retries after crashes"
            ),
        ),
        ("Launcher", " ".join([*plan.launch, "python -m dlhpc.train"])),
        ("Environment", f"{plan.environment}: {plan.environment_prefix}"),
        ("Run directory", str(run.path)),
        ("Submitted with", shlex.join(submission_of(plan, run))),
    ]
    if expected is not None:
        place = 1 + [name for name, _ in rows].index("Checkpoint")
        takes = f"{in_words(expected.training)} and {in_words(expected.startup)} of start-up, by {expected.how}"
        rows.insert(place, ("Takes about", takes))
    return rows


def _data_rows(planned: Planned) -> list[tuple[str, str]]:
    spec, data = planned.spec, planned.plan.dataset
    what = "rows" if data.kind == "table" else "pictures"
    names = planned.catalog.target_names
    learnt = (
        f"to predict {', '.join(names[:5])}{', …' * (len(names) > 5)}" if names else _count(data.classes, "class", "es")
    )
    rows = [("Data", f"{learnt}: {data.train} train, {data.val} validation, {data.unseen} unseen {what}")]
    if data.kind != "table":
        height, width = spec.input_size
        looks = f"{spec.data.width}×{spec.data.height}"
        if spec.data.packed is None:
            looks += f" {spec.data.color}, {spec.data.resize}"
        rows.append(("Pictures", f"{looks}; input {width}×{height}"))
    return [*rows, ("Packed into", _packed_folder(data.packed))]


def _walltime_source(planned: Planned, expected: Prediction | None) -> str:
    """Where the walltime comes from, if the spec does not name it."""
    if planned.spec.job.walltime is not None:
        return ""
    return " (as the spec names none)" if expected is None else " (what is needed and a quarter more)"


def _count(number: int, thing: str, plural: str = "s") -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}{plural}"


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
    from dlhpc.jobs.plan import make_plan
    from dlhpc.jobs.render import render as render_script
    from dlhpc.runs.directory import placeholder_run

    folder = the_folder(runs, site)
    if (sweep := planned_sweep(spec, folder, site, settings, axes, cap)) is not None:
        click.echo(first_script(sweep), nl=False)
        return
    planned = make_plan(spec, runs=folder, site=site, settings=settings)
    click.echo(render_script(planned.plan, placeholder_run(folder, planned.spec.name)), nl=False)
