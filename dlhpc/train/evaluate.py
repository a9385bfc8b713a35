"""Measuring a network over a whole split: every sample once, however many ranks share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dlhpc.data.samples import Batch
from dlhpc.train.collective import Collective
from dlhpc.train.feed import feed_batches
from dlhpc.train.memory import does_not_suffice, is_out_of_memory, tidy_up
from dlhpc.train.precision import PrecisionName, autocast
from dlhpc.train.tasks.base import Evaluation, Measure, Task


class RankState:
    """A network's running statistics: each rank has its own, learnt from its own pictures.

    Floating-point ones travel as one float32 vector, counters as one int64 vector.
    """

    def __init__(self, network: nn.Module) -> None:
        buffers = list(network.buffers())
        # float64 buffers are constants: means and deviations of targets, which float32 would round.
        self._floats = [buffer for buffer in buffers if buffer.dtype == torch.float32]
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
    task: Task,
    batches_of: Callable[[int], Iterable[Batch]],
    batch_size: int,
    precision: PrecisionName,
    device: torch.device,
    collective: Collective,
) -> tuple[Evaluation, int]:
    """Measure the task's network over this rank's batches and all others', and say how large batches may be.

    ``batches_of(n)`` gives batches of at most ``n`` samples; where memory does not suffice for ``batch_size``, a rank
    measures its share again with half of it. All ranks get the same answers.
    """
    task.model.eval()
    try:
        while (measure := _measured(task, batches_of(batch_size), precision, device)) is None:
            tidy_up(device)
            if batch_size == 1:
                raise does_not_suffice("measuring")
            batch_size = -(-batch_size // 2)
    finally:
        task.model.train()
    smallest = min(collective.gather_json(batch_size))
    return measure.finish(collective), smallest


def _measured(task: Task, batches: Iterable[Batch], precision: PrecisionName, device: torch.device) -> Measure | None:
    """What the network says of the batches; ``None`` if memory does not suffice."""
    measure = task.measure()
    try:
        with autocast(precision, device):
            for batch in feed_batches(batches, device):
                measure.add(batch)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return None
        raise
    return measure
