"""What batch systems say of their machines, and how a profile compares with it. No batch system is needed here."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlhpc import resources
from dlhpc.cli import cli
from dlhpc.errors import CommandError
from dlhpc.process import ask
from dlhpc.sites import probe_loadleveler, probe_pbs, probe_slurm
from dlhpc.sites.check import compare
from dlhpc.sites.findings import Finding, Verdict, placed
from dlhpc.sites.first import first_profile
from dlhpc.sites.load import load_site
from dlhpc.sites.login import environment_findings, look
from dlhpc.sites.models import Site
from dlhpc.sites.probe import LiveNode, LiveQueue, Machine, clock, size
from dlhpc.spec.load import parse_document, validate

SLURM_CONFIG = """\
Configuration data as of 2026-11-24T00:46:00
AccountingStorageEnforce = associations,limits
ClusterName             = test
KillWait                = 30 sec
MaxArraySize            = 1001
SLURM_VERSION           = 22.05.8
SchedulerParameters     = batch_sched_delay=0,sched_interval=2

Slurmctld(primary) at vm is UP
"""
SLURM_PARTITIONS = """\
PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllocNodes=ALL Default=YES QoS=N/A DefaultTime=00:10:00 MaxNodes=4 \
MaxTime=1-00:00:00 MinNodes=0 Nodes=gpu[1-3] State=UP TotalCPUs=16 TotalNodes=3 TRES=cpu=16,mem=125G,node=2
PartitionName=long Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=2 Nodes=gpu[1-3],cpu1 State=DRAIN
"""
SLURM_NODES = """\
NodeName=gpu1 Arch=x86_64 CoresPerSocket=8  CPUAlloc=0 CPUEfctv=16 CPUTot=16 CPULoad=1.33 AvailableFeatures=a100,ib \
ActiveFeatures=a100,ib Gres=gpu:a100:4(S:0-1),shard:8 NodeAddr=127.0.0.1 Version=22.05.8 OS=Linux 6.1 #1 SMP @0  \
RealMemory=64000 AllocMem=0 State=MIXED+DRAIN ThreadsPerCore=2 Partitions=gpu,long Reason=Not responding [root@now]
NodeName=gpu2 Arch=x86_64 CPUEfctv=16 CPUTot=16 AvailableFeatures=(null) Gres=gpu:a100:4(S:0-1) RealMemory=64000 \
State=IDLE ThreadsPerCore=2 Partitions=gpu,long
NodeName=gpu3 CPUTot=16 Gres=gpu:a100:4 RealMemory=64000 State=DOWN* ThreadsPerCore=2 Partitions=gpu,long
NodeName=cpu1 CPUTot=8 Gres=(null) RealMemory=32000 State=ALLOCATED ThreadsPerCore=1 Partitions=long
"""
PBS_SERVER = """\
Server: pbs1
    server_state = Active
    server_host = pbs1.example.org
    scheduling = True
    default_queue = gpu@pbs1
    state_count = Transit:0 Queued:0 Held:0 Waiting:0 Running:0 Exiting:0 Begun
\t:0
    pbs_version = 23.06.06
    max_array_size = 10000

"""
PBS_QUEUES = """\
Queue: gpu
    queue_type = Execution
    total_jobs = 0
    state_count = Transit:0 Queued:0 Held:0 Waiting:0 Running:0 Exiting:0 Begun
\t:0
    max_queued = [u:PBS_GENERIC=50]
    resources_max.nodect = 8
    resources_max.walltime = 24:00:00
    kill_delay = 20
    enabled = True
    started = True

Queue: old
    queue_type = Execution
    enabled = False
    started = True
"""
PBS_NODES = """\
node1
     Mom = node1.example.org
     ntype = PBS
     state = free
     pcpus = 36
     resources_available.mem = 394264576kb
     resources_available.ncpus = 36
     resources_available.ngpus = 10
     resources_available.host = node1
     resources_assigned.ncpus = 4
     sharing = default_shared

node2
     Mom = node2.example.org
     state = state-unknown,down
     resources_available.mem = 394264576kb
     resources_available.ncpus = 36
     resources_available.ngpus = 10
     queue = gpu
     comment = node down: communication closed

"""
TORQUE_NODES = """\
node1
     state = job-exclusive
     power_state = Running
     np = 16
     properties = k20,ib
     ntype = cluster
     jobs = 0-15/123.server
     status = rectime=1,physmem=65961740kb,ncpus=16,opsys=linux
     mom_service_port = 15002
     gpus = 2
     gpu_status = gpu[1]=gpu_id=0000:84:00.0;gpu_state=Unallocated

node2
     state = down,offline
     np = 16
     ntype = cluster
     gpus = 2

"""
LL_CLASSES = """\
=============== Class large ===============
                Name: large
            Priority: 50
       Exclude_Users:
      Max_processors: -1
            Max_node: 4
   Wall_clock_limit: 1+00:00:00, 23:55:00 (86400 seconds, 86100 seconds)
       Job_cpu_limit: undefined, undefined
--------------------------------------------------------------------------------
=============== Class endless ===============
                Name: endless
    Wall_clock_limit: undefined, undefined
--------------------------------------------------------------------------------
"""
LL_MACHINES = """\
===============================================================================
Name                = p01.example.org
Machine             = p01.example.org
Arch                = R6000
OpSys               = AIX71
Feature             = power7 switch
Cpus                = 32
Memory              = 131072 mb
ConfiguredClasses   = large(32) endless(4) No_Class(1)
ConsumableResources = ConsumableCpus(16,32)+ ConsumableMemory(60.000 gb,120.000 gb) gpus(1,2)
State               = Busy
===============================================================================
Name                = p02.example.org
Machine             = p02.example.org
Feature             =
Cpus                = 32
Memory              = 131072 mb
ConfiguredClasses   = large(32)
StartdAvail         = 0
State               = Down
"""


def test_slurm_tells_its_partitions() -> None:
    gpu, long = probe_slurm.parse_partitions(SLURM_PARTITIONS)
    assert gpu == LiveQueue("gpu", is_default=True, max_walltime=timedelta(days=1), max_nodes=4)
    assert long == LiveQueue("long", min_nodes=2, closed="State=DRAIN")


def test_slurm_tells_its_nodes() -> None:
    gpu1, gpu2, gpu3, cpu1 = probe_slurm.parse_nodes(SLURM_NODES)
    assert (gpu1.cores, gpu1.memory_bytes, gpu1.gpus) == (16, 64000 * 2**20, 4)
    assert gpu1.resources == {"gpu": 4, "gpu:a100": 4, "shard": 8}
    assert (gpu1.features, gpu1.queues, gpu1.up) == (("a100", "ib"), ("gpu", "long"), False)
    assert (gpu2.features, gpu2.up) == ((), True)
    assert (gpu3.state, gpu3.up) == ("DOWN*", False)
    assert (cpu1.gpus, cpu1.resources, cpu1.up) == (0, {}, True)


def test_slurm_tells_its_limits() -> None:
    config = probe_slurm.parse_config(SLURM_CONFIG)
    assert config["MaxArraySize"] == "1001"
    assert config["KillWait"] == "30 sec"
    assert config["SchedulerParameters"] == "batch_sched_delay=0,sched_interval=2"


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("gpu:2", {"gpu": 2}),
        ("gpu", {"gpu": 1}),
        ("gpu:a100:4(S:0-1),gpu:v100:2", {"gpu": 6, "gpu:a100": 4, "gpu:v100": 2}),
        ("", {}),
    ],
)
def test_gres_are_counted(text: str, counts: dict[str, int]) -> None:
    assert probe_slurm.parse_gres(text) == counts


def test_pbs_tells_its_queues_and_server() -> None:
    gpu, old = probe_pbs.parse_queues(PBS_QUEUES)
    assert gpu == LiveQueue("gpu", max_walltime=timedelta(days=1), max_nodes=8, max_jobs=50)
    assert old.closed == "enabled = False"
    assert probe_pbs.parse_kill_delay(PBS_QUEUES) == timedelta(seconds=20)
    name, server = probe_pbs.parse_server(PBS_SERVER)
    assert (name, server["max_array_size"], server["default_queue"]) == ("pbs1", "10000", "gpu@pbs1")
    assert server["state_count"].endswith("Begun:0"), "a folded line is whole again"


def test_pbs_tells_its_nodes() -> None:
    first, second = probe_pbs.parse_nodes(PBS_NODES)
    assert (first.cores, first.gpus, first.memory_bytes, first.up) == (36, 10, 394264576 * 1024, True)
    assert (first.queues, second.queues) == ((), ("gpu",))
    assert (second.state, second.up) == ("state-unknown,down", False)


def test_torque_tells_its_nodes() -> None:
    first, second = probe_pbs.parse_nodes(TORQUE_NODES)
    assert (first.cores, first.gpus, first.memory_bytes, first.up) == (16, 2, 65961740 * 1024, True)
    assert first.features == ("k20", "ib")
    assert (second.memory_bytes, second.up) == (None, False)


def test_loadleveler_tells_its_classes_and_machines() -> None:
    large, endless = probe_loadleveler.parse_classes(LL_CLASSES)
    assert large == LiveQueue("large", max_walltime=timedelta(days=1), max_nodes=4)
    assert endless.max_walltime is None
    first, second = probe_loadleveler.parse_machines(LL_MACHINES)
    assert (first.name, first.cores, first.memory_bytes, first.gpus) == ("p01.example.org", 32, 120 * 2**30, 2)
    assert (first.features, first.queues) == (("power7", "switch"), ("large", "endless", "No_Class"))
    assert (first.up, second.up) == (True, False)
    assert second.memory_bytes == 131072 * 2**20, "without consumable memory the machine's own counts"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30:00", 1800), ("1:30:00", 5400), ("2-00:00:00", 172800), ("1+02:45:00", 96300)],
)
def test_times_of_batch_systems(text: str, seconds: int) -> None:
    assert clock(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["UNLIMITED", "undefined", "", "-1"])
def test_no_limit_is_none(text: str) -> None:
    assert clock(text) is None


@pytest.mark.parametrize(
    ("text", "number"), [("131072kb", 2**27), ("60.000 gb", 60 * 2**30), ("512", 512), ("?", None)]
)
def test_sizes_of_batch_systems(text: str, number: int | None) -> None:
    assert size(text) == number


MACHINE = Machine(
    "slurm",
    name="test",
    version="22.05.8",
    queues=probe_slurm.parse_partitions(SLURM_PARTITIONS),
    nodes=probe_slurm.parse_nodes(SLURM_NODES),
    max_array=1000,
    kill_grace=timedelta(seconds=30),
    accounts=("materials",),
)
PROFILE = """\
name: here
scheduler: slurm
nodes:
  gpu:
    cores: 16
    memory: 60GB
    gpus: 4
    count: 3
    off: 2
queues:
  - name: gpu
    max_walltime: 24:00:00
    max_nodes: 3
max_array: 1000
kill_grace: 30s
accounts: {default: materials}
"""


def findings(text: str, machine: Machine = MACHINE) -> list[Finding]:
    document = parse_document(text, Path("here.yaml"))
    return placed(compare(validate(document, Site), machine), document)


def differing(text: str, machine: Machine = MACHINE) -> list[str]:
    return [
        f"{finding.place}: {finding.subject}: {finding.what} → {finding.remedy}"
        for finding in findings(text, machine)
        if finding.verdict is Verdict.DIFFERS
    ]


def test_a_profile_that_is_right() -> None:
    assert differing(PROFILE) == []
    said = {finding.subject: finding.what for finding in findings(PROFILE)}
    assert said["nodes gpu"] == "3 there, 2 of them off"
    assert said["queue gpu: walltime"] == "24:00:00"
    assert said["further queues"] == "the profile does not offer long"


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        (
            "max_walltime: 24:00:00",
            "max_walltime: 48:00:00",
            (
                "here.yaml:12: queue gpu: walltime: the profile says 48:00:00, the system 24:00:00 → "
                "Set `max_walltime: 24:00:00`."
            ),
        ),
        (
            "    max_nodes: 3",
            "    max_nodes: 8",
            "here.yaml:13: queue gpu: nodes: the profile allows 8, the system 3 → Set `max_nodes: 3`.",
        ),
        (
            "    cores: 16",
            "    cores: 32",
            "here.yaml:5: nodes gpu: cores: the profile says 32, the system 16 (every node) → Set `cores: 16`.",
        ),
        (
            "    gpus: 4",
            "    gpus: 2",
            "here.yaml:7: nodes gpu: GPUs: the profile says 2, the system 4 (every node) → Set `gpus: 4`.",
        ),
        (
            "memory: 60GB",
            "memory: 80GB",
            (
                "here.yaml:6: nodes gpu: memory: the profile says 80.0 GB, the system 67.1 GB (every node) → "
                "Set `memory: 67GB`."
            ),
        ),
        (
            "    off: 2",
            "    off: 0",
            (
                "here.yaml:9: nodes gpu: off: the profile says 0 of 3, the system 2: gpu1 (MIXED+DRAIN), gpu3 (DOWN*)"
                " → Set `off: 2` if that is to stay so."
            ),
        ),
        (
            "    count: 3",
            "    count: 10",
            "here.yaml:8: nodes gpu: the profile says 10, the system 3 there, 2 of them down or off → Set `count: 3`.",
        ),
        (
            "  - name: gpu",
            "  - name: gppu",
            (
                "here.yaml:11: queue gppu: the system has no such queue; it has: gpu, long → "
                "Correct its name, or remove it."
            ),
        ),
        (
            "max_array: 1000",
            "max_array: 5000",
            "here.yaml:14: tasks of an array: the profile says 5000, the system allows 1000 → Set `max_array: 1000`.",
        ),
        (
            "kill_grace: 30s",
            "kill_grace: 60s",
            "here.yaml:15: time from TERM to KILL: the profile says 60 s, the system 30 s → Set `kill_grace: 30s`.",
        ),
        (
            "default: materials",
            "default: physics",
            (
                "here.yaml:16: account: you may not charge physics; you may charge materials → "
                "Correct accounts.default, or ask for the right to charge it."
            ),
        ),
    ],
)
def test_each_difference_is_named_with_both_numbers_its_line_and_what_to_do(line: str, instead: str, said: str) -> None:
    assert line in PROFILE
    assert said in differing(PROFILE.replace(line, instead))


def test_a_closed_queue_is_named() -> None:
    profile = PROFILE.replace("  - name: gpu\n", "  - name: long\n    min_nodes: 2\n")
    assert any("takes or starts no jobs now: State=DRAIN" in said for said in differing(profile))


def test_fewer_than_there_are_is_fine() -> None:
    said = {finding.subject: finding for finding in findings(PROFILE.replace("cores: 16", "cores: 12"))}
    assert said["nodes gpu: cores"].verdict is Verdict.OK
    assert said["nodes gpu: cores"].what == "12 of 16 a node"


def test_the_sixty_per_cent() -> None:
    """Ten machines, four of them off to save electricity: right, whether or not the system still lists those four."""
    profile = load_site("power-aix")
    on = [LiveNode(f"p{number}", 32, memory_bytes=128 * 2**30, queues=("large", "small")) for number in range(6)]
    off = [replace(on[0], name=f"p{number}", up=False, state="Down") for number in range(6, 10)]
    for nodes in (on, on + off):
        machine = Machine("loadleveler", name="", nodes=tuple(nodes))
        (count,) = [finding for finding in compare(profile, machine) if finding.subject == "nodes power7"]
        assert (count.verdict, count.what) == (Verdict.OK, "10 there, 4 of them off")


def test_two_kinds_of_nodes_that_no_queue_tells_apart_are_told_apart_by_their_looks() -> None:
    profile = load_site("pbs-totals")
    gpu = [LiveNode(f"g{n}", 48, memory_bytes=384 * 2**30, gpus=4, resources={"ngpus": 4}) for n in range(160)]
    cpu = [LiveNode(f"c{n}", 48, memory_bytes=192 * 2**30, resources={}) for n in range(3000)]
    machine = Machine("pbs", name="", dialect="select", nodes=(*gpu, *cpu))
    assert [finding for finding in compare(profile, machine) if finding.verdict is Verdict.DIFFERS] == []
    machine = replace(machine, nodes=tuple(cpu))
    (lost,) = [finding for finding in compare(profile, machine) if finding.verdict is Verdict.DIFFERS]
    assert lost.what == "the system has no such nodes; it has 3000 × 48 cores and 0 GPUs"


def test_gpus_under_another_name() -> None:
    text = PROFILE + "gpu: {resource: 'gpu:a100'}\n"
    assert differing(text) == []
    wrong = differing(PROFILE + "gpu: {resource: 'gpu:h100'}\n")
    assert any("no node has the resource gpu:h100; there are: gpu, gpu:a100, shard" in said for said in wrong)


def test_nodes_with_gpus_as_a_feature() -> None:
    text = PROFILE.replace("scheduler: slurm", "scheduler: loadleveler") + "gpu: {feature: a100}\n"
    (wrong,) = [said for said in differing(text, replace(MACHINE, scheduler="loadleveler")) if "feature" in said]
    assert "1 of 3 nodes have the feature a100" in wrong


def test_torque_is_not_pbs_professional() -> None:
    machine = Machine("pbs", "s", dialect="torque", nodes=probe_pbs.parse_nodes(TORQUE_NODES))
    text = "name: here\nscheduler: pbs\nqueues: [{name: batch}]\n"
    assert any("the profile says select, but the server is Torque" in said for said in differing(text, machine))


def test_a_silent_system_leaves_questions_open_and_is_no_difference() -> None:
    machine = Machine("slurm", name="", silent=("`scontrol show node` did not answer within 60 s",))
    (only,) = findings(PROFILE, machine)
    assert (only.verdict, only.what) == (Verdict.CANNOT_TELL, "`scontrol show node` did not answer within 60 s")


@pytest.mark.parametrize(
    "machine",
    [
        MACHINE,
        Machine(
            "pbs",
            name="pbs1.example.org",
            dialect="select",
            queues=probe_pbs.parse_queues(PBS_QUEUES),
            nodes=probe_pbs.parse_nodes(PBS_NODES),
            max_array=10000,
            kill_grace=timedelta(seconds=20),
        ),
        Machine("pbs", name="", dialect="torque", queues=(), nodes=probe_pbs.parse_nodes(TORQUE_NODES)),
        Machine(
            "loadleveler",
            name="",
            queues=probe_loadleveler.parse_classes(LL_CLASSES),
            nodes=probe_loadleveler.parse_machines(LL_MACHINES),
        ),
        Machine("slurm", name="odd: #\n{name}", queues=(LiveQueue("büro queue"), LiveQueue("true")), nodes=()),
        Machine("local", name="desk", nodes=(LiveNode("desk", cores=4),)),
        Machine("slurm", name="", silent=("`scontrol` said:\nno: [",)),
    ],
    ids=lambda machine: f"{machine.scheduler}-{machine.name[:4]}",
)
def test_a_first_profile_loads_and_agrees_with_the_machine(machine: Machine) -> None:
    text = first_profile(machine, "here")
    document = parse_document(text, Path("here.yaml"))
    profile = validate(document, Site)
    if machine.queues and machine.nodes:
        assert [found for found in compare(profile, machine) if found.verdict is Verdict.DIFFERS] == [], text


def test_a_first_profile_names_the_default_queue_first_and_explains_what_it_leaves_out() -> None:
    text = first_profile(MACHINE, "here")
    assert "# long is left out: State=DRAIN" in text
    profile = validate(parse_document(text, Path("here.yaml")), Site)
    assert [queue.name for queue in profile.queues] == ["gpu"]
    assert profile.nodes["gpu"].off == 2
    assert profile.nodes["cpu"].cores == 8


def test_what_a_login_node_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that load, an environment that is not there, commands that are missing, a folder that can be written."""
    modules = tmp_path / "init.sh"
    modules.write_text('module() { [ "$2" = good/1 ] && LOADEDMODULES=${LOADEDMODULES:+$LOADEDMODULES:}$2; }\n')
    profile = validate(
        parse_document(
            "name: x\nscheduler: loadleveler\nqueues: [{name: q}]\nlauncher: {kind: mpirun, command: no-such-program}\n"
            f"environments: {{default: {{modules: [good/1, bad/2]}}, gone: {{prefix: {tmp_path}/gone}}}}\n"
            f"paths: {{module_init: {modules}}}\n",
            Path("x.yaml"),
        ),
        Site,
    )
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    seen = {finding.subject: finding for finding in look(profile, tmp_path / "new" / "runs")}
    assert seen["commands"].verdict is Verdict.DIFFERS
    assert "llsubmit" in seen["commands"].what
    assert seen["folder of runs"].verdict is Verdict.OK
    assert not (tmp_path / "new").exists(), "looking makes nothing"
    assert "cannot be loaded on the login node: bad/2" in seen["environment default: modules"].what
    assert seen["environment default"].verdict is Verdict.OK
    assert f"{tmp_path}/gone/bin/python is not there" in seen["environment gone"].what
    assert seen["environment default: launcher"].verdict is Verdict.CANNOT_TELL


def test_a_launcher_must_be_on_the_compute_node() -> None:
    profile = validate(parse_document("name: x\nqueues: [{name: q}]\nlauncher: {kind: mpirun}\n", Path("x.yaml")), Site)
    said = "noise of a module\ndlhpc:python runs 3.11.2 dlhpc torch\ndlhpc:launcher no\n"
    python, launcher = environment_findings(profile, "default", said, "node1")
    assert (python.verdict, python.what) == (Verdict.OK, "Python 3.11.2 with dlhpc, torch on node1")
    assert (launcher.verdict, launcher.what) == (Verdict.DIFFERS, "mpirun is not on PATH on node1")


def test_no_profile_is_written_for_a_system_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    command = tmp_path / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$*" >> {asked}\necho "Unable to contact slurm controller" >&2\nexit 1\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    done = CliRunner().invoke(cli, ["site", "init", "--scheduler", "slurm", "--output", str(tmp_path / "new.yaml")])
    assert isinstance(done.exception, CommandError)
    assert "Unable to contact slurm controller" in str(done.exception)
    assert asked.read_text() == "show config\n", "one question that waits in vain is enough"
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "mksh", "busybox sh"])
def test_the_scripts_of_the_check_run_under_every_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"no {shell} here")
    modules = tmp_path / "my init.sh"
    modules.write_text('module() { [ "$2" = good/1 ] && LOADEDMODULES=${LOADEDMODULES:+$LOADEDMODULES:}$2; }\n')
    scripts = resources.folder("jobtemplates")
    words = [scripts / "site-environment.sh", modules, sys.executable, "no-such-launcher", "good/1", "bad/2"]
    said = ask([*shell.split(), *words], timeout=60).out.splitlines()
    assert said[:2] == ["dlhpc:module good/1 yes", "dlhpc:module bad/2 no"]
    assert said[2].startswith("dlhpc:python runs 3.")
    assert said[3] == "dlhpc:launcher no"
    folder = tmp_path / "a folder"
    folder.mkdir()
    ask([*shell.split(), scripts / "site-check.sh", folder, "local", tmp_path / "a disk"], timeout=60)
    seen = dict(line.split(" ", 1) for line in (folder / "answer.tmp").read_text().splitlines())
    assert seen["scratch"] == f"yes {tmp_path}/a disk"
    assert seen["host"] == os.uname().nodename
    assert "submit" not in seen
