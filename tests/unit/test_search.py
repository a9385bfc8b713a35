"""Searches: settings that are decided by how earlier ones did, generation after generation."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dlhpc.cli.report import report as report_command
from dlhpc.errors import StorageError, UserError
from dlhpc.jobs import search as search_module
from dlhpc.jobs import sweep_follow
from dlhpc.jobs.propose import Tried, from_unit, propose, to_unit, without_gain
from dlhpc.jobs.sweep_follow import cancel_sweep, go_on, resume_sweep, start
from dlhpc.jobs.sweep_status import sweep_status
from dlhpc.runs.plan import read_plan
from dlhpc.runs.state import RunState
from dlhpc.runs.sweep import SweepDirectory, read_progress, read_record
from dlhpc.spec.models import Spec
from dlhpc.spec.sweep import Range, Sweep, all_keys, expand
from tests.unit.sweep_world import SPEC, World, finish, make_world

KEYS = all_keys(Spec)
OVER = {
    "lr": {"low": 1e-5, "high": 1.0, "log": True},
    "network.name": ["lenet", "smallnet", "resnet18"],
    "batch_size": {"low": 4, "high": 256, "log": True},
}
KINDS = {"genetic": {"population": 12, "generations": 6}, "tpe": {"trials": 72, "batch": 12}}


def search_of(kind: str, **more: Any) -> Sweep:
    return Sweep.model_validate({kind: {**KINDS[kind], "over": OVER, **more}})


def merit(settings: dict[str, Any]) -> float:
    """A landscape whose top is at lr 0.005, smallnet, batches of 32."""
    rate = math.log10(settings["learning_rate.base"]) + 2.3
    batch = math.log2(settings["training.batch_size"] / 32)
    return -(rate**2) - 0.5 * (settings["network.name"] != "smallnet") - 0.2 * abs(batch)


def searched(sweep: Sweep, failing: bool = False) -> list[Tried]:
    assert sweep.search is not None
    tried = [Tried(one, merit(one)) for one in expand(sweep, KEYS)]
    generation = 1
    while proposed := propose(sweep.search, tried, generation, KEYS):
        tried += [
            Tried(one, None if failing and number % 3 == 0 else merit(one)) for number, one in enumerate(proposed)
        ]
        generation += 1
    return tried


@pytest.mark.parametrize("kind", KINDS)
def test_later_members_do_better_than_chance(kind: str) -> None:
    pytest.importorskip("optuna" if kind == "tpe" else "json")
    later = [one.merit or 0.0 for seed in range(3) for one in searched(search_of(kind, seed=seed))[36:]]
    drawn = Sweep.model_validate({"random": {"count": 100, "over": OVER}})
    chance = [merit(one) for one in expand(drawn, KEYS)]
    assert sum(later) / len(later) > sum(chance) / len(chance) / 2  # merits are below zero: half as far from the top


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_results_give_the_same_proposals_within_their_ranges(kind: str) -> None:
    pytest.importorskip("optuna" if kind == "tpe" else "json")
    once, again = (searched(search_of(kind, seed=4), failing=True) for _ in range(2))
    assert once == again
    assert len(once) == 72
    for one in once:
        assert list(one.settings) == ["learning_rate.base", "network.name", "training.batch_size"]
        assert 1e-5 <= one.settings["learning_rate.base"] <= 1
        assert one.settings["network.name"] in OVER["network.name"]
        assert isinstance(one.settings["training.batch_size"], int)


def test_children_are_not_tried_twice() -> None:
    settings = [json.dumps(one.settings) for one in searched(search_of("genetic"))]
    assert len(set(settings)) == len(settings)


def test_a_search_over_a_few_choices_ends_although_everything_was_tried() -> None:
    sweep = Sweep.model_validate({"genetic": {"population": 4, "generations": 3, "over": {"batch_size": [8, 16]}}})
    assert len(searched_by(sweep, lambda settings: settings["training.batch_size"])) == 12


def searched_by(sweep: Sweep, value: Any) -> list[Tried]:
    assert sweep.search is not None
    tried = [Tried(one, value(one)) for one in expand(sweep, KEYS)]
    while proposed := propose(sweep.search, tried, len(tried) // 4, KEYS):
        tried += [Tried(one, value(one)) for one in proposed]
    return tried


@pytest.mark.parametrize(
    "choice", [Range(low=0.1, high=3.0), Range(low=1e-6, high=10.0, log=True), Range(low=2, high=9)], ids=str
)
def test_a_value_keeps_its_place_in_the_range(choice: Range) -> None:
    source = random.Random(1)
    for _ in range(50):
        value = choice.draw(source)
        assert from_unit(choice, to_unit(choice, value)) == pytest.approx(value, rel=1e-5)
    assert from_unit(choice, -0.2) == pytest.approx(from_unit(choice, 0.2))  # mirrored at the end
    assert choice.low <= from_unit(choice, 7.7) <= choice.high


def test_generations_without_a_better_member_are_counted() -> None:
    search = search_of("genetic", population=2).search
    assert search is not None
    values = [0.1, 0.5, None, 0.4, 0.5, 0.2]
    assert without_gain(search, [Tried({}, value) for value in values]) == 2
    assert without_gain(search, [Tried({}, value) for value in [*values, 0.6]]) == 0


# --- On the queue -----------------------------------------------------------------------------------------------

SEARCH = """\
sweep:
  genetic:
    population: 3
    generations: 3
    over:
      lr: {low: 0.001, high: 1.0, log: true}
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = make_world(tmp_path, monkeypatch)
    made.spec.write_text(SPEC + SEARCH)
    return made


def end_all(world: World, sweep: SweepDirectory, better: float = 0.0) -> None:
    """All jobs in the queue train to their ends."""
    progress = read_progress(sweep)
    for run in sweep.found_members():
        index = int(run.name.rpartition(".")[2])
        for portion in progress.of_member.get(index, []):
            job = portion.job_ids[index]
            if job in world.scheduler.jobs:
                finish(run, job, 0.3 + better + index / 100)
                del world.scheduler.jobs[job]


def test_each_generation_is_one_array_and_learns_from_the_one_before(world: World) -> None:
    sweep = world.create()
    start(sweep)
    assert (len(read_record(sweep).members), len(world.scheduler.requests)) == (3, 1)
    go_on(sweep)
    assert len(world.scheduler.requests) == 1  # the first generation is not over
    for generation in (2, 3):
        end_all(world, sweep)
        assert sweep_status(sweep).state is RunState.QUEUED  # although no job is in the queue
        go_on(sweep)
        assert (len(sweep.found_members()), len(world.scheduler.requests)) == (3 * generation, generation)
    end_all(world, sweep)
    go_on(sweep)
    now = sweep_status(sweep)
    assert now.is_over
    assert "all 9 members are tried" in now.sentence()
    rates = [read_plan(run.plan).base_rate for run in sweep.found_members()]
    assert rates == [one["learning_rate.base"] for one in read_record(sweep).members]
    assert len(set(rates)) == 9


def test_a_search_that_was_interrupted_while_a_generation_was_made_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = world.create()
    start(sweep)
    end_all(world, sweep)

    def die(*_: object) -> None:
        raise StorageError("the disk is full")

    for place in ("replace_json", "add_members"):
        with monkeypatch.context() as broken:
            broken.setattr(search_module, place, die)
            with pytest.raises(StorageError):
                go_on(sweep)
    decided = read_record(sweep).members
    assert (len(decided), len(sweep.found_members())) == (6, 3)
    go_on(sweep)  # makes what is missing
    go_on(sweep)
    assert read_record(sweep).members == decided
    assert (len(sweep.found_members()), len(world.scheduler.requests)) == (6, 2)


def test_later_generations_learn_from_the_same_pictures(world: World) -> None:
    sweep = world.create()
    start(sweep)
    end_all(world, sweep)
    (world.folder / "photos" / "anna" / "new.pgm").write_bytes(b"P5 1 1 255\n\x00")
    go_on(sweep)
    assert len({read_plan(run.plan).dataset.key for run in sweep.found_members()}) == 1


def test_a_search_ends_when_patience_does(world: World) -> None:
    world.spec.write_text(SPEC + SEARCH.replace("generations: 3", "generations: 50\n    patience: 1"))
    sweep = world.create()
    start(sweep)
    end_all(world, sweep, better=0.5)
    go_on(sweep)
    end_all(world, sweep, better=-0.2)
    go_on(sweep)
    assert "1 generation without a better member" in sweep_status(sweep).sentence()


def test_a_cancelled_search_goes_on_when_resumed(world: World) -> None:
    sweep = world.create()
    start(sweep)
    end_all(world, sweep)
    cancel_sweep(sweep)
    assert go_on(sweep) == []
    assert sweep_status(sweep).is_over
    resume_sweep(sweep)
    assert len(sweep.found_members()) == 6


def test_settings_that_cannot_be_trained_are_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.spec.write_text(SPEC + SEARCH + "      network.name: [smallnet, lenet]\n")
    sweep = world.create()
    start(sweep)
    end_all(world, sweep)

    def some_too_large(*given: Any) -> list[dict[str, Any]]:
        return [{**one, "network.name": "alexnet"} if n else one for n, one in enumerate(propose(*given))]

    monkeypatch.setattr(search_module, "propose", some_too_large)
    go_on(sweep)
    networks = {one["network.name"] for one in read_record(sweep).members}
    assert len(sweep.found_members()) == 4  # one of the three could be
    assert "alexnet" not in networks


def test_without_optuna_a_parzen_search_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    search = search_of("tpe").search
    assert search is not None
    with pytest.raises(UserError, match="needs the package optuna"):
        propose(search, [Tried(one, 0.1) for one in expand(search_of("tpe"), KEYS)], 1, KEYS)


def test_somebody_elses_search_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = world.create()
    start(sweep)
    end_all(world, sweep)
    monkeypatch.setattr(sweep_follow.os, "geteuid", lambda: 4711)
    assert go_on(sweep) == []


# --- The report -------------------------------------------------------------------------------------------------


def report_of(world: World, sweep: SweepDirectory) -> str:
    answer = CliRunner().invoke(report_command, [str(sweep.path), "--site", str(world.site)])
    assert answer.exit_code == 0, answer.output
    return (sweep.path / "report.html").read_text()


def test_the_report_of_a_search_names_the_best_and_shows_what_mattered(world: World) -> None:
    world.spec.write_text(SPEC + SEARCH + "      network.name: [smallnet, lenet]\n")
    sweep = world.create()
    start(sweep)
    assert "Nothing was measured yet" in report_of(world, sweep)
    end_all(world, sweep)
    page = report_of(world, sweep)
    assert f"{sweep.name}.0002 reached val accuracy 32.0 %" in page
    assert "val accuracy against learning_rate.base" in page
    assert page.index(f"<td>{sweep.name}.0002") < page.index(f"<td>{sweep.name}.0000")  # the best first
    assert page.count("<svg") >= 2


def test_folds_are_reported_by_mean_and_deviation(world: World) -> None:
    world.spec.write_text(SPEC + "sweep: {grid: {data.split.fold: [1, 2, 3]}}\n")
    world.spec.write_text(world.spec.read_text().replace("  width: 32", "  split: {folds: 3}\n  width: 32"))
    sweep = world.create()
    start(sweep)
    end_all(world, sweep)
    assert "All together: val accuracy 31.0 % ± 1.0 % (mean and standard deviation of 3 members)" in report_of(
        world, sweep
    )


def test_settings_are_shown_as_text(world: World) -> None:
    world.spec.write_text(SPEC + "sweep: {list: [{augment.crop: null}, {data.normalize: none}]}\n")
    sweep = world.create()
    start(sweep)
    end_all(world, sweep)
    record = json.loads(sweep.record.read_text())
    record["members"][0] = {"notes": "<script>alert(1)</script>"}
    sweep.record.write_text(json.dumps(record))
    page = report_of(world, sweep)
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
