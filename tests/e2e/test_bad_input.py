"""Bad input and bad luck: a clear message, the right exit code, nothing lost, nothing half-written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.find import all_runs
from tests.e2e.conftest import ROOT, World

LIGHT = ["torch", "numpy", "pydantic", "PIL", "horovod"]


@pytest.mark.parametrize("words", [["--help"], ["status"], ["submit", "--help"], ["status", "--json"]])
def test_light_commands_import_nothing_heavy(world: World, words: list[str]) -> None:
    code = (
        "import sys\nfrom dlhpc.__main__ import main\nsys.argv = ['dlhpc', *sys.argv[1:]]\n"
        f"try: main()\nfinally: print([name for name in {LIGHT} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=world.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


def test_a_bad_spec_submits_nothing(world: World) -> None:
    world.spec.write_text("name: people\ndata: {foldr: people}\n")
    said = world.dlhpc("submit", "people.yaml", code=2).stderr
    assert "people.yaml:2" in said
    assert "Did you mean `folder`?" in said
    assert not world.runs.exists()


def test_missing_data_submits_nothing(world: World) -> None:
    said = world.dlhpc("submit", "people.yaml", "--set", "data.folder=peopel", code=2).stderr
    assert "peopel" in said
    assert not world.runs.exists()


def test_a_class_with_too_few_pictures_is_named_with_the_numbers(world: World) -> None:
    for picture in sorted((world.folder / "people" / "s3").iterdir())[1:]:
        picture.unlink()
    said = world.dlhpc("plan", "people.yaml", code=2).stderr
    assert "s3" in said
    assert "1 picture" in said


def test_broken_pictures_are_named_and_fatal_or_skipped_as_the_spec_says(world: World) -> None:
    (world.folder / "people" / "s1" / "1.pgm").write_bytes(b"")
    whole = (world.folder / "people" / "s2" / "2.pgm").read_bytes()
    (world.folder / "people" / "s2" / "2.pgm").write_bytes(whole[: len(whole) // 2])
    said = world.dlhpc("submit", "people.yaml", "--wait", "--json", code=1)
    run = RunDirectory(Path(json.loads(said.stdout)["path"]))
    assert world.state(run)["attempt"] == 1  # bad data is never retried
    assert run.exit_file(1).read_text() == "65\n"
    log = world.log(run)
    assert "s1/1.pgm" in log
    assert "s2/2.pgm" in log
    assert "Traceback" not in log

    run = world.submit("data.broken=skip", "training.epochs=1")
    assert len(json.loads(run.provenance.read_text())["dataset"]["skipped"]) == 2


def test_an_unreadable_run_directory_is_said(world: World) -> None:
    (world.runs / "broken").mkdir(parents=True)
    (world.runs / "broken" / "journal.jsonl").write_text('{"event": "crea')
    (found,) = json.loads(world.dlhpc("status", "--json").stdout)
    assert found["damaged"] == 1
    world.dlhpc("report", "broken", code=None)
    assert "there is no run" in world.dlhpc("logs", "nothing", code=2).stderr
    assert "not a run directory" in world.dlhpc("resume", str(world.folder), code=2).stderr


def test_a_missing_launcher_is_said_before_anything_is_submitted(world: World) -> None:
    site = world.folder / "mpi.yaml"
    site.write_text(
        "name: mpi\nqueues: [{name: all}]\nlauncher: {kind: mpirun}\nenvironments: {bare: {prefix: bare}}\n"
    )
    world.environment["PATH"] = str(Path(sys.executable).parent)
    said = world.dlhpc("submit", "people.yaml", "--site", str(site), code=2).stderr
    assert "mpirun" in said
    assert not world.runs.exists()


def test_two_submits_at_the_same_moment_are_two_runs(world: World) -> None:
    both = [
        world.start("submit", "people.yaml", "--wait", "--json", "--set", "training.epochs=1", "--set", f"name={name}")
        for name in ("one", "two")
    ]
    states = [json.loads(process.communicate(timeout=240)[0])["state"] for process in both]
    assert states == ["finished", "finished"]
    assert len(all_runs(world.runs)) == 2


@pytest.mark.parametrize("seed", range(4))
def test_ctrl_c_during_submit_leaves_a_whole_run_or_none(world: World, seed: int) -> None:
    process = world.start("submit", "people.yaml", "--set", "training.epochs=1")
    time.sleep(random.Random(seed).random() * 1.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    # Before our first line Python may show lines of its own. Killed by the signal, which a shell calls 130, it is where
    # Python was starting, at its very end, or where a KeyboardInterrupt that we caught had met it inside of exec().
    if f"{ROOT}/dlhpc" in err or "Traceback" not in err:
        assert "Traceback" not in err
        assert process.returncode in (0, 130, -signal.SIGINT)
    for run in all_runs(world.runs):
        assert run.plan.exists()
        assert run.script.exists()
        now = world.state(run)
        if now["state"] == "not submitted":
            world.dlhpc("resume", run.name)
        world.dlhpc("cancel", run.name)
    assert not list(world.runs.glob(".new-*")) if world.runs.exists() else True


def test_ctrl_c_while_waiting_leaves_the_run_going(world: World) -> None:
    process = world.start("submit", "people.yaml", "--wait", "--set", "training.epochs=2")
    end = time.monotonic() + 100
    while not all_runs(world.runs) or world.state(world.only_run())["state"] != "running":
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the run goes on" in err
    world.until(world.only_run(), "finished")


@pytest.fixture
def small_disk(world: World) -> Iterator[Path]:
    """A file system of three megabytes for the runs."""
    world.runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(world.runs)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield world.runs
    subprocess.run(["umount", "--lazy", str(world.runs)], check=False)


def test_a_full_disk_while_submitting_leaves_nothing_half_written(world: World, small_disk: Path) -> None:
    with (small_disk / "filler").open("wb") as filler, pytest.raises(OSError, match="No space"):
        filler.write(b"x" * 8_000_000)
    said = world.dlhpc("submit", "people.yaml", code=1).stderr
    assert "No space left" in said
    assert "Free some space" in said
    assert [entry.name for entry in small_disk.iterdir()] == ["filler"]


def test_a_full_disk_during_training_fails_kindly_and_resumes_when_there_is_space(
    world: World, small_disk: Path
) -> None:
    # The packed pictures fit, a few checkpoints do not.
    run = world.submit("job.crash_retries=0", "training.keep_every=1", wait=False)
    now = world.until(run, "failed")
    assert "space" in now["reason"]
    assert "Traceback" not in world.log(run)
    subprocess.run(["mount", "-o", "remount,size=1g", str(small_disk)], check=True)
    world.dlhpc("resume", run.name, "--wait")
    assert world.state(run)["state"] == "finished"


def test_a_run_whose_submission_fails_is_kept_and_its_user_told_how_to_go_on(world: World) -> None:
    spool = world.environment["DLHPC_LOCAL_SPOOL"]
    Path(spool).touch()  # a file where the queue should lie
    said = world.dlhpc("submit", "people.yaml", "--set", "training.epochs=1", code=1).stderr
    run = world.only_run()
    assert f"`dlhpc resume {run.name}` submits it" in said
    assert "dlhpc resume" in world.state(run)["reason"]
    Path(spool).unlink()
    world.dlhpc("resume", run.name, "--wait")
