"""The local scheduler's decisions and records, without processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlhpc.errors import StorageError, UserError
from dlhpc.schedulers import local_spool
from dlhpc.schedulers.local import kept_environment
from dlhpc.schedulers.local_processes import birth, boot_id
from dlhpc.schedulers.local_queue import (
    Capacity,
    Running,
    View,
    Waiting,
    fit,
    is_alive,
    offered_cores,
    offered_gpus,
    why_waiting,
)
from dlhpc.schedulers.local_spool import Ended, Job, JobFolder, Spool, Started, parse_id
from dlhpc.schedulers.local_supervisor import command


def at(number: int) -> JobFolder:
    return JobFolder(Path(f"/spool/host/jobs/{number}-abc"))


def job(tag: str = "run-1", **more: object) -> Job:
    values = {
        "tag": tag,
        "name": "faces",
        "script": "/runs/job.sh",
        "log": "/runs/1.out",
        "cores": 1,
        "gpus": 0,
        "walltime_seconds": 60,
        "kill_grace_seconds": 10,
        "submitted": 1.5,
        "token": "abc",
    }
    return Job(**{**values, **more})  # type: ignore[arg-type]


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.setenv("DLHPC_LOCAL_SPOOL", str(tmp_path))
    return Spool.here()


# --- Who is next ------------------------------------------------------------------------------------------------

running_jobs = st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 4), max_size=2)), max_size=3)


@given(st.integers(0, 6), st.integers(0, 4), running_jobs, st.integers(0, 8), st.integers(0, 5))
def test_a_job_gets_free_gpus_exactly_when_there_is_room_for_all_it_needs(
    cores: int, gpus: int, running: list[tuple[int, set[int]]], all_cores: int, all_gpus: int
) -> None:
    jobs = [Running(at(i), used, frozenset(held)) for i, (used, held) in enumerate(running)]
    free = set(range(all_gpus)).difference(*(held for _, held in running))
    given_out = fit(Waiting(at(9), cores, gpus), jobs, Capacity(all_cores, all_gpus))
    if sum(used for used, _ in running) + cores <= all_cores and gpus <= len(free):
        assert given_out is not None
        assert len(given_out) == len(set(given_out)) == gpus
        assert set(given_out) <= free
    else:
        assert given_out is None


def test_what_a_job_waits_for_is_said_with_numbers() -> None:
    spool = Spool(Path("/spool/host"))
    first = Waiting(at(7), 4, 0)
    running = (Running(at(5), 1, frozenset()), Running(at(6), 2, frozenset()))
    view = View(running, first, Capacity(4, 0))
    assert why_waiting(first.folder, view, spool) == "waits for 4 cores: 3 of 4 cores in use by jobs 5.host, 6.host"
    assert why_waiting(at(8), view, spool) == "waits behind job 7.host, which came first"
    smaller = View((), first, Capacity(2, 0))
    assert why_waiting(first.folder, smaller, spool) == "waits for 4 cores, but this machine now offers 2"
    failing = View((), first, Capacity(4, 0), UserError("no Python"))
    assert why_waiting(first.folder, failing, spool) == "could not be started: no Python"


def test_cores_and_gpus_can_be_offered_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DLHPC_LOCAL_CORES", "3")
    assert offered_cores() == 3
    monkeypatch.setenv("DLHPC_LOCAL_CORES", "all")
    with pytest.raises(UserError, match="DLHPC_LOCAL_CORES is `all`"):
        offered_cores()
    monkeypatch.delenv("DLHPC_LOCAL_CORES")
    assert offered_cores() >= 1
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DLHPC_LOCAL_GPUS", raising=False)
    assert offered_gpus() == 0
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: K20 (UUID: x)'\necho '  MIG 1g: (UUID: y)'\necho 'GPU 1: K20'\n")
    program.chmod(0o755)
    assert offered_gpus() == 2
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert offered_gpus() == 0


# --- Scripts, ids, environment ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (b"#!/bin/sh\n", ["/bin/sh"]),
        (b"#! /bin/bash -e  \n", ["/bin/bash", "-e"]),
        (b"#!/usr/bin/env -S python3 -u\n", ["/usr/bin/env", "-S python3 -u"]),
        (b"echo no first line\n", ["/bin/sh"]),
        (b"#!\n", ["/bin/sh"]),
        (b"", ["/bin/sh"]),
    ],
)
def test_a_script_is_run_by_what_its_first_line_names(tmp_path: Path, first: bytes, words: list[str]) -> None:
    script = tmp_path / "job.sh"
    script.write_bytes(first + b"exit 0\n" if first else b"")
    assert command(script) == [*words, str(script)]


def test_ids() -> None:
    assert parse_id("12.login.centre.jp") == (12, "login.centre.jp")
    for other in ("12", "", "x.host", "1.", "1../x", "²1.host", "1.a/../b", "-1.host"):
        assert parse_id(other) is None


def test_nothing_that_looks_secret_is_kept() -> None:
    kept = {"PATH": "/bin", "LANG": "ja_JP.UTF-8", "URL": "https://host:443/a", "KEYBOARD": "jp"}
    secret = {"HF_TOKEN": "1", "AWS_SECRET_ACCESS_KEY": "2", "DB_PASSWORD": "3", "OPENAI_API_KEY": "4"}
    of_another_job = {"DLHPC_JOB_ID": "1", "DLHPC_LOCAL_TOKEN": "x", "DLHPC_LOCAL_SUPERVISOR": "y"}
    assert kept_environment({**kept, **secret, "all_proxy": "socks://u:p@h:1", **of_another_job}) == kept


# --- Records ----------------------------------------------------------------------------------------------------


def test_a_job_is_written_and_read_back_whatever_its_paths_are(spool: Spool) -> None:
    odd = job(script=os.fsdecode(b"/runs/\xff\n/\xe6\x97\xa5.sh"), after=[["1.host", "afterok"]])
    with spool.lock():
        folder = spool.add(odd, {"NAME": os.fsdecode(b"\xff")})
    assert folder.job() == odd
    assert folder.environment() == {"NAME": os.fsdecode(b"\xff")}
    assert folder.path.stat().st_mode & 0o077 == 0


def test_only_one_can_take_a_job(spool: Spool) -> None:
    with spool.lock():
        folder = spool.add(job(), {})
    first, second = (Started(pid, "1", "boot", 1, [], 2.0) for pid in (10, 11))
    assert folder.claim(first)
    assert not folder.claim(second)
    assert folder.started() == first
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "environment.json",
        "job.json",
        "reserve",
        "started.json",
    ]


def test_the_last_word_is_said_once(spool: Spool) -> None:
    with spool.lock():
        folder = spool.add(job(), {"A": "b"})
    end = Ended(3, None, 1.0, 2.0)
    folder.record_end(end)
    folder.record_end(Ended(None, "its supervisor was killed", 1.0, 3.0))
    assert folder.ended() == end
    assert sorted(path.name for path in folder.path.iterdir()) == ["ended.json", "job.json"]


def test_the_lock_is_held_by_one_and_its_holder_is_not_waited_for_without_end(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_spool, "LOCK_PATIENCE_S", 0.05)
    with spool.lock(), pytest.raises(StorageError, match="held by another dlhpc process"), spool.lock():
        pass
    with spool.lock():
        pass


def test_old_and_surplus_jobs_are_forgotten_the_oldest_first(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_spool, "KEEP_JOBS", 3)
    with spool.lock():
        folders = [spool.add(job(f"t{i}"), {}) for i in range(6)]
        for folder in folders[:5]:
            folder.record_end(Ended(0, None, 1.0, 2.0))
            spool.put_away(folder)
        spool.prune()
        assert sorted(spool.kept()) == [3, 4, 5, 6]
        third = spool.folder_of(3)
        assert third is not None
        month_ago = time.time() - 31 * 86400
        os.utime(third.path, (month_ago, month_ago))
        spool.prune()
        assert sorted(spool.kept()) == [4, 5, 6]
        assert spool.add(job("t9"), {}).number == 7


def test_a_lost_counter_does_not_give_numbers_again(spool: Spool) -> None:
    with spool.lock():
        assert spool.add(job("a"), {}).number == 1
        (spool.folder / "last").write_bytes(b"\x00")
        assert spool.add(job("b"), {}).number == 2
        (spool.folder / "last").unlink()
        assert spool.add(job("c"), {}).number == 3


def test_jobs_of_another_host_that_shares_the_home_are_known_but_not_judged(spool: Spool) -> None:
    from dlhpc.schedulers.base import JobState, get_scheduler

    other = Spool.of("other-host")
    with other.lock():
        running, over = other.add(job("a"), {}), other.add(job("b"), {})
        running.claim(Started(1, "1", "boot", 1, [], 2.0))
        over.record_end(Ended(75, None, 1.0, 2.0))
    scheduler = get_scheduler("local")
    assert scheduler.find("a") == ["1.other-host"]
    status = scheduler.query(["1.other-host", "2.other-host", "3.other-host"])
    assert [one.state for one in status.values()] == [JobState.UNKNOWN, JobState.ENDED, JobState.GONE]
    assert status["2.other-host"].exit_code == 75
    with pytest.raises(UserError, match="belongs to the machine other-host"):
        scheduler.cancel(["1.other-host"])
    with pytest.raises(UserError, match="belongs to the machine other-host"):
        scheduler.hold(["1.other-host"])
    scheduler.cancel(["2.other-host"])


def test_a_process_is_known_by_number_birth_and_boot() -> None:
    born = birth(os.getpid())
    assert born is not None
    me = Started(os.getpid(), born, boot_id(), 1, [], 0.0)
    assert is_alive(me)
    assert not is_alive(Started(me.pid, "1" + born, me.boot, 1, [], 0.0))
    assert not is_alive(Started(me.pid, born, "another boot", 1, [], 0.0))
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # dead, and not yet taken leave of
    assert birth(child) is None
    os.waitpid(child, 0)
    assert birth(child) is None
