"""What the training loop asks of a task. The loop knows no task, and no task knows ranks' gradients or checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dlhpc.data.samples import Batch, Boxes
from dlhpc.train.collective import Collective


@dataclass(frozen=True)
class BoxTensors:
    """:class:`dlhpc.data.samples.Boxes` on the device."""

    corners: Tensor
    """M×4 float32, pixels."""
    classes: Tensor
    """M int64, −1 where nothing is to be learnt."""
    starts: list[int]
    """n+1."""

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True)
class DeviceBatch:
    """A :class:`dlhpc.data.samples.Batch` where the network is."""

    inputs: Tensor
    """Pictures n×C×h×w (uint8 or uint16), or rows n×F (float32)."""
    targets: Any
    """Tensor as in :data:`dlhpc.data.samples.Targets`, or :class:`BoxTensors`."""
    partner: Tensor | None = None
    """n int64, MixUp's other sample of each."""
    share: Tensor | None = None
    """n float32, what stays of each sample itself."""

    def __len__(self) -> int:
        return len(self.inputs)


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch to ``device``; on a CPU the arrays are shared, not copied.

    For a GPU they go through page-locked memory, and the copy is only begun, in the current stream. Until it is done,
    arrays that are page-locked already must not change; others may at once.
    """

    def moved(values: Any) -> Tensor:
        given = torch.from_numpy(values)
        if device.type != "cuda":
            return given.to(device)
        copy = (given if given.is_pinned() else given.pin_memory()).to(device, non_blocking=True)
        copy.record_stream(torch.cuda.default_stream(device))
        return copy

    if isinstance(batch.targets, Boxes):
        boxes = batch.targets
        targets: Any = BoxTensors(moved(boxes.corners), moved(boxes.classes), boxes.starts.tolist())
    else:
        targets = moved(batch.targets)
    if batch.mixing is None:
        return DeviceBatch(moved(batch.inputs), targets)
    return DeviceBatch(moved(batch.inputs), targets, moved(batch.mixing.partner), moved(batch.mixing.share))


@dataclass(frozen=True)
class Losses:
    """Of one portion, added up over its samples, so that a global batch gives the same however it is shared out."""

    total: Tensor
    """Scalar that the gradient is taken of."""
    sums: Tensor
    """Detached: the values of the task's ``train_sums``."""


@dataclass(frozen=True)
class Evaluation:
    """Measured over the whole split, every sample once."""

    metrics: dict[str, float]
    """Name without the split → value: ``loss``, ``accuracy``, ``ap50``, ``rmse`` …"""
    details: dict[str, Any] = field(default_factory=dict)
    """JSON-able, for ``evaluation.json``: tables per class or target."""


class Measure(Protocol):
    """Collects what the network says of a split, on one rank."""

    def add(self, batch: DeviceBatch) -> None:
        """Take these samples into account; the model is in evaluation mode, gradients are off."""

    def finish(self, collective: Collective) -> Evaluation:
        """The numbers over all ranks; called by all of them, and the same on all of them."""


class Task(Protocol):
    """One kind of learning. ``model`` holds normalisation and network: its ``state_dict`` is the weights file."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def train_sums(self) -> tuple[str, ...]:
        """Names of the numbers in :attr:`Losses.sums`; the first is ``loss``."""

    def losses(self, batch: DeviceBatch) -> Losses:
        """Forward pass and losses of a portion that is not empty; runs under autocast where precision asks for it."""

    def train_metrics(self, sums: list[float], samples: float) -> dict[str, float]:
        """Name without ``train_`` → value, out of the sums over ``samples`` samples."""

    def measure(self) -> Measure:
        """A fresh :class:`Measure`."""
