"""The local scheduler's queue: what this machine offers, which job is next, and how one is started.

There is no daemon. Whoever submits, asks or cancels, and each job's supervisor when its job is over, calls
:func:`advance`, which puts away what has ended and starts what fits, first come, first served.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlhpc.errors import CommandError, DlhpcError, StorageError, UserError
from dlhpc.process import ask
from dlhpc.schedulers.local_dependencies import obstacle
from dlhpc.schedulers.local_processes import (
    JOB_VARIABLE,
    SUPERVISOR_VARIABLE,
    TOKEN_VARIABLE,
    birth,
    boot_id,
    kill_all,
    supervisor_of,
)
from dlhpc.schedulers.local_spool import Ended, JobFolder, Spool, Started

START_PATIENCE_S = 30.0
CANCELLED = "cancelled"
WALLTIME = "walltime"
RESTARTED = "the machine was restarted while the job ran"
SUPERVISOR_GONE = "its supervisor was killed"


@dataclass(frozen=True)
class Capacity:
    """What the machine offers to jobs."""

    cores: int
    gpus: int


@dataclass(frozen=True)
class Waiting:
    """A queued job, reduced to what it needs."""

    folder: JobFolder
    cores: int
    gpus: int


@dataclass(frozen=True)
class Running:
    """A running job, reduced to what it holds."""

    folder: JobFolder
    cores: int
    gpus: frozenset[int]
    supervisor: int | None = None
    """Its process, where it was asked for."""


@dataclass(frozen=True)
class View:
    """The queue as :func:`advance` leaves it."""

    running: tuple[Running, ...] = ()
    first: Waiting | None = None
    """The job that waits for room; all others wait behind it."""
    capacity: Capacity | None = None
    trouble: DlhpcError | None = None
    """Why the first job could not be started although it fits, or why nothing could be looked at."""


def offered_cores() -> int:
    """Cores that jobs may use: ``DLHPC_LOCAL_CORES``, or those that this process may run on."""
    if (chosen := _number("DLHPC_LOCAL_CORES")) is not None:
        return chosen
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def offered_gpus() -> int:
    """GPUs that jobs may use: ``DLHPC_LOCAL_GPUS``, or what NVIDIA's driver lists."""
    if (chosen := _number("DLHPC_LOCAL_GPUS")) is not None:
        return chosen
    with contextlib.suppress(CommandError):
        answer = ask(["nvidia-smi", "-L"], timeout=20)
        if answer.code == 0:
            return sum(line.startswith("GPU ") for line in answer.out.splitlines())
    return 0


def _number(variable: str) -> int | None:
    word = os.environ.get(variable, "").strip()
    if not word:
        return None
    if not (word.isascii() and word.isdecimal()):
        raise UserError(f"{variable} is `{word}`", remedy="Set it to a whole number, or unset it.")
    return int(word)


def fit(job: Waiting, running: Sequence[Running], capacity: Capacity) -> list[int] | None:
    """The GPUs to give to a job if there is room for it now, else None."""
    held = frozenset[int]().union(*(other.gpus for other in running))
    free = [gpu for gpu in range(capacity.gpus) if gpu not in held]
    if job.cores > capacity.cores - sum(other.cores for other in running) or job.gpus > len(free):
        return None
    return free[: job.gpus]


def is_alive(started: Started) -> bool:
    """Whether the very process that took the job still lives."""
    return started.boot == boot_id() and started.birth == birth(started.pid)


def advance(spool: Spool) -> View:
    """Bring the queue up to date. Only under the lock."""
    running: list[Running] = []
    queued: list[JobFolder] = []
    for folder in spool.live():
        if not folder.has_started() and not folder.has_ended():
            queued.append(folder)
        elif not folder.has_ended() and (found := look_after(folder)) is not None:
            running.append(found)
        elif folder.has_ended():
            spool.put_away(folder)
    cores = offered_cores()
    gpus: int | None = None  # asking the driver is slow: only if it matters
    capacity = Capacity(cores, 0)
    # Strictly in order: a small job does not overtake a large one, which would else never find room.
    for folder in queued:
        try:
            job = folder.job()
            blocked = obstacle(folder, job)
        except StorageError:
            continue  # it is shown as unknown, and holds up nobody
        if blocked is not None:  # others go past it
            if blocked.for_ever:
                with contextlib.suppress(StorageError):  # a full disk: it is recorded another time
                    end_unstarted(spool, folder, blocked.reason)
            continue
        if job.gpus and gpus is None:
            gpus = offered_gpus()
        capacity = Capacity(cores, gpus or 0)
        waiting = Waiting(folder, job.cores, job.gpus)
        given = fit(waiting, running, capacity)
        if given is None:
            return View(tuple(running), waiting, capacity)
        try:
            start(spool, folder, given)
        except DlhpcError as error:
            return View(tuple(running), waiting, capacity, error)
        running.append(Running(folder, job.cores, frozenset(given)))
    return View(tuple(running), None, capacity)


def end_unstarted(spool: Spool, folder: JobFolder, reason: str) -> bool:
    """End a job that has not started; false if it has. Only under the lock."""
    now = time.time()
    nobody = Started(0, "", boot_id(), 0, [], now)  # no process: none is ever taken for its supervisor
    if folder.has_started() or not folder.claim(nobody):
        return False
    folder.record_end(Ended(None, reason, None, now))
    spool.put_away(folder)
    return True


def holder(folder: JobFolder) -> Running | None:
    """What a started job holds, if its supervisor lives."""
    try:
        started = folder.started()
    except StorageError:  # nobody wrote down who runs it, or the record is damaged: then look around
        pid = supervisor_of(folder.path)
        if pid is None:
            return None
        cores = 0
        with contextlib.suppress(StorageError):
            cores = folder.job().cores
        return Running(folder, cores, frozenset(), pid)
    return Running(folder, started.cores, frozenset(started.gpus), started.pid) if is_alive(started) else None


def look_after(folder: JobFolder, reason: str | None = None) -> Running | None:
    """What a started job holds; if its supervisor is gone, end what is left of it and record that. Only under the lock.

    ``reason`` is what to record; by default how its supervisor was lost.
    """
    if (found := holder(folder)) is not None:
        return found
    if folder.has_ended():  # it took its leave while we looked
        return None
    with contextlib.suppress(StorageError):
        kill_all(folder.job().token)
    began: float | None = None
    lost = SUPERVISOR_GONE
    with contextlib.suppress(StorageError):
        started = folder.started()
        began = started.started
        lost = SUPERVISOR_GONE if started.boot == boot_id() else RESTARTED
    with contextlib.suppress(StorageError):  # a full disk: it is recorded another time
        folder.record_end(Ended(None, reason or lost, began, time.time()))
    return None


def start(spool: Spool, folder: JobFolder, gpus: Sequence[int]) -> None:
    """Start a job's supervisor and wait until it has taken the job. Only under the lock.

    Raises :class:`StorageError` or :class:`CommandError` if it could not; the job then still waits.
    """
    package_root = Path(__file__).resolve().parents[2]
    # `-P` and the appended path: modules are not taken from the folder that the user happens to be in.
    code = (
        "import sys; sys.path.append(sys.argv.pop(1)); "
        "from dlhpc.schedulers.local_supervisor import main; sys.exit(main(sys.argv[1:]))"
    )
    read_end, write_end = os.pipe()
    try:
        environment = {k: v for k, v in os.environ.items() if k not in (JOB_VARIABLE, TOKEN_VARIABLE)}
        listed = ",".join(str(gpu) for gpu in gpus)
        argv = [
            sys.executable,
            "-P",
            "-c",
            code,
            str(package_root),
            str(spool.folder),
            str(folder.path),
            str(write_end),
            listed,
        ]
        try:
            first = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={**environment, SUPERVISOR_VARIABLE: str(folder.path)},
                pass_fds=(write_end,),
                start_new_session=True,
            )
        except OSError as error:
            raise CommandError(f"cannot start the job's supervisor: {error}", where=sys.executable) from error
        os.close(write_end)
        write_end = -1
        until = time.monotonic() + START_PATIENCE_S
        said = b""
        while select.select([read_end], [], [], max(until - time.monotonic(), 0))[0]:
            piece = os.read(read_end, 4096)
            if not piece:
                break
            said += piece
        if not said and not folder.has_started():  # whatever it still does, it must not take the job later
            with contextlib.suppress(ProcessLookupError):
                os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
    if said != b"ok" and not folder.has_started():
        why = said.decode(errors="replace") or f"it died, or did not begin within {START_PATIENCE_S:.0f} s"
        raise CommandError(f"the job's supervisor could not take the job: {why}", where=folder.path)


def why_waiting(folder: JobFolder, view: View, spool: Spool) -> str | None:
    """A sentence for a queued job: what it waits for, with numbers. None if the queue has moved meanwhile."""
    job = view.first
    if job is None or view.capacity is None:
        return None if view.trouble is None else f"the queue could not be looked at: {view.trouble.what}"
    if job.folder != folder:
        return f"waits behind job {spool.job_id(job.folder)}, which came first"
    if view.trouble is not None:
        return f"could not be started: {view.trouble.what}"
    needs = _lack("core", job.cores, sum(other.cores for other in view.running), view.capacity.cores) or _lack(
        "GPU", job.gpus, sum(len(other.gpus) for other in view.running), view.capacity.gpus
    )
    holders = ", ".join(spool.job_id(other.folder) for other in view.running)
    plural = "jobs" if len(view.running) > 1 else "job"
    return needs and (f"{needs} by {plural} {holders}" if holders else needs)


def _lack(what: str, wanted: int, used: int, offered: int) -> str | None:
    if wanted <= offered - used:
        return None
    if wanted > offered:
        return f"waits for {_count(wanted, what)}, but this machine now offers {offered}"
    return f"waits for {_count(wanted, what)}: {used} of {_count(offered, what)} in use"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
