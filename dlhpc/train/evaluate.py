"""Measuring a network over a whole split: every picture once, however many ranks share them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlhpc.data.batches import Batch
from dlhpc.train.collective import Collective

TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """Numbers over the whole split; ``confusion`` is K×K counts, truth × predicted."""

    loss: float
    accuracy: float
    top5_accuracy: float | None
    """``None`` where there are no more than five classes."""
    confusion: list[list[int]]


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
def evaluate(
    model: nn.Module, batches: Iterable[Batch], classes: int, device: torch.device, collective: Collective
) -> Evaluation:
    """Measure ``model`` over this rank's ``batches`` and all others'. Sums are float64, divided by real counts."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, right among the top five
    confusion = torch.zeros(classes * classes, dtype=torch.float64, device=device)
    for batch in batches:
        if not len(batch.labels):
            continue
        labels = torch.from_numpy(batch.labels).to(device)
        scores = model(torch.from_numpy(batch.pictures).to(device)).scores
        sums[0] += functional.cross_entropy(scores, labels, reduction="sum")
        if classes > TOP:
            sums[1] += (scores.topk(TOP, dim=1).indices == labels[:, None]).sum()
        confusion += torch.bincount(labels * classes + scores.argmax(dim=1), minlength=classes * classes)
    model.train()
    total = collective.sum(torch.cat([sums, confusion]).cpu())
    table = total[2:].reshape(classes, classes)
    count = max(1.0, float(table.sum()))
    rows: Any = table.to(torch.int64).tolist()
    return Evaluation(
        loss=float(total[0]) / count,
        accuracy=float(table.trace()) / count,
        top5_accuracy=float(total[1]) / count if classes > TOP else None,
        confusion=rows,
    )
