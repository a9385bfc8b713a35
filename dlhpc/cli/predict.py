"""``dlhpc predict``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlhpc.cli.common import print_json, runs_option, the_run, wide_console
from dlhpc.errors import DataError, UserError

if TYPE_CHECKING:
    from dlhpc.predict.results import Prediction, Result, Tally
    from dlhpc.runs.checkpoints import CheckpointRecord
    from dlhpc.runs.directory import RunDirectory

SHOWN = 50
"""Rows of the printed table; the CSV holds all."""
NAMED = 20
"""So many unreadable pictures are named one by one; the CSV names all."""


@click.command()
@click.argument("name", metavar="RUN")
@click.argument("pictures", nargs=-1, metavar="[PICTURE|FOLDER]...")
@runs_option
@click.option("--unseen", is_flag=True, help="Name the pictures that the run kept aside, and tell how many are right.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many names for a picture.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), metavar="FILE", help="Write the table here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option(
    "--checkpoint", default="best", show_default=True, metavar="best|last|STEP", help="Which checkpoint to use."
)
def predict(
    name: str,
    pictures: tuple[str, ...],
    runs: str | None,
    site: str | None,
    unseen: bool,
    top: int,
    csv_path: Path | None,
    as_json: bool,
    checkpoint: str,
) -> None:
    """Let a trained network name pictures, also all those in folders, or with --unseen the run's own.

    The table goes to RUN/predictions as CSV, too. A picture that cannot be read is named and passed over.

    \b
    Example:
      dlhpc predict last new/anna.jpg new/more/
      dlhpc predict last --unseen
    """
    if bool(pictures) == unseen:
        raise UserError(
            "give either pictures or --unseen" if unseen else "no pictures are given",
            remedy="For example: dlhpc predict last new/anna.jpg, or dlhpc predict last --unseen",
        )
    from dlhpc.predict.choose import choose_checkpoint

    run = the_run(name, runs, site)
    record = choose_checkpoint(run, checkpoint)
    _demand_names(run, record, unseen=unseen)
    _demand_torch(run)
    from dlhpc.predict.classify import CHUNK, classify, load_classifier
    from dlhpc.predict.results import Prediction, Tally, csv_file, new_csv_path, predictions_folder, write_unseen
    from dlhpc.predict.sources import Wanted, from_files, picture_paths, unseen_split

    wanted = Wanted.of(record)
    total: int | None
    if unseen:
        split = unseen_split(run, record, wanted)
        if split.note:
            click.echo(f"note: {split.note}", err=True)
        chunks, total = split.chunks(CHUNK), split.count
        table = csv_path or predictions_folder(run) / "unseen.csv"
    else:
        paths = picture_paths(pictures)
        chunks = from_files(paths, wanted, CHUNK)
        total = None if any(Path(path).is_dir() for path in pictures) else len(pictures)
        table = csv_path or new_csv_path(run, datetime.now())
    tally = Tally()
    kept: list[Prediction] = []
    broken: list[dict[str, str]] = []
    shown = min(top, len(record.classes))
    with csv_file(table, shown, with_truth=unseen) as write, ExitStack() as stack:
        results = classify(load_classifier(record), record.classes, chunks, top)
        for result in _with_progress(results, total, stack, quiet=as_json):
            write(result)
            tally.add(result)
            if not isinstance(result, Prediction):
                broken += [{"path": result.path, "reason": result.reason}] if as_json or len(broken) < NAMED else []
            elif unseen or as_json or len(kept) < SHOWN:
                kept.append(result)
        stack.close()
        _tell_broken(broken, tally)
        if tally.predicted == 0:
            raise DataError("none of the pictures could be read", remedy="The reasons are above; nothing was written.")
    if unseen:
        write_unseen(predictions_folder(run) / "unseen.json", kept, tally, record)
    if as_json:
        print_json(_as_json(run, record, table, tally, kept, broken, with_truth=unseen))
    else:
        _tell(record, table, tally, kept, unseen=unseen)


def _demand_names(run: RunDirectory, record: CheckpointRecord, *, unseen: bool) -> None:
    """:class:`UserError` for what cannot be named. With several labels each name has a probability of its own."""
    several, rows = record.settings.get("several_labels"), "height" not in record.input
    if record.task == "classification" and not rows and not (several and unseen):
        return
    what = "a classification with several labels" if several else f"a {record.task}{' of table rows' if rows else ''}"
    raise UserError(
        f"{run.name} is {what}, {'whose unseen pictures' if several and unseen else 'which'} `dlhpc predict` cannot "
        "name so far",
        remedy="`dlhpc report` shows how well it does on the validation data.",
    )


def _demand_torch(run: RunDirectory) -> None:
    from importlib.util import find_spec

    for package in ("torch", "safetensors", "PIL"):
        if find_spec(package) is None:
            from dlhpc.runs.plan import read_plan

            raise UserError(
                f"prediction needs the Python package `{package}`, which is not installed here",
                remedy=f"Use the environment that trained the network: {read_plan(run.plan).python} -m dlhpc predict …",
            )


def _with_progress(results: Iterator[Result], total: int | None, stack: ExitStack, *, quiet: bool) -> Iterator[Result]:
    """Pass the results on and show on a terminal how far they are; the display ends with ``stack``."""
    if quiet or not sys.stderr.isatty():
        return results
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("Naming pictures"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
    return iter(progress.track(results, total=total))


def _tell_broken(broken: list[dict[str, str]], tally: Tally) -> None:
    for one in broken[:NAMED]:
        click.echo(f"not read: {one['path']}: {one['reason']}", err=True)
    if tally.unreadable > NAMED:
        click.echo(f"not read: {tally.unreadable - NAMED} more, named in the CSV table", err=True)


def _tell(record: CheckpointRecord, table: Path, tally: Tally, kept: list[Prediction], *, unseen: bool) -> None:
    rows = [one for one in kept if not one.right] if unseen else kept
    if rows:
        _print_table(rows[:SHOWN], with_truth=unseen)
    if unseen:
        click.echo(f"{tally.right} of {tally.predicted} unseen pictures were named right.")
    more = (len(rows) if unseen else tally.predicted) - SHOWN
    if more > 0:
        click.echo(f"{more} more {'misses' if unseen else 'pictures'} are in the table below.")
    if tally.unreadable:
        click.echo(f"{tally.unreadable} could not be read.")
    click.echo(f"Checkpoint: {record.name} (epoch {record.epoch:g})")
    click.echo(f"Table: {table.absolute()}")
    if unseen:
        click.echo(f"unseen accuracy {tally.accuracy * 100:.1f} %")


def _print_table(rows: list[Prediction], *, with_truth: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), title="Misses" if with_truth else None, title_justify="left")
    table.add_column("PICTURE", overflow="fold")
    if with_truth:
        table.add_column("TRUTH")
    for rank in range(1, max(len(one.top) for one in rows) + 1):
        table.add_column(str(rank))
    for one in rows:
        names = [
            Text(f"{name} {share * 100:.1f} %", style="bold" if rank == 0 else "")
            for rank, (name, share) in enumerate(one.top)
        ]
        table.add_row(Text(one.path), *([Text(one.truth or "")] if with_truth else []), *names)
    console = wide_console(240)
    console.print(table)


def _as_json(
    run: RunDirectory,
    record: CheckpointRecord,
    table: Path,
    tally: Tally,
    kept: list[Prediction],
    broken: list[dict[str, str]],
    *,
    with_truth: bool,
) -> dict[str, Any]:
    value: dict[str, Any] = {
        "run": run.name,
        "checkpoint": record.name,
        "epoch": record.epoch,
        "csv": str(table.absolute()),
        "count": tally.predicted,
        "unreadable": broken,
    }
    if with_truth:
        value["accuracy"] = tally.accuracy
    value["rows"] = [
        {"path": one.path, **({"truth": one.truth} if with_truth else {}), "top": [list(pair) for pair in one.top]}
        for one in kept
    ]
    return value
