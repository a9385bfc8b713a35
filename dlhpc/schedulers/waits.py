"""When would a job start? From what a queue holds now and how long its jobs waited: pure, for any batch system.

For batch systems that, unlike Slurm, do not tell when a job would start that is not submitted yet.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dlhpc.schedulers.base import StartEstimate

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_CTIME = re.compile(
    r"(?:[A-Za-z]{3},? )?([A-Za-z]{3}) +(\d{1,2}) +(\d{1,2}):(\d\d):(\d\d)(?: +[A-Za-z0-9+-]{1,6})? +(\d{4})"
)
_RECENT = 50
"""So many of the jobs that started last are looked at."""
_ENOUGH = 3
"""With fewer jobs of about this size, those of every size are taken."""


@dataclass(frozen=True)
class QueueJob:
    """One job of a queue; times in seconds since 1970, None where not known."""

    nodes: int | None
    queued: float | None
    """Since when it could have started."""
    started: float | None
    walltime_seconds: float | None
    waiting: bool = False
    running: bool = False
    planned: float | None = None
    """When the batch system itself means to start it."""


def parse_time(text: str) -> float | None:
    """``Tue Nov 24 01:02:03 2026`` (C's ``ctime``, with or without a zone), local time, or seconds since 1970."""
    text = text.strip()
    if re.fullmatch(r"\d{1,12}", text):
        return float(text) or None
    found = _CTIME.fullmatch(text)
    if found is None or found[1].lower() not in _MONTHS:
        return None
    month = _MONTHS.index(found[1].lower()) + 1
    day, hour, minute, second, year = (int(found[group]) for group in range(2, 7))
    try:
        return time.mktime((year, month, day, hour, minute, second, 0, 0, -1))
    except (OverflowError, ValueError):
        return None


def parse_clock(text: str) -> float | None:
    """``HH:MM:SS``, ``MM:SS`` or seconds; a few systems put days before, ``D:HH:MM:SS`` or ``D+HH:MM:SS``."""
    if not re.fullmatch(r"\d{1,9}([:+]\d{1,9}){0,3}", text.strip()):
        return None
    total = 0
    for part, unit in zip(reversed(re.split("[:+]", text.strip())), (1, 60, 3600, 86400)):
        total += int(part) * unit
    return float(total)


def estimate_start(
    jobs: Sequence[QueueJob], *, nodes: int, free_nodes: int | None, now: float, free_words: str = "free nodes"
) -> StartEstimate:
    """The best that can be said, most certain first.

    Room now and nobody waiting; else the median wait of recent jobs of about this size (half to double the nodes), but
    not before the system's own plan for the jobs ahead; else the moment at which running jobs must have ended.
    """
    ahead = [job for job in jobs if job.waiting]
    if free_nodes is not None and free_nodes >= nodes and not ahead:
        return StartEstimate(now, f"{free_words}, and nobody waits")
    planned = max((job.planned for job in ahead if job.planned is not None), default=None)
    waits, of_size = _waits(jobs, nodes)
    if waits:
        start = now + _median(waits)
        what = f"median wait of the last {len(waits)} jobs{' of about this size' if of_size else ''}"
        if len(waits) == 1:
            what = f"wait of the last job{' of about this size' if of_size else ''}"
        if planned is not None and planned > start:
            return StartEstimate(planned, "the batch system's own plan for the jobs ahead")
        return StartEstimate(start, what)
    if planned is not None:
        return StartEstimate(max(planned, now), "the batch system's own plan for the jobs ahead")
    if free_nodes is not None and not ahead and (end := _room(jobs, nodes - free_nodes, now)) is not None:
        return StartEstimate(end, "when running jobs reach their walltime, at the latest")
    return StartEstimate(None, "no job of this queue is remembered to learn from")


def _waits(jobs: Sequence[QueueJob], nodes: int) -> tuple[list[float], bool]:
    """Seconds that the latest jobs waited, and whether only those of about this size are among them."""
    known = [(job.started, job) for job in jobs if job.started is not None and job.queued is not None]
    known.sort(key=lambda pair: pair[0], reverse=True)
    latest = [job for _, job in known]
    similar = [job for job in latest if job.nodes is not None and nodes / 2 <= job.nodes <= nodes * 2]
    of_size = len(similar) >= _ENOUGH
    chosen = (similar if of_size else latest)[:_RECENT]
    return [max(0.0, (job.started or 0.0) - (job.queued or 0.0)) for job in chosen], of_size


def _median(values: Sequence[float]) -> float:
    """Of at least one value; :mod:`statistics` takes long to import."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _room(jobs: Sequence[QueueJob], missing: int, now: float) -> float | None:
    """When so many more nodes are free if every running job takes all of its walltime."""
    ends = sorted(
        (job.started + job.walltime_seconds, job.nodes or 1)
        for job in jobs
        if job.running and job.started is not None and job.walltime_seconds is not None
    )
    for end, nodes in ends:
        missing -= nodes
        if missing <= 0:
            return max(end, now)
    return None
