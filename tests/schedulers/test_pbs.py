"""PBS as its users meet it: the lines of a script and the call of qsub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlhpc.errors import UserError
from dlhpc.process import Answer, CommandFailed, CommandTimeout
from dlhpc.schedulers.base import Dependency, Header, JobRequest
from dlhpc.schedulers.pbs import refusal, submit_command
from dlhpc.schedulers.pbs_directives import directives, indices, job_name
from dlhpc.schedulers.pbs_parse import (
    parse_submission,
)
from tests.schedulers.pbs_headers import HEADER

REQUEST = JobRequest("faces-0123456789abcdef-1", Path("/runs/faces/job.sh"), HEADER)
PLAIN = replace(HEADER, gpus_per_node=0)


def one_sentence(header: Header, dialect: str = "select") -> str:
    with pytest.raises(UserError) as caught:
        directives(header, dialect)
    return str(caught.value)


def test_two_nodes_with_four_gpus_each():
    assert directives(HEADER, "select") == [
        "#PBS -N faces",
        "#PBS -o /home/you/runs/faces/logs/job.out",
        "#PBS -j oe",
        "#PBS -k oed",
        "#PBS -l walltime=01:30:00",
        "#PBS -l select=2:ncpus=8:mpiprocs=4:ompthreads=2:ngpus=4:mem=65536mb",
        "#PBS -l place=scatter",
        "#PBS -q gpu",
        "#PBS -r y",
    ]


def test_the_same_job_for_torque():
    lines = directives(HEADER, "torque")
    assert "#PBS -l nodes=2:ppn=8:gpus=4" in lines
    assert "#PBS -l mem=131072mb" in lines  # of the whole job
    assert "#PBS -S /bin/sh" in lines
    assert not any("select" in line or "-k" in line.split() for line in lines)


def test_a_site_without_select_asks_for_the_totals_of_the_job():
    lines = directives(HEADER, "totals")
    assert [line for line in lines if "-l" in line] == [
        "#PBS -l walltime=01:30:00",
        "#PBS -l ncpus=16",
        "#PBS -l ngpus=8",
        "#PBS -l mem=131072mb",
    ]


def test_nodes_and_ppn():
    assert "#PBS -l nodes=2:ppn=8" in directives(PLAIN, "nodes")
    assert "no GPUs together with `nodes=" in one_sentence(HEADER, "nodes")


@pytest.mark.parametrize(
    ("dialect", "line"),
    [("select", "#PBS -l place=scatter:excl"), ("torque", "#PBS -l naccesspolicy=singlejob")],
)
def test_nodes_of_ones_own(dialect: str, line: str):
    assert line in directives(replace(HEADER, exclusive=True), dialect)


@pytest.mark.parametrize("dialect", ["nodes", "totals"])
def test_nodes_of_ones_own_cannot_be_said_in_every_dialect(dialect: str):
    assert "one job alone" in one_sentence(replace(PLAIN, exclusive=True), dialect)


def test_account_and_mail():
    header = replace(HEADER, account="p-42", mail="you@centre.example", mail_on=("begin", "fail", "end"))
    lines = directives(header, "select")
    assert {"#PBS -A p-42", "#PBS -M you@centre.example", "#PBS -m abe"} <= set(lines)


def test_a_reservation_of_pbs_is_a_queue_and_the_other_one_is_not_dropped_silently():
    lines = directives(replace(HEADER, reservation="R123.server"), "select")
    assert "#PBS -q R123" in lines
    assert "#PBS -q gpu" not in lines
    assert any(line.startswith("# ") and "R123" in line and "gpu" in line for line in lines)
    torque = directives(replace(HEADER, reservation="course.1"), "torque")
    assert {"#PBS -q gpu", "#PBS -W x=FLAGS:ADVRES:course.1"} <= set(torque)


def test_quality_of_service():
    assert "PBS has no quality of service" in one_sentence(replace(HEADER, qos="high"))
    assert "#PBS -l qos=high" in directives(replace(HEADER, qos="high"), "torque")


def test_a_site_that_calls_gpus_otherwise():
    lines = directives(replace(HEADER, gpu_resource="ngpus_a100"), "select")
    assert any(":ngpus_a100=4:" in line for line in lines)
    assert "`gpu:a100` is no name of a PBS resource" in one_sentence(replace(HEADER, gpu_resource="gpu:a100"))


@pytest.mark.parametrize(
    ("tasks", "dialect", "said"),
    [
        (range(10), "select", "0-9"),
        (range(3, 12, 4), "select", "3-11:4"),
        ((0, 1), "nodes", "0-1"),
        ((0, 1, 2, 7), "torque", "0-2,7"),
        ((5,), "torque", "5"),
    ],
)
def test_arrays(tasks: range | tuple[int, ...], dialect: str, said: str):
    assert indices(tuple(tasks), dialect) == said


def test_an_array_limits_how_many_run_and_keeps_its_outputs_apart():
    lines = directives(replace(HEADER, array=tuple(range(100)), array_running=8), "select")
    assert "#PBS -J 0-99%8" in lines
    assert "#PBS -o /home/you/runs/faces/logs/job-^array_index^.out" in lines


@pytest.mark.parametrize("tasks", [(3,), (0, 1, 3)])
def test_arrays_that_pbs_cannot_have(tasks: tuple[int, ...]):
    assert "an array of PBS has" in one_sentence(replace(HEADER, array=tasks))


@pytest.mark.parametrize(
    "path", ["/runs/$(id)/o", "/runs/写真/o", '/runs/a"b/o', "/runs/a\nb/o", "/runs/a;b/o", "/runs/^array_index^/o"]
)
def test_an_output_path_that_pbs_would_not_take(path: str):
    assert "cannot be given to PBS" in one_sentence(replace(HEADER, output=Path(path)))


def test_a_blank_in_the_output_path_is_quoted():
    header = replace(HEADER, output=Path("/my runs/job.out"))
    assert '#PBS -o "/my runs/job.out"' in directives(header, "select")
    assert "cannot be given" in one_sentence(header, "torque")


def test_job_names():
    assert job_name("faces of a/b: 5", "select") == "faces_of_a_b__5"
    assert job_name("5faces", "torque") == "j5faces"
    assert len(job_name("x" * 500, "select")) == 230


@pytest.mark.parametrize(
    ("extra", "instead"),
    [
        ("-l walltime=9:00:00", "job.walltime"),
        ("-lselect=1:ncpus=1", "job.nodes"),
        ("-l software=abc,mem=3gb", "job.memory"),
        ("-N other", "`name`"),
        ("-q other", "job.queue"),
        ("-W depend=afterok:1", "job.after"),
        ("-W x=QOS:high", "job.qos"),
        ("-h", "job.hold"),
        ("-l place=excl", "job.exclusive"),
        ("-P a -A b", "job.account"),
        ("-o /tmp/x", "run's folder"),
        ("-S /bin/csh", "/bin/sh"),
        ("-l software=abc # for Anna", "no comment"),
        ("#PBS -l software=abc", "#PBS"),
        ("software=abc", "no option"),
        ('-l software="abc', "quote"),
        ("-l software=abc\\", "backslash"),
        ("-v A='1,2'", "launcher.environment"),
        ("-Q x", "no option -Q"),
        ("-l", "lacks its value"),
        ("", "empty"),
    ],
)
def test_directives_that_would_be_dropped_or_do_harm_are_refused(extra: str, instead: str):
    assert instead in one_sentence(replace(HEADER, extra=(extra,)))


def test_directives_of_ones_own_come_last():
    extra = ("-l software=abc", "-P chemistry", "-W umask=027", "-v A=1,B", "-l min_walltime=100")
    assert directives(replace(HEADER, extra=extra), "select")[-5:] == [f"#PBS {text}" for text in extra]


def test_a_directive_given_twice_is_refused():
    assert "given twice" in one_sentence(replace(HEADER, extra=("-l software=a", "-l software=b")))


def test_all_that_is_wrong_is_said_at_once():
    text = one_sentence(replace(HEADER, qos="high", exclusive=True, extra=("-N x", "-q y")), "totals")
    assert len([line for line in text.splitlines() if "→" in line]) == 4


words = st.text(max_size=20)


@given(
    name=words,
    output=words,
    queue=words,
    account=words,
    extra=st.lists(words, max_size=2),
    reservation=st.none() | words,
    dialect=st.sampled_from(["select", "nodes", "totals", "torque"]),
)
def test_no_text_of_a_user_escapes_from_its_directive(
    name: str, output: str, queue: str, account: str, extra: list[str], reservation: str | None, dialect: str
):
    header = replace(
        PLAIN,
        name=name,
        output=Path("/", output.replace("\0", "") or "x", "job.out"),
        queue=queue,
        account=account,
        reservation=reservation,
        extra=tuple(extra),
    )
    try:
        lines = directives(header, dialect)
    except UserError:
        return
    assert all(line.isprintable() and line.isascii() and line.startswith("#") for line in lines)
    assert all("$" not in line and "`" not in line for line in lines[: len(lines) - len(extra)])


def test_the_tag_travels_as_the_name():
    assert submit_command(REQUEST, "select") == ["qsub", "-N", REQUEST.tag, "/runs/faces/job.sh"]


def test_dependencies_and_hold():
    after = (
        Dependency("12.server", "afterok"),
        Dependency("13.server", "afterok"),
        Dependency("98[].server", "afternotok"),
    )
    request = replace(REQUEST, after=after, held=True)
    assert submit_command(request, "select")[3:-1] == [
        "-W",
        "depend=afterok:12.server:13.server,afternotok:98[].server",
        "-h",
    ]
    assert "depend=afterok:12.server:13.server,afternotokarray:98[].server" in submit_command(request, "torque")
    with pytest.raises(UserError, match="one task of an array"):
        submit_command(replace(REQUEST, after=(Dependency("98[3].server", "afterok"),)), "select")


def test_the_id_is_found_among_the_words_of_a_hook():
    assert parse_submission("Welcome!\nYour project has 12 hours left.\n123.pbs-server.centre.example\n\n") == (
        "123.pbs-server.centre.example"
    )
    assert parse_submission("98[].server\n") == "98[].server"
    assert parse_submission("") is None


@pytest.mark.parametrize(
    ("code", "said", "lost"),
    [
        (-9, "", True),
        (255, "qsub: End of File", True),
        (1, "qsub: Premature end of message from addr 10.0.0.1", True),
        (110, "Connection timed out", True),
        (255, "", True),
        (255, "Connection refused\nqsub: cannot connect to server server (errno=111)", False),
        (170, "qsub: Unknown queue", False),
        (188, "qsub: Job violates queue and/or server resource limits", False),
    ],
)
def test_whether_a_failed_submission_may_have_arrived(code: int, said: str, lost: bool):
    error = refusal(Answer(("qsub", "job.sh"), code, "", said))
    assert isinstance(error, CommandTimeout if lost else CommandFailed)
    assert error.remedy is not None
