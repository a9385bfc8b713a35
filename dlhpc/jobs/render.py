"""Plan → job script. Templates hold the shape, the plan holds every number, and one filter quotes every value."""

from __future__ import annotations

import functools
import operator
import re
import shlex
from collections.abc import Hashable, Sequence
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


_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


class _Gap(str):
    """Where the text of each run goes in a script that many runs share. Values cannot look like it: it holds a NUL."""

    __slots__ = ()


_DIRECTIVES, _NAME, _PATH, _RUN_ID = (_Gap(f"\0{name}\0") for name in ("directives", "name", "path", "run id"))
_GAPS = re.compile(r"(\0[^\0]*\0)")


def quote(value: object) -> str:
    """One word for a POSIX shell, whatever it holds; a NUL byte cannot be said in a script and is refused."""
    if isinstance(value, _Gap):
        return value
    text = str(value)
    if "\0" in text:
        raise UserError("a value for the job script holds a NUL byte", remedy="Remove it from the spec or profile.")
    return shlex.quote(text)


def comment(value: object) -> str:
    """Text for a ``#`` line: control characters (line ends of every kind among them) become blanks."""
    return value if isinstance(value, _Gap) else _CONTROL.sub(" ", str(value))


@functools.cache
def job_templates(folders: tuple[Path, ...]) -> Environment:
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


_WORDS = (
    "dlhpc_version", "environment_prefix", "hostfile_option", "launcher", "module_init", "python", "ranks_per_node",
    "scheduler", "scratch", "site", "umask",
)  # fmt: skip
"""With modules, launch and exports all that the templates of dlhpc show of a plan, apart from the directives and the
run's own id. Nothing else of it is defined in them, so that no run can get the script of one that differs."""
_words = operator.attrgetter(*_WORDS)


def render(plan: Plan, run: RunDirectory) -> str:
    """The job script of a run whose directory is or will be ``run``; POSIX sh.

    Raises :class:`UserError` for a request that the scheduler cannot express, or a site's template that is wrong.
    """
    directives = get_scheduler(plan.scheduler, plan.dialect).directives(header_of(plan, run))
    refuse_control(directives)
    if plan.template is not None:
        return _from_own_template(Path(plan.template), plan, run, directives)
    parts = _parts(_words(plan), tuple(plan.modules), tuple(plan.launch), tuple(plan.exports.items()))
    own: dict[str, str] = {
        _DIRECTIVES: "\n".join([*directives, ""]),
        _NAME: comment(run.name),
        _PATH: quote(run.path),
        _RUN_ID: plan.run_id,
    }
    return "".join([own.get(part, part) for part in parts])


def refuse_control(directives: Sequence[str]) -> None:
    """Adapters refuse control characters with better words; this is the last gate."""
    if "".join(directives).isprintable():
        return
    for line in directives:
        if _CONTROL.search(line):
            raise UserError("a directive of the job script would hold a control character", where=repr(line))


@functools.lru_cache(maxsize=16)
def _parts(
    words: tuple[Hashable, ...], modules: tuple[str, ...], launch: tuple[str, ...], exports: tuple[tuple[str, str], ...]
) -> tuple[str, ...]:
    """The script in parts, with gaps for what each run has of its own: the members of a sweep share all the rest."""
    plan: dict[str, object] = dict(zip(_WORDS, words, strict=True))
    plan |= {"modules": modules, "launch": launch, "exports": dict(exports), "run_id": _RUN_ID}
    template = job_templates((resources.folder("jobtemplates"),)).get_template(f"{plan['scheduler']}.sh.j2")
    script = template.render(plan=plan, run={"name": _NAME, "path": _PATH}, directives=[_DIRECTIVES])
    return tuple(_GAPS.split(script.replace(f"{_DIRECTIVES}\n", _DIRECTIVES)))


def _from_own_template(own: Path, plan: Plan, run: RunDirectory, directives: list[str]) -> str:
    """With the site's own template, which may extend one of ours and show anything of the plan."""
    from jinja2 import TemplateError

    wrong = "Correct it, or move it away from its profile to use the one that comes with dlhpc."
    try:
        environment = job_templates((own.parent, resources.folder("jobtemplates")))
        script = environment.get_template(own.name).render(plan=plan, run=run, directives=directives)
    except (TemplateError, UnicodeDecodeError, ArithmeticError, TypeError, LookupError, AttributeError) as error:
        line = getattr(error, "lineno", None)
        where = Place(str(own), line)
        raise UserError(f"the site's job template is wrong: {error}", where=where, remedy=wrong) from error
    missing = [step for step in ("#!/", "dlhpc.jobs.begin", "dlhpc.train") if step not in script]
    if missing:
        raise UserError(
            f"the script that the site's job template gives lacks `{missing[0]}`",
            where=Place(str(own)),
            remedy='Begin it with {% extends "slurm.sh.j2" %} (or another of ours), and change blocks only.',
        )
    return script
