"""What PBS says of its machine: `qstat -B -f`, `qstat -Q -f` and `pbsnodes -a`, of Torque as well.

All three list blocks of ``key = value`` lines. The plain form is asked for because every server since OpenPBS 2.3 has
it; it folds long lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from dlhpc.sites.probe import LiveNode, LiveQueue, Machine, Questions, blocks, clock, size, whole

_ATTRIBUTE = re.compile(r"^ {2,8}([A-Za-z][\w.]*) =\s?(.*)$")
_QUEUE = re.compile(r"^Queue:\s*(\S+)")
_SERVER = re.compile(r"^Server:\s*(\S+)")
_NODE = re.compile(r"^(\S+)\s*$")
_OFFERS = "resources_available."
_USERS_LIMIT = re.compile(r"\[u:PBS_GENERIC=(\d+)\]")
_NOT_UP = {"down", "offline", "offline_by_mom", "unknown", "state-unknown", "stale", "unresolvable", "sleep"}


def _first(pattern: re.Pattern[str], line: str) -> str | None:
    found = pattern.match(line)
    return found[1] if found else None


def parse_server(text: str) -> tuple[str, dict[str, str]]:
    """``qstat -B -f``: the (first) server's name and attributes."""
    return next(blocks(text, lambda line: _first(_SERVER, line), _ATTRIBUTE), ("", {}))


def parse_queues(text: str) -> tuple[LiveQueue, ...]:
    """``qstat -Q -f``."""
    queues = []
    for name, row in blocks(text, lambda line: _first(_QUEUE, line), _ATTRIBUTE):
        shut = [key for key in ("enabled", "started") if row.get(key, "True").lower() != "true"]
        limit = _USERS_LIMIT.search(row.get("max_queued", ""))
        queues.append(
            LiveQueue(
                name,
                max_walltime=clock(row.get("resources_max.walltime", "")),
                min_nodes=whole(row.get("resources_min.nodect")) or None,
                max_nodes=whole(row.get("resources_max.nodect")),
                max_jobs=int(limit[1]) if limit else whole(row.get("max_user_queuable")),
                closed=", ".join(f"{key} = {row[key]}" for key in shut) or None,
            )
        )
    return tuple(queues)


def parse_kill_delay(text: str) -> timedelta | None:
    """The longest ``kill_delay`` of the queues; None where none sets it."""
    rows = [row for _, row in blocks(text, lambda line: _first(_QUEUE, line), _ATTRIBUTE)]
    delays = [delay for row in rows if (delay := whole(row.get("kill_delay"))) is not None]
    return timedelta(seconds=max(delays)) if delays else None


def parse_nodes(text: str) -> tuple[LiveNode, ...]:
    """``pbsnodes -a`` of PBS Professional, OpenPBS or Torque."""
    return tuple(
        _torque_node(name, row) if "np" in row else _node(name, row)
        for name, row in blocks(text, lambda line: _first(_NODE, line), _ATTRIBUTE)
    )


def _node(name: str, row: Mapping[str, str]) -> LiveNode:
    available = {key.removeprefix(_OFFERS): value for key, value in row.items() if key.startswith(_OFFERS)}
    resources = {key: int(value) for key, value in available.items() if value.isdigit()}
    queues = [row["queue"]] if "queue" in row else []
    queues += [word for word in available.get("Qlist", "").split(",") if word]
    return LiveNode(
        name,
        cores=resources.get("ncpus"),
        memory_bytes=size(available.get("mem", "")),
        gpus=resources.get("ngpus", 0),
        resources=resources,
        queues=tuple(queues),
        state=row.get("state", ""),
        up=_is_up(row),
    )


def _torque_node(name: str, row: Mapping[str, str]) -> LiveNode:
    status = dict(part.split("=", 1) for part in row.get("status", "").split(",") if "=" in part)
    gpus = whole(row.get("gpus")) or 0
    return LiveNode(
        name,
        cores=whole(row.get("np")),
        memory_bytes=size(status.get("physmem", "")),
        gpus=gpus,
        resources={"gpus": gpus},
        features=tuple(word for word in row.get("properties", "").split(",") if word),
        state=row.get("state", ""),
        up=_is_up(row),
    )


def _is_up(row: Mapping[str, str]) -> bool:
    return not {word.strip().lower() for word in row.get("state", "").split(",")} & _NOT_UP


def probe_pbs() -> Machine:
    """Ask the default server. The dialect is `torque` for Torque, else `select`: a rule against it cannot be seen."""
    questions = Questions()
    name, server = questions.answer(["qstat", "-B", "-f"], parse_server) or ("", {})
    listing = questions.answer(["qstat", "-Q", "-f"], str)
    nodes = questions.answer(["pbsnodes", "-a"], parse_nodes)
    torque = any("gpus" in node.resources and "ncpus" not in node.resources for node in nodes or ())
    queues = None
    if listing is not None:
        default = server.get("default_queue", "").partition("@")[0]
        queues = tuple(replace(queue, is_default=queue.name == default) for queue in parse_queues(listing))
    delay = whole(server.get("kill_delay"))
    return Machine(
        "pbs",
        name=name,
        version=server.get("pbs_version", ""),
        dialect="torque" if torque else "select",
        queues=queues,
        nodes=nodes,
        max_array=whole(server.get("max_array_size") or server.get("max_job_array_size")),
        kill_grace=parse_kill_delay(listing or "") or (timedelta(seconds=delay) if delay else None),
        silent=tuple(questions.silent),
    )
