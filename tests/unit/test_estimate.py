"""How long a training takes, as earlier runs tell, and the walltime that follows from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlhpc.jobs.estimate import (
    GPU_ACROSS,
    Prediction,
    Work,
    attempts_needed,
    estimate,
    fit,
    needed_walltime,
    predict,
    save_margin,
    work_of,
)
from dlhpc.jobs.experience import Experience, Measured
from dlhpc.jobs.plan import decide, kinds_of_nodes
from dlhpc.runs.plan import Plan
from dlhpc.sites.models import Queue, Site
from dlhpc.spec.models import Spec
from tests.unit import job_runs
from tests.unit.job_runs import CLUSTER, changed
from tests.unit.measured_runs import new_run, ran

pytestmark = pytest.mark.usefixtures("any_machine")


def experience(folder: Path, site: Site = CLUSTER) -> Experience:
    return Experience(folder / "runs", kinds_of_nodes(site))


def expected(folder: Path, plan: Plan, site: Site = CLUSTER) -> Prediction | None:
    return estimate(experience(folder, site).like(plan), work_of(plan))


# --- What earlier runs tell ---------------------------------------------------------------------------------------


def test_an_earlier_run_tells_how_long_the_same_training_takes(tmp_path: Path) -> None:
    ran(tmp_path, CLUSTER, step=2.0, validation=3.0, saving=1.0, startup=40.0, training={"batch_size": 25, "epochs": 4})
    longer = job_runs.plan(tmp_path, CLUSTER, training={"batch_size": 25, "epochs": 100})
    found = expected(tmp_path, longer)
    assert found is not None
    assert found.training == pytest.approx(100 * (4 * 2.0 + 3.0 + 1.0), rel=0.01)
    assert found.startup == pytest.approx(40, abs=0.1)
    assert found.how == "1 run of the same network and pictures"


def test_rarer_validations_and_checkpoints_cost_less(tmp_path: Path) -> None:
    batches = {"batch_size": 25, "epochs": 10}
    ran(tmp_path, CLUSTER, step=2.0, validation=3.0, saving=1.0, training=batches)
    rarer = job_runs.plan(tmp_path, CLUSTER, training={**batches, "validation_interval": 5, "snapshot_interval": 10})
    found = expected(tmp_path, rarer)
    assert found is not None
    assert found.training == pytest.approx(10 * 4 * 2.0 + 2 * 3.0 + 1 * 1.0, rel=0.01)


def test_without_any_run_nothing_is_claimed(tmp_path: Path) -> None:
    assert expected(tmp_path, job_runs.plan(tmp_path, CLUSTER)) is None


@pytest.mark.parametrize(
    "other",
    [
        {"network": {"name": "resnet18"}},
        {"data": {"folder": "/photos", "width": 128, "height": 128}},
        {"augment": {"crop": 128}},
        {"job": {"gpus_per_rank": 0}},
    ],
)
def test_another_network_size_or_device_tells_nothing(tmp_path: Path, other: dict[str, object]) -> None:
    ran(tmp_path, CLUSTER, step=2.0, **other)
    assert expected(tmp_path, job_runs.plan(tmp_path, CLUSTER)) is None


def test_runs_on_other_machines_and_other_kinds_of_nodes_tell_nothing(tmp_path: Path) -> None:
    two_kinds = changed(
        CLUSTER,
        nodes={"old": {"cores": 32, "gpus": 4}, "new": {"cores": 32, "gpus": 4}},
        queues=[{"name": "old", "node": "old"}, {"name": "new", "node": "new"}],
    )
    ran(tmp_path, two_kinds, step=2.0, job={"queue": "old"})
    assert expected(tmp_path, job_runs.plan(tmp_path, two_kinds, job={"queue": "old"}), two_kinds) is not None
    assert expected(tmp_path, job_runs.plan(tmp_path, two_kinds, job={"queue": "new"}), two_kinds) is None
    elsewhere = changed(two_kinds, name="elsewhere")
    assert expected(tmp_path, job_runs.plan(tmp_path, elsewhere, job={"queue": "old"}), elsewhere) is None


def test_other_pictures_of_the_same_size_count_only_where_there_are_none_of_the_same(tmp_path: Path) -> None:
    ran(tmp_path, CLUSTER, step=2.0, train=60, training={"batch_size": 20})
    mine = job_runs.plan(tmp_path, CLUSTER, training={"batch_size": 20, "epochs": 1})
    found = expected(tmp_path, mine)
    assert found is not None
    assert found.how == "1 run of the same network and size of pictures"
    ran(tmp_path, CLUSTER, step=8.0, training={"batch_size": 20})
    found = expected(tmp_path, mine)
    assert found is not None
    assert found.step == pytest.approx(8.0, rel=0.01)


def test_what_a_killed_attempt_lost_is_not_counted(tmp_path: Path) -> None:
    plan = job_runs.plan(tmp_path, CLUSTER, training={"batch_size": 25})
    journal = new_run(tmp_path / "runs", plan)
    journal.begin(20)
    journal.epochs(3, step=2.0)
    journal.now += 40_000  # half an epoch and a night in the queue
    journal.begin(20)
    journal.epochs(3, step=2.0)
    found = expected(tmp_path, plan)
    assert found is not None
    assert found.step == pytest.approx(2.0, rel=0.01)
    assert found.training == pytest.approx(work_of(plan).epochs * 4 * 2.0, rel=0.01)
    assert found.startup == pytest.approx(20, abs=0.1)


def test_the_first_epoch_in_which_caches_warm_up_is_left_out(tmp_path: Path) -> None:
    plan = job_runs.plan(tmp_path, CLUSTER, training={"batch_size": 25})
    journal = new_run(tmp_path / "runs", plan)
    journal.begin(20)
    journal.epochs(1, step=9.0)
    journal.epochs(1, step=2.0)
    found = expected(tmp_path, plan)
    assert found is not None
    assert found.step == pytest.approx(2.0, rel=0.01)


def test_a_trial_that_was_ended_within_its_first_epoch_tells_by_its_steps(tmp_path: Path) -> None:
    plan = job_runs.plan(tmp_path, CLUSTER, training={"batch_size": 1})
    journal = new_run(tmp_path / "runs", plan)
    journal.begin(20)
    journal.now += 120
    journal.event("checkpointed", step=40, epoch=0.4, checkpoint="step-000000040")
    journal.event("stopped", reason="it was asked to save and leave")
    found = expected(tmp_path, plan)
    assert found is not None
    assert found.step == pytest.approx(3.0, rel=0.01)


def test_damaged_and_unfinished_runs_do_not_get_in_the_way(tmp_path: Path) -> None:
    plan = ran(tmp_path, CLUSTER, step=2.0)
    new_run(tmp_path / "runs", plan)  # still queued
    broken = new_run(tmp_path / "runs", plan).run
    broken.plan.write_text("{")
    odd = new_run(tmp_path / "runs", plan)
    odd.event("epoch", epoch="one", seconds="long", pictures_per_second=None)
    found = expected(tmp_path, plan)
    assert found is not None
    assert found.how.startswith("1 run of")


def test_of_many_runs_the_newest_five_count(tmp_path: Path) -> None:
    for step in (50.0, 50.0, 50.0, 1.9, 2.0, 2.1, 2.0, 9.0):
        plan = ran(tmp_path, CLUSTER, step=step)
    found = expected(tmp_path, plan)
    assert found is not None
    assert found.step == pytest.approx(2.0, rel=0.01)
    assert found.how.startswith("5 runs of")


# --- Other numbers of nodes and ranks ------------------------------------------------------------------------------


def measured(nodes: int, ranks: int, step: float, *, batch: float = 32, weights: int = 400_000_000) -> Measured:
    return Measured("run", "d", nodes, ranks, batch, step, None, 0, None, 10.0, weights)


def work(nodes: int, ranks: int, *, train: int = 64_000, batch: int = 32) -> Work:
    return Work("d", nodes, ranks, min(train, batch * ranks), train, 0, 10, 1.0, 1.0, gpus=True)


def sent(ranks: int, weights: float = 400e6) -> float:
    return 2 * (ranks - 1) / ranks * weights


def test_more_ranks_share_the_pictures_and_pay_for_the_exchange() -> None:
    found = estimate([measured(1, 1, 0.5)], work(2, 2))
    assert found is not None
    assert found.step == pytest.approx(0.5 + sent(2) / GPU_ACROSS, rel=0.01)
    assert found.training == pytest.approx(10 * 1000 * found.step, rel=0.01)
    assert found.efficiency == pytest.approx(0.5 / found.step)
    assert "a cautious assumption" in found.how
    assert "scaled from 1 run of the same network and pictures on 1 node × 1 rank" in found.how


def test_the_exchange_is_measured_where_runs_of_other_sizes_exist() -> None:
    found = estimate([measured(1, 1, 0.5), measured(2, 2, 0.5 + sent(2) / 10e9)], work(8, 8))
    assert found is not None
    assert found.step == pytest.approx(0.5 + sent(8) / 10e9, rel=0.01)
    assert "10 GB/s (as measured there)" in found.how


def test_computing_and_exchange_are_told_apart_without_a_run_on_one_rank() -> None:
    runs = [measured(2, 2, 0.5 + sent(2) / 2e9), measured(4, 4, 0.5 + sent(4) / 2e9)]
    found = estimate(runs, work(8, 8))
    assert found is not None
    assert found.step == pytest.approx(0.5 + sent(8) / 2e9, rel=0.01)


def test_a_size_that_was_measured_is_looked_up() -> None:
    found = estimate([measured(1, 1, 0.5), measured(4, 4, 0.9)], work(4, 4))
    assert found is not None
    assert found.step == 0.9
    assert found.how == "2 runs of the same network and pictures"


def test_when_an_epoch_is_one_step_more_ranks_only_cut_the_batch() -> None:
    found = estimate([measured(1, 1, 0.5)], work(4, 4, train=64))
    assert found is not None
    assert found.step == pytest.approx(0.25 + sent(4) / GPU_ACROSS, rel=0.01)


SECONDS = st.floats(0.001, 100)
LAYOUTS = st.tuples(st.integers(1, 16), st.integers(1, 8)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@given(
    st.lists(st.tuples(LAYOUTS, SECONDS, st.floats(1, 512)), min_size=1, max_size=8), LAYOUTS, st.integers(1, 100_000)
)
def test_whatever_was_measured_a_prediction_has_sense(
    runs: list[tuple[tuple[int, int], float, float]], layout: tuple[int, int], train: int
) -> None:
    speed = fit([measured(*at, step, batch=batch) for at, step, batch in runs], "d", gpus=True)
    assert speed is not None
    assert speed.per_picture > 0
    found = predict(speed, work(*layout, train=train))
    assert found.step > 0
    assert found.training > 0
    assert 0 < found.efficiency <= 1
    assert 0 <= found.exchange_share < 1


# --- The walltime to ask for ---------------------------------------------------------------------------------------


def prediction(training: float, startup: float = 30.0, save: float = 1.0) -> Prediction:
    return Prediction(training, startup, save, 0.1, 0.0, 1.0, "a run")


@given(st.floats(1, 1e6), st.floats(0, 600))
def test_the_walltime_that_is_needed_is_enough_for_one_attempt(training: float, startup: float) -> None:
    asked = needed_walltime(prediction(training, startup), None)
    assert asked % 300 == 0
    assert asked - save_margin(asked) >= startup + training
    assert asked <= 1.25 * (startup + training) + 120 + 300


def test_never_more_than_the_queue_allows() -> None:
    assert needed_walltime(prediction(100_000), 3600.0) == 3600


def test_attempts_pay_start_up_and_margin_each() -> None:
    assert attempts_needed(prediction(6000, startup=100), 3600) == 2
    assert attempts_needed(prediction(3000, startup=100), 3600) == 1
    assert attempts_needed(prediction(3000, startup=400), 400) is None


def decided(folder: Path, site: Site = CLUSTER, **changes: object) -> Plan:
    spec = Spec.model_validate({"name": "cars", "data": {"folder": "/photos"}, **changes})
    known = experience(folder, site)
    return decide(spec, site, job_runs.catalog(folder), folder / "runs", experience=known)


def test_a_spec_without_walltime_asks_for_what_is_needed(tmp_path: Path) -> None:
    assert decided(tmp_path).walltime_seconds == 3600
    ran(tmp_path, CLUSTER, step=60.0, training={"batch_size": 25}, startup=60.0)
    made = decided(tmp_path, training={"batch_size": 25, "epochs": 30})
    assert made.walltime_seconds == 9300  # (60 s + 30 × 4 × 60 s) × 1.25 + 2 min, rounded up to 5 min
    assert made.save_margin_seconds == 120
    limited = changed(CLUSTER, queues=[Queue.model_validate({"name": "gpu", "max_walltime": "1h"})])
    assert decided(tmp_path, limited, training={"batch_size": 25, "epochs": 30}).walltime_seconds == 3600


def test_far_more_than_needed_is_said_and_kept(tmp_path: Path) -> None:
    ran(tmp_path, CLUSTER, step=1.0)
    made = decided(tmp_path, job={"walltime": "24h"})
    assert made.walltime_seconds == 86400
    assert any("24:00:00, and 0:05:00 would do by 1 run" in warning for warning in made.warnings)
    assert not decided(tmp_path, job={"walltime": "10min"}).warnings


def test_experience_is_read_once_for_many_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ran(tmp_path, CLUSTER, step=1.0)
    known = experience(tmp_path)
    first = known.like(plan)
    monkeypatch.setattr("dlhpc.jobs.experience.read_plan", None)
    assert known.like(dataclasses.replace(plan, nodes=2, ranks=2)) is first
