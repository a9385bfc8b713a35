"""How `dlhpc plan` shows what else could be asked of the batch system, writes a choice into the spec, runs a trial."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from dlhpc.jobs.candidates import Candidate, Choice
    from dlhpc.jobs.compare import Comparison
    from dlhpc.jobs.plan import Planned
    from dlhpc.runs.directory import RunDirectory
    from dlhpc.sites.models import Site

_WIDE = 100


def show_comparison(comparison: Comparison, console: Console) -> None:
    """The table, what its letters mean, the recommendation and what else is worth saying."""
    from rich.table import Table
    from rich.text import Text

    lines = comparison.candidates
    if all(line.start is None and line.training is None for line in lines):
        reasons = ", ".join(dict.fromkeys(line.start_how for line in lines))
        console.print(Text(f"\nWhen it would start is not known: {reasons}. {comparison.why}"))
        return
    hows: dict[str, str] = {}
    columns = _columns(comparison, hows)
    gap = 2 if console.width >= _WIDE else 1
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for title, right, _ in columns:
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "QUEUE", overflow="fold")
    for line in lines:
        style = "bold" if line.number == comparison.recommended else ""
        table.add_row(*(Text(show(line), style=style) for _, _, show in columns))
    console.print("\nCandidates, those that are done first before the others", style="bold")
    console.print(table)
    marks = [
        *(["→ recommended"] if comparison.recommended is not None else []),
        *(["● as the spec has it"] if any(line.as_spec for line in lines) else []),
    ]
    console.print(Text("   ".join(marks), style="dim"))
    for how, letter in hows.items():
        console.print(Text(f"{letter}  {how}", style="dim"))
    console.print(Text(comparison.why, style="bold"))
    for note in comparison.notes:
        console.print(Text(note))
    if comparison.recommended is not None and not _is_own(comparison):
        console.print(Text(f"Take it with --pick {comparison.recommended}, which writes it into the spec."))


def _is_own(comparison: Comparison) -> bool:
    return any(line.as_spec and line.number == comparison.recommended for line in comparison.candidates)


def _columns(comparison: Comparison, hows: dict[str, str]) -> list[tuple[str, bool, Any]]:
    """(Title, to the right, cell of a candidate); columns of which nothing is known are left out."""
    lines, now = comparison.candidates, comparison.now

    def letter(how: str) -> str:
        return " " + hows.setdefault(how, chr(ord("a") + len(hows)) if len(hows) < 26 else "*")

    def mark(line: Candidate) -> str:
        return ("→" if line.number == comparison.recommended else " ") + ("●" if line.as_spec else "")

    columns: list[tuple[str, bool, Any]] = [
        ("", False, mark),
        ("NO", True, lambda line: str(line.number)),
        ("QUEUE", False, lambda line: line.queue or ""),
        ("NODES", True, lambda line: str(line.nodes)),
        ("ATTEMPTS", True, lambda line: _attempts(line)),
        ("STARTS", True, lambda line: _clock(line.start, now) + letter(line.start_how)),
        (
            "TRAINS",
            True,
            lambda line: ("?" if line.training is None else short(line.training)) + letter(line.training_how),
        ),
    ]
    if any(line.training is not None for line in lines):
        columns += [
            ("DONE", True, lambda line: _clock(line.finish, now)),
            ("NODE-H", True, lambda line: _amount(line.node_hours)),
        ]
    if any(line.energy_kwh is not None for line in lines):
        columns.append(("KWH", True, lambda line: _amount(line.energy_kwh)))
    if any(line.price is not None for line in lines):
        columns.append((comparison.currency, True, lambda line: _amount(line.price)))
    return columns


def _attempts(line: Candidate) -> str:
    """``3×30 min``; of a training whose length is not known, ``30 min`` alone."""
    return short(line.walltime) if line.attempts is None else f"{line.attempts}×{short(line.walltime)}"


def short(seconds: float) -> str:
    """``40 s``, ``35 min``, ``2 h``, ``2:10 h``: a duration in a narrow column."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90 and minutes != 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d} h" if minutes else f"{hours} h"


def _clock(then: float | None, now: float) -> str:
    """A local time, with the day where it is not today's."""
    if then is None:
        return "?"
    if then - now < 60:
        return "now"
    there, here = time.localtime(then), time.localtime(now)
    if there[:3] == here[:3]:
        return time.strftime("%H:%M", there)
    return time.strftime("%a %H:%M" if then - now < 6 * 86400 else "%Y-%m-%d", there)


def _amount(number: float | None) -> str:
    if number is None:
        return "?"
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def write_choice(spec_file: Path, chosen: Choice) -> list[str]:
    """Set queue, nodes and walltime in the user's file, comments and all else kept; gives the lines that say so.

    The file is replaced atomically, through a link if it is one, with its mode and its line ends.
    """
    from ruamel.yaml.comments import CommentedMap

    from dlhpc.errors import UserError
    from dlhpc.files import replacing, storage_errors
    from dlhpc.spec.base import format_duration
    from dlhpc.spec.load import load_spec, read_document

    plan = chosen.plan
    document = read_document(spec_file)
    job = document.root.get("job")
    if job is None:
        job = document.root["job"] = CommentedMap()
    if not isinstance(job, CommentedMap):
        raise UserError(
            "`job` must hold `key: value` lines", where=document.place(("job",)), remedy="Correct it first."
        )
    values = {"queue": plan.queue, "nodes": plan.nodes, "walltime": format_duration(plan.walltime_seconds)}
    for key, value in values.items():
        job[key] = value
    target = spec_file.resolve()
    with storage_errors(target, "read"):
        old, mode = target.read_bytes(), target.stat().st_mode & 0o7777
    text = document.text()
    if b"\r\n" in old:
        text = text.replace("\n", "\r\n")
    with replacing(target) as beside:
        beside.write_bytes(text.encode())
        beside.chmod(mode)
    load_spec(spec_file)  # what was written can be read
    return [f"job.{key}: {value}" for key, value in values.items()]


def run_trial(
    spec: Path, planned: Planned, profile: Site, *, folder: Path, site: str | None, settings: tuple[str, ...]
) -> None:
    """Submit a trial, show how it gets on (on standard error), and return when it has been measured."""
    from dlhpc.cli.progress import follow
    from dlhpc.jobs.trial import check_measured, end_trial, has_enough, start_trial

    run = start_trial(spec, planned, profile, runs=folder, site=site, settings=settings)
    click.echo(f"Trial {run.name} submitted; Ctrl-C ends it.", err=True)
    try:
        said = ""
        for now in follow(run):
            epochs = f", epoch {now.epoch} of {now.epochs}" if now.epochs else ""
            reason = f" ({now.reason})" if now.reason else ""
            if (line := f"  {now.state.value}{epochs}{reason}") != said:
                click.echo(said := line, err=True)
            if has_enough(run, time.time()):
                click.echo("  that is enough: it saves and leaves", err=True)
                end_trial(run)
                break
    except KeyboardInterrupt:
        _give_up(run)
        raise SystemExit(130) from None
    check_measured(run)


def _give_up(run: RunDirectory) -> None:
    from dlhpc.errors import DlhpcError
    from dlhpc.jobs.follow import cancel

    try:
        cancel(run)
    except DlhpcError as error:
        click.echo(f"\nThe trial could not be ended: {error}\n  → dlhpc cancel {run.name}", err=True)
    else:
        click.echo(f"\nThe trial {run.name} was cancelled.", err=True)
