"""Processes of the local scheduler's jobs: is it still the same one, which belong to a job, and how to end them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

JOB_VARIABLE = "DLHPC_JOB_ID"
TOKEN_VARIABLE = "DLHPC_LOCAL_TOKEN"
SUPERVISOR_VARIABLE = "DLHPC_LOCAL_SUPERVISOR"
OWN_VARIABLES = (JOB_VARIABLE, TOKEN_VARIABLE, SUPERVISOR_VARIABLE)
_LINUX = sys.platform == "linux"
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def boot_id() -> str:
    """What is different after each start of the machine; empty where the system has no such thing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def birth(pid: int) -> str | None:
    """When this process was born, in a form that only compares; None if it is dead or a zombie.

    On Linux these are clock ticks since boot (``starttime`` of proc(5)): a time of day would change when the
    clock is set, and a living job would be taken for dead.
    """
    if _LINUX:
        try:
            # The name of the program, in brackets, may itself hold blanks and brackets.
            words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if words[0] in (b"Z", b"X") else words[19].decode()
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except psutil.Error:
        return None


def become_subreaper() -> None:
    """Let orphans among our descendants become our children, daemons included. Linux only; elsewhere nothing."""
    if _LINUX:
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def members(token: str, root: int | None = None) -> list[psutil.Process]:
    """The processes of a job: all that carry its token, all below ``root``, and all below any of these.

    Left out are this process, zombies, and other jobs that were submitted from within this one: their supervisors
    and their processes, although they may descend from us.
    """
    import psutil

    children: dict[int, list[psutil.Process]] = {}
    found: list[psutil.Process] = []
    foreign: set[int] = {os.getpid()}
    for process in psutil.process_iter(["ppid", "status", "environ"]):
        environment = process.info["environ"] or {}
        children.setdefault(process.info["ppid"], []).append(process)
        if SUPERVISOR_VARIABLE in environment or environment.get(TOKEN_VARIABLE, token) != token:
            foreign.add(process.pid)
        elif TOKEN_VARIABLE in environment:
            found.append(process)
    if root is not None:
        found += children.get(root, [])
    result: dict[int, psutil.Process] = {}
    while found:
        process = found.pop()
        if process.pid not in foreign and process.pid not in result:
            result[process.pid] = process
            found += children.get(process.pid, [])
    return [process for process in result.values() if process.info["status"] != psutil.STATUS_ZOMBIE]


def supervisor_of(job_folder: Path) -> int | None:
    """The supervisor of the job in this folder, looked for among all processes."""
    import psutil

    for process in psutil.process_iter(["status", "environ"]):
        environment = process.info["environ"] or {}
        alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if alive and process.pid != os.getpid() and environment.get(SUPERVISOR_VARIABLE) == str(job_folder):
            return process.pid
    return None


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Signal processes; one that is gone meanwhile, or whose number has a new owner, is left alone."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def kill_all(token: str, patience_s: float = 5.0) -> bool:
    """Kill every process with this token until none is left; False if some would not go (stuck in the kernel)."""
    until = time.monotonic() + patience_s
    while left := members(token):
        if time.monotonic() > until:
            return False
        send(left, signal.SIGKILL)
        time.sleep(0.02)
    return True
