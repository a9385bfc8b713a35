"""Two ranks with one thread each: what the exchange of gradients costs in the trainer, and in bare loops.

All groups of ranks are started first and then measured in turn, so that disturbances meet all; those that are not being
measured are stopped by a signal, since Horovod's threads never sleep for long.
"""

from __future__ import annotations

import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from dlhpc.jobs.launch import rank_exports
from dlhpc.spec.training import Distributed
from tests.bench.measure import Figure

SIZE = 224
GLOBAL_BATCH = 64
ROUNDS = 3
STEPS = 2
BIN = Path(sys.executable).parent
MPIRUN = ["mpirun", "-np", "2", "--bind-to", "none", "--map-by", "slot", "--oversubscribe"]
LAUNCH = {
    "mpirun": MPIRUN,
    "gloo": [str(BIN / "horovodrun"), "--gloo", "-np", "2", "-H", "localhost:2"],
    "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python"],
    "none": [],
}


@dataclass
class Group:
    """Some ranks that wait to be told to train."""

    kind: str
    launcher: str
    settings: dict[str, str] = field(default_factory=dict)
    ranks: list[tuple[int, Connection]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Per step, one of each round."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """For the table."""
        if self.launcher == "none":
            return "one rank"
        return f"bare loop{'' if self.settings or self.launcher == 'torchrun' else ', defaults'}"

    def start(self, network: str, portion: int) -> None:
        address = str(Path(tempfile.gettempdir()) / f"bench-{secrets.token_hex(6)}")
        count = 1 if self.launcher == "none" else 2
        words = [address, self.kind, network, str(portion), str(SIZE), self.launcher]
        known = {"OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        search = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": os.getcwd(), "BENCH_GROUP": secrets.token_hex(6)}
        with Listener(address) as listener:
            self.process = subprocess.Popen(
                [*LAUNCH[self.launcher], sys.executable, "-m", "tests.bench.ranks_worker", *words],
                env={**os.environ, **known, **search, **self.settings},
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            for _ in range(count):
                connection = listener.accept()
                _, pid = connection.recv()
                self.ranks.append((pid, connection))
        self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        for pid, _ in self.ranks:
            os.kill(pid, number)

    def measure(self, steps: int) -> None:
        self.signal(signal.SIGCONT)
        for _, connection in self.ranks:
            connection.send(steps)
        self.seconds.append(max(connection.recv() for _, connection in self.ranks))
        self.signal(signal.SIGSTOP)

    def end(self) -> None:
        self.signal(signal.SIGCONT)
        for _, connection in self.ranks:
            connection.send(None)
        if self.process is not None:
            self.process.wait(60)


def compare(network: str, name: str, ours: Group, peer: Group, note: str, bar: float) -> Figure:
    """Steps of both in turn; the ratio is of pictures per second."""
    rounds = int(os.environ.get("BENCH_ROUNDS") or ROUNDS)
    groups = [ours, peer]
    try:
        for group in groups:
            group.start(network, GLOBAL_BATCH // 2)
        for _ in range(rounds):
            for group in groups:
                group.measure(STEPS)
    finally:
        for group in groups:
            group.end()
    pictures = [len(group.ranks) * GLOBAL_BATCH // 2 / min(group.seconds) for group in groups]
    medians = [len(group.ranks) * GLOBAL_BATCH // 2 / statistics.median(group.seconds) for group in groups]
    about = f"{note}; median of {rounds} rounds {medians[0] / medians[1]:.2f}; bar: {bar:g}"
    shown = [f"{speed:.3g} pictures/s" for speed in pictures]
    return Figure(f"{name}, {network}", shown[0], f"{shown[1]} ({peer.name})", pictures[0] / pictures[1], about)


def figures() -> list[Figure]:
    tuned = {name: value for name, value in rank_exports(Distributed(), 1).items() if name.startswith("HOROVOD_")}
    note = f"two ranks × 1 thread, global batch {GLOBAL_BATCH}, {SIZE}²"
    found = []
    for network in ("alexnet", "resnet18"):
        for strategy, launcher, settings in (
            ("horovod", "mpirun", tuned), ("horovod", "gloo", tuned), ("ddp", "torchrun", {}),
        ):  # fmt: skip
            sides = [Group(f"{who}-{strategy}", launcher, settings) for who in ("ours", "bare")]
            over = {"mpirun": "Horovod over MPI", "gloo": "Horovod over Gloo", "torchrun": "DDP"}[launcher]
            found.append(compare(network, f"the trainer's step, {over}", *sides, note, 0.97))
        alone = Group("bare-single", "none")
        bar = {"alexnet": 1.5, "resnet18": 1.8}[network]
        found.append(compare(network, "two ranks, DDP", Group("ours-ddp", "torchrun"), alone, note, bar))
        sides = [Group("ours-horovod", "mpirun", tuned), Group("bare-horovod", "mpirun")]
        found.append(compare(network, "Horovod as the trainer tunes it", *sides, f"{note}; over MPI", 1.15))
    return found
