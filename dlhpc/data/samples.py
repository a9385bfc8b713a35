"""What a dataset gives to training: inputs with their targets, a batch at a time. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

DONT_CARE = -1
"""Class of a region in which nothing is learnt and no detection counts as a mistake."""


@dataclass(frozen=True)
class Boxes:
    """The boxes of n pictures, those of one picture after those of the one before."""

    corners: NDArray[np.float32]
    """M×4: left, top, right, bottom in pixels of the picture; right and bottom are just outside."""
    classes: NDArray[np.int64]
    """M class numbers, or ``DONT_CARE``."""
    starts: NDArray[np.int64]
    """n+1: picture i has the boxes ``starts[i]`` to ``starts[i + 1]``."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, picture: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Corners (m×4) and classes (m) of one picture."""
        here = slice(int(self.starts[picture]), int(self.starts[picture + 1]))
        return self.corners[here], self.classes[here]

    def take(self, indices: Indices) -> Boxes:
        """The boxes of these pictures, in this order."""
        return join_boxes([self.of(int(index)) for index in indices])


def join_boxes(pictures: list[tuple[NDArray[np.float32], NDArray[np.int64]]]) -> Boxes:
    """Boxes out of (corners m×4, classes m) of each picture."""
    starts = np.zeros(len(pictures) + 1, dtype=np.int64)
    np.cumsum([len(classes) for _, classes in pictures], out=starts[1:])
    if not starts[-1]:
        return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), starts)
    corners = np.concatenate([corners for corners, _ in pictures]).astype(np.float32, copy=False)
    return Boxes(corners, np.concatenate([classes for _, classes in pictures]).astype(np.int64, copy=False), starts)


Targets = NDArray[Any] | Boxes
"""By task: classification int64 n, with several labels uint8 n×K of 0 and 1; regression float64 n×T in the user's
units; detection :class:`Boxes`."""


def take_targets(targets: Targets, indices: Indices) -> Targets:
    """The targets of some samples."""
    return targets.take(indices) if isinstance(targets, Boxes) else targets[indices]


@dataclass(frozen=True)
class Mixing:
    """MixUp within a batch: sample i becomes ``share[i]`` of itself and the rest of sample ``partner[i]``."""

    partner: Indices
    share: NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Some samples of one rank; may be empty. ``inputs`` is a reused buffer: see who made the batch."""

    inputs: NDArray[Any]
    """Pictures n×C×h×w after the crop (uint8 or uint16, full scale), or rows of a table n×F (float32)."""
    targets: Targets
    indices: Indices
    """n positions within the split."""
    mixing: Mixing | None = None

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Step:
    """One optimiser step: this rank's portions of a global batch."""

    index: int
    """Within the epoch, from 0."""
    global_count: int
    """Samples of this step over all ranks and portions: what the sum of losses is divided by."""
    portions: list[Batch]
    """``accumulate`` batches; any may be empty, on some ranks all."""
