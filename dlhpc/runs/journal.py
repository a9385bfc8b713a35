"""The journal: what happened to a run, one JSON object a line, only ever appended."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from dlhpc.files import append_lines, read_json_lines
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.sweep import SweepDirectory, SweepProgress, member_rows, read_progress


class Event(StrEnum):
    """Every kind of event, with the details it carries."""

    CREATED = "created"
    SUBMITTING = "submitting"  # submission (number, from 1), attempt (that its job is expected to be), ahead
    SUBMITTED = "submitted"  # submission, attempt, job_ids, place (scheduler and dialect)
    SUBMIT_FAILED = "submit_failed"  # submission, attempt, reason, ahead, lost (no answer, and no job was found)
    BEGUN = "begun"  # attempt, job_id, host: the job script runs
    STARTED = "started"  # attempt, job_id, hosts, ranks: the ranks have found each other
    RESUMED = "resumed"  # attempt, epoch, step, checkpoint
    EPOCH = "epoch"  # attempt, epoch, epochs
    CHECKPOINTED = "checkpointed"  # attempt, epoch, step, checkpoint
    WARNING = "warning"  # attempt, message
    STOPPED = "stopped"  # attempt, reason: state saved, another attempt goes on
    FINISHED = "finished"  # attempt, code
    FAILED = "failed"  # attempt, code, reason, retried, tail (of the log)
    CONCLUDED = "concluded"  # attempt, job_id, next (see dlhpc.jobs.conclude): the job script is about to end
    JOB_OVER = "job_over"  # job_ids: the scheduler says so
    CANCELLED = "cancelled"  # by the user


@dataclass(frozen=True)
class Entry:
    """One line: when (seconds since 1970, UTC), what, and its details."""

    time: float
    event: str
    details: dict[str, Any]

    @property
    def attempt(self) -> int | None:
        attempt = self.details.get("attempt")
        return attempt if isinstance(attempt, int) else None


def record(run: RunDirectory, event: Event, *, durable: bool = True, **details: Any) -> None:
    """Append one event; ``durable`` waits until it is on the disk."""
    now = datetime.now(UTC)
    line = json.dumps(
        {"time": now.isoformat(timespec="milliseconds"), "event": event.value, **details}, ensure_ascii=False
    )
    append_lines(run.journal, [line], durable=durable)


def read_journal(
    run: RunDirectory, progress_of: Callable[[SweepDirectory], SweepProgress] = read_progress
) -> tuple[list[Entry], int]:
    """All whole entries in order, and how many lines were damaged.

    Of a sweep's member this includes its submission in an array, which only the sweep has on record; ``progress_of``
    spares those who read many members to look at the sweep's log for each of them.
    """
    rows, damaged = read_json_lines(run.journal)
    rows[1:1] = member_rows(run, progress_of)
    entries: list[Entry] = []
    for row in rows:
        try:
            time = datetime.fromisoformat(row.pop("time")).timestamp()
            entries.append(Entry(time, str(row.pop("event")), row))
        except (KeyError, ValueError, TypeError):
            damaged += 1
    return entries, damaged
