"""The main job: a folder of photographs in, a trained network and its answers out, through two real Horovod ranks."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest

from dlhpc.runs.checkpoints import list_checkpoints
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, read_journal
from tests.e2e.conftest import World, curves


@pytest.fixture(scope="module")
def reference() -> dict[str, list[tuple[float, int, str, str, float]]]:
    """Curves of an uninterrupted run, trained once for all tests that compare with it."""
    return {}


def uninterrupted(world: World, reference: dict[str, list[tuple[float, int, str, str, float]]]) -> list[object]:
    if "people" not in reference:
        reference["people"] = curves(world.submit())
    return list(reference["people"])


def events(run: RunDirectory, event: Event) -> list[dict[str, object]]:
    return [entry.details for entry in read_journal(run)[0] if entry.event == event]


def test_from_a_folder_to_a_report_and_predictions(world: World) -> None:
    world.dlhpc("init", "classification", "people", "--out", "first.yaml")
    world.dlhpc("plan", "first.yaml")
    run = world.submit("training.epochs=12")
    assert world.state(run)["state"] == "finished"
    provenance = json.loads(run.provenance.read_text())
    assert provenance["attempts"][0]["ranks"] == 2
    assert provenance["attempts"][0]["collective"].startswith("horovod")
    assert run.exit_file(1).read_text() == "0\n"

    said = world.dlhpc("predict", run.name, "--unseen").stdout
    assert said.splitlines()[-1].startswith("unseen accuracy ")
    unseen = json.loads((run.predictions / "unseen.json").read_text())
    assert unseen["count"] == 16
    assert unseen["accuracy"] >= 0.75
    one = world.dlhpc("predict", run.name, "people/s1/1.pgm").stdout
    assert "s1" in one

    world.dlhpc("report", run.name)
    page = (run.report / "report.html").read_text()
    assert run.name in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert f"dlhpc submit {run.spec}" in page


def test_the_starter_spec_runs_as_it_is(world: World) -> None:
    world.dlhpc("init", "classification", "people", "--out", "first.yaml")
    said = world.dlhpc("submit", "first.yaml", "--wait", "--json", "--set", "training.epochs=1")
    assert json.loads(said.stdout)["state"] == "finished"


def test_killed_ranks_go_on_by_themselves_with_the_same_bits(
    world: World, reference: dict[str, list[tuple[float, int, str, str, float]]]
) -> None:
    expected = uninterrupted(world, reference)
    run = world.submit(wait=False)
    world.until(run, "running", epoch=2)
    time.sleep(random.random())
    ranks = [process for process in world.processes(run) if "dlhpc.train" in process.cmdline()]
    for process in ranks:
        process.kill()
    assert world.until(run, "finished")["attempt"] == 2
    assert curves(run) == expected


def test_a_whole_job_killed_is_said_and_resumes_with_the_same_bits(
    world: World, reference: dict[str, list[tuple[float, int, str, str, float]]]
) -> None:
    expected = uninterrupted(world, reference)
    run = world.submit(wait=False)
    world.until(run, "running", epoch=1)
    for process in sorted(world.processes(run), key=lambda process: process.pid):
        process.kill()  # script first, so that nothing of the job can go on by itself
    now = world.until(run, "failed")
    assert "dlhpc resume" in now["reason"]
    world.dlhpc("resume", run.name, "--wait")
    assert curves(run) == expected


def test_out_of_walltime_the_next_attempt_goes_on_with_the_same_bits(
    world: World, reference: dict[str, list[tuple[float, int, str, str, float]]]
) -> None:
    expected = uninterrupted(world, reference)
    run = world.submit(wait=False)
    world.until(run, "running", epoch=1)
    script = next(process for process in world.processes(run) if str(run.script) in process.cmdline())
    script.send_signal(signal.SIGTERM)  # what every batch system does before it kills
    assert world.until(run, "finished")["attempt"] == 2
    assert events(run, Event.STOPPED)[0]["attempt"] == 1
    assert run.exit_file(1).read_text() == "75\n"
    assert curves(run) == expected


def test_a_cancelled_run_leaves_no_process_and_resumes(
    world: World, reference: dict[str, list[tuple[float, int, str, str, float]]]
) -> None:
    expected = uninterrupted(world, reference)
    run = world.submit(wait=False)
    world.until(run, "running", epoch=1)
    world.dlhpc("cancel", run.name)
    assert world.state(run)["state"] == "cancelled"
    assert world.processes(run) == []
    world.dlhpc("resume", run.name, "--wait")
    assert curves(run) == expected


def test_a_corrupt_checkpoint_is_noticed_and_the_one_before_is_used(
    world: World, reference: dict[str, list[tuple[float, int, str, str, float]]]
) -> None:
    expected = uninterrupted(world, reference)
    run = world.submit(wait=False)
    world.until(run, "running", epoch=3)
    world.dlhpc("cancel", run.name)
    newest = max(run.checkpoints.glob("step-*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    before = len(list_checkpoints(run))
    assert before >= 2
    world.dlhpc("resume", run.name, "--wait")
    assert any(newest.stem in str(details) for details in events(run, Event.WARNING))
    assert curves(run) == expected


def test_ranks_start_with_gloo_where_there_is_no_mpi(world: World) -> None:
    site = world.folder / "gloo.yaml"
    site.write_text("name: gloo\nscheduler: local\nqueues: [{name: all}]\nlauncher: {kind: gloo}\n")
    said = world.dlhpc(
        "submit", "people.yaml", "--site", str(site), "--wait", "--json", "--set", "training.epochs=1", timeout=400
    )
    run = RunDirectory(Path(json.loads(said.stdout)["path"]))
    assert json.loads(run.provenance.read_text())["attempts"][0]["collective"] == "horovod-gloo"


def test_a_loss_that_is_not_a_number_stops_the_run_with_advice(world: World) -> None:
    said = world.dlhpc(
        "submit", "people.yaml", "--wait", "--json", "--set", "learning_rate.base=1e20", "--set", "optimizer.name=sgd",
        code=1,
    )  # fmt: skip
    now = json.loads(said.stdout)
    assert now["state"] == "failed"
    assert now["attempt"] == 1
    assert "learning rate" in now["reason"] or "learning_rate" in now["reason"]
    assert "Traceback" not in world.log(RunDirectory(Path(now["path"])))
