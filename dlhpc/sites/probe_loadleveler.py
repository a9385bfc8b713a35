"""What LoadLeveler says of its machine: `llclass -l` and `llstatus -l`.

The long listings are those of IBM's manual "Using and Administering": blocks of ``Key: value`` (classes) and ``Key =
value`` (machines) under rules of equals signs. Since release 5.1 llstatus groups machines unless
``LOADL_STATUS_LEVEL`` says `machine`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

from dlhpc.sites.probe import LiveNode, LiveQueue, Machine, Questions, blocks, clock, size, whole

_CLASS = re.compile(r"^\s*Name:\s*(\S+)\s*$")
_CLASS_PAIR = re.compile(r"^\s*([A-Za-z][\w ]*?)\s*:(?:\s+|$)(.*)$")
_MACHINE = re.compile(r"^\s*(?:Name|Machine)\s*=\s*(\S+)\s*$")
_MACHINE_PAIR = re.compile(r"^\s*([A-Za-z][\w ]*?)\s*=\s*(.*)$")
_RULE = re.compile(r"^[\s=]*=====.*$")
_SECONDS = re.compile(r"\((-?\d+) seconds?")
_SLOTS = re.compile(r"([\w.@-]+)\(\s*\d+\s*\)")
_NOT_UP = {"down", "drain", "drained", "flush", "none", "unknown"}
_CONSUMABLE = re.compile(r"([\w.]+)\(([^(),]*),([^()]*)\)")


def parse_classes(text: str) -> tuple[LiveQueue, ...]:
    """``llclass -l``."""
    queues = []
    for name, row in blocks(_unruled(text), lambda line: _first(_CLASS, line), _CLASS_PAIR):
        values = {key.lower().replace(" ", "_"): value for key, value in row.items()}
        queues.append(
            LiveQueue(
                name,
                max_walltime=parse_limit(values.get("wall_clock_limit", "")),
                max_nodes=whole(values.get("max_node") or values.get("max_nodes")) or None,
                max_jobs=whole(values.get("max_jobs_per_user")) or None,
            )
        )
    return tuple(queues)


def parse_limit(text: str) -> timedelta | None:
    """``1+00:00:00, 23:59:00 (86400 seconds, 86340 seconds)``: the first, hard limit; None for undefined."""
    if found := _SECONDS.search(text):
        return timedelta(seconds=int(found[1])) if int(found[1]) > 0 else None
    return clock(text.partition(",")[0])


def parse_machines(text: str) -> tuple[LiveNode, ...]:
    """``llstatus -l``. What can be asked for is the second number of each consumable resource."""
    return tuple(
        _node(name, row)
        for name, row in blocks(_unruled(text), lambda line: _first(_MACHINE, line), _MACHINE_PAIR)
        if len(row) > 1  # some releases say `Machine =` and `Name =` of one machine
    )


def _node(name: str, row: Mapping[str, str]) -> LiveNode:
    totals = {found[1]: found[3].strip() for found in _CONSUMABLE.finditer(row.get("ConsumableResources", ""))}
    counts = {key: int(value) for key, value in totals.items() if value.isdigit()}
    state = next((row[key] for key in ("State", "StartdState", "LoadL_startd Status") if row.get(key)), "")
    up = row.get("StartdAvail", "1") != "0" and state.lower() not in _NOT_UP
    return LiveNode(
        name,
        cores=counts.get("ConsumableCpus") or whole(row.get("Cpus")),
        memory_bytes=size(totals.get("ConsumableMemory", "")) or size(row.get("Total Memory", row.get("Memory", ""))),
        gpus=next((count for key, count in counts.items() if "gpu" in key.lower()), 0),
        resources={key: count for key, count in counts.items() if not key.startswith("Consumable")},
        features=tuple(row.get("Feature", "").split()),
        queues=tuple(dict.fromkeys(_SLOTS.findall(row.get("ConfiguredClasses", "")))),
        state=state,
        up=up,
        system=row.get("OpSys", ""),
    )


def _first(pattern: re.Pattern[str], line: str) -> str | None:
    found = pattern.match(line)
    return found[1] if found else None


def _unruled(text: str) -> str:
    return "\n".join("" if _RULE.match(line) else line for line in text.splitlines())


def probe_loadleveler() -> Machine:
    """Ask the central manager."""
    questions = Questions()
    return Machine(
        "loadleveler",
        name="",
        queues=questions.answer(["llclass", "-l"], parse_classes),
        nodes=questions.answer(["env", "LOADL_STATUS_LEVEL=machine", "llstatus", "-l"], parse_machines),
        silent=tuple(questions.silent),
    )
