"""What a user can ask of the engine: precision, averaged weights, clipping, early stopping, little memory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dlhpc.data.packed import open_packed
from dlhpc.errors import AttemptExit, UserError
from dlhpc.runs.checkpoints import best_checkpoint
from dlhpc.runs.curves import read_points
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import read_journal
from dlhpc.runs.plan import read_plan
from dlhpc.spec.models import Spec
from dlhpc.train import trials
from dlhpc.train.attempt import Attempt
from dlhpc.train.checkpoint import load, load_weights
from dlhpc.train.collective import SingleCollective
from dlhpc.train.loop import Training
from dlhpc.train.stop import StopRequests
from dlhpc.train.trials import Trial
from tests.narrow import Narrow
from tests.training import curves, make_run


def training(run: RunDirectory, number: int = 1, deadline: float | None = None) -> Training:
    plan = read_plan(run.plan)
    attempt = Attempt(run, plan, Spec.model_validate(plan.spec), number)
    stop = StopRequests(run.stop_file(number), deadline)
    return Training(attempt, open_packed(plan.dataset.packed), SingleCollective(), stop, torch.device("cpu"))


def train_here(run: RunDirectory, number: int = 1, deadline: float | None = None) -> AttemptExit:
    with training(run, number, deadline).packed:
        return training(run, number, deadline).run()


def run_with(folder: Path, epochs: int = 2, **settings: Any) -> RunDirectory:
    """A run of smallnet with these settings of ``training``; others are given as a whole section."""
    sections = {key: settings.pop(key) for key in ("optimizer", "learning_rate") if key in settings}
    spec = {"network": {"name": "smallnet"}, "training": {"epochs": epochs, "batch_size": 12, **settings}, **sections}
    return make_run(folder, spec=spec)


def values(run: RunDirectory, split: str, name: str) -> list[float]:
    return [value for _, _, s, n, value in curves(run) if (s, n) == (split, name)]


def warnings(run: RunDirectory) -> list[str]:
    return [entry.details["message"] for entry in read_journal(run)[0] if entry.event == "warning"]


def same_when_cut(folder: Path, **settings: Any) -> RunDirectory:
    """Train once as a whole and once a step an attempt; both must give the same bits. Gives the whole one."""
    settings = {"epochs": 1, "validation_interval": 0.5, **settings}
    whole, cut = run_with(folder / "whole", **settings), run_with(folder / "cut", **settings)
    assert train_here(whole) is AttemptExit.FINISHED
    number = 1
    while train_here(cut, number, deadline=time.time()) is AttemptExit.CONTINUE:
        number += 1
    assert number > 3
    assert curves(cut) == curves(whole)
    ours, theirs = best_checkpoint(cut), best_checkpoint(whole)
    assert ours is not None
    assert theirs is not None
    assert ours.weights.sha256 == theirs.weights.sha256
    return whole


# ---- Optimisers and averages


@pytest.mark.parametrize("name", ["adam", "rmsprop", "lars", "lamb"])
def test_every_optimiser_goes_on_from_its_own_state(tmp_path: Path, name: str) -> None:
    same_when_cut(tmp_path, optimizer={"name": name}, learning_rate={"base": 0.001, "policy": "fixed"})


def test_averaged_weights_are_measured_saved_and_taken_up_again(tmp_path: Path) -> None:
    run = same_when_cut(tmp_path, ema=0.9, learning_rate={"base": 0.02, "policy": "fixed"})
    best = best_checkpoint(run)
    assert best is not None
    averaged, state = load_weights(best), load(best).state
    assert set(state.raw) < set(averaged)
    assert not torch.equal(averaged["network.0.weight"], state.raw["network.0.weight"])
    assert not torch.equal(averaged["network.1.running_mean"].flatten(), state.rank_floats[0][2:18])


def test_clipping_holds_large_steps_down(tmp_path: Path) -> None:
    wild = {"base": 5.0, "policy": "fixed"}
    free, clipped = (
        run_with(tmp_path / name, learning_rate=wild, **clip) for name, clip in (("a", {}), ("b", {"clip_norm": 1e-4}))
    )
    train_here(free)
    train_here(clipped)
    assert values(clipped, "train", "loss")[-1] < 2 < values(free, "train", "loss")[-1]


# ---- Precision


def test_bf16_learns_the_same(tmp_path: Path) -> None:
    slow = {"base": 0.001, "policy": "fixed"}
    plain, short = (run_with(tmp_path / name, precision=name, learning_rate=slow) for name in ("fp32", "bf16"))
    train_here(plain)
    train_here(short)
    assert values(short, "train", "loss") != values(plain, "train", "loss")
    assert values(short, "train", "loss") == pytest.approx(values(plain, "train", "loss"), rel=0.1)


def test_an_overflow_of_fp16_skips_the_step_and_is_not_taken_for_divergence(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", precision="fp16")
    one = training(run)
    one.resume_or_start()
    one.settle()
    assert one.stepper.scale is not None
    one.stepper.scale.value = 2.0**40  # far too much for this network
    before = {name: tensor.clone() for name, tensor in one.model.named_parameters()}
    with one.packed:
        step = next(one.steps(0, 0))
        assert one.train_step(step).finite
    assert one.stepper.scale.value == 2.0**39
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.model.named_parameters())


def test_the_loss_scale_of_fp16_is_taken_up_again(tmp_path: Path) -> None:
    same_when_cut(tmp_path, precision="fp16")


def test_auto_measures_on_the_node_once_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "fastest", lambda tried, *_: next(one for one in tried if one.precision == "bf16"))
    run, plain = run_with(tmp_path / "run", precision="auto"), run_with(tmp_path / "plain", precision="bf16")
    assert train_here(run, 1, deadline=time.time()) is AttemptExit.CONTINUE
    assert "training with bf16" in capsys.readouterr().out
    assert set(json.loads(run.chosen.read_text())["seconds"]) == {"fp32", "bf16"}
    assert train_here(run, 2) is AttemptExit.FINISHED
    assert "training with" not in capsys.readouterr().out
    train_here(plain)
    assert curves(run) == curves(plain)


def test_auto_takes_the_fastest_and_counts_what_compiling_costs() -> None:
    plain, half = Trial("fp32", False, 1.0), Trial("bf16", False, 0.5)
    compiled = Trial("bf16", True, 0.4, beginning=60.0)
    assert trials.fastest([plain, half, compiled], steps_left=1000) is compiled
    assert trials.fastest([plain, half, compiled], steps_left=100) is half
    assert trials.fastest([plain, half, compiled], steps_left=1, compiled=True) is compiled
    assert trials.fastest([plain, Trial("bf16", False, 0.99)], steps_left=1000) is plain
    assert trials.fastest([plain, Trial("bf16", False, None)], steps_left=1000) is plain
    assert trials.slowest([half, plain]) is plain  # ranks wait for each other
    assert trials.slowest([half, Trial("bf16", False, None)]).seconds is None


def test_without_a_compiler_training_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = run_with(tmp_path / "run", epochs=1, compile="yes")
    assert train_here(run) is AttemptExit.FINISHED
    (said,) = warnings(run)
    assert "needs a C++ compiler" in said
    assert json.loads(run.chosen.read_text())["compile"] is False


# ---- Memory


def narrow(run: RunDirectory, most: int, fail: BaseException, number: int = 1) -> AttemptExit:
    one = training(run, number)
    one.task = one.stepper.task = Narrow(one.task, most, fail)  # type: ignore[assignment]
    with one.packed:
        return one.run()


@pytest.mark.parametrize(
    "fail",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to …"),
        MemoryError(),
    ],
)
def test_too_little_memory_halves_the_batch_and_keeps_the_global_batch(tmp_path: Path, fail: BaseException) -> None:
    spec = {"training": {"epochs": 2, "batch_size": 12}}
    wide, tight = make_run(tmp_path / "wide", spec=spec), make_run(tmp_path / "tight", spec=spec)
    train_here(wide)
    assert narrow(tight, 4, fail) is AttemptExit.FINISHED
    assert values(tight, "train", "loss") == pytest.approx(values(wide, "train", "loss"), rel=1e-4)
    assert values(tight, "val", "accuracy") == values(wide, "val", "accuracy")
    chosen = json.loads(tight.chosen.read_text())
    assert (chosen["halvings"], chosen["evaluation_batch"]) == (2, None)
    assert ["accumulate: 2" in warnings(tight)[0], "accumulate: 4" in warnings(tight)[1]] == [True, True]


def test_a_later_attempt_begins_with_the_smaller_batch(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    run.stop_file(1).touch()
    assert narrow(run, 6, MemoryError()) is AttemptExit.CONTINUE
    assert len(warnings(run)) == 1
    assert narrow(run, 6, MemoryError(), number=2) is AttemptExit.FINISHED
    assert len(warnings(run)) == 1


def test_measuring_takes_smaller_batches_where_it_must(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    one = training(run)
    one.task = Narrow(one.task, 3, MemoryError())  # type: ignore[assignment]
    with one.packed:
        assert one.run() is AttemptExit.FINISHED
    whole = run_with(tmp_path / "whole")
    train_here(whole)
    assert values(run, "val", "accuracy") == values(whole, "val", "accuracy")
    assert values(run, "val", "loss") == pytest.approx(values(whole, "val", "loss"), rel=1e-5)
    assert json.loads(run.chosen.read_text())["evaluation_batch"] == 3
    assert "3 samples at a time" in warnings(run)[0]


def test_memory_for_not_even_one_sample_is_a_kind_error(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    with pytest.raises(UserError, match="with one sample at a time"):
        narrow(run, 0, MemoryError())


def test_another_error_of_the_network_is_not_taken_for_memory(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    with pytest.raises(RuntimeError, match="size mismatch"):
        narrow(run, 4, RuntimeError("size mismatch"))


# ---- The end, and what an epoch took


def test_early_stopping_ends_a_run_that_gets_no_better_and_tells_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = {"patience": 2, "metric": "val_loss", "min_change": 1e9}
    run = run_with(tmp_path / "run", epochs=50, early_stopping=stopping)
    assert train_here(run) is AttemptExit.FINISHED
    assert len(values(run, "val", "loss")) == 3  # the first one counts, then two without improvement
    last = read_journal(run)[0][-1]
    assert last.event == "finished"
    assert "was not bettered for 2 epochs" in last.details["reason"]
    capsys.readouterr()
    assert train_here(run, 2) is AttemptExit.FINISHED
    assert "complete already: 12 steps are done" in capsys.readouterr().out


def test_early_stopping_remembers_over_attempts(tmp_path: Path) -> None:
    same_when_cut(tmp_path, epochs=50, early_stopping={"patience": 1, "metric": "val_loss", "min_change": 1e9})


def test_a_measure_that_there_is_not_is_named_with_those_there_are(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", early_stopping={"patience": 1, "metric": "val_beauty"})
    with pytest.raises(UserError, match=r"early_stopping\.metric is val_beauty") as caught:
        train_here(run)
    assert "val_accuracy" in str(caught.value)


def test_every_epoch_tells_how_long_it_took(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    train_here(run)
    points = [point for point in read_points(run.curves)[0] if point.split == "system"]
    assert [point.epoch for point in points if point.name == "seconds"] == [1.0, 2.0]
    assert all(point.value > 0 for point in points)
    assert {"seconds", "samples_per_second"} <= {point.name for point in points}
