"""Planning, rendering, crash-safe submission and going on after an attempt, without a scheduler underneath."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlhpc.data.catalog import Catalog, Picture
from dlhpc.envs.record import EnvironmentRecord, MpiRecord
from dlhpc.errors import AttemptExit, CommandError, ErrorList, UserError
from dlhpc.jobs import follow, submit
from dlhpc.jobs.conclude import conclude, next_step
from dlhpc.jobs.plan import decide, make_plan
from dlhpc.jobs.render import comment, placeholder_run, quote, render
from dlhpc.process import CommandTimeout
from dlhpc.runs.directory import RunDirectory, create_run
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import Plan, read_plan
from dlhpc.runs.state import RunState
from dlhpc.schedulers.base import JobRequest, JobState, JobStatus
from dlhpc.sites.models import Environment, Launcher, Node, Queue, Site
from dlhpc.spec.models import Spec

SITE = Site(name="here", queues=[Queue(name="all", node=Node(cores=8, gpus=0))], launcher=Launcher(kind="mpirun"))


@pytest.fixture(autouse=True)
def any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests mean a machine with `mpirun` on PATH, whatever this one has."""
    monkeypatch.setattr("dlhpc.jobs.plan.read_record", lambda _: None)
    monkeypatch.setattr("dlhpc.jobs.plan.shutil.which", lambda name: f"/usr/bin/{name}")


def spec(**changes: object) -> Spec:
    return Spec.model_validate({"name": "cars", "data": {"folder": "/photos"}, **changes})


def catalog(tmp_path: Path, train: int = 100) -> Catalog:
    pictures = [tmp_path / f"{n}.pgm" for n in range(train + 2)]
    for path in pictures:
        path.touch()
    found = [Picture(str(path), n % 2) for n, path in enumerate(pictures)]
    return Catalog(["anna", "bert"], {"train": found[:-2], "val": found[-2:], "unseen": []})


def plan(tmp_path: Path, site: Site = SITE, **changes: object) -> Plan:
    return decide(spec(**changes), site, catalog(tmp_path), tmp_path / "runs")


# --- The plan decides every number ------------------------------------------------------------------------------


def test_batches_steps_and_rate_follow_from_ranks(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        training={"batch_size": 8, "epochs": 5},
        job={"ranks_per_node": 4},
        learning_rate={"base": 0.01, "scale": "linear"},
    )
    assert (made.ranks, made.cores_per_rank, made.global_batch) == (4, 2, 32)
    assert (made.steps_per_epoch, made.total_steps) == (4, 20)
    assert made.base_rate == pytest.approx(0.04)
    assert made.launch[:3] == ["mpirun", "-np", "4"]


@pytest.mark.parametrize(("implementation", "option"), [("openmpi", "--bind-to"), ("mpich", "-bind-to")])
def test_ranks_are_placed_in_the_words_of_the_environments_mpi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, implementation: str, option: str
) -> None:
    mpi = MpiRecord(implementation, "4", "/opt/mpi/bin/mpirun")
    record = EnvironmentRecord("cpu", "", "3.11", "2", None, "0.28.1", mpi, True, "now")
    monkeypatch.setattr("dlhpc.jobs.plan.read_record", lambda _: record)
    made = plan(tmp_path, job={"ranks_per_node": 2})
    assert made.launch[:4] == ["/opt/mpi/bin/mpirun", "-np", "2", option]


def test_a_global_batch_larger_than_the_set_is_capped_and_said(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        training={"batch_size": 32},
        job={"ranks_per_node": 8},
        learning_rate={"base": 0.01, "scale": "linear"},
    )
    assert made.global_batch == 100
    assert made.base_rate == pytest.approx(0.01 * 100 / 32)
    assert "larger than the 100 training pictures" in made.warnings[0]


def test_a_warm_up_longer_than_a_short_trial_is_only_said(tmp_path: Path) -> None:
    made = plan(tmp_path, training={"epochs": 1}, learning_rate={"warmup_epochs": 2})
    assert "longer than the training of 1 epochs" in made.warnings[0]


def test_a_job_that_no_node_can_hold_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(ErrorList) as caught:
        plan(tmp_path, job={"nodes": 2, "ranks_per_node": 16, "gpus_per_rank": 1})
    shown = str(caught.value)
    assert "the site `here` is one machine" in shown
    assert "16 cores" in shown
    assert "has 8" in shown
    assert "16 GPUs" in shown


def test_a_walltime_beyond_the_queue_is_refused(tmp_path: Path) -> None:
    site = SITE.model_copy(update={"queues": [Queue.model_validate({"name": "short", "max_walltime": "1h"})]})
    with pytest.raises(ErrorList, match=r"job\.walltime is 2:00:00, but queue `short` allows 1:00:00"):
        plan(tmp_path, site, job={"walltime": "2h"})


def test_an_unknown_queue_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Its queues: all"):
        plan(tmp_path, job={"queue": "gpu"})


def test_a_plan_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = plan(tmp_path)
    made.write(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == made


def test_the_copied_spec_works_from_another_folder(tmp_path: Path) -> None:
    for person in ("anna", "bert"):
        for n in range(4):
            path = tmp_path / "photos" / person / f"{n}.pgm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P5 1 1 255\n\x00")
    spec_file = tmp_path / "cars.yaml"
    spec_file.write_text("name: cars\ndata:\n  folder: photos  # all of them\n")
    planned = make_plan(spec_file, runs=tmp_path / "runs")
    assert planned.spec.data.folder == str(tmp_path / "photos")
    text = planned.document.text()
    assert str(tmp_path / "photos") in text
    assert "# all of them" in text


# --- The script quotes everything -------------------------------------------------------------------------------

NASTY = "a'b\"c $(touch pwned) `id` ; # \\ \n é"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@settings(max_examples=50, deadline=None)
def test_a_quoted_word_comes_out_of_the_shell_as_it_went_in(text: str) -> None:
    said = subprocess.run(["dash", "-c", f"printf %s {quote(text)}"], capture_output=True, check=True).stdout
    assert said.decode() == text


@given(st.text())
def test_a_comment_stays_on_its_line(text: str) -> None:
    assert len(f"# {comment(text)}".splitlines()) == 1


def test_the_script_is_clean_posix_whatever_names_people_use(tmp_path: Path) -> None:
    made = dataclasses.replace(plan(tmp_path, job={"ranks_per_node": 2}), site=NASTY, exports={"GREETING": NASTY})
    script = tmp_path / "job.sh"
    script.write_text(render(made, RunDirectory(tmp_path / NASTY)))
    for checker in (["shellcheck", "-s", "sh"], ["dash", "-n"]):
        done = subprocess.run([*checker, str(script)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("launcher", ["none", "mpirun", "gloo"])
def test_a_rendered_script_shows_its_launcher(tmp_path: Path, launcher: str) -> None:
    site = SITE.model_copy(update={"launcher": Launcher(kind="gloo" if launcher == "gloo" else "mpirun")})
    made = plan(tmp_path, site, job={"ranks_per_node": 1 if launcher == "none" else 2})
    text = render(made, placeholder_run(tmp_path, "cars"))
    assert made.launcher == launcher
    assert ("horovodrun --gloo -np 2" in text) == (launcher == "gloo")
    assert ("mpirun -np 2" in text) == (launcher == "mpirun")
    assert '"$python" -m dlhpc.train "$run"' in text


def run_script(
    tmp_path: Path, python: str, name: str = "run", change: tuple[str, str] = ("", "")
) -> tuple[int, RunDirectory]:
    """Run a rendered script under dash with a stand-in for the interpreter; gives its exit code.

    ``change`` replaces one text of the script by another, as to stretch a moment in it.
    """
    run = RunDirectory(tmp_path / name)
    run.attempts.mkdir(parents=True)
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\n" + python)
    stand_in.chmod(0o755)
    made = dataclasses.replace(plan(tmp_path), python=str(stand_in), environment_prefix="/usr")
    run.script.write_text(render(made, run).replace(*change))
    done = subprocess.run(["dash", str(run.script), "3"], check=False, timeout=60, stdin=subprocess.DEVNULL)
    return done.returncode, run


def test_the_script_records_its_own_exit_status_and_concludes(tmp_path: Path) -> None:
    code, run = run_script(
        tmp_path,
        'echo "$*" >> ../said\ncase "$2" in dlhpc.train) exit 9;; esac\ncase "$1" in -c) echo 1000;; esac\n',
        name="it's $(here)",
    )
    assert code == 9
    assert run.exit_file(3).read_text() == "9\n"
    said = (tmp_path / "said").read_text().splitlines()
    assert said[-3:] == [
        f"-m dlhpc.data {run.path}",
        f"-m dlhpc.train {run.path}",
        f"-m dlhpc.jobs.conclude {run.path} 3 9",
    ]


def test_rank_zero_decides_the_exit_status(tmp_path: Path) -> None:
    code, run = run_script(
        tmp_path, 'case "$2" in dlhpc.train) echo 75 > attempts/3.outcome; exit 1;; esac\n[ "$1" != -c ] || echo 1000\n'
    )
    assert code == 75
    assert run.exit_file(3).read_text() == "75\n"


def test_bad_data_ends_the_attempt_before_any_rank_starts(tmp_path: Path) -> None:
    code, _ = run_script(
        tmp_path,
        'case "$2" in dlhpc.data) exit 65;; dlhpc.train) touch ../trained;; esac\n[ "$1" != -c ] || echo 1000\n',
    )
    assert code == 65
    assert not (tmp_path / "trained").exists()


def test_a_signal_reaches_the_ranks_and_the_script_waits_for_them(tmp_path: Path) -> None:
    code, run = run_script(
        tmp_path,
        """case "$2" in dlhpc.train)
            trap 'echo 75 > attempts/3.outcome; exit 75' USR2
            kill -s TERM "$PPID"
            while kill -0 "$PPID"; do sleep 0.1; done;;
        esac
        [ "$1" != -c ] || echo 1000
        """,
    )
    assert code == 75
    assert run.stop_file(3).exists()


def test_a_signal_reaches_ranks_that_have_only_just_been_started(tmp_path: Path) -> None:
    code, _ = run_script(
        tmp_path,
        """case "$2" in dlhpc.train)
            trap 'echo 75 > attempts/3.outcome; exit 75' USR2
            kill -s TERM "$PPID"
            while kill -0 "$PPID"; do sleep 0.1; done;;
        esac
        [ "$1" != -c ] || echo 1000
        """,
        change=("child=$!", "sleep 0.5; child=$!"),
    )
    assert code == 75


def test_a_signal_reaches_the_ranks_even_if_the_stop_file_cannot_be_made(tmp_path: Path) -> None:
    code, run = run_script(
        tmp_path,
        """case "$2" in dlhpc.train)
            mkdir attempts/3.stop  # stands for a full disk
            trap 'echo 75 > attempts/3.outcome; exit 75' USR2
            kill -s TERM "$PPID"
            while kill -0 "$PPID"; do sleep 0.1; done;;
        esac
        [ "$1" != -c ] || echo 1000
        """,
    )
    assert code == 75
    assert run.exit_file(3).read_text() == "75\n"


# --- Submission is never lost or doubled ------------------------------------------------------------------------


class FakeScheduler:
    """Keeps jobs in memory; ``fault`` is raised by submit, before or after the job is queued."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.state = JobState.QUEUED
        self.exit_code: int | None = None
        self.fault: BaseException | None = None
        self.arrives = True
        self.silent = False

    def submit(self, request: JobRequest) -> str:
        if self.arrives:
            self.jobs[f"job{len(self.jobs) + 1}"] = request.tag
        if self.fault is not None:
            raise self.fault
        return f"job{len(self.jobs)}"

    def query(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        if self.silent:
            raise CommandError("the scheduler does not answer")
        known = {job_id: self.state if job_id in self.jobs else JobState.GONE for job_id in job_ids}
        return {job_id: JobStatus(job_id, state, self.exit_code) for job_id, state in known.items()}

    def find(self, tag: str) -> str | None:
        if self.silent:
            raise CommandError("the scheduler does not answer")
        return next((job_id for job_id, own in self.jobs.items() if own == tag), None)

    def cancel(self, job_id: str) -> None:
        if self.silent:
            raise CommandError("the scheduler does not answer")
        self.jobs.pop(job_id, None)


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> FakeScheduler:
    fake = FakeScheduler()
    for module in (submit, follow):
        monkeypatch.setattr(module, "get_scheduler", lambda _: fake)
    return fake


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = plan(tmp_path, job={"crash_retries": 1, "max_attempts": 4})

    def fill(hidden: RunDirectory, _: RunDirectory) -> None:
        made.write(hidden.plan)
        record(hidden, Event.CREATED)

    return create_run(tmp_path / "runs", "cars", fill)


def test_a_submitted_run_is_queued(run: RunDirectory, scheduler: FakeScheduler) -> None:
    assert submit.submit_attempt(run, 1) == "job1"
    now = follow.status(run)
    assert (now.state, now.job_id, now.attempt) == (RunState.QUEUED, "job1", 1)


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


def test_a_failing_query_says_nothing_about_the_run(run: RunDirectory, scheduler: FakeScheduler) -> None:
    submit.submit_attempt(run, 1)
    scheduler.silent = True
    now = follow.status(run)
    assert (now.state, now.reason) == (RunState.UNKNOWN, "the scheduler does not answer")


def test_one_unreadable_run_does_not_hide_the_others(run: RunDirectory, scheduler: FakeScheduler) -> None:
    submit.submit_attempt(run, 1)
    broken = create_run(run.path.parent, "broken", lambda hidden, _: record(hidden, Event.SUBMITTED, job_id="1"))
    record(broken, Event.SUBMITTING, attempt=1)
    record(broken, Event.SUBMITTED, attempt=1, job_id="1")
    broken.plan.write_text("{")
    shown = {one.run: one.state for one in follow.statuses([run, broken])}
    assert shown == {run.name: RunState.QUEUED, broken.name: RunState.UNKNOWN}


# --- What comes after an attempt --------------------------------------------------------------------------------


def test_saved_in_time_means_another_attempt(run: RunDirectory, scheduler: FakeScheduler) -> None:
    submit.submit_attempt(run, 1)
    record(run, Event.CHECKPOINTED, attempt=1, step=10)
    conclude(run, 1, AttemptExit.CONTINUE)
    assert follow.status(run).attempt == 2
    assert len(scheduler.jobs) == 2


def test_an_attempt_that_saved_nothing_is_not_repeated_for_ever(run: RunDirectory, scheduler: FakeScheduler) -> None:
    submit.submit_attempt(run, 1)
    conclude(run, 1, AttemptExit.CONTINUE)
    scheduler.state = JobState.ENDED
    now = follow.status(run)
    assert now.state is RunState.FAILED
    assert "too short" in str(now.reason)


def test_bad_data_and_bad_configuration_are_never_retried(run: RunDirectory, scheduler: FakeScheduler) -> None:
    submit.submit_attempt(run, 1)
    record(run, Event.FAILED, attempt=1, code=65, reason="anna/1.png is empty")
    conclude(run, 1, AttemptExit.BAD_DATA)
    scheduler.state = JobState.ENDED
    assert follow.status(run).reason == "anna/1.png is empty"
    assert len(scheduler.jobs) == 1
    assert [entry.event for entry in read_journal(run)[0]].count("failed") == 1


def test_crashes_are_retried_up_to_the_limit(run: RunDirectory, scheduler: FakeScheduler) -> None:
    submit.submit_attempt(run, 1)
    conclude(run, 1, 139)
    assert follow.status(run).attempt == 2
    conclude(run, 2, 139)
    scheduler.state = JobState.ENDED
    now = follow.status(run)
    assert now.state is RunState.FAILED
    assert "crash number 2; job.crash_retries is 1" in str(now.reason)


def test_there_is_a_last_attempt(run: RunDirectory) -> None:
    go_on, why = next_step(read_plan(run.plan), [], 4, AttemptExit.CONTINUE)
    assert not go_on
    assert "4 attempts were not enough" in str(why)


def test_a_cancelled_run_does_not_go_on(run: RunDirectory, scheduler: FakeScheduler) -> None:
    submit.submit_attempt(run, 1)
    record(run, Event.CHECKPOINTED, attempt=1, step=10)
    assert follow.cancel(run).state is RunState.CANCELLED
    conclude(run, 1, AttemptExit.CONTINUE)
    assert scheduler.jobs == {}
    assert follow.resume(run) == "job1"
    assert follow.status(run).attempt == 2


def test_cancelling_is_repeated_after_the_scheduler_did_not_answer(run: RunDirectory, scheduler: FakeScheduler) -> None:
    submit.submit_attempt(run, 1)
    scheduler.state, scheduler.silent = JobState.RUNNING, True
    with pytest.raises(CommandError):
        follow.cancel(run)
    scheduler.silent = False
    assert follow.cancel(run).state is RunState.CANCELLED
    assert scheduler.jobs == {}
    assert [entry.event for entry in read_journal(run)[0]].count("cancelled") == 1


def test_the_umask_of_the_user_is_kept(run: RunDirectory) -> None:
    assert run.path.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_one_stalled_attempt_does_not_end_a_chain_that_has_got_somewhere(
    run: RunDirectory, scheduler: FakeScheduler
) -> None:
    submit.submit_attempt(run, 1)
    record(run, Event.CHECKPOINTED, attempt=1, step=10)
    conclude(run, 1, AttemptExit.CONTINUE)
    conclude(run, 2, AttemptExit.CONTINUE)  # the file system stalled: nothing was saved
    assert follow.status(run).attempt == 3
    conclude(run, 3, AttemptExit.CONTINUE)
    assert follow.status(run).attempt == 3
    assert len(scheduler.jobs) == 3


def test_an_environment_that_is_not_there_is_said_before_anything_is_submitted(tmp_path: Path) -> None:
    site = SITE.model_copy(update={"environments": {"gpu": Environment(prefix=str(tmp_path / "gpu"))}})
    with pytest.raises(UserError, match="the environment `gpu` of the site `here` is not there") as caught:
        plan(tmp_path, site)
    assert f"dlhpc env build RECIPE --prefix {tmp_path}/gpu" in str(caught.value)


@pytest.mark.parametrize(("code", "words"), [(127, "a program is missing"), (137, "want of memory")])
def test_codes_of_the_shell_are_put_into_words(
    run: RunDirectory, scheduler: FakeScheduler, code: int, words: str
) -> None:
    submit.submit_attempt(run, 1)
    scheduler.state, scheduler.exit_code = JobState.ENDED, code
    assert words in str(follow.status(run).reason)
    assert words in str(next_step(read_plan(run.plan), read_journal(run)[0], 1, code)[1])


def test_a_run_of_somebody_else_is_not_taken_for_failed(
    run: RunDirectory, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert [entry.event for entry in read_journal(run)[0]] == ["created", "submitting", "submitted"]
