"""The same stories at every batch system: what a user of dlhpc relies on, whatever the centre runs.

Each story is told to this machine's own queue, to a real Slurm, and to the doubles of OpenPBS, Torque and LoadLeveler
(see :mod:`tests.schedulers.matrix`). A story that a batch system cannot tell ends in the one sentence that says so.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dlhpc.jobs.follow import resume, statuses
from dlhpc.jobs.plan import Planned, make_plan
from dlhpc.jobs.render import render
from dlhpc.jobs.submit import create, submit_attempt
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.find import all_runs
from dlhpc.runs.state import same_job
from tests.schedulers.matrix import PARTS, WHOLE, Centre, Run, RunState, Story, Teller, Waits, at
from tests.schedulers.player import CRASH

pytestmark = pytest.mark.e2e


# --- From the queue to the end ----------------------------------------------------------------------------------------


def a_run_is_held_released_runs_and_finishes(centre: Centre) -> Waits:
    run = centre.submit("train", "job.hold=true")
    (job,) = run.alive()
    now = run.status()
    assert (now.state, now.job_id, now.attempt) == (RunState.HELD, job, 1)
    assert "may start" in centre.ask("release", run.name)
    yield run.trains()
    now = run.status()
    assert (now.state, now.attempt) == (RunState.RUNNING, 1)
    assert same_job(now.job_id, job)  # LoadLeveler leaves out the domain sometimes
    assert now.epoch >= 1
    assert "attempt 1 goes on from epoch 0" in centre.ask("logs", run.name)
    run.enough()
    yield run.over
    (told,) = json.loads(centre.ask("status", run.name, "--json"))
    assert (told["state"], told["attempt"]) == ("finished", 1)
    assert same_job(told["job_id"], job)
    assert [same_job(begun, job) for begun in run.jobs_begun()] == [True]


def a_waiting_run_is_held_and_cancelled(centre: Centre) -> Waits:
    run = centre.submit("finish", f"job.queue={centre.closed}")
    assert run.status().state is RunState.QUEUED
    centre.ask("hold", run.name)
    assert run.status().state is RunState.HELD
    centre.ask("release", run.name)
    assert run.status().state is RunState.QUEUED
    assert "is cancelled" in centre.ask("cancel", run.name)
    yield run.gone
    assert run.status().state is RunState.CANCELLED
    assert not run.entries("begun")


def one_question_tells_of_many_runs(centre: Centre) -> Waits:
    runs = [centre.submit("finish", "job.hold=true") for _ in range(3)]
    found = []
    calls = centre.count_calls(lambda: found.extend(statuses([run.directory for run in runs])))
    assert [one.state for one in found] == [RunState.HELD] * 3
    assert len(calls) == bool(centre.ask_programs)
    assert set(calls) <= set(centre.ask_programs)
    centre.ask("cancel", *(run.name for run in runs))
    yield lambda: not any(run.alive() for run in runs)


# --- Another attempt, or none -----------------------------------------------------------------------------------------


def a_crash_is_tried_again_up_to_the_limit(centre: Centre) -> Waits:
    run = centre.submit("crash", "job.crash_retries=1")
    yield run.over
    now = run.status()
    assert (now.state, now.attempt) == (RunState.FAILED, 2)
    assert "attempt 2 crashed with code 1 (crash number 2; job.crash_retries is 1)" in str(now.reason)
    assert CRASH in now.tail
    assert [entry.details["epoch"] for entry in run.entries("resumed")] == [1]


def a_crash_is_made_good_by_the_next_attempt(centre: Centre) -> Waits:
    run = centre.submit("crash finish")
    yield run.over
    assert (run.status().state, run.status().attempt) == (RunState.FINISHED, 2)
    assert "attempt 2 goes on from epoch 1" in centre.ask("logs", run.name)


def bad_data_is_never_tried_again(centre: Centre) -> Waits:
    run = centre.submit("refuse")
    yield run.over
    now = run.status()
    assert (now.state, now.attempt, now.reason) == (RunState.FAILED, 1, "no picture is readable")
    assert len(run.entries("submitted")) == 1


def a_saved_run_goes_on_until_it_is_finished(centre: Centre) -> Waits:
    run = centre.submit("save save finish")
    yield run.over
    now = run.status()
    assert (now.state, now.attempt, now.epoch) == (RunState.FINISHED, 3, 3)
    assert [entry.attempt for entry in run.entries("begun")] == [1, 2, 3]
    assert len(set(run.jobs_begun())) == (1 if centre.abilities.requeue else 3)
    assert [entry.details["epoch"] for entry in run.entries("resumed")] == [1, 2]
    assert [f"attempt {n} goes on" in run.log(n) for n in (1, 2, 3)] == [True] * 3


def the_deadline_comes_before_the_walltime(centre: Centre) -> Waits:
    run = centre.submit("train finish", "job.walltime=12s")
    yield run.over
    assert (run.status().state, run.status().attempt) == (RunState.FINISHED, 2)
    (stopped,) = run.entries("stopped")
    # LoadLeveler's soft limit is the same moment.
    soon = ("the walltime ends in", *(["signal SIG"] if centre.adapter == "loadleveler" else []))
    assert stopped.details["reason"].startswith(soon)
    assert 0 < stopped.time - run.entries("begun")[0].time < 12


def a_signal_saves_in_time_what_the_deadline_did_not(centre: Centre) -> Waits:
    # LoadLeveler warns by a tenth of the walltime before the end, and the rest is all there is.
    run = centre.submit("deaf finish", f"job.walltime={20 if centre.adapter == 'loadleveler' else 4}s")
    yield run.over
    assert (run.status().state, run.status().attempt) == (RunState.FINISHED, 2)
    (stopped,) = run.entries("stopped")
    assert stopped.details["reason"].startswith("signal SIG")  # USR2 from the job script, or TERM to all its processes


def who_ignores_the_end_of_the_walltime_is_killed_and_goes_on_when_watched(centre: Centre) -> Waits:
    run = centre.submit("stuck finish", "job.walltime=3s")
    yield run.cared_for
    now = run.status()
    assert (now.state, now.attempt) == (RunState.FINISHED, 2)
    assert run.entries("resumed")
    assert "was cut off" in run.entries("failed")[0].details["reason"]


def a_killed_job_script_goes_on_when_watched(centre: Centre) -> Waits:
    run = centre.submit("train finish")
    yield run.trains()
    watch = centre.start("watch", run.name)
    run.kill_script()
    yield lambda: watch.poll() is not None
    out, err = watch.communicate()
    assert watch.returncode == 0, out + err
    assert (run.status().state, run.status().attempt) == (RunState.FINISHED, 2)
    assert run.entries("resumed")
    yield run.gone


def submit_wait_goes_on_after_a_killed_job_script(centre: Centre) -> Waits:
    folder = centre.folder / "waited"
    words = ["submit", "cars.yaml", "--set", "notes=train finish", "--wait", "--json"]
    waiting = centre.start(*words, runs=folder)

    def training() -> bool:
        return any(Run(centre, run).trains()() for run in all_runs(folder))

    yield lambda: training() or waiting.poll() is not None
    (directory,) = all_runs(folder)
    run = Run(centre, directory)
    run.kill_script()
    yield lambda: waiting.poll() is not None
    out, err = waiting.communicate()
    assert waiting.returncode == 0, err
    told = json.loads(out)
    assert (told["run"], told["path"], told["state"], told["attempt"]) == (run.name, str(directory.path), "finished", 2)
    assert same_job(told["job_id"], run.jobs_begun()[-1])
    yield run.gone


# --- Cancelling, and runs that wait for each other --------------------------------------------------------------------


def a_cancelled_run_ends_at_once_and_can_be_resumed(centre: Centre) -> Waits:
    run = centre.submit("train finish")
    yield run.trains()
    assert f"{run.name} is cancelled" in centre.ask("cancel", run.name)
    yield run.gone
    assert run.status().state is RunState.CANCELLED
    assert f"{run.name} is cancelled" in centre.ask("cancel", run.name)
    centre.ask("resume", run.name)
    yield run.over
    assert (run.status().state, run.status().attempt) == (RunState.FINISHED, 2)
    assert f"{run.name} is finished" in centre.ask("cancel", run.name)
    assert centre.run("resume", run.name).code == 2


def a_run_waits_for_another_through_all_its_attempts(centre: Centre) -> Waits:
    first = centre.submit("save train")
    if not centre.abilities.dependencies:
        said = centre.try_submit("finish", f"job.after=['{first.name}']")
        assert said.code == 2
        assert "job.after cannot be kept" in said.err
        first.enough()
        yield first.over
        return
    second = centre.submit("finish", f"job.after=['{first.name}']")
    assert second.status().state in (RunState.QUEUED, RunState.HELD)
    yield first.trains(2)
    assert not second.entries("started")
    first.enough()
    yield first.over
    yield second.over
    assert second.status().state is RunState.FINISHED
    assert second.entries("started")[0].time > first.entries("finished")[0].time


def a_run_never_starts_when_the_one_before_has_failed(centre: Centre) -> Waits:
    first = centre.submit("refuse", "job.hold=true")
    second = centre.submit("finish", f"job.after=['{first.name}']")
    centre.ask("release", first.name)
    yield first.over
    yield second.gone
    now = second.status()
    assert now.state is RunState.FAILED
    assert f"{first.name}, which must finish first (job.after), is failed" in str(now.reason)
    assert not second.entries("started")


# --- Where jobs may not submit jobs -----------------------------------------------------------------------------------


def attempts_that_were_queued_ahead_go_on_and_the_superfluous_are_removed(centre: Centre) -> Waits:
    run = centre.submit("save crash finish", "job.attempts_ahead=4", site="strict")
    assert len(run.alive()) == 5
    yield run.over
    now = run.status()
    assert (now.state, now.attempt, now.epoch) == (RunState.FINISHED, 3, 3)
    assert len(set(run.jobs_begun())) == 3
    assert len(run.entries("started")) == 3


def a_run_that_needs_more_attempts_than_were_queued_is_watched_to_its_end(centre: Centre) -> Waits:
    run = centre.submit("save save save save finish", "job.attempts_ahead=1", site="strict")
    assert len(run.alive()) == 2
    yield run.cared_for
    assert (run.status().state, run.status().attempt) == (RunState.FINISHED, 5)


def cancelling_ends_the_whole_chain(centre: Centre) -> Waits:
    run = centre.submit("train", site="strict")
    yield run.trains()
    assert len(run.alive()) == 4
    centre.ask("cancel", run.name)
    yield run.gone
    assert (run.status().state, len(run.entries("started"))) == (RunState.CANCELLED, 1)


def cancelling_ends_a_chain_that_waits(centre: Centre) -> Waits:
    run = centre.submit("finish", "job.hold=true", site="strict")
    assert run.status().state is RunState.HELD
    centre.ask("cancel", run.name)
    yield run.gone
    assert (run.status().state, len(run.entries("begun"))) == (RunState.CANCELLED, 0)


def a_chain_ends_when_no_more_crashes_are_allowed(centre: Centre) -> Waits:
    run = centre.submit("crash", "job.crash_retries=1", "job.attempts_ahead=4", site="strict")
    yield run.over
    now = run.status()
    assert (now.state, now.attempt) == (RunState.FAILED, 2)
    assert CRASH in now.tail
    assert len(run.entries("started")) == 2


# --- Odd names --------------------------------------------------------------------------------------------------------

ODD = (
    "my runs",
    "it's",
    'a "quoted" name',
    "$(touch pwned)`touch pwned`",
    "a;touch pwned&#b",
    "写真 été",
    "two\nlines",
    "back\\slash",
    "%j 50%",
)


def runs_may_lie_in_folders_with_odd_names_or_are_refused(centre: Centre) -> Waits:
    runs = []
    for name in ODD:
        folder = centre.work / name
        said = centre.try_submit("finish", runs=folder)
        if said.code == 0:
            runs.append(Run(centre, RunDirectory(Path(said.json["path"]))))
        else:
            assert said.code == 2, said
            assert "→" in said.err
            assert not all_runs(folder), "refused before anything is written"
    for run in runs:
        yield run.over
        assert run.status().state is RunState.FINISHED, run.directory.path
        assert "attempt 1 goes on" in run.log()
    assert not [path for path in centre.folder.rglob("pwned*") if path.name == "pwned"]
    # Torque puts no path in quotes; the others can say most of these.
    assert len(runs) >= (0 if centre.name == "torque" else 2)


# --- What is asked for arrives ----------------------------------------------------------------------------------------

ASKED = ["job.nodes=2", "job.ranks_per_node=2", "job.cores_per_rank=3", "job.memory=2GB", "job.walltime=1:10:00"]
ARRIVES = {
    "slurm": (
        *(["job.exclusive=true", "job.gpus_per_rank=1"], ['--comment="of my own"']),
        ["NumNodes=2", "NumTasks=4", "CPUs/Task=3", "TimeLimit=01:10:00", "gres:gpu:2", "MinMemoryNode=1907M"],
        ["Account=materials", "MailUser=mori@example.org", "MailType=BEGIN,FAIL", "OverSubscribe=NO"],
        ["Comment=of my own", "Partition=gpu", "JobHeld"],
    ),
    "pbs": (
        *(["job.exclusive=true", "job.gpus_per_rank=1"], ["-l software=abaqus"]),
        ["select = 2:ncpus=6:mpiprocs=2:ompthreads=3:ngpus=2:mem=1907mb", "walltime = 01:10:00"],
        ["place = scatter:excl", "Account_Name = materials", "Mail_Users = mori@example.org", "Mail_Points = ab"],
        ["software = abaqus", "queue = batch", "Hold_Types = u"],
    ),
    "pbs-nodes": (
        *([], ["-l software=abaqus"]),
        ["walltime = 01:10:00", "nodes = 2:ppn=6", "ncpus = 12"],
        ["Account_Name = materials", "Mail_Users = mori@example.org", "Mail_Points = ab", "software = abaqus"],
    ),
    "pbs-totals": (
        *(["job.gpus_per_rank=1"], ["-l software=abaqus"]),
        ["walltime = 01:10:00", "ncpus = 12", "ngpus = 4", "mem = 3905536kb"],
        ["Account_Name = materials", "Mail_Users = mori@example.org", "Mail_Points = ab", "software = abaqus"],
    ),
    "torque": (
        *(["job.exclusive=true", "job.gpus_per_rank=1", "job.qos=high"], ["-l software=abaqus"]),
        ["nodes = 2:ppn=6:gpus=2", "walltime = 01:10:00", "mem = 3814mb", "naccesspolicy = singlejob", "qos = high"],
        ["Account_Name = materials", "Mail_Users = mori@example.org", "Mail_Points = ab", "software = abaqus"],
    ),
    "loadleveler-mksh": (
        *(["job.exclusive=true", "job.gpus_per_rank=1"], ["group = staff"]),
        ["Account: materials", "Notify User: mori@example.org", "Notifications: Always", "Node Usage: not_shared"],
        ["01:10:00", "Class: batch", "User Hold", "Number of Nodes: 2", "Number of Tasks: 4"],
        ["cpus=[6, 6]", "gpus=[2, 2]", "MiB=[1906, 1906]"],
    ),
}
ARRIVES["loadleveler-dash"] = ARRIVES["loadleveler-mksh"]


def all_that_a_user_asks_for_arrives(centre: Centre) -> Waits:
    people = ["job.account=materials", "job.mail=mori@example.org", "job.mail_on=[begin, fail]", "job.hold=true"]
    more, directives, *expected = ARRIVES[centre.name]
    run = centre.submit("finish", *ASKED, *people, *more, f"job.directives={json.dumps(directives)}")
    (job,) = run.alive()
    shown = re.sub(r"[ \t]+", " ", centre.show(job))
    missing = [piece for pieces in expected for piece in pieces if piece not in shown]
    assert not missing, shown
    centre.ask("cancel", run.name)
    yield run.gone


REFUSED = {
    "pbs": [("job.qos=high", "no quality of service")],
    "pbs-nodes": [
        ("job.qos=high", "no quality"),
        ("job.exclusive=true", "one job alone"),
        ("job.gpus_per_rank=1", "GPUs"),
    ],
    "pbs-totals": [("job.qos=high", "no quality"), ("job.exclusive=true", "one job alone")],
    "loadleveler-mksh": [("job.qos=high", "no quality of service")],
}


def what_a_system_cannot_say_is_refused_in_one_sentence(centre: Centre) -> Waits:
    before = all_runs(centre.runs)
    for setting, words in REFUSED.get(centre.name, []):
        said = centre.try_submit("finish", setting)
        assert said.code == 2, said
        assert words in said.err
        assert len(said.err.splitlines()) == 2, "one sentence, and what to do"
    own = {"slurm": "--time=5", "pbs": "-l walltime=5", "loadleveler": "wall_clock_limit = 5"}[centre.adapter]
    said = centre.try_submit("finish", f"job.directives={json.dumps([own])}")
    assert (said.code, "job.walltime" in said.err) == (2, True), said
    assert all_runs(centre.runs) == before
    yield lambda: True


def a_submission_that_the_scheduler_refuses_leaves_a_run_to_resume(centre: Centre) -> Waits:
    site = centre.site_file("wrong")
    site.write_text(centre.site_file("site").read_text().replace(f"name: {centre.queue}", "name: nosuchqueue"))
    folder = centre.folder / "refused"
    said = centre.try_submit("finish", site="wrong", runs=folder)
    assert said.code == 1, said
    assert "dlhpc resume" in said.err
    (directory,) = all_runs(folder)
    run = Run(centre, directory)
    assert run.status().state is RunState.NOT_SUBMITTED
    assert not run.alive()
    yield run.gone


TOGETHER: list[Story] = [
    a_run_is_held_released_runs_and_finishes,
    a_waiting_run_is_held_and_cancelled,
    one_question_tells_of_many_runs,
    a_crash_is_tried_again_up_to_the_limit,
    a_crash_is_made_good_by_the_next_attempt,
    bad_data_is_never_tried_again,
    a_saved_run_goes_on_until_it_is_finished,
    the_deadline_comes_before_the_walltime,
    a_signal_saves_in_time_what_the_deadline_did_not,
    who_ignores_the_end_of_the_walltime_is_killed_and_goes_on_when_watched,
    a_killed_job_script_goes_on_when_watched,
    submit_wait_goes_on_after_a_killed_job_script,
    a_cancelled_run_ends_at_once_and_can_be_resumed,
    a_run_waits_for_another_through_all_its_attempts,
    a_run_never_starts_when_the_one_before_has_failed,
    runs_may_lie_in_folders_with_odd_names_or_are_refused,
    all_that_a_user_asks_for_arrives,
    what_a_system_cannot_say_is_refused_in_one_sentence,
    a_submission_that_the_scheduler_refuses_leaves_a_run_to_resume,
]
AHEAD: list[Story] = [
    attempts_that_were_queued_ahead_go_on_and_the_superfluous_are_removed,
    a_run_that_needs_more_attempts_than_were_queued_is_watched_to_its_end,
    cancelling_ends_the_whole_chain,
    cancelling_ends_a_chain_that_waits,
    a_chain_ends_when_no_more_crashes_are_allowed,
]
IN_PART: list[Story] = [
    a_saved_run_goes_on_until_it_is_finished,
    all_that_a_user_asks_for_arrives,
    what_a_system_cannot_say_is_refused_in_one_sentence,
]


# --- Stories that need the whole machine ------------------------------------------------------------------------------


def a_failed_node_costs_one_attempt_and_too_many_end_the_run(centre: Centre) -> Waits:
    lucky = centre.submit("train finish", "job.crash_retries=1")
    yield lucky.trains()
    unlucky = centre.submit("train", "job.crash_retries=0")
    yield unlucky.trains()
    centre.fail_nodes([lucky, unlucky])
    yield lucky.cared_for
    yield unlucky.cared_for
    now = lucky.status()
    assert (now.state, now.attempt) == (RunState.FINISHED, 2)
    assert lucky.entries("resumed")[0].details["epoch"] >= 1
    now = unlucky.status()
    assert (now.state, now.attempt) == (RunState.FAILED, 1)
    assert "attempt 1 was cut off" in str(now.reason)
    assert "job.crash_retries is 0" in str(now.reason)
    assert "attempt 1 goes on from epoch 0" in now.tail
    centre.mend()


def a_scheduler_that_is_down_makes_the_state_unknown_and_nothing_worse(centre: Centre) -> Waits:
    waits, trains = centre.submit("finish", "job.hold=true"), centre.submit("train finish")
    yield trains.trains()
    centre.down()
    for run, now in zip((waits, trains), statuses([waits.directory, trains.directory]), strict=True):
        assert now.state is RunState.UNKNOWN
        assert now.unknown_since is not None
        assert str(now.reason).startswith("since ")
        assert len(run.entries("submitted")) == 1
    assert centre.try_submit("finish").code == 1
    trains.directory.stop_file(1).touch()  # it saves its state, and cannot go on by itself now
    yield trains.directory.exit_file(1).exists
    assert trains.status().state is RunState.UNKNOWN
    centre.up()
    assert waits.status().state is RunState.HELD
    yield trains.cared_for
    assert (trains.status().state, trains.status().attempt) == (RunState.FINISHED, 2)
    centre.ask("cancel", waits.name)
    yield waits.gone


def a_lost_answer_is_found_by_the_tag_and_nothing_is_submitted_twice(centre: Centre) -> Waits:
    for how in ("silent", "killed"):
        folder = centre.folder / how
        centre.lose_answer(how)
        said = centre.try_submit("finish", "job.hold=true", runs=folder)
        assert said.code == 1
        (directory,) = all_runs(folder)
        run = Run(centre, directory)
        (job,) = run.alive()
        now = run.status()
        assert (now.state, now.job_id) == (RunState.HELD, job)
        assert centre.run("resume", run.name, runs=folder).code == 2
        assert run.alive() == [job]
        centre.ask("cancel", run.name, runs=folder)
        yield run.gone


def a_submission_that_arrives_late_trains_nothing_twice(centre: Centre) -> Waits:
    """dlhpc is killed while sbatch (qsub, llsubmit) is on its way; that arrives when somebody has resumed the run."""
    folder = centre.folder / "slowly"
    planned = _plan(centre, folder)
    centre.slow_submission(1.5)
    child = _child(lambda: _submit(centre, planned, folder))
    yield lambda: any(Run(centre, run).entries("submitting") for run in all_runs(folder))
    time.sleep(0.3)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    since = time.monotonic()
    (directory,) = all_runs(folder)
    run = Run(centre, directory)
    if run.status().state is RunState.NOT_SUBMITTED:
        centre.ask("resume", run.name, runs=folder)
    yield lambda: time.monotonic() - since > 2.5
    yield run.over
    assert run.status().state is RunState.FINISHED
    assert len(run.entries("started")) == 1


def submit_killed_at_any_line_leaves_one_job_or_none(centre: Centre) -> Waits:
    folder = centre.folder / "every-line"
    blocker: Run | None = None
    if centre.closed is None:  # on this machine jobs wait if another has all cores
        blocker = centre.submit("train", "job.cores_per_rank=64")
        yield blocker.trains()
    planned = _plan(centre, folder, f"job.queue={centre.closed}" if centre.closed else "job.cores_per_rank=64")
    render(planned.plan, RunDirectory(folder / "any"))  # what is compiled now need not be in every child
    steps = _steps(centre, planned, folder)
    moments = [at for at, step in enumerate(steps, 1) if step not in steps[: at - 1]]
    assert len(moments) > 50
    for moment in moments:
        os.waitpid(_child(lambda: _submit(centre, planned, folder, kill_at=moment)), 0)  # noqa: B023  # called at once
    runs = [Run(centre, run) for run in all_runs(folder)]
    assert len(runs) > len(moments) // 3
    alive = _alive_by_run(centre)
    found = statuses([run.directory for run in runs])
    for run, now in zip(runs, found, strict=True):
        expected = ((RunState.QUEUED, 1), (RunState.NOT_SUBMITTED, 0))
        assert (now.state, alive[run.run_id]) in expected, run.directory.path
        if now.state is RunState.NOT_SUBMITTED:
            assert "dlhpc resume" in str(now.reason)
    assert {now.state for now in found} == {RunState.QUEUED, RunState.NOT_SUBMITTED}
    again = [run for run, now in zip(runs, found, strict=True) if now.state is RunState.NOT_SUBMITTED][::3]
    for run in again:
        resume(run.directory)
    alive = _alive_by_run(centre)
    assert {alive[run.run_id] for run in again} == {1}
    assert set(alive.values()) == {1}
    centre.cancel_all(but=blocker.alive() if blocker else ())
    if blocker is not None:
        centre.ask("cancel", blocker.name)
    yield lambda: not centre.alive_now()


ALONE: list[Story] = [
    a_failed_node_costs_one_attempt_and_too_many_end_the_run,
    a_scheduler_that_is_down_makes_the_state_unknown_and_nothing_worse,
    a_lost_answer_is_found_by_the_tag_and_nothing_is_submitted_twice,
    a_submission_that_arrives_late_trains_nothing_twice,
    submit_killed_at_any_line_leaves_one_job_or_none,
]


def _child(what: Callable[[], None]) -> int:
    """A forked process that does it and leaves without a word: quicker than a new interpreter a thousand times."""
    pid = os.fork()
    if pid:
        return pid
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        what()
    finally:
        os._exit(0)


def _plan(centre: Centre, folder: Path, *wanted: str) -> Planned:
    settings = ["notes=finish", *wanted]
    return make_plan(centre.work / "cars.yaml", runs=folder, site=str(centre.site_file("site")), settings=settings)


def _submit(
    centre: Centre, planned: Planned, folder: Path, *, kill_at: int | None = None, told: int | None = None
) -> None:
    """What `dlhpc submit` does; KILL before the so manieth line of ours, or all lines in order written to ``told``."""
    steps: list[str] = []
    own = ("jobs/submit.py", "dlhpc/process.py", f"schedulers/{centre.adapter}")

    def local(frame: FrameType, event: str, _value: Any) -> Any:
        if event == "line":
            steps.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            if len(steps) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return local

    def trace(frame: FrameType, _event: str, _value: Any) -> Any:
        return local if any(part in frame.f_code.co_filename for part in own) else None

    planned = replace(planned, plan=replace(planned.plan, run_id=secrets.token_hex(8)))
    sys.settrace(trace)
    submit_attempt(create(planned, folder), 1)
    sys.settrace(None)
    if told is not None:
        os.write(told, " ".join(steps).encode())


def _steps(centre: Centre, planned: Planned, folder: Path) -> list[str]:
    """Every line of ours that a submission runs through, in order."""
    read, write = os.pipe()
    child = _child(lambda: _submit(centre, planned, folder, told=write))
    os.close(write)
    with os.fdopen(read) as answer:
        steps = answer.read().split()
    os.waitpid(child, 0)
    return steps


def _alive_by_run(centre: Centre) -> Counter[str]:
    """How many jobs wait or run, by the id of their run."""
    return Counter(name.split("-")[1] for _, name in centre.alive_now())


# --- The telling ------------------------------------------------------------------------------------------------------


class Tour:
    """One centre after the other: each is started for its first story, and stopped when the next one is wanted."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._stack = ExitStack()
        self._here: tuple[type[Centre], Teller] | None = None

    def to(self, kind: type[Centre]) -> Teller:
        if self._here is None or self._here[0] is not kind:
            self.end()
            self._here = (kind, self._stack.enter_context(at(kind, self._folders.mktemp(kind.name))))
        return self._here[1]

    def end(self) -> None:
        self._here = None
        self._stack.close()


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tour]:
    tour = Tour(tmp_path_factory)
    yield tour
    tour.end()


NOT_AT: dict[Story, set[str]] = {
    # Slurm's shortest walltime is a minute: too long for a test of what the others show as well.
    who_ignores_the_end_of_the_walltime_is_killed_and_goes_on_when_watched: {"slurm"},
    # This machine's own queue has no program that could be asked, lost or down, no directives and no closed queue.
    a_scheduler_that_is_down_makes_the_state_unknown_and_nothing_worse: {"local"},
    a_lost_answer_is_found_by_the_tag_and_nothing_is_submitted_twice: {"local"},
    a_submission_that_arrives_late_trains_nothing_twice: {"local"},
    all_that_a_user_asks_for_arrives: {"local"},
    what_a_system_cannot_say_is_refused_in_one_sentence: {"local"},
    a_waiting_run_is_held_and_cancelled: {"local"},
    a_submission_that_the_scheduler_refuses_leaves_a_run_to_resume: {"local"},
    # A run that waits for another one is refused there, which a_run_waits_for_another_through_all_its_attempts shows.
    a_run_never_starts_when_the_one_before_has_failed: {"loadleveler-mksh"},
}


def _pairs() -> Iterator[Any]:
    """Every story that is told at a centre, centre by centre."""
    for kind in WHOLE:
        for story in (*TOGETHER, *AHEAD, *ALONE):
            if kind.name in NOT_AT.get(story, set()):
                continue
            yield pytest.param(kind, story, id=f"{kind.name}-{story.__name__}")
    for kind in PARTS:
        for story in IN_PART:
            yield pytest.param(kind, story, id=f"{kind.name}-{story.__name__}")


def _wanted(request: pytest.FixtureRequest, kind: type[Centre], stories: list[Story]) -> list[Story]:
    """Those of the stories that this session tells at this centre."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    params = [item.callspec.params for item in items]
    chosen = [one["story"] for one in params if one.get("kind") is kind and "story" in one]
    return [story for story in stories if story in chosen]


@pytest.mark.parametrize(("kind", "story"), [*_pairs()])
def test_story(tour: Tour, kind: type[Centre], story: Story, request: pytest.FixtureRequest) -> None:
    """Stories that do not disturb each other are told at the same time, when the first of them is asked for."""
    teller = tour.to(kind)
    if story in TOGETHER:
        teller.tell(_wanted(request, kind, TOGETHER))
    elif story in AHEAD:
        teller.centre.forbid_submission(True)
        try:
            teller.tell(_wanted(request, kind, AHEAD))
        finally:
            teller.centre.forbid_submission(False)
    else:
        teller.tell([story])
    teller.check(story)
