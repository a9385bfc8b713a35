"""Whatever spec and site are valid: the job script asks for exactly what was planned, and nothing in it is executed.

Hypothesis makes the specs and sites. The directives are read back by small parsers of our own, written from the manuals
of the batch systems and not from the adapters; three shells must take the script; and the script is run, to see that
odd values arrive as they are.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dlhpc.data.catalog import Catalog
from dlhpc.errors import ErrorList, UserError
from dlhpc.jobs.header import header_of
from dlhpc.jobs.plan import decide
from dlhpc.jobs.render import render
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import Plan
from dlhpc.schedulers.base import get_scheduler
from dlhpc.sites.models import Site
from dlhpc.spec.models import Spec
from tests.unit.job_runs import catalog

SYSTEMS = {
    "local": {"scheduler": "local"},
    "slurm": {"scheduler": "slurm"},
    "pbs": {"scheduler": "pbs", "dialect": "select"},
    "pbs-nodes": {"scheduler": "pbs", "dialect": "nodes"},
    "pbs-totals": {"scheduler": "pbs", "dialect": "totals"},
    "torque": {"scheduler": "pbs", "dialect": "torque"},
    "loadleveler": {"scheduler": "loadleveler"},
}
systems = pytest.mark.parametrize("system", list(SYSTEMS))
quick = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])

# --- Specs and sites --------------------------------------------------------------------------------------------------

TRAPS = (
    "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '"; touch pwned; "', "a\ntouch pwned\n#", "\r\ntouch pwned",
    "a\n#SBATCH --nodes=99\n#PBS -l nodes=99\n# @ node = 99\n# @ queue\ntouch pwned", "# comment", "it's", 'a "b" c',
    "$HOME ${IFS}", "a\\", "\\", "*", "~", "-n", "--", "", " ", "\t", "写真 été", "\u2028touch pwned", "%j %a", "!!",
    "a;b&c|d>e", "EOF\ntouch pwned",
)  # fmt: skip
traps = st.sampled_from(TRAPS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
words = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+:@-]{0,12}", fullmatch=True)
mails = st.from_regex(r"[A-Za-z0-9_.+-]{1,8}@[A-Za-z0-9-]{1,8}(\.[A-Za-z0-9-]{1,4}){0,2}", fullmatch=True)
names = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,39}", fullmatch=True)
EXTRAS = {
    "slurm": ("--nice=5", '--comment="a # b"', "--constraint=a100", "--comment=$(touch pwned)", "-k", "--licenses=a,b"),
    "pbs": ("-l software=abaqus", "-p 10", "-l 'arch=x86 64'", "-l license=$(touch pwned)", "-W umask=027"),
    "loadleveler": ("group = staff", "Environment = A=1; B=$(touch pwned)", 'preferences = (Feature == "big")'),
    "local": ("whatever",),
}
WRONG = ("; touch pwned", "$(touch pwned)", "--time=5", "-l walltime=5", "wall_clock_limit = 5", "a\\", "'", '"', "# x")


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def given_only(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping in which every field may be absent."""
    return st.fixed_dictionaries({}, optional=fields)


def specs(scheduler: str) -> st.SearchStrategy[dict[str, Any]]:
    directives = st.lists(
        st.sampled_from(EXTRAS[scheduler]) | st.sampled_from(WRONG) if scheduler != "local" else traps, max_size=2
    )
    job = given_only(
        {
            "nodes": st.integers(1, 4) if scheduler != "local" else st.just(1),
            "ranks_per_node": st.integers(1, 8),
            "cores_per_rank": maybe(st.integers(1, 8)),
            "gpus_per_rank": maybe(st.integers(0, 1)),
            "memory": maybe(st.sampled_from(["1GB", "1500MB", "16GiB", "63GB"])),
            "walltime": st.integers(1, 30 * 86400).map(lambda seconds: f"{seconds}s"),
            "account": maybe(words),
            "mail": maybe(mails),
            "mail_on": st.lists(st.sampled_from(["begin", "end", "fail"]), min_size=1, max_size=3),
            "exclusive": st.booleans(),
            "reservation": maybe(words),
            "qos": st.none() | words,
            "directives": directives,
        }
    )
    return st.fixed_dictionaries({"name": names, "data": st.just({"folder": "/photos"}), "notes": traps, "job": job})


def sites(system: str) -> st.SearchStrategy[dict[str, Any]]:
    kind = SYSTEMS[system]["scheduler"]
    variables = st.dictionaries(st.sampled_from(["NCCL_DEBUG", "MY_VARIABLE", "_x"]), traps, max_size=2)
    launcher = given_only(
        {
            "kind": st.sampled_from(["auto", "mpirun", "srun", "mpiexec", "poe"]),
            "options": st.lists(traps, max_size=3),
            "environment": variables,
        }
    )
    environment = given_only(
        {
            "prefix": traps.map(lambda text: f"/opt/{text}"),
            "modules": st.lists(words.map(lambda one: one.replace(":", "")), max_size=2),
        }
    )
    gpu = {"resource": maybe(words), **({"feature": maybe(words)} if kind == "loadleveler" else {})}
    network = {"network": st.sampled_from(["sn_all,not_shared,US"])} if kind == "loadleveler" else {}
    scratch = st.from_regex(r"[A-Za-z0-9_./${}:-]{1,12}", fullmatch=True) | st.just("$TMPDIR")
    optional = {
        "launcher": launcher,
        "environments": environment.map(lambda one: {"default": one}),
        "paths": given_only({"scratch": scratch, "module_init": traps}),
        "gpu": given_only(gpu),
        "directives": st.lists(st.sampled_from(EXTRAS[kind]), max_size=1),
        "compute_may_submit": st.booleans(),
        **network,
    }
    fixed = {
        "name": traps,
        "nodes": st.just({"box": {"cores": 64, "gpus": 8, "memory": "64GiB"}}),
        "queues": words.map(lambda one: [{"name": one}]),
        **{name: st.just(value) for name, value in SYSTEMS[system].items()},
    }
    return st.fixed_dictionaries(fixed, optional=optional)


@st.composite
def wishes(draw: st.DrawFn, system: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A spec and a site; three times of four without what this batch system is known to have no word for."""
    kind = SYSTEMS[system]["scheduler"]
    spec, site = draw(specs(kind)), draw(sites(system))
    if draw(st.integers(0, 3)) == 0:
        return spec, site
    job = spec["job"]
    job["directives"] = [text for text in dict.fromkeys(job.get("directives", [])) if text in EXTRAS[kind]]
    site["directives"] = [text for text in site.get("directives", []) if text not in job["directives"]]
    if system not in ("slurm", "torque"):
        job.pop("qos", None)
    if system in ("pbs-nodes", "pbs-totals"):
        job.pop("exclusive", None)
    if system == "pbs-nodes":
        job["gpus_per_rank"] = 0
    if system == "loadleveler" and not any(site.get("gpu", {}).values()):
        site["gpu"] = {"resource": "gpus"}
    if site.get("launcher", {}).get("kind") != "mpirun" and system != "slurm":
        site.get("launcher", {}).pop("kind", None)
    return spec, site


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """Pictures to train on, on a machine with `mpirun` and without a record of its environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlhpc.jobs.plan.read_record", lambda _: None)
        patch.setattr("dlhpc.jobs.launch.shutil.which", lambda name: f"/usr/bin/{name}")
        patch.setattr("dlhpc.jobs.plan.os.access", lambda *_: True)
        yield catalog(tmp_path_factory.mktemp("photos"), 4)


def planned(wished: tuple[dict[str, Any], dict[str, Any]], pictures: Catalog, runs: Path) -> Plan | None:
    """The plan for a spec and a site, or None if all that is wrong is said in a sentence each."""
    spec, site = wished
    try:
        profile, wish = Site.model_validate(site), Spec.model_validate(spec)
    except ValidationError:
        assume(False)
    try:
        return decide(wish, profile, pictures, runs)
    except UserError as error:
        check_refusal(error)
        return None


def check_refusal(error: UserError) -> None:
    for one in error.errors if isinstance(error, ErrorList) else [error]:
        event("refused")
        assert 10 < len(one.what) < 600
        assert one.remedy
        assert "Traceback" not in str(one)


# --- Reading directives back ------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """What a batch system would read in the head of a script."""

    nodes: int | None = None
    ranks_per_node: int | None = None
    cores_per_node: int | None = None
    gpus_per_node: int = 0
    total_cores: int | None = None
    total_gpus: int = 0
    memory_mib_per_node: int | None = None
    total_memory_mib: int | None = None
    walltime: int | None = None
    queue: str | None = None
    account: str | None = None
    mail: str | None = None
    mail_on: set[str] = field(default_factory=set)
    exclusive: bool = False
    reservation: str | None = None
    qos: str | None = None
    array: list[int] = field(default_factory=list)
    running: int | None = None
    output: str | None = None
    rest: list[tuple[str, str]] = field(default_factory=list)
    """What none of these says, as pairs."""


def head_of(script: str) -> list[str]:
    """The lines before the first command."""
    lines = script.split("\n")
    end = next(number for number, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    return lines[:end]


def seconds(text: str) -> int:
    """``[D-]H:M:S``."""
    days, dash, rest = text.rpartition("-")
    hours, minutes, secs = rest.split(":")
    return (int(days) * 86400 if dash else 0) + int(hours) * 3600 + int(minutes) * 60 + int(secs)


def spread(text: str) -> tuple[list[int], int | None]:
    """``0-8:2,11%3`` as a list of indices, and how many run at once."""
    text, _, running = text.partition("%")
    found: list[int] = []
    for part in text.split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found, int(running) if running else None


def read_slurm(lines: list[str], gpu: str | None) -> Asked:
    asked = Asked()
    for line in lines:
        if not line.startswith("#SBATCH "):
            continue
        for word in shlex.split(line.removeprefix("#SBATCH ")):
            name, _, value = word.partition("=")
            match name:
                case "--nodes":
                    asked.nodes = int(value)
                case "--ntasks-per-node":
                    asked.ranks_per_node = int(value)
                case "--cpus-per-task":
                    asked.cores_per_node = int(value)
                case "--gres":
                    kind, _, number = value.rpartition(":")
                    assert kind == (gpu or "gpu")
                    asked.gpus_per_node = int(number)
                case "--mem":
                    asked.memory_mib_per_node = int(value.removesuffix("M"))
                case "--time":
                    asked.walltime = seconds(value)
                case "--partition":
                    asked.queue = value
                case "--account" | "--reservation" | "--qos":
                    setattr(asked, name[2:], value)
                case "--mail-user":
                    asked.mail = value
                case "--mail-type":
                    asked.mail_on = set(value.lower().split(","))
                case "--exclusive":
                    asked.exclusive = True
                case "--array":
                    asked.array, asked.running = spread(value)
                case "--output":
                    asked.output = value.replace("%%", "%")
                case _:
                    asked.rest.append((name, value))
    asked.cores_per_node = (asked.cores_per_node or 0) * (asked.ranks_per_node or 0)
    return asked


def read_pbs(lines: list[str], gpu: str | None) -> Asked:
    asked = Asked()
    resources: list[str] = []
    for line in lines:
        if not line.startswith("#PBS "):
            continue
        words = shlex.split(line.removeprefix("#PBS "))
        assert len(words) == 2, line
        name, value = words
        match name:
            case "-l":
                resources.append(value)
            case "-q":
                asked.queue = value
            case "-A":
                asked.account = value
            case "-M":
                asked.mail = value
            case "-m":
                letters = {"b": "begin", "e": "end", "a": "fail"}
                asked.mail_on = {letters[letter] for letter in value}
            case "-J" | "-t":
                asked.array, asked.running = spread(value)
            case "-o":
                asked.output = value
            case _:
                asked.rest.append((name, value))
    for text in resources:
        name, _, value = text.partition("=")
        match name:
            case "walltime":
                asked.walltime = seconds(value)
            case "select" | "nodes":
                number, *parts = value.split(":")
                asked.nodes = int(number)
                for part in parts:
                    what, _, amount = part.rpartition("=")
                    if what in ("ncpus", "ppn"):
                        asked.cores_per_node = int(amount)
                    elif what == "mpiprocs":
                        asked.ranks_per_node = int(amount)
                    elif what == "mem":
                        asked.memory_mib_per_node = int(amount.removesuffix("mb"))
                    elif what != "ompthreads":
                        assert part == f"{gpu or ('ngpus' if name == 'select' else 'gpus')}={amount}"
                        asked.gpus_per_node = int(amount)
            case "place":
                asked.exclusive = value.endswith(":excl")
            case "naccesspolicy":
                asked.exclusive = value == "singlejob"
            case "ncpus":
                asked.total_cores = int(value)
            case "mem":
                asked.total_memory_mib = int(value.removesuffix("mb"))
            case "qos":
                asked.qos = value
            case _ if name == (gpu or "ngpus") and name not in ("software", "arch", "license"):
                asked.total_gpus = int(value)
            case _:
                asked.rest.append(("-l", text))
    return asked


def read_loadleveler(lines: list[str], gpu: str | None) -> Asked:
    asked = Asked()
    keywords = (re.fullmatch(r"#\s*@\s*(\S+?)\s*(?:=\s*(.*))?", line) for line in lines)
    found = [(keyword[1].lower(), keyword[2] or "") for keyword in keywords if keyword is not None]
    assert found[-1] == ("queue", "")
    assert [name for name, _ in found].count("queue") == 1
    assert len({name for name, _ in found}) == len(found), "LoadLeveler would take the last of two"
    for name, value in found[:-1]:
        match name:
            case "node":
                asked.nodes = int(value)
            case "tasks_per_node":
                asked.ranks_per_node = int(value)
            case "wall_clock_limit":
                hard, _, soft = value.partition(",")
                asked.walltime = seconds(hard)
                assert seconds(soft or "0:0:0") < asked.walltime
            case "class":
                asked.queue = value
            case "account_no":
                asked.account = value
            case "notify_user":
                asked.mail = value
            case "node_usage":
                asked.exclusive = value == "not_shared"
            case "output":
                asked.output = value
            case "resources":
                parts = dict(re.findall(r"(\S+?)\(([^)]*)\)", value))
                asked.cores_per_node = int(parts.pop("ConsumableCpus")) * (asked.ranks_per_node or 0)
                if memory := parts.pop("ConsumableMemory", None):
                    asked.memory_mib_per_node = int(memory.removesuffix(" mb")) * (asked.ranks_per_node or 0)
                if parts:
                    assert list(parts) == [gpu]
                    asked.gpus_per_node = int(parts[str(gpu)]) * (asked.ranks_per_node or 0)
            case _:
                asked.rest.append((name, value))
    return asked


READERS = {"slurm": read_slurm, "pbs": read_pbs, "loadleveler": read_loadleveler}
DIRECTIVE = {"slurm": r"#SBATCH.*", "pbs": r"#PBS.*", "loadleveler": r"#\s*@.*"}


def check_asked(plan: Plan, asked: Asked, run: RunDirectory) -> None:
    """What was read is what was planned."""
    cores = plan.ranks_per_node * plan.cores_per_rank
    gpus = plan.ranks_per_node * plan.gpus_per_rank
    mib = None if plan.memory_bytes is None else plan.memory_bytes // 2**20
    if plan.dialect == "totals":
        assert (asked.total_cores, asked.total_gpus) == (plan.nodes * cores, plan.nodes * gpus)
    else:
        assert (asked.nodes, asked.cores_per_node) == (plan.nodes, cores)
        if plan.gpu_feature is None or plan.gpu_resource is not None:
            assert asked.gpus_per_node == gpus
        elif gpus:
            assert ("requirements", f'(Feature == "{plan.gpu_feature}")') in asked.rest
    if plan.scheduler != "pbs" or plan.dialect == "select":
        assert asked.ranks_per_node == plan.ranks_per_node
    if mib is None:
        assert asked.memory_mib_per_node is asked.total_memory_mib is None
    elif plan.scheduler == "pbs" and plan.dialect != "select":
        assert asked.total_memory_mib == plan.nodes * mib
    else:
        assert asked.memory_mib_per_node is not None
        assert 0 <= mib - asked.memory_mib_per_node < plan.ranks_per_node
    assert asked.walltime == plan.walltime_seconds
    assert asked.account == plan.account
    assert asked.exclusive == plan.exclusive
    assert asked.output == str(run.job_log)
    reserved_queue = plan.scheduler == "pbs" and plan.dialect != "torque" and plan.reservation is not None
    assert asked.queue == (str(plan.reservation).partition(".")[0] if reserved_queue else plan.queue)
    if plan.scheduler == "slurm":
        assert asked.reservation == plan.reservation
    elif plan.dialect == "torque" and plan.reservation is not None:
        assert ("-W", f"x=FLAGS:ADVRES:{plan.reservation}") in asked.rest
    assert asked.qos == plan.qos
    assert asked.mail == plan.mail
    if plan.scheduler == "loadleveler":
        check_notification(plan, asked)
    elif plan.mail is not None:
        assert asked.mail_on == set(plan.mail_on)
    for text in plan.directives:
        if plan.scheduler == "loadleveler":
            name, _, value = text.partition(" = ")
            assert (name.lower(), value) in asked.rest
        elif plan.scheduler == "slurm":
            name, _, value = shlex.split(text)[0].partition("=")
            assert (name, value) in asked.rest
        else:
            assert tuple(shlex.split(text)) in asked.rest


def check_notification(plan: Plan, asked: Asked) -> None:
    """LoadLeveler has fewer moments: never fewer mails than asked for."""
    moments = {
        "always": {"begin", "end", "fail"}, "complete": {"end", "fail"}, "start": {"begin"}, "error": {"fail"},
        "never": set(),
    }  # fmt: skip
    told = moments[dict(asked.rest)["notification"]]
    assert told >= set(plan.mail_on if plan.mail else [])
    assert plan.mail is not None or not told


@systems
@quick
@given(data=st.data())
def test_any_valid_spec_asks_for_what_was_planned_or_is_refused_in_a_sentence(
    system: str, pictures: Catalog, data: st.DataObject
) -> None:
    kind = SYSTEMS[system]["scheduler"]
    runs = Path("/shared/my-runs")
    plan = planned(data.draw(wishes(system)), pictures, runs)
    if plan is None:
        return
    event("planned")
    run = RunDirectory(runs / "cars-1")
    script = render(plan, run)
    if kind == "local":
        assert not re.search(r"^#(SBATCH|PBS|\s*@)", script, re.MULTILINE)
        return
    head = head_of(script)
    everywhere = [line for line in re.split(r"[\n\r]", script) if re.fullmatch(DIRECTIVE[kind], line)]
    assert everywhere == [line for line in head if re.fullmatch(DIRECTIVE[kind], line)]
    assert "\r" not in "".join(head)
    check_asked(plan, READERS[kind](head, plan.gpu_resource), run)


@systems
@quick
@given(
    indices=st.sets(st.integers(0, 300), min_size=1, max_size=40) | st.integers(2, 60).map(range),
    running=st.none() | st.integers(1, 9),
)
def test_an_array_has_exactly_its_tasks_or_is_refused(
    system: str, pictures: Catalog, indices: Any, running: int | None
) -> None:
    kind = SYSTEMS[system]["scheduler"]
    spec = {"name": "cars", "data": {"folder": "/photos"}, "job": {"gpus_per_rank": 0}}
    site = {"name": "x", "queues": [{"name": "q"}], "nodes": {"box": {"cores": 8}}, **SYSTEMS[system]}
    plan = planned((spec, site), pictures, Path("/runs"))
    assert plan is not None
    scheduler = get_scheduler(plan.scheduler, plan.dialect)
    array = tuple(sorted(indices))
    header = header_of(plan, RunDirectory(Path("/runs/cars-1")), array=array, running=running)
    if kind == "local":
        assert not scheduler.abilities.arrays
        return
    try:
        lines = scheduler.directives(header)
    except UserError as error:
        check_refusal(error)
        assert not scheduler.abilities.arrays or plan.dialect in ("select", "nodes", "totals")
        return
    asked = READERS[kind](lines, None)
    assert (asked.array, asked.running) == (list(array), running)


# --- Shells -----------------------------------------------------------------------------------------------------------

FOLDERS = (
    "/shared/runs",
    "/shared/my runs",
    "/a'b",
    '/a"b',
    "/$(touch pwned)",
    "/写真",
    "/a;b&c#d",
    "/a\ntouch pwned",
    "/-n",
)
folders = st.just("/shared/runs") | st.just("/shared/other-runs") | st.sampled_from(FOLDERS)
SHELLS = [shell for shell in ("sh", "dash", "mksh", "bash") if shutil.which(shell)]


@systems
@settings(quick, max_examples=20)
@given(data=st.data())
def test_every_shell_takes_the_script(system: str, pictures: Catalog, data: st.DataObject) -> None:
    runs = Path(data.draw(folders))
    plan = planned(data.draw(wishes(system)), pictures, runs)
    if plan is None:
        return
    script = render(plan, RunDirectory(runs / "cars-1"))
    with tempfile.TemporaryDirectory() as folder:
        for shell in SHELLS:
            done = subprocess.run([shell, "-n"], input=script.encode(), capture_output=True, cwd=folder, check=False)
            assert (done.returncode, done.stderr) == (0, b""), shell
        assert os.listdir(folder) == []


@settings(quick, max_examples=1)
@given(data=st.data())
def test_shellcheck_finds_nothing_in_the_scripts(pictures: Catalog, data: st.DataObject, tmp_path_factory: Any) -> None:
    if shutil.which("shellcheck") is None:
        pytest.fail("no shellcheck here; `make test` as root installs it")
    folder = tmp_path_factory.mktemp("scripts")
    for system in SYSTEMS:
        for number in range(4):
            runs = Path(data.draw(folders))
            plan = planned(data.draw(wishes(system)), pictures, runs)
            if plan is not None:
                (folder / f"{system}-{number}.sh").write_text(render(plan, RunDirectory(runs / "cars-1")))
    scripts = sorted(str(path) for path in folder.iterdir())
    done = subprocess.run(["shellcheck", "-s", "sh", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


STUB = """#!/bin/sh
# In place of Python: notes what it was called with, and is the first attempt.
case $2 in
    dlhpc.jobs.begin)
        printf '%s' "$3" > "$NOTED/run"
        for name in NCCL_DEBUG MY_VARIABLE _x; do
            eval "[ -z \\"\\${$name+set}\\" ] || printf %s \\"\\$$name\\" > \\"\\$NOTED/$name\\""
        done
        echo 1 9999999999 ;;
    dlhpc.jobs.conclude) printf '%s' "$5" > "$NOTED/status" ;;
esac
"""


@systems
@pytest.mark.parametrize("shell", [shell for shell in ("dash", "mksh") if shutil.which(shell)])
@settings(quick, max_examples=12)
@given(data=st.data())
def test_values_arrive_as_they_are_and_nothing_is_executed(
    system: str, shell: str, pictures: Catalog, data: st.DataObject
) -> None:
    name = data.draw(folders)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        spec, site = data.draw(wishes(system))
        site.get("paths", {}).pop("scratch", None)  # it may be any folder of this machine
        site["launcher"] = {**site.get("launcher", {}), "kind": "mpirun", "command": "/nowhere/mpirun"}
        plan = planned((spec, site), pictures, folder / Path(name).name)
        if plan is None:
            return
        stub = folder / "python"
        stub.write_text(STUB)
        stub.chmod(0o755)
        run = RunDirectory(folder / Path(name).name / "cars-1")
        for part in ("logs", "attempts"):
            (run.path / part).mkdir(parents=True)
        noted = folder / "noted"
        noted.mkdir()
        (folder / "empty").mkdir()
        try:
            script = render(replace(plan, python=str(stub), modules=[]), run)
        except UserError as error:
            check_refusal(error)
            return
        (folder / "job.sh").write_text(script)
        hosts = {"PBS_NODEFILE": "/dev/null", "LOADL_HOSTFILE": "/dev/null"}  # every node of these systems has one
        environment = {"PATH": os.environ["PATH"], "NOTED": str(noted), "HOME": place, **hosts}
        done = subprocess.run(
            [shell, str(folder / "job.sh")], capture_output=True, cwd=folder / "empty", env=environment, check=False
        )
        assert (noted / "run").read_text() == str(run.path), done.stderr
        exports = {name: value for name, value in plan.exports.items() if name in ("NCCL_DEBUG", "MY_VARIABLE", "_x")}
        for name, value in exports.items():
            assert (noted / name).read_bytes() == value.encode()
        assert (noted / "status").exists()
        assert not [path for path in folder.rglob("*") if path.name == "pwned"]
