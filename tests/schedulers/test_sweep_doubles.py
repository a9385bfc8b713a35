"""Sweeps on the doubles: arrays on PBS and Torque, one by one on LoadLeveler; the same things hold on all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dlhpc.jobs.sweep_status import sweep_status
from dlhpc.runs.journal import read_journal
from dlhpc.runs.sweep import read_progress
from tests.doubles import Double, LoadLevelerDouble, PbsDouble, TorqueDouble
from tests.schedulers.sweep_world import World, over, until

SYSTEMS = {
    "openpbs": (PbsDouble, "scheduler: pbs"),
    "torque": (TorqueDouble, "scheduler: pbs\ndialect: torque"),
    "loadleveler": (LoadLevelerDouble, "scheduler: loadleveler"),
}


@pytest.fixture(params=sorted(SYSTEMS))
def double(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    kind, _ = SYSTEMS[request.param]
    with kind(
        tmp_path / "machine",
        nodes={"node1": {}, "node2": {}},
        cores=8,
        gpus=0,
        queues={"batch": {"max_walltime": 7200}},
    ) as double:
        for name, value in double.environment.items():
            monkeypatch.setenv(name, value)
        yield double


@pytest.fixture
def world(double: Double, tmp_path: Path, request: pytest.FixtureRequest) -> World:
    _, scheduler = SYSTEMS[request.node.callspec.params["double"]]
    return World(tmp_path, double.environment, scheduler, "batch")


def test_all_members_train_each_in_a_job_of_its_own(world: World, double: Double) -> None:
    sweep = world.submit(5)
    assert len(read_progress(sweep).portions) == (0 if double.system == "loadleveler" else 1)
    until(over(sweep), 120)
    now = sweep_status(sweep)
    assert now.sentence() == "5 finished"
    began = [
        entry.details["job_id"]
        for run in sweep.found_members()
        for entry in read_journal(run)[0]
        if entry.event == "begun"
    ]
    if double.system != "loadleveler":  # where a job knows itself by a shorter name
        assert began == [one.job_id for one in now.members]
    assert len(set(began)) == 5


def test_members_follow_each_other_under_a_cap_without_anybody_looking(world: World) -> None:
    sweep = world.submit(6, "--cap", "3")
    until(lambda: all((run.attempts / "1.exit").exists() for run in sweep.found_members()), 120)
    until(over(sweep))
    assert sweep_status(sweep).sentence() == "6 finished"


def test_a_failed_member_is_submitted_alone(world: World) -> None:
    (world.runs / "0001.breaks").touch()
    sweep = world.submit(3)
    until(over(sweep), 120)
    assert sweep_status(sweep).sentence() == "2 finished, 1 failed"
    world.dlhpc("resume", f"{sweep.name}.1")
    until(over(sweep), 120)
    assert sweep_status(sweep).sentence() == "3 finished"


def test_a_cancelled_sweep_leaves_nothing_in_the_queue(world: World, double: Double) -> None:
    for number in range(4):
        (world.runs / f"{number:04d}.waits").touch()
    sweep = world.submit(4, "--cap", "3")
    until((sweep.found_members()[0].path / "trains").exists, 120)
    assert "3 cancelled, 1 not submitted" in world.dlhpc("cancel", sweep.name)
    until(lambda: {job["state"] for job in double.jobs().values()} <= {"done"})
