"""What ran where and how long: one row for each attempt, out of the journal and the provenance record."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlhpc.runs.journal import Entry, Event

_LAST_WORDS = {Event.FINISHED, Event.STOPPED, Event.FAILED, Event.CANCELLED}


@dataclass(frozen=True)
class AttemptRow:
    """One attempt. Times are seconds since 1970, durations seconds; None where the journal does not say."""

    number: int
    job_id: str | None
    hosts: tuple[str, ...]
    """Each host once, in the order of ranks."""
    ranks: int | None
    submitted: float | None
    started: float | None
    ended: float | None
    last_epoch: float | None
    pictures_per_second: float | None
    """Median over the attempt's epochs."""
    outcome: str
    versions: str
    """Such as ``torch 2.4, horovod 0.28``."""

    @property
    def waited_seconds(self) -> float | None:
        return _difference(self.submitted, self.started)

    @property
    def ran_seconds(self) -> float | None:
        return _difference(self.started, self.ended)


@dataclass(frozen=True)
class Resumption:
    """Where a later attempt took over, for marks in the curves."""

    attempt: int
    epoch: float


def _difference(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(0.0, end - start)


def attempt_rows(entries: Sequence[Entry], provenance: Mapping[str, Any]) -> list[AttemptRow]:
    """Every attempt of the journal, in order."""
    numbers = sorted({entry.attempt for entry in entries if entry.attempt is not None and entry.attempt > 0})
    records = _records(provenance)
    return [
        _row(
            number,
            [entry for entry in entries if entry.attempt == number],
            records.get(number, {}),
            number < numbers[-1],
        )
        for number in numbers
    ]


def _records(provenance: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    attempts = provenance.get("attempts")
    records = attempts if isinstance(attempts, list) else []
    return {
        record["attempt"]: record
        for record in records
        if isinstance(record, dict) and isinstance(record.get("attempt"), int)
    }


def _row(number: int, entries: list[Entry], record: Mapping[str, Any], superseded: bool) -> AttemptRow:
    def first(*events: Event) -> Entry | None:
        return next((entry for entry in entries if entry.event in events), None)

    submitted = first(Event.SUBMITTED) or first(Event.SUBMITTING)
    started = first(Event.STARTED)
    last_words = next((entry for entry in reversed(entries) if entry.event in _LAST_WORDS), None)
    epochs = [entry.details for entry in entries if entry.event == Event.EPOCH]
    speeds = [speed for details in epochs if (speed := _number(details.get("pictures_per_second"))) is not None]
    hosts = (started.details.get("hosts") if started else None) or record.get("hosts") or ()
    ranks = started.details.get("ranks") if started else None
    job_id = next((entry.details["job_id"] for entry in entries if entry.details.get("job_id")), None)
    return AttemptRow(
        number=number,
        job_id=None if job_id is None else str(job_id),
        hosts=tuple(dict.fromkeys(str(host) for host in hosts)) if isinstance(hosts, list | tuple) else (str(hosts),),
        ranks=ranks if isinstance(ranks, int) else None,
        submitted=submitted.time if submitted else None,
        started=started.time if started else None,
        ended=last_words.time if last_words else (entries[-1].time if started else None),
        last_epoch=_number(epochs[-1].get("epoch")) if epochs else None,
        pictures_per_second=statistics.median(speeds) if speeds else None,
        outcome=_outcome(last_words, first(Event.SUBMIT_FAILED), started, superseded),
        versions=_versions(record.get("versions")),
    )


def _outcome(last_words: Entry | None, refused: Entry | None, started: Entry | None, superseded: bool) -> str:
    if last_words is None:
        if refused is not None and started is None:
            return f"not submitted: {refused.details.get('reason', 'no reason given')}"
        if superseded:
            return "ended without a word"
        return "no end on record yet" if started else "waits in the queue, or was not started"
    reason = last_words.details.get("reason")
    because = f": {reason}" if reason else ""
    match last_words.event:
        case Event.FINISHED:
            return "finished"
        case Event.STOPPED:
            return f"saved its state and left{because}"
        case Event.CANCELLED:
            return "cancelled"
        case _:
            code = last_words.details.get("code")
            return f"failed{'' if code is None else f' with code {code}'}{because}"


def _versions(versions: object) -> str:
    if not isinstance(versions, dict):
        return ""
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def resumptions(entries: Sequence[Entry], steps_per_epoch: int) -> list[Resumption]:
    """Where attempts went on from a checkpoint; fractions of an epoch come from the step."""
    found = []
    for entry in entries:
        if entry.event != Event.RESUMED or entry.attempt is None:
            continue
        step, epoch = _number(entry.details.get("step")), _number(entry.details.get("epoch"))
        if step is not None and steps_per_epoch > 0:
            found.append(Resumption(entry.attempt, step / steps_per_epoch))
        elif epoch is not None:
            found.append(Resumption(entry.attempt, epoch))
    return found


def warnings_of(entries: Sequence[Entry]) -> list[str]:
    """The journal's warnings, each said once with how often it came."""
    counts: dict[str, int] = {}
    for entry in entries:
        if entry.event == Event.WARNING:
            message = str(entry.details.get("message", "a warning without words"))
            counts[message] = counts.get(message, 0) + 1
    return [message if count == 1 else f"{message} ({count} times)" for message, count in counts.items()]
