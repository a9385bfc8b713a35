"""Submission is crash-safe, every end of an attempt has its consequence, and a run can be cancelled and held."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from dlhpc.errors import AttemptExit, CommandError, StorageError, UserError
from dlhpc.jobs import follow, submit
from dlhpc.jobs.conclude import next_step
from dlhpc.process import CommandTimeout
from dlhpc.runs.directory import RunDirectory, create_run
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import read_plan
from dlhpc.runs.state import RunState
from dlhpc.schedulers.base import Abilities, JobState
from tests.unit.conftest import MakeRun
from tests.unit.job_runs import ALL_ABLE, CLUSTER, SITE, FakeScheduler, changed, events


@pytest.fixture
def run(make_run: MakeRun) -> RunDirectory:
    return make_run()


# --- Submission is never lost or doubled ------------------------------------------------------------------------


def test_a_submitted_run_is_queued_and_its_job_carries_the_runs_id(run: RunDirectory, scheduler: FakeScheduler) -> None:
    assert submit.submit_attempt(run, 1) == "job1"
    now = follow.status(run)
    assert (now.state, now.job_id, now.attempt) == (RunState.QUEUED, "job1", 1)
    assert scheduler.requests["job1"].tag == f"cars-{read_plan(run.plan).run_id}-1"
    assert scheduler.requests["job1"].script == run.script


class Killed(BaseException):
    """Stands for kill -9 at an instruction of ours."""


def test_killed_after_the_scheduler_took_the_job(run: RunDirectory, scheduler: FakeScheduler) -> None:
    scheduler.fault = Killed()
    with pytest.raises(Killed):
        submit.submit_attempt(run, 1)
    assert follow.status(run).job_id == "job1"
    assert follow.status(run).state is RunState.QUEUED


def test_killed_before_the_scheduler_took_the_job(run: RunDirectory, scheduler: FakeScheduler) -> None:
    scheduler.fault, scheduler.arrives = Killed(), False
    with pytest.raises(Killed):
        submit.submit_attempt(run, 1)
    assert follow.status(run).state is RunState.NOT_SUBMITTED
    scheduler.fault, scheduler.arrives = None, True
    assert follow.resume(run) == "job1"
    assert follow.status(run).attempt == 1
    assert scheduler.requests["job1"].tag.endswith("-2")  # were the first still to arrive, it would not be taken for it


def test_not_knowing_is_not_the_same_as_not_submitted(run: RunDirectory, scheduler: FakeScheduler) -> None:
    scheduler.fault = CommandTimeout("the scheduler did not answer")
    with pytest.raises(CommandTimeout):
        submit.submit_attempt(run, 1)
    scheduler.silent = True
    assert follow.status(run).state is RunState.UNKNOWN
    with pytest.raises(UserError, match="unknown"):
        follow.resume(run)
    scheduler.silent = False
    assert follow.status(run).state is RunState.QUEUED
    assert len(scheduler.jobs) == 1


def test_a_job_that_begins_before_its_id_is_on_record_is_one_job(run: RunDirectory, scheduler: FakeScheduler) -> None:
    scheduler.fault = Killed()
    with pytest.raises(Killed):
        submit.submit_attempt(run, 1)
    assert scheduler.start(run, "job1") == 1
    now = follow.status(run)
    assert (now.state, now.job_id, now.attempt) == (RunState.RUNNING, "job1", 1)
    scheduler.fault = None
    scheduler.end(run, "job1", 1, AttemptExit.CONTINUE, saved=True)
    assert scheduler.alive() == ["job2"]


def test_a_refused_submission_is_on_record(run: RunDirectory, scheduler: FakeScheduler) -> None:
    scheduler.fault, scheduler.arrives = CommandError("no such account"), False
    with pytest.raises(CommandError):
        submit.submit_attempt(run, 1)
    now = follow.status(run)
    assert now.state is RunState.NOT_SUBMITTED
    assert now.reason == "no such account; submit it with `dlhpc resume`"


def test_one_attempt_is_never_submitted_twice(run: RunDirectory, scheduler: FakeScheduler) -> None:
    submit.submit_attempt(run, 1)
    with pytest.raises(UserError, match="submitted already"):
        submit.submit_attempt(run, 1)
    with pytest.raises(UserError, match="is queued"):
        follow.resume(run)
    assert len(scheduler.jobs) == 1


def test_a_failing_query_says_since_when_nothing_is_known(run: RunDirectory, scheduler: FakeScheduler) -> None:
    submit.submit_attempt(run, 1)
    scheduler.silent = True
    now = follow.status(run)
    assert now.state is RunState.UNKNOWN
    assert now.unknown_since == read_journal(run)[0][-1].time
    clock = time.strftime("%H:%M:%S", time.localtime(now.unknown_since))
    assert now.reason is not None
    assert now.reason.startswith("since ")
    assert now.reason.endswith(f"{clock}: the scheduler does not answer")
    scheduler.silent = False
    assert follow.status(run).unknown_since is None


def test_one_unreadable_run_does_not_hide_the_others(run: RunDirectory) -> None:
    submit.submit_attempt(run, 1)
    broken = create_run(run.path.parent, "broken", lambda hidden, _: record(hidden, Event.CREATED))
    record(broken, Event.SUBMITTING, submission=1, attempt=1)
    record(broken, Event.SUBMITTED, submission=1, attempt=1, job_ids=["1"])
    broken.plan.write_text("{")
    shown = {one.run: one.state for one in follow.statuses([run, broken])}
    assert shown == {run.name: RunState.QUEUED, broken.name: RunState.UNKNOWN}


# --- What comes after an attempt --------------------------------------------------------------------------------


@pytest.fixture
def running(run: RunDirectory, scheduler: FakeScheduler) -> RunDirectory:
    """Its first attempt runs, as job1."""
    submit.submit_attempt(run, 1)
    assert scheduler.start(run, "job1") == 1
    return run


def test_saved_in_time_means_another_attempt(running: RunDirectory, scheduler: FakeScheduler) -> None:
    assert follow.status(running).state is RunState.RUNNING
    scheduler.end(running, "job1", 1, AttemptExit.CONTINUE, saved=True)
    now = follow.status(running)
    assert (now.state, now.attempt, now.job_id) == (RunState.QUEUED, 2, "job2")
    assert scheduler.start(running, "job2") == 2


def test_an_attempt_that_saved_nothing_is_not_repeated_for_ever(
    running: RunDirectory, scheduler: FakeScheduler
) -> None:
    scheduler.end(running, "job1", 1, AttemptExit.CONTINUE)
    now = follow.status(running)
    assert now.state is RunState.FAILED
    assert "too short" in str(now.reason)


def test_one_stalled_attempt_does_not_end_a_chain_that_has_got_somewhere(
    running: RunDirectory, scheduler: FakeScheduler
) -> None:
    scheduler.end(running, "job1", 1, AttemptExit.CONTINUE, saved=True)
    scheduler.start(running, "job2")
    scheduler.end(running, "job2", 2, AttemptExit.CONTINUE)  # the file system stalled: nothing was saved
    assert follow.status(running).attempt == 3
    scheduler.start(running, "job3")
    scheduler.end(running, "job3", 3, AttemptExit.CONTINUE)
    assert follow.status(running).attempt == 3
    assert len(scheduler.jobs) == 3


def test_bad_data_and_bad_configuration_are_never_retried(running: RunDirectory, scheduler: FakeScheduler) -> None:
    record(running, Event.FAILED, attempt=1, code=65, reason="anna/1.png is empty")
    running.log(1).write_text("first\nlast words\n")
    scheduler.end(running, "job1", 1, AttemptExit.BAD_DATA)
    now = follow.status(running)
    assert (now.state, now.reason, now.tail) == (RunState.FAILED, "anna/1.png is empty", ("first", "last words"))
    assert scheduler.alive() == []
    assert not follow.look_after(running, now)


def test_crashes_are_retried_up_to_the_limit_and_then_show_the_logs_end(
    running: RunDirectory, scheduler: FakeScheduler
) -> None:
    scheduler.end(running, "job1", 1, 139)
    assert follow.status(running).attempt == 2
    scheduler.start(running, "job2")
    running.log(2).write_text("".join(f"line {n}\n" for n in range(100)))
    scheduler.end(running, "job2", 2, 139)
    now = follow.status(running)
    assert now.state is RunState.FAILED
    assert "crash number 2; job.crash_retries is 1" in str(now.reason)
    assert now.tail == tuple(f"line {n}" for n in range(85, 100))


def test_there_is_a_last_attempt(run: RunDirectory) -> None:
    go_on, why = next_step(read_plan(run.plan), [], 4, AttemptExit.CONTINUE)
    assert not go_on
    assert "4 attempts were not enough" in str(why)


@pytest.mark.parametrize(("code", "words"), [(127, "a program is missing"), (137, "want of memory")])
def test_codes_of_the_shell_are_put_into_words(
    run: RunDirectory, scheduler: FakeScheduler, code: int, words: str
) -> None:
    submit.submit_attempt(run, 1)
    scheduler.jobs["job1"], scheduler.exit_code = JobState.ENDED, code
    assert words in str(follow.status(run).reason)
    assert words in str(next_step(read_plan(run.plan), read_journal(run)[0], 1, code)[1])


def test_a_next_attempt_that_is_refused_is_told_and_can_be_resumed(
    running: RunDirectory, scheduler: FakeScheduler
) -> None:
    scheduler.fault, scheduler.arrives = CommandError("the queue is closed"), False
    with pytest.raises(CommandError):
        scheduler.end(running, "job1", 1, AttemptExit.CONTINUE, saved=True)
    scheduler.jobs["job1"] = JobState.ENDED
    now = follow.status(running)
    assert now.state is RunState.FAILED
    assert "the queue is closed" in str(now.reason)
    scheduler.fault, scheduler.arrives = None, True
    assert scheduler.start(running, follow.resume(running)) == 2


# --- Cancelling -------------------------------------------------------------------------------------------------


def test_a_cancelled_run_does_not_go_on(running: RunDirectory, scheduler: FakeScheduler) -> None:
    assert follow.cancel(running).state is RunState.CANCELLED
    scheduler.end(running, "job1", 1, AttemptExit.CONTINUE, saved=True)
    assert scheduler.alive() == []
    assert follow.resume(running) == "job2"
    assert follow.status(running).attempt == 2


def test_a_job_of_a_cancelled_run_that_starts_all_the_same_ends_at_once(
    run: RunDirectory, scheduler: FakeScheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    submit.submit_attempt(run, 1)
    follow.cancel(run)
    assert scheduler.start(run, "job1") is None
    assert f"{run.name} is cancelled already" in capsys.readouterr().err
    assert "begun" not in events(run)


def test_cancelling_is_repeated_after_the_scheduler_did_not_answer(
    running: RunDirectory, scheduler: FakeScheduler
) -> None:
    scheduler.silent = True
    with pytest.raises(CommandError):
        follow.cancel(running)
    scheduler.silent = False
    assert follow.cancel(running).state is RunState.CANCELLED
    assert scheduler.alive() == []
    assert events(running).count("cancelled") == 2  # asked for, then confirmed


def test_cancel_ends_the_whole_chain_the_last_first(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    scheduler.abilities = ALL_ABLE
    run = make_run(site=changed(CLUSTER, compute_may_submit=False))
    submit.submit_attempt(run, 1)
    scheduler.start(run, "job1")
    assert scheduler.alive() == ["job1", "job2", "job3", "job4"]
    now = follow.cancel(run)
    assert (now.state, now.attempt, now.job_id) == (RunState.CANCELLED, 1, "job1")
    assert scheduler.cancelled == ["job4", "job3", "job2", "job1"]


# --- Holding ----------------------------------------------------------------------------------------------------


def test_a_run_can_be_submitted_held_and_released_and_held_again(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    scheduler.abilities = Abilities(hold=True)
    run = make_run(hold=True)
    submit.submit_attempt(run, 1)
    assert follow.status(run).state is RunState.HELD
    follow.release([run])
    assert follow.status(run).state is RunState.QUEUED
    follow.hold([run])
    assert follow.status(run).state is RunState.HELD
    follow.release([run])
    scheduler.start(run, "job1")
    with pytest.raises(UserError, match="is running: it has no job that waits"):
        follow.hold([run])
    scheduler.end(run, "job1", 1, 139)
    assert not scheduler.requests["job2"].held  # only the first waits for the user


def test_a_scheduler_that_cannot_hold_says_so(run: RunDirectory) -> None:
    submit.submit_attempt(run, 1)
    with pytest.raises(UserError, match="the scheduler `slurm` cannot hold a job"):
        follow.hold([run])


# --- Whose run it is --------------------------------------------------------------------------------------------


def test_the_umask_of_the_user_is_kept(run: RunDirectory) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert run.path.stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_run_of_somebody_else_is_not_taken_for_failed(
    make_run: MakeRun, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(site=SITE)
    submit.submit_attempt(run, 1)
    scheduler.jobs.clear()  # our own queue does not know their job
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    now = follow.status(run)
    assert now.state is RunState.UNKNOWN
    assert "its job is in the queue of" in str(now.reason)
    for refused in (follow.cancel, follow.resume):
        with pytest.raises(UserError):
            refused(run)
    assert not follow.look_after(run, now)
    assert events(run) == ["created", "submitting", "submitted"]


def test_nobody_looks_for_a_job_while_its_submission_is_still_on_its_way(run: RunDirectory) -> None:
    code = (
        "import sys; from pathlib import Path; from dlhpc.jobs.submit import submission_lock\n"
        "from dlhpc.process import ask; from dlhpc.runs.directory import RunDirectory\n"
        "with submission_lock(RunDirectory(Path(sys.argv[1]))):\n"
        "    ask(['sh', '-c', 'echo $$ > \"$0\"; sleep 60', sys.argv[2]], timeout=100)\n"
    )
    on_its_way = run.path / "pid"
    with subprocess.Popen([sys.executable, "-c", code, str(run.path), str(on_its_way)]) as submitter:
        while not (on_its_way.exists() and on_its_way.read_text().strip()):
            time.sleep(0.02)
        submitter.kill()  # dlhpc is killed; what it called lives on
    with pytest.raises(StorageError), submit.submission_lock(run, patience=0.1):
        pass
    child = psutil.Process(int(on_its_way.read_text()))
    for process in (*child.children(), child):
        process.kill()
    with submit.submission_lock(run, patience=20):
        pass
