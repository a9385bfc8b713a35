"""Two real ranks over everything that can carry their gradients: the same curves, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from dlhpc.errors import AttemptExit
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import read_journal
from tests.training import ROOT, command, curves, environment, has_mpi, make_run, outcome, stripes, train

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not has_mpi(), reason="Horovod with MPI and mpirun are needed")]

BIN = Path(sys.executable).parent
SEARCH = {"PATH": f"{BIN}:{os.environ['PATH']}"}
WAYS = [
    ("mpirun", "horovod", "horovod-mpi"),
    ("gloo", "horovod", "horovod-gloo"),
    ("torchrun", "ddp", "ddp-gloo"),
    ("mpirun", "ddp", "ddp-gloo"),
]
SPEC: dict[str, Any] = {"training": {"epochs": 2, "batch_size": 8}, "augment": {"shift_pixels": 2}}


def run_over(folder: Path, launcher: str, strategy: str, **spec: Any) -> RunDirectory:
    return make_run(folder, ranks=2, launcher=launcher, spec={**SPEC, "distributed": {"strategy": strategy}, **spec})


@pytest.mark.parametrize(("launcher", "strategy", "name"), WAYS)
def test_summed_gradients_are_those_of_one_large_batch(launcher: str, strategy: str, name: str, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "tests" / "e2e" / "ranks_gradients.py"), launcher, strategy]
    start = {
        "mpirun": ["mpirun", "-np", "2", "--bind-to", "none", "--oversubscribe"],
        "gloo": [str(BIN / "horovodrun"), "--gloo", "-np", "2", "-H", "localhost:2"],
        "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python"],
    }[launcher]
    done = subprocess.run(
        [*start, *script, str(tmp_path / "meeting")],
        env=environment(**SEARCH),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"agrees over {name}") == 2


def test_every_way_gives_the_curves_of_one_rank_with_the_same_global_batch(tmp_path: Path) -> None:
    alone = make_run(tmp_path / "alone", spec={**SPEC, "training": {"epochs": 2, "batch_size": 16}})
    assert train(alone).returncode == 0
    expected = curves(alone)
    for launcher, strategy, name in WAYS:
        run = run_over(tmp_path / f"{launcher}-{strategy}", launcher, strategy)
        # As if an attempt of this number had died before: its address leads nowhere, or to somebody else.
        stale = {"hosts": ["127.0.0.1"], "host": "elsewhere", "port": 9, "word": "old"}
        run.meeting_file(1).write_text(json.dumps(stale))
        done = train(run, **SEARCH)
        assert outcome(run) == AttemptExit.FINISHED, done.stderr
        provenance = json.loads(run.provenance.read_text())
        assert provenance["attempts"][0]["collective"] == name
        found = curves(run)
        assert [point[:4] for point in found] == [point[:4] for point in expected]
        for one, other in zip(found, expected, strict=True):
            assert one[4] == pytest.approx(other[4], rel=1e-3, abs=1e-4), (name, one, other)


def test_shared_batch_normalisation_is_that_of_one_rank_with_the_whole_batch(tmp_path: Path) -> None:
    # 49 pictures in steps of up to 16: in some steps the two ranks have different numbers of them.
    splits = {"train": stripes(49, size=32), "val": stripes(20, size=32, seed=1)}
    common = {"network": {"name": "resnet18"}, "learning_rate": {"base": 0.001}}
    alone = make_run(
        tmp_path / "alone", splits=splits, spec={**SPEC, **common, "training": {"epochs": 2, "batch_size": 16}}
    )
    assert train(alone).returncode == 0
    training = {"epochs": 2, "batch_size": 8, "sync_batch_norm": True}
    run = make_run(
        tmp_path / "shared", splits=splits, ranks=2, launcher="mpirun", spec={**SPEC, **common, "training": training}
    )
    done = train(run, **SEARCH)
    assert outcome(run) == AttemptExit.FINISHED, done.stderr
    for one, other in zip(curves(run), curves(alone), strict=True):
        assert one[:4] == other[:4]
        assert one[4] == pytest.approx(other[4], rel=1e-2, abs=1e-3), (one, other)


def test_a_rank_that_is_killed_ends_the_others_with_a_sentence(tmp_path: Path) -> None:
    run = run_over(tmp_path / "run", "torchrun", "ddp", training={"epochs": 5000, "batch_size": 8})
    launcher = subprocess.Popen(
        command(run), env=environment(**SEARCH), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        until = time.monotonic() + 120
        while not run.curves.exists() and time.monotonic() < until:
            time.sleep(0.2)
        ranks = [one for one in psutil.Process(launcher.pid).children() if "dlhpc.train" in one.cmdline()]
        victim = next(one for one in ranks if one.environ().get("RANK") == "1")
        victim.send_signal(signal.SIGKILL)
        said, _ = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
        launcher.wait()
    assert launcher.returncode != 0
    assert outcome(run) == 1  # a crash: another attempt may end differently
    last = read_journal(run)[0][-1]
    assert "lost contact with the other ranks" in last.details["reason"], said
