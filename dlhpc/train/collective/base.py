"""What the trainer asks of a group of ranks, and the group of one."""

from __future__ import annotations

import json
from typing import Any, Protocol

import torch
from torch import Tensor

from dlhpc.errors import CommandError


class LostContact(CommandError):
    """Another rank went away in the middle of a collective operation. It, not we, knows why."""


class Collective(Protocol):
    """What the trainer asks of a group of ranks. Every operation is called by all ranks in the same order.

    Tensors may be of any type that torch has, on the CPU or on the rank's GPU, and are contiguous.
    """

    name: str
    """``horovod-mpi``, ``horovod-gloo``, ``ddp-gloo``, ``ddp-nccl`` or ``single``."""
    rank: int
    size: int
    local_rank: int
    """Number of this rank on its node: which GPU and which cores it takes."""
    local_size: int
    """Ranks on this rank's node."""

    def allreduce_async(self, tensor: Tensor, name: str, *, adasum: bool = False) -> Any:
        """Begin to replace ``tensor`` by the sum over all ranks; gives a handle for :meth:`wait`.

        In half precision (float16, bfloat16) the sum is rounded to it, once at least. All ranks get the same bits.
        ``adasum`` combines by Adasum instead, where the group can (:class:`UserError` elsewhere). Operations of other
        kinds may be asked for before this one is waited for.
        """

    def wait(self, handle: Any) -> None:
        """Return when the operation is done and the tensor may be read."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor`` by the sum over all ranks, and give it back."""

    def broadcast(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by that of rank 0."""

    def gather(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors below each other: shape n becomes ranks×n. All must have the same shape and type."""

    def gather_json(self, value: Any) -> list[Any]:
        """A small JSON-able value of each rank, in order of rank."""

    def share_json(self, value: Any) -> Any:
        """The JSON-able value of rank 0."""

    def barrier(self) -> None:
        """Return when all ranks are here."""

    def shutdown(self) -> None:
        """Leave the group; nothing may be called afterwards."""


class SingleCollective:
    """One process alone; needs neither Horovod nor MPI."""

    name = "single"
    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def allreduce_async(self, tensor: Tensor, name: str, *, adasum: bool = False) -> Any:  # noqa: ARG002
        return None

    def wait(self, handle: Any) -> None:
        pass

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def broadcast(self, tensor: Tensor) -> None:
        pass

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor.clone()[None]

    def gather_json(self, value: Any) -> list[Any]:
        return [value]

    def share_json(self, value: Any) -> Any:
        return value

    def barrier(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


def gather_json(collective: Collective, value: Any) -> list[Any]:
    """:meth:`Collective.gather_json` out of :meth:`Collective.gather`."""
    content = bytearray(json.dumps(value).encode())
    lengths = collective.gather(torch.tensor(len(content))).tolist()
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(content)] = torch.frombuffer(content, dtype=torch.uint8)
    rows = collective.gather(padded)
    return [json.loads(row[:length].numpy().tobytes()) for row, length in zip(rows, lengths, strict=True)]


def share_json(collective: Collective, value: Any) -> Any:
    """:meth:`Collective.share_json` out of :meth:`Collective.broadcast`."""
    content = bytearray(json.dumps(value).encode() if collective.rank == 0 else b"")
    length = torch.tensor(len(content))
    collective.broadcast(length)
    buffer = torch.zeros(int(length), dtype=torch.uint8)
    if collective.rank == 0:
        buffer = torch.frombuffer(content, dtype=torch.uint8)
    collective.broadcast(buffer)
    return json.loads(buffer.numpy().tobytes())
