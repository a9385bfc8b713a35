"""The Slurm adapter against a real Slurm: what people rely on, with nothing pretended but the nodes and GPUs."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dlhpc.errors import CommandError
from dlhpc.process import CommandFailed, CommandTimeout
from dlhpc.schedulers.base import Dependency, Header, JobRequest, JobState, JobStatus
from dlhpc.schedulers.slurm import SlurmScheduler
from tests.slurm_cluster import SlurmCluster, temporary_cluster

PATIENCE_S = 60.0


def until(what: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[SlurmCluster]:
    with temporary_cluster(accounting=True) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    for name, value in running_cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield running_cluster
    subprocess.run(["scancel", "--me"], check=False, env={**os.environ, **running_cluster.environment})


class Desk:
    """Writes scripts and submits them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scheduler = SlurmScheduler()
        self.id = secrets.token_hex(4)

    def tag(self, name: str) -> str:
        """Unique, as every submission's is."""
        return f"{name}-{self.id}"

    def find(self, name: str) -> list[str]:
        return self.scheduler.find(self.tag(name))

    def request(self, name: str, body: str = "exit 0", **asked: object) -> JobRequest:
        beside = {name: asked.pop(name) for name in ("after", "held") if name in asked}
        header = Header(
            name="faces",
            output=self.folder / f"{name}.log",
            queue=None,
            nodes=1,
            ranks_per_node=1,
            cores_per_rank=1,
            gpus_per_node=0,
            memory_bytes=None,
            walltime_seconds=300,
            warning_seconds=0,
        )
        header = replace(header, **asked)  # type: ignore[arg-type]
        script = self.folder / f"{name}.sh"
        script.write_text("\n".join(["#!/bin/sh", *self.scheduler.directives(header), body, ""]))
        return JobRequest(self.tag(name), script, header, **beside)  # type: ignore[arg-type]

    def submit(self, name: str, body: str = "exit 0", **asked: object) -> str:
        (job_id,) = self.scheduler.submit(self.request(name, body, **asked))
        return job_id

    def status(self, job_id: str) -> JobStatus:
        return self.scheduler.query([job_id])[job_id]

    def state(self, job_id: str) -> JobState:
        return self.status(job_id).state


@pytest.fixture
def desk(tmp_path: Path, cluster: SlurmCluster) -> Desk:
    return Desk(tmp_path)


def shown(job_id: str) -> str:
    return subprocess.run(["scontrol", "show", "job", job_id], capture_output=True, text=True, check=True).stdout


def forget_ended_jobs(cluster: SlurmCluster) -> None:
    """As slurmctld does some minutes after a job's end; here it loses what it had saved."""
    cluster.kill_controller()
    for file in (cluster.folder / "state").glob("job_state*"):
        file.unlink()
    cluster.start_controller()
    cluster.wait_nodes()


def configure(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch, pattern: str, replacement: str) -> None:
    """Let the commands (not the daemons) run with another configuration."""
    other = cluster.folder / "client.conf"
    other.write_text(re.sub(pattern, replacement, cluster.configuration.read_text()))
    monkeypatch.setenv("SLURM_CONF", str(other))


def test_slurm_understands_every_directive(desk: Desk) -> None:
    job = desk.submit(
        "all",
        queue="short",
        nodes=2,
        ranks_per_node=2,
        cores_per_rank=3,
        gpus_per_node=2,
        memory_bytes=100 * 2**20,
        walltime_seconds=290,
        warning_seconds=30,
        account="materials",
        mail="mori@example.org",
        mail_on=("end", "fail"),
        exclusive=True,
        extra=('--comment="it is # 1"', "--nice=5"),
        held=True,
    )
    told = shown(job)
    for piece in (
        *(
            f"JobName={desk.tag('all')}",
            "Partition=short",
            "NumNodes=2",
            "NumTasks=4",
            "CPUs/Task=3",
            "TimeLimit=00:05:00",
            "Requeue=1",
        ),
        *("gres:gpu:2", "MinMemoryNode=100M", "Account=materials", "Comment=it is # 1", "OverSubscribe=NO", "Nice=5"),
        *("MailUser=mori@example.org", "MailType=END,FAIL", "KillOInInvalidDependent=Yes", "JobHeld"),
    ):
        assert piece in told, piece


@pytest.mark.parametrize(
    "name", ["my faces", 'a "b" c', "it's", "50% %j %5j", "a #b", "顔 写真", "$(touch x)`y`;z", "a&b|c>d"]
)
def test_what_is_printed_goes_where_the_run_is_whatever_that_is_called(tmp_path: Path, desk: Desk, name: str) -> None:
    desk.folder = tmp_path / name
    desk.folder.mkdir()
    job = desk.submit("faces", "echo hello", array=(3,), warning_seconds=20)
    until(lambda: desk.state(f"{job}_3") is JobState.ENDED)
    assert (desk.folder / "faces-3.log").read_text() == "hello\n"


def test_a_job_waits_runs_and_ends(desk: Desk) -> None:
    job = desk.submit("faces-1", f"while [ ! -e {desk.folder}/end ]; do sleep 0.1; done")
    until(lambda: desk.state(job) is JobState.RUNNING)
    assert abs((desk.status(job).started or 0) - time.time()) < PATIENCE_S
    assert desk.find("faces-1") == [job]
    (desk.folder / "end").touch()
    until(lambda: desk.state(job) is JobState.ENDED)
    status = desk.status(job)
    assert (status.exit_code, status.reason) == (0, None)
    assert desk.find("faces-1") == [job]
    assert desk.find("faces") == []


def test_variables_of_the_session_do_not_change_the_job(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "down")
    monkeypatch.setenv("SQUEUE_FORMAT", "%u")
    monkeypatch.setenv("SQUEUE_STATES", "SUSPENDED")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "77")
    job = desk.submit("faces-1", 'echo "<${SLURM_ARRAY_TASK_ID-}>"')
    until(lambda: desk.state(job) is JobState.ENDED)
    assert (desk.folder / "faces-1.log").read_text() == "<>\n"


def test_members_of_an_array_are_told_apart(desk: Desk) -> None:
    array = desk.submit(
        "sweep", f"while [ ! -e {desk.folder}/end ]; do sleep 0.1; done", array=(0, 1, 2, 4, 6, 9), array_running=1
    )
    first, *others = desk.scheduler.member_ids(array, [0, 1, 2, 4, 6, 9])
    until(lambda: desk.state(first) is JobState.RUNNING)
    assert {status.state for status in desk.scheduler.query(others).values()} == {JobState.QUEUED}
    assert desk.state(f"{array}_3") is JobState.GONE
    assert desk.state(array) is JobState.RUNNING
    assert desk.find("sweep") == [array]

    desk.scheduler.hold(others[:2])
    answer = desk.scheduler.query([first, *others])
    assert [answer[job].state for job in others[:3]] == [JobState.HELD, JobState.HELD, JobState.QUEUED]
    desk.scheduler.release(others[:2])
    assert desk.state(others[0]) is JobState.QUEUED

    desk.scheduler.cancel(others)
    assert desk.state(first) is JobState.RUNNING
    assert {desk.state(job) for job in others} <= {JobState.GONE, JobState.ENDED}
    (desk.folder / "end").touch()
    until(lambda: desk.state(first) is JobState.ENDED)


def test_a_held_job_waits_for_its_release(desk: Desk) -> None:
    job = desk.submit("faces-1", held=True)
    assert (desk.status(job).state, desk.status(job).reason) == (JobState.HELD, "JobHeldUser")
    desk.scheduler.release([job])
    until(lambda: desk.state(job) is JobState.ENDED)


def test_attempts_follow_one_another(desk: Desk) -> None:
    first = desk.submit("a-1", "exit 75")
    second = desk.submit("a-2", "exit 0", after=(Dependency(first, "afternotok"),))
    third = desk.submit("a-3", "exit 0", after=(Dependency(second, "afternotok"),))
    until(lambda: desk.state(second) is JobState.ENDED)
    until(lambda: desk.state(third) is JobState.ENDED)
    assert desk.status(second).exit_code == 0
    assert "DependencyNeverSatisfied" in (desk.status(third).reason or "")


def test_cancelling_ends_jobs_that_wait_run_or_are_over(desk: Desk) -> None:
    running, waiting = desk.submit("r", "sleep 300"), desk.submit("w", queue="down")
    until(lambda: desk.state(running) is JobState.RUNNING)
    desk.scheduler.cancel([running, waiting, "99999999"])
    until(lambda: desk.state(running) is JobState.ENDED)
    assert desk.state(waiting) is JobState.ENDED
    desk.scheduler.cancel([running, waiting])


def test_a_job_may_go_back_into_the_queue_and_be_cancelled_there(desk: Desk) -> None:
    job = desk.submit("faces-1", "sleep 300")
    until(lambda: desk.state(job) is JobState.RUNNING)
    desk.scheduler.requeue(job)
    until(lambda: desk.state(job) is JobState.QUEUED)
    assert desk.find("faces-1") == [job]
    desk.scheduler.cancel([job])
    until(lambda: desk.state(job) is JobState.ENDED)


def test_a_job_of_somebody_else_is_answered_for_too(desk: Desk, cluster: SlurmCluster) -> None:
    cluster.ask(["sacctmgr", "--immediate", "add", "user", "nobody", "account=materials"])
    script = "#!/bin/sh\n#SBATCH --output=/dev/null --chdir=/ --hold\ntrue\n"
    done = subprocess.run(
        ["sbatch", "--parsable"], input=script, capture_output=True, text=True, user="nobody", cwd="/"
    )
    job = done.stdout.strip()
    assert desk.state(job) is JobState.HELD, done.stderr
    desk.scheduler.cancel([job])


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ({"queue": "moon"}, "job.queue"),
        ({"gpus_per_node": 99}, "fewer"),
        ({"memory_bytes": 10**15}, "job.memory"),
        ({"reservation": "moon"}, "job.reservation"),
        ({"extra": ("--constraint=moon",)}, "job.directives"),
        ({"extra": ("--moon",)}, "job.directives"),
    ],
)
def test_what_slurm_refuses_was_not_submitted(desk: Desk, asked: dict[str, object], remedy: str) -> None:
    with pytest.raises(CommandFailed, match=re.escape(remedy)) as refused:
        desk.scheduler.submit(desk.request("bad", **asked))
    assert not isinstance(refused.value, CommandTimeout)
    # For some refusals slurmctld makes a job that ends at once, and never runs.
    for job in desk.find("bad"):
        assert (desk.state(job), desk.status(job).exit_code) == (JobState.ENDED, None)


def test_when_a_job_would_start_is_known_before(desk: Desk) -> None:
    estimate = desk.scheduler.estimate_start(desk.request("faces-1"))
    assert estimate.how == "Slurm's own plan"
    assert abs((estimate.start or 0) - time.time()) < 3600
    assert desk.find("faces-1") == []
    with pytest.raises(CommandFailed, match="partition"):
        desk.scheduler.estimate_start(desk.request("faces-1", queue="moon"))


def test_what_the_queue_has_forgotten_accounting_remembers(
    desk: Desk, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = desk.submit("bad-data", "exit 65")
    killed = desk.submit("killed", "kill -9 $$")
    array = desk.submit("sweep", "exit $SLURM_ARRAY_TASK_ID", array=(0, 3))
    jobs = [bad, killed, f"{array}_0", f"{array}_3"]
    until(lambda: {status.state for status in desk.scheduler.query(jobs).values()} == {JobState.ENDED})

    def accounted() -> str:
        return cluster.ask(["sacct", "-X", "-n", "-P", "-o", "State", "-j", ",".join([bad, killed, array])]).stdout

    until(lambda: len(re.findall("FAILED|COMPLETED", accounted())) == 4)
    forget_ended_jobs(cluster)
    answer = desk.scheduler.query([*jobs, "99999999"])
    assert [answer[job].exit_code for job in jobs] == [65, 137, 0, 3]
    assert answer["99999999"].state is JobState.GONE
    assert desk.find("sweep") == [array]
    assert desk.find("nothing") == []

    configure(cluster, monkeypatch, r"(?m)^AccountingStorage.*\n", "")
    assert desk.state(bad) is JobState.GONE
    assert desk.find("sweep") == []


def test_a_controller_that_is_down_says_nothing_and_loses_nothing(
    desk: Desk, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(cluster, monkeypatch, r"(?m)^MessageTimeout=.*", "MessageTimeout=2")
    job = desk.submit("faces-1", held=True)
    cluster.kill_controller()
    try:
        with pytest.raises(CommandError):
            desk.scheduler.query([job])
        with pytest.raises(CommandTimeout):
            desk.submit("faces-2")
    finally:
        cluster.start_controller()
    assert desk.state(job) is JobState.HELD
    assert desk.find("faces-2") == []
