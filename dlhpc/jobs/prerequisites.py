"""`job.after`: runs that must finish before another one starts.

The scheduler is only asked to wait for the last job that such a run has now (``afterany``), because it may
end with its state saved and another go on. The job that waited looks at the journals when it begins, and waits again if
need be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import read_journal
from dlhpc.runs.plan import Plan
from dlhpc.runs.state import RunState, progress
from dlhpc.schedulers.base import Dependency


@dataclass(frozen=True)
class Waiting:
    """How the runs that come first stand, by their journals alone."""

    waits_for: tuple[Dependency, ...] = ()
    names: str = ""
    """Of the runs that have not finished."""
    failed: str | None = None
    """Why this run can never start, in one sentence."""


def look_at(plan: Plan) -> Waiting:
    """What is known of the runs in ``plan.after``."""
    waits: list[Dependency] = []
    names: list[str] = []
    for path in plan.after:
        run = RunDirectory(Path(path))
        known = progress(read_journal(run)[0])
        if known.ended is RunState.FINISHED:
            continue
        if known.final or known.job_id is None:
            state = known.ended.value if known.ended else "not submitted"
            return Waiting(failed=f"{run.name}, which must finish first (job.after), is {state}")
        waits.append(Dependency((known.jobs or (known.job_id,))[-1], "afterany"))
        names.append(run.name)
    return Waiting(tuple(waits), ", ".join(names))
