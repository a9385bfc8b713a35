"""Candidates compared: which of them to take, and why, in words. Pure, but for :func:`compare` itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlhpc.jobs.candidates import BUDGET_S, Candidate, choices, starts, tabulate
from dlhpc.jobs.experience import Experience
from dlhpc.jobs.plan import Planned
from dlhpc.sites.models import Site

NEAR = 0.05
"""Candidates that are done within such a part of the earliest one's time are as good as that."""


@dataclass(frozen=True)
class Comparison:
    """All candidates, those that are done first before the others, and what to make of them."""

    candidates: list[Candidate]
    recommended: int | None
    """A candidate's number."""
    why: str
    notes: list[str]
    """Further sentences."""
    currency: str
    now: float
    """When the scheduler was asked, in seconds since 1970."""


def compare(
    planned: Planned, site: Site, runs: Path, experience: Experience, *, budget: float = BUDGET_S
) -> Comparison:
    """Find candidates, ask the scheduler when they would start, and recommend one."""
    chosen, notes = choices(planned, site, runs, experience)
    known = starts(chosen, runs, budget=budget)
    now = time.time()
    lines = tabulate(chosen, known, site, now)
    number, why = recommend(lines, now)
    return Comparison(lines, number, why, [*notes_on(lines, number, site, now), *notes], site.prices.currency, now)


def in_words(seconds: float) -> str:
    """``40 s``, ``12 min``, ``2 h 10 min``, ``3 days 4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days {hours % 24} h" if hours % 24 else f"{hours // 24} days"


def recommend(lines: Sequence[Candidate], now: float) -> tuple[int | None, str]:
    """The number of the cheapest candidate among those that are done about first, and a sentence on it."""
    known = [line for line in lines if line.finish is not None]
    if not known:
        if all(line.training is None for line in lines):
            return None, "How long the training takes is not known: no earlier run tells. Add `--trial` to measure it."
        return None, "None is recommended: when they would start is not known."
    first = min(known, key=lambda line: _until(line, now))
    near = [line for line in known if _until(line, now) <= _until(first, now) * (1 + NEAR) + 60]
    best = min(near, key=lambda line: (_rounded_hours(line), not line.as_spec, _until(line, now), line.number))
    return best.number, _why(best, first, next((line for line in known if line.as_spec), None), now)


def _rounded_hours(line: Candidate) -> float:
    """Two figures: a few seconds of start-up more are no reason."""
    return float(f"{line.node_hours or 0.0:.2g}")


def _until(line: Candidate, now: float) -> float:
    return (line.finish or now) - now


def _why(best: Candidate, first: Candidate, own: Candidate | None, now: float) -> str:
    done = f"it would be done in {in_words(_until(best, now))}"
    if best.number != first.number and (first.node_hours or 0) > 1.1 * (best.node_hours or 0):
        later = _until(best, now) - _until(first, now)
        reason = (
            f"{done}, {in_words(later)} after number {first.number}, with {best.node_hours:.3g} instead of "
            f"{first.node_hours:.3g} node-hours"
        )
    elif best.as_spec:
        reason = f"{done}, and none would be done notably sooner"
    elif own is not None and (sooner := _until(own, now) - _until(best, now)) > 60:
        reason = f"{done}, {in_words(sooner)} before number {own.number}, the job as the spec has it"
    else:
        reason = f"{done}, and none would be done notably sooner"
    if (best.attempts or 1) > 1:
        reason = f"{reason}, if every attempt waits about as long as the first"
    whole = ", the job as the spec has it" if best.as_spec else ""
    return f"Number {best.number}{whole}: {reason}."


def notes_on(lines: Sequence[Candidate], recommended: int | None, site: Site, now: float) -> list[str]:
    """What else is worth saying, a sentence each."""
    best = next((line for line in lines if line.number == recommended), None)
    own = next((line for line in lines if line.as_spec), None)
    notes = [note for note in (_scaling(lines), _more_nodes(lines, best, now)) if note]
    if best is not None and own is not None and best.global_batch != own.global_batch:
        notes.append(
            f"With {_nodes(best.nodes)} the global batch is {best.global_batch} instead of {own.global_batch}, which "
            "can change what the network learns: see learning_rate.scale."
        )
    missing = []
    if any(line.node_hours is not None and line.energy_kwh is None for line in lines):
        missing.append("energy (`power` of the nodes)")
    if site.prices.node_hour is None and site.prices.kwh is None:
        missing.append("price (`prices`)")
    if missing:
        notes.append(f"Not known, as the site profile does not say: {', '.join(missing)}.")
    elif any(line.node_hours is not None for line in lines) and (
        absent := [name for name in ("node_hour", "kwh") if getattr(site.prices, name) is None]
    ):
        part = "node-hours" if absent == ["node_hour"] else "electricity"
        notes.append(f"The price is without {part}: the site profile has no `prices.{absent[0]}`.")
    return notes


def _nodes(number: int) -> str:
    return f"{number} node{'' if number == 1 else 's'}"


def _scaling(lines: Sequence[Candidate]) -> str | None:
    """How much of its speed each rank keeps on more nodes."""
    known = {line.nodes: line.efficiency for line in lines if line.efficiency is not None}
    if len(known) < 2:
        return None
    parts = ", ".join(f"{_nodes(nodes)} {share:.0%}" for nodes, share in sorted(known.items()))
    return f"Efficiency (speed of a rank against one rank alone): {parts}."


def _more_nodes(lines: Sequence[Candidate], best: Candidate | None, now: float) -> str | None:
    """Say that more nodes will not help, and why, when that is so."""
    if best is None:
        return None
    more = [line for line in lines if line.nodes > best.nodes and line.finish is not None]
    if not more:
        return None
    other = min(more, key=lambda line: _until(line, now))
    if _until(other, now) < _until(best, now) * (1 - NEAR) - 60:
        return None
    longer = (other.waiting or 0.0) - (best.waiting or 0.0)
    saved = (best.training or 0.0) - (other.training or 0.0)
    said = f"More nodes than {best.nodes} will not help" if best.nodes > 1 else "More nodes will not help"
    if saved > 1 and longer > saved / 2:
        return f"{said}: {_nodes(other.nodes)} would train {in_words(saved)} less and wait {in_words(longer)} more."
    if saved > 1 and (best.waiting or 0.0) > 4 * (best.training or 0.0):
        return (
            f"{said}: nearly all of the time is waiting, and {_nodes(other.nodes)} would train {in_words(saved)} less."
        )
    if best.steps_per_epoch == 1:
        return f"{said}: every epoch is a single step already."
    if (other.exchange_share or 0.0) > 0.3:
        share = f"{other.exchange_share:.0%} of each step"
        return f"{said}: on {_nodes(other.nodes)}, {share} would go to exchanging gradients."
    return f"{said}: {_nodes(other.nodes)} would be done {_relation(_until(best, now) - _until(other, now))}."


def _relation(sooner: float) -> str:
    if abs(sooner) < 1:
        return "at the same time"
    return f"only {in_words(sooner)} sooner" if sooner > 0 else f"{in_words(-sooner)} later"
