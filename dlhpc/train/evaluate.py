"""Measuring a network over a whole split: every sample once, however many ranks share them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dlhpc.data.samples import Batch
from dlhpc.train.collective import Collective
from dlhpc.train.tasks.base import Evaluation, Task, to_device


class RankState:
    """A network's running statistics: each rank has its own, learnt from its own pictures.

    Floating-point ones travel as one float32 vector, counters as one int64 vector.
    """

    def __init__(self, network: nn.Module) -> None:
        buffers = list(network.buffers())
        self._floats = [buffer for buffer in buffers if buffer.is_floating_point()]
        self._counters = [buffer for buffer in buffers if not buffer.is_floating_point()]

    @torch.no_grad()
    def read(self) -> tuple[Tensor, Tensor]:
        """Copies on the CPU: float32 of all statistics, int64 of all counters."""
        floats = [buffer.detach().cpu().flatten().to(torch.float32) for buffer in self._floats]
        counters = [buffer.detach().cpu().flatten().to(torch.int64) for buffer in self._counters]
        return torch.cat([torch.zeros(0), *floats]), torch.cat([torch.zeros(0, dtype=torch.int64), *counters])

    def gather(self, collective: Collective) -> tuple[Tensor, Tensor]:
        """What :meth:`read` gives on each rank: ranks×F and ranks×I."""
        floats, counters = self.read()
        if not len(floats) + len(counters):
            return floats.expand(collective.size, 0).clone(), counters.expand(collective.size, 0).clone()
        return collective.gather(floats), collective.gather(counters)

    @torch.no_grad()
    def write(self, floats: Tensor, counters: Tensor) -> None:
        """Put back what :meth:`read` gave."""
        for buffers, values in ((self._floats, floats), (self._counters, counters)):
            offset = 0
            for buffer in buffers:
                buffer.copy_(values[offset : offset + buffer.numel()].reshape(buffer.shape))
                offset += buffer.numel()

    @contextmanager
    def averaged(self, collective: Collective) -> Iterator[None]:
        """Inside, every rank has the mean statistics of all ranks; afterwards its own again, to the last bit."""
        floats, counters = self.read()
        if len(floats) and collective.size > 1:
            self.write(collective.sum(floats.to(torch.float64)).div_(collective.size), counters)
        try:
            yield
        finally:
            self.write(floats, counters)


@torch.no_grad()
def evaluate(task: Task, batches: Iterable[Batch], device: torch.device, collective: Collective) -> Evaluation:
    """Measure the task's network over this rank's ``batches`` and all others'."""
    measure = task.measure()
    task.model.eval()
    for batch in batches:
        if len(batch):
            measure.add(to_device(batch, device))
    task.model.train()
    return measure.finish(collective)
