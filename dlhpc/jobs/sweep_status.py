"""Where a sweep stands: its members' states counted, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dlhpc.errors import DlhpcError
from dlhpc.files import read_json
from dlhpc.jobs.follow import RunStatus, statuses
from dlhpc.runs.checkpoints import BEST
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import read_journal
from dlhpc.runs.measures import better
from dlhpc.runs.state import RunState, progress
from dlhpc.runs.sweep import SweepDirectory, SweepProgress, index_of, read_progress, read_record


@dataclass(frozen=True)
class Best:
    """The member with the best validation so far, by the measure that its spec names."""

    run: str
    measure: str
    value: float
    epoch: float


@dataclass(frozen=True)
class SweepStatus:
    """Where a sweep stands."""

    sweep: str
    path: str
    state: RunState
    members: list[RunStatus]
    counts: dict[RunState, int]
    """Members by state; those that wait for their turn to be submitted are not among them."""
    waiting: set[str]
    """Members that will be submitted when there is room, or when the sweep is released."""
    best: Best | None
    job_ids: list[str] = field(default_factory=list)
    """Of the arrays, else of members that have one."""
    held: bool = False
    """`dlhpc hold` keeps those that wait from being submitted."""
    more: int | None = None
    """Of a search that goes on: members that may still follow."""
    searched: str | None = None
    """Of a search that has ended: why."""

    @property
    def is_over(self) -> bool:
        """Nothing of the sweep is or will be in the queue."""
        return not self.waiting and self.more is None and all(one.state.is_over for one in self.members)

    def sentence(self) -> str:
        """``12 finished, 3 running, 1 failed``."""
        parts = [f"{count} {state.value}" for state, count in self.counts.items() if count]
        if self.waiting:
            parts.append(f"{len(self.waiting)} to be submitted{' after `dlhpc release`' if self.held else ''}")
        if self.more:
            parts.append(f"up to {self.more} to be decided")
        if self.searched:
            parts.append(f"search over: {self.searched}")
        return ", ".join(parts)


def sweep_status(sweep: SweepDirectory, found: Sequence[RunStatus] | None = None) -> SweepStatus:
    """Where the sweep stands; ``found`` are its members' statuses where they are known already, in order."""
    if found is None:
        found = statuses(sweep.found_members())
    known = read_progress(sweep)
    submitted = known.submitted
    members: list[RunStatus] = []
    counts = dict.fromkeys(
        (
            RunState.FINISHED,
            RunState.RUNNING,
            RunState.QUEUED,
            RunState.HELD,
            RunState.FAILED,
            RunState.CANCELLED,
            RunState.UNKNOWN,
            RunState.NOT_SUBMITTED,
        ),
        0,
    )
    waiting: set[str] = set()
    for one in found:
        if _waits_for_turn(sweep, known, submitted, one):
            waiting.add(one.run)
        else:
            counts[one.state] += 1
        members.append(one)
    more = None
    if sweep.is_search and known.searched is None and not known.cancelled:
        more = read_record(sweep).most - len(members)
    ids = [one.array_id for one in known.portions.values() if one.array_id is not None]
    return SweepStatus(
        sweep=sweep.name,
        path=str(sweep.path),
        state=_overall(counts, waiting=bool(waiting) or more is not None),
        members=members,
        counts=counts,
        waiting=waiting,
        best=_best(sweep, members),
        job_ids=[*ids, *(one.job_id for index, one in enumerate(members) if index in known.taken and one.job_id)],
        held=bool(known.held),
        more=more,
        searched=known.searched,
    )


def _waits_for_turn(sweep: SweepDirectory, known: SweepProgress, submitted: set[int], one: RunStatus) -> bool:
    """Whether the sweep is going to submit this member."""
    if known.cancelled or not known.begun or not one.state.is_over:
        return False
    index = index_of(one.run)
    if index in known.again:
        own = progress(read_journal(RunDirectory(sweep.path / one.run))[0])
        return own.submissions == known.again[index]
    return one.state is RunState.NOT_SUBMITTED and index not in submitted


def _overall(counts: dict[RunState, int], *, waiting: bool) -> RunState:
    """One word for all: what still moves comes before what has ended, what went wrong before what went well."""
    for state in (RunState.RUNNING, RunState.QUEUED, RunState.HELD, RunState.UNKNOWN):
        if counts[state]:
            return state
    if waiting:
        return RunState.QUEUED if sum(counts.values()) else RunState.NOT_SUBMITTED
    for state in (RunState.FAILED, RunState.CANCELLED, RunState.NOT_SUBMITTED):
        if counts[state]:
            return state
    return RunState.FINISHED


def _best(sweep: SweepDirectory, members: Sequence[RunStatus]) -> Best | None:
    best: Best | None = None
    for one in members:
        if not one.epoch:
            continue
        try:
            value = read_json(sweep.path / one.run / "checkpoints" / BEST)
            found = Best(one.run, str(value["measure"]), float(value["value"]), float(value["epoch"]))
        except (DlhpcError, KeyError, TypeError, ValueError):
            continue  # not measured yet
        if best is None or (found.measure == best.measure and better(found.measure, found.value, best.value)):
            best = found
    return best
