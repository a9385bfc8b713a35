"""The report of detection, regression and several labels: tables and drawings of what the best epoch got."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlhpc.files import replace_json
from dlhpc.report.page import write_report
from dlhpc.report.results import as_result
from dlhpc.runs.curves import Point, write_points
from dlhpc.runs.directory import RunDirectory
from tests.unit import report_runs as made

TABLE = {"table": {"file": "mixes.csv", "targets": ["strength"]}}
KITTI = {"kitti": {"images": "images", "labels": "labels"}, "width": 320, "height": 96}
REGRESSION = {
    "task": "regression", "split": "val", "epoch": 4, "step": 16, "loss": 0.1,
    "targets": [
        {"name": "strength <b>", "mae": 3.25, "rmse": 4.5, "r2": 0.91, "mean": 35.8,
         "mean_predictor": {"mae": 13.0, "rmse": 16.0, "r2": -0.001}},
    ],
    "pairs": {"strength <b>": [[30.0, 31.5], [40.0, 38.0]]},
}  # fmt: skip
DETECTION = {
    "task": "detection", "split": "val", "epoch": 4, "step": 16, "ap50": 0.95,
    "per_class": [
        {"name": "car", "true": 120, "right": 110, "precision": 0.93, "ap50": 0.95, "curve": [[0.0, 1.0], [0.5, 0.9]]},
        {"name": "van", "true": 0, "right": 0, "precision": None, "ap50": None, "curve": []},
    ],
}  # fmt: skip


def page_of(folder: Path, spec: dict[str, Any], evaluation: dict[str, Any], measure: str) -> str:
    run = made.make_run(folder, [], spec={"augment": {}, **spec})
    for epoch in range(1, 5):
        values = {"train_loss": 1 / epoch, "val_loss": 1 / epoch, f"val_{measure}": 1 - 1 / epoch}
        points = [
            Point(float(epoch), 4 * epoch, *name.split("_", 1), value=value, time=0.0) for name, value in values.items()
        ]
        write_points(run.curves, points)
    replace_json(run.evaluation, evaluation)
    return write_report(run).read_text()


def test_a_regression_shows_its_targets_beside_what_the_mean_gets(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"task": "regression", "network": {"name": "mlp"}, "data": TABLE}, REGRESSION, "r2")
    assert "strength &lt;b&gt;</th>" in page
    for number in ("3.25", "4.5", "0.91", "13", "35.8"):
        assert f">{number}</td>" in page
    assert "prediction against truth" in page
    assert "validation R² is highest at epoch 4 with 0.750" in page
    assert "always saying the mean gives 0.000" in page
    assert "Confusion matrix" not in page


def test_a_detection_shows_its_classes_and_what_was_not_there(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"task": "detection", "network": {"name": "detectnet"}, "data": KITTI}, DETECTION, "ap50")
    assert ">0.95</td>" in page
    assert ">–</td>" in page  # no van was there
    assert "Precision against recall" in page
    assert "validation AP50 is highest at epoch 4 with 75.0%" in page


def test_several_labels_have_a_row_for_each_class(tmp_path: Path) -> None:
    rows = [{"name": "crack", "count": 5, "right": 4, "precision": 1.0, "recall": 0.8, "f1": 0.889, "ap": 0.93}]
    evaluation = {"task": "classification", "epoch": 4, "several_labels": True, "per_class": rows}
    lists = {"lists": {"train": "train.txt", "val": "val.txt"}, "several_labels": True, "width": 64, "height": 64}
    page = page_of(tmp_path, {"data": lists}, evaluation, "f1_micro")
    assert ">0.889</td>" in page
    assert "naming nothing gives" in page


@pytest.mark.parametrize("damage", [{"task": "regression"}, {**REGRESSION, "targets": [{"name": "x", "mae": "?"}]}])
def test_a_damaged_evaluation_is_named_and_left_out(tmp_path: Path, damage: dict[str, Any]) -> None:
    page = page_of(tmp_path, {"task": "regression", "network": {"name": "mlp"}, "data": TABLE}, damage, "r2")
    assert "evaluation.json does not hold what it should" in page


def test_numbers_that_are_not_finite_are_not_shown() -> None:
    targets = [{"name": "e", "rmse": float("nan"), "mean_predictor": {"r2": float("inf")}}]
    (row,) = as_result({"task": "regression", "epoch": 1, "targets": targets}).rows
    assert row == {"name": "e", "rmse": None, "mean_predictor_r2": None}


def test_a_run_without_an_evaluation_has_a_report_all_the_same(tmp_path: Path) -> None:
    spec = {"augment": {}, "task": "detection", "network": {"name": "detectnet"}, "data": KITTI}
    run: RunDirectory = made.make_run(tmp_path, ["car"], spec=spec)
    assert "Nothing was measured yet" in write_report(run).read_text()
