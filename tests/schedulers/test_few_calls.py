"""A batch system's server is shared by everybody: any number of runs is submitted and looked at with one command."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from dlhpc.jobs import follow, sweep_follow
from dlhpc.jobs.sweep import make_sweep, read_sweep
from dlhpc.jobs.sweep_write import create_sweep
from dlhpc.runs.state import RunState
from dlhpc.runs.sweep import SweepDirectory
from tests.doubles import PbsDouble
from tests.schedulers.sweep_world import World

MEMBERS = 40


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SweepDirectory]:
    """A new sweep whose members will wait for the user."""
    queues = {"batch": {"max_walltime": 7200}}
    with PbsDouble(tmp_path / "machine", nodes={"node1": {}}, cores=8, gpus=0, queues=queues) as double:
        for name, value in double.environment.items():
            monkeypatch.setenv(name, value)
        world = World(tmp_path, double.environment, "scheduler: pbs", "batch")
        rates = ",".join(f"0.{number + 1:03d}" for number in range(MEMBERS))
        document, wanted = read_sweep(world.spec, ["job.hold=true"], [f"lr={rates}"])
        assert wanted is not None
        planned = make_sweep(document, wanted, world.spec, runs=world.runs, site=str(world.site))
        sweep = create_sweep(planned, world.runs)
        yield sweep
        sweep_follow.cancel_sweep(sweep)


@contextmanager
def counted() -> Iterator[list[str]]:
    """The programs that dlhpc calls meanwhile."""
    called: list[str] = []
    real = subprocess.run

    def run(argv: Sequence[str], **how: Any) -> subprocess.CompletedProcess[Any]:
        called.append(argv[0])
        return real(argv, **how)

    with patch("dlhpc.process.subprocess.run", run):
        yield called


def test_one_command_submits_all_members_and_one_question_tells_where_they_stand(sweep: SweepDirectory) -> None:
    with counted() as called:
        sweep_follow.start(sweep)
    assert called == ["qsub"]
    with counted() as called:
        found = follow.statuses(sweep.found_members())
    assert called == ["qstat"]
    assert [one.state for one in found] == [RunState.HELD] * MEMBERS
    assert len({one.job_id for one in found}) == MEMBERS


def test_the_plans_of_a_sweep_are_not_all_read_to_learn_whom_to_ask(sweep: SweepDirectory) -> None:
    sweep_follow.start(sweep)
    with patch("dlhpc.jobs.follow.read_plan", wraps=follow.read_plan) as read:
        follow.statuses(sweep.found_members())
    assert read.call_count == 1
