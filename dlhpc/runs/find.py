"""Finding runs and sweeps by what a person types: a name, the beginning of one, a path, or `last`."""

from __future__ import annotations

import difflib
import itertools
from pathlib import Path

from dlhpc.errors import UserError
from dlhpc.files import storage_errors
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.sweep import SweepDirectory, index_of

Entry = RunDirectory | SweepDirectory
"""What the folder of runs holds."""


def all_runs(runs: Path) -> list[RunDirectory]:
    """Every run in the folder, oldest first, the members of sweeps among them."""
    return [run for entry in all_entries(runs) for run in runs_of(entry)]


def runs_of(entry: Entry) -> list[RunDirectory]:
    """The run itself, or the members of the sweep in order."""
    return [entry] if isinstance(entry, RunDirectory) else entry.found_members()


def all_entries(runs: Path) -> list[Entry]:
    """Every run and every sweep in the folder, oldest first; a folder that does not exist holds none."""
    with storage_errors(runs, "list"):
        if not runs.exists():
            return []
        found = [entry for entry in runs.iterdir() if not entry.name.startswith(".")]
        kept = [entry for path in sorted(found, key=_second) if (entry := _entry(path)) is not None]
        groups = [list(group) for _, group in itertools.groupby(kept, key=lambda entry: _second(entry.path))]
    # Looking at a file is dear on shared storage: only those that were made in the same second need it.
    return [entry for group in groups for entry in (sorted(group, key=_written) if len(group) > 1 else group)]


def _entry(folder: Path) -> Entry | None:
    """What a folder is, if it is one of ours."""
    run, sweep = RunDirectory(folder), SweepDirectory(folder)
    try:
        return run if run.journal.exists() else sweep if sweep.exists() else None
    except PermissionError:  # somebody's private folder must not hide all others
        return None


def _second(path: Path) -> str:
    """Run names end in ``-YYYYMMDD-HHMMSS-xxxx``."""
    return path.name[-20:-5]


def _written(entry: Entry) -> tuple[float, str]:
    """When it was made, for those that were made in one second: nothing ever changes what was decided."""
    try:
        decided = entry.plan if isinstance(entry, RunDirectory) else entry.record
        return decided.stat().st_mtime, entry.name
    except FileNotFoundError:
        return 0.0, entry.name


def find_run(named: str, runs: Path) -> RunDirectory:
    """The one run that ``named`` means, ``SWEEP.7`` for a member; :class:`UserError` if there is none or several."""
    entry = find_entry(named, runs)
    if isinstance(entry, RunDirectory):
        return entry
    members = entry.found_members()
    if named == "last" and members:
        return members[-1]
    names = f"{members[0].name} … {members[-1].name}" if members else "it has no members"
    raise UserError(f"{entry.name} is a sweep of {len(members)} runs", remedy=f"Name one of them: {names}")


def find_entry(named: str, runs: Path) -> Entry:
    """The run, sweep or member that ``named`` means; :class:`UserError` if there is none or more than one."""
    if not named.strip():  # as from an unset variable of a script: it must not mean the one run there is
        raise UserError("the name of the run is empty", remedy="`dlhpc status` lists the runs.")
    path = Path(named).expanduser()
    if "/" in named or named in (".", ".."):
        run, sweep = RunDirectory(path.absolute()), SweepDirectory(path.absolute())
        with storage_errors(path, "read"):
            if run.journal.exists():
                return run
            if sweep.exists():
                return sweep
        raise UserError("is not a run directory", where=path, remedy="`dlhpc status` lists the runs.")
    known = all_entries(runs)
    if named == "last":
        if not known:
            raise UserError("there is no run yet", where=runs, remedy="Start one with `dlhpc submit SPEC`.")
        return known[-1]
    matches = _matching(named, known)
    stem, dot, number = named.rpartition(".")
    if not matches and dot and number.isdecimal():
        meant = known[-1:] if stem == "last" else _matching(stem, known)
        sweeps = [entry for entry in meant if isinstance(entry, SweepDirectory)]
        matches = [run for sweep in sweeps for run in sweep.found_members() if index_of(run.name) == int(number)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(entry.name for entry in matches[-5:])
        raise UserError(
            f"`{named}` could be any of {len(matches)} runs", where=runs, remedy=f"Give more of it: {names}"
        )
    near = difflib.get_close_matches(named, [entry.name for entry in known], n=1, cutoff=0.4)
    remedy = f"Did you mean `{near[0]}`? " if near else ""
    raise UserError(f"there is no run `{named}`", where=runs, remedy=f"{remedy}`dlhpc status` lists the runs.")


def _matching(named: str, known: list[Entry]) -> list[Entry]:
    exact = [entry for entry in known if entry.name == named]
    return exact or [entry for entry in known if entry.name.startswith(named) or entry.name.endswith(f"-{named}")]
