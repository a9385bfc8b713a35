"""How ranks talk to each other: one small interface; behind it Horovod, torch's own groups (DDP), or a single process.

``base`` holds the interface, ``horovod`` and ``ddp`` what stands behind it, ``meeting`` how ranks without MPI find each
other, ``cores`` on which cores of its node a rank computes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from dlhpc.errors import UserError
from dlhpc.train.collective.base import Collective, LostContact, SingleCollective

__all__ = ["Collective", "LostContact", "SingleCollective", "join", "placement", "rank_hint"]

Strategy = Literal["auto", "horovod", "ddp"]

_TOLD_BY = {
    "torchrun": (("RANK", "WORLD_SIZE"),),
    "srun": (("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), ("SLURM_PROCID", "SLURM_NTASKS")),
}
"""Launcher → the pairs of variables that may tell a process its rank and the number of ranks."""
# A process of mpirun may see Slurm's variables too: those of the whole job, or of mpirun's own helper on the node.
_TOLD_BY_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MP_CHILD", "MP_PROCS"),  # poe
    ("SLURM_PROCID", "SLURM_NTASKS"),
)


def join(launcher: str, ranks: int, strategy: Strategy = "auto", meeting: Path | None = None) -> Collective:
    """Join the group that the launcher made; :class:`UserError` if it has not the planned number of ranks.

    ``meeting`` is a file on storage that all ranks share, by which DDP's ranks find each other.
    Ranks that do not find each other would each take themselves for rank 0 and write over each other's files.
    """
    if launcher == "none":
        collective: Collective = SingleCollective()
        _check_size(collective.size, ranks, launcher)
    elif _with_horovod(launcher, strategy):
        from dlhpc.train.collective.horovod import HorovodCollective

        collective = HorovodCollective()
        _check_size(collective.size, ranks, launcher)
    else:
        from dlhpc.train.collective.ddp import DdpCollective

        rank, size = placement(launcher, os.environ)
        _check_size(size, ranks, launcher)  # before anybody waits for ranks that nobody started
        if meeting is None:
            raise ValueError("DDP's ranks need a file to meet by")
        collective = DdpCollective(rank, size, meeting)
    return collective


def _with_horovod(launcher: str, strategy: Strategy) -> bool:
    """The plan has chosen the launcher by the strategy; only one of MPI or Slurm leaves open who uses it."""
    if strategy != "auto":
        return strategy == "horovod"
    if launcher in ("gloo", "torchrun"):
        return launcher == "gloo"
    import importlib.util

    return importlib.util.find_spec("horovod") is not None


def _check_size(found: int, planned: int, launcher: str) -> None:
    if found != planned:
        raise UserError(
            f"the plan has {planned} ranks, but {found} found each other through `{launcher}`",
            remedy="Horovod was built for another MPI than the launcher's: build the environment again, "
            "or set the site's launcher to gloo.",
        )


def placement(launcher: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """This process' rank and the number of ranks as its launcher tells them; (0, 1) if it tells nothing."""
    for rank, size in _TOLD_BY.get(launcher, _TOLD_BY_MPI):
        told = environment.get(rank, ""), environment.get(size, "")
        if told[0].isdigit() and told[1].isdigit():
            return int(told[0]), int(told[1])
    return 0, 1


def rank_hint() -> int:
    """This process' rank as its launcher tells it, before any group is joined; 0 if nothing is said."""
    names = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MP_CHILD", "SLURM_PROCID", "RANK")
    for name in names:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return 0
