"""A search's next generation: decided when all members before it are over, written, and then submitted as any members.

What a generation tries is on the disk before its first member is made; whoever finds members missing makes them. All of
this happens under the sweep's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlhpc.data.catalog import Catalog
from dlhpc.errors import CommandError, DlhpcError, UserError
from dlhpc.files import read_json, replace_json
from dlhpc.jobs.follow import look_after, statuses
from dlhpc.jobs.propose import Tried, propose, without_gain
from dlhpc.jobs.sweep import PlannedSweep, make_sweep, read_sweep
from dlhpc.jobs.sweep_write import add_members
from dlhpc.runs.checkpoints import BEST
from dlhpc.runs.measures import rises
from dlhpc.runs.state import RunState
from dlhpc.runs.sweep import SweepDirectory, SweepEvent, SweepProgress, SweepRecord, index_of, log, read_record
from dlhpc.spec.load import Document
from dlhpc.spec.models import Spec
from dlhpc.spec.sweep import Search, Settings, Sweep, all_keys


def grow(sweep: SweepDirectory, decided: SweepRecord, known: SweepProgress) -> SweepRecord:
    """Make the next generation if the last one is over, and whatever members are missing; gives what is decided now."""
    document, asked = read_sweep(sweep.spec)
    assert asked is not None
    assert asked.search is not None
    there = {index_of(run.name) for run in sweep.found_members()}
    if len(there) < len(decided.members):
        _write(sweep, decided, document, asked, sorted(set(range(len(decided.members))) - there))
        return decided
    if not _all_over(sweep, decided, known):
        return decided
    search = asked.search
    tried = results(sweep, decided)
    reason = _reason_to_end(search, tried)
    if reason is not None:
        log(sweep, SweepEvent.SEARCHED, reason=reason)
        return decided
    generation = -(-len(tried) // search.size)
    proposed = _possible(sweep, decided, document, asked, tried, generation)
    replace_json(sweep.generation(generation), proposed)
    decided = read_record(sweep)
    _write(sweep, decided, document, asked, range(len(tried), len(decided.members)))
    return decided


def results(sweep: SweepDirectory, decided: SweepRecord) -> list[Tried]:
    """Every member with what its best checkpoint was worth."""
    return [
        Tried(settings, merit_of(sweep.member(index, decided.width).checkpoints / BEST))
        for index, settings in enumerate(decided.members)
    ]


def merit_of(best: Path) -> float | None:
    """The measure that ``best.json`` names, turned so that higher is better; None if there is none."""
    try:
        found = read_json(best)
        return float(found["value"]) if rises(str(found["measure"])) else -float(found["value"])
    except (DlhpcError, KeyError, TypeError, ValueError):
        return None


def _reason_to_end(search: Search, tried: Sequence[Tried]) -> str | None:
    if all(one.merit is None for one in tried):
        return "no member was measured; see the log of one with `dlhpc logs`"
    if len(tried) >= search.total:
        return f"all {search.total} members are tried"
    without = without_gain(search, tried)
    if search.patience is not None and without >= search.patience:
        return f"{without} generation{'' if without == 1 else 's'} without a better member"
    return None


def _all_over(sweep: SweepDirectory, decided: SweepRecord, known: SweepProgress) -> bool:
    """Whether every member is over for good; those whose job was lost go on first."""
    members = [sweep.member(index, decided.width) for index in range(len(decided.members))]
    if len(known.submitted) < len(members) or known.again:
        return False
    for run, now in zip(members, statuses(members)):
        if not now.state.is_over or now.state is RunState.NOT_SUBMITTED:
            return False
        if now.state is RunState.FAILED:
            try:
                if look_after(run, now):
                    return False
            except UserError:
                continue  # it cannot go on, and the search does not wait for it
            except CommandError:
                return False
    return True


def _possible(
    sweep: SweepDirectory,
    decided: SweepRecord,
    document: Document,
    asked: Sweep,
    tried: list[Tried],
    generation: int,
) -> list[Settings]:
    """What is proposed, as far as it can be trained: settings that exclude each other count as tried without success,
    and others are proposed in their place."""
    assert asked.search is not None
    imagined = list(tried)
    for attempt in range(20):
        proposed = propose(asked.search, imagined, generation + 1000 * attempt, all_keys(Spec))
        if _can_be(sweep, decided, document, asked, proposed):
            return proposed
        possible = [one for one in proposed if _can_be(sweep, decided, document, asked, [one])]
        if possible:
            return possible
        imagined += [Tried(one, None) for one in proposed]
        imagined = imagined[-(asked.search.total - 1) :]
    raise UserError(
        "no settings that can be trained were found for the next generation",
        where=sweep.spec,
        remedy="Narrow the ranges of the sweep, and submit it anew.",
    )


def _can_be(
    sweep: SweepDirectory, decided: SweepRecord, document: Document, asked: Sweep, members: list[Settings]
) -> bool:
    try:
        _planned(sweep, decided, document, asked, members, 0)
    except UserError:
        return False
    return True


def _write(
    sweep: SweepDirectory, decided: SweepRecord, document: Document, asked: Sweep, indices: Sequence[int]
) -> None:
    first, end = indices[0], indices[-1] + 1
    add_members(_planned(sweep, decided, document, asked, decided.members[first:end], first), sweep)


def _planned(
    sweep: SweepDirectory, decided: SweepRecord, document: Document, asked: Sweep, members: list[Settings], first: int
) -> PlannedSweep:
    return make_sweep(
        document,
        asked,
        sweep.spec,
        runs=sweep.path.parent,
        site=decided.site,
        members=[dict(settings) for settings in members],
        first=first,
        catalog=Catalog.read(sweep.member(0, decided.width).catalog),
    )
