"""The spec's detection networks by name, fresh for data or as a checkpoint describes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlhpc.data.samples import Boxes
from dlhpc.errors import UserError
from dlhpc.spec.network import Detection
from dlhpc.train.detection.base import DetectionNetwork
from dlhpc.train.detection.detectnet import DetectNet, covered_share, typical_boxes

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


def fresh_network(
    name: str, options: dict[str, Any], channels: int, classes: int, boxes: Boxes, size: tuple[int, int],
    settings: Detection,
) -> DetectionNetwork:  # fmt: skip
    """A newly initialised network for pictures of ``size`` (height, width) with the training pictures' ``boxes``.

    ``options`` is ``network.options``: ``width`` (DetectNet) or ``backbone`` (RetinaNet, FCOS). The caller seeds
    torch's generator, which decides the weights.
    """
    if name == "detectnet":
        covered = covered_share(boxes, classes, size, settings)
        width = detectnet_width(options)
        return DetectNet(channels, typical_boxes(boxes, classes), settings, width=width, covered=covered)
    from dlhpc.train.detection.library import smallest_anchor

    return _library(name, options, channels, classes, smallest_anchor(name, boxes, size), settings)


def network_of(
    name: str, options: dict[str, Any], channels: int, classes: int, settings: Detection, weights: dict[str, Tensor]
) -> DetectionNetwork:
    """The network of a checkpoint with its ``weights``; raises KeyError and what ``load_state_dict`` raises."""
    network: DetectionNetwork
    if name == "detectnet":
        with torch.device("meta"):  # weights come from the file; drawing random ones first would only cost time
            network = DetectNet(channels, torch.ones(classes, 2), settings, width=detectnet_width(options))
    else:  # anchors are no weights: they must be made, not left empty
        network = _library(name, options, channels, classes, float(weights["start"]), settings)
    network.load_state_dict(weights, assign=True)
    return network


def _library(
    name: str, options: dict[str, Any], channels: int, classes: int, start: float, settings: Detection
) -> DetectionNetwork:
    from dlhpc.train.detection.library import LibraryFcos, LibraryRetinaNet, LibrarySsdlite

    if name == "ssdlite":
        _only(options, name, ())
        return LibrarySsdlite(channels, classes, settings, start)
    kinds: dict[str, Callable[..., DetectionNetwork]] = {"retinanet": LibraryRetinaNet, "fcos": LibraryFcos}
    if name not in kinds:
        raise ValueError(f"no network for detection is called {name}")
    _only(options, name, ("backbone",))
    backbone = options.get("backbone", "resnet50")
    if backbone not in _RESNETS:
        raise UserError(
            f"network.options.backbone is {backbone!r}, which {name} does not know",
            remedy=f"Choose one of {', '.join(_RESNETS)}.",
        )
    return kinds[name](channels, classes, settings, start, backbone)


def detectnet_width(options: dict[str, Any]) -> float:
    """``network.options.width``: the part of DetectNet's channels, 1 if not given."""
    _only(options, "detectnet", ("width",))
    width = options.get("width", 1.0)
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0.05 <= width <= 2:
        raise UserError(
            f"network.options.width is {width!r}; it is a factor on the channels of DetectNet's layers",
            remedy="Give a number from 0.05 to 2; 1 is NVIDIA's network.",
        )
    return float(width)


def _only(options: dict[str, Any], name: str, known: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        remedy = f"It knows {', '.join(known)}." if known else "It has none: leave network.options away."
        raise UserError(f"{name} has no option {', '.join(unknown)}", remedy=remedy)
