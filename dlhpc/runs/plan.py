"""The record of every number that was decided for a run. ``dlhpc.jobs.plan`` makes it; jobs and reports read it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlhpc.errors import StorageError
from dlhpc.files import current_umask, read_json, replace_json

FORMAT = 3


@dataclass(frozen=True)
class DatasetSummary:
    """What the catalogue holds."""

    key: str
    """Identifies files and preparation; equal keys share one packed dataset."""
    packed: str
    """Folder of the packed dataset (absolute)."""
    classes: int
    """0 for regression."""
    train: int
    val: int
    unseen: int
    kind: str = "pictures"
    """Or ``table``: rows of numbers."""
    targets: int = 0
    """Regression: how many numbers are predicted."""
    fingerprint: str = ""
    """Of a dataset that was packed before; empty where the run packs its own."""


@dataclass(frozen=True)
class Plan:
    """A spec resolved against a site."""

    run_id: str
    """Travels in the job's name, so that a submission whose answer was lost is found again."""
    dlhpc_version: str
    created: str
    """ISO 8601 with offset."""
    site: str
    scheduler: str
    dialect: str | None
    queue: str | None
    nodes: int
    ranks: int
    ranks_per_node: int
    cores_per_rank: int
    gpus_per_rank: int
    memory_bytes: int | None
    walltime_seconds: int
    save_margin_seconds: int
    """The trainer stops so long before the walltime's end to save its state."""
    kill_grace_seconds: int
    crash_retries: int
    max_attempts: int
    launcher: str
    """``mpirun``, ``mpiexec``, ``srun``, ``poe``, ``gloo`` (Horovod's), ``torchrun`` or ``none`` (one rank)."""
    launch: list[str]
    """The launcher's argv up to, not including, the python command."""
    hostfile_option: str | None
    """The launcher's option before the scheduler's list of hosts; None where it finds the hosts by itself."""
    python: str
    """Absolute path of the interpreter on the compute nodes."""
    environment: str
    environment_prefix: str
    exports: dict[str, str]
    """Environment variables that the script sets."""
    global_batch: int
    steps_per_epoch: int
    total_steps: int
    base_rate: float
    """Peak learning rate after scaling by ranks."""
    dataset: DatasetSummary
    spec: dict[str, Any]
    """The whole spec with defaults filled in; paths absolute."""
    account: str | None = None
    mail: str | None = None
    mail_on: list[str] = field(default_factory=list)
    exclusive: bool = False
    reservation: str | None = None
    qos: str | None = None
    hold: bool = False
    after: list[str] = field(default_factory=list)
    """Directories of the runs that must finish before this one starts (absolute)."""
    directives: list[str] = field(default_factory=list)
    """Further directives of the site and the user, without the leading ``#SBATCH`` and the like."""
    gpu_resource: str | None = None
    gpu_feature: str | None = None
    network: str | None = None
    modules: list[str] = field(default_factory=list)
    module_init: str | None = None
    scratch: str | None = None
    """Node-local folder as the job's shell sees it; ``$NAME`` in it is expanded there."""
    attempts_ahead: int = 0
    """So many attempts are kept in the queue, where a job may not submit the next one itself; 0 where it may."""
    template: str | None = None
    """The site's own template for the job script, an absolute path; None for the one of its scheduler."""
    node_watts: float | None = None
    """What one node draws while training, in watts, as the site says."""
    umask: str = field(default_factory=lambda: f"{current_umask():04o}")
    """Of the user who submits, in octal; a job gets another from some schedulers, and colleagues could read nothing."""
    warnings: list[str] = field(default_factory=list)
    format: int = FORMAT

    def write(self, path: Path) -> None:
        replace_json(path, dataclasses.asdict(self))


def read_plan(path: Path) -> Plan:
    """Read ``plan.json``; :class:`StorageError` if it is missing, damaged or of a newer format."""
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise StorageError(
            "is not a plan of this version of dlhpc", where=path, remedy="Use the version that submitted the run."
        )
    try:
        return Plan(**{**value, "dataset": DatasetSummary(**value["dataset"])})
    except (TypeError, KeyError) as error:
        raise StorageError(
            f"is damaged: {error}", where=path, remedy="Submit the run anew from its spec.yaml."
        ) from error
