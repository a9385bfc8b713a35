"""The record of every number that was decided for a run. ``dlhpc.jobs.plan`` makes it; jobs and reports read it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlhpc.errors import StorageError
from dlhpc.files import read_json, replace_json

FORMAT = 1


@dataclass(frozen=True)
class DatasetSummary:
    """What the catalogue holds."""

    key: str
    """Identifies files and preparation; equal keys share one packed dataset."""
    packed: str
    """Folder of the packed dataset (absolute)."""
    classes: int
    train: int
    val: int
    unseen: int


@dataclass(frozen=True)
class Plan:
    """A spec resolved against a site."""

    run_id: str
    """Travels in the job's name or comment, so that a submission whose answer was lost is found again."""
    dlhpc_version: str
    created: str
    """ISO 8601 with offset."""
    site: str
    scheduler: str
    queue: str
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
    """``mpirun``, ``gloo`` or ``none`` (one rank)."""
    launch: list[str]
    """The launcher's argv up to, not including, the python command."""
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
