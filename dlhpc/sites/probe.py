"""What a batch system says of its machine: the questions, asked of whichever system there is.

Each system has a module with pure parsers and one function that asks; all give a :class:`Machine`. Nothing here
changes anything, and a question that gets no answer leaves a hole and a sentence in ``Machine.silent``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from dlhpc.errors import CommandError, UserError
from dlhpc.process import ask, demand

ANSWER_WITHIN_S = 60.0
"""Batch systems under load take long, but an answer after a minute is none."""

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "slurm": ("sbatch", "squeue", "scancel", "scontrol", "sinfo"),
    "pbs": ("qsub", "qstat", "qdel", "qhold", "qrls", "pbsnodes", "qselect"),
    "torque": ("qsub", "qstat", "qdel", "qhold", "qrls", "pbsnodes"),
    "loadleveler": ("llsubmit", "llq", "llcancel", "llhold", "llclass", "llstatus"),
    "local": (),
}
"""The commands that dlhpc calls on a login node."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class LiveNode:
    """One compute node, as the batch system counts it."""

    name: str
    cores: int | None = None
    memory_bytes: int | None = None
    gpus: int = 0
    resources: Mapping[str, int] = field(default_factory=dict)
    """Everything else that can be asked for and counted, by name (``gpu:a100``, ``ngpus``)."""
    features: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    """The queues that may use it; empty where the system does not say so of its nodes."""
    state: str = ""
    """In the system's words."""
    up: bool = True
    """Whether jobs can start on it (now, or when others end)."""
    system: str = ""
    """Operating system, where it is said: `AIX71`."""


@dataclass(frozen=True)
class LiveQueue:
    """One queue (partition, class); None where the system has no limit or does not tell."""

    name: str
    is_default: bool = False
    max_walltime: timedelta | None = None
    min_nodes: int | None = None
    max_nodes: int | None = None
    max_jobs: int | None = None
    closed: str | None = None
    """Why it takes or starts no jobs now, in the system's words."""


@dataclass(frozen=True)
class Machine:
    """All that could be learned. ``queues`` and ``nodes`` are None where the question got no answer."""

    scheduler: str
    name: str
    version: str = ""
    dialect: str | None = None
    queues: tuple[LiveQueue, ...] | None = None
    nodes: tuple[LiveNode, ...] | None = None
    max_array: int | None = None
    kill_grace: timedelta | None = None
    accounts: tuple[str, ...] | None = None
    """Accounts that this user may charge."""
    silent: tuple[str, ...] = ()
    """Questions that got no answer, a sentence each."""

    def nodes_of(self, queue: str) -> tuple[LiveNode, ...] | None:
        """The nodes that a queue may use; None where the system does not say."""
        if self.nodes is None or not any(node.queues for node in self.nodes):
            return None
        return tuple(node for node in self.nodes if queue in node.queues)


class Questions:
    """Asks one thing after another, and keeps what was said instead of an answer.

    When the first gets no answer, nothing further is asked: a server that is down lets each command wait long.
    """

    def __init__(self) -> None:
        self.silent: list[str] = []
        self._answered = False

    def answer(self, argv: Sequence[str], parse: Callable[[str], Value]) -> Value | None:
        """What ``parse`` makes of the command's output; None, and a sentence in ``silent``, if there is none."""
        if self.silent and not self._answered:
            return None
        try:
            said = demand(argv, timeout=ANSWER_WITHIN_S).out
        except CommandError as error:
            self.silent.append(error.what)
            return None
        self._answered = True
        return parse(said)


def detect_scheduler() -> str:
    """The batch system whose commands are on PATH: slurm, pbs, loadleveler, or local where there is none."""
    for scheduler, command in (("slurm", "sbatch"), ("loadleveler", "llsubmit"), ("pbs", "qsub")):
        if shutil.which(command) is not None:
            return scheduler
    return "local"


def probe(scheduler: str) -> Machine:
    """Ask the batch system of that name; never fails, see ``silent``."""
    if scheduler == "slurm":
        from dlhpc.sites.probe_slurm import probe_slurm

        return probe_slurm()
    if scheduler == "pbs":
        from dlhpc.sites.probe_pbs import probe_pbs

        return probe_pbs()
    if scheduler == "loadleveler":
        from dlhpc.sites.probe_loadleveler import probe_loadleveler

        return probe_loadleveler()
    if scheduler == "local":
        return probe_local()
    raise UserError(f"there is no scheduler `{scheduler}`", remedy=f"Known: {', '.join(sorted(COMMANDS))}.")


def probe_local() -> Machine:
    """This machine as one node, without a queue."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = None
    with contextlib.suppress(OSError, ValueError):  # a system that does not know these names
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = os.uname().nodename
    return Machine("local", name, nodes=(LiveNode(name, cores=cores, memory_bytes=memory, gpus=_local_gpus()),))


def _local_gpus() -> int:
    try:
        answer = ask(["nvidia-smi", "-L"], timeout=ANSWER_WITHIN_S)
    except CommandError:
        return 0
    return sum(line.startswith("GPU ") for line in answer.out.splitlines()) if answer.code == 0 else 0


_SIZE_UNITS = {"": 1, "b": 1, "w": 8, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}


def size(text: str) -> int | None:
    """``131927016kb``, ``64 gb``, ``62.50G``: bytes. Batch systems count in powers of two; None for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)([bw]?)", text.strip().lower())
    if not found:
        return None
    number, unit, what = found.groups()
    return round(float(number) * _SIZE_UNITS[unit] * _SIZE_UNITS[what if what == "w" else ""])


def clock(text: str) -> timedelta | None:
    """``90``, ``30:00``, ``1:30:00``, ``2-00:00:00``, ``2+00:00:00``; None for `UNLIMITED`, `undefined` and the like.

    One number is seconds, two are minutes and seconds.
    """
    found = re.fullmatch(r"(?:(\d+)[-+])?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not found:
        return None
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:  # 2-12 is two days and twelve hours
        numbers += [0] * (3 - len(numbers))
    seconds = 0
    for number in numbers:
        seconds = seconds * 60 + number
    return timedelta(days=int(days or 0), seconds=seconds)


def whole(text: str | None) -> int | None:
    """A count; None for `UNLIMITED`, `-1`, words and nothing."""
    return int(text) if text is not None and re.fullmatch(r"\d+", text.strip()) else None


def blocks(
    text: str, starts: Callable[[str], str | None], pair: re.Pattern[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Cut a listing into (name, attributes). ``starts`` gives the name in a line that begins a block.

    A line that is neither a beginning nor a ``pair`` (two groups: key and value) belongs to the value before it, which
    is how these systems fold long lines.
    """
    name: str | None = None
    attributes: dict[str, str] = {}
    last: str | None = None
    for line in text.splitlines():
        beginning = starts(line)
        if beginning is not None:
            if name is not None:
                yield name, attributes
            name, attributes, last = beginning, {}, None
        elif name is None or not line.strip():
            last = None
        elif found := pair.match(line):
            last = found[1].strip()
            attributes[last] = found[2].strip()
        elif last is not None:
            attributes[last] += line.strip()
    if name is not None:
        yield name, attributes
