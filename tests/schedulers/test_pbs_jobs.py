"""Jobs on the doubles of OpenPBS and Torque."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dlhpc.errors import CommandError, UserError
from dlhpc.process import CommandFailed, CommandTimeout
from dlhpc.schedulers.base import Dependency, JobRequest, JobState, JobStatus, get_scheduler
from tests.doubles import Double, PbsDouble, TorqueDouble
from tests.schedulers.pbs_headers import HEADER

PATIENCE_S = 30.0


class Desk:
    """A user at a PBS machine."""

    def __init__(self, double: Double, folder: Path, dialect: str) -> None:
        self.double = double
        self.folder = folder
        self.scheduler = get_scheduler("pbs", dialect)
        self.header = replace(
            HEADER, output=folder / "job.out", queue=None, nodes=1, ranks_per_node=1, gpus_per_node=0, memory_bytes=None
        )

    def request(self, tag: str, body: str, **header: object) -> JobRequest:
        asked = replace(self.header, **header)  # type: ignore[arg-type]
        script = self.folder / f"{tag}.sh"
        script.write_text("\n".join(["#!/bin/sh", *self.scheduler.directives(asked), body, ""]))
        return JobRequest(tag, script, asked)

    def submit(self, tag: str, body: str, *, after: tuple[Dependency, ...] = (), held: bool = False) -> str:
        return self.scheduler.submit(replace(self.request(tag, body), after=after, held=held))[0]

    def status(self, job: str) -> JobStatus:
        return self.scheduler.query([job])[job]

    def until(self, job: str, state: JobState) -> JobStatus:
        end = time.monotonic() + PATIENCE_S
        while (status := self.status(job)).state is not state:
            assert time.monotonic() < end, status
            time.sleep(0.05)
        return status


@pytest.fixture(params=["select", "torque"])
def desk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    kind = TorqueDouble if request.param == "torque" else PbsDouble
    with kind(tmp_path / "pbs", nodes=2, cores=4, gpus=2, kill_grace=0.5) as double:
        for name in ("PATH", "HOME"):
            monkeypatch.setenv(name, double.environment[name])
        (tmp_path / "run").mkdir()
        yield Desk(double, tmp_path / "run", request.param)


def test_a_job_runs_and_its_exit_code_is_known(desk: Desk):
    job = desk.submit("faces-1", "echo early; exit 75")
    assert desk.scheduler.find("faces-1") == [job]
    status = desk.until(job, JobState.ENDED)
    assert status.exit_code == 75
    assert status.ended is not None
    assert desk.scheduler.find("faces-1") == [job]
    assert desk.scheduler.find("faces") == []
    assert "early" in (desk.folder / "job.out").read_text()


def test_cancelling_ends_what_runs_and_forgives_what_is_over(desk: Desk):
    over, runs = desk.submit("a", "exit 0"), desk.submit("b", "sleep 300")
    desk.until(over, JobState.ENDED)
    desk.until(runs, JobState.RUNNING)
    desk.scheduler.cancel([over, runs, "999.server"])  # a valid and an unknown id in one qdel would crash the server
    assert desk.until(runs, JobState.ENDED).exit_code == 143
    assert desk.status("999.server").state is JobState.GONE


def test_hold_and_release(desk: Desk):
    job = desk.submit("held", "exit 3", held=True)
    assert desk.status(job).state is JobState.HELD
    desk.scheduler.release([job])
    assert desk.until(job, JobState.ENDED).exit_code == 3


def test_an_array_is_held_and_released_as_a_whole(desk: Desk):
    (array,) = desk.scheduler.submit(replace(desk.request("many", "exit 0", array=(0, 1, 2)), held=True))
    tasks = desk.scheduler.member_ids(array, [0, 1, 2])
    desk.scheduler.cancel(tasks[1:2])
    desk.scheduler.hold([tasks[0], tasks[2]])
    assert desk.status(tasks[0]).state is JobState.HELD
    if desk.double.dialect == "openpbs":
        with pytest.raises(UserError, match=r"only as a whole, and 1 more of .* wait"):
            desk.scheduler.release(tasks[:1])
    desk.scheduler.release([tasks[0], tasks[2]])
    assert desk.until(tasks[2], JobState.ENDED).exit_code == 0


def test_a_job_waits_for_another(desk: Desk):
    first = desk.submit("first", "sleep 300")
    second = desk.submit("second", "exit 0", after=(Dependency(first, "afternotok"),))
    status = desk.status(second)
    assert status.state is JobState.QUEUED
    assert first in (status.reason or "")
    desk.scheduler.cancel([first])
    assert desk.until(second, JobState.ENDED).exit_code == 0


def test_an_array_and_its_tasks(desk: Desk):
    body = "exit $((10 + ${PBS_ARRAY_INDEX:-$PBS_ARRAYID}))"
    request = desk.request("sweep", body, array=(0, 1, 2), array_running=2)
    (array,) = desk.scheduler.submit(request)
    assert array.partition(".")[0].endswith("[]")
    assert desk.scheduler.find("sweep") == [array]
    tasks = desk.scheduler.member_ids(array, [0, 1, 2])
    for number, task in enumerate(tasks):
        assert desk.until(task, JobState.ENDED).exit_code == 10 + number


def test_a_server_that_is_down_says_nothing_about_jobs(desk: Desk):
    job = desk.submit("a", "exit 0")
    desk.double.fail(down=True)
    with pytest.raises(CommandError):
        desk.scheduler.query([job])
    with pytest.raises(CommandError):
        desk.scheduler.find("a")
    with pytest.raises(CommandFailed):
        desk.submit("b", "exit 0")
    desk.double.fail()
    assert desk.scheduler.find("b") == []


@pytest.mark.parametrize("how", ["silent", "killed"])
def test_a_lost_answer_is_found_again_by_its_tag(desk: Desk, how: str):
    desk.double.fail(lose_answer=how)
    with pytest.raises(CommandTimeout):
        desk.submit("lost-1", "sleep 1")
    desk.double.fail()
    (job,) = desk.scheduler.find("lost-1")
    assert desk.status(job).state in (JobState.QUEUED, JobState.RUNNING)


def test_refusals_come_with_a_remedy(desk: Desk):
    with pytest.raises(CommandFailed) as caught:
        desk.scheduler.submit(desk.request("a", "exit 0", queue="nowhere"))
    assert "job.queue" in str(caught.value.remedy)


def test_a_users_own_prefix_does_not_switch_our_directives_off(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PBS_DPREFIX", "#QQQ")
    job = desk.submit("prefix", "exit 0")
    assert desk.double.jobs()[job]["walltime"] == 5400


def test_a_start_is_estimated_without_queueing_anything(desk: Desk):
    request = desk.request("next", "exit 0", ranks_per_node=2, cores_per_rank=2)
    estimate = desk.scheduler.estimate_start(request)
    assert estimate.how == "free nodes, and nobody waits"
    for tag in ("a", "b", "c"):
        desk.scheduler.submit(replace(desk.request(tag, "sleep 300", ranks_per_node=4, cores_per_rank=1), tag=tag))
    jobs = desk.double.jobs()
    estimate = desk.scheduler.estimate_start(request)
    assert "wait of the last" in estimate.how
    assert estimate.start is not None
    assert desk.double.jobs().keys() == jobs.keys()


@pytest.mark.parametrize("desk", ["select"], indirect=True)
def test_a_server_without_history_forgets_ended_jobs_but_not_waiting_ones(desk: Desk):
    desk.double.change(history=False)
    over, runs = desk.submit("a", "exit 0"), desk.submit("b", "sleep 300")
    desk.until(over, JobState.GONE)
    assert desk.scheduler.query([over, runs])[runs].state is JobState.RUNNING
    assert desk.scheduler.find("b") == [runs]
    desk.scheduler.cancel([over, runs])
    desk.until(runs, JobState.GONE)


def test_no_start_is_estimated_in_a_reservation(desk: Desk):
    request = desk.request("next", "exit 0", reservation="R7")
    assert desk.scheduler.estimate_start(request).start is None
