"""A first profile, written from what the batch system says: a commented YAML file for staff to complete. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlhpc.sites.probe import LiveNode, LiveQueue, Machine
from dlhpc.spec.base import format_duration

_QUEUE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:@-]*")
_NOT_FOR_JOBS = {"No_Class", "data_stage", "interactive"}
"""Classes of LoadLeveler that are no queues for batch jobs."""
_INSTEAD = {
    "local": "",
    "slurm": "partitions; see `scontrol show partition`",
    "pbs": "queues; see `qstat -Q -f`",
    "loadleveler": "classes; see `llclass -l`",
}


@dataclass(frozen=True)
class _Kind:
    """Nodes that look alike."""

    name: str
    nodes: tuple[LiveNode, ...]

    @property
    def one(self) -> LiveNode:
        return self.nodes[0]


def first_profile(machine: Machine, name: str) -> str:
    """The YAML text of a profile called ``name``; it loads, and `dlhpc site check` finds nothing that differs."""
    kinds = _kinds(machine.nodes or ())
    lines = [
        f"# Written by `dlhpc site init` from what {_who(machine)} said. Lines with TODO are for you to complete;",
        "# `dlhpc site check --site FILE` compares it with the machine at any time.",
        f"name: {_scalar(name)}",
        f"description: {_scalar(f'{machine.name or name}, {machine.scheduler}')}",
        f"scheduler: {machine.scheduler}",
        *([f"dialect: {machine.dialect}{_dialect_note(machine)}"] if machine.scheduler == "pbs" else []),
        *[f"# TODO no answer: {_comment(sentence)}" for sentence in machine.silent],
        "",
        *_node_lines(machine, kinds),
        *_queue_lines(machine, kinds),
        *_gpu_lines(machine),
        "# How the ranks of a job are started: auto, mpirun, mpiexec, srun, poe or gloo.",
        "launcher:",
        f"  kind: {'poe' if any(node.system.startswith('AIX') for node in machine.nodes or ()) else 'auto'}",
        "",
        "# Software that jobs may use. `dlhpc env build RECIPE --prefix /shared/envs/NAME` makes one.",
        "environments:",
        "  default: {}                   # TODO prefix: /shared/envs/NAME, modules: [openmpi/4.1]",
        "",
        "paths:",
        "  runs: ~/dlhpc-runs            # TODO on storage that login and compute nodes share",
        "  # scratch: $TMPDIR            # a disk in each node, as the job's shell sees it",
        "",
        "# accounts: {required: true, default: ab1234, pattern: '[a-z]{2}[0-9]{4}'}",
        "# prices: {node_hour: 100, kwh: 27, currency: JPY}",
        *_limit_lines(machine),
    ]
    return "\n".join(lines) + "\n"


def _who(machine: Machine) -> str:
    system = {"slurm": "Slurm", "pbs": "PBS", "loadleveler": "LoadLeveler", "local": "this machine"}[machine.scheduler]
    return " ".join(word for word in (system, machine.version) if word)


def _dialect_note(machine: Machine) -> str:
    return "" if machine.dialect == "torque" else "                 # or nodes, or totals, where select is not allowed"


def _kinds(nodes: Sequence[LiveNode]) -> list[_Kind]:
    """Nodes with the same cores, GPUs and memory (in whole GB), the kind with most GPUs first."""
    groups: dict[tuple[int, int, int], list[LiveNode]] = {}
    for node in nodes:
        key = (node.gpus, node.cores or 0, (node.memory_bytes or 0) // 10**9)
        groups.setdefault(key, []).append(node)
    kinds: list[_Kind] = []
    for (gpus, cores, memory), group in sorted(groups.items(), reverse=True):
        taken = {kind.name for kind in kinds}
        wishes = ("gpu" if gpus else "cpu", f"gpu{gpus}" if gpus else f"cpu{cores}", f"{gpus}x{cores}x{memory}gb")
        kinds.append(_Kind(next(wish for wish in wishes if wish not in taken), tuple(group)))
    return kinds


def _node_lines(machine: Machine, kinds: Sequence[_Kind]) -> Iterator[str]:
    if not kinds or machine.scheduler == "local":
        return
    yield "# Kinds of nodes. The names are yours; queues refer to them."
    yield "nodes:"
    for kind in kinds:
        down = [node for node in kind.nodes if not node.up]
        yield f"  {kind.name}:                          # {_comment(_names(kind.nodes))}"
        if kind.one.cores:
            yield f"    cores: {kind.one.cores}"
        if least := min((node.memory_bytes or 0 for node in kind.nodes), default=0) // 10**9:
            yield f"    memory: {least}GB"
        yield f"    gpus: {kind.one.gpus}"
        if kind.one.gpus:
            yield f"    # gpu_model: {_gpu_model(kind.one)}"
        yield f"    count: {len(kind.nodes)}"
        off = f"   # {_comment(_names(down))}" if down else ""
        yield f"    off: {len(down)}{off}"
        yield "    # power: {idle: 200, busy: 800}   # TODO watts at the wall, of one node"
    yield ""


def _gpu_model(node: LiveNode) -> str:
    types = [name.partition(":")[2] for name in node.resources if name.startswith("gpu:")]
    return types[0] if types else "NVIDIA A100 80GB"


def _queue_lines(machine: Machine, kinds: Sequence[_Kind]) -> Iterator[str]:
    queues = [queue for queue in machine.queues or () if queue.name not in _NOT_FOR_JOBS]
    usable = [queue for queue in queues if queue.closed is None and _QUEUE_NAME.fullmatch(queue.name)]
    usable.sort(key=lambda queue: not queue.is_default)
    note = _INSTEAD[machine.scheduler]
    yield f"# {note[0].upper()}{note[1:]}. The first is the default." if note else "# One queue for this machine."
    yield "queues:"
    for queue in usable:
        yield from _one_queue(machine, kinds, queue)
    for queue in queues:
        if queue not in usable:
            yield f"  # {_comment(queue.name)} is left out: {_comment(queue.closed or 'its name cannot be written')}"
    if not usable:
        yield f"  - name: {'local' if machine.scheduler == 'local' else 'TODO'}"
        if len(kinds) > 1:
            yield f"    node: {kinds[0].name}"
    yield ""


def _one_queue(machine: Machine, kinds: Sequence[_Kind], queue: LiveQueue) -> Iterator[str]:
    yield f"  - name: {_scalar(queue.name)}"
    there = machine.nodes_of(queue.name)
    if len(kinds) > 1 and machine.scheduler != "local":
        in_queue = Counter(kind.name for kind in kinds for node in kind.nodes if there is None or node in there)
        if there is None:
            wanted = "gpu" if "gpu" in queue.name.lower() else "cpu"
            likely = [kind.name for kind in kinds if kind.name.startswith(wanted)]
            chosen, why = likely[0] if likely else kinds[0].name, "   # TODO the system does not say which it gives"
        else:
            chosen = in_queue.most_common(1)[0][0] if in_queue else kinds[0].name
            others = [name for name in in_queue if name != chosen]
            why = f"   # it has {', '.join(others)} as well" if others else ""
        yield f"    node: {chosen}{why}"
    if queue.max_walltime is not None:
        yield f"    max_walltime: {format_duration(queue.max_walltime)}"
    if queue.min_nodes is not None and queue.min_nodes > 1:
        yield f"    min_nodes: {queue.min_nodes}"
    most = queue.max_nodes if not there else min(queue.max_nodes or len(there), len(there))
    if most:
        yield f"    max_nodes: {most}"
    if queue.max_jobs:
        yield f"    max_jobs: {queue.max_jobs}"


def _gpu_lines(machine: Machine) -> Iterator[str]:
    nodes = machine.nodes or ()
    if machine.scheduler == "loadleveler":
        counted = sorted({name for node in nodes for name in node.resources if "gpu" in name.lower()})
        features = sorted({name for node in nodes for name in node.features if "gpu" in name.lower()})
        if counted:
            yield from ("# What one GPU is called in `# @ resources = …`.", "gpu:", f"  resource: {counted[0]}", "")
        elif features:
            yield from ("# GPU nodes carry this feature; write their `gpus` under `nodes`.", "gpu:")
            yield from (f"  feature: {features[0]}", "")


def _limit_lines(machine: Machine) -> Iterator[str]:
    if machine.scheduler == "local":
        return
    yield ""
    yield "compute_may_submit: true        # `dlhpc site check` tries it with a small job"
    if machine.max_array:
        yield f"max_array: {machine.max_array}"
    if machine.kill_grace:
        yield f"kill_grace: {machine.kill_grace.total_seconds():g}s                 # from TERM at the walltime to KILL"


def _names(nodes: Sequence[LiveNode]) -> str:
    shown = ", ".join(node.name for node in nodes[:4])
    return shown if len(nodes) <= 4 else f"{shown} and {len(nodes) - 4} more"


def _scalar(text: str) -> str:
    """Text as a YAML scalar, in double quotes unless it is a plain word; a JSON string is one of YAML as well."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", text) and text.lower() not in ("true", "false", "null")
    return text if plain else json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    return re.sub(r"[^ -~]", " ", text)


def profile_name(file: Path | None, machine: Machine) -> str:
    """What to call the profile: after its file, else after the machine."""
    word = file.stem if file is not None else machine.name or machine.scheduler
    return re.sub(r"[^A-Za-z0-9_-]+", "-", word).strip("-") or "site"
