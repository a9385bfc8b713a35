"""The Slurm adapter without a Slurm: what it writes into scripts and commands, and how it reads every answer."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlhpc.errors import CommandError, ErrorList, StorageError, UserError
from dlhpc.process import CommandFailed, CommandMissing, CommandTimeout
from dlhpc.schedulers import slurm
from dlhpc.schedulers.base import Dependency, Header, JobCancelled, JobRequest, JobState, JobStatus, get_scheduler
from dlhpc.schedulers.directives import compressed
from dlhpc.schedulers.slurm import SlurmScheduler
from dlhpc.schedulers.slurm_commands import asking_environment, submitting_environment
from dlhpc.schedulers.slurm_directives import directives, time_limit
from dlhpc.schedulers.slurm_parse import (
    SEPARATOR,
    STATES,
    Table,
    exit_code_of,
    parse_accounting,
    parse_job_id,
    parse_names,
    parse_queue,
    parse_start,
    parse_submit,
    parse_time,
    state_of,
)

PLAIN = Header(
    name="faces",
    output=Path("/runs/faces-1/job.log"),
    queue=None,
    nodes=2,
    ranks_per_node=4,
    cores_per_rank=8,
    gpus_per_node=4,
    memory_bytes=None,
    walltime_seconds=3600,
    warning_seconds=120,
    mail_on=("end", "fail"),
)
REQUEST = JobRequest("faces-0123456789abcdef-1", Path("/runs/faces-1/job.sh"), PLAIN)


def words(**changes: object) -> list[str]:
    lines = directives(replace(PLAIN, **changes))  # type: ignore[arg-type]
    assert all(line.startswith("#SBATCH -") for line in lines)
    return [line.removeprefix("#SBATCH ") for line in lines]


def line(*fields: str) -> str:
    return SEPARATOR.join(fields) + "\n"


def look(queue: str, job_id: str) -> tuple[JobState, str | None] | None:
    table = Table()
    table.add(parse_queue(queue))
    known = parse_job_id(job_id)
    assert known is not None
    entry = table.look(known)
    return None if entry is None else (entry.state, entry.reason)


# the head of a script ------------------------------------------------------------------------------------------------


def test_a_plain_job_asks_for_just_what_it_needs() -> None:
    assert words() == [
        "--job-name=faces",
        "--output=/runs/faces-1/job.log",
        "--open-mode=append",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=8",
        "--gres=gpu:4",
        "--time=01:00:00",
        "--signal=B:USR2@120",
        "--requeue",
        "--kill-on-invalid-dep=yes",
    ]


def test_everything_that_can_be_asked_is_asked() -> None:
    asked = words(
        queue="gpu",
        memory_bytes=64 * 2**30,
        account="materials",
        mail="mori@example.org",
        mail_on=("begin", "end", "fail"),
        exclusive=True,
        reservation="course",
        qos="short",
        array=tuple(range(10)),
        array_running=3,
        gpu_resource="gpu:a100",
        extra=("--constraint=nvlink", '--comment="it is # 1"', "-w node1"),
    )
    for word in (
        *("--partition=gpu", "--mem=65536M", "--account=materials", "--mail-user=mori@example.org", "--exclusive"),
        *("--mail-type=BEGIN,END,FAIL", "--reservation=course", "--qos=short", "--array=0-9%3", "--gres=gpu:a100:4"),
        *("--output=/runs/faces-1/job-%a.log", "--constraint=nvlink", '--comment="it is # 1"', "-w node1"),
    ):
        assert word in asked


def test_a_job_without_gpus_names_none() -> None:
    assert not [word for word in words(gpus_per_node=0) if word.startswith("--gres")]


def test_nothing_of_the_environment_is_exported_by_a_directive() -> None:
    assert "--export" not in " ".join(words())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(30, "00:00:30"), (90, "00:01:30"), (3600, "01:00:00"), (86399, "23:59:59"), (90061, "1-01:01:01")],
)
def test_walltimes(seconds: int, text: str) -> None:
    assert time_limit(seconds) == text


def test_the_warning_comes_when_the_walltime_says_not_when_slurms_rounded_one_does() -> None:
    assert "--signal=B:USR2@39" in words(walltime_seconds=90, warning_seconds=9)  # Slurm makes 120 s of it
    assert not [word for word in words(warning_seconds=0) if "signal" in word]


def test_memory_is_never_rounded_up_beyond_what_a_node_has() -> None:
    assert "--mem=15258M" in words(memory_bytes=16 * 10**9)


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ((0,), "0"),
        ((3, 4), "3-4"),
        (range(1000), "0-999"),
        (range(0, 9, 2), "0-8:2"),
        ((0, 1, 2, 5, 8, 11, 40), "0-2,5-11:3,40"),
        ((1, 5), "1,5"),
    ],
)
def test_task_numbers_are_written_shortly(indices: tuple[int, ...], text: str) -> None:
    assert compressed(indices, steps=True) == text


@given(st.sets(st.integers(0, 5000), min_size=1, max_size=200), st.booleans())
def test_task_numbers_are_all_there(indices: set[int], steps: bool) -> None:
    text = compressed(sorted(indices), steps=steps)
    assert steps or ":" not in text
    found: list[int] = []
    for part in text.split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        found += range(int(first), int(last or first) + 1, int(step or 1))
    assert found == sorted(indices)


def test_an_array_that_slurm_would_refuse_as_too_long_is_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match="characters") as refused:
        words(array=tuple(number * number for number in range(1000)))
    assert "several parts" in str(refused.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/runs/my faces/job.log", '"/runs/my faces/job.log"'),
        ('/runs/"x"/job.log', r'"/runs/\"x\"/job.log"'),
        ("/runs/it's/job.log", '"/runs/it\'s/job.log"'),
        ("/runs/50%/%j.log", "/runs/50%%/%%j.log"),
        ("/runs/a #b/$(x)`y`.log", '"/runs/a #b/$(x)`y`.log"'),
        ("/runs/顔/job.log", '"/runs/顔/job.log"'),
    ],
)
def test_paths_reach_slurm_as_they_are(path: str, value: str) -> None:
    assert f"--output={value}" in words(output=Path(path))


@pytest.mark.parametrize("path", ["/runs/a\\b/job.log", "/runs/a\nb/job.log", "/runs/\udc80/job.log", "/runs/\x07.log"])
def test_paths_that_slurm_cannot_say_are_refused_in_a_sentence(path: str) -> None:
    with pytest.raises(UserError):
        words(output=Path(path))


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ("--time=5", "job.walltime"),
        ("-t 5", "job.walltime"),
        ("-t5", "job.walltime"),
        ("--tim=5", "job.walltime"),
        ("--nodes 3", "job.nodes"),
        ("-N3", "job.nodes"),
        ("-kN3", "job.nodes"),
        ("--constraint=a100 --mem=5G", "job.memory"),
        ("--gpus-per-node=1", "job.gpus_per_rank"),
        ("-p gpu", "job.queue"),
        ("--dependency=afterok:5", "job.after"),
        ("--array=0-5", "sweep"),
        ("--mail-type=ALL", "job.mail_on"),
        ("--export=NONE", "Leave it out"),
        ("--clusters=other", "Leave it out"),
        ("'--time'=5", "job.walltime"),
    ],
)
def test_a_directive_that_dlhpc_sets_itself_is_refused_with_the_key_to_use(extra: str, key: str) -> None:
    with pytest.raises(UserError) as refused:
        words(extra=(extra,))
    assert extra in refused.value.what
    assert key in str(refused.value)


@pytest.mark.parametrize(
    "extra",
    [
        "--comment=a#b",
        '--comment="a',
        "hetjob",
        "#SBATCH --nice",
        "--comment=a\n#SBATCH --uid=0",
        "",
        "--comment=a\\ b",
    ],
)
def test_a_directive_that_sbatch_would_read_otherwise_is_refused(extra: str) -> None:
    with pytest.raises(UserError):
        words(extra=(extra,))


def test_all_bad_directives_are_told_at_once() -> None:
    with pytest.raises(ErrorList) as refused:
        words(extra=("--time=5", "-C a100", "-N 3"))
    assert len(refused.value.errors) == 2


@pytest.mark.parametrize("field", ["queue", "account", "reservation", "qos", "mail", "gpu_resource", "name"])
@pytest.mark.parametrize("value", ["a b", "a\n#SBATCH --uid=0", "$(x)", "-x", "a;b", "顔"])
def test_no_word_of_a_user_escapes_from_its_directive(field: str, value: str) -> None:
    with pytest.raises(UserError):
        words(**{field: value})


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_is_asked_each_directive_is_one_line(path: str, extra: str) -> None:
    try:
        lines = directives(replace(PLAIN, output=Path("/runs", path), extra=(extra,)))
    except UserError:
        return
    assert all(re.fullmatch(r"#SBATCH -[^\n\r\x00]+", line) for line in lines)


# submission ----------------------------------------------------------------------------------------------------------


def test_the_command_that_submits() -> None:
    assert SlurmScheduler().submission(REQUEST) == [
        *("sbatch", "--parsable", "--job-name=faces-0123456789abcdef-1", "/runs/faces-1/job.sh")
    ]
    after = (Dependency("1", "afterok"), Dependency("2;west", "afterok"), Dependency("3_4", "afternotok"))
    assert SlurmScheduler().submission(replace(REQUEST, after=after, held=True))[3:5] == [
        "--dependency=afterok:1:2,afternotok:3_4",
        "--hold",
    ]


@pytest.mark.parametrize("tag", ["", "a b", "a,b", "-a", "a\n", "顔", "a" * 201])
def test_a_tag_that_could_not_be_found_again_is_refused(tag: str) -> None:
    with pytest.raises(UserError):
        SlurmScheduler().submission(replace(REQUEST, tag=tag))


@pytest.mark.parametrize(
    "dependency", [Dependency("1", "after"), Dependency("1:2", "afterok"), Dependency("", "afterok")]
)
def test_a_dependency_that_slurm_does_not_know_is_refused(dependency: Dependency) -> None:
    with pytest.raises(UserError):
        SlurmScheduler().submission(replace(REQUEST, after=(dependency,)))


@pytest.mark.parametrize(
    ("out", "job_id"),
    [
        ("123\n", "123"),
        ("123;west\n", "123;west"),
        ("== Welcome to the 2 clusters ==\nYour project has 400 hours\n123\n", "123"),
        ("Submitted batch job 123\n", "123"),
        ("Submitted batch job 123 on cluster west\n", "123;west"),
        ("", None),
        ("no\n", None),
    ],
)
def test_the_new_jobs_id_is_found(out: str, job_id: str | None) -> None:
    assert parse_submit(out) == job_id


def test_variables_of_the_callers_session_do_not_change_what_is_submitted_or_asked() -> None:
    session = {
        *("PATH", "SLURM_CONF", "SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"),
        *("SQUEUE_FORMAT", "SACCT_FORMAT", "SCANCEL_STATE", "SLURM_CLUSTERS"),
    }
    environment = dict.fromkeys(session, "x")
    submitting = submitting_environment(environment)
    assert {"PATH", "SLURM_CONF", "SLURM_CLUSTERS"} <= set(submitting)
    assert not [name for name in submitting if name.startswith(("SBATCH_", "SLURM_ARRAY", "SLURM_RESTART"))]
    asking = asking_environment(environment)
    assert not [name for name in asking if name.startswith(("SQUEUE_", "SACCT_", "SCANCEL_"))]
    assert asking["SLURM_TIME_FORMAT"] == "%s"


# states --------------------------------------------------------------------------------------------------------------


def test_every_documented_state_is_known_in_both_forms() -> None:
    for short, (long, state) in STATES.items():
        assert state_of(short)[0] is state
        assert state_of(long)[0] is state
    assert len(STATES) == 24


@pytest.mark.parametrize(
    ("word", "reason", "state", "told"),
    [
        ("RUNNING", "None", JobState.RUNNING, None),
        ("PENDING", "Priority", JobState.QUEUED, "Priority"),
        ("PENDING", "JobHeldUser", JobState.HELD, "JobHeldUser"),
        ("PENDING", "JobHeldAdmin", JobState.HELD, "JobHeldAdmin"),
        ("RUNNING", "JobHeldAdmin", JobState.RUNNING, None),
        ("PENDING", "DependencyNeverSatisfied", JobState.QUEUED, "DependencyNeverSatisfied"),
        ("CANCELLED", "DependencyNeverSatisfied", JobState.ENDED, "CANCELLED: DependencyNeverSatisfied"),
        ("CANCELLED by 1000", "", JobState.ENDED, "CANCELLED by 1000"),
        ("CANCELLED+", "", JobState.ENDED, "CANCELLED+"),
        ("OUT_OF_ME+", "", JobState.ENDED, "OUT_OF_ME+"),
        ("TIMEOUT", "TimeLimit", JobState.ENDED, "TIMEOUT: TimeLimit"),
        ("COMPLETED", "None", JobState.ENDED, None),
        ("SUSPENDED", "None", JobState.RUNNING, "SUSPENDED"),
        ("SINGING", "None", JobState.UNKNOWN, "Slurm calls its state `SINGING`"),
        ("", "", JobState.UNKNOWN, "Slurm names no state"),
    ],
)
def test_states(word: str, reason: str, state: JobState, told: str | None) -> None:
    assert state_of(word, reason) == (state, told)


@pytest.mark.parametrize(
    ("word", "code", "number"),
    [
        ("COMPLETED", "0:0", 0),
        ("FAILED", "75:0", 75),
        ("FAILED", "0:9", 137),
        ("CANCELLED by 0", "0:15", 143),
        ("TIMEOUT", "0:0", None),
        ("NODE_FAIL", "0:0", None),
        ("OUT_OF_MEMORY", "0:125", None),
        ("FAILED", "", None),
        ("FAILED", "x:y", None),
    ],
)
def test_exit_codes(word: str, code: str, number: int | None) -> None:
    assert exit_code_of(word, code) == number


# answers -------------------------------------------------------------------------------------------------------------

QUEUE = (
    line("9", "PENDING", "JobHeldUser", "N/A", "N/A")
    + line("8", "RUNNING", "None", "1795482449", "1795483049")
    + line("7", "COMPLETED", "None", "1795482449", "1795482453")
    + line("6", "FAILED", "NonZeroExitCode", "1795482449", "1795482450")
    + line("5_[4-5,8,11-17:3%2]", "PENDING", "JobArrayTaskLimit", "N/A", "N/A")
    + line("5_3", "RUNNING", "None", "1795482453", "1795483053")
    + line("12+0", "RUNNING", "None", "1795482453", "1795483053")
)


def test_one_answer_of_squeue_is_read_for_jobs_arrays_and_tasks() -> None:
    assert look(QUEUE, "9") == (JobState.HELD, "JobHeldUser")
    assert look(QUEUE, "8") == (JobState.RUNNING, None)
    assert look(QUEUE, "5_3") == (JobState.RUNNING, None)
    assert look(QUEUE, "12") == (JobState.RUNNING, None)
    for waiting in (4, 5, 8, 11, 14, 17):
        assert look(QUEUE, f"5_{waiting}") == (JobState.QUEUED, "JobArrayTaskLimit")
    for over in (0, 6, 12, 18):
        assert look(QUEUE, f"5_{over}") is None
    assert look(QUEUE, "5") == (JobState.RUNNING, None)
    assert look(QUEUE, "1") is None


def test_times_and_codes_are_those_of_what_has_happened() -> None:
    by_id = {entry.job: entry.status(entry.job) for entry in parse_queue(QUEUE)}
    assert by_id["8"] == JobStatus("8", JobState.RUNNING, started=1795482449.0)
    assert by_id["7"] == JobStatus("7", JobState.ENDED, 0, None, 1795482449.0, 1795482453.0)
    assert by_id["6"].exit_code is None  # squeue does not tell it


def test_a_list_of_tasks_that_was_cut_makes_no_task_gone() -> None:
    queue = line("5_[1,3,5,...]", "PENDING", "Priority", "N/A", "N/A")
    assert look(queue, "5_3") == (JobState.QUEUED, "Priority")
    assert look(queue, "5_2") is None
    assert look(queue, "5_999") == (JobState.QUEUED, "Priority")


def test_accounting_tells_how_jobs_ended() -> None:
    out = line("7", "FAILED", "75:0", "1795482449", "1795482450") + line(
        "8_2", "CANCELLED by 0", "0:15", "None", "Unknown"
    )
    seven, eight = parse_accounting(out)
    assert seven.status("7") == JobStatus("7", JobState.ENDED, 75, "FAILED", 1795482449.0, 1795482450.0)
    assert (eight.job, eight.task, eight.exit_code, eight.started) == ("8", 2, 143, None)


def test_a_job_is_found_by_its_whole_name_and_an_array_once() -> None:
    out = line("5_[0-9]", "faces-1") + line("5_10", "faces-1") + line("7", "faces-12") + line("8", "a|b\x1ffaces-1")
    assert parse_names(out, "faces-1") == ["5"]


def test_times_are_read_in_seconds_or_local_time() -> None:
    assert parse_time("1795482449") == 1795482449.0
    assert parse_time("2026-11-24T01:00:00") == time.mktime((2026, 11, 24, 1, 0, 0, 0, 0, -1))
    assert [parse_time(word) for word in ("N/A", "Unknown", "None", "", "0", "2026-99-99T01:00:00")] == [None] * 6
    assert parse_start("sbatch: Job 1 to start at 1795482449 using 1 processors on nodes gpu1") == 1795482449.0
    assert parse_start("nothing") is None


FIELD = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["5_[0-3", "5_[", "5_[3-1:0%x]", "1_2", "0" * 30, "CANCELLED by", "9" * 30, "1:", "-1:999999999999"]
    ),
)


@given(st.lists(st.lists(FIELD, min_size=1, max_size=6).map(SEPARATOR.join), max_size=6).map("\n".join), FIELD)
def test_whatever_the_commands_print_is_no_reason_to_fall_over(out: str, word: str) -> None:
    table = Table()
    table.add(parse_queue(out))
    table.add(parse_accounting(out))
    for asked in ("5", "5_2", "1_2"):
        known = parse_job_id(asked)
        assert known is not None
        table.look(known)
    parse_submit(out), parse_names(out, word), parse_start(out), parse_time(word), parse_job_id(word)
    state_of(word, out), exit_code_of(out, word)


# the thin class, with programs that answer as Slurm does ------------------------------------------------------------


class Programs:
    """Folder on PATH with programs that note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"

    def add(self, name: str, body: str) -> None:
        program = self.folder / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> "{self.calls}"\n{body}\n')
        program.chmod(0o755)

    def called(self) -> list[str]:
        return [call.split()[0] for call in self.calls.read_text().splitlines()] if self.calls.exists() else []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))  # also where a real Slurm is installed
    monkeypatch.delenv("SLURM_CLUSTERS", raising=False)
    return Programs(folder)


@pytest.mark.parametrize(
    "body",
    [
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
        "echo 'sbatch: error: ... Unable to contact slurm controller (connect failure)' >&2; exit 1",
        "kill -9 $$",
        "exit 143",
        "exit 0",
        "echo 'something else'",
    ],
)
def test_a_submission_without_a_clear_answer_may_have_arrived(programs: Programs, body: str) -> None:
    programs.add("sbatch", body)
    with pytest.raises(CommandTimeout):
        SlurmScheduler().submit(REQUEST)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Invalid partition name specified", "job.queue"),
        ("Invalid account or account/partition combination specified", "job.account"),
        ("Invalid qos specification", "job.qos"),
        ("Requested node configuration is not available", "fewer nodes"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "job.walltime"),
        ("Memory specification can not be satisfied", "job.memory"),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", "Wait until"),
        ("Invalid feature specification", "job.directives"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do(programs: Programs, said: str, remedy: str) -> None:
    programs.add("sbatch", f'echo "sbatch: error: Batch job submission failed: {said}" >&2; exit 1')
    with pytest.raises(CommandFailed) as refused:
        SlurmScheduler().submit(REQUEST)
    assert said in refused.value.what
    assert remedy in str(refused.value)


def test_options_that_sbatch_does_not_know_were_not_submitted(programs: Programs) -> None:
    programs.add("sbatch", "echo \"sbatch: unrecognized option '--foo'\" >&2; exit 255")
    with pytest.raises(CommandFailed, match="unrecognized"):
        SlurmScheduler().submit(REQUEST)


@pytest.mark.parametrize(
    ("state", "reason", "end", "cancelled"),
    [
        ("COMPLETING", "None", "1500", True),
        ("COMPLETING", "TimeLimit", "1600", False),
        ("COMPLETING", "None", "99999999999", False),  # the staff or Slurm has requeued it
        ("COMPLETING", "None", "N/A", False),
        ("RUNNING", "None", "1600", False),
    ],
)
def test_only_a_job_that_somebody_cancelled_is_not_requeued(
    programs: Programs, state: str, reason: str, end: str, cancelled: bool
) -> None:
    programs.add("squeue", f"printf '%s\\n' '{SEPARATOR.join((state, reason, '1000', end))}'")
    programs.add("scontrol", "exit 0")
    with pytest.raises(JobCancelled, match="7_1 was cancelled") if cancelled else contextlib.nullcontext():
        SlurmScheduler().requeue("7_1")
    assert programs.called() == (["squeue"] if cancelled else ["squeue", "scontrol"])


def test_a_job_that_waits_again_already_is_requeued(programs: Programs) -> None:
    programs.add("squeue", "exit 1")
    programs.add("scontrol", "echo 'Job is pending execution for job 7' >&2; exit 1")
    SlurmScheduler().requeue("7")


def test_a_requeue_without_a_clear_answer_may_have_been_heard(programs: Programs) -> None:
    programs.add("squeue", "exit 1")
    programs.add("scontrol", "echo 'Socket timed out on send/recv operation for job 7' >&2; exit 1")
    with pytest.raises(CommandTimeout):
        SlurmScheduler().requeue("7")
    programs.add("scontrol", "echo 'Access/permission denied for job 7' >&2; exit 1")
    with pytest.raises(CommandFailed):
        SlurmScheduler().requeue("7")


def test_a_thousand_jobs_are_one_question(programs: Programs) -> None:
    rows = "".join(line(str(number), "PENDING", "Priority", "N/A", "N/A") for number in range(1, 1001))
    (programs.folder / "rows").write_text(rows)
    programs.add("squeue", f'/bin/cat "{programs.folder}/rows"')
    answer = SlurmScheduler().query([str(number) for number in range(1, 1001)])
    assert {status.state for status in answer.values()} == {JobState.QUEUED}
    assert programs.called() == ["squeue"]


def test_jobs_that_the_queue_has_forgotten_are_one_question_to_accounting(programs: Programs) -> None:
    programs.add("squeue", f"printf '{line('1', 'RUNNING', 'None', '1795482449', 'N/A')}'")
    programs.add("sacct", f"printf '{line('2', 'FAILED', '65:0', '1795482449', '1795482450')}'")
    answer = SlurmScheduler().query(["1", "2", "3", "4_7", "moon"])
    assert answer["2"].exit_code == 65
    states = [answer[job_id].state for job_id in ("1", "2", "3", "4_7", "moon")]
    assert states == [JobState.RUNNING, JobState.ENDED, JobState.GONE, JobState.GONE, JobState.GONE]
    assert programs.called() == ["squeue", "squeue", "sacct"]
    assert "--jobs=3,4" not in programs.calls.read_text().splitlines()[0]


def test_what_accounting_still_takes_for_running_is_gone_when_the_queue_does_not_know_it(programs: Programs) -> None:
    programs.add("squeue", "")
    programs.add("sacct", f"printf '{line('2', 'RUNNING', '0:0', '1795482449', 'Unknown')}'")
    assert SlurmScheduler().query(["2"])["2"].state is JobState.GONE


@pytest.mark.parametrize("said", ["Slurm accounting storage is disabled", None])
def test_a_slurm_without_accounting_is_not_asked_for_it_twice(programs: Programs, said: str | None) -> None:
    programs.add(
        "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; case $* in *--jobs=*) exit 1;; esac"
    )
    if said is not None:
        programs.add("sacct", f"echo '{said}' >&2; exit 1")
    scheduler = SlurmScheduler()
    for _ in range(2):
        assert scheduler.query(["2"])["2"].state is JobState.GONE
    assert programs.called().count("sacct") == (0 if said is None else 1)
    assert scheduler.find("faces-1") == []


def test_a_database_that_is_down_loses_no_submission(programs: Programs) -> None:
    programs.add("squeue", "")
    programs.add("sacct", "echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1")
    with pytest.raises(CommandError):
        SlurmScheduler().find("faces-1")
    (status,) = SlurmScheduler().query(["2"]).values()
    assert (status.state, "database" in (status.reason or "")) == (JobState.GONE, True)


def test_a_queue_that_does_not_answer_says_nothing_about_jobs(programs: Programs) -> None:
    programs.add("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(CommandError):
        SlurmScheduler().query(["1"])
    with pytest.raises(CommandError):
        SlurmScheduler().find("faces-1")


def test_a_machine_without_slurm_is_told_in_a_sentence(programs: Programs) -> None:
    with pytest.raises(CommandMissing, match="squeue"):
        SlurmScheduler().query(["1"])
    with pytest.raises(CommandMissing, match="sbatch"):
        SlurmScheduler().submit(REQUEST)


def test_many_jobs_are_cancelled_at_once_and_the_tasks_of_an_array_together(programs: Programs) -> None:
    programs.add("scancel", "echo 'scancel: error: Kill job error on job id 3: Invalid job id specified' >&2; exit 1")
    SlurmScheduler().cancel(["9", "5_1", "5_2", "5_3", "5_7", "3", "7;west", "moon"])
    SlurmScheduler().cancel([])
    assert programs.calls.read_text().splitlines() == ["scancel 9 5_[1-3,7] 3", "scancel --clusters=west 7"]


def test_a_job_that_could_not_be_cancelled_is_told(programs: Programs) -> None:
    programs.add("scancel", "echo 'scancel: error: Kill job error on job id 3: Access/permission denied' >&2; exit 1")
    with pytest.raises(CommandFailed, match="permission"):
        SlurmScheduler().cancel(["3"])


def test_on_a_machine_with_several_clusters_ids_say_which(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", "east,west")
    programs.add("squeue", f"case $* in *west*) printf '{line('5_[0-3]', 'faces-1')}';; esac")
    assert SlurmScheduler().find("faces-1") == ["5;west"]
    assert SlurmScheduler().member_ids("5;west", [0, 3]) == ["5_0;west", "5_3;west"]


@given(
    st.text(max_size=60), st.integers(0, 255), st.sampled_from(["query", "find", "submit", "cancel", "estimate_start"])
)
def test_nothing_but_our_errors_comes_out_whatever_the_programs_say(said: str, code: int, what: str) -> None:
    from dlhpc.process import Answer

    def ask(argv: list[str], **_: object) -> Answer:
        return Answer(tuple(argv), code, said, said)

    def demand(argv: list[str], **_: object) -> Answer:
        if code:
            raise CommandFailed(ask(argv))
        return ask(argv)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm, "ask", ask)
        patch.setattr(slurm, "demand", demand)
        argument = {"query": ["1", "2_3"], "find": "t", "cancel": ["1"]}.get(what, REQUEST)
        with contextlib.suppress(CommandError, StorageError, UserError):
            getattr(SlurmScheduler(), what)(argument)


def test_the_adapter_is_found_by_its_name() -> None:
    assert isinstance(get_scheduler("slurm"), SlurmScheduler)
    abilities = get_scheduler("slurm").abilities
    assert (abilities.arrays, abilities.dependencies, abilities.requeue, abilities.hold, abilities.steps) == (
        *(True, True, True, True),
        False,
    )
