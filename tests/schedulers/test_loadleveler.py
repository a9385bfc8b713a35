"""LoadLeveler as its users meet it: keywords, job command files, answers; then a few jobs on the double."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlhpc.errors import CommandError, StorageError, UserError
from dlhpc.process import Answer, CommandFailed, CommandTimeout
from dlhpc.schedulers.base import Dependency, Header, JobRequest, JobState, JobStatus, get_scheduler
from dlhpc.schedulers.loadleveler import (
    LoadLevelerScheduler,
    parse_free,
    parse_long,
    parse_states,
    parse_submission,
    queue_job,
    refusal,
    short,
    status_of,
    steps_of,
)
from dlhpc.schedulers.loadleveler_keywords import command_file, directives
from tests.doubles import LoadLevelerDouble

PATIENCE_S = 30.0
HEADER = Header(
    name="faces",
    output=Path("/home/you/runs/faces/logs/job.out"),
    queue="parallel",
    nodes=2,
    ranks_per_node=4,
    cores_per_rank=8,
    gpus_per_node=0,
    memory_bytes=64 * 2**30,
    walltime_seconds=5400,
    warning_seconds=120,
)
SCRIPT = "\n".join(["#!/bin/sh", *directives(HEADER), "", "echo '# @ not a keyword'", "exit 0", ""])
REQUEST = JobRequest("faces-0123-1", Path("/runs/faces/job.sh"), HEADER)


def one_sentence(header: Header) -> str:
    with pytest.raises(UserError) as caught:
        directives(header)
    return str(caught.value)


def test_two_nodes_of_a_power_machine():
    assert directives(replace(HEADER, network="sn_all,not_shared,US", account="p-42")) == [
        "# @ job_name = faces",
        "# @ step_name = step1",
        "# @ job_type = parallel",
        "# @ shell = /bin/sh",
        "# @ initialdir = /home/you/runs/faces/logs",
        "# @ output = /home/you/runs/faces/logs/job.out",
        "# @ error = /home/you/runs/faces/logs/job.out",
        "# @ restart = yes",
        "# @ class = parallel",
        "# @ node = 2",
        "# @ tasks_per_node = 4",
        "# @ node_usage = shared",
        "# @ wall_clock_limit = 01:30:00,01:28:00",
        "# @ network.MPI = sn_all,not_shared,US",
        "# @ resources = ConsumableCpus(8) ConsumableMemory(16384 mb)",
        "# @ account_no = p-42",
        "# @ notification = never",
        "# @ queue",
    ]


def test_a_network_is_for_jobs_on_several_nodes():
    assert not any("network" in line for line in directives(replace(HEADER, nodes=1, network="sn_all,not_shared,US")))


def test_gpus_as_a_consumable_resource_or_as_a_feature():
    header = replace(HEADER, gpus_per_node=8)
    assert "gpu.resource" in one_sentence(header)
    lines = directives(replace(header, gpu_resource="gpus"))
    assert "# @ resources = ConsumableCpus(8) ConsumableMemory(16384 mb) gpus(2)" in lines
    assert '# @ requirements = (Feature == "gpu")' in directives(replace(header, gpu_feature="gpu"))
    assert "shared out" in one_sentence(replace(header, gpus_per_node=2, gpu_resource="gpus"))


def test_nodes_of_ones_own():
    assert "# @ node_usage = not_shared" in directives(replace(HEADER, exclusive=True))


@pytest.mark.parametrize(
    ("moments", "keyword"),
    [
        (("begin",), "start"),
        (("end",), "complete"),
        (("fail",), "error"),
        (("end", "fail"), "complete"),
        (("begin", "end"), "always"),
        (("begin", "end", "fail"), "always"),
    ],
)
def test_mail(moments: tuple[str, ...], keyword: str):
    lines = directives(replace(HEADER, mail="you@centre.example", mail_on=moments))
    assert {f"# @ notification = {keyword}", "# @ notify_user = you@centre.example"} <= set(lines)


def test_what_loadleveler_does_not_have():
    text = one_sentence(replace(HEADER, array=(0, 1), qos="high"))
    assert "no job arrays" in text
    assert "no quality of service" in text


@pytest.mark.parametrize("path", ["/runs/$(id)/o", "/runs/a\nb/o", "/runs/a\x85b/o", "/runs/end\\"])
def test_a_path_that_would_change_on_its_way(path: str):
    assert "cannot be given to LoadLeveler" in one_sentence(replace(HEADER, output=Path(path)))


def test_blanks_and_other_scripts_in_a_path():
    assert "# @ output = /my runs/写真/job.out" in directives(replace(HEADER, output=Path("/my runs/写真/job.out")))


@pytest.mark.parametrize(
    ("extra", "instead"),
    [
        ("wall_clock_limit = 9:00:00", "job.walltime"),
        ("Class=other", "job.queue"),
        ("total_tasks = 4", "job.nodes"),
        ("resources = ConsumableCpus(1)", "job.cores_per_rank"),
        ("ll_res_id = r1", "job.reservation"),
        ("queue", "ends the step"),
        ("output = /tmp/x", "run's folder"),
        ("executable = /bin/date", "job script"),
        ("# @ group = staff", "without `# @`"),
        ("group = staff \\", "backslash"),
        ("group", "keyword = value"),
        ("group = 写真", "odd character"),
    ],
)
def test_keywords_that_would_do_harm_are_refused(extra: str, instead: str):
    assert instead in one_sentence(replace(HEADER, extra=(extra,)))


def test_keywords_of_ones_own():
    lines = directives(replace(HEADER, extra=("group = staff", "requirements = (Memory > 64)")))
    assert lines[-3:] == ["# @ group = staff", "# @ requirements = (Memory > 64)", "# @ queue"]
    assert "given twice" in one_sentence(replace(HEADER, extra=("group = a", "Group = b")))


words = st.text(max_size=20)


@given(name=words, folder=words, queue=words, extra=st.lists(words, max_size=2), network=st.none() | words)
def test_no_text_of_a_user_escapes_from_its_keyword(
    name: str, folder: str, queue: str, extra: list[str], network: str | None
):
    output = Path("/", folder.replace("\0", "").strip("/") or "x", "job.out")
    header = replace(HEADER, name=name, output=output, queue=queue, extra=tuple(extra), network=network)
    try:
        lines = directives(header)
    except UserError:
        return
    assert all(line.startswith("# @ ") and len(line.splitlines()) == 1 for line in lines)
    assert all("$(" not in line and not line.endswith("\\") for line in lines[: len(lines) - 1 - len(extra)])
    assert [line for line in lines if line.split()[2].lower() == "queue"] == ["# @ queue"]


def test_the_command_file_carries_tag_and_hold():
    text = command_file(SCRIPT, replace(REQUEST, held=True))
    head, _, body = text.partition("# @ queue\n")
    assert head.splitlines()[-3:] == ["# @ job_name = faces-0123-1", "# @ step_name = step1", "# @ hold = user"]
    assert "job_name = faces\n" not in text
    assert body == "\necho '# @ not a keyword'\nexit 0\n"


def test_steps_follow_each_other_only_if_the_one_before_ran_and_is_not_done():
    text = command_file(SCRIPT, replace(REQUEST, steps=3))
    assert text.count("# @ queue\n") == 3
    assert "# @ dependency = (step1 != 0) && (step1 != CC_NOTRUN) && (step1 != CC_REMOVED)\n" in text
    assert "# @ dependency = (step2 != 0) && (step2 != CC_NOTRUN) && (step2 != CC_REMOVED)\n" in text
    assert "hold" not in text


def test_a_script_without_directives_is_told_so():
    with pytest.raises(UserError, match="no line `# @ queue`"):
        command_file("#!/bin/sh\nexit 0\n", REQUEST)


def test_the_command_that_would_run():
    scheduler = LoadLevelerScheduler()
    assert scheduler.submission(REQUEST) == ["llsubmit", "/runs/faces/submitted/faces-0123-1.cmd"]
    reserved = replace(REQUEST, header=replace(HEADER, reservation="c1.7.r"))
    assert scheduler.submission(reserved)[:2] == ["env", "LL_RES_ID=c1.7.r"]


def test_the_id_is_found_among_the_words_of_a_submit_filter():
    text = 'Welcome\nllsubmit: Processed command file\nllsubmit: The job "s1.centre.example.417" has been submitted.\n'
    assert parse_submission(text) == "s1.centre.example.417"
    assert parse_submission("llsubmit: 2512-051 This job has not been submitted to LoadLeveler.") is None


@pytest.mark.parametrize(
    ("code", "said", "lost"),
    [
        (-9, "", True),
        (1, "llsubmit: the connection timed out", True),
        (1, "llsubmit: wall_clock_limit.\nllsubmit: 2512-051 This job has not been submitted to LoadLeveler.", False),
        (255, "llsubmit: 2539-463 Cannot connect to s1 on port 9605. errno = 111", False),
    ],
)
def test_whether_a_failed_submission_may_have_arrived(code: int, said: str, lost: bool):
    error = refusal(Answer(("llsubmit", "a.cmd"), code, "", said))
    assert isinstance(error, CommandTimeout if lost else CommandFailed)
    assert error.remedy is not None


def test_llq_may_leave_the_domain_out():
    assert short("s1.centre.example.417.0") == short("s1.417.0") == ("s1", "417", "0")
    text = """Step Id                  ST
------------------------ --
s1.417.0                 R
s1.417.1                 NQ

2 job step(s) in query, 0 waiting, 0 pending, 1 running, 1 held, 0 preempted
"""
    assert parse_states(text) == {("s1", "417", "0"): "R", ("s1", "417", "1"): "NQ"}
    assert parse_states("llq: There is currently no job status to report.\n") == {}


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("I NQ D P X XP V", JobState.QUEUED),
        ("H S HS", JobState.HELD),
        ("ST R E EP MP CK CP RP VP", JobState.RUNNING),
        ("C CA RM NR TX SX", JobState.ENDED),
        ("ZZ ?", JobState.UNKNOWN),
    ],
)
def test_every_state(words: str, state: JobState):
    assert {status_of("s1.1.0", word).state for word in words.split()} == {state}


LONG = """=============== Job Step s1.centre.example.417.1 ===============
        Job Step Id: s1.centre.example.417.1
           Job Name: faces-0123-1
          Queue Date: Tue Nov 24 01:00:00 JST 2026
             Status: Running
      Dispatch Time: Tue Nov 24 01:10:00 JST 2026
Wall Clk Hard Limit: 01:30:00 (5400 seconds)
    Number of Nodes: 2

=============== Job Step s1.centre.example.417.0 ===============
           Job Name: faces-0123-1
             Status: Completed
=============== Job Step s1.centre.example.418.0 ===============
           Job Name: faces-0123-10
             Status: Idle
"""


def test_a_job_is_found_by_its_whole_name():
    assert steps_of("faces-0123-1", LONG) == ["s1.centre.example.417.0", "s1.centre.example.417.1"]
    assert steps_of("faces-0123", LONG) == []


def test_how_long_a_step_waited():
    job = queue_job(dict(parse_long(LONG))["s1.centre.example.417.1"])
    assert job.started is not None
    assert job.queued is not None
    assert (job.started - job.queued, job.walltime_seconds, job.nodes, job.running) == (600, 5400, 2, True)


def test_free_slots_of_a_class():
    text = "Name         MaxJobCPU  MaxProcCPU  Free   Max Description\n"
    text += "parallel     undefined   undefined    12    64 for all\n"
    assert parse_free(text, "parallel") == 12
    assert parse_free(text, "para") is None


@given(st.text(), st.integers(-300, 300))
def test_no_answer_of_loadleveler_is_a_surprise(text: str, code: int):
    parse_submission(text)
    parse_free(text, "parallel")
    steps_of("a", text)
    for _, step in parse_long(LONG.replace("2026", text).replace("5400", text)):
        queue_job(step)
    for word in parse_states(text).values():
        status_of("s1.1.0", word)
    refusal(Answer(("llsubmit",), code, text, text))
    short(text)


class Desk:
    """A user at a LoadLeveler machine."""

    def __init__(self, double: LoadLevelerDouble, folder: Path) -> None:
        self.double = double
        self.folder = folder
        self.scheduler = get_scheduler("loadleveler")
        self.header = replace(
            HEADER,
            output=folder / "job.out",
            queue=None,
            nodes=1,
            ranks_per_node=1,
            cores_per_rank=1,
            memory_bytes=None,
        )

    def request(self, tag: str, body: str, **header: object) -> JobRequest:
        asked = replace(self.header, **header)  # type: ignore[arg-type]
        script = self.folder / f"{tag}.sh"
        script.write_text("\n".join(["#!/bin/sh", *self.scheduler.directives(asked), body, ""]))
        return JobRequest(tag, script, asked)

    def submit(self, tag: str, body: str, *, held: bool = False, steps: int = 1) -> list[str]:
        return self.scheduler.submit(replace(self.request(tag, body), held=held, steps=steps))

    def status(self, job: str) -> JobStatus:
        return self.scheduler.query([job])[job]

    def until(self, job: str, *states: JobState) -> JobStatus:
        end = time.monotonic() + PATIENCE_S
        while (status := self.status(job)).state not in states:
            assert time.monotonic() < end, status
            time.sleep(0.05)
        return status


@pytest.fixture(params=["/bin/sh", "/usr/bin/mksh"])
def desk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    banner = ["*** Welcome to the centre ***"]
    shell = request.param
    with LoadLevelerDouble(tmp_path / "ll", nodes=2, cores=4, kill_grace=0.5, shell=shell, banner=banner) as double:
        for name in ("PATH", "HOME"):
            monkeypatch.setenv(name, double.environment[name])
        (tmp_path / "my runs").mkdir()
        yield Desk(double, tmp_path / "my runs")


def test_a_job_runs_and_is_forgotten(desk: Desk):
    (step,) = desk.submit("faces-1", 'echo "early in $PWD"; exit 75')
    assert step == "sched1.cluster.example.1.0" or step.startswith("sched1.cluster.example.")
    desk.until(step, JobState.GONE)
    assert f"early in {desk.folder}" in (desk.folder / "job.out").read_text()
    assert (desk.folder / "submitted" / "faces-1.cmd").is_file()


def test_steps_end_when_the_training_does(desk: Desk):
    body = 'echo x >> turns; test "$(wc -l < turns)" -ge 2 || exit 75'
    steps = desk.submit("chain-1", body, steps=4)
    assert len(set(steps)) == 4
    for step in steps:
        desk.until(step, JobState.GONE, JobState.ENDED)
    assert (desk.folder / "turns").read_text() == "x\nx\n"


def test_a_cancelled_step_does_not_start_the_next(desk: Desk):
    steps = desk.submit("chain-2", "echo x >> turns; sleep 300", steps=3)
    desk.until(steps[0], JobState.RUNNING)
    assert desk.status(steps[1]).state is JobState.QUEUED
    desk.scheduler.cancel([*steps, "sched1.99.0"])
    for step in steps:
        desk.until(step, JobState.GONE, JobState.ENDED)
    assert (desk.folder / "turns").read_text() == "x\n"


def test_hold_and_release(desk: Desk):
    (step,) = desk.submit("held-1", "exit 0", held=True)
    assert desk.status(step).state is JobState.HELD
    desk.scheduler.release([step])
    desk.until(step, JobState.GONE)


def test_hold_a_waiting_step(desk: Desk):
    first = desk.scheduler.submit(desk.request("busy", "sleep 300", nodes=2, cores_per_rank=4))[0]
    desk.until(first, JobState.RUNNING)
    (step,) = desk.submit("next", "exit 0")
    desk.scheduler.hold([step])
    assert desk.status(step).state is JobState.HELD


@pytest.mark.parametrize("how", ["silent", "killed"])
def test_a_lost_answer_is_found_again_by_its_tag(desk: Desk, how: str):
    desk.double.fail(lose_answer=how)
    with pytest.raises(CommandTimeout):
        desk.submit("lost-1", "sleep 300", steps=2)
    desk.double.fail()
    steps = desk.scheduler.find("lost-1")
    assert len(steps) == 2
    assert desk.status(steps[0]).state in (JobState.QUEUED, JobState.RUNNING)
    assert desk.scheduler.find("lost") == []


def test_a_system_that_is_down_says_nothing_about_jobs(desk: Desk):
    (step,) = desk.submit("a", "exit 0")
    desk.double.fail(down=True)
    with pytest.raises(CommandError):
        desk.scheduler.query([step])
    with pytest.raises(CommandError):
        desk.scheduler.find("a")
    with pytest.raises(CommandFailed):
        desk.submit("b", "exit 0")


def test_refusals_come_with_a_remedy(desk: Desk):
    with pytest.raises(CommandFailed) as caught:
        desk.scheduler.submit(desk.request("a", "exit 0", queue="nowhere"))
    assert "job.queue" in str(caught.value.remedy)


def test_no_job_without_its_file(desk: Desk):
    request = desk.request("a", "exit 0")
    with pytest.raises(UserError, match="wait for another"):
        desk.scheduler.submit(replace(request, after=(Dependency("sched1.1.0", "afterok"),)))
    (desk.folder / "submitted").write_text("in the way")
    with pytest.raises(StorageError):
        desk.scheduler.submit(request)
    assert desk.double.jobs() == {}


def test_a_start_is_estimated_from_the_class(desk: Desk):
    request = desk.request("next", "exit 0", queue="parallel")
    estimate = desk.scheduler.estimate_start(request)
    assert "free slots, and nobody waits" in estimate.how
    busy = desk.request("busy", "sleep 300", queue="parallel", nodes=2, ranks_per_node=4)
    desk.scheduler.submit(busy)
    estimate = desk.scheduler.estimate_start(request)
    assert estimate.how == "wait of the last job"
    assert estimate.start is not None


def test_the_command_file_is_a_script_for_any_shell(desk: Desk):
    desk.submit("plain", "exit 0", steps=3)
    file = desk.folder / "submitted" / "plain.cmd"
    for shell in ("dash", "mksh"):
        assert subprocess.run([shell, "-n", str(file)], check=False).returncode == 0
