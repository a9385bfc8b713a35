"""DetectNet: GoogLeNet's trunk at stride 16 with two 1×1 heads, after NVIDIA's network of the same name.

NVIDIA's prototxt reaches stride 16 by leaving out GoogLeNet's last max-pooling, the one before inception_5a; its two
local response normalisations are batch normalisations here, as in torchvision's GoogLeNet, whose parameter names the
trunk has, so that its ImageNet weights fit.

Many users of DIGITS saw no box for tens of epochs: the coverage learns from a squared error behind a sigmoid, whose
gradient vanishes once all cells say "nothing here", and the box head began at zero pixels with the picture's scale to
cross. Here batch normalisation keeps the trunk's signals alive, the coverage begins at the frequency of covered cells,
and the box head begins at the typical box of the training pictures, about the cell, and speaks in units of it.

The losses are those of the prototxt, so that curves can be compared: for each object the absolute deviations of the
four corners, in units of its width and height, averaged over its cells (``loss_bbox``, which counts twice in the loss);
and half the squared error of the coverage over all cells (``loss_coverage``; Caffe's EuclideanLoss has this half).
DIGITS' coverage threshold of 0.6 is one on a mean, and confidence is the mean coverage of a group's cells, where DIGITS
told the logarithm of their number.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dlhpc.data.samples import DONT_CARE, Boxes
from dlhpc.spec.network import Detection
from dlhpc.train.detection.base import DetectionNetwork, Detections, Raw
from dlhpc.train.detection.coverage import STRIDE, coverage_targets
from dlhpc.train.detection.grouping import group_boxes
from dlhpc.train.tasks.base import BoxTensors

# Channels of the inception blocks (Szegedy et al. 2015, table 1): 1×1, 3×3 reduced, 3×3, 5×5 reduced, 5×5, pool.
_BLOCKS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
_POOLS_BEFORE = {"inception3a", "inception4a"}  # and none before inception5a
_MIDDLE = STRIDE / 2


class DetectNet(DetectionNetwork):
    """``width`` scales the channels of all layers: 1 is NVIDIA's network, less suits small pictures and machines.

    ``typical`` is K×2: usual width and height of each class' boxes in pixels; ``covered`` the usual share of covered
    cells. Both only decide where training begins and in which units the box head speaks.
    """

    loss_names = ("bbox", "coverage")
    loss_weights = (2.0, 1.0)
    typical: Tensor

    def __init__(
        self, channels: int, typical: Tensor, settings: Detection, *, width: float = 1.0, covered: float = 0.05
    ) -> None:
        from torchvision.models.googlenet import BasicConv2d, Inception

        super().__init__()
        self.settings = settings
        classes = len(typical)
        self.register_buffer("typical", typical.to(torch.float32))

        def scaled(count: int) -> int:
            return max(4, round(count * width))

        self.conv1 = BasicConv2d(channels, scaled(64), kernel_size=7, stride=2, padding=3)
        self.conv2 = BasicConv2d(scaled(64), scaled(64), kernel_size=1)
        self.conv3 = BasicConv2d(scaled(64), scaled(192), kernel_size=3, padding=1)
        before = scaled(192)
        for name, counts in _BLOCKS.items():
            block = [scaled(count) for count in counts]
            self.add_module(name, Inception(before, *block))
            before = block[0] + block[2] + block[4] + block[5]
        self.coverage = nn.Conv2d(before, classes, 1)
        self.bboxes = nn.Conv2d(before, 4 * classes, 1)
        self._begin(covered)

    def _begin(self, covered: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.coverage.weight, std=0.01)
        nn.init.normal_(self.bboxes.weight, std=0.01)
        assert self.coverage.bias is not None
        assert self.bboxes.bias is not None
        nn.init.constant_(self.coverage.bias, math.log(covered / (1 - covered)))
        # The typical box about the middle of the cell, in units of its own size.
        halves = torch.tensor([-0.5, -0.5, 0.5, 0.5])
        with torch.no_grad():
            self.bboxes.bias.copy_((halves + _MIDDLE / self.typical.repeat(1, 2)).flatten())

    def forward(self, pictures: Tensor) -> Raw:
        """``coverage``: logits N×K×R×C; ``bboxes``: corners N×K×4×R×C in pixels relative to the cell's top-left.

        R = ⌈h / 16⌉ and C = ⌈w / 16⌉: the picture is filled up with its mean colour at the right and below.
        """
        height, width = pictures.shape[-2:]
        x = functional.pad(pictures, (0, -width % STRIDE, 0, -height % STRIDE))
        x = _pool(self.conv1(x))
        x = self.conv3(self.conv2(x))
        for name in _BLOCKS:
            x = self.get_submodule(name)(_pool(x) if name in _POOLS_BEFORE else x)
        logits = self.coverage(x)
        units = self.typical.repeat(1, 2)[:, :, None, None]
        corners = self.bboxes(x).float().unflatten(1, (len(self.typical), 4)) * units
        return {"coverage": logits, "bboxes": corners}

    def losses(self, raw: Raw, boxes: BoxTensors, size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        coverage = raw["coverage"].sigmoid()
        _, classes, rows, columns = coverage.shape
        targets = coverage_targets(
            boxes, classes, rows, columns, part=self.settings.shrink, least=self.settings.min_covered
        )
        square = ((coverage - targets.coverage) ** 2)[targets.counted].sum() / 2
        picture, kind, row, column = targets.cells
        off = (raw["bboxes"][picture, kind, :, row, column] - targets.corners).abs() / targets.sizes.repeat(1, 2)
        return torch.stack([(off.sum(dim=1) * targets.shares).sum(), square])

    def detections(self, raw: Raw, size: tuple[int, int]) -> list[Detections]:
        coverage = raw["coverage"].sigmoid().cpu().numpy()
        bboxes = raw["bboxes"].cpu().numpy()
        return [self._decoded(cells, corners, size) for cells, corners in zip(coverage, bboxes)]

    def _decoded(self, coverage: NDArray[np.float32], bboxes: NDArray[np.float32], size: tuple[int, int]) -> Detections:
        """One picture: coverage K×R×C and corners K×4×R×C."""
        settings, (height, width) = self.settings, size
        found: list[tuple[NDArray[np.float32], int, NDArray[np.float32]]] = []
        for kind in range(len(coverage)):
            row, column = np.nonzero(coverage[kind] >= settings.coverage)
            corners = bboxes[kind][:, row, column].T + np.stack([column, row, column, row], axis=1) * STRIDE
            corners = np.clip(corners, 0, (width, height, width, height)).astype(np.float32)
            proper = (corners[:, 2:] > corners[:, :2]).all(axis=1)
            groups = group_boxes(
                corners[proper], coverage[kind][row, column][proper], settings.group_threshold, settings.group_eps
            )
            high = groups.corners[:, 3] - groups.corners[:, 1] >= settings.min_height
            found.append((groups.corners[high], kind, groups.confidence[high]))
        return Detections.surest(
            torch.from_numpy(np.concatenate([corners for corners, _, _ in found])),
            torch.cat([torch.full((len(sure),), kind, dtype=torch.int64) for _, kind, sure in found]),
            torch.from_numpy(np.concatenate([sure for _, _, sure in found])),
        )


def _pool(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=2, ceil_mode=True)


def typical_boxes(boxes: Boxes, classes: int) -> Tensor:
    """K×2: the geometric mean of the widths and heights of each class' boxes; 64 pixels where there are none."""
    sizes = boxes.corners[:, 2:] - boxes.corners[:, :2]
    sound = (sizes > 0).all(axis=1) & (boxes.classes != DONT_CARE)
    typical = np.full((classes, 2), 64.0)
    for kind in range(classes):
        own = sizes[sound & (boxes.classes == kind)]
        if len(own):
            typical[kind] = np.exp(np.log(own.astype(np.float64)).mean(axis=0))
    return torch.from_numpy(typical.astype(np.float32))


def covered_share(boxes: Boxes, classes: int, size: tuple[int, int], settings: Detection) -> float:
    """The share of cells that see an object, between 1 ‰ and one half: where the coverage begins."""
    sizes = boxes.corners[:, 2:] - boxes.corners[:, :2]
    sizes = sizes[(sizes > 0).all(axis=1) & (boxes.classes != DONT_CARE)]
    parts = np.minimum(np.maximum(sizes * settings.shrink, settings.min_covered), sizes)
    covered = float(((parts / STRIDE + 1).prod(axis=1)).sum())  # a stretch of x cells touches x + 1 on average
    cells = max(1, len(boxes)) * classes * math.ceil(size[0] / STRIDE) * math.ceil(size[1] / STRIDE)
    return min(0.5, max(0.001, covered / cells))
