"""The real Slurm that the tests start: it does what the tests of jobs rely on, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import slurm_cluster
from tests.slurm_cluster import SlurmCluster
from tests.slurm_fixtures import slurm, slurm_accounting, slurm_accounting_session, slurm_session  # noqa: F401
from tests.slurm_machine import processes

# ruff: noqa: F811  # fixtures come by import

ROOT = Path(__file__).parents[2]


def until(what: Callable[[], object], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


class User:
    """Writes job scripts and asks after them."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.output = folder / "job.out"

    def submit(self, text: str, *options: str) -> str:
        script = self.folder / "job.sh"
        script.write_text(f"#!/bin/sh\n{text}\n")
        asked = ["sbatch", "--parsable", "--open-mode=append", f"--output={self.output}", "--time=5", *options]
        return self.cluster.ask([*asked, str(script)]).stdout.strip()

    def state(self, job: str) -> str:
        return self.cluster.ask(["squeue", "-h", "-t", "all", "-j", job, "-o", "%T"], check=False).stdout.strip()

    def said(self) -> list[str]:
        return sorted(self.output.read_text().split()) if self.output.exists() else []


@pytest.fixture
def user(slurm: SlurmCluster, tmp_path: Path) -> User:
    return User(slurm, tmp_path)


@pytest.mark.parametrize("launcher", ["srun", "srun --mpi=pmix", "mpirun"])
def test_a_job_gets_two_nodes_with_their_gpus(user: User, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    asked = ["--nodes=2", "--ntasks-per-node=1", "--gres=gpu:2"]
    job = user.submit(f"exec {launcher} sh -c 'echo $SLURMD_NODENAME:$CUDA_VISIBLE_DEVICES'", *asked)
    until(lambda: user.state(job) == "COMPLETED")
    assert user.said() == ["gpu1:0,1", "gpu2:0,1"]


def test_a_requeued_job_runs_again_within_seconds(user: User) -> None:
    job = user.submit(
        'echo run${SLURM_RESTART_COUNT:-0}; [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0\n'
        "trap 'exit 0' TERM; scontrol requeue $SLURM_JOB_ID; while :; do sleep 0.1; done"
    )
    until(lambda: user.state(job) == "COMPLETED", 20 + user.cluster.requeue_wait)
    assert {"run0", "run1"} <= set(user.said())


def test_a_node_without_power_sends_its_job_back_into_the_queue(user: User) -> None:
    job = user.submit("echo run${SLURM_RESTART_COUNT:-0}; srun sleep 60", "--nodes=2")
    until(lambda: "run0" in user.said())
    user.cluster.stop_node("gpu2")
    until(lambda: user.state(job) == "PENDING")
    user.cluster.start_node("gpu2")
    until(lambda: "run1" in user.said())


def test_a_job_that_ends_while_the_controller_is_away_keeps_its_exit_code(user: User) -> None:
    go = user.folder / "go"
    job = user.submit(f"echo started; while [ ! -e '{go}' ]; do sleep 0.1; done; exit 75")
    until(lambda: "started" in user.said())
    user.cluster.kill_controller()
    go.touch()
    user.cluster.start_controller()
    until(lambda: user.state(job) == "FAILED")
    assert "ExitCode=75:0" in user.cluster.ask(["scontrol", "show", "job", job]).stdout


def test_what_a_controller_had_not_saved_is_lost_and_the_next_test_sees_nothing_of_it(user: User) -> None:
    user.submit("sleep 60")
    user.cluster.kill_controller(saved=False)
    user.cluster.reset()
    assert user.submit("true") != ""


def test_a_partition_that_is_down_starts_nothing_and_the_next_test_finds_an_empty_queue(user: User) -> None:
    user.submit("true", "--partition=down")
    waiting = user.submit("true", "--partition=down", "--hold")
    time.sleep(2)
    assert user.state(waiting) == "PENDING"
    user.cluster.reset()
    assert user.cluster.ask(["squeue", "-h", "-a"]).stdout == ""


def test_mail_is_written_down_and_not_sent(user: User) -> None:
    user.submit("true", "--mail-type=END", "--mail-user=ada@example.org")
    until(user.cluster.mails.exists)
    assert "ada@example.org" in user.cluster.mails.read_text()


def test_accounting_remembers_exit_codes(slurm_accounting: SlurmCluster, tmp_path: Path) -> None:
    user = User(slurm_accounting, tmp_path)
    job = user.submit("exit 65", "--account=materials")
    asked = ["sacct", "-X", "-n", "-P", "-o", "Account,State,ExitCode", "-S", "now-1hour", "-j", job]
    until(lambda: slurm_accounting.ask(asked).stdout.strip() == "materials|FAILED|65:0")


def test_whoever_started_a_cluster_and_was_killed_leaves_no_process_behind(slurm: SlurmCluster, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    argv = [sys.executable, "-m", "tests.slurm_cluster", str(folder), "--nodes=1"]
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_CONF"}
    keeper = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == f"export SLURM_CONF={folder}/slurm.conf\n"
    subprocess.run(
        ["sbatch", "--output=/dev/null", "--wrap=sleep 600"],
        env={**environment, "SLURM_CONF": f"{folder}/slurm.conf"},
        check=True,
        capture_output=True,
    )
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.wait()
    keeper.stdout.close()
    until(lambda: not processes(folder))


@pytest.mark.parametrize(
    ("root", "ci", "missing", "outcome"),
    [
        (True, False, [], None),
        (True, False, ["slurmctld"], pytest.fail.Exception),
        (False, True, [], pytest.fail.Exception),
        (False, False, ["slurmctld"], pytest.skip.Exception),
    ],
)
def test_a_missing_slurm_is_a_failure_except_for_a_developer_who_is_not_root(
    monkeypatch: pytest.MonkeyPatch, root: bool, ci: bool, missing: list[str], outcome: type[BaseException] | None
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(slurm_cluster, "missing_programs", lambda accounting=False: missing)
    monkeypatch.setenv("CI", "true" if ci else "")
    if outcome is None:
        slurm_cluster.require_slurm()
    else:
        with pytest.raises(outcome):
            slurm_cluster.require_slurm()
