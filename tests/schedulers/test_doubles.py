"""What is known of PBS, Torque and LoadLeveler, as tests of their doubles: each row of the list of facts, once.

A fact that turns out otherwise on the real system is changed here first.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles import Double, LoadLevelerDouble, PbsDouble, TorqueDouble

ROOT = Path(__file__).resolve().parents[2]
FOREVER = "sleep 300\n"


class Login:
    """A login shell on a double's machine: runs commands in the user's folder."""

    def __init__(self, double: Double, folder: Path) -> None:
        self.double = double
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def __call__(self, *words: str, code: int = 0, stdin: str = "", **variables: str) -> str:
        """Run it, expect this exit code, and give both streams, standard output first."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env={**self.double.environment, **variables},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def write(self, text: str, name: str = "job.sh") -> str:
        (self.folder / name).write_text(text, encoding="utf-8", newline="")
        return name

    def submit(self, text: str, *options: str) -> str:
        """Submit a script and give the job's id."""
        return self("qsub", *options, self.write(text)).strip()

    def refused(self, text: str, code: int, *options: str) -> str:
        """A submission that makes no job."""
        before = self.double.jobs()
        said = self("qsub", *options, self.write(text), code=code)
        assert self.double.jobs() == before
        return said

    def wait_for(self, job_id: str, state: str, timeout: float = 20) -> None:
        until = time.monotonic() + timeout
        while self.double.jobs()[job_id]["state"] != state:
            assert time.monotonic() < until, self.double.jobs()[job_id]
            time.sleep(0.02)

    def wait_for_text(self, name: str, text: str, timeout: float = 20) -> str:
        until = time.monotonic() + timeout
        while not ((self.folder / name).is_file() and text in (self.folder / name).read_text()):
            assert time.monotonic() < until, f"no {text!r} in {name}"
            time.sleep(0.02)
        return (self.folder / name).read_text()

    def full(self, job_id: str) -> dict[str, str]:
        """`qstat -xfw` of one job."""
        text = (
            self("qstat", "-f", "-1", job_id)
            if isinstance(self.double, TorqueDouble)
            else self("qstat", "-xfw", job_id)
        )
        return dict(line.strip().split(" = ", 1) for line in text.splitlines() if " = " in line)


@pytest.fixture
def pbs(tmp_path: Path) -> Iterator[Login]:
    queues = {
        "workq": {},
        "short": {"max_walltime": 3600, "default_walltime": 600},
        "R77": {},
        "closed": {"enabled": False},
    }
    with PbsDouble(tmp_path / "pbs", nodes=2, cores=8, gpus=2, kill_grace=0.5, queues=queues) as double:
        yield Login(double, tmp_path / "work")


@pytest.fixture
def torque(tmp_path: Path) -> Iterator[Login]:
    with TorqueDouble(tmp_path / "torque", nodes=2, cores=8, gpus=2, kill_grace=0.5) as double:
        yield Login(double, tmp_path / "work")


@pytest.fixture
def ll(tmp_path: Path) -> Iterator[Login]:
    nodes = {"node1": {"features": ["gpu"]}, "node2": {"features": ["gpu"]}, "node3": {"state": "down"}}
    with LoadLevelerDouble(
        tmp_path / "ll",
        nodes=nodes,
        cores=8,
        gpus=2,
        kill_grace=0.5,
        queues={"parallel": {}, "short": {"max_walltime": 3600}},
    ) as double:
        yield Login(double, tmp_path / "work")


class TestPbsStart:
    def test_a_job_starts_at_home_with_a_login_shell_s_path_and_no_more(self, pbs: Login) -> None:
        job = pbs("qsub", pbs.write("#!/bin/sh\n#PBS -N where\npwd\nenv\n"), MY_SECRET="x").strip()
        pbs.double.idle()
        said = (pbs.folder / "where.o1").read_text()
        home = str(pbs.double.folder / "home")
        assert said.splitlines()[0] == home
        assert "MY_SECRET" not in said
        variables = dict(line.split("=", 1) for line in said.splitlines()[1:])
        assert variables["PBS_JOBID"] == job == "1.server"
        assert variables["PBS_O_WORKDIR"] == str(pbs.folder)
        assert variables["PBS_ENVIRONMENT"] == "PBS_BATCH"
        assert variables["PBS_JOBNAME"] == "where"
        assert variables["PBS_QUEUE"] == "workq"
        assert variables["TMPDIR"].endswith("pbs.1.server")
        assert os.environ["PATH"] not in variables["PATH"]

    def test_the_first_line_decides_the_shell_and_dash_s_does_not(self, pbs: Login) -> None:
        pbs.submit("#!/usr/bin/mksh\necho ${KSH_VERSION:-none}\n", "-S", "/bin/bash", "-N", "shell")
        pbs.double.idle()
        assert "MIRBSD" in (pbs.folder / "shell.o1").read_text()


class TestPbsDirectives:
    def test_after_the_first_command_and_in_other_spellings_they_are_ignored(self, pbs: Login) -> None:
        job = pbs.submit(
            "#!/bin/sh\n# PBS -N a\n##PBS -N b\n#pbs -N c\n\n#PBS -N right\ntrue\n#PBS -N late\n#PBS -q nowhere\n"
        )
        assert pbs.full(job)["Job_Name"] == "right"

    @pytest.mark.parametrize(
        "line", ["#PBS -N a # my name", "#PBS -l select=1:ncpus=1  # one core", "#PBS -N a\r", "#PBS -Y"]
    )
    def test_a_trailing_comment_or_a_carriage_return_is_an_error(self, pbs: Login, line: str) -> None:
        assert "directive error" in pbs.refused(f"#!/bin/sh\n{line}\ntrue\n", 1)

    def test_of_a_repeated_name_the_last_wins_of_a_resource_the_first(self, pbs: Login) -> None:
        job = pbs.submit("#PBS -N a\n#PBS -N b\n#PBS -l walltime=100\n#PBS -l walltime=200\ntrue\n")
        assert pbs.full(job)["Job_Name"] == "b"
        assert pbs.full(job)["Resource_List.walltime"] == "00:01:40"

    def test_the_command_line_beats_them(self, pbs: Login) -> None:
        job = pbs.submit(
            "#PBS -N a\n#PBS -l walltime=100\n#PBS -q nowhere\ntrue\n", "-N", "z", "-lwalltime=50", "-q", "short"
        )
        full = pbs.full(job)
        assert (full["Job_Name"], full["Resource_List.walltime"], full["queue"]) == ("z", "00:00:50", "short")


class TestPbsResources:
    def test_select_and_place_scatter(self, pbs: Login) -> None:
        pbs.submit("#PBS -N n\n#PBS -l select=2:ncpus=4:ngpus=2:mpiprocs=3 -l place=scatter\ncat $PBS_NODEFILE\n")
        pbs.double.idle()
        assert (pbs.folder / "n.o1").read_text() == "node1\n" * 3 + "node2\n" * 3

    def test_without_scatter_both_chunks_may_land_on_one_node(self, pbs: Login) -> None:
        pbs.submit("#PBS -N n\n#PBS -l select=2:ncpus=4:mpiprocs=1\ncat $PBS_NODEFILE\n")
        pbs.double.idle()
        assert (pbs.folder / "n.o1").read_text() == "node1\nnode1\n"

    def test_exclusive_nodes_are_for_one_job(self, pbs: Login) -> None:
        first = pbs.submit("#PBS -l select=1:ncpus=1 -l place=scatter:excl\n" + FOREVER)
        second = pbs.submit("#PBS -l select=1:ncpus=1\n" + FOREVER)
        jobs = pbs.double.jobs()
        assert jobs[first]["assigned"] != jobs[second]["assigned"]
        third = pbs.submit("#PBS -l select=1:ncpus=1 -l place=excl\n" + FOREVER)
        assert pbs.double.jobs()[third]["state"] == "queued"

    @pytest.mark.parametrize(
        ("asked", "code", "sentence"),
        [
            (["-l", "select=1:ncpus=2", "-l", "ncpus=2"], 5, 'cannot be used with "select"'),
            (["-l", "nodes=1:ppn=2:gpus=1"], 241, "node(s) specification error"),
            (["-l", "select=1:gpus=1"], 187, "Unknown resource"),
            (["-l", "gpus=1"], 187, "Unknown resource"),
            (["-l", "walltime=1-00:00:00"], 166, "Illegal attribute or resource value"),
            (["-l", "walltime=1h"], 166, "Illegal attribute or resource value"),
            (["-l", "mem=4GiB"], 166, "Illegal attribute or resource value"),
            (["-l", "select=1:mem=1.5gb"], 166, "Illegal attribute or resource value"),
            (["-q", "nowhere"], 170, "Unknown queue"),
            (["-q", "closed"], 173, "Queue is not enabled"),
            (["-q", "short", "-l", "walltime=2:00:00"], 188, "Job violates queue and/or server resource limits"),
            (["-J", "5"], 2, "illegal -J value"),
            (["-J", "5-5"], 2, "illegal -J value"),
            (["-W", "depend=afterwards:1"], 2, "illegal -W value"),
            (["-m", "x"], 2, "illegal -m value"),
        ],
    )
    def test_what_qsub_refuses(self, pbs: Login, asked: list[str], code: int, sentence: str) -> None:
        assert sentence in pbs.refused("true\n", code, *asked)

    @pytest.mark.parametrize(("text", "shown"), [("90", "00:01:30"), ("00:90:00", "01:30:00"), ("1:30:00", "01:30:00")])
    def test_walltime_formats(self, pbs: Login, text: str, shown: str) -> None:
        assert pbs.full(pbs.submit("true\n", "-l", f"walltime={text}"))["Resource_List.walltime"] == shown

    @pytest.mark.parametrize(("text", "shown"), [("4gb", "4194304kb"), ("512mb", "524288kb"), ("2048", "2kb")])
    def test_memory_formats(self, pbs: Login, text: str, shown: str) -> None:
        assert pbs.full(pbs.submit("true\n", "-l", f"select=1:mem={text}"))["Resource_List.mem"] == shown

    def test_old_nodes_syntax_without_gpus_is_taken(self, pbs: Login) -> None:
        job = pbs.submit("true\n", "-l", "nodes=2:ppn=4")
        assert pbs.full(job)["Resource_List.select"] == "2:ncpus=4:mpiprocs=4"

    def test_an_impossible_request_waits_for_ever(self, pbs: Login) -> None:
        job = pbs.submit("true\n", "-l", "select=1:ncpus=64")
        full = pbs.full(job)
        assert full["job_state"] == "Q"
        assert full["comment"].startswith("Can Never Run: Insufficient amount of resource")
        later = pbs.submit("true\n")
        pbs.double.idle()
        assert pbs.full(later)["job_state"] == "F"

    def test_ncpus_and_threads_follow_the_chunk(self, pbs: Login) -> None:
        pbs.submit("#PBS -N c -l select=1:ncpus=4\necho $NCPUS $OMP_NUM_THREADS\ncat $PBS_NODEFILE\n")
        pbs.submit("#PBS -N t -l select=1:ncpus=4:ompthreads=2\necho $NCPUS $OMP_NUM_THREADS\n")
        pbs.double.idle()
        assert (pbs.folder / "c.o1").read_text() == "4 4\nnode1\n"
        assert (pbs.folder / "t.o2").read_text() == "4 2\n"

    def test_a_reservation_is_a_queue(self, pbs: Login) -> None:
        assert pbs.full(pbs.submit("true\n", "-q", "R77"))["queue"] == "R77"


class TestPbsNames:
    @pytest.mark.parametrize("name", ["a", "x" * 230, "-_+.", "007", "A.b-c_d+e"])
    def test_letters_digits_and_four_signs(self, pbs: Login, name: str) -> None:
        assert pbs.full(pbs.submit("true\n", "-N", name))["Job_Name"] == name

    @pytest.mark.parametrize("name", ["a b", "", "x" * 231, "学習", *(f"a{sign}" for sign in "/:=$@,%#*[]()")])
    def test_everything_else_is_refused(self, pbs: Login, name: str) -> None:
        assert "illegal -N value" in pbs.refused("true\n", 2, "-N", name)


class TestPbsVariables:
    @pytest.mark.parametrize("value", ["A=1,2", "A=it's", 'A={"a":1,"b":2}', "NOT_SET_ANYWHERE"])
    def test_what_cannot_be_sent(self, pbs: Login, value: str) -> None:
        assert "cannot send environment with the job" in pbs.refused("true\n", 1, "-v", value)

    def test_quotes_get_lost_backslashes_double_and_only_the_last_option_counts(self, pbs: Login) -> None:
        pbs.submit('#PBS -N v\necho "$A|$B|${C-none}"\n', "-v", "C=3", "-v", 'A="x y",B=back\\slash')
        pbs.double.idle()
        assert (pbs.folder / "v.o1").read_text().strip() in ("x y|back\\\\slash|none", "x y|back\\slash|none")
        assert pbs.double.jobs()["1.server"]["data"]["variables"]["B"] == "back\\\\slash"


class TestPbsEnds:
    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ("exit 0", 0),
            ("exit 7", 7),
            ("sh -c 'kill -9 $$'; exit $?", 137),
            ("nosuchcommand", 127),
            ("kill -9 $$", 265),
        ],
    )
    def test_exit_status_is_the_script_s_own(self, pbs: Login, body: str, status: int) -> None:
        job = pbs.submit(f"#!/bin/sh\n{body}\n")
        pbs.double.idle()
        assert pbs.full(job)["Exit_status"] == str(status)

    def test_walltime_term_to_the_whole_session_then_kill(self, pbs: Login) -> None:
        script = (
            "#!/bin/bash\n#PBS -N w -j oe -k oed -l walltime=1\n"
            "sh -c 'trap \"echo child\" TERM; sleep 60 & wait; sleep 60' &\n"
        )
        job = pbs.submit(script + "trap 'echo got it' TERM\nwhile :; do wait; sleep 0.1; done\n")
        pbs.double.idle()
        said = (pbs.folder / "w.o1").read_text()
        assert "got it" in said
        assert "=>> PBS: job killed: walltime 1 exceeded limit 1" in said
        assert "child" in said
        assert pbs.full(job)["Exit_status"] == "-29"

    def test_qdel_terminates(self, pbs: Login) -> None:
        job = pbs.submit("#!/bin/sh\n" + FOREVER)
        pbs("qdel", job)
        pbs.double.idle()
        assert pbs.full(job)["Exit_status"] == "271"

    def test_qdel_kills_what_does_not_listen(self, pbs: Login) -> None:
        job = pbs.submit("#!/bin/sh\n#PBS -N deaf -k oed -j oe\ntrap '' TERM\necho up\n" + FOREVER)
        pbs.wait_for_text("deaf.o1", "up")
        began = time.monotonic()
        pbs("qdel", job)
        pbs.double.idle()
        assert time.monotonic() - began > 0.4
        assert pbs.full(job)["Exit_status"] == "265"

    def test_a_script_may_use_the_time_between_term_and_kill(self, pbs: Login) -> None:
        job = pbs.submit(
            "#!/bin/bash\n#PBS -N t -k oed -j oe\ntrap 'echo saved; exit 75' TERM\necho up\nsleep 60 & wait\n"
        )
        pbs.wait_for_text("t.o1", "up")
        pbs("qdel", job)
        pbs.double.idle()
        assert "saved" in (pbs.folder / "t.o1").read_text()
        assert pbs.full(job)["Exit_status"] == "75"

    def test_qsig_usr1_is_no_early_warning(self, pbs: Login) -> None:
        job = pbs.submit("#!/bin/sh\n" + FOREVER)
        pbs("qsig", "-s", "SIGUSR1", job)
        pbs.double.idle()
        assert pbs.full(job)["Exit_status"] == "266"

    def test_nothing_of_a_job_is_left(self, pbs: Login) -> None:
        pbs.submit("#!/bin/sh\n#PBS -N l -k oed\nsetsid sleep 301 &\necho $!\nsleep 0.2\n")
        pbs.double.idle()
        with pytest.raises(ProcessLookupError):
            os.kill(int((pbs.folder / "l.o1").read_text()), 0)

    def test_a_user_may_not_rerun(self, pbs: Login) -> None:
        job = pbs.submit(FOREVER)
        assert "Unauthorized Request" in pbs("qrerun", job, code=159)


class TestPbsArrays:
    def test_ids_indices_and_outputs(self, pbs: Login) -> None:
        array = pbs.submit(
            "#PBS -N a\necho $PBS_ARRAY_INDEX $PBS_JOBID $PBS_ARRAY_ID\nexit $PBS_ARRAY_INDEX\n", "-J", "0-3"
        )
        assert array == "1[].server"
        pbs.double.idle()
        assert (pbs.folder / "a.o1.2").read_text() == "2 1[2].server 1[].server\n"
        assert pbs.full("1[2].server")["Exit_status"] == "2"
        # the parent's is only that of the task that ended last
        assert pbs.full(array)["Exit_status"] in {"0", "1", "2", "3"}
        assert pbs.full(array)["array"] == "True"

    def test_a_limit_on_running_tasks(self, pbs: Login) -> None:
        array = pbs.submit(FOREVER, "-J", "0-9%2")
        states = pbs("qstat", "-t", array).split("\n")
        assert sum(" R " in line for line in states) == 2
        assert pbs.full(array)["job_state"] == "B"
        pbs("qdel", "1[0].server")
        pbs.wait_for("1[0].server", "done")
        assert pbs.full("1[0].server")["job_state"] == "X"
        pbs("qdel", array)
        pbs.double.idle()
        assert {job["state"] for job in pbs.double.jobs().values()} == {"done"}

    def test_only_pbs_own_placeholder_expands_in_output(self, pbs: Login) -> None:
        pbs.submit("echo hi\n", "-J", "0-1", "-o", "x_^array_index^.out", "-e", "$PBS_JOBID.err")
        pbs.double.idle()
        assert sorted(path.name for path in pbs.folder.iterdir()) == ["$PBS_JOBID.err", "job.sh", "x_0.out", "x_1.out"]

    def test_an_array_is_asked_for_with_its_brackets(self, pbs: Login) -> None:
        pbs.submit(FOREVER, "-J", "0-1")
        assert "Unknown Job Id" in pbs("qstat", "1.server", code=153)


class TestPbsDependencies:
    def test_afterany_waits_and_runs(self, pbs: Login) -> None:
        first = pbs.submit("sleep 0.3; exit 1\n")
        second = pbs.submit("true\n", "-W", f"depend=afterany:{first}")
        assert pbs.full(second)["job_state"] == "H"
        pbs.double.idle()
        assert pbs.full(second)["Exit_status"] == "0"

    @pytest.mark.parametrize(
        ("kind", "code", "runs"),
        [("afterok", 0, True), ("afterok", 3, False), ("afternotok", 3, True), ("afternotok", 0, False)],
    )
    def test_a_dependency_that_fails_ends_the_job_unrun(self, pbs: Login, kind: str, code: int, runs: bool) -> None:
        first = pbs.submit(f"exit {code}\n")
        second = pbs.submit("true\n", "-W", f"depend={kind}:{first}")
        pbs.double.idle()
        full = pbs.full(second)
        assert full["job_state"] == "F"
        assert ("Exit_status" in full) == runs

    @pytest.mark.parametrize("other", ["999", "999.server"])
    def test_an_unknown_id_is_taken_and_the_job_never_runs(self, pbs: Login, other: str) -> None:
        job = pbs.submit("true\n", "-W", f"depend=afterok:{other}")
        assert pbs.full(job)["job_state"] == "F"
        assert "stime" not in pbs.full(job)

    def test_an_array_s_id_needs_its_brackets(self, pbs: Login) -> None:
        pbs.submit("true\n", "-J", "0-1")
        wrong = pbs.submit("true\n", "-W", "depend=afterok:1.server")
        right = pbs.submit("true\n", "-W", "depend=afterok:1[].server")
        pbs.double.idle()
        assert "Exit_status" not in pbs.full(wrong)
        assert pbs.full(right)["Exit_status"] == "0"

    def test_a_chain_of_jobs_that_cannot_run_ends_whole(self, pbs: Login) -> None:
        first = pbs.submit("exit 1\n")
        second = pbs.submit("true\n", "-W", f"depend=afterok:{first}")
        third = pbs.submit("true\n", "-W", f"depend=afterok:{second}")
        pbs.double.idle()
        assert pbs.full(third)["job_state"] == "F"


class TestPbsOutput:
    def test_it_comes_at_the_end_and_is_the_owner_s_only(self, pbs: Login) -> None:
        job = pbs.submit("#PBS -N o\necho early\n" + FOREVER)
        time.sleep(0.2)
        assert not (pbs.folder / "o.o1").exists()
        pbs("qdel", job)
        pbs.double.idle()
        assert (pbs.folder / "o.o1").read_text() == "early\n"
        assert stat.S_IMODE((pbs.folder / "o.o1").stat().st_mode) == 0o600

    def test_umask(self, pbs: Login) -> None:
        pbs.submit("#PBS -N o\numask\n", "-W", "umask=022")
        pbs.double.idle()
        assert stat.S_IMODE((pbs.folder / "o.o1").stat().st_mode) == 0o644
        assert (pbs.folder / "o.o1").read_text().strip() in ("022", "0022")

    def test_a_missing_folder_loses_it(self, pbs: Login) -> None:
        job = pbs.submit("echo lost\n", "-o", "nowhere/out.txt")
        pbs.double.idle()
        assert pbs.full(job)["Exit_status"] == "0"
        assert not (pbs.folder / "nowhere").exists()
        assert (pbs.double.folder / "undelivered" / "1.server.OU").read_text() == "lost\n"

    def test_kept_directly_it_is_live_in_its_place(self, pbs: Login) -> None:
        pbs.submit("echo now; echo err >&2\n" + FOREVER, "-k", "oed", "-j", "oe", "-o", "live.txt")
        pbs.wait_for_text("live.txt", "err")

    def test_a_folder_gets_a_file_named_after_the_job(self, pbs: Login) -> None:
        (pbs.folder / "logs").mkdir()
        pbs.submit("echo hi\n", "-o", "logs/", "-j", "oe")
        pbs.double.idle()
        assert (pbs.folder / "logs" / "1.server.OU").read_text() == "hi\n"


class TestQstat:
    def test_exit_codes(self, pbs: Login) -> None:
        done = pbs.submit("true\n")
        pbs.double.idle()
        live = pbs.submit(FOREVER)
        assert "Job has finished" in pbs("qstat", done, code=35)
        assert "Unknown Job Id 999.server" in pbs("qstat", "999.server", code=153)
        assert live in pbs("qstat", live, "999.server", code=153)
        assert done in pbs("qstat", "-x", done, live)
        assert "illegally formed job identifier: 1x" in pbs("qstat", "1x", code=1)

    def test_the_server_is_down(self, pbs: Login) -> None:
        job = pbs.submit("true\n")
        pbs.double.idle()
        pbs.double.fail(down=True)
        for words in (["qstat", job], ["qstat"], ["qdel", job], ["qsub", "job.sh"], ["pbsnodes", "-a"]):
            assert "Connection refused" in pbs(*words, code=255)
        pbs.double.fail()
        assert len(pbs.double.jobs()) == 1

    def test_without_history_an_ended_job_is_unknown(self, pbs: Login) -> None:
        job = pbs.submit("true\n")
        pbs.double.idle()
        pbs.double.change(history=False)
        assert "Unknown Job Id" in pbs("qstat", job, code=153)
        assert "history" in pbs("qstat", "-x", job)
        later = pbs.submit("true\n", "-W", f"depend=afterok:{job}")
        pbs.double.idle()
        assert pbs.double.jobs()[later]["started"] is None

    def test_json_is_valid_retyped_and_may_lack_jobs(self, pbs: Login) -> None:
        seven, power = pbs.submit(FOREVER, "-N", "007"), pbs.submit(FOREVER, "-N", "1e5")
        jobs = json.loads(pbs("qstat", "-f", "-F", "json", seven, power))["Jobs"]
        assert (jobs[seven]["Job_Name"], jobs[power]["Job_Name"]) == (7, 100000)
        answer = subprocess.run(
            ["qstat", "-f", "-F", "json", "999.server"], env=pbs.double.environment, capture_output=True, text=True
        )
        assert answer.returncode == 153
        assert "Jobs" not in json.loads(answer.stdout)

    def test_plain_form_folds_lines(self, pbs: Login) -> None:
        job = pbs.submit(FOREVER, "-v", "LONG=" + "x" * 300)
        assert "x" * 300 not in pbs("qstat", "-f", job)
        assert "x" * 300 in pbs("qstat", "-f", job).replace("\n\t", "")
        assert all(len(line.expandtabs(1)) <= 80 for line in pbs("qstat", "-f", job).splitlines())
        assert "x" * 300 in pbs("qstat", "-fw", job)

    def test_jobs_are_found_by_name(self, pbs: Login) -> None:
        job = pbs.submit("true\n", "-N", "run-a.1")
        pbs.submit("true\n", "-N", "run-a.11")
        pbs.double.idle()
        assert pbs("qselect", "-N", "run-a.1") == ""
        assert pbs("qselect", "-x", "-N", "run-a.1").split() == [job]

    def test_queues_and_nodes(self, pbs: Login) -> None:
        queue = json.loads(pbs("qstat", "-Q", "-f", "-F", "json"))["Queue"]["short"]
        assert queue["resources_max"]["walltime"] == "01:00:00"
        assert "resources_max.walltime = 01:00:00" in pbs("qstat", "-Qf", "short")
        assert "short" in pbs("qstat", "-q")
        nodes = json.loads(pbs("pbsnodes", "-a", "-F", "json"))["nodes"]
        assert nodes["node2"]["resources_available"]["ngpus"] == 2
        assert "resources_available.ncpus = 8" in pbs("pbsnodes", "-a")
        assert "resources_max.walltime" in pbs("qmgr", "-c", "list queue short")


class TestPbsChanges:
    def test_a_valid_and_an_unknown_id_crash_the_server(self, pbs: Login) -> None:
        job = pbs.submit(FOREVER)
        pbs("qdel", job, "999.server", code=255)
        assert "Connection refused" in pbs("qstat", code=255)
        subprocess.run([sys.executable, "-m", "tests.doubles", "restart", str(pbs.double.folder)], cwd=ROOT, check=True)
        assert job in pbs("qstat")
        pbs("qdel", job)

    def test_unknown_and_ended_jobs(self, pbs: Login) -> None:
        job = pbs.submit("true\n")
        pbs.double.idle()
        assert "Unknown Job Id" in pbs("qdel", "999.server", code=153)
        assert "Job has finished" in pbs("qdel", job, code=35)

    def test_a_waiting_job_is_removed_unrun(self, pbs: Login) -> None:
        job = pbs.submit("true\n", "-h")
        pbs("qdel", job)
        assert "Exit_status" not in pbs.full(job)

    def test_hold_and_release(self, pbs: Login) -> None:
        job = pbs.submit("true\n", "-h")
        assert (pbs.full(job)["job_state"], pbs.full(job)["Hold_Types"]) == ("H", "u")
        pbs("qrls", job)
        pbs.double.idle()
        assert pbs.full(job)["Exit_status"] == "0"
        pbs.submit(FOREVER, "-l", "select=2:ncpus=8")
        waiting = pbs.submit("true\n", "-l", "select=2:ncpus=8")
        pbs("qhold", waiting)
        assert pbs.full(waiting)["job_state"] == "H"

    def test_other_attributes_are_kept(self, pbs: Login) -> None:
        job = pbs.submit(FOREVER, "-A", "proj", "-m", "abe", "-M", "a@b.jp", "-r", "n", "-h")
        full = pbs.full(job)
        assert full["Account_Name"] == "proj"
        assert (full["Mail_Points"], full["Mail_Users"], full["Rerunable"]) == ("abe", "a@b.jp", "False")
        pbs("qalter", "-l", "walltime=00:05:00", job)
        assert pbs.full(job)["Resource_List.walltime"] == "00:05:00"


class TestFaults:
    def test_an_answer_gets_lost_but_the_job_is_there(self, pbs: Login) -> None:
        pbs.double.fail(lose_answer="silent", times=1)
        assert pbs("qsub", pbs.write("true\n")) == ""
        pbs.double.fail(lose_answer="killed", times=1)
        pbs("qsub", "job.sh", code=-9)
        assert pbs("qsub", "job.sh").strip() == "3.server"
        assert len(pbs.double.jobs()) == 3

    def test_a_slow_server(self, pbs: Login) -> None:
        pbs.double.fail(slow=0.5, commands=["qstat"])
        began = time.monotonic()
        pbs("qstat")
        assert time.monotonic() - began >= 0.5

    def test_compute_nodes_may_be_forbidden_to_submit(self, pbs: Login) -> None:
        pbs.double.change(compute_may_submit=False)
        pbs.submit(f"#PBS -N s -j oe\ncd {pbs.folder}\nenv -i {pbs.double.bin}/qsub job.sh\necho code $?\n")
        pbs.double.idle()
        assert (pbs.folder / "s.o1").read_text() == "qsub: Bad UID for job execution\ncode 175\n"

    def test_a_job_may_submit_the_next_which_outlives_it(self, pbs: Login) -> None:
        pbs.submit(
            f"#PBS -N s -j oe\ncd {pbs.folder}\n[ -e stop ] || {{ touch stop; qsub job.sh; }}\nsleep 0.3\necho end\n"
        )
        pbs.double.idle()
        assert (pbs.folder / "s.o1").read_text() == "2.server\nend\n"
        assert (pbs.folder / "s.o2").read_text() == "end\n"

    def test_a_node_fails_and_the_job_runs_again(self, pbs: Login) -> None:
        script = (
            "#PBS -N f -k oed -j oe\ntrap 'echo never' TERM\n"
            f"[ -e {pbs.folder}/again ] && seconds=0 || seconds=300\necho begin\nsleep $seconds & wait\n"
        )
        job = pbs.submit(script)
        pbs.wait_for_text("f.o1", "begin")
        (pbs.folder / "again").touch()
        pbs.double.node_failure(job)
        pbs.wait_for(job, "done")
        assert (pbs.folder / "f.o1").read_text() == "begin\nbegin\n"
        assert pbs.full(job)["run_count"] == "2"

    def test_a_node_fails_and_a_job_that_may_not_run_again_is_over(self, pbs: Login) -> None:
        job = pbs.submit(FOREVER, "-r", "n")
        pbs.double.node_failure(job)
        pbs.wait_for(job, "done")
        assert "Exit_status" not in pbs.full(job)

    def test_a_submission_that_is_killed_is_whole_or_nothing(self, pbs: Login) -> None:
        script = pbs.write("#PBS -N k -k oed\necho ran\n")
        for delay in (0.02, 0.035, 0.05, 0.065, 0.08):
            with subprocess.Popen(
                ["qsub", script], cwd=pbs.folder, env=pbs.double.environment, stdout=subprocess.DEVNULL
            ) as process:
                time.sleep(delay)
                process.kill()
        pbs.double.advance()
        pbs.double.idle()
        jobs = pbs.double.jobs()
        assert all(job["exit"] == 0 for job in jobs.values())
        assert len(list(pbs.folder.glob("k.o*"))) == len(jobs)

    def test_leaving_kills_everything(self, tmp_path: Path) -> None:
        with PbsDouble(tmp_path / "pbs") as double:
            login = Login(double, tmp_path / "work")
            login.submit("#PBS -N k -k oed\nsetsid sleep 302 &\necho $! $$\nwait\n")
            numbers = login.wait_for_text("k.o1", "\n").split()
        for number in numbers:
            assert (
                not Path(f"/proc/{number}").exists()
                or "Z" in Path(f"/proc/{number}/stat").read_text().split(")")[1][:3]
            )

    def test_only_posix_tools(self, tmp_path: Path) -> None:
        with PbsDouble(tmp_path / "pbs", posix_path=True, shell="/usr/bin/mksh") as double:  # noqa: S604
            login = Login(double, tmp_path / "work")
            login.submit(
                "#!/bin/sh\n#PBS -N p -j oe\necho ${KSH_VERSION:+ksh}\n"
                "for x in readlink mktemp seq timeout stat bash; do command -v $x\ndone\n"
                "date +%N; sed -i s/a/b/ x; ls --color; echo abc | sed s/b/x/\n"
                "printf '%s\\n' a b | sort -r | head -n 1; python3 -c 'print(1)'\n"
            )
            double.idle()
            said = (tmp_path / "work" / "p.o1").read_text()
        lines = said.splitlines()
        assert lines[0] == "ksh"
        assert [line for line in lines if "illegal option" in line] == [
            "date: illegal option -- +%N",
            "sed: illegal option -- -i",
            "ls: illegal option -- --color",
        ]
        assert lines[-3:] == ["axc", "b", "1"]

    def test_commands_answer_fast(self, pbs: Login) -> None:
        done = subprocess.run(
            [sys.executable, "-c", "import tests.doubles.commands, sys; print(*sys.modules)"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert not {"subprocess", "dataclasses", "argparse", "tests.doubles.machines", "dlhpc"} & set(
            done.stdout.split()
        )


class TestTorque:
    def test_nodes_ppn_gpus(self, torque: Login) -> None:
        torque.submit(
            "#PBS -N n\n#PBS -l nodes=2:ppn=3:gpus=1,walltime=0:10:00\n"
            "cat $PBS_NODEFILE\necho $PBS_NP\ncat $PBS_GPUFILE\n"
        )
        torque.double.idle()
        lines = (torque.folder / "n.o1").read_text().split()
        assert lines == ["node1"] * 3 + ["node2"] * 3 + ["6", "node1-gpu0", "node2-gpu0"]

    @pytest.mark.parametrize("asked", ["select=1:ncpus=2", "ngpus=1", "place=scatter"])
    def test_select_is_unknown(self, torque: Login, asked: str) -> None:
        assert "Unknown resource" in torque.refused("true\n", 187, "-l", asked)

    def test_arrays(self, torque: Login) -> None:
        array = torque.submit("#PBS -N a\necho $PBS_ARRAYID ${PBS_ARRAY_INDEX-none}\n", "-t", "1,3-4%2")
        assert array == "1[].server"
        torque.double.idle()
        assert (torque.folder / "a.o1-3").read_text() == "3 none\n"
        assert torque.full("1[3].server")["job_state"] == "C"
        assert "illegal -t value" in torque.refused("true\n", 2, "-t", "a-b")

    def test_an_ended_job_is_complete_for_a_while_then_unknown(self, torque: Login) -> None:
        job = torque.submit("exit 4\n")
        torque.double.idle()
        assert (torque.full(job)["job_state"], torque.full(job)["exit_status"]) == ("C", "4")
        torque.double.change(keep_completed=0)
        assert "Unknown Job Id" in torque("qstat", job, code=153)

    def test_there_is_no_json_and_x_is_xml(self, torque: Login) -> None:
        job = torque.submit(FOREVER, "-N", "a&b")
        torque("qstat", "-f", "-F", "json", code=2)
        tree = ElementTree.fromstring(torque("qstat", "-x", job))
        assert tree.findtext("Job/Job_Id") == job
        assert tree.findtext("Job/Job_Name") == "a&b"
        assert tree.findtext("Job/Resource_List/nodes") == "1"

    def test_folded_lines(self, torque: Login) -> None:
        job = torque.submit(FOREVER, "-v", "LONG=" + "y" * 200)
        assert "y" * 200 in torque("qstat", "-f", job).replace("\n\t", "")

    def test_nodes_are_listed(self, torque: Login) -> None:
        said = torque("pbsnodes", "-a")
        assert "node1\n     state = free\n     np = 8" in said
        assert "gpus = 2" in said

    def test_hold_release_delete_depend(self, torque: Login) -> None:
        job = torque.submit("exit 1\n", "-h")
        after = torque.submit("true\n", "-W", f"depend=afternotok:{job}")
        torque("qrls", job)
        torque.double.idle()
        assert torque.full(after)["exit_status"] == "0"
        assert "Unknown Job Id" in torque("qdel", "77", code=153)


HEAD = """#!/bin/sh
# @ job_name = run-1
# @ output = out.$(jobid).$(stepid)
# @ error = out.$(jobid).$(stepid)
# @ wall_clock_limit = 00:01:00
"""


class TestLoadLevelerScripts:
    def submit(self, ll: Login, text: str, code: int = 0) -> str:
        return ll("llsubmit", ll.write(text, "job.cmd"), code=code)

    def test_the_answer_names_host_domain_and_number(self, ll: Login) -> None:
        said = self.submit(ll, HEAD + "# @ queue\ntrue\n")
        assert said == 'llsubmit: The job "sched1.cluster.example.1" has been submitted.\n'

    def test_a_filter_may_print_before_it(self, ll: Login) -> None:
        ll.double.change(banner=["INFO: Project: pr1", "INFO: Total [cpuh] 10"])
        said = self.submit(ll, HEAD + "# @ queue\ntrue\n")
        assert said.startswith("INFO: Project: pr1\nINFO: Total")
        assert 'The job "sched1.cluster.example.1" has been submitted.' in said
        assert "Processed command file through Submit Filter" in said

    def test_keywords_blanks_case_and_continuation(self, ll: Login) -> None:
        self.submit(
            ll,
            "#!/bin/sh\n#@Job_Type=parallel\n#   @  NODE = 2\n# @ tasks_per_node = 2\n"
            "# @ resources = ConsumableCpus(2) \\\n"
            "#   ConsumableMemory(10 mb) gpus(1)\n# @ output = o\n# @ wall_clock_limit = 100,90\n"
            '# @ requirements = (Feature == "gpu")\n# @ network.MPI = sn_all,not_shared,US\n# @ queue\n'
            "cat $LOADL_HOSTFILE; echo $LOADL_TOTAL_TASKS; echo $LOADL_PROCESSOR_LIST\n",
        )
        ll.double.idle()
        assert (ll.folder / "o").read_text() == "node1\nnode1\nnode2\nnode2\n4\nnode1 node1 node2 node2\n"
        chunk = ll.double.jobs()["sched1.1.0"]["chunks"][0]
        assert (chunk["ncpus"], chunk["ngpus"], chunk["mem"]) == (4, 2, 20 * 1024**2)

    def test_total_tasks_are_spread(self, ll: Login) -> None:
        self.submit(
            ll, HEAD + "# @ job_type = parallel\n# @ node = 2\n# @ total_tasks = 3\n# @ queue\ncat $LOADL_HOSTFILE\n"
        )
        ll.double.idle()
        assert (ll.folder / "out.1.0").read_text().split() == ["node1", "node1", "node2"]

    @pytest.mark.parametrize(
        "lines",
        [
            "# @ jobname = x\n# @ queue\n",
            "# @ node\n# @ queue\n",
            "# @ node = 2\n# @ queue\n",  # a serial job
            "# @ job_type = parallel\n# @ node = 2\n# @ tasks_per_node = 2\n# @ total_tasks = 4\n# @ queue\n",
            "# @ job_type = parallel\n# @ total_tasks = 4\n# @ queue\n",
            "# @ class = nowhere\n# @ queue\n",
            "# @ wall_clock_limit = 1h\n# @ queue\n",
            "# @ class = short\n# @ wall_clock_limit = 02:00:00\n# @ queue\n",
            "# @ resources = ConsumableCpus(2) teslas(1)\n# @ queue\n",
            "# @ resources = ConsumableCpus=2\n# @ queue\n",
            "# @ notification = sometimes\n# @ queue\n",
            "# @ restart = maybe\n# @ queue\n",
            "# @ environment = A=1; 2B=3\n# @ queue\n",
            "# @ dependency = (nobody == 0)\n# @ queue\n",
            "# @ job_name = a\r\n# @ queue\n",
            "# @ job_type = \\\n# @ queue\n",
            "",
        ],
    )
    def test_what_is_refused(self, ll: Login, lines: str) -> None:
        said = self.submit(ll, HEAD + lines + "true\n", code=1)
        assert "2512-051 This job has not been submitted to LoadLeveler." in said
        assert ll.double.jobs() == {}

    def test_an_account_may_be_needed(self, ll: Login) -> None:
        ll.double.change(account_needed=True)
        self.submit(ll, HEAD + "# @ queue\ntrue\n", code=1)
        self.submit(ll, HEAD + "# @ account_no = pr1\n# @ queue\ntrue\n")

    def test_steps_inherit_and_depend(self, ll: Login) -> None:
        self.submit(
            ll,
            HEAD + "# @ class = short\n# @ step_name = one\n# @ queue\n"
            "# @ step_name = two\n# @ dependency = (one != 0)\n# @ queue\n"
            "# @ step_name = three\n# @ dependency = (two != 0)\n# @ queue\n"
            "echo $LOADL_STEP_NAME $LOADL_STEP_CLASS $LOADL_STEP_ID\n[ $LOADL_STEP_NAME = two ]\n",
        )
        ll.double.idle()
        assert (ll.folder / "out.1.0").read_text() == "one short sched1.1.0\n"
        assert (ll.folder / "out.1.1").read_text() == "two short sched1.1.1\n"
        assert not (ll.folder / "out.1.2").exists()

    def test_variables_of_the_step(self, ll: Login) -> None:
        ll.write(HEAD + "# @ environment = COPY_ALL; A=two words; !SECRET\n# @ queue\nenv\npwd\n", "job.cmd")
        ll("llsubmit", "job.cmd", MINE="1", SECRET="x")
        ll.double.idle()
        lines = (ll.folder / "out.1.0").read_text().splitlines()
        assert {"MINE=1", "A=two words", "LOADL_STEP_ID=sched1.1.0", "LOADL_JOB_NAME=run-1"} <= set(lines)
        assert not any(line.startswith("SECRET=") for line in lines)
        assert lines[-1] == str(ll.folder)

    def test_more_than_128_tasks_have_no_processor_list(self, tmp_path: Path) -> None:
        with LoadLevelerDouble(tmp_path / "ll", cores=200) as double:
            login = Login(double, tmp_path / "work")
            self.submit(
                login,
                HEAD + "# @ job_type = parallel\n# @ tasks_per_node = 129\n# @ queue\n"
                "echo ${LOADL_PROCESSOR_LIST-none}\nwc -l < $LOADL_HOSTFILE\n",
            )
            double.idle()
            assert (login.folder / "out.1.0").read_text().split() == ["none", "129"]

    @pytest.mark.parametrize("shell", ["/usr/bin/dash", "/usr/bin/mksh"])
    def test_the_machine_s_shell(self, tmp_path: Path, shell: str) -> None:
        with LoadLevelerDouble(tmp_path / "ll", shell=shell, posix_path=True) as double:
            login = Login(double, tmp_path / "work")
            self.submit(login, HEAD + "# @ queue\nreadlink -f /proc/$$/exe || ls -l /proc/$$/exe | sed 's/.*-> //'\n")
            double.idle()
            assert (login.folder / "out.1.0").read_text().strip().endswith(shell)


class TestLoadLevelerJobs:
    def submit(self, ll: Login, text: str) -> str:
        return ll("llsubmit", ll.write(text, "job.cmd")).split('"')[1]

    def test_soft_limit_xcpu_hard_limit_kill(self, ll: Login) -> None:
        self.submit(
            ll,
            HEAD.replace("00:01:00", "2,1")
            + "# @ queue\ntrap 'echo xcpu' XCPU\ntrap 'echo term' TERM\nwhile :; do sleep 0.1; done\n",
        )
        ll.wait_for_text("out.1.0", "xcpu")  # output is live
        ll.double.idle()
        assert (ll.folder / "out.1.0").read_text().splitlines()[-1] == "xcpu"
        assert ll.double.jobs()["sched1.1.0"]["exit"] == 9

    def test_llq_lists_steps_and_forgets_ended_ones(self, ll: Login) -> None:
        job = self.submit(ll, HEAD + "# @ queue\n" + FOREVER)
        said = ll("llq", "-f", "%id", "%st", job).splitlines()
        assert said[0].split() == ["Step", "Id", "ST"]
        assert said[2].split() == ["sched1.1.0", "R"]
        assert said[-1].startswith("1 job step(s) in query")
        assert "Job Step Id: sched1.cluster.example.1.0" in ll("llq", "-l", job)
        assert "Status: Running" in ll("llq", "-l", job)
        assert ll("llq", "-r", "%id", "%st") == "sched1.1.0!R\n"
        assert ll("llcancel", job) == "llcancel: Cancel command has been sent to the central manager.\n"
        ll.double.idle()
        assert ll("llq", "-f", "%id", "%st", job) == "llq: There is currently no job status to report.\n"
        assert ll("llq", "-l", "nobody.77.0") == "llq: There is currently no job status to report.\n"

    def test_hold_and_release(self, ll: Login) -> None:
        job = self.submit(ll, HEAD + "# @ hold = user\n# @ queue\ntrue\n")
        assert ll("llq", "-r", "%st", job) == "H\n"
        assert "Hold command has been sent" in ll("llhold", "-r", job)
        ll.double.idle()
        assert ll.double.jobs()["sched1.1.0"]["exit"] == 0

    def test_waiting_steps_are_idle(self, ll: Login) -> None:
        self.submit(
            ll, HEAD + "# @ job_type = parallel\n# @ node = 2\n# @ node_usage = not_shared\n# @ queue\n" + FOREVER
        )
        job = self.submit(ll, HEAD + "# @ queue\ntrue\n")
        assert ll("llq", "-r", "%id", "%st", job) == "sched1.2.0!I\n"
        ll("llhold", job)
        assert ll("llq", "-r", "%st", job) == "H\n"

    @pytest.mark.parametrize(("restart", "runs"), [("yes", 2), ("no", 1)])
    def test_a_node_fails(self, ll: Login, restart: str, runs: int) -> None:
        self.submit(ll, HEAD + f"# @ restart = {restart}\n# @ queue\necho begin\n[ -e again ] || sleep 300\n")
        ll.wait_for_text("out.1.0", "begin")
        (ll.folder / "again").touch()
        ll.double.node_failure("sched1.1.0")
        ll.wait_for("sched1.1.0", "done")
        assert ll.double.jobs()["sched1.1.0"]["runs"] == runs

    def test_vacate_is_announced_with_usr1(self, ll: Login) -> None:
        assert isinstance(ll.double, LoadLevelerDouble)
        self.submit(
            ll,
            HEAD + "# @ restart = yes\n# @ queue\ntrap 'echo usr1' USR1\n"
            "echo begin\n[ -e again ] || sleep 300 & wait; sleep 5\n",
        )
        ll.wait_for_text("out.1.0", "begin")
        ll.double.vacate("sched1.1.0")
        ll.wait_for_text("out.1.0", "usr1")
        ll.wait_for_text("out.1.0", "usr1\nbegin\n")

    def test_classes_and_machines(self, ll: Login) -> None:
        assert "Wall_clock_limit: 01:00:00, 01:00:00 (3600 seconds, 3600 seconds)" in ll("llclass", "-l", "short")
        assert [line.split()[0] for line in ll("llclass").splitlines()[3:]] == ["parallel", "short"]
        assert "node3                     Down" in ll("llstatus")
        assert "node1                     ConsumableCpus(8,8)" in ll("llstatus", "-R")
        assert "Feature = gpu" in ll("llstatus", "-l", "node1")

    def test_down_lost_answer_and_forbidden_nodes(self, ll: Login) -> None:
        ll.double.fail(down=True)
        assert "Cannot connect" in ll("llq", code=255)
        ll.double.fail(lose_answer="silent")
        assert ll("llsubmit", ll.write(HEAD + "# @ queue\ntrue\n", "job.cmd")) == ""
        ll.double.fail()
        ll.double.change(compute_may_submit=False)
        self.submit(ll, HEAD + "# @ queue\nllsubmit job.cmd\necho code $?\n")
        ll.double.idle()
        assert (ll.folder / "out.2.0").read_text().endswith("LoadLeveler.\ncode 1\n")
