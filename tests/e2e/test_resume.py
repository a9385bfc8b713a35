"""Two real Horovod ranks are killed, stopped and resumed: the curves are those of a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dlhpc.errors import AttemptExit
from dlhpc.runs.checkpoints import best_checkpoint, list_checkpoints
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import read_journal
from tests.training import command, curves, environment, events, has_mpi, make_run, outcome, stripes, train

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not has_mpi(), reason="Horovod with MPI and mpirun are needed")]

# All that has a state: batch statistics that differ between ranks, dropout, momentum, augmentation, portions,
# intervals that are no whole epochs, uneven shares (49 pictures), a validation set of odd size.
SPEC = {
    "network": {"name": "smallnet"},
    "optimizer": {"name": "nesterov"},
    "augment": {"flip_vertical": True, "shift_pixels": 2},
    "learning_rate": {"base": 0.05, "policy": "cosine", "warmup_epochs": 1},
    "training": {"epochs": 12, "batch_size": 3, "accumulate": 2, "validation_interval": 0.5, "snapshot_interval": 0.7},
}
SPLITS = {"train": stripes(49), "val": stripes(21, seed=1)}


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = make_run(tmp_path_factory.mktemp("runs") / "whole", spec=SPEC, ranks=2, splits=SPLITS)
    done = train(run)
    assert done.returncode == 0, done.stderr
    assert outcome(run) == 0
    return run


def kill_everything(launcher: subprocess.Popen[str]) -> None:
    """As when a node dies: launcher and ranks at once, nobody may say goodbye."""
    family = [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]
    for process in family:
        process.suspend()
    for process in family:
        process.kill()
    launcher.communicate()


def train_and_kill(run: RunDirectory, attempt: int, epochs: float) -> None:
    """Kill the attempt somewhat after it has trained so many epochs."""
    launcher = subprocess.Popen(
        command(run), env=environment(attempt), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and launcher.poll() is None:
        if curves(run) and curves(run)[-1][0] >= epochs:
            break
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.1))
    kill_everything(launcher)


def damage_newest(run: RunDirectory) -> Path:
    path = list_checkpoints(run)[-1].weights.path
    content = bytearray(path.read_bytes())
    content[-100] ^= 16
    path.write_bytes(content)
    return path


def same_result(run: RunDirectory, reference: RunDirectory) -> None:
    assert curves(run) == curves(reference)
    assert json.loads(run.evaluation.read_text()) == json.loads(reference.evaluation.read_text())
    mine, theirs = best_checkpoint(run), best_checkpoint(reference)
    assert mine is not None
    assert theirs is not None
    assert (mine.step, mine.weights.sha256) == (theirs.step, theirs.weights.sha256)


def test_killed_at_random_moments_and_resumed(left_alone: RunDirectory, tmp_path: Path) -> None:
    run = make_run(tmp_path / "killed", spec=SPEC, ranks=2, splits=SPLITS)
    train_and_kill(run, 1, random.uniform(1, 4))
    train_and_kill(run, 2, random.uniform(5, 8))
    damaged = damage_newest(run)
    done = train(run, 3)
    assert done.returncode == 0, done.stderr
    warnings = [entry.details["message"] for entry in read_journal(run)[0] if entry.event == "warning"]
    assert len(warnings) == 1
    assert str(damaged) in warnings[0]
    same_result(run, left_alone)


def test_stopped_by_the_deadline_in_mid_epoch_and_resumed(left_alone: RunDirectory, tmp_path: Path) -> None:
    run = make_run(tmp_path / "stopped", spec=SPEC, ranks=2, splits=SPLITS)
    # Five steps an epoch and a deadline that has passed: one step an attempt, the third has a validation due.
    for attempt in (1, 2, 3):
        train(run, attempt, DLHPC_DEADLINE=str(int(time.time())))
        assert outcome(run, attempt) == AttemptExit.CONTINUE
        assert list_checkpoints(run)[-1].step_in_epoch == attempt
        assert events(run)[-2:] == ["checkpointed", "stopped"]
    done = train(run, 4)
    assert done.returncode == 0, done.stderr
    same_result(run, left_alone)


def test_asked_to_stop_by_a_signal_or_a_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "asked", spec={**SPEC, "training": {**SPEC["training"], "epochs": 100000}}, ranks=2)
    for attempt, ask in enumerate(("signal", "file"), start=1):
        launcher = subprocess.Popen(
            command(run), env=environment(attempt), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        until = time.monotonic() + 120
        while events(run).count("epoch") < 2 * attempt and time.monotonic() < until:
            time.sleep(0.05)
        if ask == "signal":
            launcher.send_signal(signal.SIGUSR2)  # mpirun hands it on
        else:
            run.stop_file(attempt).touch()
        said, _ = launcher.communicate(timeout=120)
        assert outcome(run, attempt) == AttemptExit.CONTINUE, said
        assert events(run)[-1] == "stopped"


def test_one_rank_and_two_ranks_with_the_same_global_batch(tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        training = {"epochs": 3, "batch_size": 8 // ranks, "seed": 5}
        run = make_run(tmp_path / f"ranks{ranks}", spec={"training": training}, ranks=ranks, splits=SPLITS)
        done = train(run)
        assert done.returncode == 0, done.stderr
        found.append(curves(run))
    one, two = found
    assert [point[:4] for point in one] == [point[:4] for point in two]
    assert [point[4] for point in one] == pytest.approx([point[4] for point in two], rel=1e-4)


def test_memory_that_fails_on_one_rank_halves_the_batch_on_all(tmp_path: Path) -> None:
    spec = {"training": {"epochs": 2, "batch_size": 8}}
    wide = make_run(tmp_path / "wide", spec=spec, ranks=2, splits=SPLITS)
    tight = make_run(tmp_path / "tight", spec=spec, ranks=2, splits=SPLITS)
    assert train(wide).returncode == 0
    words = command(tight)
    start = [*words[: words.index("dlhpc.train")], "tests.narrow", str(tight.path), "1", "3"]
    done = subprocess.run(start, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    chosen = json.loads(tight.chosen.read_text())
    assert (chosen["halvings"], chosen["evaluation_batch"]) == (1, 2)
    assert [point[:4] for point in curves(tight)] == [point[:4] for point in curves(wide)]
    assert [point[4] for point in curves(tight)] == pytest.approx([point[4] for point in curves(wide)], rel=1e-3)


def test_an_error_on_one_rank_ends_all_of_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "broken", ranks=2)
    packed = run.path.parent / "broken-packed" / "pictures-00000.npy"
    packed.write_bytes(packed.read_bytes()[:-1])
    done = train(run)
    assert outcome(run) == AttemptExit.BAD_DATA
    assert done.stderr.count("dlhpc:") == 1
    assert "Traceback" not in done.stderr
    assert events(run)[-1] == "failed"


def test_ranks_that_do_not_find_each_other_do_not_start(tmp_path: Path) -> None:
    run = make_run(tmp_path / "lonely", ranks=2)
    alone = subprocess.run(
        [sys.executable, "-m", "dlhpc.train", str(run.path)], env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert alone.returncode == AttemptExit.BAD_CONFIGURATION
    assert "the plan has 2 ranks, but 1 found each other" in alone.stderr


def test_gloo_ranks_train_and_resume(tmp_path: Path) -> None:
    run = make_run(tmp_path / "gloo", ranks=2, launcher="gloo", spec={"training": {"epochs": 2, "batch_size": 8}})
    search = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    train(run, 1, DLHPC_DEADLINE="1", **search)
    assert outcome(run, 1) == AttemptExit.CONTINUE
    done = train(run, 2, **search)
    assert done.returncode == 0, done.stderr
    assert events(run)[-1] == "finished"
    provenance = json.loads(run.provenance.read_text())
    assert [attempt["collective"] for attempt in provenance["attempts"]] == ["horovod-gloo"] * 2
