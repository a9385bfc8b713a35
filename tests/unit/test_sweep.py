"""Sweeps: one spec with many settings, from what people write to a thousand members in the queue."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dlhpc.cli.status import resume as resume_command
from dlhpc.cli.status import status as status_command
from dlhpc.cli.sweep import first_script, how_submitted
from dlhpc.errors import CommandError, ErrorList, UserError
from dlhpc.jobs import follow, plan, sweep_follow
from dlhpc.jobs import sweep as sweep_module
from dlhpc.jobs.sweep_status import sweep_status
from dlhpc.jobs.sweep_write import create_sweep
from dlhpc.process import CommandTimeout
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.find import all_runs, find_entry, find_run
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import read_plan
from dlhpc.runs.state import RunState, progress
from dlhpc.runs.sweep import from_ranges, read_progress, read_record, sweep_lock, to_ranges
from dlhpc.schedulers.base import Abilities, JobState
from dlhpc.spec.load import load_spec
from dlhpc.spec.models import Spec
from dlhpc.spec.sweep import Sweep, all_keys, expand, full_key, read_axes
from tests.unit.measured_runs import new_run
from tests.unit.sweep_world import SPEC, World, finish, make_world, states

KEYS = all_keys(Spec)


# --- What people write ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr", "learning_rate.base"),
        ("batch_size", "training.batch_size"),
        ("training.batch_size", "training.batch_size"),
        ("network", "network.name"),
        ("split.seed", "data.split.seed"),
    ],
)
def test_a_key_may_be_typed_short(typed: str, meant: str) -> None:
    assert full_key(typed, KEYS) == meant


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("batch_sze", "Did you mean `training.batch_size`"),
        ("seed", r"could be any of data\.split\.seed, training\.seed"),
        ("nodes", "one array of jobs"),
        ("job.walltime", "one array of jobs"),
        ("name", "same for all members"),
        ("sweep.cap", "no key"),
    ],
)
def test_a_key_that_cannot_be_swept_is_refused_in_a_sentence(typed: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        full_key(typed, KEYS)
    assert caught.value.remedy


def test_values_on_the_command_line_are_a_yaml_list_without_brackets() -> None:
    assert read_axes(["lr=0.1,1e-3", "betas=[0.9,0.99],[0.8,0.9]", "network=lenet, 'no'"]) == {
        "lr": [0.1, 0.001],
        "betas": [[0.9, 0.99], [0.8, 0.9]],
        "network": ["lenet", "no"],
    }


@pytest.mark.parametrize("typed", ["lr", "=1", "lr=", "lr=[1", "lr=1,2]", "lr={"])
def test_values_that_cannot_be_read_are_refused(typed: str) -> None:
    with pytest.raises(UserError, match="--sweep"):
        read_axes([typed])


def test_a_grid_is_every_combination_and_its_last_key_changes_fastest() -> None:
    sweep = Sweep.model_validate({"grid": {"lr": [0.1, 0.01], "batch_size": [8, 16]}})
    assert expand(sweep, KEYS) == [
        {"learning_rate.base": rate, "training.batch_size": size} for rate in (0.1, 0.01) for size in (8, 16)
    ]


def test_a_random_sweep_is_the_same_again_and_longer_ones_begin_alike() -> None:
    asked = {
        "lr": {"low": 1e-4, "high": 0.1, "log": True},
        "batch_size": {"low": 8, "high": 64},
        "network": ["lenet", "smallnet"],
    }
    short, long = (
        expand(Sweep.model_validate({"random": {"count": count, "seed": 7, "over": asked}}), KEYS) for count in (5, 50)
    )
    assert long[:5] == short
    assert all(1e-4 <= one["learning_rate.base"] <= 0.1 for one in long)
    assert sum(one["learning_rate.base"] < 0.003 for one in long) > 15  # evenly on a logarithmic scale
    assert all(isinstance(one["training.batch_size"], int) and 8 <= one["training.batch_size"] <= 64 for one in long)


def test_one_key_typed_in_two_ways_and_one_value_given_twice_are_mistakes() -> None:
    with pytest.raises(UserError, match="are the same key"):
        expand(Sweep.model_validate({"grid": {"lr": [1], "learning_rate.base": [2]}}), KEYS)
    with pytest.raises(UserError, match="twice"):
        expand(Sweep.model_validate({"grid": {"lr": [0.1, 0.1]}}), KEYS)


def test_a_sweep_without_end_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(UserError, match="1000000000000 members"):
        expand(Sweep(grid={f"k{n}": list(range(1000)) for n in range(4)}), KEYS)


@given(st.sets(st.integers(0, 200)))
def test_ranges_are_the_same_numbers_in_less_room(numbers: set[int]) -> None:
    assert from_ranges(to_ranges(sorted(numbers))) == sorted(numbers)


# --- Members ----------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch)


def test_every_mistake_of_every_member_is_said_at_once_and_nothing_is_written(world: World) -> None:
    with pytest.raises(ErrorList) as caught:
        world.plan("lr=0.1,-1", "network=smallnet,alexnt,alexnet")
    said = str(caught.value)
    assert "sweep member 0001 (learning_rate.base=0.1 network.name=alexnt) and 1 more" in said
    assert "Did you mean `alexnet`" in said
    assert "sweep member 0003" in said
    assert "greater than 0" in said
    assert "alexnet needs pictures of at least 63×63" in said
    assert not world.runs.exists()


def test_a_mistake_of_the_spec_itself_is_shown_once_at_its_line(world: World) -> None:
    world.spec.write_text(SPEC + "job: {walltme: 1h}\n")
    with pytest.raises(ErrorList) as caught:
        world.plan("lr=0.1,0.2")
    assert [one.where for one in caught.value.errors] == [f"{world.spec}:10"]


def test_what_only_a_member_makes_impossible_on_the_site_is_said_with_the_member(world: World) -> None:
    with pytest.raises(ErrorList, match=r"sweep member 0001 \(job\.environment=nowhere\).* no environment `nowhere`"):
        world.plan("environment=default,nowhere")


def test_a_sweep_in_the_spec_and_options_that_add_to_it(world: World) -> None:
    world.spec.write_text(SPEC + "sweep:\n  grid: {lr: [0.1, 0.2]}\n  running: 3\n")
    planned = world.plan("batch_size=4,8")
    assert len(planned.record.members) == 4
    assert planned.record.running == 3
    world.spec.write_text(SPEC + "sweep:\n  list: [{lr: 0.1}, {epochs: 3, lr: 0.2}]\n")
    assert world.plan().record.members[1] == {"training.epochs": 3, "learning_rate.base": 0.2}
    with pytest.raises(UserError, match=r"the spec has `sweep\.list`"):
        world.plan("lr=1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sweep: {grid: {lr: 0.1}}", r"cars\.yaml:10"),
        ("sweep:\n  grid: {lr: [1]}\n  random: {count: 1, over: {lr: [1]}}", "one of `grid`, `list`, `random`"),
        ("sweep:\n  gird: {lr: [1]}", "Did you mean `grid`"),
        ("sweep:\n  cap: 3", r"cars\.yaml:10.*names no settings"),
        ("sweep:\n  random: {count: 2, over: {lr: {low: 2, high: 1}}}", "not below high"),
    ],
)
def test_a_mistaken_sweep_is_shown_at_its_line(world: World, text: str, said: str) -> None:
    world.spec.write_text(SPEC + text + "\n")
    with pytest.raises(UserError, match=said):
        world.plan()


def test_a_members_spec_submits_the_same_again_and_keeps_its_comments(world: World) -> None:
    sweep = world.create("lr=0.1,1e-05", "steps=[50],[20.5,60]", "network=smallnet,lenet", "data.split.seed=1,2")
    members = sweep.found_members()
    assert len(members) == 16
    for run in members:
        spec, document = load_spec(run.spec)
        assert spec.model_dump(mode="json") == read_plan(run.plan).spec
        assert "# try others" in document.text()
    assert "sweep:" in sweep.spec.read_text()


@given(
    st.dictionaries(
        st.sampled_from(["notes2", "training.seed", "learning_rate.base", "optimizer.betas"]),
        st.one_of(
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.booleans(),
            st.none(),
            st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])),
            st.lists(st.integers(), min_size=1),
        ),
        min_size=1,
    )
)
@settings(max_examples=100)
def test_any_value_stands_in_a_members_yaml_as_it_was_given(values: dict[str, object]) -> None:
    from dlhpc.spec.load import parse_document, plain

    document = parse_document(SPEC, Path("cars.yaml"))
    text = sweep_module._SpecTexts(document).of(values)
    read = plain(parse_document(text, Path("member.yaml")))
    for key, value in values.items():
        found = read
        for part in key.split("."):
            found = found[part]
        assert found == value


def test_members_with_the_same_pictures_share_one_list_of_them(world: World) -> None:
    sweep = world.create("lr=0.1,0.2", "data.split.seed=1,2")
    lists = [run.catalog.stat().st_ino for run in sweep.found_members()]
    assert lists[0] == lists[2] != lists[1] == lists[3]
    assert read_plan(sweep.found_members()[0].plan).dataset != read_plan(sweep.found_members()[1].plan).dataset


def test_a_sweep_that_cannot_be_written_to_its_end_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = world.plan("lr=0.1,0.2,0.3")
    written = iter(range(2))

    def full(*_: object) -> str:
        if next(written, None) is None:
            raise OSError(28, "No space left on device")
        return "#!/bin/sh\n"

    monkeypatch.setattr("dlhpc.jobs.sweep_write.render", full)
    with pytest.raises(Exception, match="No space left"):
        create_sweep(planned, world.runs)
    assert list(world.runs.iterdir()) == []


# --- One array --------------------------------------------------------------------------------------------------


def test_a_hundred_members_are_one_call_and_one_question(world: World) -> None:
    sweep = world.create_many(100)
    assert sweep_follow.start(sweep) == ["1"]
    (request,) = world.scheduler.requests
    assert request.header.array == tuple(range(100))
    assert request.tag == f"cars-{read_record(sweep).sweep_id}-1"
    now = sweep_status(sweep)
    assert world.scheduler.queries == 1
    assert now.counts[RunState.QUEUED] == 100
    assert now.members[7].job_id == "1_7"
    assert sweep_follow.go_on(sweep) == []


def test_an_array_in_portions_of_what_the_site_allows(world: World) -> None:
    world.profile(max_array=4)
    sweep = world.create_many(9)
    assert sweep_follow.start(sweep) == ["1", "2", "3"]
    assert [request.header.array for request in world.scheduler.requests] == [(0, 1, 2, 3), (0, 1, 2, 3), ()]
    assert [one.job_id for one in follow.statuses(sweep.found_members())] == [
        *("1_0", "1_1", "1_2", "1_3", "2_0", "2_1", "2_2", "2_3"),
        "3",
    ]
    assert "member=$((task + 4))" in sweep.script(2).read_text()


@pytest.mark.parametrize("shell", ["dash", "mksh", "bash"])
def test_each_task_of_an_array_becomes_its_member(world: World, shell: str) -> None:
    world.profile(max_array=4)
    sweep = world.create_many(9)
    sweep_follow.start(sweep)
    for run in sweep.found_members():
        run.script.write_text(f'echo "$0 of {run.name} here"; exit 7\n')
    for variable in ("SLURM_ARRAY_TASK_ID", "PBS_ARRAY_INDEX", "PBS_ARRAYID"):
        environment = {"PATH": os.environ["PATH"], variable: "2"}
        done = subprocess.run([shell, str(sweep.script(2))], env=environment, check=False, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")
    assert find_run(f"{sweep.name}.6", world.runs).job_log.read_text().count("0006 here") == 3
    nobody = subprocess.run(
        [shell, str(sweep.script(2))], env={"PATH": os.environ["PATH"]}, check=False, capture_output=True, text=True
    )
    assert nobody.returncode == 78
    assert "names no task" in nobody.stderr


def test_the_array_script_is_clean_posix_in_a_folder_with_any_name(world: World) -> None:
    world.runs = world.folder / "it's $(here) ; é"
    sweep = world.create_many(3)
    sweep_follow.start(sweep)
    for checker in (["shellcheck", "-s", "sh"], ["dash", "-n"]):
        done = subprocess.run([*checker, str(sweep.script(1))], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    find_run(f"{sweep.name}.1", world.runs).script.write_text("exit 9\n")
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "1"}
    assert subprocess.run(["dash", str(sweep.script(1))], env=environment, check=False).returncode == 9


class Killed(BaseException):
    """Stands for kill -9 at an instruction of ours."""


@pytest.mark.parametrize("arrives", [True, False])
def test_killed_around_the_call_of_the_scheduler(world: World, arrives: bool) -> None:
    sweep = world.create_many(5)
    world.scheduler.fault, world.scheduler.arrives = Killed(), arrives
    with pytest.raises(Killed):
        sweep_follow.start(sweep)
    world.scheduler.fault, world.scheduler.arrives = None, True
    assert set(states(sweep)) == {RunState.QUEUED if arrives else RunState.NOT_SUBMITTED}
    assert sweep_follow.go_on(sweep) == []  # looking at a sweep does not start it
    if not arrives:
        assert sweep_status(sweep).sentence() == "5 not submitted"
        assert sweep_follow.resume_sweep(sweep) == ["2"]
    assert set(states(sweep)) == {RunState.QUEUED}
    assert len(world.scheduler.tags) == 1


def test_not_knowing_whether_an_array_arrived_is_asked_once_and_said_of_every_member(world: World) -> None:
    sweep = world.create_many(20)
    world.scheduler.fault = CommandTimeout("no answer")
    with pytest.raises(CommandTimeout):
        sweep_follow.start(sweep)
    world.scheduler.fault, world.scheduler.silent = None, True
    assert set(states(sweep)) == {RunState.UNKNOWN}
    assert sweep_follow.go_on(sweep) == []
    for action in (sweep_follow.cancel_sweep, sweep_follow.resume_sweep):
        with pytest.raises(UserError, match="is not known"):
            action(sweep)
    world.scheduler.silent = False
    assert set(states(sweep)) == {RunState.QUEUED}
    assert all(len(run.journal.read_text().splitlines()) == 1 for run in sweep.found_members())
    assert len(world.scheduler.requests) == 1


def test_a_refused_array_is_on_record_and_submitted_by_resume(world: World) -> None:
    sweep = world.create_many(5)
    world.scheduler.fault, world.scheduler.arrives = CommandError("no such account"), False
    with pytest.raises(CommandError):
        sweep_follow.start(sweep)
    world.scheduler.fault, world.scheduler.arrives = None, True
    (now, *_) = follow.statuses(sweep.found_members())
    assert (now.state, now.reason) == (RunState.NOT_SUBMITTED, "no such account; submit it with `dlhpc resume`")
    assert sweep_follow.resume_sweep(sweep) == ["2"]
    assert set(states(sweep)) == {RunState.QUEUED}


def test_a_member_resumed_alone_is_not_in_a_later_array(world: World) -> None:
    sweep = world.create_many(6, cap=3)
    sweep_follow.start(sweep)
    assert sweep_follow.resume_member(sweep.found_members()[4]) == "2"
    world.scheduler.jobs.clear()
    for index in (0, 1, 2, 4):
        finish(sweep.found_members()[index], "2" if index == 4 else f"1_{index}")
    sweep_follow.go_on(sweep)
    assert read_progress(sweep).portions[2].members == [3, 5]
    assert "set -- 3 5" in sweep.script(2).read_text()
    assert [one.job_id for one in follow.statuses(sweep.found_members())][3:] == ["3_0", "2", "3_1"]


def test_portions_follow_as_the_queue_empties_and_are_not_tiny(world: World) -> None:
    world.profile(max_jobs=8)
    sweep = world.create_many(20)
    assert "arrays of at most 8, at most 8 of them in the queue" in how_submitted(
        world.plan("lr=" + ",".join(map(str, range(1, 20))))
    )
    sweep_follow.start(sweep)
    members = sweep.found_members()
    finish(members[0], "1_0")
    conclude_one = sweep_follow.go_on_after
    conclude_one(members[0])
    assert len(world.scheduler.requests) == 1  # one free place is no reason for an array of one
    for index in (1, 2, 3):
        finish(members[index], f"1_{index}")
        conclude_one(members[index])
    assert [len(request.header.array) for request in world.scheduler.requests] == [8, 2, 2]
    assert sum(one.state is RunState.QUEUED for one in follow.statuses(members)) == 8


def test_many_processes_at_once_submit_no_member_twice(world: World) -> None:
    sweep = world.create_many(40)
    threads = [threading.Thread(target=sweep_follow.start, args=(sweep,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.scheduler.requests) == 1
    assert not sweep.again.exists()


def test_whoever_finds_the_lock_taken_leaves_a_mark_and_does_not_wait(world: World) -> None:
    sweep = world.create_many(4)
    with sweep_lock(sweep):
        assert sweep_follow.start(sweep) == []
        assert sweep.again.exists()
    assert sweep_follow.start(sweep) == ["1"]


# --- One by one -------------------------------------------------------------------------------------------------


def test_without_arrays_members_are_submitted_one_by_one_under_a_cap(world: World) -> None:
    world.scheduler.abilities = Abilities()
    sweep = world.create_many(14)
    assert len(sweep_follow.start(sweep)) == 10
    members = sweep.found_members()
    finish(members[0], "1")
    sweep_follow.go_on_after(members[0])
    assert len(world.scheduler.requests) == 11
    assert sweep_status(sweep).sentence() == "1 finished, 10 queued, 3 to be submitted"


def test_killed_between_two_members_nobody_is_submitted_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.scheduler.abilities = Abilities()
    sweep = world.create_many(5)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(sweep_follow, "log", killed)
        with pytest.raises(Killed):
            sweep_follow.start(sweep)
    assert sweep_status(sweep).sentence() == "1 queued, 4 not submitted"
    sweep_follow.resume_sweep(sweep)
    assert len(world.scheduler.requests) == 5
    assert set(states(sweep)) == {RunState.QUEUED}


# --- What people do to a sweep ----------------------------------------------------------------------------------


def test_cancel_ends_what_is_in_the_queue_and_submits_no_more_until_resume(world: World) -> None:
    sweep = world.create_many(12, cap=8)
    sweep_follow.start(sweep)
    finish(sweep.found_members()[0], "1_0")
    now = sweep_follow.cancel_sweep(sweep)
    assert now.sentence() == "1 finished, 7 cancelled, 4 not submitted"
    assert world.scheduler.jobs.keys() == {"1_0"}
    assert sweep_follow.go_on(sweep) == []
    assert len(sweep_follow.resume_sweep(sweep)) == 8
    now = sweep_status(sweep)
    assert now.sentence() == "1 finished, 8 queued, 3 to be submitted"
    assert sweep_follow.go_on(sweep) == []


def test_a_failed_member_is_submitted_alone_with_its_own_script(world: World) -> None:
    sweep = world.create_many(4)
    sweep_follow.start(sweep)
    run = find_run(f"{sweep.name}.2", world.runs)
    record(run, Event.BEGUN, attempt=1, job_id="1_2", host="node1")
    record(run, Event.FAILED, attempt=1, code=65, reason="a picture is broken", retried=False)
    record(run, Event.CONCLUDED, attempt=1, job_id="1_2", next="over")
    world.scheduler.jobs.pop("1_2")
    assert sweep_status(sweep).sentence() == "3 queued, 1 failed"
    assert sweep_follow.resume_member(run) == "2"
    assert world.scheduler.requests[1].script == run.script
    assert world.scheduler.requests[1].header.array == ()
    assert follow.status(run).attempt == 2
    assert progress(read_journal(run)[0]).submissions == 2
    with pytest.raises(UserError, match=r"no member .* failed or was cancelled"):
        sweep_follow.resume_sweep(sweep)


def test_a_member_that_waits_for_its_turn_can_be_cancelled(world: World) -> None:
    sweep = world.create_many(6, cap=3)
    sweep_follow.start(sweep)
    sweep_follow.cancel_member(sweep.found_members()[4])
    world.scheduler.jobs.clear()
    for index in (0, 1, 2):
        finish(sweep.found_members()[index], f"1_{index}")
    sweep_follow.go_on(sweep)
    assert read_progress(sweep).portions[2].members == [3, 5]
    assert sweep_status(sweep).waiting == set()


def test_a_held_sweep_submits_no_more_until_it_is_released(world: World) -> None:
    sweep = world.create_many(6, cap=3)
    sweep_follow.start(sweep)
    assert sweep_follow.hold_sweep(sweep) == 3
    assert world.scheduler.held == ["1_0", "1_1", "1_2"]
    world.scheduler.jobs.clear()
    for index in (0, 1, 2):
        finish(sweep.found_members()[index], f"1_{index}")
    assert sweep_follow.go_on(sweep) == []
    sweep_follow.release_sweep(sweep)
    assert len(world.scheduler.requests) == 2


def test_a_sweep_that_was_held_and_cancelled_goes_on_with_resume(world: World) -> None:
    sweep = world.create_many(3)
    sweep_follow.start(sweep)
    sweep_follow.hold_sweep(sweep)
    sweep_follow.cancel_sweep(sweep)
    world.scheduler.jobs.clear()
    assert len(sweep_follow.resume_sweep(sweep)) == 3


def test_resuming_members_of_a_held_sweep_says_what_they_wait_for(world: World) -> None:
    sweep = world.create_many(2)
    sweep_follow.start(sweep)
    sweep_follow.hold_sweep(sweep)
    follow.cancel(sweep.found_members()[0])
    world.scheduler.jobs.pop("1_0", None)
    said = CliRunner().invoke(resume_command, [str(sweep.path)]).output
    assert "could be submitted yet: 1 queued, 1 to be submitted after `dlhpc release`" in said
    named = CliRunner().invoke(status_command, [str(sweep.path)]).output
    assert f"waits for `dlhpc release {sweep.name}`" in named
    assert sweep_follow.release_sweep(sweep) == 1
    assert sweep_status(sweep).waiting == set()


def test_a_spec_that_asks_to_be_held_is(world: World) -> None:
    sweep = world.create("lr=0.1,0.2,0.3", settings=["job.hold=true"])
    sweep_follow.start(sweep)
    assert world.scheduler.requests[0].held
    assert set(states(sweep)) == {RunState.HELD}


def test_a_run_that_members_wait_for_is_looked_for_once_and_passed_on(world: World) -> None:
    before = world.create_many(2)
    sweep_follow.start(before)
    first = before.found_members()[0]
    sweep = world.create("lr=0.1,0.2", settings=[f"job.after=[{first.name.removeprefix('cars-')}]"])
    assert read_plan(sweep.found_members()[1].plan).after == [str(first.path)]
    sweep_follow.start(sweep)
    assert [one.job_id for one in world.scheduler.requests[1].after] == ["1_0"]


def test_members_are_found_by_their_numbers_and_stand_among_all_runs(world: World) -> None:
    first = world.create_many(3)
    second = world.create_many(2)
    assert [run.name for run in all_runs(world.runs)] == [
        run.name for sweep in (first, second) for run in sweep.found_members()
    ]
    assert find_run(f"{first.name}.0002", world.runs) == first.found_members()[2]
    assert find_run(f"{second.name[-4:]}.1", world.runs) == second.found_members()[1]
    assert find_run("last.0", world.runs) == second.found_members()[0]
    assert find_run("last", world.runs) == second.found_members()[-1]
    assert find_entry("last", world.runs) == second
    assert find_entry(str(first.path), world.runs) == first
    with pytest.raises(UserError, match="is a sweep of 3 runs"):
        find_run(first.name, world.runs)
    with pytest.raises(UserError, match="there is no run"):
        find_run(f"{first.name}.7", world.runs)


def test_status_shows_a_sweep_in_one_line_and_its_members_when_named(world: World) -> None:
    sweep = world.create_many(5)
    sweep_follow.start(sweep)
    for index, accuracy in ((0, 0.5), (3, 0.931)):
        finish(sweep.found_members()[index], f"1_{index}", accuracy)
    said = CliRunner().invoke(status_command, ["--runs", str(world.runs)]).output.splitlines()
    assert len(said) == 2
    assert (
        f"5 members: 2 finished, 3 queued; best so far {sweep.name}.0003 with val accuracy 93.1 % after 2 epochs"
        in said[1]
    )
    named = CliRunner().invoke(status_command, ["last", "--runs", str(world.runs)]).output.splitlines()
    assert len(named) == 7
    assert "learning_rate=0.002" in named[3]
    listed = json.loads(CliRunner().invoke(status_command, ["--json", "--runs", str(world.runs)]).output)
    assert [one["state"] for one in listed] == ["finished", "queued", "queued", "finished", "queued"]


def test_the_script_that_render_shows_is_the_one_that_is_submitted(world: World) -> None:
    planned = world.plan("lr=0.1,0.2,0.3")
    shown = first_script(planned)
    sweep = create_sweep(planned, world.runs)
    sweep_follow.start(sweep)
    assert sweep.script(1).read_text() == shown.replace("cars-DATE-TIME-xxxx", sweep.name)


def measured_run(world: World, *, step: float) -> None:
    """A run of the same network and pictures whose training steps took so many seconds."""
    journal = new_run(world.runs, next(world.plan("lr=0.1").members()).plan)
    journal.begin(30.0)
    journal.epochs(4, step=step)


def alone(world: World, epochs: int) -> int:
    """The walltime that a single training of so many epochs asks for, in seconds."""
    settings = [f"training.epochs={epochs}"]
    return plan.make_plan(world.spec, runs=world.runs, site=str(world.site), settings=settings).plan.walltime_seconds


def test_a_sweep_asks_for_the_walltime_that_earlier_runs_needed(world: World) -> None:
    measured_run(world, step=30.0)
    sweep = world.create("lr=0.1,0.01", settings=["training.epochs=4"])
    asked = {read_plan(run.plan).walltime_seconds for run in sweep.found_members()}
    assert asked == {alone(world, 4)}
    assert max(asked) < plan.DEFAULT_WALLTIME_S


def test_one_array_has_the_walltime_of_its_longest_member(world: World) -> None:
    measured_run(world, step=30.0)
    assert alone(world, 4) * 2 < alone(world, 400)
    planned = world.plan("epochs=4,400,40")
    plans = [read_plan(run.plan) for run in create_sweep(planned, world.runs).found_members()]
    assert {made.walltime_seconds for made in plans} == {alone(world, 400)}
    # Nobody who left the walltime open is told to have asked for too much.
    told = [*planned.warnings, *(warning for made in plans for warning in made.warnings)]
    assert [warning for warning in told if "walltime" in warning] == []


def test_a_walltime_that_is_far_too_long_for_every_member_is_said_once(world: World) -> None:
    measured_run(world, step=30.0)
    planned = world.plan("lr=0.1,0.01", settings=["training.epochs=4", "job.walltime=20h"])
    assert [warning.startswith("job.walltime is 20:00:00") for warning in planned.warnings] == [True]
    assert {member.plan.walltime_seconds for member in planned.members()} == {20 * 3600}


def test_members_whose_jobs_were_killed_go_on_also_where_one_of_them_cannot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = world.create("lr=0.1,0.2,0.3")
    sweep_follow.start(sweep)
    for index, run in enumerate(sweep.found_members()):
        record(run, Event.BEGUN, attempt=1, job_id=f"1_{index}", host="node1")
        world.scheduler.jobs[f"1_{index}"] = JobState.ENDED
    look_after = follow.look_after

    def quicker_once(run: RunDirectory, now: follow.RunStatus) -> bool:
        if run.name.endswith(".0000"):
            raise UserError("attempt 2 is submitted already")
        return look_after(run, now)

    monkeypatch.setattr(sweep_follow, "look_after", quicker_once)
    with pytest.raises(UserError, match="submitted already"):
        sweep_follow.look_after_sweep(sweep, sweep_status(sweep))
    assert states(sweep) == [RunState.FAILED, RunState.QUEUED, RunState.QUEUED]
    monkeypatch.setattr(sweep_follow, "look_after", look_after)
    assert sweep_follow.look_after_sweep(sweep, sweep_status(sweep))
    assert states(sweep) == [RunState.QUEUED] * 3


def test_where_jobs_may_not_submit_jobs_a_member_that_ends_does_not_try(world: World) -> None:
    world.site.write_text(world.site.read_text() + "compute_may_submit: false\n")
    sweep = world.create_many(6, cap=3)
    sweep_follow.start(sweep)
    members = sweep.found_members()
    for index in range(3):
        finish(members[index], f"1_{index}")
        sweep_follow.go_on_after(members[index])
    assert len(world.scheduler.requests) == 1
    CliRunner().invoke(status_command, ["--runs", str(world.runs)])
    assert len(world.scheduler.requests) == 2
