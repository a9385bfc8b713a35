"""The site profile: one YAML file that describes a machine, so that no user has to."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from dlhpc.spec.base import Duration, MemoryBytes, Model


class Node(Model):
    """What one compute node has. On the local site, absent numbers are read from the machine itself."""

    cores: Annotated[int, Field(ge=1)] | None = None
    memory: MemoryBytes | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None


class Queue(Model):
    """A queue (partition, class) and its limits."""

    name: str
    max_walltime: Duration | None = None
    node: Node = Node()


class Launcher(Model):
    """How the ranks are started."""

    kind: Literal["auto", "mpirun", "gloo"] = "auto"
    """`auto`: mpirun where the environment's Horovod was built with MPI, else Horovod's Gloo launcher."""
    options: list[str] | None = None
    """Options for `mpirun`, one list item each; those that suit the environment's MPI if absent."""
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
    """Environment variables to set before the launcher."""


class Environment(Model):
    """A software environment that jobs may use."""

    prefix: str | None = None
    """Folder with `bin/python`; if absent, the one that dlhpc itself runs from."""


class Paths(Model):
    """Where things lie; `~` and environment variables are expanded."""

    runs: str = "~/dlhpc-runs"
    """Folder of runs, on storage that login and compute nodes share; DLHPC_RUNS and --runs come before it."""


class Site(Model):
    """One machine."""

    name: str
    description: str = ""
    scheduler: Literal["local"] = "local"
    queues: Annotated[list[Queue], Field(min_length=1)]
    """The first is the default."""
    launcher: Launcher = Launcher()
    environments: Annotated[dict[str, Environment], Field(min_length=1)] = {"default": Environment()}
    """By name; the first is the default."""
    paths: Paths = Paths()
    kill_grace: Duration = timedelta(seconds=10)
    """Time between the scheduler's TERM at the walltime and its KILL."""
