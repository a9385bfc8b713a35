"""The small job of `dlhpc site check`: what it sees from a compute node, and that it leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlhpc.cli import cli
from dlhpc.errors import UserError
from dlhpc.jobs import site_check
from dlhpc.jobs.site_check import check_from_job
from dlhpc.process import CommandFailed, CommandTimeout, ask
from dlhpc.schedulers.base import Header, JobRequest, JobState, JobStatus
from dlhpc.sites.findings import Finding, Verdict
from dlhpc.sites.models import Site
from tests.schedulers.desk import Desk

PROFILE = """\
name: here
queues: [{name: all}]
nodes: {this: {cores: 1, memory: 1GB, gpus: 1}}
paths: {scratch: SCRATCH}
"""


class Stage:
    """A batch system that runs a job at once, or never, or loses it, as the test wants."""

    def __init__(self, play: str, environment: dict[str, str] | None = None) -> None:
        self.play = play
        self.environment = environment or {}
        self.header: Header | None = None
        self.cancelled: list[str] = []
        self.waiting = True

    def directives(self, header: Header) -> list[str]:
        self.header = self.header or header
        return [f"# directive of {header.name}"]

    def submit(self, request: JobRequest) -> list[str]:
        if self.play == "refuses":
            answer = ask(["sh", "-c", "echo 'invalid partition specified' >&2; exit 1"], timeout=10)
            raise CommandFailed(answer)
        if self.play == "loses the answer":
            raise CommandTimeout("`sbatch` did not answer within 60 s")
        if self.play == "runs":
            environment = {**os.environ, **self.environment}
            subprocess.run(["sh", str(request.script)], env=environment, check=True, timeout=60)
        if self.play == "cannot write":
            request.script.with_name("job.out").write_text("mkdir: /lustre: no such file or directory\n")
        return ["1.here"]

    def query(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        if self.play == "never starts":
            return {"1.here": JobStatus("1.here", JobState.QUEUED, reason="Resources")}
        return {"1.here": JobStatus("1.here", JobState.ENDED, exit_code=1)}

    def find(self, tag: str) -> list[str]:
        return [tag] if self.play == "loses the answer" else []

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.cancelled += job_ids


def seen(site: Site, runs: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    monkeypatch.setattr(site_check, "get_scheduler", lambda *_: stage)
    monkeypatch.setattr(site_check, "_ANSWER_LAG_S", 0.1)
    return {finding.subject: finding for finding in check_from_job(site, runs, wait_s=0.2)}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.model_validate(
        {
            "name": "here",
            "scheduler": "slurm",
            "nodes": {"gpu": {"cores": 4, "memory": "8GB", "gpus": 2}},
            "queues": [{"name": "gpu", "min_nodes": 2}],
            "paths": {"scratch": "$SCRATCH_OF_JOB"},
            "accounts": {"default": "materials"},
            "gpu": {"resource": "gpu:a100"},
            "directives": ["--constraint=ib"],
        }
    )


def commands(folder: Path, **scripts: str) -> dict[str, str]:
    """A folder of commands at the head of PATH."""
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_job_reports_gpu_scratch_environment_and_that_jobs_may_submit(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = commands(
        tmp_path / "bin",
        nvidia_smi="echo 'GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1234)'",
        sbatch="echo 'sbatch: Job 5 to start at 2026-11-24T00:46:00' >&2",
    )
    stage = Stage("runs", {**environment, "SCRATCH_OF_JOB": str(tmp_path / "a disk")})
    found = seen(site, tmp_path / "runs", stage, monkeypatch)
    assert {finding.verdict for finding in found.values()} == {Verdict.OK}
    assert found["scratch"].what.startswith(f"{tmp_path}/a disk: writable")
    assert found["GPU in a job"].what.endswith("shows 1 to a job that asked for one: NVIDIA A100-SXM4-80GB")
    assert found["submitting from a job"].live == "True"
    assert "with dlhpc, torch" in found["environment default"].what
    assert list((tmp_path / "a disk").iterdir()) == [], "the folder on scratch is removed"
    assert not (tmp_path / "runs").exists(), "and so is the one among the runs, with what had to be made for it"


def test_the_job_asks_for_little_and_as_the_profile_says(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage("refuses")
    seen(site, tmp_path / "runs", stage, monkeypatch)
    header = stage.header
    assert header is not None
    assert (header.queue, header.nodes, header.ranks_per_node, header.cores_per_rank) == ("gpu", 2, 1, 1)
    assert (header.gpus_per_node, header.gpu_resource, header.walltime_seconds) == (1, "gpu:a100", 300)
    assert (header.account, header.extra) == ("materials", ("--constraint=ib",))
    assert len(header.name) <= 15, "old PBS allows no more"


def test_what_is_wrong_on_the_compute_node_is_said_with_what_to_do(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = commands(
        tmp_path / "bin",
        nvidia_smi="echo 'No devices were found'; exit 6",
        sbatch="echo 'sbatch: error: Access/permission denied' >&2; exit 1",
    )
    (tmp_path / "file").write_text("")
    stage = Stage(
        "runs", {**environment, "SCRATCH_OF_JOB": str(tmp_path / "file" / "below"), "CUDA_VISIBLE_DEVICES": ""}
    )
    found = seen(site, tmp_path / "runs", stage, monkeypatch)
    differing = {subject for subject, finding in found.items() if finding.verdict is Verdict.DIFFERS}
    assert differing == {"scratch", "GPU in a job", "submitting from a job"}
    submits = found["submitting from a job"]
    assert "sbatch: error: Access/permission denied" in submits.what
    assert submits.remedy == "Set `compute_may_submit: false`."
    assert submits.key == ("compute_may_submit",)


def test_a_job_that_does_not_start_in_time_is_cancelled(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage("never starts")
    (only,) = seen(site, tmp_path / "runs", stage, monkeypatch).values()
    assert only.verdict is Verdict.CANNOT_TELL
    assert "it is queued: Resources) and was cancelled" in only.what
    assert stage.cancelled == ["1.here"]
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_cancels_the_job(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage("never starts")

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(site_check, "get_scheduler", lambda *_: stage)
    with pytest.raises(KeyboardInterrupt):
        check_from_job(site, tmp_path / "runs", tell=interrupt)
    assert stage.cancelled == ["1.here"]
    assert not (tmp_path / "runs").exists()


def test_a_refused_job_is_a_difference(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (only,) = seen(site, tmp_path / "runs", Stage("refuses"), monkeypatch).values()
    assert only.verdict is Verdict.DIFFERS
    assert "invalid partition specified" in only.what


def test_a_job_whose_submission_got_no_answer_is_found_and_cancelled(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage("loses the answer")
    seen(site, tmp_path / "runs", stage, monkeypatch)
    assert stage.header is not None
    assert stage.header.name in stage.cancelled


def test_a_folder_of_runs_that_compute_nodes_do_not_share(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (only,) = seen(site, tmp_path / "runs", Stage("cannot write"), monkeypatch).values()
    assert only.verdict is Verdict.DIFFERS
    assert only.key == ("paths", "runs")
    assert "it said: mkdir: /lustre: no such file or directory" in only.what


def test_a_queue_that_the_profile_lacks(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no queue `gppu`"):
        check_from_job(site, tmp_path, queue="gppu")


def test_the_machine_you_sit_at(desk: Desk, tmp_path: Path) -> None:
    """From the command line to a real job of the local scheduler, with a profile that is wrong in one place."""
    profile = tmp_path / "here.yaml"
    profile.write_text(PROFILE.replace("gpus: 1", "gpus: 0").replace("SCRATCH", str(tmp_path / "scratch")))
    words = ["site", "check", "--site", str(profile), "--runs", str(tmp_path / "runs"), "--json"]
    right = CliRunner().invoke(cli, words)
    rows = json.loads(right.stdout)
    assert {row["verdict"] for row in rows} == {"ok"}
    assert right.exit_code == 0
    assert f"{tmp_path}/scratch: writable" in next(row["what"] for row in rows if row["subject"] == "scratch")
    profile.write_text(profile.read_text().replace("cores: 1", "cores: 4096"))
    wrong = CliRunner().invoke(cli, [*words, "--no-job"])
    (row,) = [row for row in json.loads(wrong.stdout) if row["verdict"] == "differs"]
    assert (row["subject"], row["profile"], row["place"]) == ("nodes this: cores", "4096", f"{profile}:3")
    assert wrong.exit_code == 1


def test_a_full_disk_is_a_finding_with_its_remedy(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(site_check.shutil, "copy", full)
    found = seen(site, tmp_path / "runs", Stage("runs", {}), monkeypatch)["job in queue gpu"]
    assert found.verdict is Verdict.DIFFERS
    assert "No space left" in found.what
    assert "Free some space" in (found.remedy or "")
    assert not (tmp_path / "runs").exists()
