"""Horovod, over whichever of MPI, NCCL and Gloo it was built with and started by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlhpc.errors import UserError
from dlhpc.train.collective import base
from dlhpc.train.collective.base import LostContact


class HorovodCollective:
    """The ranks that mpirun, srun or horovodrun has started.

    Operations have names, and Horovod brings those of the same name together; ours are functions of what is sent, since
    Horovod caches what it has agreed on for a name.
    """

    def __init__(self) -> None:
        try:
            import horovod.torch as hvd
        except ImportError as error:
            raise UserError(
                f"Horovod cannot be loaded: {error}",
                remedy="Build the software environment again (`dlhpc env build`), set distributed.strategy to ddp, "
                "or ask for one rank in the spec.",
            ) from error
        hvd.init()
        self._hvd = hvd
        self.name = "horovod-mpi" if hvd.mpi_enabled() else "horovod-gloo"
        self.rank, self.size = int(hvd.rank()), int(hvd.size())
        self.local_rank, self.local_size = int(hvd.local_rank()), int(hvd.local_size())

    def allreduce_async(self, tensor: Tensor, name: str, *, adasum: bool = False) -> Any:
        if tensor.dtype == torch.bfloat16:
            return self._ask(lambda: _BfloatSum.begin(self._hvd, tensor, name))
        operation = self._hvd.Adasum if adasum else self._hvd.Sum
        return self._ask(lambda: self._hvd.allreduce_async_(tensor, name=name, op=operation))

    def wait(self, handle: Any) -> None:
        if isinstance(handle, _BfloatSum):
            self._ask(handle.finish)
        else:
            self._ask(lambda: self._hvd.synchronize(handle))

    def sum(self, tensor: Tensor) -> Tensor:
        self.wait(self.allreduce_async(tensor, f"sum.{_kind(tensor)}"))
        return tensor

    def broadcast(self, tensor: Tensor) -> None:
        sent = _as_known(tensor)
        self._ask(lambda: self._hvd.broadcast_(sent, root_rank=0, name=f"broadcast.{_kind(sent)}"))

    def gather(self, tensor: Tensor) -> Tensor:
        sent = _as_known(tensor[None].contiguous())
        gathered: Tensor = self._ask(lambda: self._hvd.allgather(sent, name=f"gather.{_kind(sent)}"))
        return gathered.view(tensor.dtype).reshape(self.size, *tensor.shape)

    def gather_json(self, value: Any) -> list[Any]:
        return base.gather_json(self, value)

    def share_json(self, value: Any) -> Any:
        return base.share_json(self, value)

    def barrier(self) -> None:
        self._ask(self._hvd.barrier)

    def shutdown(self) -> None:
        self._hvd.shutdown()

    def _ask(self, operation: Any) -> Any:
        try:
            return operation()
        except self._hvd.HorovodInternalError as error:
            raise LostContact(
                "lost contact with the other ranks",
                remedy="See the log for the rank that failed first; the run goes on from its last checkpoint.",
            ) from error


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype}.{tuple(tensor.shape)}"


def _as_known(tensor: Tensor) -> Tensor:
    """The same memory as a type that Horovod knows; it refuses bfloat16 and bool."""
    return tensor.flatten().view(torch.uint8) if tensor.dtype in (torch.bfloat16, torch.bool) else tensor


@dataclass
class _BfloatSum:
    """A sum of bfloat16, which Horovod cannot add: it only carries the bytes.

    Each rank gets its part of the tensor from all others (alltoall), adds in float32, and gives the rounded sum to all
    (allgather). As many bytes go over the network as in an allreduce by a ring, and the sum is rounded only once.
    """

    hvd: Any
    tensor: Tensor
    name: str
    handle: Any

    @classmethod
    def begin(cls, hvd: Any, tensor: Tensor, name: str) -> _BfloatSum:
        size = int(hvd.size())
        length = -(-tensor.numel() // size)
        padded = torch.zeros(size * length, dtype=torch.bfloat16, device=tensor.device)
        padded[: tensor.numel()] = tensor.flatten()
        return cls(hvd, tensor, name, hvd.alltoall_async(padded.view(torch.uint8), name=f"{name}.parts"))

    def finish(self) -> None:
        answer = self.hvd.synchronize(self.handle)
        received: Tensor = answer[0] if isinstance(answer, tuple) else answer
        parts = received.view(torch.bfloat16).reshape(int(self.hvd.size()), -1)
        mine = parts.to(torch.float32).sum(dim=0).to(torch.bfloat16)
        everything: Tensor = self.hvd.allgather(mine.view(torch.uint8), name=f"{self.name}.sums")
        self.tensor.copy_(everything.view(torch.bfloat16)[: self.tensor.numel()].reshape(self.tensor.shape))
