"""`dlhpc site init` and `site check` against the doubles of OpenPBS, Torque and LoadLeveler."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dlhpc.cli import cli
from dlhpc.sites.load import load_site
from tests.doubles import Double, LoadLevelerDouble, PbsDouble, TorqueDouble

SYSTEMS = {"openpbs": PbsDouble, "torque": TorqueDouble, "loadleveler": LoadLevelerDouble}
MACHINE: dict[str, Any] = {
    "nodes": {"node1": {}, "node2": {}, "node3": {"state": "offline"}},
    "cores": 8,
    "gpus": 2,
    "queues": {"batch": {"max_walltime": 7200}, "debug": {"max_walltime": 600}},
}


@pytest.fixture(params=sorted(SYSTEMS))
def double(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    with SYSTEMS[request.param](tmp_path / "machine", **MACHINE) as double:
        enter(double, monkeypatch)
        yield double


def enter(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log in to the double's machine, whose nodes have a GPU each that nvidia-smi shows."""
    shown = double.bin / "nvidia-smi"
    shown.write_text("#!/bin/sh\necho 'GPU 0: Tesla K20m (UUID: GPU-1)'\n")
    shown.chmod(0o755)
    for name, value in double.environment.items():
        monkeypatch.setenv(name, value)


def first_profile(double: Double, folder: Path) -> Path:
    file = folder / "centre.yaml"
    scheduler = "loadleveler" if double.system == "loadleveler" else "pbs"
    done = CliRunner().invoke(cli, ["site", "init", "--scheduler", scheduler, "--output", str(file)])
    assert done.exit_code == 0, done.output
    if double.system == "loadleveler":  # AIX, where ranks are started by poe; there is none here
        file.write_text(file.read_text().replace("kind: poe", "kind: auto"))
    return file


def check(profile: Path, *words: str) -> tuple[dict[str, dict[str, str]], int]:
    runs = str(profile.parent / "runs")
    done = CliRunner().invoke(cli, ["site", "check", "--site", str(profile), "--runs", runs, "--json", *words])
    return {row["subject"]: row for row in json.loads(done.stdout)}, done.exit_code


def test_a_first_profile_describes_the_machine_and_passes_the_check(double: Double, tmp_path: Path) -> None:
    file = first_profile(double, tmp_path)
    profile = load_site(str(file))
    assert [queue.name for queue in profile.queues] == ["batch", "debug"]
    node = profile.nodes["gpu"]
    assert (node.cores, node.gpus, node.count, node.off) == (8, 2, 3, 1)
    assert profile.dialect == {"openpbs": "select", "torque": "torque"}.get(double.dialect)
    rows, code = check(file, "--no-job")
    assert {row["verdict"] for row in rows.values()} <= {"ok", "cannot tell"}, rows
    assert code == 0


def test_the_small_job_looks_from_a_compute_node_and_nothing_stays(double: Double, tmp_path: Path) -> None:
    file = first_profile(double, tmp_path)
    file.write_text(file.read_text().replace("# scratch: $TMPDIR ", f"scratch: {tmp_path}/$USER "))
    rows, code = check(file, "--wait", "60s")
    differing = {subject: row["what"] for subject, row in rows.items() if row["verdict"] == "differs"}
    assert differing == {}
    assert code == 0
    assert "Tesla K20m" in rows["GPU in a job"]["what"]
    assert "writable" in rows["scratch"]["what"]
    assert rows["submitting from a job"]["verdict"] == "ok"
    assert {job["state"] for job in double.jobs().values()} == {"done"}, "the held job that it submitted is gone too"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("double", ["openpbs", "loadleveler"], indirect=True)
def test_compute_nodes_that_may_not_submit_are_found_out(double: Double, tmp_path: Path) -> None:
    double.change(compute_may_submit=False)
    rows, code = check(first_profile(double, tmp_path), "--wait", "60s")
    assert rows["submitting from a job"]["verdict"] == "differs"
    assert rows["submitting from a job"]["remedy"] == "Set `compute_may_submit: false`."
    assert code == 1


def test_what_differs_is_named_with_both_numbers(double: Double, tmp_path: Path) -> None:
    file = first_profile(double, tmp_path)
    double.change(queues={"batch": {"max_walltime": 3600}, "night": {"max_walltime": 600}})
    rows, code = check(file, "--no-job")
    assert rows["queue batch: walltime"]["what"] == "the profile says 2:00:00, the system 1:00:00"
    assert rows["queue debug"]["what"] == "the system has no such queue; it has: batch, night"
    assert rows["further queues"]["what"] == "the profile does not offer night"
    assert code == 1


@pytest.mark.parametrize("double", ["openpbs"], indirect=True)
def test_a_server_that_is_down_leaves_questions_open(double: Double, tmp_path: Path) -> None:
    file = first_profile(double, tmp_path)
    double.fail(down=True)
    rows, code = check(file, "--no-job")
    assert rows["scheduler pbs"]["verdict"] == "cannot tell"
    assert code == 0
