"""A training in this very process: what it measures, when it stops, what it says."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dlhpc.data.packed import open_packed
from dlhpc.errors import AttemptExit
from dlhpc.runs.checkpoints import best_checkpoint, list_checkpoints
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import read_journal
from dlhpc.runs.plan import read_plan
from dlhpc.spec.models import Spec
from dlhpc.train.collective import SingleCollective
from dlhpc.train.loop import Attempt, Training, is_due
from dlhpc.train.progress import progress_line
from dlhpc.train.stop import StopRequests
from tests.training import curves, events, make_run, stripes


def train_here(run: RunDirectory, number: int = 1, deadline: float | None = None) -> AttemptExit:
    plan = read_plan(run.plan)
    stop = StopRequests(run.stop_file(number), deadline)
    with open_packed(plan.dataset.packed) as packed:
        attempt = Attempt(run, plan, Spec.model_validate(plan.spec), number)
        return Training(attempt, packed, SingleCollective(), stop, torch.device("cpu")).run()


def values(run: RunDirectory, split: str, name: str) -> list[float]:
    return [value for _, _, s, n, value in curves(run) if (s, n) == (split, name)]


def test_it_learns_and_leaves_all_that_a_report_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", spec={"training": {"epochs": 5, "batch_size": 8}})
    assert train_here(run) is AttemptExit.FINISHED
    assert values(run, "val", "accuracy")[-1] == 1.0
    assert values(run, "train", "loss")[-1] < values(run, "train", "loss")[0]
    assert values(run, "train", "learning_rate") == [0.02] * 5
    assert values(run, "val", "top5_accuracy") == []  # of four classes, five are always right
    evaluation = json.loads(run.evaluation.read_text())
    assert np.array(evaluation["confusion"]).sum(axis=1).tolist() == [5, 5, 5, 5]
    best = best_checkpoint(run)
    assert best is not None
    assert (best.step, best.metrics["val_accuracy"]) == (evaluation["step"], evaluation["accuracy"])
    assert json.loads(run.provenance.read_text())["dataset"]["counts"] == {"train": 48, "val": 20, "unseen": 0}
    assert events(run)[0] == "started"
    assert events(run).count("epoch") == 5
    assert events(run)[-1] == "finished"
    assert "epoch 5/5  train loss" in capsys.readouterr().out


def test_a_finished_run_says_so_and_measures_nothing_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", spec={"training": {"epochs": 1}})
    train_here(run)
    before = run.curves.read_bytes()
    assert train_here(run, 2) is AttemptExit.FINISHED
    assert run.curves.read_bytes() == before
    assert "complete already" in capsys.readouterr().out


def test_metrics_are_of_the_whole_set_whatever_the_batches(tmp_path: Path) -> None:
    found = []
    for batch_size in (7, 48):
        spec = {"training": {"epochs": 1, "batch_size": batch_size}, "learning_rate": {"base": 1e-12}}
        run = make_run(tmp_path / str(batch_size), spec=spec)
        train_here(run)
        found.append((values(run, "train", "loss"), values(run, "val", "loss"), values(run, "val", "accuracy")))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    assert found[0][2] == found[1][2]


def test_accumulated_portions_equal_one_large_batch(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, spec={"training": {"epochs": 2, **training}})
        for name, training in (("one", {"batch_size": 12}), ("four", {"batch_size": 3, "accumulate": 4}))
    ]
    for run in runs:
        train_here(run)
    assert values(runs[0], "train", "loss") == pytest.approx(values(runs[1], "train", "loss"), rel=1e-4)


def test_intervals_may_be_fractions_of_an_epoch(tmp_path: Path) -> None:
    training = {"epochs": 2, "batch_size": 8, "validation_interval": 0.5, "snapshot_interval": 2}
    run = make_run(tmp_path / "run", spec={"training": training})
    train_here(run)
    assert [epoch for epoch, _, split, name, _ in curves(run) if (split, name) == ("val", "loss")] == [0.5, 1, 1.5, 2]


def test_due_steps_are_rounded_multiples_and_none_is_left_out() -> None:
    assert [step for step in range(11) if is_due(step, 2.5)] == [2, 5, 8, 10]
    assert [step for step in range(5) if is_due(step, 0.3)] == [1, 2, 3, 4]
    for every in (1.7, 3, 4.5, 7.25, 10 / 3):
        due = [step for step in range(1000) if is_due(step, every)]
        assert abs(len(due) - 999 / every) <= 1
        assert all(abs(b - a - every) < 1 for a, b in itertools.pairwise(due))


def test_a_loss_that_is_no_number_stops_with_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"learning_rate": {"base": 1e30, "policy": "fixed"}, "training": {"epochs": 9, "batch_size": 8}}
    run = make_run(tmp_path / "run", spec=spec)
    assert train_here(run) is AttemptExit.BAD_CONFIGURATION
    last = read_journal(run)[0][-1]
    assert (last.event, last.details["code"]) == ("failed", 78)
    assert "learning rate 1e+30" in last.details["reason"]
    assert "lower learning rate" in capsys.readouterr().out
    for record in list_checkpoints(run):
        assert all(value is None or math.isfinite(value) for value in record.metrics.values())


def test_a_deadline_in_mid_epoch_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    spec = {"network": {"name": "smallnet"}, "training": {"epochs": 3, "batch_size": 20}}
    whole = make_run(tmp_path / "whole", spec=spec)
    cut = make_run(tmp_path / "cut", spec=spec)
    train_here(whole)
    codes = [train_here(cut, number, deadline=time.time()) for number in range(1, 10)]
    assert codes == [AttemptExit.CONTINUE] * 9  # three steps an epoch: one each
    assert train_here(cut, 10, deadline=time.time()) is AttemptExit.FINISHED
    assert curves(cut) == curves(whole)
    ours, theirs = best_checkpoint(cut), best_checkpoint(whole)
    assert ours is not None
    assert theirs is not None
    assert (ours.step, ours.weights.sha256) == (theirs.step, theirs.weights.sha256)
    assert events(cut).count("resumed") == 9


def test_the_stop_file_stops(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.stop_file(1).touch()
    assert train_here(run) is AttemptExit.CONTINUE
    assert read_journal(run)[0][-1].details["reason"] == "it was asked to save and leave"


def test_points_that_will_be_measured_again_are_forgotten(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    train_here(run, 1, deadline=time.time())
    whole = make_run(tmp_path / "whole")
    train_here(whole)
    run.curves.write_bytes(whole.curves.read_bytes())  # as if it had died after points, before their checkpoint
    train_here(run, 2)
    assert curves(run) == curves(whole)


def test_sixteen_bit_colour_pictures_and_a_mean_picture(tmp_path: Path) -> None:
    def deep(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        pictures, labels = stripes(count, channels=3, size=24, seed=seed)
        return pictures.astype(np.uint16) * 257, labels

    spec = {"data": {"normalize": "image"}, "augment": {"crop": 20}, "training": {"epochs": 4, "batch_size": 8}}
    run = make_run(tmp_path / "run", spec=spec, splits={"train": deep(48, 0), "val": deep(20, 1)})
    assert train_here(run) is AttemptExit.FINISHED
    assert values(run, "val", "accuracy")[-1] > 0.7
    best = best_checkpoint(run)
    assert best is not None
    assert best.input == {
        "kind": "pictures", "channels": 3, "height": 20, "width": 20, "color": "rgb", "resize": "squash",
        "picture_height": 24, "picture_width": 24, "dtype": "uint16", "features": [],
        "resized_crop": False, "antialias": False,
    }  # fmt: skip


def test_the_line_of_an_epoch_reads_well() -> None:
    metrics = {"train_loss": 0.2134, "val_loss": 0.3111, "val_accuracy": 0.9625}
    line = progress_line(12, 60, metrics, 41.2)
    assert line == "epoch 12/60  train loss 0.213  val loss 0.311  val accuracy 96.2 %  41 s left"
    assert progress_line(1, 9, {}, 9000) == "epoch 1/9  2 h 30 min left"
