"""What a user says about the network, and about what is special to detection."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dlhpc.spec.base import Model, OneOrMore

ClassifierName = Literal["lenet", "smallnet", "alexnet", "googlenet", "resnet18", "resnet50"]
DetectorName = Literal["detectnet", "ssdlite", "retinanet", "fcos"]
NetworkName = Literal[
    "lenet", "smallnet", "alexnet", "googlenet", "resnet18", "resnet50", "mlp", "detectnet", "ssdlite", "retinanet",
    "fcos",
]  # fmt: skip

DETECTORS = ("detectnet", "ssdlite", "retinanet", "fcos")

SMALLEST_INPUT: dict[str, int] = {
    "lenet": 16, "smallnet": 16, "alexnet": 63, "googlenet": 32, "resnet18": 32, "resnet50": 32, "mlp": 1,
    "detectnet": 64, "ssdlite": 64, "retinanet": 64, "fcos": 64,
}  # fmt: skip
"""Pixels below which a network's pooling leaves nothing of the picture."""


class Network(Model):
    """The network to train. Input channels and outputs are adapted to the data."""

    name: NetworkName = "alexnet"
    """If absent: alexnet for classification, detectnet for detection, smallnet (pictures) or mlp (tables) for
    regression; mlp also for classification of tables."""
    file: str | None = None
    """Your own network: a Python file with a function `network(shape, **options)`; see the user guide. `name` is then
    not used."""
    options: dict[str, Any] = {}
    """Given to the function of `file`. Without one: detectnet takes {width: 0.25}, a factor on the channels of all its
    layers; retinanet and fcos take {backbone: resnet18} (or resnet34, resnet50, resnet101)."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128, 128)
    """mlp: widths of the hidden layers."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """mlp: fraction of hidden values that are set to zero in training."""
    pretrained: str | None = None
    """Begin with trained weights: `torchvision` (ImageNet weights that staff placed in the environment), a run (name,
    `last`, or its folder), or a file (.safetensors, or .pth with plain tensors). Layers that do not fit, such as the
    last one for other classes, begin anew and are named."""
    freeze: Annotated[tuple[str, ...], OneOrMore] = ()
    """Layers that stay as they are: beginnings of parameter names, for example `features` or [conv1, layer1]."""


class Detection(Model):
    """What is special to detection; the defaults are those of DIGITS' DetectNet."""

    shrink: Annotated[float, Field(gt=0, le=1)] = 0.4
    """DetectNet: the part of a box, about its centre, whose cells learn to see the object."""
    min_covered: Annotated[float, Field(ge=1)] = 20.0
    """DetectNet: this part has at least so many pixels, though never more than the box."""
    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """DetectNet: cells that are so sure propose a box."""
    group_threshold: Annotated[int, Field(ge=0)] = 3
    """DetectNet: a box needs more than so many similar proposals (OpenCV's groupRectangles); 0 takes each."""
    group_eps: Annotated[float, Field(gt=0)] = 0.2
    """DetectNet: proposals are similar if their edges differ by no more than this part of their size (mean of width and
    height), OpenCV's eps. DIGITS' 0.02 was of something else: its layer gave corners where OpenCV expects sizes."""
    min_height: Annotated[float, Field(ge=0)] = 22.0
    """DetectNet: lower boxes are not reported."""
    score: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """ssdlite, retinanet, fcos: weaker detections are not reported."""
    match_iou: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """A detection counts for precision and recall if it overlaps a true box so much (intersection over union)."""
