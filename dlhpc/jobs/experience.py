"""What earlier runs tell of speed: their journals and curves, boiled down to a few durations each.

Only whole epochs between two journal entries of one attempt count, so that what a killed or requeued attempt lost does
not. A trial (`dlhpc plan --trial`) is a run like any other.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from dlhpc.errors import DlhpcError
from dlhpc.runs.checkpoints import list_checkpoints
from dlhpc.runs.curves import read_points
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.find import all_entries, runs_of
from dlhpc.runs.journal import Entry, Event, read_journal
from dlhpc.runs.plan import Plan, read_plan

LOOKED_AT = 200
"""So many of the newest runs are looked at: reading a plan from shared storage takes milliseconds."""

OF_A_SWEEP = 20
"""So many members of a sweep, the first ones: they are alike, and the last have perhaps not begun."""

ENOUGH = 5
"""So many of the newest runs with one number of nodes and ranks are measured."""


@dataclass(frozen=True)
class Likeness:
    """What makes two runs as fast as each other, but for nodes, ranks and batches."""

    site: str
    node: str
    """The kind of node by its name in the profile; empty where there is but one."""
    network: str
    """The spec's section, as JSON."""
    height: int
    width: int
    gpus_per_rank: int
    cores_per_rank: int
    """0 where a GPU does the work."""


@dataclass(frozen=True)
class Measured:
    """Durations of one run, in seconds; None where the run says nothing about it."""

    run: str
    dataset: str
    """The key of its packed pictures."""
    nodes: int
    ranks: int
    batch: float
    """Pictures per rank and step."""
    step_seconds: float
    validation_seconds: float | None
    """One validation, on all ranks."""
    validation_pictures: int
    checkpoint_seconds: float | None
    startup_seconds: float | None
    """From the beginning of the job to the first step."""
    weights_bytes: int | None


def likeness(plan: Plan, kinds: Mapping[str, str]) -> Likeness:
    """What a run of this plan is to be compared by; ``kinds``: queue → kind of node."""
    spec = plan.spec
    crop = spec["augment"]["crop"]
    height, width = (crop, crop) if crop else (spec["data"]["height"], spec["data"]["width"])
    return Likeness(
        site=plan.site,
        node=kinds.get(plan.queue or "", ""),
        network=json.dumps([spec.get("task"), spec["network"]], sort_keys=True),
        height=height,
        width=width,
        gpus_per_rank=plan.gpus_per_rank,
        cores_per_rank=0 if plan.gpus_per_rank else plan.cores_per_rank,
    )


class Experience:
    """The runs in a folder, read as far as they are asked about; whoever plans many specs keeps one of these."""

    def __init__(self, runs: Path, kinds: Mapping[str, str]) -> None:
        self._runs = runs
        self._kinds = kinds
        self._plans: list[tuple[RunDirectory, Plan]] | None = None
        self._known: dict[Likeness, list[Measured]] = {}

    def like(self, plan: Plan) -> list[Measured]:
        """Runs of the same network and size of pictures on the same kind of node of this site, the newest first."""
        wanted = likeness(plan, self._kinds)
        if wanted not in self._known:
            self._known[wanted] = self._measure_like(wanted)
        return self._known[wanted]

    def _measure_like(self, wanted: Likeness) -> list[Measured]:
        if self._plans is None:
            self._plans = list(_newest_plans(self._runs))
        found: list[Measured] = []
        counts: dict[tuple[int, int], int] = {}
        for run, plan in self._plans:
            layout = (plan.nodes, plan.ranks)
            if counts.get(layout, 0) >= ENOUGH or not _is_like(plan, self._kinds, wanted):
                continue
            with contextlib.suppress(DlhpcError):  # somebody's private or damaged run teaches nothing
                measured = measure(run, plan)
                if measured is not None:
                    found.append(measured)
                    counts[layout] = counts.get(layout, 0) + 1
        return found


def _is_like(plan: Plan, kinds: Mapping[str, str], wanted: Likeness) -> bool:
    with contextlib.suppress(KeyError, TypeError):  # another version's spec
        return likeness(plan, kinds) == wanted
    return False


def _newest_plans(runs: Path) -> Iterator[tuple[RunDirectory, Plan]]:
    try:
        entries = all_entries(runs)
    except DlhpcError:
        return
    left = LOOKED_AT
    for entry in reversed(entries):
        for run in runs_of(entry)[:OF_A_SWEEP]:
            with contextlib.suppress(DlhpcError):
                yield run, read_plan(run.plan)
            left -= 1
        if left <= 0:
            return


def measure(run: RunDirectory, plan: Plan) -> Measured | None:
    """The durations of a run; None if it has not got far enough. Raises ``StorageError``."""
    entries, _ = read_journal(run)
    attempts: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.attempt is not None:
            attempts.setdefault(entry.attempt, []).append(entry)
    measured_at = {point.step: point.time for point in read_points(run.curves)[0]}
    saves = [_saving(entry, measured_at) for entry in entries if entry.event == Event.CHECKPOINTED]
    saving = _median([seconds for seconds in saves if seconds is not None])
    steps = [_step_seconds(own, plan, saving or 0.0) for own in attempts.values()]
    step = _median([seconds for found in steps for seconds in found])
    if step is None:
        return None
    between = [gap for own in attempts.values() for gap in _gaps(own)]
    per_epoch = _median([gap.seconds - (saving or 0.0) * gap.saves for gap in between])
    every = float(plan.spec["training"]["validation_interval"])
    validation = None if per_epoch is None else max(0.0, per_epoch * max(every, 1 / plan.steps_per_epoch))
    return Measured(
        run=run.name,
        dataset=plan.dataset.key,
        nodes=plan.nodes,
        ranks=plan.ranks,
        batch=plan.dataset.train / plan.steps_per_epoch / plan.ranks,
        step_seconds=step,
        validation_seconds=validation,
        validation_pictures=plan.dataset.val,
        checkpoint_seconds=saving,
        startup_seconds=_median(
            [s for own in attempts.values() if (s := _startup(own, per_epoch or 0.0, saving or 0.0)) is not None]
        ),
        weights_bytes=next((record.weights.bytes for record in reversed(list_checkpoints(run))), None),
    )


@dataclass(frozen=True)
class _Gap:
    """What an epoch takes beside its training steps."""

    seconds: float
    saves: int


def _gaps(own: Sequence[Entry]) -> list[_Gap]:
    """One for each whole epoch of an attempt: from the entry of one epoch to that of the next."""
    gaps: list[_Gap] = []
    for before, after in pairwise(entry for entry in own if entry.event == Event.EPOCH):
        seconds = _positive(after, "seconds")
        if seconds is not None:
            saves = [e for e in own if e.event == Event.CHECKPOINTED and before.time < e.time <= after.time]
            gaps.append(_Gap(max(0.0, after.time - before.time - seconds), len(saves)))
    return gaps


def _step_seconds(own: Sequence[Entry], plan: Plan, saving: float) -> list[float]:
    """Seconds of a training step, one number an epoch; the first epoch, in which caches warm up, only if need be."""
    speeds = [
        speed
        for entry in own
        if entry.event == Event.EPOCH and (speed := _positive(entry, "pictures_per_second")) is not None
    ]
    if speeds:
        pictures = plan.dataset.train / plan.steps_per_epoch
        return [pictures / speed for speed in speeds[1:] or speeds]
    # Not one epoch was finished: from the first step to the state that was saved on leaving.
    left = next((entry for entry in reversed(own) if entry.event == Event.CHECKPOINTED), None)
    came = next((entry for entry in reversed(own) if entry.event in (Event.STARTED, Event.RESUMED)), None)
    if left is None or came is None:
        return []
    done = (_positive(left, "step") or 0.0) - (_positive(came, "step") or 0.0)
    seconds = left.time - came.time - saving
    return [seconds / done] if done >= 1 and seconds > 0 else []


def _saving(entry: Entry, measured_at: Mapping[int, float]) -> float | None:
    """Seconds from the measuring of a step to its checkpoint; None where nothing was measured at that step."""
    measured = measured_at.get(int(_positive(entry, "step") or 0))
    return None if measured is None else max(0.0, entry.time - measured)


def _startup(own: Sequence[Entry], validation: float, saving: float) -> float | None:
    """Seconds from the beginning of an attempt's job to its first training step; packing is part of it."""
    begun = next((entry for entry in own if entry.event in (Event.BEGUN, Event.STARTED)), None)
    epoch = next((entry for entry in own if entry.event == Event.EPOCH), None)
    started = next((entry for entry in own if entry.event == Event.STARTED), None)
    if begun is None or started is None:
        return None
    if epoch is None:
        return started.time - begun.time
    saves = sum(entry.event == Event.CHECKPOINTED and entry.time <= epoch.time for entry in own)
    beside = (_positive(epoch, "seconds") or 0.0) + validation + saving * saves
    return max(started.time - begun.time, epoch.time - begun.time - beside)


def _positive(entry: Entry, name: str) -> float | None:
    value = entry.details.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value):
        return float(value)
    return None


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
