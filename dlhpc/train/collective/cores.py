"""Which cores of its node a rank computes on: its share of those that the job has, side by side.

Launchers are told to place nothing (``dlhpc.jobs.launch``), because what they do by themselves is wrong more often than
not: Open MPI binds each of two ranks to one core, whatever the number of threads. Left to the system, threads wander
between sockets, away from their memory. Only the thread that asks is placed, and those it starts afterwards: the
threads of Horovod and Gloo that are there already may use any core of the job that is idle.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from dlhpc.train.collective.base import Collective

_SETTINGS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")

_CPUS = Path("/sys/devices/system/cpu")


def keep_to_own_cores(collective: Collective, per_rank: int) -> list[int] | None:
    """Place this thread on its rank's share of the node's cores; gives them, or None where it is not sure to be right.

    Called by all ranks. It is sure if all ranks of the node may use the same cores (else a launcher has shared them out
    already), if these suffice for ``per_rank`` each, and if nobody has said where threads are to go.
    """
    allowed = sorted(os.sched_getaffinity(0))
    told = any(os.environ.get(name) for name in _SETTINGS)
    everybody = collective.gather_json([socket.gethostname(), None if told else allowed])
    here = [cores for host, cores in everybody if host == everybody[collective.rank][0]]
    if len(here) != collective.local_size or any(cores is None or cores != here[0] for cores in here):
        return None
    mine = share_of(here[0], collective.local_rank, collective.local_size, per_rank, _neighbourhood)
    if mine is not None:
        os.sched_setaffinity(0, mine)
    return mine


def share_of(
    cores: Sequence[int], rank: int, ranks: int, per_rank: int, neighbourhood: Callable[[int], tuple[int, ...]]
) -> list[int] | None:
    """The cores of the ``rank``-th of ``ranks`` on a node: an equal part of all, neighbours together.

    All are given out, also beyond ``per_rank``: on a node of one's own the spare ones are for threads that load data
    and exchange gradients. None for a single rank, and if there are fewer than ``per_rank`` for each.
    """
    if ranks < 2 or len(cores) < ranks * per_rank:
        return None
    ordered = sorted(cores, key=lambda core: (*neighbourhood(core), core))
    return sorted(ordered[rank * len(cores) // ranks : (rank + 1) * len(cores) // ranks])


def _neighbourhood(core: int) -> tuple[int, ...]:
    """Memory node, socket and physical core, as far as the system tells."""
    folder = _CPUS / f"cpu{core}"
    try:
        node = min((int(link.name[4:]) for link in folder.glob("node[0-9]*")), default=0)
        return (node, *(int((folder / "topology" / name).read_text()) for name in ("physical_package_id", "core_id")))
    except (OSError, ValueError):
        return ()
