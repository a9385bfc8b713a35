"""Detection from a folder of pictures to boxes that fit: through the local scheduler, and killed in between."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlhpc.data.samples import DONT_CARE, Boxes, join_boxes
from dlhpc.data.streets import draw
from dlhpc.runs.directory import RunDirectory
from tests.e2e.conftest import ROOT, World, curves
from tests.e2e.test_resume import same_result, train_and_kill
from tests.training import has_mpi, make_run, train, write_packed

EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def world(tmp_path: Path) -> World:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DLHPC_", "OMPI_"))}
    environment |= {
        "DLHPC_RUNS": str(tmp_path / "runs"),
        "DLHPC_LOCAL_SPOOL": str(tmp_path / "spool"),
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
    }
    return World(tmp_path, environment)


def submit(world: World, spec: str, **settings: Any) -> RunDirectory:
    options = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    said = world.dlhpc("submit", spec, "--json", "--wait", *options, timeout=1200)
    return RunDirectory(Path(json.loads(said.stdout)["path"]))


def first_above(run: RunDirectory, name: str, value: float) -> float:
    """The epoch after which a measure first was above ``value``."""
    return min(epoch for epoch, _, _, measure, found in curves(run) if measure == name and found > value)


def test_cars_are_found_in_made_up_streets(world: World) -> None:
    """The centre's trial as its example tells it, with small pictures and a quarter of DetectNet's channels."""
    world_of_streets = [sys.executable, "-m", "dlhpc.data.streets", "streets", "--count", "600", "--seed", "1"]
    subprocess.run(world_of_streets, cwd=world.folder, env=world.environment, check=True, timeout=300)
    shutil.copy(EXAMPLES / "cars.yaml", world.folder)
    run = submit(
        world,
        "cars.yaml",
        **{
            "data.kitti.images": "streets/images",
            "data.kitti.labels": "streets/labels",
            "data.kitti.max_occluded": 1,  # KITTI's "moderate" level leaves out what is hidden or cut off by more
            "data.kitti.max_truncated": 0.3,
            "data.width": 320,
            "data.height": 96,
            "network.options.width": 0.25,
            "augment.shift_pixels": 0,
            "augment.scale": [1, 1],
            "augment.saturation": 0.3,
            "learning_rate.base": 0.002,
            "learning_rate.policy": "cosine",
            "training.epochs": 9,
            "training.batch_size": 8,
            "job.cores_per_rank": 2,
            "job.walltime": "30min",
        },
    )
    found = json.loads(run.evaluation.read_text())
    assert found["ap50"] >= 0.90
    assert found["digits_map"] == pytest.approx(found["precision"] * found["recall"])
    assert found["counts"]["dont_care_regions"] > 0
    names = {f"{split} {name}" for _, _, split, name, _ in curves(run)}
    assert {"train loss_bbox", "train loss_coverage", "val loss_bbox", "val precision", "val recall", "val ap"} <= names
    assert first_above(run, "ap50", 0.1) <= 3  # users of DIGITS waited for tens of epochs


def streets_as_arrays(first: int, count: int) -> tuple[np.ndarray, Boxes]:
    """Made-up streets of 128×64 pixels and the boxes of their cars."""
    pictures, boxes = [], []
    for number in range(first, first + count):
        street = draw(3, number, 128, 64)
        pictures.append(street.picture.transpose(2, 0, 1))
        rows = [line.split() for line in street.labels]
        corners = np.array([[float(value) for value in row[4:8]] for row in rows], np.float32).reshape(-1, 4)
        boxes.append((corners, np.array([0 if row[0] == "Car" else DONT_CARE for row in rows], np.int64)))
    return np.stack(pictures), join_boxes(boxes)


def run_of_cars(folder: Path, splits: dict[str, tuple[np.ndarray, Boxes]], network: dict[str, Any]) -> RunDirectory:
    """A run of two ranks with boxes; its packed pictures are written anew, as those of detection."""
    spec = {
        "task": "detection",
        "data": {"folder": None, "kitti": {"images": "/x", "labels": "/y"}},
        "network": network,
        "detection": {"min_height": 10, "min_covered": 12, "group_threshold": 1, "coverage": 0.3},
        "augment": {"flip_horizontal": True, "shift_pixels": 4},
        "optimizer": {"name": "adam"},
        "learning_rate": {"base": 0.003, "policy": "cosine"},
        "training": {"epochs": 6, "batch_size": 3, "validation_interval": 0.5, "snapshot_interval": 0.7},
    }
    numbers = {name: (pictures, np.zeros(len(pictures), np.int64)) for name, (pictures, _) in splits.items()}
    run = make_run(folder, spec=spec, ranks=2, splits=numbers, classes=1)
    packed = folder.parent / f"{folder.name}-packed"
    shutil.rmtree(packed)
    write_packed(packed, splits, ["class 0"], task="detection").close()
    return run


@pytest.mark.skipif(not has_mpi(), reason="Horovod with MPI and mpirun are needed")
@pytest.mark.parametrize(
    "network",
    [{"name": "detectnet", "options": {"width": 0.1}}, {"name": "ssdlite"}],
    ids=lambda network: network["name"],
)
def test_killed_at_random_moments_and_resumed_to_the_same_bits(tmp_path: Path, network: dict[str, Any]) -> None:
    splits = {"train": streets_as_arrays(0, 25), "val": streets_as_arrays(25, 7)}
    alone = run_of_cars(tmp_path / "alone", splits, network)
    done = train(alone)
    assert done.returncode == 0, done.stderr
    killed = run_of_cars(tmp_path / "killed", splits, network)
    train_and_kill(killed, 1, random.uniform(0.5, 2))
    train_and_kill(killed, 2, random.uniform(2.5, 5))
    done = train(killed, 3)
    assert done.returncode == 0, done.stderr
    same_result(killed, alone)
