"""Finding runs by what a person types: a name, the beginning of one, a path, or `last`."""

from __future__ import annotations

import difflib
import itertools
from pathlib import Path

from dlhpc.errors import UserError
from dlhpc.files import storage_errors
from dlhpc.runs.directory import RunDirectory


def all_runs(runs: Path) -> list[RunDirectory]:
    """Every run in the folder, oldest first; a folder that does not exist holds none."""
    with storage_errors(runs, "list"):
        if not runs.exists():
            return []
        found = [entry for entry in runs.iterdir() if not entry.name.startswith(".")]
        kept = [RunDirectory(entry) for entry in sorted(found, key=_second) if _is_run(entry)]
        groups = [list(group) for _, group in itertools.groupby(kept, key=lambda run: _second(run.path))]
    # Looking at a file is dear on shared storage: only those that were made in the same second need it.
    return [run for group in groups for run in (sorted(group, key=_written) if len(group) > 1 else group)]


def _is_run(folder: Path) -> bool:
    try:
        return RunDirectory(folder).journal.exists()
    except PermissionError:  # somebody's private folder must not hide all others
        return False


def _second(path: Path) -> str:
    """Run names end in ``-YYYYMMDD-HHMMSS-xxxx``."""
    return path.name[-20:-5]


def _written(run: RunDirectory) -> tuple[float, str]:
    """When the run was made, for those that were made in one second: nothing ever changes its plan."""
    try:
        return run.plan.stat().st_mtime, run.name
    except FileNotFoundError:
        return 0.0, run.name


def find_run(named: str, runs: Path) -> RunDirectory:
    """The run that ``named`` means; :class:`UserError` if there is none or more than one."""
    if not named.strip():  # as from an unset variable of a script: it must not mean the one run there is
        raise UserError("the name of the run is empty", remedy="`dlhpc status` lists the runs.")
    path = Path(named).expanduser()
    if "/" in named or named in (".", ".."):
        run = RunDirectory(path.absolute())
        with storage_errors(path, "read"):
            found = run.journal.exists()
        if not found:
            raise UserError("is not a run directory", where=path, remedy="`dlhpc status` lists the runs.")
        return run
    known = all_runs(runs)
    if named == "last":
        if not known:
            raise UserError("there is no run yet", where=runs, remedy="Start one with `dlhpc submit SPEC`.")
        return known[-1]
    exact = [run for run in known if run.name == named]
    matches = exact or [run for run in known if run.name.startswith(named) or run.name.endswith(f"-{named}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(run.name for run in matches[-5:])
        raise UserError(
            f"`{named}` could be any of {len(matches)} runs", where=runs, remedy=f"Give more of it: {names}"
        )
    near = difflib.get_close_matches(named, [run.name for run in known], n=1, cutoff=0.4)
    remedy = f"Did you mean `{near[0]}`? " if near else ""
    raise UserError(f"there is no run `{named}`", where=runs, remedy=f"{remedy}`dlhpc status` lists the runs.")
