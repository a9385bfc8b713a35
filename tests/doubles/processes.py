"""Processes of jobs: who they are, whose they are, and signals to them."""

from __future__ import annotations

import contextlib
import os

RUNNER_NAME = b"double-runner"


def _stat(pid: int | str) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (3 is the first), with the command name put in front."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    return [head.partition("(")[2], *tail.split()]


def birth(pid: int) -> str | None:
    """When a process began (ticks since boot): a number that is used again is not taken for it. None: it is gone."""
    fields = _stat(pid)
    return None if fields is None or fields[1] in "ZX" else fields[20]


def parent_of(pid: int) -> int:
    """The parent's process id; 0 where there is none."""
    fields = _stat(pid)
    return int(fields[2]) if fields else 0


def descendants(top: int, session: int | None = None) -> list[int]:
    """All processes under ``top``, without other jobs' runners; with ``session`` only that session's."""
    children: dict[int, list[int]] = {}
    sessions: dict[int, int] = {}
    runners = set()
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(name)) is not None and fields[1] not in "ZX":
            children.setdefault(int(fields[2]), []).append(int(name))
            sessions[int(name)] = int(fields[4])
            if fields[0].encode() == RUNNER_NAME:
                runners.add(int(name))
    found: list[int] = []
    level = [top]
    while level:
        level = [child for pid in level for child in children.get(pid, []) if child not in runners]
        found += level
    return found if session is None else [pid for pid in found if sessions[pid] == session]


def send(pids: list[int], number: int) -> None:
    """A signal to all of them that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
