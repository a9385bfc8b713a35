"""A training longer than a job: restarts, requeues, attempts queued ahead, and runs that wait for other runs."""

from __future__ import annotations

import pytest

from dlhpc.errors import AttemptExit, CommandError, UserError
from dlhpc.jobs import begin as begin_module
from dlhpc.jobs import follow, submit
from dlhpc.jobs.header import request_of
from dlhpc.process import CommandTimeout
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import read_plan
from dlhpc.runs.state import RunState
from dlhpc.schedulers.base import Abilities, Dependency, JobCancelled, JobState
from tests.unit.conftest import MakeRun
from tests.unit.job_runs import ALL_ABLE, CLUSTER, FakeScheduler, changed, events

CLOSED = changed(CLUSTER, compute_may_submit=False)
"""A site where jobs may not submit jobs."""


def started(run: RunDirectory, scheduler: FakeScheduler) -> RunDirectory:
    """Submit the run and let its first job begin."""
    job = submit.submit_attempt(run, 1)
    assert job is not None
    assert scheduler.start(run, job) == 1
    return run


def finish(run: RunDirectory, scheduler: FakeScheduler, job: str, attempt: int) -> None:
    record(run, Event.FINISHED, attempt=attempt, code=0)
    scheduler.end(run, job, attempt, AttemptExit.FINISHED)


# --- A job that the scheduler starts again ----------------------------------------------------------------------


def test_a_restarted_job_is_the_next_attempt_and_counts_as_a_loss(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    run = started(make_run(), scheduler)
    run.log(1).write_text("epoch 3\n")
    assert scheduler.start(run, "job1") == 2  # the node went down, and the scheduler started the job elsewhere
    lost = next(entry for entry in read_journal(run)[0] if entry.event == Event.FAILED)
    assert (lost.attempt, lost.details["retried"], lost.details["tail"]) == (1, True, ["epoch 3"])
    now = follow.status(run)
    assert (now.state, now.attempt, now.job_id) == (RunState.RUNNING, 2, "job1")
    run.log(2).write_text("epoch 4\n")
    assert scheduler.start(run, "job1") is None
    scheduler.jobs["job1"] = JobState.ENDED
    now = follow.status(run)
    assert (now.state, now.tail) == (RunState.FAILED, ("epoch 4",))
    assert now.reason == (
        "attempt 2 was cut off (its node failed, or it was killed) (crash number 2; job.crash_retries is 1)"
    )


def test_a_submission_that_arrives_late_never_makes_two_jobs_train_at_once(
    make_run: MakeRun, scheduler: FakeScheduler
) -> None:
    run = make_run()
    scheduler.fault, scheduler.arrives = CommandTimeout("no answer"), False
    with pytest.raises(CommandTimeout):
        submit.submit_attempt(run, 1)
    assert follow.status(run).state is RunState.NOT_SUBMITTED  # looked for, and not there yet
    scheduler.fault, scheduler.arrives = None, True
    second = follow.resume(run)
    late = scheduler.submit(request_of(read_plan(run.plan), run, 1))[0]  # now the first one arrives after all
    assert scheduler.start(run, late) == 1
    assert scheduler.start(run, second) is None  # one too many: it leaves
    scheduler.jobs[second] = JobState.ENDED
    assert follow.status(run).state is RunState.RUNNING
    follow.cancel(run)
    assert scheduler.alive() == []


def test_a_cancel_that_was_not_heard_says_so(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    run = started(make_run(), scheduler)
    scheduler.silent = True
    with pytest.raises(CommandError):
        follow.cancel(run)
    now = follow.status(run)
    assert (now.state, now.reason) == (
        RunState.CANCELLED, "the scheduler has not confirmed it: repeat `dlhpc cancel`",
    )  # fmt: skip
    scheduler.silent = False
    assert follow.cancel(run).reason is None
    assert scheduler.alive() == []


def test_a_job_killed_while_it_concluded_has_lost_nothing(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    run = started(make_run(crash_retries=0), scheduler)
    record(run, Event.CHECKPOINTED, attempt=1, epoch=1, step=10)
    run.exit_file(1).write_text("75\n")
    assert scheduler.start(run, "job1") == 2
    assert "failed" not in events(run)


def test_a_run_goes_on_after_its_node_was_lost_when_somebody_looks(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    run = started(make_run(), scheduler)
    assert not follow.look_after(run, follow.status(run))
    scheduler.jobs["job1"] = JobState.ENDED
    assert follow.status(run).state is RunState.FAILED
    assert follow.look_after(run, follow.status(run))
    assert scheduler.start(run, "job2") == 2
    scheduler.jobs["job2"] = JobState.ENDED
    now = follow.status(run)
    assert not follow.look_after(run, now)
    assert "crash number 2" in str(follow.status(run).reason)
    assert not follow.look_after(run, follow.status(run))
    assert events(run).count("failed") == 2


def test_two_jobs_that_begin_at_once_are_never_the_same_attempt(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    run = make_run()
    submit.submit_attempt(run, 1)
    run.begun_file(1).write_text("job0\n")  # somebody else has taken the number and not told the journal yet
    assert scheduler.start(run, "job1") == 2
    assert run.begun_file(2).read_text() == "job1\n"


def test_a_leftover_job_of_a_finished_run_ends_at_once(
    make_run: MakeRun, scheduler: FakeScheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(make_run(), scheduler)
    finish(run, scheduler, "job1", 1)
    assert scheduler.start(run, "job9") is None
    assert f"{run.name} is finished already" in capsys.readouterr().err
    now = follow.status(run)
    assert (now.state, now.attempt, now.job_id) == (RunState.FINISHED, 1, "job1")


def test_the_first_step_prints_attempt_and_deadline_for_the_script(
    make_run: MakeRun,
    scheduler: FakeScheduler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(walltime="10m")
    submit.submit_attempt(run, 1)
    assert scheduler.alive() == ["job1"]
    monkeypatch.setattr(begin_module.sys, "argv", ["begin", str(run.path), "job1"])
    monkeypatch.setattr(begin_module.time, "time", lambda: 1000.9)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1500")
    assert begin_module.main() == 0
    assert capsys.readouterr().out == "1 1500\n"
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    assert begin_module.main() == 0
    assert capsys.readouterr().out == "2 1600\n"


# --- Requeueing -------------------------------------------------------------------------------------------------


def test_a_job_that_may_requeue_itself_goes_on_under_its_own_id(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    scheduler.abilities = ALL_ABLE
    run = started(make_run(), scheduler)
    scheduler.end(run, "job1", 1, AttemptExit.CONTINUE, saved=True)
    now = follow.status(run)
    assert (now.state, now.attempt, now.job_id) == (RunState.QUEUED, 2, "job1")
    assert list(scheduler.jobs) == ["job1"]
    assert scheduler.start(run, "job1") == 2
    assert "failed" not in events(run)


def test_where_a_requeue_is_refused_a_new_job_goes_on(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    scheduler.abilities, scheduler.requeue_fault = ALL_ABLE, CommandError("jobs of this queue are not requeueable")
    run = started(make_run(), scheduler)
    scheduler.end(run, "job1", 1, AttemptExit.CONTINUE, saved=True)
    now = follow.status(run)
    assert (now.state, now.attempt, now.job_id) == (RunState.QUEUED, 2, "job2")
    warning = next(entry for entry in read_journal(run)[0] if entry.event == Event.WARNING)
    assert "jobs of this queue are not requeueable" in warning.details["message"]


def test_a_job_that_was_cancelled_by_the_batch_systems_own_command_does_not_come_back(
    make_run: MakeRun, scheduler: FakeScheduler
) -> None:
    scheduler.abilities, scheduler.requeue_fault = ALL_ABLE, JobCancelled("job job1 was cancelled with scancel")
    run = started(make_run(), scheduler)
    scheduler.end(run, "job1", 1, AttemptExit.CONTINUE, saved=True)
    now = follow.status(run)
    assert (now.state, list(scheduler.jobs)) == (RunState.CANCELLED, ["job1"])
    assert now.reason == "job job1 was cancelled with scancel; `dlhpc resume` goes on from here"
    assert not follow.look_after(run, now)


def test_a_requeue_without_an_answer_never_makes_two_jobs(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    scheduler.abilities, scheduler.requeue_fault = ALL_ABLE, CommandTimeout("no answer within 60 s")
    run = started(make_run(), scheduler)
    scheduler.end(run, "job1", 1, AttemptExit.CONTINUE, saved=True)
    assert list(scheduler.jobs) == ["job1"]
    now = follow.status(run)  # it was not heard: the job is over
    assert now.state is RunState.FAILED
    assert follow.look_after(run, now)
    assert scheduler.alive() == ["job2"]
    assert scheduler.start(run, "job2") == 2


# --- Attempts queued ahead --------------------------------------------------------------------------------------


@pytest.fixture
def chain(make_run: MakeRun, scheduler: FakeScheduler) -> RunDirectory:
    scheduler.abilities = Abilities(dependencies=True)
    return make_run(site=CLOSED, max_attempts=6)


def test_three_attempts_wait_each_for_the_failure_of_the_one_before(
    chain: RunDirectory, scheduler: FakeScheduler
) -> None:
    submit.submit_attempt(chain, 1)
    waits = {job: [(one.job_id, one.kind) for one in request.after] for job, request in scheduler.requests.items()}
    assert waits == {
        "job1": [],
        "job2": [("job1", "afternotok")],
        "job3": [("job2", "afternotok")],
        "job4": [("job3", "afternotok")],
    }
    assert len({request.tag for request in scheduler.requests.values()}) == 4


def test_the_next_attempt_is_the_job_that_waits_and_the_queue_is_topped_up(
    chain: RunDirectory, scheduler: FakeScheduler
) -> None:
    started(chain, scheduler)
    scheduler.end(chain, "job1", 1, AttemptExit.CONTINUE, saved=True)
    now = follow.status(chain)
    assert (now.state, now.attempt, now.job_id) == (RunState.QUEUED, 2, "job2")
    assert len(scheduler.jobs) == 4  # jobs may not submit here
    assert scheduler.start(chain, "job2") == 2
    assert follow.look_after(chain, follow.status(chain))
    assert scheduler.alive() == ["job2", "job3", "job4", "job5"]
    assert not follow.look_after(chain, follow.status(chain))
    scheduler.end(chain, "job2", 2, AttemptExit.CONTINUE, saved=True)
    scheduler.start(chain, "job3")
    assert follow.look_after(chain, follow.status(chain))
    scheduler.end(chain, "job3", 3, AttemptExit.CONTINUE, saved=True)
    scheduler.start(chain, "job4")
    assert not follow.look_after(chain, follow.status(chain))  # job6 is the last that job.max_attempts allows
    assert scheduler.alive() == ["job4", "job5", "job6"]


def test_at_the_end_the_superfluous_are_removed_the_last_first(chain: RunDirectory, scheduler: FakeScheduler) -> None:
    started(chain, scheduler)
    finish(chain, scheduler, "job1", 1)
    assert scheduler.cancelled == ["job4", "job3", "job2"]
    now = follow.status(chain)
    assert (now.state, now.attempt, now.job_id) == (RunState.FINISHED, 1, "job1")


def test_superfluous_jobs_that_a_job_may_not_remove_are_removed_from_the_login_node(
    chain: RunDirectory, scheduler: FakeScheduler
) -> None:
    started(chain, scheduler)
    scheduler.silent = True  # as seen from the compute node
    finish(chain, scheduler, "job1", 1)
    scheduler.silent = False
    now = follow.status(chain)
    assert (now.state, now.attempt) == (RunState.FINISHED, 1)
    assert not follow.look_after(chain, now)
    assert scheduler.alive() == []
    calls = len(scheduler.cancelled)
    follow.look_after(chain, follow.status(chain))
    assert len(scheduler.cancelled) == calls


def test_a_chain_that_is_used_up_goes_on_when_somebody_looks(chain: RunDirectory, scheduler: FakeScheduler) -> None:
    started(chain, scheduler)
    for attempt in (1, 2, 3):
        scheduler.end(chain, f"job{attempt}", attempt, AttemptExit.CONTINUE, saved=True)
        assert scheduler.start(chain, f"job{attempt + 1}") == attempt + 1
    scheduler.end(chain, "job4", 4, AttemptExit.CONTINUE, saved=True)
    now = follow.status(chain)
    assert now.state is RunState.FAILED
    assert "`dlhpc watch` or `dlhpc resume` goes on" in str(now.reason)
    assert follow.look_after(chain, now)
    assert scheduler.alive() == ["job5", "job6"]
    assert scheduler.start(chain, "job5") == 5


def test_a_submission_ahead_that_is_refused_harms_nothing_and_is_tried_again(
    chain: RunDirectory, scheduler: FakeScheduler
) -> None:
    started(chain, scheduler)
    for job in ("job4", "job3", "job2"):
        scheduler.cancel([job])
    record(chain, Event.JOB_OVER, job_ids=["job2", "job3", "job4"])
    scheduler.fault, scheduler.arrives = CommandError("you have too many jobs"), False
    assert not follow.look_after(chain, follow.status(chain))
    now = follow.status(chain)
    assert (now.state, now.attempt, now.job_id) == (RunState.RUNNING, 1, "job1")
    scheduler.fault, scheduler.arrives = None, True
    assert follow.look_after(chain, now)
    assert len(scheduler.alive()) == 4


def test_steps_are_one_submission(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    scheduler.abilities = Abilities(steps=True)
    run = make_run(site=CLOSED, max_attempts=3)
    assert submit.submit_attempt(run, 1) == "job1"
    assert scheduler.requests["job1"].steps == 3  # job.max_attempts allows no fourth
    assert events(run) == ["created", "submitting", "submitted"]
    assert scheduler.start(run, "job1") == 1
    assert not follow.look_after(run, follow.status(run))
    scheduler.end(run, "job1", 1, AttemptExit.CONTINUE, saved=True)
    now = follow.status(run)
    assert (now.state, now.attempt, now.job_id) == (RunState.QUEUED, 2, "job2")
    assert scheduler.start(run, "job2") == 2
    finish(run, scheduler, "job2", 2)
    assert scheduler.cancelled == ["job3"]


# --- Runs that wait for other runs ------------------------------------------------------------------------------


def later(make_run: MakeRun, first: RunDirectory, **more: object) -> RunDirectory:
    return make_run("later", after=[first.name], **more)


@pytest.fixture
def first(make_run: MakeRun, scheduler: FakeScheduler) -> RunDirectory:
    scheduler.abilities = Abilities(dependencies=True)
    return started(make_run("first"), scheduler)


def test_after_a_finished_run_a_run_starts_at_once(
    make_run: MakeRun, first: RunDirectory, scheduler: FakeScheduler
) -> None:
    finish(first, scheduler, "job1", 1)
    run = later(make_run, first)
    submit.submit_attempt(run, 1)
    assert scheduler.requests["job2"].after == ()
    assert scheduler.start(run, "job2") == 1


def test_after_a_failed_run_a_run_is_refused_kindly(
    make_run: MakeRun, first: RunDirectory, scheduler: FakeScheduler
) -> None:
    scheduler.end(first, "job1", 1, AttemptExit.BAD_DATA)
    with pytest.raises(UserError, match=f"{first.name}, which must finish first \\(job.after\\), is failed") as caught:
        submit.submit_attempt(later(make_run, first), 1)
    assert "Let that run finish first, or remove job.after" in str(caught.value)
    assert scheduler.alive() == []


def test_a_run_waits_for_another_however_many_jobs_that_takes(
    make_run: MakeRun, first: RunDirectory, scheduler: FakeScheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    run = later(make_run, first)
    submit.submit_attempt(run, 1)
    assert scheduler.requests["job2"].after == (Dependency("job1", "afterany"),)
    scheduler.end(first, "job1", 1, AttemptExit.CONTINUE, saved=True)  # it goes on as job3
    assert scheduler.start(run, "job2") is None
    assert f"{first.name} has not finished yet; waiting again" in capsys.readouterr().err
    scheduler.jobs["job2"] = JobState.ENDED
    assert scheduler.requests["job4"].after == (Dependency("job3", "afterany"),)
    now = follow.status(run)
    assert (now.state, now.attempt, now.job_id) == (RunState.QUEUED, 1, "job4")
    scheduler.start(first, "job3")
    finish(first, scheduler, "job3", 2)
    assert scheduler.start(run, "job4") == 1


def test_a_run_whose_first_run_fails_while_it_waits_says_so(
    make_run: MakeRun, first: RunDirectory, scheduler: FakeScheduler
) -> None:
    run = later(make_run, first)
    submit.submit_attempt(run, 1)
    scheduler.end(first, "job1", 1, AttemptExit.BAD_CONFIGURATION)
    assert scheduler.start(run, "job2") is None
    scheduler.jobs["job2"] = JobState.ENDED
    now = follow.status(run)
    assert now.state is RunState.FAILED
    assert now.reason == f"{first.name}, which must finish first (job.after), is failed"
    follow.resume(first)
    assert follow.resume(run) == "job4"
    assert scheduler.requests["job4"].after == (Dependency("job3", "afterany"),)


def test_a_run_waits_for_the_whole_chain_of_another(make_run: MakeRun, scheduler: FakeScheduler) -> None:
    scheduler.abilities = Abilities(dependencies=True)
    chain = started(make_run("chain", site=CLOSED), scheduler)
    run = later(make_run, chain)
    submit.submit_attempt(run, 1)
    assert scheduler.requests["job5"].after == (Dependency("job4", "afterany"),)


def test_where_jobs_may_not_submit_the_next_that_is_queued_looks_again(
    make_run: MakeRun, scheduler: FakeScheduler
) -> None:
    scheduler.abilities = Abilities(dependencies=True)
    first = started(make_run("first"), scheduler)
    run = later(make_run, first, site=CLOSED, attempts_ahead=1)
    submit.submit_attempt(run, 1)
    assert scheduler.alive() == ["job1", "job2", "job3"]
    scheduler.end(first, "job1", 1, AttemptExit.CONTINUE, saved=True)
    for job in ("job2", "job3"):
        with pytest.raises(UserError, match="has not finished yet, and a job cannot wait again here"):
            scheduler.start(run, job)
        scheduler.jobs[job] = JobState.ENDED
    now = follow.status(run)
    assert now.state is RunState.NOT_SUBMITTED
    assert "`dlhpc resume` submits it" in str(now.reason)
    assert follow.resume(run) == "job5"
