"""Plan → job script. Templates hold the shape, the plan holds every number, and one filter quotes every value."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dlhpc import resources
from dlhpc.errors import Place, UserError
from dlhpc.jobs.header import header_of
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import Plan
from dlhpc.schedulers.base import get_scheduler

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
def _environment(folders: tuple[Path, ...]) -> Environment:
    """Compiled once: a re-created environment renders 200 times slower."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folders),
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
    """The job script of a run whose directory is or will be ``run``; POSIX sh.

    Raises :class:`UserError` for a request that the scheduler cannot express, or a site's template that is wrong.
    """
    directives = get_scheduler(plan.scheduler, plan.dialect).directives(header_of(plan, run))
    for line in directives:
        if comment(line) != line:  # adapters refuse it with better words; this is the last gate
            raise UserError("a directive of the job script would hold a control character", where=repr(line))
    return _fill(plan, f"{plan.scheduler}.sh.j2", directives=directives, run=run)


def _fill(plan: Plan, template: str, **values: object) -> str:
    """The scheduler's template, or the site's own, which may extend it."""
    shipped = resources.folder("jobtemplates")
    if plan.template is None:
        return _environment((shipped,)).get_template(template).render(plan=plan, **values)
    from jinja2 import TemplateError

    own = Path(plan.template)
    try:
        return _environment((own.parent, shipped)).get_template(own.name).render(plan=plan, **values)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise UserError(
            f"the site's job template is wrong: {error}",
            where=Place(str(own), line),
            remedy="Correct it, or move it away from its profile to use the one that comes with dlhpc.",
        ) from error
