"""The process beside one running job: starts its script, stops it in time, records its end.

It plays the part of the node's daemon (pbs_mom, LoadL_starter). It is forked by whichever command started the job, has
its own session, and is the subreaper of all that the job leaves behind.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Any

from tests.doubles.engine import Job, Store, advance, whole
from tests.doubles.processes import RUNNER_NAME, birth, descendants, send

_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36


def _dialect(config: dict[str, Any]) -> Any:
    if config["system"] == "loadleveler":
        from tests.doubles import ll_job

        return ll_job
    from tests.doubles import pbs_job

    return pbs_job


def start(store: Store, job: Job) -> None:
    """Fork the job's runner and note its process id. The lock is held, and stays ours."""
    read, write = os.pipe()
    middle = os.fork()
    if middle:
        os.close(write)
        told = b""
        while part := os.read(read, 64):
            told += part
        os.close(read)
        os.waitpid(middle, 0)
        job["runner"] = int(told)
        job["runner_birth"] = birth(int(told))
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.close(read)
        store.forget_lock()
        _become_runner(store, write)
        _Runner(store, job["id"], whole(store.state, job)).run()
    except BaseException:  # noqa: BLE001  # nobody else would ever see it
        import traceback

        with open(store.path("runner.log"), "a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        os._exit(1)
    os._exit(0)


def _become_runner(store: Store, ready: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, RUNNER_NAME, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, ready)
    os.closerange(ready + 1, 1024)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.chdir("/")
    os.write(ready, str(os.getpid()).encode())
    os.close(ready)


class _Runner:
    def __init__(self, store: Store, job_id: str, job: Job) -> None:
        self.store = store
        self.id = job_id
        self.job = job
        self.dialect = _dialect(store.config)
        self.pid = 0
        self.status: int | None = None
        self.why: str | None = None
        """None: it ended by itself; else ``walltime``, ``cancel``, ``failure`` or ``vacate``."""

    def run(self) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        with self.store:  # whoever forked us may have been killed before that was on record
            if self.store.jobs.get(self.id, {}).get("runner") != os.getpid():
                return
        launch = self.dialect.launch(self.store, self.job)
        self._start_script(launch)
        self._watch(read)
        while left := self._left():
            send(left, signal.SIGKILL)
            time.sleep(0.01)
            self._reap()
        if self.why != "failure":
            self.dialect.deliver(self.store, self.job, launch)
        self._record(launch)

    def _start_script(self, launch: Any) -> None:
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.setsid()
            for number in (signal.SIGUSR1, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            os.umask(launch.umask)
            for target, descriptor in enumerate((launch.stdin, launch.stdout, launch.stderr)):
                os.dup2(descriptor, target)
            os.closerange(3, 256)
            try:
                os.chdir(launch.directory)
                os.execve(launch.words[0], launch.words, launch.environment)
            except OSError as error:
                os.write(2, f"{launch.words[0]}: {error.strerror}\n".encode())
                os._exit(127 if isinstance(error, FileNotFoundError) else 126)
        finally:
            os._exit(127)

    def _watch(self, wake: int) -> None:
        grace = self.store.config["kill_grace"]
        began = time.monotonic()
        soft = self.job["soft"] if self.job["soft"] and self.job["soft"] < (self.job["walltime"] or 0) else None
        hard = self.job["walltime"]
        kill_at: float | None = None
        first = True  # somebody may have asked for something before we could be woken
        while self.status is None:
            now = time.monotonic() - began
            moments = [moment for moment in (soft, None if kill_at else hard, kill_at) if moment is not None]
            if not first and (not moments or min(moments) > now):
                poll = select.poll()
                poll.register(wake, select.POLLIN)
                poll.poll(max(1, min(600_000, (min(moments) - now) * 1000)) if moments else None)
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            first = False
            self._reap()
            if self._is_over():
                break
            now = time.monotonic() - began
            for how, number in self._asks():
                if how == "signal":
                    send(self._session(), number)
                elif how == "failure":
                    self.why = "failure"
                    kill_at = 0.0
                elif how in ("cancel", "vacate") and kill_at is None:
                    self.why = how
                    kill_at = now + grace
                    send(self._session(), number or signal.SIGTERM)
                elif how == "kill":
                    self.why = self.why or "cancel"
                    kill_at = 0.0
            if soft is not None and now >= soft:
                soft = None
                self.dialect.soft_limit(self.store, self._session(), self.pid)
            if hard is not None and kill_at is None and now >= hard:
                self.why = "walltime"
                kill_at = now + self.dialect.hard_limit(self.store, self.job, self._session(), now)
            if kill_at is not None and now >= kill_at:
                send(self._left(), signal.SIGKILL)
                kill_at = now + 0.05

    def _is_over(self) -> bool:
        return self.status is not None

    def _asks(self) -> list[tuple[str, int]]:
        with self.store:  # whoever woke us holds the lock until what he asks is written
            record = self.store.jobs.get(self.id, {})
            if not record.get("asks"):
                return []
            asks = [(how, number) for how, number in record["asks"]]
            record["asks"] = []
        return asks

    def _session(self) -> list[int]:
        return descendants(os.getpid(), self.pid)

    def _left(self) -> list[int]:
        with self.store:  # while nobody forks another job's runner
            return descendants(os.getpid())

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    self.status = status

    def _record(self, launch: Any) -> None:
        status = self.status or 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        with self.store:
            record = self.store.jobs.get(self.id)
            if record is not None:
                record["runner"] = None
                record["asks"] = []
                rerun = self.job["rerunnable"] and not record["deleted"]
                if self.why in ("failure", "vacate") and rerun:
                    record.update(state="held" if record["holds"] else "queued", assigned=[], started=None)
                    record["comment"] = "its node failed; it waits to run again"
                else:
                    record.update(state="done", ended=time.time())
                    record["exit"] = None if self.why == "failure" else self.dialect.exit_status(code, self.why)
                    record["why"] = self.why
            self.dialect.clean(self.store, self.job, launch)
            advance(self.store)
