"""Each rank's share of every epoch, augmented, as 8- or 16-bit batches, or as normalised float32 ones.

Nothing here has a state: order and augmentation are functions of (seed, epoch, picture), never of the number of ranks
or threads or of where a run was resumed, so a resumed epoch gives the same bits. Reading, decoding and augmentation
are done by threads (a fork after MPI has started could hang) while the caller works on the step before.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.augment import mixing
from dlhpc.data.draws import shuffled
from dlhpc.data.inputs import Inputs, MovedBoxes
from dlhpc.data.packed import Packed
from dlhpc.data.pixels import Normalisation, copy_window
from dlhpc.data.samples import Batch, Boxes, Indices, Mixing, Step, Targets, join_boxes, take_targets
from dlhpc.data.splits import SplitName

if TYPE_CHECKING:
    from dlhpc.spec.models import Augment

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]
"""Makes the memory of batches: (shape, dtype) → a C-contiguous array. On GPUs: page-locked memory."""
Made = TypeVar("Made")
_MOST_THREADS = 8


@dataclass(frozen=True)
class _Begun:
    """A portion that threads are at work on."""

    portion: Indices
    buffer: NDArray[Any]
    parts: list[Future[MovedBoxes]]
    mixed: Future[Mixing] | None


def steps_per_epoch(count: int, global_batch: int) -> int:
    """Optimiser steps that take each of ``count`` samples once, at most ``global_batch`` a step."""
    return -(-count // global_batch)


def epoch_shares(
    count: int, seed: int, epoch: int, steps: int, rank: int, ranks: int, accumulate: int = 1
) -> list[list[Indices]]:
    """Which samples this rank sees: per step, per portion, positions in the training split.

    All samples are shuffled by (seed, epoch) and cut into ``steps`` global batches whose sizes differ by at most one:
    no sample is dropped or doubled and no last batch is tiny. A rank takes every ``ranks``-th sample of a batch, so
    a global batch holds the same samples for any number of ranks.
    """
    order = shuffled(count, seed, epoch)
    return [np.array_split(batch[rank::ranks], accumulate) for batch in np.array_split(order, steps)]


def default_threads(packed: Packed, augment: Augment, cores: int | None = None) -> int:
    """Threads that make batches for a rank with ``cores`` cores (those that it may run on, if not given).

    One copies raw pictures faster than any network learns from them; decoding, warping and colours get up to half the
    cores.
    """
    costly = packed.kind == "pictures" and (
        packed.storage != "raw"
        or augment.resized_crop is not None
        or any((augment.rotate_degrees, augment.hue, augment.saturation, augment.brightness, augment.contrast))
        or augment.noise > 0
        or augment.scale != (1, 1)
    )
    if not costly:
        return 1
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_THREADS, cores // 2))


class TrainingBatches:
    """The training split as augmented batches of one rank.

    ``steps`` is :func:`steps_per_epoch` of the global batch. ``threads`` make ``ahead`` steps while the caller works on
    one; a step's arrays may be used until ``held`` further ones have been asked for (1: until the next one), not
    longer, as their memory is used again. Nothing but speed and memory depends on these three. ``allocate`` makes this
    memory, ``(ahead + held) · accumulate`` batches; it is kept from epoch to epoch. With ``normalise`` the batches are
    float32, else they have the values as packed.
    """

    def __init__(
        self,
        packed: Packed,
        augment: Augment,
        seed: int,
        rank: int,
        ranks: int,
        steps: int,
        accumulate: int = 1,
        *,
        threads: int | None = None,
        ahead: int = 1,
        held: int = 1,
        allocate: Allocate = np.empty,
        normalise: Normalisation | None = None,
    ) -> None:
        self._inputs = Inputs(packed, "train", augment, normalise)
        self._augment = augment
        self._seed, self._rank, self._ranks = seed, rank, ranks
        self._steps, self._accumulate = steps, accumulate
        self._count = packed.count("train")
        self._targets = packed.targets("train")
        self._threads = threads or default_threads(packed, augment)
        self._ahead = ahead
        largest = math.ceil(math.ceil(math.ceil(self._count / max(1, steps)) / ranks) / accumulate)
        shape = (largest, *self._inputs.shape)
        # In turn, also from one epoch to the next: whoever gets a step does not see that an epoch ends.
        self._buffers = deque(
            [allocate(shape, self._inputs.dtype) for _ in range(accumulate)] for _ in range(ahead + held)
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Step]:
        """The steps of ``epoch`` (from 0), beginning with ``first_step`` when a run is resumed within it.

        Only one epoch can be under way at a time.
        """
        shares = epoch_shares(self._count, self._seed, epoch, self._steps, self._rank, self._ranks, self._accumulate)

        def begin(pool: ThreadPoolExecutor, index: int) -> list[_Begun]:
            self._buffers.rotate(-1)
            return [
                self._begin(pool, epoch, portion, buffer[: len(portion)])
                for portion, buffer in zip(shares[index], self._buffers[-1])
            ]

        def finish(index: int, begun: list[_Begun]) -> Step:
            portions = [self._finish(one) for one in begun]
            more = index < self._count % self._steps  # np.array_split gives the first batches one sample more
            return Step(index, self._count // self._steps + more, portions)

        return _in_turn(begin, finish, first_step, self._steps, self._threads, self._ahead)

    def _begin(self, pool: ThreadPoolExecutor, epoch: int, portion: Indices, buffer: NDArray[Any]) -> _Begun:
        def fill(first: int, end: int) -> MovedBoxes:
            return self._inputs.fill(portion[first:end], buffer[first:end], (self._seed, epoch))

        alpha = self._augment.mixup
        mixed = pool.submit(mixing, alpha, portion, self._seed, epoch) if alpha > 0 else None
        return _Begun(portion, buffer, _shared_out(pool, fill, len(portion), self._threads), mixed)

    def _finish(self, begun: _Begun) -> Batch:
        targets = _targets(self._targets, begun.portion, begun.parts)
        mixed = None if begun.mixed is None else begun.mixed.result()
        return Batch(begun.buffer, targets, begun.portion, mixed)


def evaluation_batches(
    packed: Packed,
    split: SplitName,
    augment: Augment,
    batch_size: int,
    rank: int = 0,
    ranks: int = 1,
    *,
    threads: int | None = None,
    ahead: int = 1,
    held: int = 1,
    allocate: Allocate = np.empty,
    normalise: Normalisation | None = None,
) -> Iterator[Batch]:
    """Every ``ranks``-th sample of ``split`` from ``rank`` on, each once, in order, from pictures the middle.

    What the middle is says :func:`dlhpc.data.augment.centre`. A rank may get none. A batch may be used until the next
    one is asked for; more of this and of the other arguments at :class:`TrainingBatches`.
    """
    share = np.arange(rank, packed.count(split), ranks, dtype=np.int64)
    targets = packed.targets(split)
    inputs = Inputs(packed, split, augment, normalise)
    threads = threads or default_threads(packed, augment)
    count = -(-len(share) // batch_size)
    shape = (min(batch_size, len(share)), *inputs.shape)
    buffers = [allocate(shape, inputs.dtype) for _ in range(min(count, ahead + held))]

    def chosen(index: int) -> tuple[Indices, NDArray[Any]]:
        some = share[index * batch_size : (index + 1) * batch_size]
        return some, buffers[index % len(buffers)][: len(some)]

    def begin(pool: ThreadPoolExecutor, index: int) -> list[Future[MovedBoxes]]:
        some, buffer = chosen(index)
        return _shared_out(
            pool, lambda first, end: inputs.fill(some[first:end], buffer[first:end]), len(some), threads or 1
        )

    def finish(index: int, parts: list[Future[MovedBoxes]]) -> Batch:
        some, buffer = chosen(index)
        return Batch(buffer, _targets(targets, some, parts), some)

    return _in_turn(begin, finish, 0, count, threads, ahead)


def _shared_out(
    pool: ThreadPoolExecutor, fill: Callable[[int, int], MovedBoxes], count: int, threads: int
) -> list[Future[MovedBoxes]]:
    """``fill(first, end)`` of ``count`` samples in equal parts, one a thread."""
    edges = [count * part // threads for part in range(threads + 1)]
    return [pool.submit(fill, first, end) for first, end in pairwise(edges) if first < end]


def _targets(targets: Targets, indices: Indices, parts: list[Future[MovedBoxes]]) -> Targets:
    """Of these samples, when the parts of their batch are done; boxes as they have moved."""
    done = [part.result() for part in parts]
    if isinstance(targets, Boxes) and None not in done:
        return join_boxes([boxes for part in done if part is not None for boxes in part])
    return take_targets(targets, indices)


def _in_turn(
    begin: Callable[[ThreadPoolExecutor, int], Any],
    finish: Callable[[int, Any], Made],
    first: int,
    end: int,
    threads: int,
    ahead: int,
) -> Iterator[Made]:
    """``finish(index, begin(…, index))`` for ``first`` … ``end`` − 1, with ``ahead`` begun while one is in use."""
    if first >= end:
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
    try:
        begun: deque[Any] = deque()
        following = first
        for index in range(first, end):
            while following <= min(index + ahead, end - 1):
                begun.append(begin(pool, following))
                following += 1
            yield finish(index, begun.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


__all__ = [
    "Normalisation", "TrainingBatches", "copy_window", "default_threads", "epoch_shares", "evaluation_batches",
    "steps_per_epoch",
]  # fmt: skip
