"""Fixtures of the tests of jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dlhpc.runs.directory import RunDirectory
    from tests.unit.job_runs import FakeScheduler

MakeRun = Callable[..., "RunDirectory"]


@pytest.fixture
def any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with `mpirun` on PATH and no record of its environment, whatever this one has."""
    monkeypatch.setattr("dlhpc.jobs.plan.read_record", lambda _: None)
    monkeypatch.setattr("dlhpc.jobs.launch.shutil.which", lambda name: f"/usr/bin/{name}")


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> FakeScheduler:
    """A scheduler in memory, in the place of every real one."""
    from dlhpc.jobs import begin, conclude, follow, plan, render, submit
    from tests.unit.job_runs import FakeScheduler

    fake = FakeScheduler()
    for module in (begin, conclude):
        monkeypatch.setattr(module, "_PAUSES_S", ())
    for module in (begin, conclude, follow, plan, render, submit):
        monkeypatch.setattr(module, "get_scheduler", lambda _name, _dialect=None: fake)
    return fake


@pytest.fixture
def make_run(tmp_path: Path, any_machine: None, scheduler: FakeScheduler) -> MakeRun:
    """Make a run on a cluster, not submitted yet; arguments are those of ``job:`` in its spec, and its site."""
    from dlhpc.runs.directory import create_run
    from dlhpc.runs.journal import Event, record
    from tests.unit import job_runs

    def make(name: str = "cars", site: job_runs.Site = job_runs.CLUSTER, **job: object) -> RunDirectory:
        made = job_runs.plan(tmp_path, site, job={"crash_retries": 1, "max_attempts": 4, **job})

        def fill(hidden: RunDirectory, _: RunDirectory) -> None:
            made.write(hidden.plan)
            record(hidden, Event.CREATED)

        return create_run(tmp_path / "runs", name, fill)

    return make
