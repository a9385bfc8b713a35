"""How long a training would take, from measured runs, for any number of nodes. Pure: numbers in, numbers out.

The model of one training step on R ranks with b pictures each is that of data-parallel training with a ring
all-reduce (Patarasuk and Yuan, 2009: each rank sends and receives 2 (R − 1) / R times the gradients):

    seconds per step = b · (seconds per picture) + 2 (R − 1) / R · (bytes of the gradients) / (bytes per second)

Exchange that hides behind computing shows as more bytes per second, which is what is wanted here. Ranks on one node
and ranks on several have each their own bytes per second: measured where such runs exist, assumed otherwise. A layout
that was measured itself is not predicted but looked up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from dlhpc.jobs.experience import Measured
from dlhpc.runs.plan import Plan

GPU_INSIDE, GPU_ACROSS, CPU = 4e9, 1e9, 2e8
"""Assumed bytes per second of an all-reduce where none was measured: among the GPUs of a node, between nodes (what
10-gigabit Ethernet gives), and among CPU ranks. Cautious on purpose."""

ASSUMED_WEIGHTS = 61_000_000 * 4
"""Bytes, AlexNet's: of a network whose checkpoints are gone."""

ASSUMED_STARTUP_S = 60.0
SAFETY = 1.25
"""The walltime to ask for is this times what is needed."""

ROUNDING_S = 300


@dataclass(frozen=True)
class Work:
    """A training, as far as its duration depends on it."""

    dataset: str
    nodes: int
    ranks: int
    global_batch: int
    train: int
    val: int
    epochs: int
    validations_per_epoch: float
    checkpoints_per_epoch: float
    gpus: bool

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.train / self.global_batch)


@dataclass(frozen=True)
class Link:
    """How fast gradients are exchanged."""

    seconds_per_byte: float
    measured: bool


@dataclass(frozen=True)
class Speed:
    """What :func:`fit` learns from measured runs, in seconds."""

    per_picture: float
    """Of a training step, on one rank, without exchange."""
    inside: Link
    across: Link
    gradient_bytes: int
    per_validation_picture: float
    """On one rank."""
    checkpoint: float
    startup: float
    steps: dict[tuple[int, int], tuple[float, float]]
    """(Nodes, ranks) → pictures per rank and step, seconds per step, as measured."""
    source: str
    """Of the numbers, for people: `3 runs of the same network and pictures`."""


@dataclass(frozen=True)
class Prediction:
    """How long a training takes, in seconds."""

    training: float
    """All epochs with their validations and checkpoints, without start-up."""
    startup: float
    """Of each attempt, before its first step."""
    save: float
    step: float
    exchange_share: float
    """Part of a step in which ranks wait for each other's gradients."""
    efficiency: float
    """Pictures per second against as many times one rank's."""
    how: str


def work_of(plan: Plan) -> Work:
    """What there is to do, by the plan."""
    training = plan.spec["training"]
    steps = plan.steps_per_epoch
    return Work(
        dataset=plan.dataset.key,
        nodes=plan.nodes,
        ranks=plan.ranks,
        global_batch=plan.global_batch,
        train=plan.dataset.train,
        val=plan.dataset.val,
        epochs=training["epochs"],
        validations_per_epoch=min(steps, 1 / training["validation_interval"]),
        checkpoints_per_epoch=min(steps, 1 / training["snapshot_interval"]),
        gpus=plan.gpus_per_rank > 0,
    )


def estimate(measured: Sequence[Measured], work: Work) -> Prediction | None:
    """How long ``work`` takes by these runs; None if there are none."""
    speed = fit(measured, work.dataset, gpus=work.gpus)
    return None if speed is None else predict(speed, work)


def fit(measured: Sequence[Measured], dataset: str, *, gpus: bool) -> Speed | None:
    """Learn from runs, the newest first; those on the same pictures count alone if there are any."""
    same = [one for one in measured if one.dataset == dataset]
    used = same or list(measured)
    if not used:
        return None
    weights = next((one.weights_bytes for one in measured if one.weights_bytes), ASSUMED_WEIGHTS)
    steps = _layouts(used)
    inside, across = (Link(1 / GPU_INSIDE, False), Link(1 / GPU_ACROSS, False)) if gpus else (Link(1 / CPU, False),) * 2
    per_picture, fitted = _per_picture(steps, weights, inside, across)
    inside = _link(steps, per_picture, weights, several=False) or inside
    across = _link(steps, per_picture, weights, several=True) or across
    if not fitted:  # what was measured holds both, and the assumption has parted them
        inside, across = Link(inside.seconds_per_byte, False), Link(across.seconds_per_byte, False)
    if not across.measured and across.seconds_per_byte < inside.seconds_per_byte:
        across = Link(inside.seconds_per_byte, False)  # no network is faster than a node's inside
    validations = [
        one.validation_seconds * one.ranks / one.validation_pictures
        for one in used
        if one.validation_seconds is not None and one.validation_pictures
    ]
    checkpoints = [one.checkpoint_seconds for one in used if one.checkpoint_seconds is not None]
    startups = [one.startup_seconds for one in used if one.startup_seconds is not None]
    what = "pictures" if same else "size of pictures"
    return Speed(
        per_picture=per_picture,
        inside=inside,
        across=across,
        gradient_bytes=weights,
        # Where no validation was measured: forward alone is about a third of forward and backward.
        per_validation_picture=median(validations) if validations else per_picture / 3,
        checkpoint=median(checkpoints) if checkpoints else 0.0,
        startup=median(startups) if startups else ASSUMED_STARTUP_S,
        steps=steps,
        source=f"{_count(len(used), 'run')} of the same network and {what}",
    )


def _layouts(used: Sequence[Measured]) -> dict[tuple[int, int], tuple[float, float]]:
    """The median step of each layout, of runs with the batch that its newest run has."""
    layouts: dict[tuple[int, int], list[Measured]] = {}
    for one in used:
        layouts.setdefault((one.nodes, one.ranks), []).append(one)
    found = {}
    for layout, runs in layouts.items():
        batch = runs[0].batch
        found[layout] = (batch, median(one.step_seconds for one in runs if math.isclose(one.batch, batch, rel_tol=0.1)))
    return found


def _sent(ranks: int, weights: int) -> float:
    """Bytes through each rank's link in one ring all-reduce."""
    return 2 * (ranks - 1) / ranks * weights


def _per_picture(
    steps: dict[tuple[int, int], tuple[float, float]], weights: int, inside: Link, across: Link
) -> tuple[float, bool]:
    """Seconds per picture on one rank, and whether that was measured apart from the exchange."""
    alone = [seconds / batch for (_, ranks), (batch, seconds) in steps.items() if ranks == 1]
    if alone:
        return median(alone), True
    for several in (True, False):
        rows = [
            (batch, _sent(ranks, weights), seconds)
            for (nodes, ranks), (batch, seconds) in steps.items()
            if (nodes > 1) is several
        ]
        solved = _least_squares(rows)
        if solved is not None:
            return solved, True
    (nodes, ranks), (batch, seconds) = min(steps.items())
    link = across if nodes > 1 else inside
    # Never more than half of a step, or the assumption would leave nothing to compute.
    return (seconds - min(_sent(ranks, weights) * link.seconds_per_byte, seconds / 2)) / batch, False


def _least_squares(rows: Sequence[tuple[float, float, float]]) -> float | None:
    """s of the best s, x in batch · s + sent · x = seconds; None if these rows cannot tell, or tell nonsense."""
    bb = sum(b * b for b, _, _ in rows)
    kk = sum(k * k for _, k, _ in rows)
    bk = sum(b * k for b, k, _ in rows)
    bt = sum(b * t for b, _, t in rows)
    kt = sum(k * t for _, k, t in rows)
    determinant = bb * kk - bk * bk
    if len(rows) < 2 or determinant <= 1e-6 * bb * kk:
        return None
    s, x = (bt * kk - kt * bk) / determinant, (kt * bb - bt * bk) / determinant
    return s if s > 0 and x >= 0 else None


def _link(
    steps: dict[tuple[int, int], tuple[float, float]], per_picture: float, weights: int, *, several: bool
) -> Link | None:
    """What the runs on one node (or on several) say about the exchange; None if there are none with it."""
    found = [
        max(0.0, seconds - batch * per_picture) / _sent(ranks, weights)
        for (nodes, ranks), (batch, seconds) in steps.items()
        if ranks > 1 and (nodes > 1) is several
    ]
    return Link(median(found), True) if found else None


def predict(speed: Speed, work: Work) -> Prediction:
    """The duration of a training of these pictures."""
    batch = work.train / work.steps_per_epoch / work.ranks
    computing = batch * speed.per_picture
    link = speed.across if work.nodes > 1 else speed.inside
    step = computing + _sent(work.ranks, speed.gradient_bytes) * link.seconds_per_byte
    known = speed.steps.get((work.nodes, work.ranks))
    looked_up = known is not None and math.isclose(known[0], batch, rel_tol=0.1)
    if known is not None and looked_up:
        step = known[1]
    validation = math.ceil(work.val / work.ranks) * speed.per_validation_picture
    epoch = (
        step * work.steps_per_epoch
        + validation * work.validations_per_epoch
        + speed.checkpoint * work.checkpoints_per_epoch
    )
    return Prediction(
        training=epoch * work.epochs,
        startup=speed.startup,
        save=speed.checkpoint,
        step=step,
        exchange_share=max(0.0, 1 - computing / step) if step > 0 else 0.0,
        efficiency=min(1.0, computing / step) if step > 0 else 1.0,
        how=speed.source if looked_up else _how(speed, work, link),
    )


def _how(speed: Speed, work: Work, link: Link) -> str:
    """Where the number for a layout comes from that no run had."""
    how = f"scaled from {speed.source} on {_layouts_in_words(speed)}"
    if work.ranks == 1:
        return how
    rate = "at no cost" if link.seconds_per_byte == 0 else f"at {1e-9 / link.seconds_per_byte:.2g} GB/s"
    whence = "as measured there" if link.measured else "a cautious assumption"
    return f"{how}, gradients exchanged {rate} ({whence})"


def _layouts_in_words(speed: Speed) -> str:
    shown = sorted(speed.steps)[-3:]
    return ", ".join(f"{_count(nodes, 'node')} × {_count(ranks // nodes, 'rank')}" for nodes, ranks in shown)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def save_margin(walltime: float) -> int:
    """Seconds before the walltime's end in which the trainer saves: ten per cent of a short attempt, two minutes of a
    long one."""
    return min(120, max(1, int(walltime) // 10))


def needed_walltime(prediction: Prediction, limit: float | None) -> int:
    """Seconds to ask for so that one attempt is enough, rounded up to five minutes and never above the queue's limit.

    A scheduler starts a job early if it fits before the one that it is holding nodes for: asking for little pays.
    """
    wanted = (prediction.startup + prediction.training) * SAFETY
    asked = math.ceil((wanted + save_margin(wanted)) / ROUNDING_S) * ROUNDING_S
    return asked if limit is None else min(asked, int(limit))


def attempts_needed(prediction: Prediction, walltime: float) -> int | None:
    """How many attempts of this length the training takes; None if one is too short to get anywhere."""
    useful = walltime - save_margin(walltime) - prediction.startup - prediction.step
    return max(1, math.ceil(prediction.training / useful)) if useful > max(prediction.step, prediction.save) else None
