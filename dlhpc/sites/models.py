"""The site profile: one YAML file that describes a machine, so that no user has to.

Field docstrings become the descriptions in messages and in the staff guide; they are written for the person who edits
the profile.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dlhpc.spec.base import Duration, MemoryBytes, Model, SchedulerWord

Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Watts = Annotated[float, Field(ge=0)]
Money = Annotated[float, Field(ge=0)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
ShellPath = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./${}:-]+$")]
"""A path in which the job's shell expands `$NAME`; nothing else of the shell can be said in it."""


class Power(Model):
    """What one node draws from the wall."""

    idle: Watts
    """Watts while no job runs."""
    busy: Watts
    """Watts while training on all its GPUs (or cores)."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.busy < self.idle:
            raise ValueError(f"busy is {self.busy:g} W, less than idle with {self.idle:g} W")
        return self


class Node(Model):
    """One kind of compute node. On the local site, absent numbers are read from the machine itself."""

    cores: AtLeastOne | None = None
    """CPU cores that jobs may use."""
    memory: MemoryBytes | None = None
    """What jobs may ask for; a little less than is built in."""
    gpus: Count | None = None
    """GPUs in one node."""
    gpu_model: str | None = None
    """As people call it: `NVIDIA A100 80GB`."""
    count: AtLeastOne | None = None
    """How many there are."""
    off: Count = 0
    """How many of them are switched off, as to save electricity."""
    power: Power | None = None
    """What one of them draws."""

    @model_validator(mode="after")
    def _some_on(self) -> Self:
        if self.count is not None and self.off > self.count:
            raise ValueError(f"off is {self.off}, more than the {self.count} nodes there are")
        return self

    @property
    def on(self) -> int | None:
        """How many are switched on; None if the profile does not say how many there are."""
        return None if self.count is None else self.count - self.off


class Queue(Model):
    """A queue (partition, class) and its limits."""

    name: SchedulerWord
    """As the batch system calls it."""
    node: str | None = None
    """Which of `nodes` it gives; the only one if absent."""
    max_walltime: Duration | None = None
    """Longest time of one job."""
    min_nodes: AtLeastOne = 1
    """Fewest nodes of one job."""
    max_nodes: AtLeastOne | None = None
    """Most nodes of one job."""
    max_jobs: AtLeastOne | None = None
    """How many jobs a user may have in it, waiting and running together; a sweep is submitted in such portions."""


class Launcher(Model):
    """How the ranks are started."""

    kind: Literal["auto", "mpirun", "mpiexec", "srun", "poe", "gloo"] = "auto"
    """`auto`: mpirun where the environment has MPI, else Horovod's Gloo launcher, or torchrun where there is no Horovod
    (or the spec asks for DDP)."""
    command: str | None = None
    """The program, where it is not the one of that name on PATH: `/opt/mpi/bin/mpiexec`."""
    options: list[str] | None = None
    """Its options, one list item each; those that suit the environment's MPI if absent."""
    environment: dict[Variable, str] = {}
    """Environment variables to set before the launcher."""


class Environment(Model):
    """A software environment that jobs may use."""

    prefix: str | None = None
    """Folder with `bin/python`; if absent, the one that dlhpc itself runs from."""
    modules: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+/@=-]+$")]] = []
    """Modules to load before it, in this order."""


class Paths(Model):
    """Where things lie; `~` and environment variables are expanded."""

    runs: str = "~/dlhpc-runs"
    """Folder of runs, on storage that login and compute nodes share; DLHPC_RUNS and --runs come before it."""
    scratch: ShellPath | None = None
    """Node-local folder for a job's temporary files, as the job's shell sees it: `/scratch/$USER` or `$TMPDIR`.
    Each job makes a folder of its own in it, and removes that at its end."""
    module_init: str | None = None
    """File that a POSIX shell reads to know the command `module`; `/etc/profile.d/modules.sh` and its like are looked
    for if absent."""


class Accounts(Model):
    """The centre's rules for charging jobs to projects."""

    required: bool = False
    """Every job must name one."""
    default: SchedulerWord | None = None
    """Taken when the spec names none."""
    pattern: str | None = None
    """Regular expression that an account must match as a whole."""


class Prices(Model):
    """What is charged; for reports and for `dlhpc plan`."""

    node_hour: Money | None = None
    """One node for one hour."""
    kwh: Money | None = None
    """One kilowatt hour."""
    currency: str = "JPY"
    """As it is to be printed beside the amounts."""


class Gpu(Model):
    """How this site's batch system wants GPUs to be asked for; the usual way if absent."""

    resource: SchedulerWord | None = None
    """Slurm: the gres, with its type if wanted (`gpu:a100`); PBS: the resource (`ngpus`); LoadLeveler: a consumable
    resource."""
    feature: SchedulerWord | None = None
    """LoadLeveler: nodes with this feature have them."""


class Site(Model):
    """One machine."""

    name: str
    """What runs and reports call it."""
    description: str = ""
    """One sentence for `dlhpc site list`."""
    scheduler: Literal["local", "slurm", "pbs", "loadleveler"] = "local"
    """The batch system; `local` needs none."""
    dialect: Literal["select", "nodes", "totals", "torque"] | None = None
    """PBS only. `select`: PBS Professional and OpenPBS, `-l select=2:ncpus=8` (the default); `nodes`: the same servers
    where `-l nodes=2:ppn=8` is the rule; `totals`: the same where select is forbidden and `ncpus`, `ngpus` and `mem` of
    the whole job are asked for; `torque`: the Torque server."""
    nodes: dict[str, Node] = {}
    """Kinds of nodes, by name."""
    queues: Annotated[list[Queue], Field(min_length=1)]
    """The first is the default."""
    launcher: Launcher = Launcher()
    """How the ranks of a job are started."""
    environments: Annotated[dict[str, Environment], Field(min_length=1)] = {"default": Environment()}
    """By name; the first is the default."""
    paths: Paths = Paths()
    """Where runs and temporary files lie."""
    accounts: Accounts = Accounts()
    """Who may be charged."""
    prices: Prices = Prices()
    """What is charged."""
    gpu: Gpu = Gpu()
    """How GPUs are asked for."""
    network: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.,]+$")
    """LoadLeveler: the value of `network.MPI` for jobs on more than one node, such as `sn_all,not_shared,US`."""
    directives: list[Annotated[str, Field(pattern=r"^[ -~]+$")]] = []
    """Directives that every job of this site gets, without the leading `#SBATCH`, `#PBS` or `# @`."""
    compute_may_submit: bool = True
    """Whether a job may submit jobs. Where it may not, further attempts are queued ahead."""
    max_array: AtLeastOne = 1000
    """Most tasks of one array (Slurm's MaxArraySize less one, PBS' max_array_size)."""
    kill_grace: Duration = timedelta(seconds=10)
    """Time between the scheduler's TERM at the walltime and its KILL."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dialect is not None and self.scheduler != "pbs":
            raise ValueError(f"dialect is for PBS; {self.scheduler} has none")
        if self.network is not None and self.scheduler != "loadleveler":
            raise ValueError(f"network is for LoadLeveler; {self.scheduler} takes it from the launcher's options")
        if self.gpu.feature is not None and self.scheduler != "loadleveler":
            raise ValueError(f"gpu.feature is for LoadLeveler; {self.scheduler} has gpu.resource")
        names = [queue.name for queue in self.queues]
        if len(set(names)) < len(names):
            raise ValueError("two queues have the same name")
        for queue in self.queues:
            if queue.node is not None and queue.node not in self.nodes:
                known = ", ".join(self.nodes) or "none"
                raise ValueError(
                    f"queue {queue.name} gives nodes `{queue.node}`, which `nodes` lacks (it has: {known})"
                )
            if queue.node is None and len(self.nodes) > 1:
                raise ValueError(f"queue {queue.name} must say which of the nodes it gives: {', '.join(self.nodes)}")
        return self

    def node_of(self, queue: Queue) -> Node:
        """The kind of node that a queue gives."""
        if queue.node is not None:
            return self.nodes[queue.node]
        return next(iter(self.nodes.values()), Node())
