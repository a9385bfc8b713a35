"""Plan → job script. Templates hold the shape, the plan holds every number, and one filter quotes every value."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dlhpc import resources
from dlhpc.errors import UserError
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import Plan

if TYPE_CHECKING:
    from jinja2 import Environment


def quote(value: object) -> str:
    """One word for a POSIX shell, whatever it holds; a NUL byte cannot be said in a script and is refused."""
    text = str(value)
    if "\0" in text:
        raise UserError("a value for the job script holds a NUL byte", remedy="Remove it from the spec or profile.")
    return shlex.quote(text)


def comment(value: object) -> str:
    """Text for a ``#`` line: control characters (line ends of every kind among them) become blanks."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", str(value))


@functools.cache
def _environment() -> Environment:
    """Compiled once: a re-created environment renders 200 times slower."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(resources.folder("jobtemplates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell, not HTML: `quote` is what makes values safe
    )
    environment.filters["quote"] = quote
    environment.filters["comment"] = comment
    return environment


def render(plan: Plan, run: RunDirectory) -> str:
    """The job script of a run whose directory is or will be ``run``; POSIX sh."""
    return _environment().get_template(f"{plan.scheduler}.sh.j2").render(plan=plan, run=run, attempts=run.attempts)


def placeholder_run(runs: Path, name: str) -> RunDirectory:
    """Stands for the run's folder in `dlhpc plan` and `dlhpc render`, before there is one."""
    return RunDirectory(runs / f"{name}-DATE-TIME-xxxx")
