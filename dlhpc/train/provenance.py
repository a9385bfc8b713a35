"""What an attempt ran on and with, for reports and for repeating it."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import dlhpc
from dlhpc.data.packed import Packed
from dlhpc.data.splits import SPLITS
from dlhpc.envs.record import RECORD
from dlhpc.errors import StorageError
from dlhpc.files import read_json, replace_json
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import Plan
from dlhpc.train.collective import Collective

_PACKAGES = ("torch", "torchvision", "horovod", "numpy", "safetensors")


def this_rank(device: torch.device) -> dict[str, Any]:
    """Host and GPU of the calling process; gathered from all ranks."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"host": socket.gethostname(), "gpu": gpu}


def write_provenance(
    run: RunDirectory, plan: Plan, packed: Packed, collective: Collective, attempt: int, ranks: list[dict[str, Any]]
) -> None:
    """Add this attempt to ``provenance.json`` (rank 0 only); a damaged file is begun anew."""
    try:
        known = read_json(run.provenance)
        earlier = [entry for entry in known["attempts"] if entry["attempt"] != attempt]
    except (StorageError, KeyError, TypeError):
        earlier = []
    replace_json(
        run.provenance,
        {
            "attempts": [
                *earlier,
                {
                    "attempt": attempt,
                    "started": datetime.now(UTC).isoformat(timespec="seconds"),
                    "hosts": [rank["host"] for rank in ranks],
                    "ranks": collective.size,
                    "gpus": [rank["gpu"] for rank in ranks],
                    "versions": _versions(collective),
                    "collective": collective.name,
                    "threads": torch.get_num_threads(),
                },
            ],
            "dataset": {
                "key": plan.dataset.key,
                "fingerprint": packed.fingerprint,
                "counts": {split: packed.count(split) for split in SPLITS},
                "skipped": [list(entry) for entry in packed.skipped],
            },
            "seed": plan.spec["training"]["seed"],
            "environment": _environment(plan),
        },
    )


def _versions(collective: Collective) -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version(), "dlhpc": dlhpc.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    versions["cuda"] = torch.version.cuda
    versions["mpi"] = _mpi_version() if collective.name == "horovod-mpi" else None
    return versions


def _mpi_version() -> str | None:
    """First line of the MPI library's own description; through mpi4py, which must not initialise MPI a second time."""
    with contextlib.suppress(ImportError, RuntimeError, OSError):
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI

        return str(MPI.Get_library_version()).replace("\0", "").split("\n")[0].split(",")[0].strip()
    return os.environ.get("OMPI_VERSION")


def _environment(plan: Plan) -> Any:
    try:
        return read_json(Path(plan.environment_prefix) / RECORD)
    except StorageError:
        return None
