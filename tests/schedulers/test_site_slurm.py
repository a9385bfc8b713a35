"""`dlhpc site init` and `site check` against a real Slurm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlhpc.cli import cli
from dlhpc.sites.load import load_site
from tests.slurm_cluster import SlurmCluster, temporary_cluster


@pytest.fixture(scope="module")
def running() -> Iterator[SlurmCluster]:
    with temporary_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(running: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    return running


def first_profile(folder: Path) -> Path:
    file = folder / "centre.yaml"
    written = CliRunner().invoke(cli, ["site", "init", "--scheduler", "slurm", "--output", str(file)])
    assert written.exit_code == 0, written.output
    return file


def check(profile: Path, *words: str) -> tuple[dict[str, dict[str, str]], int]:
    """Findings by subject (a second one of the same subject in place of the first), and the exit code."""
    runs = str(profile.parent / "runs")
    done = CliRunner().invoke(cli, ["site", "check", "--site", str(profile), "--runs", runs, "--json", *words])
    return {row["subject"]: row for row in json.loads(done.stdout)}, done.exit_code


def test_a_first_profile_describes_the_cluster(cluster: SlurmCluster, tmp_path: Path) -> None:
    profile = load_site(str(first_profile(tmp_path)))
    assert [queue.name for queue in profile.queues] == ["gpu", "short"], "the default first; `down` takes no jobs"
    (node,) = profile.nodes.values()
    assert (node.cores, node.gpus, node.count, node.off) == (cluster.cores, cluster.gpus, 2, 0)
    assert profile.max_array == 20000
    assert profile.kill_grace.total_seconds() == 5


def test_a_profile_is_never_overwritten(cluster: SlurmCluster, tmp_path: Path) -> None:
    file = first_profile(tmp_path)
    file.write_text("mine\n")
    again = CliRunner().invoke(cli, ["site", "init", "--output", str(file)])
    assert "exists already" in str(again.exception)
    assert file.read_text() == "mine\n"


def test_a_first_profile_passes_the_check_also_from_a_compute_node(cluster: SlurmCluster, tmp_path: Path) -> None:
    rows, code = check(first_profile(tmp_path), "--wait", "60s")
    assert {row["verdict"] for row in rows.values()} <= {"ok", "cannot tell"}
    assert code == 0
    assert rows["submitting from a job"]["verdict"] == "ok"
    assert "gave the device 0" in rows["GPU in a job"]["what"], "the pretended GPU that Slurm gave to the job"
    assert cluster.ask(["squeue", "--noheader"]).stdout == ""
    assert not (tmp_path / "runs").exists()


def test_what_differs_is_named_with_both_numbers_and_its_line(cluster: SlurmCluster, tmp_path: Path) -> None:
    file = first_profile(tmp_path)
    text = file.read_text()
    file.write_text(text.replace("max_walltime: 1:00:00", "max_walltime: 24:00:00").replace("gpus: 2", "gpus: 8"))
    rows, code = check(file, "--no-job")
    assert code == 1
    walltime, gpus = rows["queue gpu: walltime"], rows["nodes gpu: GPUs"]
    assert (walltime["profile"], walltime["live"], walltime["remedy"]) == (
        "24:00:00",
        "1:00:00",
        "Set `max_walltime: 1:00:00`.",
    )
    assert (gpus["profile"], gpus["live"]) == ("8", "2")
    line = file.read_text().splitlines().index("    gpus: 8") + 1
    assert gpus["place"] == f"{file}:{line}"


def test_a_node_that_is_taken_out_shows_as_off(cluster: SlurmCluster, tmp_path: Path) -> None:
    file = first_profile(tmp_path)
    cluster.ask(["scontrol", "update", "nodename=gpu2", "state=drain", "reason=to save electricity"])
    try:
        rows, code = check(file, "--no-job")
        assert code == 1
        assert "the profile says 0 of 2, the system 1: gpu2 (IDLE+DRAIN" in rows["nodes gpu: off"]["what"]
        file.write_text(file.read_text().replace("off: 0", "off: 1"))
        assert check(file, "--no-job")[1] == 0
    finally:
        cluster.ask(["scontrol", "update", "nodename=gpu2", "state=resume"])


@pytest.mark.slow  # Slurm's commands try again for some ten seconds
def test_without_the_controller_nothing_is_claimed(cluster: SlurmCluster, tmp_path: Path) -> None:
    file = first_profile(tmp_path)
    cluster.kill_controller()
    try:
        rows, code = check(file, "--no-job")
        assert rows["scheduler slurm"]["verdict"] == "cannot tell"
        assert not any(subject.startswith(("queue", "nodes")) for subject in rows)
        assert code == 0
    finally:
        cluster.start_controller()
