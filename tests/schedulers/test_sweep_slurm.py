"""Sweeps on a real Slurm: one sbatch for all members, never two, and each member goes its own way."""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlhpc.jobs.follow import statuses
from dlhpc.jobs.sweep_status import SweepStatus, sweep_status
from dlhpc.runs.journal import read_journal
from dlhpc.runs.state import RunState
from dlhpc.runs.sweep import SweepDirectory, read_progress, read_record
from tests.schedulers.sweep_world import World, over, search, until
from tests.slurm_cluster import SlurmCluster, temporary_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with temporary_cluster() as cluster:
        yield cluster


@pytest.fixture
def world(tmp_path: Path, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield World(tmp_path, cluster.environment, "scheduler: slurm", "gpu")
    cluster.reset()


def queue(cluster: SlurmCluster) -> list[str]:
    """Names of what is in the queue, an array once."""
    return cluster.ask(["squeue", "-h", "-o", "%j"]).stdout.split()


def test_an_array_trains_all_its_members(world: World) -> None:
    sweep = world.submit(7)
    until(over(sweep))
    now = sweep_status(sweep)
    assert now.sentence() == "7 finished"
    assert len({one.job_id for one in now.members}) == 7
    hosts = [
        entry.details["job_id"]
        for run in sweep.found_members()
        for entry in read_journal(run)[0]
        if entry.event == "begun"
    ]
    assert hosts == [one.job_id for one in now.members]


def test_members_follow_each_other_under_a_cap_without_anybody_looking(world: World, cluster: SlurmCluster) -> None:
    sweep = world.submit(9, "--cap", "4")

    def journals() -> SweepStatus:
        return sweep_status(sweep)

    until(lambda: not queue(cluster) and all((run.attempts / "1.exit").exists() for run in sweep.found_members()))
    assert journals().sentence() == "9 finished"


def test_a_member_that_saved_its_state_goes_on_as_the_same_task_and_its_siblings_do_not_notice(
    world: World, cluster: SlurmCluster
) -> None:
    (world.runs / "0002.waits").touch()
    sweep = world.submit(3)
    last = sweep.found_members()[2]  # the last task of an array has the id of the whole array
    until((last.path / "trains").exists)
    until(lambda: sum(one.state is RunState.FINISHED for one in sweep_status(sweep).members) == 2)
    record_one_checkpoint(last.journal)
    task = statuses([last])[0].job_id
    assert task is not None
    cluster.ask(["scancel", "--signal=USR2", "--batch", task])
    until(lambda: "requeued" in last.journal.read_text())
    until(lambda: statuses([last])[0].state is RunState.QUEUED)
    assert sweep_status(sweep).sentence() == "2 finished, 1 queued"
    assert statuses([last])[0].job_id == task
    assert world.dlhpc("cancel", last.name).strip() == f"{last.name} is cancelled"
    until(lambda: not queue(cluster))


def record_one_checkpoint(journal: Path) -> None:
    """An attempt that saved nothing new would not be continued."""
    with journal.open("a") as file:
        file.write('{"time": "2026-01-01T00:00:00+00:00", "event": "checkpointed", "attempt": 1}\n')


def test_each_generation_of_a_search_is_one_array_that_the_one_before_submits(
    world: World, cluster: SlurmCluster
) -> None:
    sweep = search(world)
    # Nobody looks: the last job of each generation decides on the next.
    until(lambda: read_progress(sweep).searched is not None and not queue(cluster))
    progress = read_progress(sweep)
    assert [len(portion.members) for portion in progress.portions.values()] == [4, 4, 4]
    now = sweep_status(sweep)
    assert now.sentence() == "12 finished, search over: all 12 members are tried"
    losses = [(math.log10(one["learning_rate.base"]) + 2) ** 2 for one in read_record(sweep).members]
    assert min(losses[4:]) < min(losses[:4])  # as the stand-in for training measures them


def test_a_failed_member_is_submitted_alone(world: World) -> None:
    (world.runs / "0001.breaks").touch()
    sweep = world.submit(3)
    until(over(sweep))
    assert sweep_status(sweep).sentence() == "2 finished, 1 failed"
    assert "as job" in world.dlhpc("resume", f"{sweep.name}.1")
    until(over(sweep))
    assert sweep_status(sweep).sentence() == "3 finished"


def test_cancel_ends_all_tasks_and_resume_brings_them_back(world: World, cluster: SlurmCluster) -> None:
    for number in range(3):
        (world.runs / f"{number:04d}.waits").touch()
    sweep = world.submit(3)
    until((sweep.found_members()[0].path / "trains").exists)
    assert "3 cancelled" in world.dlhpc("cancel", sweep.name)
    until(lambda: not queue(cluster))
    world.dlhpc("resume", sweep.name)
    until(over(sweep))
    assert sweep_status(sweep).sentence() == "3 finished"


def test_submit_killed_at_any_moment_leaves_one_array_or_none(world: World, cluster: SlurmCluster) -> None:
    source = random.Random(1)
    for _ in range(8):
        process = world.start("submit", "cars.yaml", "--sweep", "lr=0.1,0.2,0.3", "--set", "job.hold=true")
        time.sleep(0.35 + 0.5 * source.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
    sweeps = [SweepDirectory(path) for path in sorted(world.runs.iterdir()) if not path.name.startswith(".")]
    world.dlhpc("status")
    before = queue(cluster)
    for sweep in sweeps:
        (state,) = {one.state for one in statuses(sweep.found_members())}
        there = before.count(f"cars-{read_record(sweep).sweep_id}-1")
        assert (state, there) in ((RunState.HELD, 1), (RunState.NOT_SUBMITTED, 0))
        if not there:
            world.dlhpc("resume", sweep.name)
            assert {one.state for one in statuses(sweep.found_members())} == {RunState.HELD}
    assert len(set(queue(cluster))) == len(queue(cluster)) == len(sweeps)
