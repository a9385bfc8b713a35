"""Diffraction patterns of a microscope: computed ones learnt, measured ones named; own networks and fine-tuning."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dlhpc.runs.checkpoints import best_checkpoint
from dlhpc.runs.directory import RunDirectory
from tests.e2e.conftest import ROOT, World, curves

EXAMPLES = ROOT / "docs/examples"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The examples of the documentation as a user would lay them out."""
    pytest.importorskip("h5py", reason="the patterns are HDF5 files")
    folder = tmp_path_factory.mktemp("microscope")
    for name in ("microscope.yaml", "own_network.yaml", "own_network.py"):
        shutil.copy(EXAMPLES / name, folder)
    made = [sys.executable, EXAMPLES / "microscope/patterns.py", folder / "patterns"]
    subprocess.run(made, check=True, timeout=300)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DLHPC_", "OMPI_"))}
    environment |= {
        "DLHPC_RUNS": str(folder / "runs"), "DLHPC_LOCAL_SPOOL": str(folder / "spool"), "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
    }  # fmt: skip
    return World(folder, environment)


def submit(world: World, spec: str, *settings: str) -> RunDirectory:
    options = [word for setting in settings for word in ("--set", setting)]
    return RunDirectory(Path(json.loads(world.dlhpc("submit", spec, "--json", "--wait", *options).stdout)["path"]))


@pytest.fixture(scope="module")
def trained(world: World) -> RunDirectory:
    return submit(world, "microscope.yaml")


def measured(world: World, run: RunDirectory) -> dict[str, object]:
    """What the network says of the patterns that the microscope measured."""
    world.dlhpc("predict", run.name, "--unseen")
    found = json.loads((run.predictions / "unseen.json").read_text())
    assert isinstance(found, dict)
    return found


def test_what_was_learnt_from_computed_patterns_holds_for_measured_ones(world: World, trained: RunDirectory) -> None:
    best = best_checkpoint(trained)
    assert best is not None
    assert best.input["dtype"] == "uint16"
    assert (best.metrics["val_accuracy"] or 0) >= 0.9
    found = measured(world, trained)
    print(f"val {best.metrics['val_accuracy']:.3f}, measured {found['accuracy']:.3f}", end=" ")
    assert found["count"] == 9
    assert float(str(found["accuracy"])) >= 0.75  # of the nine, of two grains among five classes


def test_an_own_network_with_an_own_measure_trains_and_predicts(world: World) -> None:
    run = submit(world, "own_network.yaml", "training.epochs=8")
    best = best_checkpoint(run)
    assert best is not None
    assert (best.metrics["val_accuracy"] or 0) >= 0.7
    wrong = [value for _, _, split, name, value in curves(run) if (split, name) == ("val", "sure_and_wrong")]
    assert len(wrong) == 8
    assert all(0 <= value <= 1 for value in wrong)
    (world.folder / "own_network.py").rename(world.folder / "elsewhere.py")  # the run keeps its own copy
    try:
        assert measured(world, run)["count"] == 9
    finally:
        (world.folder / "elsewhere.py").rename(world.folder / "own_network.py")


def test_mistakes_in_an_own_file_are_told_with_their_line(world: World) -> None:
    (world.folder / "broken.py").write_text("def network(shape):\n    return shape.picture_count\n")
    said = world.dlhpc(
        "submit", "own_network.yaml", "--wait", "--json", "--set", "network.file=broken.py",
        "--set", "network.options={}", code=1,
    )  # fmt: skip
    now = json.loads(said.stdout)
    run = RunDirectory(Path(now["path"]))
    assert (now["state"], now["attempt"]) == ("failed", 1)
    assert "network() failed in line 2: AttributeError" in now["reason"]
    assert "broken.py:2:" in world.log(run)
    assert "Traceback" not in world.log(run)


def test_fine_tuning_goes_on_from_a_run_with_frozen_layers(world: World, trained: RunDirectory) -> None:
    run = submit(
        world, "microscope.yaml", f"network.pretrained={trained.name}", 'network.freeze=["0", "1", "4", "5"]',
        "training.epochs=2", "learning_rate.factors={8: 0.1}",
    )  # fmt: skip
    assert "begins with the weights of" in world.log(run)
    from safetensors.torch import load_file

    before, after = best_checkpoint(trained), best_checkpoint(run)
    assert before is not None
    assert after is not None
    assert (after.metrics["val_accuracy"] or 0) >= 0.9
    old, new = load_file(before.weights.path), load_file(after.weights.path)
    same = {name for name in old if (old[name] == new[name]).all()}
    assert {f"network.{layer}" for layer in ("0.weight", "1.running_mean", "4.weight", "5.running_var")} <= same
    assert "network.12.weight" not in same
