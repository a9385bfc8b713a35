"""The doubles as a test uses them: make one, run commands in its environment, break it, and let it go.

>>> with PbsDouble(tmp_path, nodes=2, cores=8, gpus=2, queues={"gpu": {"max_walltime": 7200}}) as pbs:
...     subprocess.run(["qsub", "job.sh"], env=pbs.environment)
...     pbs.idle(timeout=20)
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from tests.doubles.commands import COMMANDS
from tests.doubles.engine import Job, Store, advance, ask_runner, whole
from tests.doubles.posix_tools import build_posix_path
from tests.doubles.processes import birth, descendants, send

_ROOT = Path(__file__).resolve().parents[2]
_PYTHON = os.path.realpath(sys.executable)

_SSH = r"""#!/bin/sh
# Stands in for a connection to a compute node: the words run here.
while :; do
  case $1 in
    -[bcDEeFIiJLlmOoPpQRSWw]) shift 2 ;;
    -*) shift ;;
    *) break ;;
  esac
done
shift
[ "$1" != -- ] || shift
exec /bin/sh -c "$*"
"""


class Double:
    """A batch system on this machine: executables on PATH, a folder of state, no daemon."""

    system: ClassVar[str]
    dialect: ClassVar[str]
    default_queue: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        folder: Path | str,
        *,
        nodes: int | Mapping[str, Mapping[str, Any]] = 1,
        cores: int = 4,
        gpus: int = 0,
        memory: int = 64 * 1024**3,
        queues: Mapping[str, Mapping[str, Any]] | None = None,
        history: bool = True,
        compute_may_submit: bool = True,
        account_needed: bool = False,
        kill_grace: float = 9.0,
        shell: str = "/bin/sh",
        posix_path: bool = False,
        path: str = "/usr/local/bin:/usr/bin:/bin",
        login_environment: Mapping[str, str] | None = None,
        local_host_names: bool = False,
        **more: Any,
    ) -> None:
        """Describe the machine.

        ``nodes``: how many, named node1 …, or a mapping name → ``{"ncpus", "ngpus", "mem", "features", "state"}``
        (missing figures as ``cores``, ``gpus``, ``memory`` in bytes; ``state`` other than ``free`` is switched off).
        ``queues``: name → ``{"max_walltime", "default_walltime", "max_run", "enabled", "started"}``, times in seconds;
        the first one is the default. ``history``: whether ended jobs are remembered. ``kill_grace``: seconds between
        TERM and KILL. ``shell`` stands in for the machine's ``/bin/sh`` (``/usr/bin/mksh``, ``/usr/bin/dash``).
        ``posix_path``: jobs see only POSIX tools. ``login_environment``: what else the users' profile sets.
        ``local_host_names``: node files name this machine in place of node1 …, for launchers that would connect.
        ``more``: ``server``, ``custom_resources``, ``max_array_size``, ``keep_completed`` (Torque, seconds), ``banner``
        (LoadLeveler's submit filter), ``soft_limit_reaches`` …
        """
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.bin = self.folder / "bin"
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        if posix_path:
            build_posix_path(self.folder / "posix", _PYTHON)
            path = str(self.folder / "posix")
        described = {f"node{number}": {} for number in range(1, nodes + 1)} if isinstance(nodes, int) else nodes
        self.config: dict[str, Any] = {
            "system": self.system,
            "dialect": self.dialect,
            "server": "server",
            "host": "login1",
            "nodes": {
                name: {
                    "ncpus": cores,
                    "ngpus": gpus,
                    "mem": memory,
                    "hostname": os.uname().nodename if local_host_names else name,
                    **node,
                }
                for name, node in described.items()
            },
            "queues": {name: dict(queue) for name, queue in (queues or {self.default_queue: {}}).items()},
            "history": history,
            "compute_may_submit": compute_may_submit,
            "account_needed": account_needed,
            "kill_grace": kill_grace,
            "shell": shell,
            "home": str(home),
            "path": f"{self.bin}:{path}",
            "login_environment": dict(login_environment or {}),
            "custom_resources": [],
            "max_array_size": 10000,
            "keep_completed": 300,
            "banner": [],
            **self.defaults,
            **more,
        }
        self.config["default_queue"] = next(iter(self.config["queues"]))
        self._write_config()
        self._build_bin()
        self.environment = {**os.environ, "PATH": f"{self.bin}:{os.environ.get('PATH', '')}", "HOME": str(home)}

    def _write_config(self) -> None:
        beside = self.folder / "config.json.new"
        beside.write_text(json.dumps(self.config), encoding="utf-8")
        beside.replace(self.folder / "config.json")

    def change(self, **config: Any) -> None:
        """Change the machine while it runs (``history=False``, ``queues=…``)."""
        self.config |= config
        self._write_config()
        self.advance()

    def _build_bin(self) -> None:
        self.bin.mkdir(exist_ok=True)
        for command in COMMANDS[self.dialect]:
            program = self.bin / command
            program.write_text(
                f"#!{_PYTHON} -IS\n"
                f"import sys\nsys.path.insert(0, {str(_ROOT)!r})\n"
                f"from tests.doubles.commands import main\nmain({str(self.folder)!r}, {command!r}, sys.argv[1:])\n",
                encoding="utf-8",
            )
            program.chmod(0o755)
        # A launcher that connects to a node reaches this machine, whatever the node is called.
        shell = self.bin / "ssh"
        shell.write_text(
            _SSH,
            encoding="utf-8",
        )
        shell.chmod(0o755)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()

    def store(self) -> Store:
        """The double's folder, for a test that looks inside."""
        return Store(str(self.folder))

    def jobs(self) -> dict[str, Job]:
        """All jobs and array tasks by id, whatever the batch system would still tell."""
        state = self.store().peek()
        return {job_id: whole(state, job) for job_id, job in state["jobs"].items()}

    def fail(self, **faults: Any) -> None:
        """Break something; without arguments all is well again.

        ``down=True``: nothing is answered; ``slow=SECONDS`` before, ``slow_answer=SECONDS`` after doing what is asked;
        ``lose_answer="silent"`` or ``"killed"``: a submission arrives, its answer does not; ``times=N``: so often;
        ``commands=["qstat"]``: only these commands.
        """
        self.store().set_faults(faults)
        if not faults:
            self.advance()

    def restart(self) -> None:
        """Start a server that crashed."""
        with self.store() as store:
            store.state["crashed"] = False
            advance(store)

    def advance(self) -> None:
        """Let the scheduler have a look."""
        with self.store() as store:
            advance(store)

    def node_failure(self, job_id: str) -> None:
        """The job's node dies: all its processes at once. A job that may run again waits again."""
        self._tell(job_id, "failure")

    def _tell(self, job_id: str, how: str, number: int = 0) -> None:
        with self.store() as store:
            job = store.jobs[job_id]
            if job["state"] != "running":
                raise ValueError(f"{job_id} is {job['state']}: only a running job has nodes")
            ask_runner(job, how, number)

    def idle(self, timeout: float = 30) -> None:
        """Wait until nothing runs and nothing can start. Raises TimeoutError."""
        until = time.monotonic() + timeout
        while True:
            with self.store() as store:
                advance(store)
                running = [job_id for job_id, job in store.jobs.items() if job["state"] == "running"]
            if not running:
                return
            if time.monotonic() > until:
                raise TimeoutError(f"still running after {timeout} s: {' '.join(running)}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Kill every process of every job. The records stay."""
        self.config["stopped"] = True
        self._write_config()
        with self.store() as store:
            runners = [job["runner"] for job in store.jobs.values() if job["runner"] and birth(job["runner"])]
            births = {job["runner"]: job["runner_birth"] for job in store.jobs.values() if job["runner"]}
            runners = [pid for pid in runners if birth(pid) == births[pid]]
            send(runners, signal.SIGSTOP)
            for pid in runners:
                while left := descendants(pid):
                    send(left, signal.SIGKILL)
                    time.sleep(0.005)
            send(runners, signal.SIGKILL)


class PbsDouble(Double):
    """OpenPBS (PBS Professional) 23.06 as an ordinary user meets it."""

    system = "pbs"
    dialect = "openpbs"
    default_queue = "workq"


class TorqueDouble(Double):
    """Torque: ``nodes=N:ppn=M:gpus=G``, ``-t`` arrays, state C, no JSON."""

    system = "pbs"
    dialect = "torque"
    default_queue = "batch"


class LoadLevelerDouble(Double):
    """IBM LoadLeveler: job command files with ``# @`` keywords, steps, no arrays."""

    system = "loadleveler"
    dialect = "loadleveler"
    default_queue = "parallel"
    defaults: ClassVar[Mapping[str, Any]] = {
        "host": "sched1.cluster.example",
        "keep_completed": 0,
        "gpu_resource": "gpus",
        "soft_limit_reaches": "session",
        "arch": "R6000",
        "opsys": "AIX71",
    }

    def vacate(self, step_id: str) -> None:
        """LoadLeveler wants the nodes: USR1, and KILL after the grace. A step with ``restart = yes`` waits again."""
        self._tell(step_id, "vacate", signal.SIGUSR1)
