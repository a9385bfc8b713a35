"""The job script: it quotes everything, and does what it says under a plain POSIX shell."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlhpc.errors import UserError
from dlhpc.jobs.plan import own_template
from dlhpc.jobs.render import comment, quote, render
from dlhpc.runs.directory import RunDirectory, placeholder_run
from dlhpc.sites.models import Launcher
from tests.unit.job_runs import CLUSTER, SITE, plan

pytestmark = pytest.mark.usefixtures("any_machine")

NASTY = "a'b\"c $(touch pwned) `id` ; # \\ \n é"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@settings(max_examples=50, deadline=None)
def test_a_quoted_word_comes_out_of_the_shell_as_it_went_in(text: str) -> None:
    said = subprocess.run(["dash", "-c", f"printf %s {quote(text)}"], capture_output=True, check=True).stdout
    assert said.decode() == text


@given(st.text())
def test_a_comment_stays_on_its_line(text: str) -> None:
    assert len(f"# {comment(text)}".splitlines()) == 1


@pytest.mark.parametrize("kind", ["none", "mpirun", "gloo"])
def test_a_rendered_script_shows_its_launcher(tmp_path: Path, kind: str) -> None:
    site = SITE.model_copy(update={"launcher": Launcher(kind="gloo" if kind == "gloo" else "mpirun")})
    made = plan(tmp_path, site, job={"ranks_per_node": 1 if kind == "none" else 2})
    text = render(made, placeholder_run(tmp_path, "cars"))
    assert made.launcher == kind
    assert ("horovodrun --gloo -np 2" in text) == (kind == "gloo")
    assert ("mpirun -np 2" in text) == (kind == "mpirun")
    assert '"$python" -m dlhpc.train "$run"' in text


@pytest.mark.usefixtures("scheduler")
@pytest.mark.parametrize("scheduler_name", ["local", "slurm", "pbs", "loadleveler"])
def test_the_script_is_clean_posix_whatever_names_people_use(tmp_path: Path, scheduler_name: str) -> None:
    made = dataclasses.replace(
        plan(tmp_path, CLUSTER, job={"nodes": 2}),
        site=NASTY,
        scheduler=scheduler_name,
        exports={"GREETING": NASTY},
        modules=["gcc/12.2.0", "openmpi/4.1"],
        module_init=NASTY,
        scratch="/scratch/$USER",
        hostfile_option="--hostfile" if scheduler_name in ("pbs", "loadleveler") else None,
    )
    script = tmp_path / "job.sh"
    script.write_text(render(made, RunDirectory(tmp_path / NASTY)))
    assert "#FAKE nodes=2\n" in script.read_text()
    for checker in (["shellcheck", "-s", "sh"], ["dash", "-n"], ["mksh", "-n"]):
        done = subprocess.run([*checker, str(script)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# --- What it does, with a stand-in for the interpreter ----------------------------------------------------------

BEGINS = 'case "$2" in dlhpc.jobs.begin) echo 3 2000000000;; esac\n'


def run_script(
    tmp_path: Path, python: str, name: str = "run", change: tuple[str, str] = ("", ""), **planned: Any
) -> tuple[int, RunDirectory]:
    """Run a rendered script under dash with a stand-in for the interpreter; gives its exit code.

    The stand-in begins attempt 3 and then does what ``python`` says. ``change`` replaces one text of the script by
    another, as to stretch a moment in it. What it prints before it has its own log is in ``logs/job.out``.
    """
    run = RunDirectory(tmp_path / name)
    for folder in (run.attempts, run.logs):
        folder.mkdir(parents=True)
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\n" + (python if "jobs.begin" in python else BEGINS + python))
    stand_in.chmod(0o755)
    made = dataclasses.replace(plan(tmp_path), python=str(stand_in), environment_prefix="/usr", **planned)
    run.script.write_text(render(made, run).replace(*change))
    with run.job_log.open("wb") as log:
        done = subprocess.run(
            ["dash", str(run.script)],
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "DLHPC_JOB_ID": "7.host"},
        )
    return done.returncode, run


def test_the_script_begins_trains_records_its_exit_status_and_concludes(tmp_path: Path) -> None:
    code, run = run_script(
        tmp_path,
        'echo "$*" >> "$HERE/said"\ncase "$2" in dlhpc.train) echo "$DLHPC_ATTEMPT $DLHPC_DEADLINE"; exit 9;; esac\n',
        name="it's $(here)",
        exports={"HERE": str(tmp_path)},
    )
    assert code == 9
    assert run.exit_file(3).read_text() == "9\n"
    assert run.log(3).read_text() == "3 2000000000\n"
    assert run.job_log.read_text() == ""
    assert (tmp_path / "said").read_text().splitlines() == [
        f"-m dlhpc.jobs.begin {run.path} 7.host",
        f"-m dlhpc.data {run.path}",
        f"-m dlhpc.train {run.path}",
        f"-m dlhpc.jobs.conclude {run.path} 3 9 7.host",
    ]


def test_a_job_with_nothing_left_to_do_ends_well_and_leaves_no_trace(tmp_path: Path) -> None:
    code, run = run_script(
        tmp_path, 'case "$2" in dlhpc.jobs.begin) echo "it is finished already" >&2;; *) touch "$0.used";; esac\n'
    )
    assert code == 0
    assert run.job_log.read_text() == "it is finished already\n"
    assert list(run.attempts.iterdir()) == []
    assert not (tmp_path / "python.used").exists()


def test_a_job_that_cannot_begin_ends_with_the_code_of_that_step(tmp_path: Path) -> None:
    code, run = run_script(tmp_path, '[ "$2" != dlhpc.jobs.begin ] || exit 78\ntouch "$0.used"\n')
    assert code == 78
    assert list(run.attempts.iterdir()) == []
    assert not (tmp_path / "python.used").exists()


def test_what_a_job_writes_is_as_readable_as_what_its_user_writes(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        made = plan(tmp_path)
    finally:
        os.umask(before)
    assert "\numask 0027\n" in render(made, placeholder_run(tmp_path, "cars"))


def test_rank_zero_decides_the_exit_status(tmp_path: Path) -> None:
    code, run = run_script(tmp_path, 'case "$2" in dlhpc.train) echo 75 > attempts/3.outcome; exit 1;; esac\n')
    assert code == 75
    assert run.exit_file(3).read_text() == "75\n"


def test_bad_data_ends_the_attempt_before_any_rank_starts(tmp_path: Path) -> None:
    code, _ = run_script(tmp_path, 'case "$2" in dlhpc.data) exit 65;; dlhpc.train) touch ../trained;; esac\n')
    assert code == 65
    assert not (tmp_path / "trained").exists()


LISTENS = """case "$2" in dlhpc.train)
    {first}
    trap 'echo 75 > attempts/3.outcome; exit 75' USR2
    kill -s TERM "$PPID"
    while kill -0 "$PPID"; do sleep 0.1; done;;
esac
"""


def test_a_signal_reaches_the_ranks_and_the_script_waits_for_them(tmp_path: Path) -> None:
    code, run = run_script(tmp_path, LISTENS.format(first=""))
    assert code == 75
    assert run.stop_file(3).exists()


def test_a_signal_reaches_ranks_that_have_only_just_been_started(tmp_path: Path) -> None:
    code, _ = run_script(tmp_path, LISTENS.format(first=""), change=("child=$!", "sleep 0.5; child=$!"))
    assert code == 75


def test_a_signal_reaches_the_ranks_even_if_the_stop_file_cannot_be_made(tmp_path: Path) -> None:
    code, run = run_script(tmp_path, LISTENS.format(first="mkdir attempts/3.stop  # stands for a full disk"))
    assert code == 75
    assert run.exit_file(3).read_text() == "75\n"


def test_modules_are_loaded_in_order_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init = tmp_path / "module system.sh"
    init.write_text('module() { echo "$*" >> "$MODULE_LOG"; : $NEVER_SET; LOADEDMODULES=${LOADEDMODULES:-}:$2; }\n')
    monkeypatch.setenv("MODULE_LOG", str(tmp_path / "loaded"))
    code, _ = run_script(tmp_path, "", modules=["gcc/12.2.0", "cuda@12"], module_init=str(init))
    assert code == 0
    assert (tmp_path / "loaded").read_text().splitlines() == ["load gcc/12.2.0", "load cuda@12"]


def test_a_module_system_that_fails_without_an_exit_code_is_seen_through(tmp_path: Path) -> None:
    init = tmp_path / "modules.sh"
    init.write_text("module() { LOADEDMODULES=other/1; echo 'ERROR: not found' >&2; }\n")
    code, run = run_script(tmp_path, "", modules=["cuda/12"], module_init=str(init))
    assert code == 78
    assert "the module cuda/12 was not loaded" in run.job_log.read_text()


def test_a_module_that_is_not_there_ends_the_job_with_its_name(tmp_path: Path) -> None:
    code, run = run_script(tmp_path, "", modules=["gcc/99"], module_init=str(tmp_path / "none"))
    assert code == 78
    assert run.job_log.read_text().endswith("dlhpc: the module gcc/99 cannot be loaded\n")


def test_a_job_has_a_scratch_folder_of_its_own_that_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAST_DISK", str(tmp_path / "fast disk"))
    shows = 'case "$2" in dlhpc.train) ls -d "$DLHPC_SCRATCH"; touch "$DLHPC_SCRATCH/file"; exit 5;; esac\n'
    code, run = run_script(tmp_path, shows, scratch="$FAST_DISK", run_id="abc")
    assert code == 5
    assert run.log(3).read_text() == f"{tmp_path}/fast disk/dlhpc-abc-3\n"
    assert list((tmp_path / "fast disk").iterdir()) == []


def test_a_scratch_disk_that_refuses_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FAST_DISK", str(tmp_path / "file"))
    code, run = run_script(
        tmp_path, 'case "$2" in dlhpc.train) echo "<$DLHPC_SCRATCH>";; esac\n', scratch="$FAST_DISK", run_id="abc"
    )
    assert code == 0
    assert run.log(3).read_text().endswith("<>\n")


@pytest.mark.usefixtures("scheduler")
def test_the_launcher_gets_a_file_with_a_line_for_each_rank(tmp_path: Path) -> None:
    made = plan(tmp_path, CLUSTER, job={"nodes": 2, "ranks_per_node": 2})
    made = dataclasses.replace(made, scheduler="pbs", dialect="nodes", hostfile_option="--hostfile")
    text = render(made, placeholder_run(tmp_path, "cars"))
    assert ' --hostfile "$hostfile" "$python" -m dlhpc.train "$run"' in text
    cores = tmp_path / "nodefile"  # such a server writes a line for each core
    cores.write_text("n1\n" * 8 + "n2\n" * 8)
    line = next(line for line in text.splitlines() if line.startswith("awk"))
    told = {"PBS_NODEFILE": str(cores), "PATH": "/usr/bin:/bin"}
    shell = f"hostfile={tmp_path}/hosts; {line}"
    subprocess.run(["dash", "-c", shell], env=told, check=True)
    assert (tmp_path / "hosts").read_text().split() == ["n1", "n1", "n2", "n2"]
    text = render(dataclasses.replace(made, scheduler="loadleveler"), placeholder_run(tmp_path, "cars"))
    assert "hostfile=$LOADL_HOSTFILE" in text


@pytest.mark.usefixtures("scheduler")
@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"}, "12_2"),
    ],
)
def test_a_slurm_job_knows_its_id_also_as_a_task_of_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], job: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tells = 'case "$2" in dlhpc.jobs.begin) echo "$4" > "${0%/*}/id";; esac\n'
    code, _ = run_script(tmp_path, tells, scheduler="slurm")
    assert (code, (tmp_path / "id").read_text()) == (0, f"{job}\n")


# --- A site's own template --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("scheduler")
def test_a_site_overrides_one_block_and_keeps_the_rest(tmp_path: Path) -> None:
    profile = tmp_path / "centre.yaml"
    own = tmp_path / "centre.sh.j2"
    assert own_template(profile) is None
    own.write_text(
        '{% extends "slurm.sh.j2" %}\n{% block environment %}\n. /opt/centre/setup.sh\n{{ super() }}{% endblock %}\n'
    )
    made = plan(tmp_path, CLUSTER, template=own_template(profile))
    text = render(made, placeholder_run(tmp_path, "cars"))
    assert text.startswith("#!/bin/sh\n#FAKE nodes=1\n")
    assert text.index(". /opt/centre/setup.sh") < text.index("OMP_NUM_THREADS=") < text.index("SLURM_JOB_ID")
    assert '"$python" -m dlhpc.jobs.conclude' in text


@pytest.mark.usefixtures("scheduler")
@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ('{% extends "slurm.sh.j2" %}\n{% block oops', "unexpected", 2),
        ("{{ plan.no_such_thing }}", "no_such_thing", None),
        ('{% extends "lsf.sh.j2" %}', "lsf", None),
    ],
)
def test_a_wrong_template_of_the_site_is_named_with_its_line(
    tmp_path: Path, text: str, words: str, line: int | None
) -> None:
    own = tmp_path / "centre.sh.j2"
    own.write_text(text)
    made = plan(tmp_path, CLUSTER, template=str(own))
    with pytest.raises(UserError, match="the site's job template is wrong") as caught:
        render(made, placeholder_run(tmp_path, "cars"))
    assert words in caught.value.what
    assert caught.value.where == (f"{own}:{line}" if line else str(own))
