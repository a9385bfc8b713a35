"""What ran where and how long: one row for each attempt, out of the journal and the provenance record."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlhpc.runs.journal import Entry, Event
from dlhpc.runs.state import progress

_LAST_WORDS = {Event.FINISHED, Event.STOPPED, Event.FAILED, Event.CANCELLED}


@dataclass(frozen=True)
class AttemptRow:
    """One attempt. Times are seconds since 1970, durations seconds; None where the journal does not say."""

    number: int
    job_id: str | None
    hosts: tuple[str, ...]
    """Each host once, in the order of ranks."""
    ranks: int | None
    queued: float | None
    """Since when it waited: its job's submission, or the end of the attempt before it."""
    began: float | None
    """Its job script began."""
    ended: float | None
    last_epoch: float | None
    pictures_per_second: float | None
    """Median over the attempt's epochs."""
    outcome: str
    versions: str
    """Such as ``torch 2.4, horovod 0.28``."""

    @property
    def waited_seconds(self) -> float | None:
        return _difference(self.queued, self.began)

    @property
    def ran_seconds(self) -> float | None:
        return _difference(self.began, self.ended)


@dataclass(frozen=True)
class Resumption:
    """Where a later attempt took over, for marks in the curves."""

    attempt: int
    epoch: float


def _difference(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(0.0, end - start)


def attempt_rows(entries: Sequence[Entry], provenance: Mapping[str, Any]) -> list[AttemptRow]:
    """Every attempt that has begun, in order, and the one that waits or could not be submitted, if there is one."""
    known = progress(entries)
    begun = {entry.attempt for entry in entries if entry.event in (Event.BEGUN, Event.STARTED)}
    submissions = [entry for entry in entries if entry.event in (Event.SUBMIT_FAILED, Event.SUBMITTED)]
    refused = known.begun + 1 if submissions and submissions[-1].event == Event.SUBMIT_FAILED else None
    numbers = sorted({number for number in (*begun, known.attempt, refused) if number})
    records = _records(provenance)
    rows: list[AttemptRow] = []
    for number in numbers:
        before = rows[-1].ended if rows else None
        rows.append(_row(number, entries, records.get(number, {}), before, superseded=number < numbers[-1]))
    return rows


def _records(provenance: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    attempts = provenance.get("attempts")
    records = attempts if isinstance(attempts, list) else []
    return {
        record["attempt"]: record
        for record in records
        if isinstance(record, dict) and isinstance(record.get("attempt"), int)
    }


def _row(
    number: int, entries: Sequence[Entry], record: Mapping[str, Any], before: float | None, *, superseded: bool
) -> AttemptRow:
    """One attempt; ``before`` is when the one before it ended."""
    own = [entry for entry in entries if entry.attempt == number]

    def first(*events: Event) -> Entry | None:
        return next((entry for entry in own if entry.event in events), None)

    ready = first(Event.STARTED)
    began = first(Event.BEGUN) or ready
    last_words = next((entry for entry in reversed(own) if entry.event in _LAST_WORDS), None)
    submitted = _submission(number, entries, began)
    job_id = began.details.get("job_id") if began else next(iter(_jobs(submitted)), None)
    epochs = [entry.details for entry in own if entry.event == Event.EPOCH]
    speeds = [speed for details in epochs if (speed := _number(details.get("pictures_per_second"))) is not None]
    hosts = (ready.details.get("hosts") if ready else None) or record.get("hosts") or ()
    ranks = ready.details.get("ranks") if ready else None
    # A job that goes on after an attempt, or was queued ahead of its end, has waited only since then.
    waits = [time for time in (submitted.time if submitted else None, before) if time is not None]
    return AttemptRow(
        number=number,
        job_id=None if job_id is None else str(job_id),
        hosts=tuple(dict.fromkeys(str(host) for host in hosts)) if isinstance(hosts, list | tuple) else (str(hosts),),
        ranks=ranks if isinstance(ranks, int) else None,
        queued=max(waits, default=None),
        began=began.time if began else None,
        ended=_end(own, last_words) if began else None,
        last_epoch=_number(epochs[-1].get("epoch")) if epochs else None,
        pictures_per_second=statistics.median(speeds) if speeds else None,
        outcome=_outcome(last_words, first(Event.SUBMIT_FAILED), began, superseded),
        versions=_versions(record.get("versions")),
    )


def _submission(number: int, entries: Sequence[Entry], began: Entry | None) -> Entry | None:
    """The submission of the job that was this attempt; of one that waits, of the job that is to be it."""
    submissions = [entry for entry in entries if entry.event == Event.SUBMITTED]
    if began is not None:
        return next((entry for entry in submissions if str(began.details.get("job_id")) in _jobs(entry)), None)
    return next((entry for entry in reversed(submissions) if entry.attempt == number), None)


def _jobs(submitted: Entry | None) -> list[str]:
    ids = submitted.details.get("job_ids") if submitted else None
    return [str(one) for one in ids] if isinstance(ids, list) else []


def _end(own: list[Entry], last_words: Entry | None) -> float:
    """When an attempt ended, or was last heard of. What others wrote about it later does not count."""
    concluded = next((entry for entry in own if entry.event == Event.CONCLUDED), None)
    if concluded is not None:
        return concluded.time
    if last_words is not None and not (last_words.event == Event.FAILED and last_words.details.get("code") is None):
        return last_words.time
    return [entry for entry in own if entry.event != Event.FAILED][-1].time


def _outcome(last_words: Entry | None, refused: Entry | None, began: Entry | None, superseded: bool) -> str:
    if last_words is None:
        if refused is not None and began is None:
            return f"not submitted: {refused.details.get('reason', 'no reason given')}"
        if superseded:
            return "ended without a word"
        return "no end on record yet" if began else "waits in the queue, or was not started"
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
