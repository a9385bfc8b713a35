"""How ranks talk to each other: a small interface, with Horovod (MPI or Gloo) or a single process behind it."""

from __future__ import annotations

import json
import os
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from dlhpc.errors import CommandError, UserError


class LostContact(CommandError):
    """Another rank went away in the middle of a collective operation. It, not we, knows why."""


class Collective(Protocol):
    """What the trainer asks of a group of ranks. Every operation is called by all ranks in the same order."""

    name: str
    """``horovod-mpi``, ``horovod-gloo`` or ``single``."""
    rank: int
    size: int
    local_rank: int
    """Number of this rank on its node: which GPU it takes."""

    def allreduce_async(self, tensor: Tensor, name: str) -> Any:
        """Begin to replace ``tensor`` by the sum over all ranks; gives a handle for :meth:`wait`."""

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

    def allreduce_async(self, tensor: Tensor, name: str) -> Any:  # noqa: ARG002
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


class HorovodCollective:
    """Horovod, over whichever of MPI and Gloo the launcher chose."""

    def __init__(self) -> None:
        try:
            import horovod.torch as hvd
        except ImportError as error:
            raise UserError(
                f"Horovod cannot be loaded: {error}",
                remedy="Build the software environment again (`dlhpc env build`), or ask for one rank in the spec.",
            ) from error
        hvd.init()
        self._hvd = hvd
        self.name = "horovod-mpi" if hvd.mpi_enabled() else "horovod-gloo"
        self.rank = int(hvd.rank())
        self.size = int(hvd.size())
        self.local_rank = int(hvd.local_rank())

    def allreduce_async(self, tensor: Tensor, name: str) -> Any:
        return self._ask(lambda: self._hvd.allreduce_async_(tensor, name=name, op=self._hvd.Sum))

    def wait(self, handle: Any) -> None:
        self._ask(lambda: self._hvd.synchronize(handle))

    def sum(self, tensor: Tensor) -> Tensor:
        # The name is a function of the shape: Horovod caches what it has agreed on for a name.
        self.wait(self.allreduce_async(tensor, f"sum.{tensor.dtype}.{tuple(tensor.shape)}"))
        return tensor

    def broadcast(self, tensor: Tensor) -> None:
        name = f"broadcast.{tensor.dtype}.{tuple(tensor.shape)}"
        self._ask(lambda: self._hvd.broadcast_(tensor, root_rank=0, name=name))

    def gather(self, tensor: Tensor) -> Tensor:
        name = f"gather.{tensor.dtype}.{tuple(tensor.shape)}"
        gathered: Tensor = self._ask(lambda: self._hvd.allgather(tensor[None].contiguous(), name=name))
        return gathered

    def gather_json(self, value: Any) -> list[Any]:
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(content)])).flatten().tolist()
        joined: Tensor = self._ask(lambda: self._hvd.allgather(content, name="json"))
        content_of = iter(bytes(joined.tolist()))
        return [json.loads(bytes(islice(content_of, length))) for length in lengths]

    def share_json(self, value: Any) -> Any:
        content = json.dumps(value).encode() if self.rank == 0 else b""
        length = torch.tensor([len(content)])
        self.broadcast(length)
        buffer = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.broadcast(buffer)
        return json.loads(bytes(buffer.tolist()))

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


def join(launcher: str, ranks: int) -> Collective:
    """Join the group that the launcher made; :class:`UserError` if it has not the planned number of ranks.

    Ranks that do not find each other would each take themselves for rank 0 and write over each other's files.
    """
    collective: Collective = SingleCollective() if launcher == "none" else HorovodCollective()
    if collective.size != ranks:
        raise UserError(
            f"the plan has {ranks} ranks, but {collective.size} found each other through `{launcher}`",
            remedy="Horovod was built for another MPI than the launcher's: build the environment again, "
            "or set the site's launcher to gloo.",
        )
    return collective


def rank_hint() -> int:
    """This process' rank as its launcher tells it, before any group is joined; 0 if nothing is said."""
    for name in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"):
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return 0
