"""Each rank's share of every epoch, augmented, as 8- or 16-bit batches; normalising is the network's first layer.

Nothing here has a state: order and augmentation are functions of (seed, epoch, picture), never of the number of ranks
or of where a run was resumed, so a resumed epoch gives the same bits. Random bits are taken raw from a ``Philox``
generator because NumPy guarantees that stream, but not that of ``Generator.permutation``, across its versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.packed import Packed, Pictures
from dlhpc.data.samples import Batch, Indices, Step, Targets, take_targets
from dlhpc.data.splits import SplitName

if TYPE_CHECKING:
    from dlhpc.spec.models import Augment

Made = TypeVar("Made")
_ORDER, _AUGMENT = 0, 1  # what random bits are for: each purpose has its own stream


def steps_per_epoch(count: int, global_batch: int) -> int:
    """Optimiser steps that take each of ``count`` pictures once, at most ``global_batch`` a step."""
    return -(-count // global_batch)


def epoch_shares(
    count: int, seed: int, epoch: int, steps: int, rank: int, ranks: int, accumulate: int = 1
) -> list[list[Indices]]:
    """Which pictures this rank sees: per step, per portion, positions in the training split.

    All pictures are shuffled by (seed, epoch) and cut into ``steps`` global batches whose sizes differ by at most one:
    no picture is dropped or doubled and no last batch is tiny. A rank takes every ``ranks``-th picture of a batch, so
    a global batch holds the same pictures for any number of ranks.
    """
    order = np.argsort(_random_bits(seed, epoch, _ORDER, count), kind="stable").astype(np.int64)
    return [np.array_split(batch[rank::ranks], accumulate) for batch in np.array_split(order, steps)]


class TrainingBatches:
    """The training split as augmented batches of one rank.

    ``steps`` is :func:`steps_per_epoch` of the global batch. The next step is made by a thread while the caller works
    on one; therefore the arrays of a :class:`Step` may be used until the next one is asked for, not longer.
    """

    def __init__(
        self, packed: Packed, augment: Augment, seed: int, rank: int, ranks: int, steps: int, accumulate: int = 1
    ) -> None:
        self._packed = packed
        self._augment = augment
        self._seed, self._rank, self._ranks = seed, rank, ranks
        self._steps, self._accumulate = steps, accumulate
        self._count = packed.count("train")
        self._targets = packed.targets("train")

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Step]:
        """The steps of ``epoch`` (from 0), beginning with ``first_step`` when a run is resumed within it."""
        packed = self._packed
        shares = epoch_shares(self._count, self._seed, epoch, self._steps, self._rank, self._ranks, self._accumulate)
        windows = _random_windows(packed, self._augment, self._seed, epoch, self._count)
        largest = max((len(portion) for share in shares for portion in share), default=0)
        buffers = [
            [_buffer(packed, largest, windows.height, windows.width) for _ in range(self._accumulate)] for _ in range(2)
        ]

        def step(index: int) -> Step:
            portions = [
                _batch(packed, "train", portion, self._targets, windows, buffer)
                for portion, buffer in zip(shares[index], buffers[index % 2])
            ]
            more = index < self._count % self._steps  # np.array_split gives the first batches one picture more
            return Step(index, self._count // self._steps + more, portions)

        return _ahead(step, first_step, self._steps)


def evaluation_batches(
    packed: Packed, split: SplitName, augment: Augment, batch_size: int, rank: int = 0, ranks: int = 1
) -> Iterator[Batch]:
    """Every ``ranks``-th picture of ``split`` from ``rank`` on, each once, centre-cropped, in order.

    A rank may get none. A batch may be used until the next one is asked for.
    """
    share = np.arange(rank, packed.count(split), ranks, dtype=np.int64)
    targets = packed.targets(split)
    windows = _centre_windows(packed, augment)
    buffers = [_buffer(packed, min(batch_size, len(share)), windows.height, windows.width) for _ in range(2)]

    def batch(index: int) -> Batch:
        chosen = share[index * batch_size : (index + 1) * batch_size]
        return _batch(packed, split, chosen, targets, windows, buffers[index % 2])

    return _ahead(batch, 0, -(-len(share) // batch_size))


@dataclass(frozen=True)
class _Windows:
    """What part of each picture is taken, and whether mirrored; an array holds one entry a picture of the split."""

    height: int
    width: int
    top: NDArray[np.int64] | int = 0
    left: NDArray[np.int64] | int = 0
    flip_vertical: NDArray[np.bool_] | bool = False
    flip_horizontal: NDArray[np.bool_] | bool = False
    whole: bool = False
    """All pictures are taken as they are."""


def _window_size(packed: Packed, augment: Augment) -> tuple[int, int]:
    return augment.crop_size or (packed.height, packed.width)


def _centre_windows(packed: Packed, augment: Augment) -> _Windows:
    height, width = _window_size(packed, augment)
    top, left = (packed.height - height) // 2, (packed.width - width) // 2
    return _Windows(height, width, top, left, whole=(height, width) == (packed.height, packed.width))


def _random_windows(packed: Packed, augment: Augment, seed: int, epoch: int, count: int) -> _Windows:
    plain = _centre_windows(packed, augment)
    shift = augment.shift_pixels
    if plain.whole and not (shift or augment.flip_horizontal or augment.flip_vertical):
        return plain
    # One column a decision whether it is used or not: switching one on does not change the others.
    draws = _random_bits(seed, epoch, _AUGMENT, count * 6).reshape(count, 6)
    top = _below(packed.height - plain.height + 1, draws[:, 0]) + _below(2 * shift + 1, draws[:, 1]) - shift
    left = _below(packed.width - plain.width + 1, draws[:, 2]) + _below(2 * shift + 1, draws[:, 3]) - shift
    return _Windows(
        plain.height,
        plain.width,
        top,
        left,
        (_below(2, draws[:, 4]) == 1) & augment.flip_vertical,
        (_below(2, draws[:, 5]) == 1) & augment.flip_horizontal,
    )


def _random_bits(seed: int, epoch: int, purpose: int, count: int) -> NDArray[np.uint64]:
    """``count`` random 64-bit words, a function of the other arguments alone."""
    words = [seed & 0xFFFF_FFFF_FFFF_FFFF, epoch, purpose]
    return np.random.Philox(np.random.SeedSequence(words)).random_raw(count)


def _below(limit: int, bits: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Random integers from 0 to ``limit`` − 1 out of the upper 53 random bits."""
    fractions = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (fractions * limit).astype(np.int64)


def _buffer(packed: Packed, count: int, height: int, width: int) -> Pictures:
    return np.empty((count, packed.channels, height, width), dtype=packed.dtype)


def _batch(
    packed: Packed, split: SplitName, indices: Indices, targets: Targets, windows: _Windows, buffer: Pictures
) -> Batch:
    pictures = buffer[: len(indices)]
    if windows.whole:
        packed.read(split, indices, pictures)
    else:
        whole = _buffer(packed, 1, packed.height, packed.width)  # one picture stays in the processor's cache
        tops = np.broadcast_to(windows.top, len(targets))[indices].tolist()
        lefts = np.broadcast_to(windows.left, len(targets))[indices].tolist()
        upside_down = np.broadcast_to(windows.flip_vertical, len(targets))[indices].tolist()
        mirrored = np.broadcast_to(windows.flip_horizontal, len(targets))[indices].tolist()
        for slot in range(len(indices)):
            packed.read(split, indices[slot : slot + 1], whole)
            target = pictures[slot][:, :: -1 if upside_down[slot] else 1, :: -1 if mirrored[slot] else 1]
            copy_window(whole[0], tops[slot], lefts[slot], target)
    return Batch(pictures, take_targets(targets, indices), indices)


def copy_window(picture: Pictures, top: int, left: int, out: Pictures) -> None:
    """``out[:, y, x] = picture[:, top + y, left + x]`` (C×h×w from C×H×W); outside the picture its edge is repeated."""
    _, full_height, full_width = picture.shape
    _, height, width = out.shape
    top = min(max(top, 1 - height), full_height - 1)  # at least one row and column of the picture stays in sight
    left = min(max(left, 1 - width), full_width - 1)
    first_row, end_row = max(0, -top), min(height, full_height - top)
    first_column, end_column = max(0, -left), min(width, full_width - left)
    out[:, first_row:end_row, first_column:end_column] = picture[
        :, top + first_row : top + end_row, left + first_column : left + end_column
    ]
    out[:, first_row:end_row, :first_column] = out[:, first_row:end_row, first_column : first_column + 1]
    out[:, first_row:end_row, end_column:] = out[:, first_row:end_row, end_column - 1 : end_column]
    out[:, :first_row] = out[:, first_row : first_row + 1]
    out[:, end_row:] = out[:, end_row - 1 : end_row]


def _ahead(make: Callable[[int], Made], first: int, end: int) -> Iterator[Made]:
    """``make(first) … make(end - 1)``, each made by a thread while the one before is in use."""
    if first >= end:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        following = thread.submit(make, first)
        for index in range(first + 1, end):
            made = following.result()
            following = thread.submit(make, index)
            yield made
        yield following.result()
