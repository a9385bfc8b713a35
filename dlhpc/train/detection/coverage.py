"""What DetectNet is taught: which cells of its grid see an object, and where that object's corners lie.

After NVIDIA's DetectNet (the DIGITS example of 2016; the parameters ``stride``, ``scale_cvg``, ``min_cvg_len`` and
``obj_norm`` of its layer ``DetectNetTransformation``). Two things differ. Regions of the class *DontCare* take no part
in the coverage loss, where DIGITS taught them as background. And a cell that several boxes claim belongs to the one
about whose centre it lies closest, in units of that box, where DIGITS left it to the order of the label file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlhpc.data.samples import DONT_CARE
from dlhpc.train.detection.base import pictures_of, real
from dlhpc.train.tasks.base import BoxTensors

STRIDE = 16


@dataclass(frozen=True)
class CoverageTargets:
    """For N pictures, K classes and a grid of R×C cells; P cells are covered."""

    coverage: Tensor
    """N×K×R×C float32: 1 where a cell sees an object of the class."""
    counted: Tensor
    """N×K×R×C bool: cells that take part in the coverage loss."""
    cells: tuple[Tensor, Tensor, Tensor, Tensor]
    """Picture, class, row and column of each covered cell, P each."""
    corners: Tensor
    """P×4 float32: the object's corners in pixels relative to the cell's top-left."""
    sizes: Tensor
    """P×2 float32: the object's width and height in pixels."""
    shares: Tensor
    """P float32: 1 / cells of the object, so that the cells of each object add up to 1."""


def shrunk(corners: Tensor, part: float, least: float) -> Tensor:
    """M×4: each box about its centre, at ``part`` of its size, with at least ``least`` pixels but never more than the
    box has."""
    sizes = corners[:, 2:] - corners[:, :2]
    centres = (corners[:, 2:] + corners[:, :2]) / 2
    halves = torch.minimum((sizes * part).clamp(min=least), sizes) / 2
    return torch.cat([centres - halves, centres + halves], dim=1)


def touched(corners: Tensor, rows: int, columns: int) -> Tensor:
    """M×R×C bool: the cells of the grid that each box overlaps."""
    before = torch.arange(max(rows, columns), device=corners.device) * STRIDE
    across = (corners[:, 0:1] < before[:columns] + STRIDE) & (corners[:, 2:3] > before[:columns])
    down = (corners[:, 1:2] < before[:rows] + STRIDE) & (corners[:, 3:4] > before[:rows])
    return down[:, :, None] & across[:, None, :]


def coverage_targets(
    boxes: BoxTensors, classes: int, rows: int, columns: int, *, part: float, least: float
) -> CoverageTargets:
    """The targets of a batch, computed on the device of ``boxes``."""
    device, count = boxes.corners.device, len(boxes)
    sound = real(boxes.corners)
    objects = sound & (boxes.classes != DONT_CARE)
    ignored = sound & (boxes.classes == DONT_CARE)
    picture_of = pictures_of(boxes)

    # All pairs of an object and a cell that its shrunk box touches.
    corners, kinds, pictures = boxes.corners[objects], boxes.classes[objects], picture_of[objects]
    pair, row, column = touched(shrunk(corners, part, least), rows, columns).nonzero(as_tuple=True)
    middle = torch.stack([column, row], dim=1) * STRIDE + STRIDE / 2
    sizes = corners[:, 2:] - corners[:, :2]
    off = ((middle - (corners[:, 2:] + corners[:, :2])[pair] / 2).abs() / sizes[pair]).amax(dim=1)

    # Of those that share a cell (and class) the nearest stays; of equally near ones the first. amin needs no order.
    place = ((pictures[pair] * classes + kinds[pair]) * rows + row) * columns + column
    places = count * classes * rows * columns
    nearest = torch.full((places,), torch.inf, device=device).scatter_reduce(0, place, off, "amin")
    number = torch.where(off == nearest[place], torch.arange(len(pair), device=device), len(pair))
    first = torch.full((places,), len(pair), device=device).scatter_reduce(0, place, number, "amin")
    chosen = first[first < len(pair)]

    pair, row, column = pair[chosen], row[chosen], column[chosen]
    cells = (pictures[pair], kinds[pair], row, column)
    coverage = torch.zeros(count, classes, rows, columns, device=device)
    coverage[cells] = 1.0
    per_object = torch.bincount(pair, minlength=len(corners))
    corner = torch.stack([column, row, column, row], dim=1) * STRIDE

    free = torch.ones(count, rows, columns, dtype=torch.bool, device=device)
    of, down, across = touched(boxes.corners[ignored], rows, columns).nonzero(as_tuple=True)
    free[picture_of[ignored][of], down, across] = False
    counted = free[:, None] | (coverage > 0)
    return CoverageTargets(
        coverage, counted, cells, corners[pair] - corner, sizes[pair], 1.0 / per_object[pair].to(torch.float32)
    )
