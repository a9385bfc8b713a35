"""A table of real concrete mixes: strength out of eight numbers, against the mean and against scikit-learn; killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dlhpc.data.catalog import Catalog
from dlhpc.runs.directory import RunDirectory
from tests.e2e.conftest import ROOT, World, curves


@pytest.fixture(scope="module")
def mixes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 1,030 mixes as a CSV file."""
    path = tmp_path_factory.mktemp("concrete") / "concrete.csv"
    subprocess.run([sys.executable, ROOT / "docs/examples/concrete/table.py", path], check=True, timeout=300)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, mixes: Path) -> World:
    """The example of the documentation as a user would lay it out."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copy(mixes, folder / "concrete.csv")
    shutil.copy(ROOT / "docs/examples/concrete.yaml", folder)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DLHPC_", "OMPI_"))}
    environment |= {
        "DLHPC_RUNS": str(folder / "runs"), "DLHPC_LOCAL_SPOOL": str(folder / "spool"), "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
    }  # fmt: skip
    return World(folder, environment)


def submit(world: World, *settings: str, wait: bool = True) -> RunDirectory:
    options = [word for setting in settings for word in ("--set", setting)]
    said = world.dlhpc("submit", "concrete.yaml", "--json", *(["--wait"] if wait else []), *options)
    return RunDirectory(Path(json.loads(said.stdout)["path"]))


@pytest.fixture(scope="module")
def left_alone(world: World) -> RunDirectory:
    return submit(world)


def test_strength_is_predicted_better_than_by_the_mean_and_by_a_straight_line(
    left_alone: RunDirectory, world: World
) -> None:
    found = json.loads(left_alone.evaluation.read_text())
    rows = {split: rows.numbers for split, rows in Catalog.read(left_alone.catalog).rows.items()}
    values = np.loadtxt(world.folder / "concrete.csv", delimiter=",", skiprows=1)
    (inputs, truths), (new, truth) = ((values[rows[name], :-1], values[rows[name], -1]) for name in ("train", "val"))
    print(f"RMSE in MPa: dlhpc {found['rmse']:.2f} (R² {found['r2']:.3f}), mean {np.std(truth):.2f}", end="")
    assert found["targets"][0]["mean_predictor"]["rmse"] == pytest.approx(
        float(np.sqrt(np.mean((truth - truths.mean()) ** 2))), rel=1e-9
    )
    assert found["rmse"] < 0.45 * found["targets"][0]["mean_predictor"]["rmse"]
    assert found["r2"] > 0.8

    ensemble = pytest.importorskip("sklearn.ensemble")
    linear_model = pytest.importorskip("sklearn.linear_model")
    theirs = {
        "ridge": linear_model.Ridge(),
        "random forest": ensemble.RandomForestRegressor(200, random_state=0),
        "gradient boosting": ensemble.GradientBoostingRegressor(random_state=0),
    }
    errors = {
        name: float(np.sqrt(np.mean((model.fit(inputs, truths).predict(new) - truth) ** 2)))
        for name, model in theirs.items()
    }
    print("".join(f", {name} {error:.2f}" for name, error in errors.items()))
    assert found["rmse"] < 0.75 * errors["ridge"]
    assert found["rmse"] < 1.25 * min(errors["random forest"], errors["gradient boosting"])


def test_killed_at_a_random_moment_it_goes_on_to_the_same_bits(left_alone: RunDirectory, world: World) -> None:
    run = submit(world, wait=False)
    world.until(run, "running", epoch=random.randint(1, 60))
    time.sleep(0.3 * random.random())
    for process in sorted(world.processes(run), key=lambda process: process.pid):
        process.kill()
    world.until(run, "failed")
    world.dlhpc("resume", run.name, "--wait")
    assert curves(run) == curves(left_alone)
    assert run.evaluation.read_text() == left_alone.evaluation.read_text()


def test_a_table_that_changes_meanwhile_is_refused(world: World) -> None:
    settings = ("data.table.file=changing.csv", "training.epochs=1")
    text = (world.folder / "concrete.csv").read_text()
    (world.folder / "changing.csv").write_text(text)
    run = submit(world, *settings, "job.hold=true", wait=False)
    (world.folder / "changing.csv").write_text(text.replace("79.99", "79.90"))
    world.dlhpc("release", run.name)
    assert "changed since the run was submitted" in world.until(run, "failed")["reason"]


def test_mistakes_in_a_table_are_told_with_their_lines(world: World) -> None:
    text = (world.folder / "concrete.csv").read_text()
    lines = text.splitlines()
    (world.folder / "wrong.csv").write_text(
        "\n".join([*lines[:6], lines[6].rsplit(",", 1)[0] + ",NaN", *lines[7:]]) + "\n"
    )
    said = world.dlhpc("submit", "concrete.yaml", "--set", "data.table.file=wrong.csv", code=2).stderr
    assert "wrong.csv:7: the target (compressive_strength) has no value here" in said
    said = world.dlhpc("plan", "concrete.yaml", "--set", "data.table.targets=strength", code=2).stderr
    assert "Did you mean `compressive_strength`?" in said
