"""The head of a job script that the tests of PBS start from."""

from __future__ import annotations

from pathlib import Path

from dlhpc.schedulers.base import Header

HEADER = Header(
    name="faces",
    output=Path("/home/you/runs/faces/logs/job.out"),
    queue="gpu",
    nodes=2,
    ranks_per_node=4,
    cores_per_rank=2,
    gpus_per_node=4,
    memory_bytes=64 * 2**30,
    walltime_seconds=5400,
    warning_seconds=120,
)
