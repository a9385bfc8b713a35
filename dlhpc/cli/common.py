"""Options and small helpers that several commands share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from dlhpc.runs.directory import RunDirectory
    from dlhpc.runs.sweep import SweepDirectory

Command = TypeVar("Command", bound=Callable[..., Any])


def runs_option(command: Command) -> Command:
    """``--runs FOLDER`` and ``--site NAME``, given to the command as ``runs`` (maybe None) and ``site``."""
    command = click.option("--site", metavar="NAME", help="Site profile or its file; else DLHPC_SITE, else `local`.")(
        command
    )
    return click.option("--runs", metavar="FOLDER", help="Folder of runs; else DLHPC_RUNS, else the site's.")(command)


def set_option(command: Command) -> Command:
    """``--set key=value``, repeatable, given to the command as ``settings``."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the spec, for example --set training.epochs=60. May be repeated.",
    )(command)


def the_folder(runs: str | None, site: str | None) -> Path:
    """The folder of runs that the options mean."""
    from dlhpc.sites.load import runs_folder

    return runs_folder(runs, site)


def the_run(named: str, runs: str | None, site: str | None) -> RunDirectory:
    """The run that an argument means: a path needs no folder of runs."""
    from dlhpc.runs.find import find_run

    return find_run(named, Path() if "/" in named else the_folder(runs, site))


def the_entry(named: str, runs: str | None, site: str | None) -> RunDirectory | SweepDirectory:
    """The run or sweep that an argument means."""
    from dlhpc.runs.find import find_entry

    return find_entry(named, Path() if "/" in named else the_folder(runs, site))


def ago(then: float | None) -> str:
    """``12 s``, ``5 min``, ``3 h``, ``2 days`` since a time in seconds since 1970."""
    if then is None:
        return ""
    seconds = max(0.0, time.time() - then)
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def shell_word(path: Path) -> str:
    """A path as one may type it after a command: quoted where a shell needs it, never taken for an option."""
    import shlex

    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def wide_console(columns: int = 200) -> Console:
    """Where tables go: a terminal as wide as it is; a file or pipe wide enough that nothing is cut."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = columns
    return console


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
