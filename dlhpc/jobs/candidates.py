"""Less waiting: what else could be asked of the batch system for the same training, and when each would be done.

Candidates are queues × numbers of nodes × lengths of an attempt. A training of t seconds in attempts of a walltime w is
reckoned as

    attempts  n = ⌈t / (w − margin for saving − start-up − one step)⌉
    finish    = now + wait + (n − 1) · later wait + n · start-up + t + (n − 1) · saving

*wait* is what the scheduler says of the first attempt. Each later one waits as long again; where a job goes back into
the queue by itself (Slurm), at least the two minutes that this takes.
"""

from __future__ import annotations

import dataclasses
import math
import queue as queues
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlhpc.data.catalog import Catalog
from dlhpc.errors import DlhpcError, ErrorList, UserError
from dlhpc.files import replace_text
from dlhpc.jobs.estimate import Prediction, attempts_needed, estimate, needed_walltime, save_margin, work_of
from dlhpc.jobs.experience import Experience
from dlhpc.jobs.header import request_of
from dlhpc.jobs.plan import Planned, decide
from dlhpc.jobs.render import render
from dlhpc.runs.directory import placeholder_run
from dlhpc.runs.plan import Plan
from dlhpc.schedulers.base import JobRequest, StartEstimate, get_scheduler
from dlhpc.sites.models import Queue, Site
from dlhpc.spec.models import Data, Spec

LENGTHS_S = (1800, 3600, 7200, 14400)
"""Lengths of an attempt that are tried where the training takes longer."""

MOST = 12
"""Candidates; each may cost the scheduler a question."""

MOST_ATTEMPTS = 12
"""A training in more pieces than this is offered only where there is no other way: nobody knows so many waits."""

BUDGET_S = 10.0
"""For all questions together; a scheduler that takes longer leaves its figures unknown."""

REQUEUE_WAIT_S = 121.0
"""Slurm's, after a job has sent itself back: `cred_expire` and a second."""

_ASKED_AT_ONCE = 4


@dataclass(frozen=True)
class Choice:
    """One candidate before anybody was asked. Numbers follow queue, nodes and length, so that they keep their meaning
    from one call of `dlhpc plan` to the next."""

    number: int
    plan: Plan
    as_spec: bool
    """What `dlhpc submit` would do with the spec as it is."""
    prediction: Prediction | None


@dataclass(frozen=True)
class Candidate:
    """One line of the comparison; times in seconds, points in time in seconds since 1970, None where not known."""

    number: int
    as_spec: bool
    queue: str | None
    nodes: int
    ranks: int
    global_batch: int
    steps_per_epoch: int
    walltime: int
    start: float | None
    start_how: str
    training: float | None
    training_how: str
    attempts: int | None
    waiting: float | None
    """Before all attempts together."""
    finish: float | None
    efficiency: float | None
    exchange_share: float | None
    node_hours: float | None
    energy_kwh: float | None
    price: float | None


# --- Which candidates there are -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _KnownCatalog(Catalog):
    """A catalogue whose key was reckoned already: it takes seconds for a million pictures."""

    known: str = ""

    def key(self, _data: Data) -> str:
        return self.known


def choices(planned: Planned, site: Site, runs: Path, experience: Experience) -> tuple[list[Choice], list[str]]:
    """The candidates in the order of their numbers, and what was left out and why. Asks no scheduler."""
    own = planned.plan
    catalog = _KnownCatalog(**vars(planned.catalog), known=own.dataset.key)
    if own.scheduler == "local":
        return [Choice(1, own, True, estimate(experience.like(own), work_of(own)))], []
    found: dict[tuple[int, int], list[Choice]] = {}
    notes: list[str] = []
    for place, queue in enumerate(site.queues):
        fault: str | None = None
        for nodes in _node_counts(queue, site, own.nodes):
            try:
                plan = _variant(planned.spec, own, site, catalog, runs, queue, nodes)
            except UserError as error:
                fault = (error.errors[0] if isinstance(error, ErrorList) else error).what
                continue
            found[place, nodes] = _lengths(plan, queue, own, experience)
        if fault is not None and not any(key[0] == place for key in found):
            notes.append(f"Queue {queue.name} is left out: {fault}.")
        notes += [note for note in _switched_off(queue, site) if note not in notes]
    names = {queue.name: place for place, queue in enumerate(site.queues)}
    kept = _select(found, names.get(own.queue or "", 0), own.nodes)
    kept.sort(key=lambda choice: (names[choice.plan.queue or ""], choice.plan.nodes, choice.plan.walltime_seconds))
    return [dataclasses.replace(choice, number=number) for number, choice in enumerate(kept, 1)], notes


def _node_counts(queue: Queue, site: Site, own: int) -> list[int]:
    """Powers of two that the queue gives, and the spec's own number."""
    most = min((n for n in (queue.max_nodes, site.node_of(queue).on) if n is not None), default=max(8, own))
    doubled = {2**power for power in range(max(1, most).bit_length())}
    return sorted(n for n in {*doubled, queue.min_nodes, most, own} if queue.min_nodes <= n <= most)


def _switched_off(queue: Queue, site: Site) -> list[str]:
    node = site.node_of(queue)
    if not node.off or node.on is None or (queue.max_nodes is not None and queue.max_nodes <= node.on):
        return []
    kind = "" if queue.node is None else f" of kind {queue.node}"
    return [f"Of the {node.count} nodes{kind}, {node.off} {'is' if node.off == 1 else 'are'} switched off."]


def _variant(spec: Spec, own: Plan, site: Site, catalog: Catalog, runs: Path, queue: Queue, nodes: int) -> Plan:
    """The plan with another queue and number of nodes; raises :class:`UserError` where that cannot be."""
    if (queue.name, nodes) == (own.queue, own.nodes):
        return own
    job = spec.job.model_copy(update={"queue": queue.name, "nodes": nodes, "walltime": None})
    plan = decide(spec.model_copy(update={"job": job}), site, catalog, runs, template=own.template)
    if own.gpus_per_rank and not plan.gpus_per_rank:
        raise UserError("its nodes have no GPU for each rank")
    return plan


def _lengths(plan: Plan, queue: Queue, own: Plan, experience: Experience) -> list[Choice]:
    """A plan with each length of an attempt that makes sense, the longest first."""
    expected = estimate(experience.like(plan), work_of(plan))
    limit = None if queue.max_walltime is None else queue.max_walltime.total_seconds()
    mine = (plan.queue, plan.nodes) == (own.queue, own.nodes)
    if expected is not None:
        longest = needed_walltime(expected, limit)
        lengths = {
            seconds
            for seconds in (longest, *(one for one in LENGTHS_S if one < longest))
            if (attempts := attempts_needed(expected, seconds)) is not None and attempts <= plan.max_attempts
        }
    else:
        longest = round(min(limit or math.inf, own.walltime_seconds))
        lengths = {longest, *(one for one in LENGTHS_S if limit is None or one <= limit)}
        lengths |= set() if limit is None else {round(limit)}
    if mine:
        lengths.add(own.walltime_seconds)
    return [
        Choice(
            0,
            dataclasses.replace(plan, walltime_seconds=seconds, save_margin_seconds=save_margin(seconds)),
            mine and seconds == own.walltime_seconds,
            expected,
        )
        for seconds in sorted(lengths, reverse=True)
    ]


def _select(found: Mapping[tuple[int, int], list[Choice]], own_place: int, own_nodes: int) -> list[Choice]:
    """At most :data:`MOST`: the spec's own, then for every layout the longest attempt, the shortest, those between.

    Layouts near the spec's own come first, on its queue before others.
    """

    def distance(layout: tuple[int, int]) -> tuple[bool, float]:
        return layout[0] != own_place, abs(math.log2(layout[1] / own_nodes))

    layouts = sorted(found, key=distance)
    others = {layout: [choice for choice in found[layout] if not choice.as_spec] for layout in layouts}
    if any(_pieces(choice) <= MOST_ATTEMPTS for lengths in found.values() for choice in lengths):
        others = {layout: [c for c in rest if _pieces(c) <= MOST_ATTEMPTS] for layout, rest in others.items()}
    ordered = [others[layout] for layout in layouts]
    ordered = [rest[:1] + rest[:0:-1] for rest in ordered]
    kept = [choice for layout in layouts for choice in found[layout] if choice.as_spec]
    for turn in range(max((len(rest) for rest in ordered), default=0)):
        kept += [rest[turn] for rest in ordered if turn < len(rest)]
    return kept[:MOST]


def _pieces(choice: Choice) -> int:
    """Attempts that the training takes; 1 where that is not known."""
    expected = choice.prediction
    return 1 if expected is None else attempts_needed(expected, choice.plan.walltime_seconds) or 1


# --- When they would start ----------------------------------------------------------------------------------------


def starts(chosen: Sequence[Choice], runs: Path, *, budget: float = BUDGET_S) -> dict[int, StartEstimate]:
    """Ask the scheduler about each choice, some at a time; whatever goes wrong makes a figure unknown, with the reason.

    Only Slurm looks at the length: elsewhere, one question answers for all lengths.
    """
    if not chosen:
        return {}
    first = chosen[0].plan
    scheduler = get_scheduler(first.scheduler, first.dialect)
    keys = {
        choice.number: (
            choice.plan.queue, choice.plan.nodes, choice.plan.walltime_seconds if first.scheduler == "slurm" else 0,
        )
        for choice in chosen
    }  # fmt: skip
    try:
        with tempfile.TemporaryDirectory(prefix="dlhpc-plan-") as folder:
            asked: dict[object, JobRequest] = {}
            for choice in chosen:
                run = placeholder_run(runs, choice.plan.spec["name"])
                if (key := keys[choice.number]) not in asked:
                    script = Path(folder) / f"{choice.number}.sh"
                    replace_text(script, render(choice.plan, run))
                    asked[key] = dataclasses.replace(request_of(choice.plan, run, 1), script=script)
            answers = ask_all(asked, scheduler.estimate_start, budget)
    except (DlhpcError, OSError) as error:
        return {choice.number: StartEstimate(None, _reason(error)) for choice in chosen}
    return {number: answers[key] for number, key in keys.items()}


def ask_all(
    asked: Mapping[object, JobRequest], ask: Callable[[JobRequest], StartEstimate], budget: float
) -> dict[object, StartEstimate]:
    """The answers that come within ``budget`` seconds. The others' threads are left behind; they end with dlhpc."""
    todo: queues.SimpleQueue[tuple[object, JobRequest]] = queues.SimpleQueue()
    done: queues.SimpleQueue[tuple[object, StartEstimate]] = queues.SimpleQueue()
    for item in asked.items():
        todo.put(item)
    until = time.monotonic() + budget

    def work() -> None:
        while time.monotonic() < until:
            try:
                key, request = todo.get_nowait()
            except queues.Empty:
                return
            try:
                done.put((key, ask(request)))
            except Exception as error:  # noqa: BLE001 - a fault of one answer must not hide the others
                done.put((key, StartEstimate(None, _reason(error))))

    for _ in range(min(_ASKED_AT_ONCE, len(asked))):
        threading.Thread(target=work, daemon=True).start()
    late = StartEstimate(None, f"the scheduler did not answer within {budget:g} s")
    answers = dict.fromkeys(asked, late)
    for _ in asked:
        try:
            key, answer = done.get(timeout=max(0.0, until - time.monotonic()))
        except queues.Empty:
            break
        answers[key] = answer
    return answers


def _reason(error: Exception) -> str:
    text = " ".join((error.what if isinstance(error, DlhpcError) else str(error)).split())
    return text if len(text) <= 200 else f"{text[:199]}…"


# --- What comes of it: numbers in, numbers out --------------------------------------------------------------------


def tabulate(chosen: Iterable[Choice], known: Mapping[int, StartEstimate], site: Site, now: float) -> list[Candidate]:
    """One line for each choice, those that are done first before the others; without a finish by their start."""
    lines = [_line(choice, known[choice.number], site, now) for choice in chosen]
    unknown = math.inf
    return sorted(
        lines,
        key=lambda line: (
            unknown if line.finish is None else line.finish,
            unknown if line.start is None else line.start,
            unknown if line.node_hours is None else line.node_hours,
            line.number,
        ),
    )


def _line(choice: Choice, first: StartEstimate, site: Site, now: float) -> Candidate:
    plan, expected = choice.plan, choice.prediction
    wait = None if first.start is None else max(0.0, first.start - now)
    attempts = None if expected is None else attempts_needed(expected, plan.walltime_seconds)
    busy = waiting = finish = node_hours = None
    if expected is not None and attempts is not None:
        busy = attempts * expected.startup + expected.training + (attempts - 1) * expected.save
        node_hours = plan.nodes * busy / 3600
        if wait is not None:
            goes_back = plan.scheduler == "slurm" and not plan.attempts_ahead
            waiting = wait + (attempts - 1) * (max(wait, REQUEUE_WAIT_S) if goes_back else wait)
            finish = now + waiting + busy
    energy = None if node_hours is None or plan.node_watts is None else node_hours * plan.node_watts / 1000
    return Candidate(
        number=choice.number,
        as_spec=choice.as_spec,
        queue=plan.queue,
        nodes=plan.nodes,
        ranks=plan.ranks,
        global_batch=plan.global_batch,
        steps_per_epoch=plan.steps_per_epoch,
        walltime=plan.walltime_seconds,
        start=None if wait is None else now + wait,
        start_how=first.how,
        training=None if expected is None else expected.training,
        training_how="no run of this network on such nodes" if expected is None else expected.how,
        attempts=attempts,
        waiting=waiting,
        finish=finish,
        efficiency=None if expected is None else expected.efficiency,
        exchange_share=None if expected is None else expected.exchange_share,
        node_hours=node_hours,
        energy_kwh=energy,
        price=_price(site, node_hours, energy),
    )


def _price(site: Site, node_hours: float | None, energy: float | None) -> float | None:
    """Node-hours and electricity together, as far as the site charges them; None where a part is not known."""
    prices = site.prices
    parts = [
        (prices.node_hour, node_hours),
        (prices.kwh, energy),
    ]
    charged = [(price, amount) for price, amount in parts if price is not None]
    if not charged or any(amount is None for _, amount in charged):
        return None
    return sum(price * (amount or 0.0) for price, amount in charged)
