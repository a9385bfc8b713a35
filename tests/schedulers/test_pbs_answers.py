"""What PBS answers, and what follows from it."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlhpc.process import Answer
from dlhpc.schedulers.base import JobState, JobStatus
from dlhpc.schedulers.pbs import PbsScheduler, query_command, refusal
from dlhpc.schedulers.pbs_parse import (
    absent,
    free_nodes,
    lookup,
    parse_full,
    parse_json,
    parse_nodes,
    parse_submission,
    queue_job,
    status_of,
)
from dlhpc.schedulers.waits import QueueJob, estimate_start, parse_clock, parse_time


def test_one_question_for_all_jobs():
    assert query_command(["1.s", "2.s", "1.s"], "select", history=True) == (
        ["qstat", "-x", "-f", "-F", "json", "1.s", "2.s"]
    )
    assert query_command(["1.s", "9[3].s"], "torque", history=False) == ["qstat", "-f", "1.s", "9[3].s"]


def test_a_large_array_is_asked_for_as_a_whole():
    tasks = PbsScheduler().member_ids("9[].s", range(500))
    assert tasks[499] == "9[499].s"
    assert query_command(["1.s", *tasks], "select", history=True)[5:] == ["-t", "1.s", "9[].s"]


@pytest.mark.parametrize(
    ("letter", "state"),
    [
        ("B", JobState.RUNNING),
        ("C", JobState.ENDED),
        ("E", JobState.RUNNING),
        ("F", JobState.ENDED),
        ("H", JobState.HELD),
        ("M", JobState.UNKNOWN),
        ("Q", JobState.QUEUED),
        ("R", JobState.RUNNING),
        ("S", JobState.RUNNING),
        ("T", JobState.QUEUED),
        ("U", JobState.RUNNING),
        ("W", JobState.QUEUED),
        ("X", JobState.ENDED),
        ("Z", JobState.UNKNOWN),
        ("", JobState.UNKNOWN),
    ],
)
def test_every_state(letter: str, state: JobState):
    assert status_of("1.s", {"job_state": letter}).state is state


def test_waiting_for_another_job_is_not_held():
    job = {"job_state": "H", "Hold_Types": "s", "depend": "afterok:12.server@server"}
    assert status_of("13.s", job) == JobStatus("13.s", JobState.QUEUED, reason="waits for 12.server")
    assert status_of("13.s", job | {"Hold_Types": "us"}).state is JobState.HELD


def test_a_request_that_can_never_run_says_so():
    comment = "Can Never Run: Insufficient amount of resource: ncpus (R: 64 A: 8 T: 8)"
    assert status_of("1.s", {"job_state": "Q", "comment": comment}).reason == comment


@pytest.mark.parametrize(
    ("code", "ours", "reason"),
    [
        ("0", 0, None),
        ("75", 75, None),
        ("137", 137, None),
        ("271", 143, None),
        ("265", 137, None),
        ("-29", None, "walltime"),
        ("-27", None, "memory"),
        ("-99", None, "-99"),
    ],
)
def test_exit_codes(code: str, ours: int | None, reason: str | None):
    status = status_of("1.s", {"job_state": "F", "Exit_status": code})
    assert status.exit_code == ours
    assert (reason in (status.reason or "")) if reason else status.reason is None


def test_torque_has_reasons_of_its_own():
    assert "walltime" in (status_of("1.s", {"job_state": "C", "exit_status": "-11"}).reason or "")


JSON = {
    "timestamp": 1764000000,
    "pbs_version": "23.06.06",
    "Jobs": {
        "12.server": {
            "Job_Name": 7,
            "job_state": "F",
            "Exit_status": 271,
            "stime": "Tue Nov 24 01:02:03 2026",
            "history_timestamp": 1764000000,
            "Resource_List": {"nodect": 2, "walltime": "01:00:00"},
            "Variable_List": {"PBS_O_HOME": "/home/you", "A": 100000},
        }
    },
}


def test_json_with_retyped_values():
    jobs = parse_json("some banner\n" + json.dumps(JSON))
    assert jobs is not None
    status = status_of("12.server", jobs["12.server"])
    assert (status.exit_code, status.ended) == (143, 1764000000.0)
    assert status.started == time.mktime((2026, 11, 24, 1, 2, 3, 0, 0, -1))
    assert queue_job(jobs["12.server"]).nodes == 2


def test_json_without_jobs_is_an_answer_and_broken_json_is_none():
    assert parse_json('{"timestamp": 1, "pbs_server": "s"}') == {}
    assert parse_json('{"timestamp": 1, "Jobs": {"1.s": {"a": "b') is None
    assert parse_json('{"Jobs": 5}') is None
    assert parse_json("[" * 100_000) is None
    assert parse_json('{"a":' * 100_000) is None


def test_folded_lines_of_torque():
    text = """Job Id: 12.server
    Job_Name = faces-0123
    job_state = C
    Variable_List = PBS_O_HOME=/home/you,PBS_O_LANG=C,
\tPBS_O_PATH=/bin
    exit_status = 0
    comp_time = Tue Nov 24 01:02:03 2026

Job Id: 13.server
    job_state = Q
"""
    jobs = parse_full(text)
    assert jobs["12.server"]["Variable_List"].endswith("PBS_O_LANG=C,PBS_O_PATH=/bin")
    assert status_of("12.server", jobs["12.server"]).exit_code == 0
    assert jobs["13.server"] == {"job_state": "Q"}


def test_a_job_that_moved_keeps_its_number():
    jobs = {"12.other": {"job_state": "R"}, "13[2].s": {"job_state": "Q"}}
    assert lookup(jobs, "12.server") == {"job_state": "R"}
    assert lookup(jobs, "13[2].server") == {"job_state": "Q"}
    assert lookup(jobs, "13.server") is None


def test_not_seen_is_not_finished():
    assert absent("12.s", 153, "qstat: Unknown Job Id 12.s\n", {}).state is JobState.GONE
    assert absent("12.s", 35, "qstat: 12.s Job has finished, use -x or -H\n", {}).state is JobState.GONE
    assert absent("12.s", 153, "qstat: Unknown Job Id Error 112.s\nqstat: odd\n", {}).state is JobState.UNKNOWN
    assert absent("12.s", 0, "", {}).state is JobState.UNKNOWN
    assert absent("12.s", 1, "qstat: illegally formed job identifier: 12.s", {}).state is JobState.UNKNOWN
    assert absent("9[7].s", 0, "", {"9[].s": {"job_state": "B"}}).state is JobState.GONE


@given(st.text(), st.integers(-300, 300), st.text())
def test_no_answer_of_pbs_is_a_surprise(out: str, code: int, text: str):
    parse_submission(out)
    for jobs in (parse_json(out), parse_full(out), parse_nodes(out)):
        for job_id, job in (jobs or {}).items():
            status_of(job_id, job)
            queue_job(job)
    absent("12.s", code, out, {})
    refusal(Answer(("qsub",), code, out, text))
    parse_time(out)
    parse_clock(out)


odd = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    odd, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=8), one, max_size=3)
)
names = st.sampled_from(
    ["job_state", "Exit_status", "stime", "depend", "comment", "Resource_List", "np", "state", "jobs"]
)


@given(st.dictionaries(st.text(max_size=6), values | st.dictionaries(names, values)))
def test_no_json_of_pbs_is_a_surprise(jobs: object):
    for job_id, job in (parse_json(json.dumps({"Jobs": jobs})) or {}).items():
        status_of(job_id, job)
        queue_job(job)
        free_nodes({job_id: job | {"state": "free"}}, cores=1, gpus=1, gpu="ngpus", memory_bytes=1)


NOW = 1_800_000_000.0


def ended(nodes: int, wait: float, ago: float = 3600) -> QueueJob:
    return QueueJob(nodes, queued=NOW - ago - wait, started=NOW - ago, walltime_seconds=600)


WAITING = QueueJob(1, queued=NOW - 60, started=None, walltime_seconds=600, waiting=True)


def test_room_and_nobody_waiting_means_now():
    estimate = estimate_start([ended(1, 900)], nodes=2, free_nodes=2, now=NOW)
    assert (estimate.start, estimate.how) == (NOW, "free nodes, and nobody waits")


def test_otherwise_as_long_as_jobs_of_this_size_waited():
    jobs = [ended(2, 100), ended(2, 500), ended(4, 300), ended(64, 90_000), WAITING]
    estimate = estimate_start(jobs, nodes=2, free_nodes=2, now=NOW)
    assert estimate.start == NOW + 300
    assert estimate.how == "median wait of the last 3 jobs of about this size"
    assert estimate_start([ended(64, 50), WAITING], nodes=1, free_nodes=9, now=NOW).how == "wait of the last job"


def test_the_servers_plan_for_those_ahead_comes_first():
    jobs = [ended(1, 10), replace(WAITING, planned=NOW + 7200)]
    estimate = estimate_start(jobs, nodes=1, free_nodes=0, now=NOW)
    assert (estimate.start, estimate.how) == (NOW + 7200, "the batch system's own plan for the jobs ahead")


def test_without_a_history_running_jobs_end_at_their_walltime():
    running = [QueueJob(1, None, NOW - 100, 1000, running=True), QueueJob(1, None, NOW - 100, 400, running=True)]
    assert estimate_start(running, nodes=2, free_nodes=1, now=NOW).start == NOW + 300
    assert estimate_start(running, nodes=2, free_nodes=0, now=NOW).start == NOW + 900
    assert estimate_start(running, nodes=9, free_nodes=0, now=NOW).start is None


def test_nodes_with_room():
    node = {"state": "free", "resources_available.ncpus": "8", "resources_assigned.ncpus": "2"}
    node |= {"resources_available.ngpus": "2", "resources_available.mem": "4194304kb"}
    nodes = {"a": node, "b": node | {"state": "offline"}, "c": node | {"resources_assigned.ngpus": "1"}}
    assert free_nodes(nodes, cores=6, gpus=2, gpu="ngpus", memory_bytes=2**32) == 1
    assert free_nodes(nodes, cores=6, gpus=0, gpu="ngpus", memory_bytes=None) == 2
    assert free_nodes(nodes, cores=7, gpus=0, gpu="ngpus", memory_bytes=None) == 0


def test_nodes_of_torque_with_room():
    nodes = parse_nodes(
        "n1\n     state = free\n     np = 8\n     gpus = 2\n     jobs = 0-3/12.s,5/13.s\n\nn2\n     np = 8\n"
    )
    assert free_nodes(nodes, cores=3, gpus=0, gpu="gpus", memory_bytes=None) == 1
    assert free_nodes(nodes, cores=4, gpus=0, gpu="gpus", memory_bytes=None) == 0
    assert free_nodes(nodes, cores=1, gpus=1, gpu="gpus", memory_bytes=None) == 0
