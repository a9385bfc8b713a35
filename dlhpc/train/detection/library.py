"""Torchvision's detectors behind our interface: SSDlite on MobileNetV3, RetinaNet and FCOS on a ResNet with FPN.

Networks, matching, losses and non-maximum suppression are torchvision's. What is ours: pictures keep their size and
come normalised; the smallest anchors fit the boxes of the training pictures; losses are those of each picture by
itself, divided by its own positive anchors and then added up, so that a batch gives the same however ranks share it;
and anchors in regions of the class *DontCare* are left out before the loss is taken, unless they belong to an object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import backbone_utils, ssd, ssdlite
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops import box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from dlhpc.data.samples import DONT_CARE, Boxes
from dlhpc.spec.network import Detection
from dlhpc.train.detection.base import MOST, DetectionNetwork, Detections, Raw, per_picture
from dlhpc.train.tasks.base import BoxTensors

Outputs = dict[str, Tensor]
_INSIDE = 0.5  # part of an anchor in an ignored region from which on it teaches nothing; COCO's crowds use the same
_SAME = 0.4  # overlap (IoU) with an ignored region from which on an anchor is about it: RetinaNet's upper background


class LibraryNetwork(DetectionNetwork):
    """One of torchvision's detectors; ``start`` (its smallest anchors, see ``smallest_anchor``) is kept as a buffer,
    because anchors must be the same when the weights are used."""

    strides: ClassVar[tuple[int, ...]]
    terms: ClassVar[tuple[str, ...]]
    """Torchvision's names of the losses, in the order of ``loss_names``."""
    detector: Any
    start: Tensor

    def __init__(self, detector: nn.Module, start: float) -> None:
        super().__init__()
        self.detector = detector
        self.register_buffer("start", torch.tensor(start))

    def forward(self, pictures: Tensor) -> Raw:
        """N×A×… for the A anchors of all levels."""
        features = list(self.detector.backbone(pictures).values())
        return cast(Outputs, self.detector.head(features))

    def losses(self, raw: Raw, boxes: BoxTensors, size: tuple[int, int]) -> Tensor:
        anchors = self.anchors(raw, size)
        total = raw["cls_logits"].new_zeros(len(self.terms))
        for number, (corners, classes, ignored) in enumerate(per_picture(boxes)):
            target = {"boxes": corners, "labels": classes + self.first_label, "ignored": ignored}
            outputs = {name: value[number : number + 1] for name, value in raw.items()}
            found = self.loss_of(target, outputs, anchors, size)
            total = total + torch.stack([found[name] for name in self.terms])
        return total

    first_label: ClassVar[int] = 0
    """The label of class 0."""

    def loss_of(
        self, target: Outputs, outputs: Outputs, anchors: Tensor, size: tuple[int, int]
    ) -> Mapping[str, Tensor]:
        """Torchvision's losses of one picture."""
        raise NotImplementedError

    def detections(self, raw: Raw, size: tuple[int, int]) -> list[Detections]:
        anchors = self.anchors(raw, size)
        return [
            Detections.surest(found["boxes"], found["labels"] - self.first_label, found["scores"])
            for found in self.decoded(dict(raw), anchors, [size] * len(raw["cls_logits"]))
        ]

    def decoded(self, outputs: Outputs, anchors: Tensor, sizes: list[tuple[int, int]]) -> list[Outputs]:
        """Torchvision's answers for all pictures."""
        per_level = self.per_level(outputs, sizes[0])
        split = {name: list(torch.split(value, per_level, dim=1)) for name, value in outputs.items()}
        levels = list(torch.split(anchors, per_level))
        return cast("list[Outputs]", self.detector.postprocess_detections(split, [levels for _ in sizes], sizes))

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of each level's feature map."""
        return [(math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in self.strides]

    def per_level(self, raw: Raw, size: tuple[int, int]) -> list[int]:
        """Anchors of each level."""
        cells = [rows * columns for rows, columns in self.grids(size)]
        each = raw["cls_logits"].shape[1] // sum(cells)
        return [count * each for count in cells]

    def anchors(self, raw: Raw, size: tuple[int, int]) -> Tensor:
        """A×4 corners in pixels."""
        like, generator = raw["cls_logits"], self.detector.anchor_generator
        maps = [like.new_empty(1, 1, *grid) for grid in self.grids(size)]
        picture = ImageList(torch.empty(1, 1, *size, device="meta"), [size])
        of_pictures: list[Tensor] = generator(picture, maps)
        return of_pictures[0]


def ignored_anchors(anchors: Tensor, regions: Tensor) -> Tensor:
    """A bool: anchors that lie mostly inside one of the regions (m×4), or are about as large as one."""
    top_left = torch.maximum(anchors[:, None, :2], regions[None, :, :2])
    sides = (torch.minimum(anchors[:, None, 2:], regions[None, :, 2:]) - top_left).clamp(min=0)
    own = (anchors[:, 2:] - anchors[:, :2]).clamp(min=0).prod(dim=1)
    inside = sides.prod(dim=2) >= _INSIDE * own[:, None]
    alike: Tensor = box_iou(anchors, regions) >= _SAME
    return (inside | alike).any(dim=1)


def ignored_points(anchors: Tensor, regions: Tensor) -> Tensor:
    """A bool: anchors whose middle lies inside one of the regions (m×4)."""
    middle = (anchors[:, None, :2] + anchors[:, None, 2:]) / 2
    return ((middle >= regions[None, :, :2]) & (middle < regions[None, :, 2:])).all(dim=2).any(dim=1)


class _Ignoring:
    """Put before a class with torchvision's ``compute_loss`` of one picture: takes ignored anchors away first."""

    ignored = staticmethod(ignored_anchors)

    def compute_loss(
        self, targets: list[Outputs], head_outputs: Outputs, anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> Any:
        regions = targets[0]["ignored"]
        if len(regions):
            keep = (matched_idxs[0] >= 0) | ~self.ignored(anchors[0], regions)
            head_outputs = {name: value[:, keep] for name, value in head_outputs.items()}
            anchors, matched_idxs = [anchors[0][keep]], [matched_idxs[0][keep]]
        return super().compute_loss(targets, head_outputs, anchors, matched_idxs)  # type: ignore[misc]


class _RetinaHead(_Ignoring, RetinaNetHead):  # type: ignore[misc]
    pass


class _FcosHead(_Ignoring, FCOSHead):  # type: ignore[misc]
    ignored = staticmethod(ignored_points)


class _Ssd(_Ignoring, ssd.SSD):  # type: ignore[misc]
    pass


class LibraryRetinaNet(LibraryNetwork):
    """RetinaNet (Lin et al. 2017): focal loss over anchors on five levels."""

    loss_names = ("bbox", "class")
    loss_weights = (1.0, 1.0)
    terms = ("bbox_regression", "classification")
    strides = (8, 16, 32, 64, 128)

    def __init__(self, channels: int, classes: int, settings: Detection, start: float, backbone: str) -> None:
        body = _pyramid(backbone, channels)
        sizes = tuple(tuple(start * 2 ** (level + part / 3) for part in range(3)) for level in range(5))
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
        head = _RetinaHead(body.out_channels, anchors.num_anchors_per_location()[0], classes)
        detector = RetinaNet(
            body, classes, anchor_generator=anchors, head=head, score_thresh=settings.score, detections_per_img=MOST
        )
        super().__init__(detector, start)

    def loss_of(
        self,
        target: Outputs,
        outputs: Outputs,
        anchors: Tensor,
        size: tuple[int, int],  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        return cast(Outputs, self.detector.compute_loss([target], outputs, [anchors]))


class LibraryFcos(LibraryNetwork):
    """FCOS (Tian et al. 2019): no anchors but points, each with its distances to the four edges."""

    loss_names = ("bbox", "class", "centerness")
    loss_weights = (1.0, 1.0, 1.0)
    terms = ("bbox_regression", "classification", "bbox_ctrness")
    strides = (8, 16, 32, 64, 128)

    def __init__(self, channels: int, classes: int, settings: Detection, start: float, backbone: str) -> None:
        body = _pyramid(backbone, channels)
        points = AnchorGenerator(tuple((stride,) for stride in self.strides), ((1.0,),) * 5)
        head = _FcosHead(body.out_channels, 1, classes)
        detector = FCOS(
            body, classes, anchor_generator=points, head=head, score_thresh=settings.score, detections_per_img=MOST
        )
        super().__init__(detector, start)

    def loss_of(
        self, target: Outputs, outputs: Outputs, anchors: Tensor, size: tuple[int, int]
    ) -> Mapping[str, Tensor]:
        return cast(Outputs, self.detector.compute_loss([target], outputs, [anchors], self.per_level(outputs, size)))


class LibrarySsdlite(LibraryNetwork):
    """SSDlite on MobileNetV3-Large (Howard et al. 2019) for pictures of any size; small and fast."""

    loss_names = ("bbox", "class")
    loss_weights = (1.0, 1.0)
    terms = ("bbox_regression", "classification")
    strides = (16, 32, 64, 128, 256, 512)
    first_label = 1  # 0 is the background

    def __init__(self, channels: int, classes: int, settings: Detection, start: float) -> None:
        detector = ssdlite.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=classes + 1, score_thresh=settings.score,
            detections_per_img=MOST,
        )  # fmt: skip
        # The same network with our loss and with default boxes that begin at `start` of the picture's sides.
        boxes = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=start, max_ratio=0.95)
        own = _Ssd(
            detector.backbone, boxes, (320, 320), classes + 1, head=detector.head, score_thresh=settings.score,
            nms_thresh=detector.nms_thresh, detections_per_img=MOST, topk_candidates=detector.topk_candidates,
        )  # fmt: skip
        first = own.backbone.features[0][0][0]
        own.backbone.features[0][0][0] = with_channels(first, channels)
        super().__init__(own, start)

    def loss_of(
        self,
        target: Outputs,
        outputs: Outputs,
        anchors: Tensor,
        size: tuple[int, int],  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        if len(target["boxes"]):
            matched = self.detector.proposal_matcher(box_iou(target["boxes"], anchors))
        else:
            matched = torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        return cast(Outputs, self.detector.compute_loss([target], outputs, [anchors], [matched]))

    def decoded(self, outputs: Outputs, anchors: Tensor, sizes: list[tuple[int, int]]) -> list[Outputs]:
        found = self.detector.postprocess_detections(outputs, [anchors for _ in sizes], sizes)
        return cast("list[Outputs]", found)


def _pyramid(name: str, channels: int) -> Any:
    """A ResNet with a feature pyramid P3 to P7, as in both papers; batch normalisation learns, nothing is frozen."""
    body = backbone_utils.resnet_fpn_backbone(
        backbone_name=name, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5, returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )  # fmt: skip
    body.body.conv1 = with_channels(body.body.conv1, channels)
    return body


def with_channels(first: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The same convolution for another number of input channels."""
    if first.in_channels == channels:
        return first
    size, stride, padding = first.kernel_size, first.stride, first.padding
    adapted = nn.Conv2d(channels, first.out_channels, size, stride, padding, bias=first.bias is not None)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(adapted.weight, mode="fan_out", nonlinearity="relu")
    return adapted


def smallest_anchor(name: str, boxes: Boxes, size: tuple[int, int]) -> float:
    """Where anchors begin, so that small objects have some of their size.

    RetinaNet: side in pixels, 8, 16 or 32 (its paper's); SSDlite: a part of the picture's sides, about 0.04 to 0.2
    (torchvision's). All but the smallest tenth of the boxes are at least as large.
    """
    sides = boxes.corners[:, 2:] - boxes.corners[:, :2]
    sides = sides[(sides > 0).all(axis=1) & (boxes.classes != DONT_CARE)]
    smallest = float(np.quantile(np.sqrt(sides.astype(np.float64).prod(axis=1)), 0.1)) if len(sides) else 32.0
    if name == "ssdlite":
        part = smallest / math.sqrt(size[0] * size[1])
        return round(64 * min(0.2, max(0.04, part))) / 64  # exact as float32, which the buffer is
    return float(2 ** round(math.log2(min(32.0, max(8.0, smallest)))))
