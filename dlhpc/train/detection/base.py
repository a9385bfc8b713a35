"""What the task of detection asks of a network, and how what it found is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dlhpc.data.samples import DONT_CARE
from dlhpc.train.tasks.base import BoxTensors

MOST = 100
"""Detections of a picture that are kept, the surest; COCO's evaluation looks at no more either."""

Raw = Mapping[str, Tensor]
"""What a network says of N pictures before it is decoded; the first dimension is N."""


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, the surest first; on the CPU."""

    corners: Tensor
    """m×4 float32: left, top, right, bottom in pixels of the picture that the network saw."""
    classes: Tensor
    """m int64."""
    scores: Tensor
    """m float32, between 0 and 1."""

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def surest(cls, corners: Tensor, classes: Tensor, scores: Tensor) -> Detections:
        """At most :data:`MOST` of these, sorted; equally sure ones stay in their order."""
        order = torch.sort(scores, descending=True, stable=True).indices[:MOST]
        return cls(corners[order].float().cpu(), classes[order].cpu(), scores[order].float().cpu())


class DetectionNetwork(nn.Module):
    """A network that finds objects in normalised pictures N×C×h×w of any size."""

    loss_names: ClassVar[tuple[str, ...]]
    """What :meth:`losses` gives, as the curves call it without ``loss_``."""
    loss_weights: ClassVar[tuple[float, ...]]
    """How much each counts in the loss that is trained on."""

    def forward(self, pictures: Tensor) -> Raw:
        """The outputs that losses and detections are made of; may run under autocast."""
        raise NotImplementedError

    def losses(self, raw: Raw, boxes: BoxTensors, size: tuple[int, int]) -> Tensor:
        """One value for each of ``loss_names``, added up over the pictures; ``size`` is their height and width."""
        raise NotImplementedError

    def detections(self, raw: Raw, size: tuple[int, int]) -> list[Detections]:
        """What is reported of each picture."""
        raise NotImplementedError


def in_fp32(raw: Raw) -> Raw:
    """The same numbers as float32: losses and boxes are too coarse in half precision."""
    return {name: value.float() for name, value in raw.items()}


def pictures_of(boxes: BoxTensors) -> Tensor:
    """M int64: the picture that each box belongs to."""
    starts = torch.tensor(boxes.starts, device=boxes.classes.device)
    return torch.repeat_interleave(torch.arange(len(boxes), device=starts.device), starts.diff())


def real(corners: Tensor) -> Tensor:
    """M bool: boxes that have an area. Those that augmentation squeezed to nothing teach nothing."""
    return ((corners[:, 2:] - corners[:, :2]) > 0).all(dim=1)


def per_picture(boxes: BoxTensors) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each picture: corners m×4 and classes m of its objects, and corners of the regions that do not count."""
    sizes = [after - before for before, after in zip(boxes.starts, boxes.starts[1:])]
    parts = []
    for corners, classes in zip(torch.split(boxes.corners, sizes), torch.split(boxes.classes, sizes)):
        sound = real(corners)
        objects, ignored = sound & (classes != DONT_CARE), sound & (classes == DONT_CARE)
        parts.append((corners[objects], classes[objects], corners[ignored]))
    return parts
