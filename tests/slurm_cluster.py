"""A real Slurm on this one machine, for the tests and for people who try things by hand.

Every daemon is Debian's own (`slurmctld`, one `slurmd` for each node, `munged`; with accounting also `slurmdbd` and a
private MariaDB), started by root in a folder of its own and on its own ports: several clusters can live side by side.
GPUs are links to /dev/null that `gres.conf` names. A guard process watches who started the cluster and clears up behind
them, even after `kill -9`.

By hand:  python -m tests.slurm_cluster FOLDER [--accounting]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.slurm_machine import CLUSTER_MARK, NODE_MARK, clear, free_ports, slurm_conf, slurmdbd_conf

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
_NEEDED_FOR_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacct")
_ROOT = Path(__file__).resolve().parents[1]
CLIENT_VARIABLES = ("SLURM_", "SBATCH_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SRUN_")
_DATABASE_USER = "slurm"  # MariaDB refuses root; this user comes with the package


class ClusterError(Exception):
    """The cluster did not come up, or a daemon of it died; the message ends with its log's tail."""


class SlurmCluster:
    """A running Slurm: ``with SlurmCluster(folder) as cluster:``, clients need only :attr:`environment`.

    The nodes are ``gpu1``, ``gpu2`` …, each with ``gpus`` pretended GPUs and ``cores`` pretended cores. Partitions:
    ``gpu`` (the default, an hour), ``short`` (five minutes, preferred) and ``down`` (takes jobs, starts none).
    ``settings`` are further lines of slurm.conf; one that is there already is replaced. With ``accounting`` there is
    `sacct`, and the account ``materials`` for root. ``requeue_wait``: seconds, at least 5 (Slurm takes less for 120).
    ``temporary`` has the guard remove the folder when whoever started the cluster was killed.
    """

    partitions = ("gpu", "short", "down")
    default_partition = "gpu"

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 2,
        gpus: int = 2,
        cores: int = 8,
        memory_mb: int = 64000,
        accounting: bool = False,
        requeue_wait: int = 5,
        settings: Mapping[str, str] | None = None,
        temporary: bool = False,
    ) -> None:
        self.folder = folder.absolute()
        self.nodes = tuple(f"gpu{number}" for number in range(1, nodes + 1))
        self.gpus, self.cores, self.memory_mb = gpus, cores, memory_mb
        self.accounting = accounting
        self.requeue_wait = requeue_wait
        self.settings = dict(settings or {})
        self.temporary = temporary
        self.configuration = self.folder / "slurm.conf"
        self.mails = self.folder / "mails.txt"
        """The arguments of every mail that Slurm would have sent, one line each."""
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        if len(str(self.folder / "munge.socket")) > 100:
            raise ClusterError(f"{self.folder}: too long for the path of a socket; choose a folder nearer to the root")

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a client of this cluster needs."""
        return {"SLURM_CONF": str(self.configuration)}

    # up and down ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until every node is idle."""
        self._write_files()
        self._start_guard()
        self._daemon(
            "munged",
            ["munged", "--foreground", "--force", "--num-threads=4"]
            + [f"--{name}={self.folder}/munge.{name.split('-')[0]}" for name in ("key-file", "pid-file", "seed-file")]
            + [f"--socket={self.folder}/munge.socket", f"--log-file={self.folder}/munged.log"],
        )
        self._wait("munged", (self.folder / "munge.socket").is_socket)
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node, wait=False)
        self.wait_nodes()

    def stop(self) -> None:
        """Stop every daemon and every job; the folder stays."""
        for name in sorted(self._daemons, key=_order_of_stopping):
            self._end(name, signal.SIGTERM)
        clear(self.folder)
        if self._guard is not None:
            self._guard.terminate()
            self._guard.wait()
            self._guard = None

    # what tests do to it --------------------------------------------------------------------------------------------

    def kill_controller(self, *, saved: bool = True) -> None:
        """Kill slurmctld as a crash would.

        It saves its state every five seconds; unless ``saved`` (which waits for that), what is newer is lost with it:
        jobs that it took in, and where those that had begun are running.
        """
        if saved:
            state, begun = self.folder / "state" / "job_state", time.time()
            while time.time() < begun + 6 and not (state.exists() and state.stat().st_mtime > begun):
                time.sleep(0.05)
        self._end("slurmctld", signal.SIGKILL)

    def start_controller(self) -> None:
        """Start slurmctld (again) and wait until it answers."""
        self._daemon("slurmctld", ["slurmctld", "-D", "-f", self.configuration])
        self._wait("slurmctld", lambda: self.ask(["scontrol", "ping"], check=False).returncode == 0)

    def stop_node(self, name: str, *, noticed: bool = True) -> None:
        """Cut a node's power: its slurmd and all that runs on it are gone at once.

        The controller is told; unless ``noticed``, it finds out by itself, which takes about half a minute.
        """
        self._end(f"slurmd-{name}", signal.SIGKILL)
        clear(self.folder, node=name)
        if noticed:
            self.ask(["scontrol", "update", f"nodename={name}", "state=down", "reason=power"])

    def start_node(self, name: str, *, wait: bool = True) -> None:
        """Switch a node on (again), and wait until it is in service."""
        extra = {NODE_MARK: name}
        self._daemon(f"slurmd-{name}", ["slurmd", "-D", "-N", name, "-f", self.configuration], extra=extra)
        if wait:
            self.wait_nodes([name])

    def ask(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a client command; with ``check``, an exit code other than 0 is a :class:`ClusterError`."""
        done = subprocess.run(
            argv, env=self._client_environment(), capture_output=True, text=True, timeout=60, check=False
        )
        if check and done.returncode:
            raise ClusterError(f"{' '.join(argv)}: exit code {done.returncode}: {done.stderr or done.stdout}")
        return done

    def wait_nodes(self, names: Sequence[str] = (), seconds: float = 30) -> None:
        """Wait until these nodes (all, if none is named) are in service."""
        wanted = set(names or self.nodes)

        def in_service() -> bool:
            lines = self.ask(["sinfo", "-h", "-N", "-o", "%N %T"], check=False).stdout.splitlines()
            states = dict(line.split() for line in lines if len(line.split()) == 2)
            return all(states.get(name) in ("idle", "mixed", "allocated", "completing") for name in wanted)

        self._wait(f"slurmd-{min(wanted)}", in_service, seconds)

    def wait_idle(self, seconds: float = 30) -> None:
        """Wait until no job is left in the queue and every node is idle."""

        def idle() -> bool:
            if self.ask(["squeue", "-h", "-a", "-o", "%i"]).stdout.strip():
                return False
            return set(self.ask(["sinfo", "-h", "-a", "-N", "-o", "%T"]).stdout.split()) <= {"idle"}

        self._wait("slurmctld", idle, seconds)

    def reset(self) -> None:
        """Everything is up, no job is left: as it was at the start."""
        if not self._runs("slurmctld"):
            self.start_controller()
        for name in self.nodes:
            if not self._runs(f"slurmd-{name}"):
                self.start_node(name, wait=False)
        self.ask(["scancel", "--quiet", "--me"])
        for name in self.nodes:
            self.ask(["scontrol", "update", f"nodename={name}", "state=resume"], check=False)
        self.wait_idle()

    # inside ---------------------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        for name in ("state", *(f"{what}-{node}" for what in ("spool", "tmp") for node in self.nodes)):
            (self.folder / name).mkdir(exist_ok=True)
        key = self.folder / "munge.key"
        if not key.exists():
            with open(os.open(key, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(secrets.token_bytes(128))
        self._database_port, self._dbd_port, controller_port, *node_ports = free_ports(len(self.nodes) + 3)
        settings = dict(self.settings)
        if self.accounting:
            settings = {
                "AccountingStorageType": "accounting_storage/slurmdbd",
                "AccountingStorageHost": "127.0.0.1",
                "AccountingStoragePort": str(self._dbd_port),
                "AccountingStoragePass": f"{self.folder}/munge.socket",  # what it is called where munge is used
                "AccountingStorageTRES": "gres/gpu",
                "AccountingStorageEnforce": "associations,limits,qos",
                "JobAcctGatherType": "jobacct_gather/linux",
            } | settings
        nodes = [
            f"NodeName={name} Port={port} Sockets=1 CoresPerSocket={self.cores} ThreadsPerCore=1 "
            f"RealMemory={self.memory_mb} {f'Gres=gpu:{self.gpus}' if self.gpus else ''}".rstrip()
            for name, port in zip(self.nodes, node_ports, strict=True)
        ]
        text = slurm_conf(self.folder, controller_port, nodes, requeue_wait=self.requeue_wait, settings=settings)
        self.configuration.write_text(text)
        mail = self.folder / "mail"
        mail.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$*\" >> {shlex.quote(str(self.mails))}\n")
        mail.chmod(0o755)
        gpus = [self.folder / f"gpu{number}" for number in range(self.gpus)]
        for gpu in gpus:  # slurmd wants devices; a link to one will do, and needs no right to make devices
            gpu.unlink(missing_ok=True)
            gpu.symlink_to(os.devnull)
        (self.folder / "gres.conf").write_text(
            f"NodeName={','.join(self.nodes)} Name=gpu File={','.join(str(gpu) for gpu in gpus)}\n" if gpus else ""
        )

    def _start_accounting(self) -> None:
        """MariaDB as an ordinary user with a data folder of its own, then slurmdbd."""
        data = self.folder / "database"
        common = ["--no-defaults", f"--datadir={data}", f"--user={_DATABASE_USER}"]
        if not data.exists():
            data.mkdir(mode=0o700)
            shutil.chown(data, _DATABASE_USER)
            quick = ["--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-flush-log-at-trx-commit=0"]
            self.ask(["mariadb-install-db", *common, *quick])
        password = secrets.token_hex(16)
        start = data / "start.sql"
        start.write_text(
            "CREATE DATABASE IF NOT EXISTS slurm;\n"
            f"CREATE OR REPLACE USER slurm@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON slurm.* TO slurm@'127.0.0.1';\n"
        )
        start.chmod(0o600)
        shutil.chown(start, _DATABASE_USER)
        own = [f"--socket={data}/socket", f"--pid-file={data}/pid", f"--port={self._database_port}"]
        quick = ["--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900", "--skip-log-bin"]
        here = ["--bind-address=127.0.0.1", f"--init-file={start}", "--skip-name-resolve"]
        self._daemon("mariadbd", ["mariadbd", *common, *own, *quick, *here])
        self._wait("mariadbd", lambda: _answers(self._database_port))
        conf = self.folder / "slurmdbd.conf"
        conf.touch(mode=0o600)
        conf.write_text(slurmdbd_conf(self.folder, self._dbd_port, self._database_port, password))
        self._daemon("slurmdbd", ["slurmdbd", "-D"])
        self._wait("slurmdbd", lambda: self.ask(["sacctmgr", "-n", "list", "cluster"], check=False).returncode == 0)
        for what in (
            ["cluster", "test"],
            ["account", "materials", "cluster=test", "description=tests", "organization=tests"],
            ["user", "root", "account=materials", "defaultaccount=materials"],
        ):
            self.ask(["sacctmgr", "-i", "add", *what], check=False)  # some are there already

    def _client_environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(CLIENT_VARIABLES)}
        return {**kept, "PATH": _PATH, **self.environment}

    def _daemon(self, name: str, argv: Sequence[str | Path], extra: Mapping[str, str] | None = None) -> None:
        marked = {**self._client_environment(), CLUSTER_MARK: str(self.folder), **(extra or {})}
        with open(self.folder / f"{name}.out", "ab") as out:
            self._daemons[name] = subprocess.Popen(
                [str(word) for word in argv],
                env=marked,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _runs(self, name: str) -> bool:
        return name in self._daemons and self._daemons[name].poll() is None

    def _end(self, name: str, how: signal.Signals) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.send_signal(how)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _wait(self, name: str, ready: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if not self._runs(name) or time.monotonic() > deadline:
                logs = [self.folder / f"{name}{end}" for end in (".out", ".log")]
                tails = [file.read_text(errors="replace")[-1500:] for file in logs if file.exists()]
                happened = "is not ready" if self._runs(name) else "has ended"
                raise ClusterError(f"{name} {happened}:\n" + "\n".join(tails))
            time.sleep(0.05)

    def _start_guard(self) -> None:
        words = [sys.executable, "-m", "tests.slurm_cluster", str(self.folder), "--guard", str(os.getpid())]
        words += ["--remove"] if self.temporary else []
        self._guard = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, cwd=_ROOT
        )


def _order_of_stopping(name: str) -> int:
    """Nodes first, the database last: none waits for another that is gone."""
    return ("slurmd-", "slurmctld", "slurmdbd", "mariadbd", "munged").index("slurmd-" if "slurmd-" in name else name)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def missing_programs(accounting: bool = False) -> list[str]:
    """The programs of Slurm that this machine lacks."""
    needed = _NEEDED + (_NEEDED_FOR_ACCOUNTING if accounting else ())
    return [name for name in needed if shutil.which(name, path=_PATH) is None]


def require_slurm(accounting: bool = False) -> None:
    """Skip the test for people who cannot start daemons; anywhere else, a Slurm that is missing is a failure."""
    missing = missing_programs(accounting)
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("the tests of CI need a real Slurm, and only root can start one")
        pytest.skip("a real Slurm can be started only by root")
    if missing:
        pytest.fail(f"no {', '.join(missing)} here; `make test` as root installs the Debian packages of Slurm")


@contextlib.contextmanager
def temporary_cluster(accounting: bool = False, settings: Mapping[str, str] | None = None) -> Iterator[SlurmCluster]:
    """A cluster in a folder of its own, which is removed afterwards; ``settings`` are those of SlurmCluster."""
    require_slurm(accounting)
    # not in pytest's folder: the database runs as another user, who may not enter that
    folder = Path(tempfile.mkdtemp(prefix="dlhpc-slurm-"))
    try:
        with SlurmCluster(folder, accounting=accounting, settings=settings, temporary=True) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Keep a cluster up until Ctrl-C, or (as its guard) clear up behind whoever started it."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm_cluster", description="Keep a real Slurm up.")
    parser.add_argument("folder", type=Path, help="folder for everything that it writes")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=2, help="on each node")
    parser.add_argument("--cores", type=int, default=8, help="on each node")
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd, for sacct")
    parser.add_argument("--guard", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--remove", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.guard is not None:
        while os.getppid() == asked.guard:
            time.sleep(0.5)
        clear(asked.folder)
        if asked.remove:
            shutil.rmtree(asked.folder, ignore_errors=True)
        return 0
    if missing := missing_programs(asked.accounting):
        parser.error(f"missing here: {', '.join(missing)}; apt-get install slurm-wlm munge slurmdbd mariadb-server")
    wanted = {"nodes": asked.nodes, "gpus": asked.gpus, "cores": asked.cores, "accounting": asked.accounting}
    for asked_to_end in (signal.SIGTERM, signal.SIGINT):  # a shell starts what is in its background with INT ignored
        signal.signal(asked_to_end, signal.default_int_handler)
    try:
        with SlurmCluster(asked.folder, **wanted) as cluster:
            print(f"export SLURM_CONF={cluster.configuration}", flush=True)
            print("Ctrl-C stops it.", file=sys.stderr)
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
