"""Pictures that belong to several classes, from list files to predictions, through two real ranks."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlhpc.runs.checkpoints import best_checkpoint
from dlhpc.runs.directory import RunDirectory
from tests.e2e.conftest import ROOT, World

SHAPES = ("band", "dot", "frame")


def draw(random: np.random.Generator, there: list[str]) -> Image.Image:
    """A noisy picture with what is ``there`` at places that vary."""
    values = random.integers(0, 90, (32, 32))
    row, column = random.integers(6, 22, 2)
    if "band" in there:
        values[row : row + 4] += 90
    if "dot" in there:
        values[column : column + 5, row : row + 5] = 250
    if "frame" in there:
        values[[0, 1, -1, -2]] = values[:, [0, 1, -1, -2]] = 160
    return Image.fromarray(values.astype(np.uint8))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("labels")
    (folder / "pictures").mkdir()
    random = np.random.default_rng(1)
    for split, count in (("train", 160), ("val", 61)):
        lines = []
        for number in range(count):
            there = [name for name in SHAPES if random.random() < 0.5] or ["dot"]
            draw(random, there).save(folder / f"pictures/{split}{number}.png")
            lines.append(f"pictures/{split}{number}.png {','.join(there)}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    (folder / "labels.yaml").write_text(
        "name: labels\n"
        "data:\n  lists: {train: train.txt, val: val.txt}\n  several_labels: true\n  width: 32\n  height: 32\n"
        "network: {name: smallnet}\n"
        "optimizer: {name: adam}\n"
        "learning_rate: {base: 0.003, policy: cosine}\n"
        "training: {epochs: 12, batch_size: 8, best: val_map, class_weights: balanced}\n"
        "job: {ranks_per_node: 2, cores_per_rank: 1, walltime: 10min}\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DLHPC_", "OMPI_"))}
    environment |= {
        "DLHPC_RUNS": str(folder / "runs"), "DLHPC_LOCAL_SPOOL": str(folder / "spool"), "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
    }  # fmt: skip
    return World(folder, environment)


def test_several_labels_from_lists_to_predictions(world: World) -> None:
    said = world.dlhpc("submit", "labels.yaml", "--json", "--wait")
    run = RunDirectory(Path(json.loads(said.stdout)["path"]))
    assert json.loads(run.provenance.read_text())["attempts"][0]["ranks"] == 2
    found = json.loads(run.evaluation.read_text())
    truths = [line.split()[1].split(",") for line in (world.folder / "val.txt").read_text().splitlines()]
    rows = {row["name"]: row for row in found["per_class"]}
    assert {name: row["count"] for name, row in rows.items()} == {
        name: sum(name in truth for truth in truths) for name in SHAPES
    }
    assert found["map"] == pytest.approx(np.mean([row["ap"] for row in rows.values()]))
    assert found["map"] >= 0.9
    best = best_checkpoint(run)
    assert best is not None
    assert best.metrics["val_map"] == found["map"]

    world.dlhpc("predict", run.name, *(f"pictures/val{number}.png" for number in range(61)), "--csv", "named.csv")
    with (world.folder / "named.csv").open(newline="") as file:
        named = list(csv.DictReader(file))
    shares = [{row[f"class_{rank}"]: float(row[f"probability_{rank}"]) for rank in (1, 2, 3)} for row in named]
    right = [{name for name, share in row.items() if share > 0.5} == set(truth) for row, truth in zip(shares, truths)]
    assert np.mean(right) == pytest.approx(found["accuracy"], abs=0.02)
    world.dlhpc("report", run.name)
