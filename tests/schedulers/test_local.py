"""The local scheduler with real processes: what a user of a machine without batch system can rely on."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dlhpc.errors import StorageError, UserError
from dlhpc.schedulers.base import JobState
from dlhpc.schedulers.local_spool import Spool
from tests.schedulers.desk import ROOT, Desk, until

# A daemon as launchers start them: forked twice, in its own session; it leaves its number in the file `daemon`.
DAEMON = f"""{sys.executable} -c '
import os, time
os.fork() and os._exit(0)
os.setsid()
os.fork() and os._exit(0)
open("daemon.new", "w").write(str(os.getpid()))
os.rename("daemon.new", "daemon")
time.sleep(300)'
"""


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# --- A job from beginning to end --------------------------------------------------------------------------------


def test_a_script_runs_in_its_folder_and_its_exit_code_is_known(desk: Desk) -> None:
    job = desk.submit("a", 'pwd; echo "job $DLHPC_JOB_ID"; echo oops >&2; exit 7')
    status = desk.ended(job)
    assert (status.exit_code, status.reason) == (7, None)
    assert status.started is not None
    assert status.ended is not None
    assert status.started <= status.ended
    assert desk.log("a") == f"{desk.folder}\njob {job}\noops\n"


def test_output_is_added_to_an_existing_log_and_the_script_gets_no_arguments(desk: Desk) -> None:
    log = desk.request("a", "").header.output
    log.parent.mkdir()
    log.write_text("earlier\n")
    desk.ended(desk.submit("a", 'echo "later, $# arguments"'))
    assert desk.log("a") == "earlier\nlater, 0 arguments\n"


def test_a_script_killed_by_a_signal_has_128_and_the_signal(desk: Desk) -> None:
    assert desk.ended(desk.submit("a", "kill -9 $$")).exit_code == 137


def test_a_job_sees_the_submitters_environment_but_secrets_are_never_written(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SETTING", "ünï")
    monkeypatch.setenv("HUB_TOKEN", "hush")
    monkeypatch.setenv("http_proxy", "http://me:hush@proxy:80")
    desk.submit("first", "sleep 0.5", cores=2)
    job = desk.submit("a", 'echo "$MY_SETTING${HUB_TOKEN:-}${http_proxy:-}"')
    kept = [path.read_text() for path in desk.job_folder(job).path.iterdir()]
    assert not any("hush" in text for text in kept)
    desk.ended(job)
    assert desk.log("a") == "ünï\n"
    assert not (desk.job_folder(job).path / "environment.json").exists()


def test_a_script_that_has_gone_ends_the_job_with_127(desk: Desk) -> None:
    desk.submit("first", "sleep 0.5", cores=2)
    job = desk.submit("a", "echo never")
    (desk.folder / "a.sh").unlink()
    status = desk.ended(job)
    assert status.exit_code == 127
    assert "a.sh" in (status.reason or "")


def test_a_run_folder_removed_while_the_job_waits_does_not_stop_the_queue(desk: Desk) -> None:
    desk.submit("first", "sleep 0.5", cores=2)
    request = desk.request("lost", "echo never")
    header = replace(request.header, output=desk.folder / "run" / "lost.out")
    (lost,) = desk.scheduler.submit(replace(request, header=header))
    last = desk.submit("last", "exit 3")
    (desk.folder / "run").rmdir()
    status = desk.ended(lost)
    assert status.exit_code == 1
    assert "its log file cannot be written" in (status.reason or "")
    assert desk.ended(last).exit_code == 3


def test_background_processes_end_with_the_script(desk: Desk) -> None:
    job = desk.submit("a", f"sleep 300 & echo $! > child; {DAEMON}\nuntil test -f daemon; do sleep 0.05; done; exit 4")
    assert desk.ended(job).exit_code == 4
    assert is_dead(desk.pid("child"))
    assert is_dead(desk.pid("daemon"))


# --- The queue --------------------------------------------------------------------------------------------------


def test_jobs_wait_for_free_cores_and_go_on_by_themselves_in_order(desk: Desk) -> None:
    first = desk.submit("a", "until test -f go; do sleep 0.05; done; echo a >> order", cores=2)
    second = desk.submit("b", "echo b >> order", cores=2)
    third = desk.submit("c", "echo c >> order; touch all", cores=1)
    status = desk.scheduler.query([first, second, third])
    assert [status[job].state for job in (first, second, third)] == [
        JobState.RUNNING,
        JobState.QUEUED,
        JobState.QUEUED,
    ]
    assert status[second].reason == f"waits for 2 cores: 2 of 2 cores in use by job {first}"
    assert second in (status[third].reason or "")
    (desk.folder / "go").touch()
    until(desk.has("all"))  # nobody calls dlhpc here
    assert (desk.folder / "order").read_text().split() == ["a", "b", "c"]


def test_a_job_started_by_another_keeps_the_umask_of_its_own_submitter(desk: Desk) -> None:
    before = os.umask(0o022)
    try:
        first = desk.submit("first", "until test -e go; do sleep 0.05; done", cores=2)
        os.umask(0o077)
        second = desk.submit("second", "echo mine > secret", cores=2)
        (desk.folder / "go").touch()
    finally:
        os.umask(before)
    assert desk.ended(first).exit_code == 0
    assert desk.ended(second).exit_code == 0
    for path in (desk.folder / "secret", desk.folder / "logs" / "second.out"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_job_larger_than_the_machine_is_refused_with_numbers(desk: Desk) -> None:
    with pytest.raises(UserError, match="asks for 3 cores and this machine offers 2"):
        desk.submit("a", "true", cores=3)
    with pytest.raises(UserError, match="asks for 1 GPUs and this machine offers 0"):
        desk.submit("a", "true", gpus=1)
    assert desk.find("a") is None


def test_gpus_are_given_out_once_each(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLHPC_LOCAL_GPUS", "3")
    text = 'echo "<$CUDA_VISIBLE_DEVICES>"; until test -f go; do sleep 0.05; done'
    monkeypatch.setenv("DLHPC_LOCAL_CORES", "9")
    jobs = [desk.submit(tag, text, gpus=gpus) for tag, gpus in (("a", 1), ("b", 2), ("none", 0), ("d", 1))]
    states = desk.scheduler.query(jobs)
    assert states[jobs[3]].reason is not None
    assert "3 of 3 GPUs in use" in states[jobs[3]].reason
    (desk.folder / "go").touch()
    for job in jobs:
        desk.ended(job)
    assert [desk.log(tag).strip() for tag in ("a", "b", "none")] == ["<0>", "<1,2>", "<>"]
    assert desk.log("d").strip() in ("<0>", "<1>", "<2>")


def test_many_submit_at_the_same_moment(desk: Desk) -> None:
    text = "echo + >> marks; sleep 0.05; echo - >> marks"
    processes = [
        subprocess.Popen(desk.elsewhere(f"t{i}", text), stdout=subprocess.PIPE, text=True, cwd=ROOT) for i in range(10)
    ]
    jobs = [process.communicate(timeout=120)[0].split()[1] for process in processes]
    assert len(set(jobs)) == 10
    assert all(desk.ended(job).exit_code == 0 for job in jobs)
    now, most = 0, 0
    for mark in (desk.folder / "marks").read_text().split():
        now += 1 if mark == "+" else -1
        most = max(most, now)
    assert now == 0
    assert most <= 2


def test_one_tag_is_one_job_even_when_submitted_twice_at_once(desk: Desk) -> None:
    line = desk.elsewhere("same", "echo ran >> marks")
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)]
    jobs = {process.communicate(timeout=120)[0].split()[1] for process in processes}
    assert len(jobs) == 1
    desk.ended(jobs.pop())
    assert (desk.folder / "marks").read_text() == "ran\n"


def test_a_job_is_found_by_its_tag_while_it_waits_runs_and_after(desk: Desk) -> None:
    first = desk.submit("a", "until test -f go; do sleep 0.05; done", cores=2)
    second = desk.submit("b", "true", cores=2)
    assert (desk.find("a"), desk.find("b")) == (first, second)
    (desk.folder / "go").touch()
    desk.ended(second)
    assert (desk.find("a"), desk.find("b")) == (first, second)
    assert desk.find("c") is None


def test_ids_that_nobody_gave_are_gone(desk: Desk) -> None:
    host = os.uname().nodename
    ids = [f"99.{host}", "99", "abc", "", "1.other-host", "../../etc", "-1.x"]
    assert {status.state for status in desk.scheduler.query(ids).values()} == {JobState.GONE}
    assert desk.scheduler.query([]) == {}
    for job in ids:
        desk.cancel(job)


def test_a_number_is_never_given_twice(desk: Desk) -> None:
    first = desk.submit("a", "true")
    desk.ended(first)
    for path in sorted(desk.job_folder(first).path.rglob("*")):
        path.unlink()
    desk.job_folder(first).path.rmdir()
    assert desk.status(first).state == JobState.GONE
    assert int(desk.submit("b", "true").partition(".")[0]) == 2


# --- Walltime and cancelling ------------------------------------------------------------------------------------


def test_at_its_walltime_the_script_may_save_and_leave(desk: Desk) -> None:
    text = "trap 'echo saved; kill $!; exit 75' TERM; sleep 300 & echo $! > child; wait"
    status = desk.ended(desk.submit("a", text, walltime=1, grace=30))
    assert (status.exit_code, status.reason) == (75, "walltime")
    assert "saved" in desk.log("a")
    assert "its walltime of 1 s is over" in desk.log("a")
    assert is_dead(desk.pid("child"))


def test_a_script_that_ignores_term_is_killed_with_all_its_processes(desk: Desk) -> None:
    text = f"trap '' TERM; {DAEMON}\nsleep 300 & echo $! > child; while :; do sleep 0.1; done"
    status = desk.ended(desk.submit("a", text, walltime=1, grace=1))
    assert (status.exit_code, status.reason) == (137, "walltime")
    assert is_dead(desk.pid("child"))
    assert is_dead(desk.pid("daemon"))


def test_cancel_ends_the_whole_tree_and_says_so(desk: Desk) -> None:
    job = desk.submit("a", f"{DAEMON}\nsleep 300 & echo $! > child; env -i setsid sleep 300 & echo $! > bare; wait")
    pids = [desk.pid(name) for name in ("daemon", "child", "bare")]
    desk.cancel(job)
    assert all(is_dead(pid) for pid in pids)
    status = desk.status(job)
    assert (status.state, status.exit_code, status.reason) == (JobState.ENDED, 143, "cancelled")
    desk.cancel(job)


def test_a_cancelled_job_may_clean_up(desk: Desk) -> None:
    job = desk.submit("a", "trap 'sleep 0.3; echo cleaned; exit 9' TERM; touch up; sleep 300 & wait", grace=30)
    until(desk.has("up"))
    desk.cancel(job)
    assert "cleaned" in desk.log("a")
    assert desk.status(job).exit_code == 9


def test_a_waiting_job_is_cancelled_without_ever_running_and_the_next_moves_up(desk: Desk) -> None:
    desk.submit("a", "until test -f go; do sleep 0.05; done", cores=1)
    big = desk.submit("b", "touch b-ran", cores=2)
    small = desk.submit("c", "touch c-ran", cores=1)
    assert desk.status(small).state == JobState.QUEUED
    desk.cancel(big)
    assert (desk.status(big).state, desk.status(big).reason) == (JobState.ENDED, "cancelled")
    until(desk.has("c-ran"))
    assert not desk.has("b-ran")()


# --- Deaths -----------------------------------------------------------------------------------------------------


def test_a_job_survives_a_closed_terminal(desk: Desk) -> None:
    line = desk.elsewhere("a", "sleep 1; echo survived")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(line[0], line)
    said = b""
    until(lambda: desk.find("a"))
    with contextlib.suppress(OSError):
        while b"." not in said:
            said += os.read(terminal, 1000)
    os.close(terminal)  # the kernel sends SIGHUP to the session
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    job = desk.find("a")
    assert job is not None
    assert desk.ended(job).exit_code == 0
    assert desk.log("a") == "survived\n"


def test_submitting_into_a_pipe_does_not_hold_the_pipe_open(desk: Desk) -> None:
    done = subprocess.run(desk.elsewhere("a", "sleep 300"), capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert desk.status(done.stdout.split()[1]).state == JobState.RUNNING


def test_submit_killed_at_any_moment_leaves_a_whole_job_or_none(desk: Desk) -> None:
    rng = random.Random(1)
    for i in range(12):
        process = subprocess.Popen(desk.elsewhere(f"t{i}", f"echo t{i} >> marks"), stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.random() * 0.12)
        process.kill()
        process.communicate()
    found = {tag: job for i in range(12) if (job := desk.find(tag := f"t{i}"))}
    assert all(desk.ended(job).exit_code == 0 for job in found.values())
    ran = Counter((desk.folder / "marks").read_text().split()) if found else Counter()
    assert ran == Counter(list(found))
    desk.ended(desk.submit("after", "true"))
    assert not list(Spool.here().folder.rglob(".making-*"))


def test_a_killed_supervisor_ends_the_job_and_frees_the_machine(desk: Desk) -> None:
    job = desk.submit("a", f"{DAEMON}\nsleep 300 & echo $! > child; wait", cores=2)
    waiting = desk.submit("b", "touch b-ran", cores=2)
    pids = [desk.pid("daemon"), desk.pid("child")]
    os.kill(desk.job_folder(job).started().pid, signal.SIGKILL)
    status = desk.ended(job)
    assert (status.exit_code, status.reason) == (None, "its supervisor was killed")
    assert all(is_dead(pid) for pid in pids)
    assert desk.ended(waiting).exit_code == 0


def test_cancel_works_without_a_supervisor(desk: Desk) -> None:
    job = desk.submit("a", f"{DAEMON}\nwait")
    pid = desk.pid("daemon")
    os.kill(desk.job_folder(job).started().pid, signal.SIGKILL)
    desk.cancel(job)
    assert is_dead(pid)
    assert (desk.status(job).state, desk.status(job).reason) == (JobState.ENDED, "cancelled")


def test_after_a_reboot_the_running_job_has_ended_and_the_waiting_one_starts(desk: Desk) -> None:
    job = desk.submit("a", "echo $$ > script; sleep 300", cores=2)
    waiting = desk.submit("b", "touch b-ran", cores=2)
    script = desk.pid("script")
    record = desk.job_folder(job).path / "started.json"
    os.kill(desk.job_folder(job).started().pid, signal.SIGKILL)
    os.kill(script, signal.SIGKILL)
    # As after a reboot: another boot, and the supervisor's number now belongs to somebody else.
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot": "an earlier one", "pid": os.getpid()}))
    status = desk.ended(job)
    assert (status.exit_code, status.reason) == (None, "the machine was restarted while the job ran")
    assert desk.ended(waiting).exit_code == 0


def test_a_supervisor_told_to_stop_ends_its_job_and_starts_no_other(desk: Desk) -> None:
    job = desk.submit("a", "trap 'echo saved; exit 75' TERM; touch up; sleep 300 & wait", cores=2)
    desk.submit("b", "touch b-ran", cores=2)
    until(desk.has("up"))
    supervisor = desk.job_folder(job).started().pid
    os.kill(supervisor, signal.SIGTERM)
    until(lambda: is_dead(supervisor))
    assert "saved" in desk.log("a")
    assert not desk.has("b-ran")()
    assert desk.status(job).exit_code == 75  # asking starts what waits
    until(desk.has("b-ran"))


def test_a_job_submitted_from_within_a_job_outlives_it(desk: Desk) -> None:
    line = desk.elsewhere("inner", "until test -f go; do sleep 0.05; done; echo fine")
    (desk.folder / "submit.py").write_text(line[2])
    outer = desk.submit("outer", f"{sys.executable} submit.py")
    assert desk.ended(outer).exit_code == 0
    inner = desk.find("inner")
    assert inner is not None
    assert desk.status(inner).state == JobState.RUNNING
    (desk.folder / "go").touch()
    assert (desk.ended(inner).exit_code, desk.log("inner")) == (0, "fine\n")


# --- Damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"tag": 1}', "\x00\xff"])
def test_damaged_files_are_no_traceback_and_hold_up_nobody(desk: Desk, damage: str) -> None:
    desk.submit("a", "until test -f go; do sleep 0.05; done", cores=2)
    broken = desk.submit("b", "touch b-ran", cores=2)
    after = desk.submit("c", "true", cores=2)
    (desk.job_folder(broken).path / "job.json").write_text(damage, encoding="latin-1")
    status = desk.status(broken)
    assert status.state == JobState.UNKNOWN
    assert "job.json" in (status.reason or "")
    (desk.folder / "go").touch()
    assert desk.ended(after).exit_code == 0
    desk.cancel(broken)
    assert desk.status(broken).state == JobState.ENDED


def test_a_damaged_environment_ends_the_job_and_not_the_queue(desk: Desk) -> None:
    desk.submit("a", "sleep 0.5", cores=2)
    broken, after = desk.submit("b", "touch b-ran"), desk.submit("c", "true")
    (desk.job_folder(broken).path / "environment.json").write_text("{")
    status = desk.ended(broken)
    assert status.exit_code == 1
    assert "environment.json" in (status.reason or "")
    assert desk.ended(after).exit_code == 0


def test_a_damaged_record_of_who_runs_a_job_neither_kills_nor_doubles_it(desk: Desk) -> None:
    job = desk.submit("a", "echo ran >> marks; until test -f go; do sleep 0.05; done; exit 5", cores=2)
    until(desk.has("marks"))
    (desk.job_folder(job).path / "started.json").write_text("{")
    assert desk.status(job).state == JobState.RUNNING
    (desk.folder / "go").touch()
    assert desk.ended(job).exit_code == 5
    assert (desk.folder / "marks").read_text() == "ran\n"


def test_a_spool_that_cannot_be_written_is_said_kindly(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = desk.folder / "file"
    blocked.touch()
    monkeypatch.setenv("DLHPC_LOCAL_SPOOL", str(blocked))
    with pytest.raises(StorageError, match="cannot write"):
        desk.submit("a", "true")
    monkeypatch.setenv("DLHPC_LOCAL_SPOOL", str(desk.folder.parent / "spool"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("no right to mount a small file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_on_a_full_disk_nothing_is_half_submitted_and_no_exit_code_is_lost(
    small_disk: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLHPC_LOCAL_SPOOL", str(small_disk / "spool"))
    job = desk.submit("a", "until test -f go; do sleep 0.05; done; exit 6")
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while filler.write(bytes(4096)) == 4096:
            pass
    with pytest.raises(StorageError, match="No space left"):
        desk.submit("b", "true")
    assert desk.find("b") is None
    assert desk.status(job).state == JobState.RUNNING
    (desk.folder / "go").touch()
    assert desk.ended(job).exit_code == 6
    (small_disk / "filler").unlink()
    assert desk.ended(desk.submit("b", "true")).exit_code == 0
