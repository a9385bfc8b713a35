"""A network and a measure of one's own, for dlhpc: own_network.yaml names this file."""

from __future__ import annotations

import torch
from torch import nn


class Residual(nn.Module):
    """Two convolutions whose result is added to what came in (He et al. 2016)."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, pictures):
        return torch.relu(pictures + self.body(pictures))


def network(shape, width=16, blocks=2):
    """`shape` tells what comes in and what must come out; `width` and `blocks` are `network.options` of the spec."""
    return nn.Sequential(
        nn.Conv2d(shape.channels, width, 5, stride=2, padding=2), nn.ReLU(),
        *[Residual(width) for _ in range(blocks)],
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(width * 16, shape.outputs),
    )  # fmt: skip


def measures(outputs, targets):
    """Further curves: the mean over all validation pictures of one number a picture."""
    probabilities = outputs.softmax(dim=1)
    return {"sure_and_wrong": (probabilities.amax(dim=1) > 0.9) & (outputs.argmax(dim=1) != targets)}
