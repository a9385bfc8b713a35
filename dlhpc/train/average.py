"""A moving average of the weights (EMA): it is what is measured and saved for prediction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averages of a network's trained parameters and of its floating-point statistics.

    After step t (from 1) an average is d·average + (1 − d)·weights with d = min(decay, (1 + t) / (10 + t)), so that it
    does not cling to the beginning (as in TensorFlow's ExponentialMovingAverage with ``num_updates``).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live: list[Tensor] = [one for one in network.parameters() if one.requires_grad]
        self._live += [one for one in network.buffers() if one.dtype == torch.float32]
        self._names = [name for name, one in network.named_parameters() if one.requires_grad]
        self._averages = [one.detach().clone() for one in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after ``step`` (from 1) into account."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, [one.detach() for one in self._live], 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Let the averages be what the network holds now."""
        for average, live in zip(self._averages, self._live):
            average.copy_(live)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the network holds the averages. Nothing is copied: both change places, twice."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def trained(self) -> dict[str, Tensor]:
        """Name → the weights that the optimiser moves; also inside of :meth:`in_place`."""
        there = self._averages if self._swapped else self._live
        return {name: one.detach() for name, one in zip(self._names, there)}

    _swapped = False

    def _swap(self) -> None:
        for number, live in enumerate(self._live):
            live.data, self._averages[number] = self._averages[number], live.data
        self._swapped = not self._swapped
