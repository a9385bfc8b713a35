"""What a spec names on the disk: paths that work from everywhere, own code that stays as it was, packed data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlhpc.errors import StorageError, UserError
from dlhpc.jobs.plan import Planned, make_plan
from dlhpc.jobs.submit import create
from dlhpc.runs.directory import create_run
from dlhpc.runs.journal import Event, record
from dlhpc.runs.plan import read_plan
from tests.training import write_packed, write_packed_table

pytestmark = pytest.mark.usefixtures("any_machine")

FACES = "name: faces\ndata:\n  folder: photos\n"


def photos(folder: Path) -> None:
    for person in ("anna", "bert"):
        (folder / "photos" / person).mkdir(parents=True)
        for number in range(4):
            (folder / "photos" / person / f"{number}.pgm").write_bytes(b"P5 1 1 255\n\x00")


def planned(folder: Path, text: str) -> Planned:
    (folder / "it.yaml").write_text(text)
    return make_plan(folder / "it.yaml", runs=folder / "runs")


def complaint(folder: Path, text: str) -> str:
    with pytest.raises((UserError, StorageError)) as caught:
        planned(folder, text)
    return str(caught.value)


def test_all_paths_are_absolute_in_plan_and_copied_spec(tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / "street" / part).mkdir(parents=True)
    for number in range(4):
        (tmp_path / "street" / "images" / f"{number}.png").touch()
        rest = "1 1 1 1 1 1 1"
        (tmp_path / "street" / "labels" / f"{number}.txt").write_text(f"Car 0 0 0 1 2 30 40 {rest}\n")
    (tmp_path / "drives").write_text("".join(f"{number} d{number}\n" for number in range(4)))
    (tmp_path / "weights.safetensors").touch()
    made = planned(
        tmp_path,
        "name: cars\ntask: detection\ndata:\n  kitti:\n    images: street/images  # photos\n    labels: street/labels\n"
        "    sequences: drives\nnetwork:\n  pretrained: weights.safetensors\n",
    )
    kitti = made.plan.spec["data"]["kitti"]
    assert kitti["images"] == str(tmp_path / "street" / "images")
    assert kitti["labels"] == str(tmp_path / "street" / "labels")
    assert kitti["sequences"] == str(tmp_path / "drives")
    assert made.plan.spec["network"]["pretrained"] == str(tmp_path / "weights.safetensors")
    assert made.plan.spec["network"]["name"] == "detectnet"
    assert (made.plan.dataset.classes, made.plan.dataset.train, made.plan.dataset.val) == (1, 3, 1)
    text = made.document.text()
    assert f"images: {tmp_path / 'street' / 'images'}" in text
    assert "# photos" in text
    assert f"pretrained: {tmp_path / 'weights.safetensors'}" in text


def test_weights_of_an_earlier_run_are_found_when_the_plan_is_made(tmp_path: Path) -> None:
    photos(tmp_path)
    earlier = create_run(tmp_path / "runs", "first", lambda hidden, _: record(hidden, Event.CREATED))
    made = planned(tmp_path, FACES + "network: {pretrained: last}\n")
    assert made.plan.spec["network"]["pretrained"] == str(earlier.path)
    assert planned(tmp_path, FACES + "network: {pretrained: torchvision}\n").spec.network.pretrained == "torchvision"
    said = complaint(tmp_path, FACES + "network: {pretrained: fisrt}\n")
    assert f"{tmp_path / 'it.yaml'}:4: network.pretrained: there is no run `fisrt`" in said
    said = complaint(tmp_path, FACES + "network: {pretrained: weights/best.pth}\n")
    assert f"network.pretrained: there is no {tmp_path / 'weights' / 'best.pth'}" in said


def test_own_code_stays_as_it_was_submitted(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "net.py").write_text("def network(shape): ...\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "net.py").write_text("def loss(outputs, targets): ...\n")
    made = planned(tmp_path, FACES + "network: {file: net.py}\ntask_file: more/net.py\n")
    run = create(made, tmp_path / "runs")
    (tmp_path / "net.py").write_text("broken(")
    spec = read_plan(run.plan).spec
    assert Path(spec["network"]["file"]).parent == Path(spec["task_file"]).parent == run.path / "code"
    assert Path(spec["network"]["file"]).read_text() == "def network(shape): ...\n"
    assert Path(spec["task_file"]).read_text() == "def loss(outputs, targets): ...\n"


def test_one_file_may_be_network_and_task(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "own.py").write_text("import helper\nimport os\n")
    (tmp_path / "helper.py").touch()
    made = planned(tmp_path, FACES + "network: {file: own.py}\ntask_file: own.py\n")
    assert "own.py imports helper from beside it, but only own.py itself" in made.plan.warnings[0]
    spec = read_plan(create(made, tmp_path / "runs").plan).spec
    assert spec["network"]["file"] == spec["task_file"]
    assert spec["task_file"].endswith("/code/own.py")


def test_code_that_is_no_python_is_told_at_its_line(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "net.py").write_text("import os\ndef network(shape:\n    pass\n")
    said = complaint(tmp_path, FACES + "network: {file: net.py}\n")
    assert f"{tmp_path / 'net.py'}:2: network.file: is not valid Python" in said
    assert "task_file: there is no such file" in complaint(tmp_path, FACES + "task_file: gone.py\n")


def pictures(count: int, size: int) -> Any:
    return np.random.default_rng(1).integers(0, 255, (count, 3, size, size), np.uint8)


def test_a_packed_dataset_says_what_it_holds(tmp_path: Path) -> None:
    splits = {"train": (pictures(6, 320), np.arange(6) % 3), "val": (pictures(3, 320), np.arange(3))}
    with write_packed(tmp_path / "set", splits, ["a", "b", "c"]) as packed:
        made = planned(tmp_path, "name: it\ndata: {packed: set}\naugment: {crop: 300}\n")
        dataset = made.plan.dataset
        assert dataset.packed == str(tmp_path / "set")
        assert dataset.fingerprint == packed.fingerprint
    assert (dataset.classes, dataset.train, dataset.val, dataset.unseen, dataset.kind) == (3, 6, 3, 0, "pictures")
    assert (made.plan.spec["data"]["width"], made.plan.spec["network"]["name"]) == (320, "alexnet")
    assert made.catalog.counts("train") == [2, 2, 2]
    run = create(made, tmp_path / "runs")
    assert not (tmp_path / "runs" / ".datasets").exists()
    assert type(made.catalog).read(run.catalog) == made.catalog
    said = complaint(tmp_path, "name: it\ndata: {packed: set}\naugment: {crop: 330}\n")
    assert "augment.crop is 330×330, larger than the picture of 320×320" in said
    said = complaint(tmp_path, "name: it\ntask: detection\ndata: {packed: set}\n")
    assert "was made for classification, but the task is detection" in said
    assert "Write `task: classification`" in said


def test_packed_rows_get_the_network_for_rows(tmp_path: Path) -> None:
    rows = np.zeros((5, 4), np.float32)
    splits = {"train": (rows, np.arange(5.0)[:, None]), "val": (rows[:2], np.arange(2.0)[:, None])}
    write_packed_table(tmp_path / "set", splits, task="regression").close()
    made = planned(tmp_path, "name: it\ntask: regression\ndata: {packed: set}\n")
    assert made.plan.spec["network"]["name"] == "mlp"
    assert (made.plan.dataset.kind, made.plan.dataset.targets, made.plan.dataset.classes) == ("table", 1, 0)
    said = complaint(tmp_path, "name: it\ntask: regression\ndata: {packed: set}\nnetwork: {name: smallnet}\n")
    assert "rows of a table need mlp" in said


def test_a_folder_that_was_never_packed_is_told(tmp_path: Path) -> None:
    photos(tmp_path)
    assert "there is no packed dataset here" in complaint(tmp_path, "name: it\ndata: {packed: photos}\n")
