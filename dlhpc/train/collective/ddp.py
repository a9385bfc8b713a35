"""torch's own process groups, over NCCL for tensors on GPUs and Gloo for all others; needs neither Horovod nor MPI.

Gradients are summed in our buckets (``dlhpc.train.gradients``), not by ``DistributedDataParallel``: what DDP is good
for, an allreduce that goes on during the backward pass, they do as well, and all strategies share one set of rules.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dlhpc.errors import UserError
from dlhpc.train.collective import base
from dlhpc.train.collective.base import LostContact
from dlhpc.train.collective.meeting import meet

PATIENCE = timedelta(minutes=10)
"""How long an operation may wait for the other ranks. A rank that ended is noticed at once, a node that lost its power
only by this; the longest that ranks may be apart otherwise is a checkpoint on a slow file system."""

_FAREWELL_S = 10.0  # that rank 0, which the others still talk to while they leave, waits for them


class DdpCollective:
    """Ranks that find each other by the file ``meeting`` on shared storage; ``rank`` and ``size`` by their launcher."""

    def __init__(self, rank: int, size: int, meeting: Path) -> None:
        self.rank, self.size = rank, size
        met = meet(meeting, rank, size)
        self.local_rank, self.local_size = met.local_rank, met.local_size
        self._store = met.store
        on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
        self.name = "ddp-nccl" if on_gpus else "ddp-gloo"
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        self._ask(
            lambda: dist.init_process_group(backend, store=met.store, rank=rank, world_size=size, timeout=PATIENCE)
        )
        # A second group, because within one all ranks must begin all operations in one order, and a bucket of gradients
        # may begin on one rank before, on another after an operation inside a layer.
        self._buckets: Any = self._ask(lambda: dist.new_group(backend=backend, timeout=PATIENCE))

    def allreduce_async(self, tensor: Tensor, name: str, *, adasum: bool = False) -> Any:  # noqa: ARG002
        if adasum:
            raise UserError("only Horovod knows Adasum", remedy="Set distributed.strategy to horovod.")
        return self._ask(lambda: dist.all_reduce(tensor, group=self._buckets, async_op=True))

    def wait(self, handle: Any) -> None:
        self._ask(handle.wait)

    def sum(self, tensor: Tensor) -> Tensor:
        self._ask(lambda: dist.all_reduce(tensor))
        return tensor

    def broadcast(self, tensor: Tensor) -> None:
        self._ask(lambda: dist.broadcast(tensor, src=0))

    def gather(self, tensor: Tensor) -> Tensor:
        gathered = tensor.new_empty((self.size, *tensor.shape))
        self._ask(lambda: dist.all_gather(list(gathered.unbind()), tensor.contiguous()))
        return gathered

    def gather_json(self, value: Any) -> list[Any]:
        return base.gather_json(self, value)

    def share_json(self, value: Any) -> Any:
        return base.share_json(self, value)

    def barrier(self) -> None:
        self.sum(torch.zeros(1))  # torch's own would take a GPU

    def shutdown(self) -> None:
        dist.destroy_process_group()
        with contextlib.suppress(RuntimeError):  # whoever is gone already needs no farewell
            left = self._store.add("left", 1)
            until = time.monotonic() + _FAREWELL_S
            while self.rank == 0 and left < self.size and time.monotonic() < until:
                time.sleep(0.01)
                left = self._store.add("left", 0)

    def _ask(self, operation: Callable[[], Any]) -> Any:
        try:
            return operation()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # Gloo has no class of errors of its own
            raise LostContact(
                f"lost contact with the other ranks ({str(error).splitlines()[0]})",
                remedy="See the log for the rank that failed first; the run goes on from its last checkpoint.",
            ) from error
