"""The process that runs one job of the local scheduler: its walltime, its end, and the next jobs' start.

It lives in a session of its own, holds nothing of the terminal that it came from, and is the parent of all orphans of
its job. It is started by :func:`dlhpc.schedulers.local_queue.start`. Signals: USR1 ends the job as cancelled; TERM,
which a shutting-down machine sends, ends it and starts no other.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from dlhpc.errors import DlhpcError, StorageError
from dlhpc.schedulers.local_processes import (
    JOB_VARIABLE,
    TOKEN_VARIABLE,
    become_subreaper,
    birth,
    boot_id,
    members,
    send,
)
from dlhpc.schedulers.local_queue import CANCELLED, WALLTIME, advance
from dlhpc.schedulers.local_spool import Ended, Job, JobFolder, Spool, Started

TOLD_TO_STOP = "its supervisor was told to stop, as when the machine shuts down"
LEFTOVER_GRACE_S = 2.0
"""What background processes have between TERM and KILL after the script has ended by itself."""
KILL_PATIENCE_S = 10.0
"""After this, processes that SIGKILL does not end (stuck in the kernel) no longer hold up the queue."""
RECORD_PATIENCE_S = 600.0


class _Signals:
    """Wakes the supervisor when a child has ended or somebody wants the job to stop."""

    def __init__(self) -> None:
        self.stop: str | None = None
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        reasons = {signal.SIGUSR1: CANCELLED, signal.SIGTERM: TOLD_TO_STOP}
        # Handlers, not SIG_IGN: the script starts with the defaults, and may trap what it likes.
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._handler(reasons.get(number)))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _handler(self, reason: str | None) -> Callable[[int, FrameType | None], None]:
        def handle(_number: int, _frame: FrameType | None) -> None:
            self.stop = self.stop or reason

        return handle

    def wait(self, seconds: float) -> None:
        """Sleep until a signal comes, at most so long."""
        with contextlib.suppress(InterruptedError, BlockingIOError):
            select.select([self._read], [], [], min(max(seconds, 0), 3600))
            os.read(self._read, 4096)


class _Script:
    """The job's script, and the orphans of its tree that have become our children."""

    def __init__(self, argv: list[str], cwd: str, environment: dict[str, str]) -> None:
        self.code: int | None = None
        self._process = subprocess.Popen(
            argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def reap(self) -> None:
        """Take the exit status of every child that has ended; ``code`` is the script's, 128 + signal if killed."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._process.pid:
                    code = os.waitstatus_to_exitcode(status)
                    self.code = code if code >= 0 else 128 - code
                    self._process.returncode = code  # we waited in its place

    def terminate(self) -> None:
        """Ask the script, and only it, to end: as a batch system does, it leaves the rest to the script's trap."""
        if self.code is None:
            os.kill(self._process.pid, signal.SIGTERM)  # not reaped yet, so the number is still its own


def command(script: Path) -> list[str]:
    """The words that run a script: what its first line names, or ``/bin/sh``. It need not be executable."""
    with open(script, "rb") as file:
        first = file.readline(4096)
    words = first[2:].split(maxsplit=1) if first.startswith(b"#!") else []
    return [*(os.fsdecode(word.strip()) for word in words or [b"/bin/sh"]), str(script)]


def _note(sentence: str) -> None:
    with contextlib.suppress(OSError):  # the disk may be full; the job's end is not to fail for that
        os.write(2, f"dlhpc: {sentence}\n".encode())


def _run(job: Job, environment: dict[str, str], signals: _Signals) -> tuple[int, str | None]:
    """Run the script to its end, and the whole tree with it. Gives exit code and, if it did not end by itself, why."""
    if signals.stop:
        return 128 + signal.SIGTERM, signals.stop
    try:
        script = _Script(command(Path(job.script)), str(Path(job.script).parent), environment)
    except OSError as error:
        code = 127 if isinstance(error, FileNotFoundError) else 126
        return code, f"the script could not be started: {error}"
    now = time.monotonic
    deadline = now() + job.walltime_seconds
    while script.code is None and signals.stop is None and now() < deadline:
        signals.wait(deadline - now())
        script.reap()
    reason = None
    grace_ends = now() + min(LEFTOVER_GRACE_S, job.kill_grace_seconds)
    if script.code is None:
        reason = signals.stop or WALLTIME
        grace_ends = now() + job.kill_grace_seconds
        why = f"its walltime of {job.walltime_seconds} s is over" if reason == WALLTIME else reason
        _note(f"the job is ended: {why}; TERM now, KILL in {job.kill_grace_seconds} s")
        script.terminate()
        while script.code is None and now() < grace_ends:
            signals.wait(grace_ends - now())
            script.reap()
    _end_tree(job.token, script, signals, grace_ends)
    return (128 + signal.SIGKILL if script.code is None else script.code), reason


def _end_tree(token: str, script: _Script, signals: _Signals, grace_ends: float) -> None:
    """End every process that the job still has: TERM once, KILL when the grace is over, until none is left."""
    kill_ends = grace_ends + KILL_PATIENCE_S
    if script.code is not None:
        send(members(token, os.getpid()), signal.SIGTERM)
    while left := members(token, os.getpid()):
        now = time.monotonic()
        if now > kill_ends:
            _note(f"processes that cannot be killed: {' '.join(str(process.pid) for process in left)}")
            break
        if now >= grace_ends:
            send(left, signal.SIGKILL)
        signals.wait(0.05)
        script.reap()
    script.reap()


def _redirect_output(log: str) -> None:
    """Both streams to the end of the job's log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _record(folder: JobFolder, end: Ended) -> None:
    """Record the end. Storage that refuses is tried again for a while: the exit code is known to nobody else."""
    until = time.monotonic() + RECORD_PATIENCE_S
    while folder.path.exists():  # else somebody took us for dead, and has put the job away
        try:
            folder.record_end(end)
            return
        except StorageError as error:
            if time.monotonic() > until:
                _note(f"the end of this job, exit code {end.exit_code}, could not be recorded: {error}")
                return
        time.sleep(5)


def _answer(ready: int, words: str) -> None:
    """Tell the process that started us, if it still lives, how that went."""
    with contextlib.suppress(BrokenPipeError):
        os.write(ready, words.encode()[:1000])
    os.close(ready)


def _supervise(spool: Spool, folder: JobFolder, ready: int, gpus: list[int]) -> bool:
    """Take the job, run it and record its end. Gives whether the queue may go on."""
    signals = _Signals()
    become_subreaper()
    try:
        job = folder.job()
        began = time.time()
        taken = folder.claim(Started(os.getpid(), birth(os.getpid()) or "", boot_id(), job.cores, gpus, began))
    except DlhpcError as error:
        _answer(ready, str(error.what))
        return False
    _answer(ready, "ok" if taken else "somebody else has taken it")
    if not taken:
        return False
    if job.umask is not None:
        os.umask(job.umask)
    code = 1
    reason: str | None
    try:
        environment = folder.environment()
        (folder.path / "environment.json").unlink(missing_ok=True)
        _redirect_output(job.log)
    except StorageError as error:
        reason = str(error)
    except OSError as error:
        reason = f"its log file cannot be written: {error}"
    else:
        environment |= {
            JOB_VARIABLE: spool.job_id(folder),
            TOKEN_VARIABLE: job.token,
            "CUDA_VISIBLE_DEVICES": ",".join(str(gpu) for gpu in gpus),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order of nvidia-smi, by which the GPUs were counted
        }
        code, reason = _run(job, environment, signals)
    _record(folder, Ended(code, reason, began, time.time()))
    return signals.stop != TOLD_TO_STOP


def main(words: Sequence[str]) -> int:
    """Become a process that nobody waits for, and supervise. Words: spool, job folder, descriptor, GPUs."""
    if os.fork():
        os._exit(0)
    spool_folder, job_folder, ready, gpus = words
    spool = Spool(Path(spool_folder))
    for variable in (JOB_VARIABLE, TOKEN_VARIABLE):
        os.environ.pop(variable, None)
    if _supervise(spool, JobFolder(Path(job_folder)), int(ready), [int(gpu) for gpu in gpus.split(",") if gpu]):
        with contextlib.suppress(DlhpcError), spool.lock():
            advance(spool)
    return 0
