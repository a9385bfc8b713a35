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
from dlhpc.runs.state import JobView, Progress, RunState, progress, state_of


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


RUNS, OVER = JobView("running"), JobView("over", exit_code=1)


def tell(run: RunDirectory, story: str) -> Progress:
    """Write a journal from words such as ``submitted:7 begun:7 stopped``; gives what is known then.

    A word's number is the job's; an attempt has its number from its ``begun``. ``ahead:8`` is a submission ahead.
    """
    submission = attempt = 0
    for word in story.split():
        event, _, job = word.partition(":")
        about = {"attempt": attempt}
        if event in ("submitting", "submitted", "ahead"):
            ahead = {"ahead": True} if event == "ahead" else {}
            submission += 1
            record(run, Event.SUBMITTING, submission=submission, attempt=attempt + 1, **ahead)
            if job:
                record(
                    run, Event.SUBMITTED, submission=submission, attempt=attempt + 1, job_ids=job.split(","), **ahead
                )
        elif event == "found":
            record(run, Event.SUBMITTED, submission=submission, attempt=attempt, job_ids=[job])
        elif event == "begun":
            attempt += 1
            record(run, Event.BEGUN, attempt=attempt, job_id=job, host="node1")
        elif event in ("over", "waiting", "requeued"):
            record(run, Event.CONCLUDED, **about, job_id=job, next=event)
        elif event == "job_over":
            record(run, Event.JOB_OVER, job_ids=[job])
        elif event == "crashed":
            record(run, Event.FAILED, **about, retried=True, reason="it crashed", tail=["last words"])
        else:
            record(run, Event(event), **about)
    return progress(read_journal(run)[0])


@pytest.mark.parametrize(
    ("story", "jobs", "state"),
    [
        ("created", {}, RunState.NOT_SUBMITTED),
        ("submitting", {}, RunState.UNKNOWN),
        ("submitting submit_failed", {}, RunState.NOT_SUBMITTED),
        ("submitted:7", {"7": JobView("queued")}, RunState.QUEUED),
        ("submitted:7", {"7": JobView("held")}, RunState.HELD),
        ("submitted:7", {"7": RUNS}, RunState.RUNNING),
        ("submitted:7", {"7": OVER}, RunState.FAILED),
        ("submitted:7", {"7": JobView("unknown", reason="no answer")}, RunState.UNKNOWN),
        ("submitted:7", {}, RunState.UNKNOWN),  # nobody asked
        ("submitted:7 begun:7", {"7": RUNS}, RunState.RUNNING),
        ("submitted:7 begun:7", {"7": OVER}, RunState.FAILED),
        ("submitted:7 begun:7", {"7": JobView("over", cancelled=True)}, RunState.CANCELLED),  # by hand
        ("submitted:7 begun:7 finished", {"7": RUNS}, RunState.RUNNING),  # its script is about to end
        ("submitted:7 begun:7 finished", {"7": OVER}, RunState.FINISHED),
        ("submitted:7 begun:7 finished", {"7": JobView("unknown")}, RunState.FINISHED),
        ("submitted:7 begun:7 finished", {}, RunState.FINISHED),
        ("submitted:7 begun:7 failed", {"7": RUNS}, RunState.RUNNING),  # it may yet go on with another attempt
        ("submitted:7 begun:7 failed", {"7": OVER}, RunState.FAILED),
        ("submitted:7 begun:7 failed over:7", {}, RunState.FAILED),
        ("submitted:7 begun:7 cancelled", {"7": RUNS}, RunState.CANCELLED),
        ("submitted:7 begun:7 cancelled failed", {"7": OVER}, RunState.CANCELLED),
        ("submitted:7 begun:7 crashed submitted:8", {"7": OVER, "8": JobView("queued")}, RunState.QUEUED),
        ("submitted:7 begun:7 stopped requeued:7", {"7": JobView("queued")}, RunState.QUEUED),
        # Jobs that were queued ahead: one of them goes on, or nobody needs them any more.
        ("submitted:7 ahead:8 begun:7", {"7": RUNS, "8": JobView("queued")}, RunState.RUNNING),
        ("submitted:7 ahead:8 begun:7 crashed", {"7": OVER, "8": JobView("queued")}, RunState.QUEUED),
        ("submitted:7 ahead:8 begun:7 crashed", {"7": OVER, "8": JobView("unknown")}, RunState.UNKNOWN),
        ("submitted:7 ahead:8 begun:7 finished over:7", {"8": JobView("queued")}, RunState.FINISHED),
        ("submitted:7 ahead:8 begun:7 failed over:7", {"8": OVER}, RunState.FAILED),
    ],
)
def test_the_state_is_computed_from_the_journal_and_the_scheduler(
    tmp_path: Path, story: str, jobs: dict[str, JobView], state: RunState
) -> None:
    assert state_of(tell(new_run(tmp_path), story), jobs)[0] is state


@pytest.mark.parametrize(
    ("story", "attempt", "job", "jobs"),
    [
        ("created", 0, None, ""),
        ("submitting", 1, None, ""),
        ("submitted:7", 1, "7", "7"),
        ("submitted:7,8,9", 1, "7", "7 8 9"),  # steps of one submission
        ("submitted:7 begun:7", 1, "7", "7"),
        ("submitted:7 begun:7 submitted:8", 1, "7", "7 8"),
        ("submitted:7 begun:7 submitted:8 over:7", 2, "8", "8"),
        ("submitted:7 begun:7 requeued:7", 2, "7", "7"),
        ("submitted:7 begun:7 begun:7", 2, "7", "7"),  # the scheduler restarted it
        ("submitted:7 ahead:8 ahead:9 begun:7", 1, "7", "7 8 9"),
        ("submitted:7 ahead:8 ahead:9 begun:7 waiting:7", 2, "8", "8 9"),
        ("submitted:7 ahead:8 begun:7 finished over:7", 1, "7", "8"),  # 8 does not matter any more
        ("submitted:7 begun:7 ahead:8 failed over:7", 1, "7", "8"),
        ("submitted:7 begun:7 job_over:7", 1, "7", ""),
        ("submitted:7 cancelled", 1, "7", "7"),
        ("submitting begun:7 found:7", 1, "7", "7"),  # it began before its id was on record
        ("submitting begun:7 finished over:7 found:7", 1, "7", ""),
    ],
)
def test_attempts_count_the_beginnings_and_jobs_are_known_by_their_ids(
    tmp_path: Path, story: str, attempt: int, job: str | None, jobs: str
) -> None:
    now = tell(new_run(tmp_path), story)
    assert (now.attempt, now.job_id, " ".join(now.jobs)) == (attempt, job, jobs)


def test_a_failure_keeps_the_logs_tail_until_another_attempt_begins(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert tell(run, "submitted:7 begun:7 crashed").tail == ("last words",)
    record(run, Event.BEGUN, attempt=2, job_id="7", host="node1")
    now = progress(read_journal(run)[0])
    assert (now.tail, now.ended, now.final) == ((), None, False)


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


def test_a_job_is_known_by_its_short_name_too(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    record(run, Event.SUBMITTING, submission=1, attempt=1)
    record(run, Event.SUBMITTED, submission=1, attempt=1, job_ids=["c1.site.org.7.0"])
    record(run, Event.BEGUN, attempt=1, job_id="c1.7.0")
    known = progress(read_journal(run)[0])
    assert (known.current, known.waiting) == ("c1.site.org.7.0", ())
    record(run, Event.CONCLUDED, attempt=1, job_id="c1.7.0", next="over")
    assert progress(read_journal(run)[0]).jobs == ()
