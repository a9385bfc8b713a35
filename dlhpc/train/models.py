"""The networks, and the normalisation in front of them, so that a weights file is all that prediction needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

AUXILIARY_WEIGHT = 0.3  # of GoogLeNet's side classifiers in the training loss: Szegedy et al. 2015, DIGITS, Caffe


class Preprocess(nn.Module):
    """Raw N×C×H×W pictures (uint8 or uint16) to normalised float32: (x / full scale − mean) / std.

    ``mean`` is C×1×1 or, for a mean picture, C×H×W; ``std`` is C×1×1. Both are buffers on the scale where full is 1.
    Rows of a table (N×F float32) have no full scale: mean and std are F values in the table's own units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.to(torch.float32))
        self.register_buffer("std", std.to(torch.float32))

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.is_floating_point():
            return (pictures - self.mean) / self.std
        full = 255.0 if pictures.dtype == torch.uint8 else 65535.0
        scaled = pictures.to(torch.float32).div_(full)
        return scaled.sub_(self.mean).div_(self.std).contiguous(memory_format=torch.channels_last)


def preprocess_for(
    normalize: Literal["pixel", "image", "none"],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    mean_image: NDArray[np.float32] | None,
    height: int,
    width: int,
) -> Preprocess:
    """The normalisation that a spec asks for, for pictures of ``height``×``width`` after the crop.

    ``mean`` and ``std`` have one value a channel; ``mean_image`` (C×H×W, needed for ``image``) is cropped from its
    centre, also for randomly placed crops.
    """
    channels = len(mean)
    if normalize == "none":
        return Preprocess(torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1))
    scale = torch.from_numpy(std).reshape(channels, 1, 1)
    if normalize == "pixel" or mean_image is None:
        return Preprocess(torch.from_numpy(mean).reshape(channels, 1, 1), scale)
    top, left = (mean_image.shape[1] - height) // 2, (mean_image.shape[2] - width) // 2
    centre = np.ascontiguousarray(mean_image[:, top : top + height, left : left + width])
    return Preprocess(torch.from_numpy(centre), scale)


class Outputs(NamedTuple):
    """Class scores N×K before the softmax, and those of side classifiers while training."""

    scores: Tensor
    auxiliary: tuple[Tensor, ...] = ()


class Model(nn.Module):
    """Normalisation and network as one: raw inputs in, scores out. Its ``state_dict`` is the weights file.

    With ``partner`` (n int64) and ``share`` (n float32) the normalised samples are mixed: sample i becomes ``share[i]``
    of itself and the rest of sample ``partner[i]`` (MixUp).
    """

    several_labels = False
    """Classification: whether each class is a yes or no of its own."""

    def __init__(self, preprocess: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor, partner: Tensor | None = None, share: Tensor | None = None) -> Outputs:
        normalised = self.preprocess(inputs)
        if partner is not None and share is not None:
            own = share.reshape(-1, *[1] * (normalised.dim() - 1)).to(normalised.dtype)
            normalised = normalised[partner].lerp_(normalised, own)
        answer: Any = self.network(normalised)
        if isinstance(answer, Tensor):
            return Outputs(answer)
        return Outputs(answer.logits, (answer.aux_logits1, answer.aux_logits2))

    def probabilities(self, inputs: Tensor) -> Tensor:
        """Of each class (N×K): they sum to 1, or with several labels each is for itself."""
        scores: Tensor = self(inputs).scores.float()
        return scores.sigmoid() if self.several_labels else scores.softmax(dim=1)


def with_auxiliary(outputs: Outputs, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """``loss`` of the scores, and that plus the weighted losses of side classifiers, which is what is trained on."""
    main = loss(outputs.scores)
    total = main
    for side in outputs.auxiliary:
        total = total + AUXILIARY_WEIGHT * loss(side)
    return main, total


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """The layers that normalise by the statistics of a batch."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def running_statistics(layers: list[nn.Module]) -> Iterator[None]:
    """Let batch normalisation use its running statistics: one picture alone has no variance to divide by."""
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def build_network(name: str, channels: int, classes: int, height: int, width: int) -> nn.Module:
    """A freshly initialised network of the spec's ``network.name`` for N×``channels``×``height``×``width`` pictures.

    Torchvision's networks keep their architecture; only the first convolution takes ``channels`` and the last layer
    gives ``classes`` scores. The caller seeds torch's generator, which decides the weights.
    """
    if name == "lenet":
        return lenet(channels, classes, height, width)
    if name == "smallnet":
        return smallnet(channels, classes)
    import torchvision

    match name:
        case "alexnet":
            network: Any = torchvision.models.alexnet(weights=None, num_classes=classes)
            network.features[0] = _with_channels(network.features[0], channels)
        case "googlenet":
            network = torchvision.models.googlenet(
                weights=None, num_classes=classes, aux_logits=True, transform_input=False, init_weights=True
            )
            network.conv1.conv = _with_channels(network.conv1.conv, channels)
        case "resnet18" | "resnet50":
            network = getattr(torchvision.models, name)(weights=None, num_classes=classes)
            network.conv1 = _with_channels(network.conv1, channels)
        case _:
            raise ValueError(f"no network is called {name}")
    return cast(nn.Module, network)


def _with_channels(first: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The same convolution for another number of input channels."""
    if first.in_channels == channels:
        return first
    adapted = nn.Conv2d(
        channels,
        first.out_channels,
        cast("tuple[int, int]", first.kernel_size),
        stride=cast("tuple[int, int]", first.stride),
        padding=cast("tuple[int, int]", first.padding),
        bias=first.bias is not None,
    )
    nn.init.kaiming_normal_(adapted.weight, mode="fan_out", nonlinearity="relu")
    return adapted


def lenet(channels: int, classes: int, height: int, width: int) -> nn.Module:
    """Caffe's LeNet (examples/mnist/lenet_train_test.prototxt; after LeCun et al. 1998, with rectifiers).

    conv 20×5×5 → max-pool 2 → conv 50×5×5 → max-pool 2 → 500 → rectifier → classes; Xavier weights, zero biases.
    """
    rows, columns = (((size - 4) // 2 - 4) // 2 for size in (height, width))
    network = nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * rows * columns, 500),
        nn.ReLU(),
        nn.Linear(500, classes),
    )
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def smallnet(channels: int, classes: int) -> nn.Module:
    """Four blocks of convolution 3×3, batch normalisation, max-pooling and rectifier, for pictures of 32 to 128 pixels.

    It learns from a handful of pictures a class and trains in a minute on two cores.
    """
    layers: list[nn.Module] = []
    before = channels
    for width in (16, 32, 64, 128):
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers += [nn.MaxPool2d(2), nn.ReLU()]  # the same numbers as the other way round, for a quarter of the work
        before = width
    layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(before * 16, classes)]
    return nn.Sequential(*layers)
