"""What the real Slurm of the tests needs from the machine: configuration files, free ports, its own processes."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

CLUSTER_MARK = "SLURM_TEST_CLUSTER"
"""The variable that every daemon of a cluster carries, with the cluster's folder."""
NODE_MARK = "SLURM_TEST_NODE"
"""The variable that a node's daemon and steps carry, with the node's name."""
# Below the ports that the kernel gives to outgoing connections, so that none of these takes ours in between.
_PORTS = range(15000, 31000)

_SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credential has expired: {requeue_wait} s here, 120 s where nobody says otherwise.
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_wait}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
# PMIx wants a folder of its own on each node
TmpFS={folder}/tmp-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=4000
GresTypes=gpu
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs-completed.txt
MailProg={folder}/mail
MaxArraySize=20001
MaxJobCount=50000
JobRequeue=1
ReturnToService=2
KillWait=5
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
PriorityType=priority/multifactor
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_continue,bf_resolution=60
{nodes}
PartitionName=gpu Nodes={names} Default=YES DefaultTime=10:00 MaxTime=1:00:00 State=UP PriorityTier=1
PartitionName=short Nodes={names} DefaultTime=1:00 MaxTime=5:00 State=UP PriorityTier=10
PartitionName=down Nodes={names} MaxTime=1:00:00 State=DOWN
"""

_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo={folder}/munge.socket
SlurmUser=root
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


def slurm_conf(folder: Path, port: int, nodes: Sequence[str], *, requeue_wait: int, settings: Mapping[str, str]) -> str:
    """The text of slurm.conf; ``nodes`` are its NodeName lines, ``settings`` replace or follow our own lines."""
    names = [line.split()[0].partition("=")[2] for line in nodes]
    host = socket.gethostname()
    here = [f"{line} NodeHostname={host} NodeAddr=127.0.0.1 State=UNKNOWN" for line in nodes]
    values = {"folder": folder, "host": host.split(".")[0], "port": port, "requeue_wait": requeue_wait}
    text = _SLURM_CONF.format(**values, nodes="\n".join(here), names=",".join(names))
    lines = [line for line in text.splitlines() if line.partition("=")[0] not in settings]
    return "\n".join([*lines, *(f"{key}={value}" for key, value in settings.items()), ""])


def slurmdbd_conf(folder: Path, port: int, database_port: int, password: str) -> str:
    """The text of slurmdbd.conf."""
    values = {"folder": folder, "host": socket.gethostname(), "port": port}
    return _SLURMDBD_CONF.format(**values, database_port=database_port, password=password)


def processes(folder: Path, node: str | None = None) -> list[int]:
    """What runs of the cluster in ``folder``, or only of one of its nodes: daemons, steps and jobs."""
    ours, on_node = f"{CLUSTER_MARK}={folder}".encode(), f"{NODE_MARK}={node}".encode()
    configuration, name = f"SLURM_CONF={folder}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = set((entry / "environ").read_bytes().split(b"\0"))
            ended = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            continue  # it has just ended, or is another user's
        daemon = ours in variables and (node is None or on_node in variables)
        # people's own shells may name the configuration too, but only a job's processes are on a node
        placed = any(word.startswith(b"SLURMD_NODENAME=") for word in variables) if node is None else name in variables
        if not ended and (daemon or (configuration in variables and placed)):
            found.append(int(entry.name))
    return found


def clear(folder: Path, node: str | None = None) -> None:
    """Kill all that :func:`processes` finds."""
    while found := processes(folder, node):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
