"""How the ranks are started: the launcher's command line, decided at planning."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from dlhpc.envs.record import EnvironmentRecord
from dlhpc.errors import UserError
from dlhpc.sites.models import Site
from dlhpc.spec.training import Distributed

_PLACEMENT = {
    # Left alone, Open MPI binds each of two ranks to one core, whatever OMP_NUM_THREADS says, and refuses more ranks
    # than cores.
    "openmpi": ["--bind-to", "none", "--map-by", "slot", "--oversubscribe"],
    "mpich": ["-bind-to", "none"],
}
"""Options that leave the placing of threads to the system, by MPI implementation."""

_HOSTFILE = {"openmpi": "--hostfile", "mpich": "-f", "intel": "-f"}
"""The option that names a file of hosts, by MPI implementation."""

_FROM_SCRIPT = ("PATH", "LD_LIBRARY_PATH", "DLHPC_ATTEMPT", "DLHPC_DEADLINE", "DLHPC_JOB_ID", "DLHPC_SCRATCH")
"""What the job script exports for the ranks beside the plan's own variables."""


@dataclass(frozen=True)
class Launch:
    """``kind`` as in :class:`dlhpc.runs.plan.Plan`; ``argv`` ends before the python command."""

    kind: str
    argv: list[str] = field(default_factory=list)
    hostfile_option: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def uses_ddp(how: Distributed, record: EnvironmentRecord | None) -> bool:
    """Whether gradients are summed by torch's own groups; :class:`UserError` where what is asked for is not there."""
    without_horovod = record is not None and record.horovod is None
    if how.strategy == "horovod" and without_horovod:
        raise UserError(
            "distributed.strategy is horovod, and the environment has no Horovod",
            remedy="Set it to ddp or auto, or use an environment with Horovod (`dlhpc env build`).",
        )
    ddp = how.strategy == "ddp" or (how.strategy == "auto" and without_horovod)
    own = [name for name in ("adasum", "autotune", "timeline") if getattr(how, name)]
    if ddp and own:
        raise UserError(
            f"distributed.{own[0]} is of Horovod, and the ranks use DDP",
            remedy="Remove it, or set distributed.strategy to horovod.",
        )
    return ddp


def rank_exports(how: Distributed, cores_per_rank: int) -> dict[str, str]:
    """Variables for every rank. Horovod's own fusion is off unless asked for: one allreduce for each of our buckets
    gives the same bits in every run, and saves two copies."""
    exports = {"OMP_NUM_THREADS": str(cores_per_rank), "PYTHONUNBUFFERED": "1"}
    if how.autotune:  # it leaves alone what is set
        return {**exports, "HOROVOD_AUTOTUNE": "1"}
    return {
        **exports,
        "HOROVOD_FUSION_THRESHOLD": str(round(how.fusion_mb * 2**20)),
        "HOROVOD_CYCLE_TIME": f"{how.cycle_ms:g}",
    }


def decide_launch(
    site: Site,
    *,
    nodes: int,
    ranks_per_node: int,
    cores_per_rank: int,
    prefix: Path,
    record: EnvironmentRecord | None,
    exports: dict[str, str],
    warnings: list[str],
    ddp: bool = False,
) -> Launch:
    """The launcher for so many ranks. ``exports`` are the variables that the ranks on other nodes need; ``ddp`` is
    whether torch's own groups sum (:func:`uses_ddp`), which any launcher may start.

    Raises :class:`UserError` if it is not there, or cannot do it.
    """
    ranks = nodes * ranks_per_node
    if ranks == 1:
        return Launch("none")
    given = site.launcher
    # The launcher must be of the MPI that Horovod was compiled with; without a record PATH is all there is to go by.
    mpi = record.mpi if record is not None else None
    kind = given.kind
    if kind == "auto":
        kind = "mpirun" if record is None or mpi is not None else "gloo"
        if kind == "mpirun" and site.scheduler == "local" and shutil.which(mpi.mpirun if mpi else "mpirun") is None:
            if mpi is not None:
                starter = "torchrun" if ddp else "Horovod's Gloo"
                warnings.append(f"the environment has MPI, but `{mpi.mpirun}` is not there; {starter} starts the ranks")
            kind = "gloo"
    if kind == "gloo":
        if nodes > 1:
            starter = "torchrun starts" if ddp else "Horovod's Gloo launcher starts"
            raise UserError(
                f"{starter} ranks on one node only, and the job asks for "
                f"{nodes} nodes (the environment was built without MPI, or the profile says `gloo`)",
                remedy="Ask for one node, or use an environment with MPI; `dlhpc env build` makes one.",
            )
        if ddp:
            torchrun = str(prefix / "bin" / "torchrun")
            return Launch("torchrun", [torchrun, "--standalone", "--nproc-per-node", str(ranks), "--no-python"])
        horovodrun = given.command or str(prefix / "bin" / "horovodrun")
        return Launch("gloo", [horovodrun, "--gloo", "-np", str(ranks), "-H", f"localhost:{ranks}"])
    command = given.command or (mpi.mpirun if mpi is not None and kind == "mpirun" else kind)
    if site.scheduler == "local" and shutil.which(command) is None:  # compute nodes may have what this one lacks
        raise UserError(
            f"the site `{site.name}` starts ranks with `{command}`, which was not found",
            remedy="Install an MPI, or set `launcher: {kind: auto}` in the profile to go on with Gloo.",
        )
    if kind == "srun":
        # Since Slurm 22.05 a step does not inherit --cpus-per-task from the job.
        layout = [f"--nodes={nodes}", f"--ntasks-per-node={ranks_per_node}", f"--cpus-per-task={cores_per_rank}"]
        options = ([] if ddp else ["--mpi=pmix"]) if given.options is None else given.options
        return Launch("srun", [command, *layout, "--kill-on-bad-exit=1", *options])
    if kind == "poe":
        return Launch("poe", [command, *(given.options or [])])
    implementation = mpi.implementation if mpi is not None else "openmpi"
    options = _PLACEMENT.get(implementation, []) if given.options is None else given.options
    if nodes > 1 and implementation == "openmpi":  # others send the whole environment along
        names = dict.fromkeys((*_FROM_SCRIPT, *exports))
        options = [*options, *(word for name in names for word in ("-x", name))]
    # Open MPI refuses to run as root unless told twice; that is the rule inside containers.
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    hostfile = _HOSTFILE.get(implementation) if nodes > 1 and site.scheduler in ("pbs", "loadleveler") else None
    return Launch(kind, [command, "-np", str(ranks), *options], hostfile, root)
