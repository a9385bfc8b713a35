"""A run directory survives deaths at any instruction: torn lines are skipped, files are old or new."""

from __future__ import annotations

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from dlhpc.errors import StorageError, UserError
from dlhpc.files import append_lines, read_json_lines, replace_text, replacing
from dlhpc.runs.curves import Point, forget_after, read_points, write_points
from dlhpc.runs.directory import RunDirectory, create_run
from dlhpc.runs.find import all_runs, find_run
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.state import JobView, RunState, progress, state_of


def new_run(runs: Path, name: str = "cars") -> RunDirectory:
    return create_run(runs, name, lambda hidden, _: record(hidden, Event.CREATED))


def test_a_replaced_file_is_the_old_one_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    replace_text(path, "old")
    with pytest.raises(StorageError), replacing(path) as beside:  # noqa: PT012
        beside.write_text("half of the ne")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_below_a_file_is_refused_kindly(tmp_path: Path) -> None:
    (tmp_path / "photos.yaml").touch()
    with pytest.raises(StorageError, match=r"photos\.yaml/x: cannot write"):
        replace_text(tmp_path / "photos.yaml" / "x", "new")


def test_a_line_cut_by_a_crash_is_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_lines(path, ['{"a": 1}'])
    with path.open("a") as file:
        file.write('{"a": 2')
    append_lines(path, ['{"a": 3}'])
    assert read_json_lines(path) == ([{"a": 1}, {"a": 3}], 1)


def test_many_writers_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda n: append_lines(path, [json.dumps({"n": n, "pad": "x" * 500})], durable=False), range(200))
        )
    rows, damaged = read_json_lines(path)
    assert damaged == 0
    assert sorted(row["n"] for row in rows) == list(range(200))


def test_a_run_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def dies(hidden: RunDirectory, _: RunDirectory) -> None:
        hidden.spec.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_run(tmp_path, "cars", dies)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_submit_left_behind_is_removed_a_day_later(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".new-cars-old", tmp_path / ".new-cars-fresh"
    for folder in (old, fresh):
        (folder / "logs").mkdir(parents=True)
    os.utime(old, (0, 0))
    new_run(tmp_path)
    assert (old.exists(), fresh.exists()) == (False, True)


def test_two_runs_at_the_same_second_have_different_names(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5)
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(
                lambda _: create_run(tmp_path, "cars", lambda hidden, _: record(hidden, Event.CREATED), now=now),
                range(40),
            )
        )
    assert len({run.name for run in made}) == 40
    assert all(run.name.startswith("cars-20260102-030405-") for run in made)


def test_a_folder_where_nobody_may_write_is_a_kind_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create a run in"):
        new_run(tmp_path / "file" / "runs")


def test_runs_are_found_by_what_people_type(tmp_path: Path) -> None:
    cars, faces = new_run(tmp_path, "cars"), new_run(tmp_path, "faces")
    assert {run.name for run in all_runs(tmp_path)} == {cars.name, faces.name}
    assert find_run("cars", tmp_path) == cars
    assert find_run(faces.name[-4:], tmp_path) == faces
    assert find_run(str(cars.path), tmp_path) == cars
    with pytest.raises(UserError, match="Did you mean"):
        find_run(cars.name[:-1] + "z", tmp_path)
    other = new_run(tmp_path, "cars")
    with pytest.raises(UserError, match=f"could be any of 2 runs.*\n.*{other.name}"):
        find_run("cars", tmp_path)


def test_curves_keep_every_point_and_a_second_measurement_counts(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    write_points(
        path, [Point(1.0, 10, "train", "loss", 0.1 + 0.2, 1.0), Point(2.0, 20, "train", "loss", math.nan, 2.0)]
    )
    write_points(path, [Point(2.0, 20, "train", "loss", 0.5, 3.0)])
    with path.open("a") as file:
        file.write('{"epoch": 3')
    points, damaged = read_points(path)
    assert [(point.step, point.value) for point in points] == [(10, 0.1 + 0.2), (20, 0.5)]
    assert damaged == 1


def test_points_after_a_checkpoint_are_forgotten_before_they_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    write_points(path, [Point(n, 10 * n, "train", "loss", 1.0, 0.0) for n in range(1, 6)])
    assert forget_after(path, 30) == 2
    assert [point.step for point in read_points(path)[0]] == [10, 20, 30]
    assert forget_after(tmp_path / "none.jsonl", 30) == 0


JOB_RUNS, JOB_OVER = JobView("running"), JobView("over", exit_code=1)


@pytest.mark.parametrize(
    ("events", "job", "state"),
    [
        ([], None, RunState.NOT_SUBMITTED),
        ([(Event.SUBMITTING, {"attempt": 1})], JobView("unknown"), RunState.UNKNOWN),
        ([(Event.SUBMITTING, {"attempt": 1}), (Event.SUBMIT_FAILED, {"attempt": 1})], None, RunState.NOT_SUBMITTED),
        ("submitted", JobView("queued"), RunState.QUEUED),
        ("submitted", JOB_RUNS, RunState.RUNNING),
        ("submitted", JOB_OVER, RunState.FAILED),
        ("submitted", JobView("unknown", reason="no answer"), RunState.UNKNOWN),
        ("submitted+finished", JOB_RUNS, RunState.RUNNING),  # its script is about to end
        ("submitted+finished", JOB_OVER, RunState.FINISHED),
        ("submitted+finished", JobView("unknown"), RunState.FINISHED),
        ("submitted+finished", None, RunState.FINISHED),
        ("submitted+failed", JOB_RUNS, RunState.RUNNING),  # it may yet go on with another attempt
        ("submitted+failed", JOB_OVER, RunState.FAILED),
        ("submitted+cancelled", JOB_RUNS, RunState.CANCELLED),
        ("submitted+cancelled+failed", JOB_OVER, RunState.CANCELLED),
        ("submitted+failed+submitted", JobView("queued"), RunState.QUEUED),
    ],
)
def test_the_state_is_computed_from_the_journal_and_the_scheduler(
    tmp_path: Path, events: str | list[tuple[Event, dict[str, int]]], job: JobView | None, state: RunState
) -> None:
    run = new_run(tmp_path)
    attempt = 0
    for word in events.split("+") if isinstance(events, str) else []:
        if word == "submitted":
            attempt += 1
            record(run, Event.SUBMITTING, attempt=attempt)
        record(run, Event(word), attempt=attempt, job_id="7")
    for event, details in events if isinstance(events, list) else []:
        record(run, event, **details)
    assert state_of(progress(read_journal(run)[0]), job)[0] is state


def test_an_empty_name_means_no_run(tmp_path: Path) -> None:
    new_run(tmp_path)
    for nothing in ("", " "):  # `dlhpc cancel "$RUN"` where RUN was never set
        with pytest.raises(UserError, match="name of the run is empty"):
            find_run(nothing, tmp_path)


def test_last_is_the_last_of_those_made_in_one_second(tmp_path: Path) -> None:
    for nth, ending in enumerate(["ffff", "0000", "8888"]):
        run = tmp_path / f"cars-20260105-120000-{ending}"
        run.mkdir()
        (run / "journal.jsonl").touch()
        (run / "plan.json").touch()
        os.utime(run / "plan.json", (nth, nth))
    assert [run.name[-4:] for run in all_runs(tmp_path)] == ["ffff", "0000", "8888"]
    assert find_run("last", tmp_path).name.endswith("8888")


def test_a_file_where_a_folder_is_needed_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(StorageError, match="choose another place"):
        all_runs(tmp_path / "runs")
    with pytest.raises(StorageError, match="choose another place"):
        new_run(tmp_path / "runs")
