"""Runs and packed datasets for the tests of the trainer, made without the planner and the packer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dlhpc.data import packed
from dlhpc.files import replace_json
from dlhpc.runs.curves import read_points
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import read_journal
from dlhpc.runs.plan import DatasetSummary, Plan
from dlhpc.spec.models import Spec

ROOT = Path(__file__).resolve().parents[1]


def write_packed(folder: Path, splits: dict[str, tuple[np.ndarray, np.ndarray]], classes: list[str]) -> packed.Packed:
    """A packed dataset of (N×C×H×W pictures, labels) per split."""
    folder.mkdir(parents=True)
    pictures = np.concatenate([splits[name][0] for name in packed.SPLITS if name in splits])
    labels = np.concatenate([splits[name][1] for name in packed.SPLITS if name in splits]).astype(np.int64)
    ranges, start = {}, 0
    for name in packed.SPLITS:
        count = len(splits[name][1]) if name in splits else 0
        ranges[name] = (start, start + count)
        start += count
    train = splits["train"][0] / np.iinfo(pictures.dtype).max
    (folder / packed.PICTURES).write_bytes(np.ascontiguousarray(pictures).tobytes())
    np.save(folder / packed.LABELS, labels)
    np.save(folder / packed.MEAN_IMAGE, train.mean(axis=0).astype(np.float32))
    replace_json(folder / packed.PATHS, [f"/pictures/{number}.png" for number in range(len(labels))])
    index = packed.Index(
        str(pictures.dtype), sys.byteorder, pictures.shape, classes, ranges, [],
        train.mean(axis=(0, 2, 3)).tolist(), train.std(axis=(0, 2, 3)).tolist(), "0" * 64,
    )  # fmt: skip
    replace_json(folder / packed.INDEX, vars(index))
    return packed.open_packed(folder)


def stripes(count: int, classes: int = 4, size: int = 16, channels: int = 1, seed: int = 0) -> tuple[Any, Any]:
    """Noisy pictures that a network can tell apart: each class is a bright stripe somewhere else."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    pictures = random.integers(0, 120, (count, channels, size, size))
    width = size // classes
    for picture, label in zip(pictures, labels):
        picture[:, label * width : (label + 1) * width] += 100
    return pictures.astype(np.uint8), labels


def make_run(
    folder: Path,
    *,
    spec: dict[str, Any] | None = None,
    ranks: int = 1,
    launcher: str | None = None,
    splits: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
    classes: int = 4,
    **planned: Any,
) -> RunDirectory:
    """A run directory as submission leaves it: plan and packed pictures (48 to train on, 20 to validate)."""
    splits = splits or {"train": stripes(48, classes), "val": stripes(20, classes, seed=1)}
    _, _, height, width = splits["train"][0].shape
    run = RunDirectory(folder)
    for name in ("logs", "attempts", "checkpoints"):
        (folder / name).mkdir(parents=True)
    packed_folder = folder.parent / f"{folder.name}-packed"
    write_packed(packed_folder, splits, [f"class {number}" for number in range(classes)]).close()
    value: dict[str, Any] = {
        "name": "test",
        "network": {"name": "lenet"},
        "optimizer": {"name": "sgd"},
        "learning_rate": {"base": 0.02, "policy": "fixed"},
        "training": {"epochs": 3, "batch_size": 8},
        **(spec or {}),
    }
    value["data"] = {"folder": "/x", "width": width, "height": height, **value.get("data", {})}
    whole = Spec.model_validate(value)
    count = len(splits["train"][1])
    global_batch = min(count, whole.training.batch_size * whole.training.accumulate * ranks)
    steps = -(-count // global_batch)
    decided: dict[str, Any] = {
        "run_id": "0", "dlhpc_version": "0", "created": "2024-01-01T00:00:00+00:00", "site": "test",
        "scheduler": "local", "dialect": None, "queue": "local", "nodes": 1, "ranks": ranks, "ranks_per_node": ranks,
        "cores_per_rank": 1, "gpus_per_rank": 0, "memory_bytes": None, "walltime_seconds": 600,
        "save_margin_seconds": 1, "kill_grace_seconds": 5, "crash_retries": 2, "max_attempts": 10,
        "launcher": launcher or ("none" if ranks == 1 else "mpirun"), "launch": [], "hostfile_option": None,
        "python": sys.executable, "environment": "test", "environment_prefix": sys.prefix, "exports": {},
        "global_batch": global_batch, "steps_per_epoch": steps, "total_steps": steps * whole.training.epochs,
        "base_rate": whole.learning_rate.base,
        "dataset": DatasetSummary("key", str(packed_folder), classes, count, len(splits["val"][1]), 0),
        "spec": whole.model_dump(mode="json"), **planned,
    }  # fmt: skip
    Plan(**decided).write(run.plan)
    return run


def command(run: RunDirectory) -> list[str]:
    """The argv that starts the ranks of the plan."""
    plan = json.loads(run.plan.read_text())
    python = [sys.executable, "-m", "dlhpc.train", str(run.path)]
    if plan["launcher"] == "mpirun":
        return ["mpirun", "-np", str(plan["ranks"]), "--bind-to", "none", "--oversubscribe", *python]
    if plan["launcher"] == "gloo":
        horovodrun = Path(sys.executable).with_name("horovodrun")
        return [str(horovodrun), "--gloo", "-np", str(plan["ranks"]), "-H", f"localhost:{plan['ranks']}", *python]
    return python


def environment(attempt: int = 1, **more: str) -> dict[str, str]:
    """What the job script would export."""
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOROVOD_FUSION_THRESHOLD": "0",
        "HOROVOD_CYCLE_TIME": "0.5", "DLHPC_ATTEMPT": str(attempt), "PYTHONUNBUFFERED": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **more,
    }  # fmt: skip


def train(run: RunDirectory, attempt: int = 1, **more: str) -> subprocess.CompletedProcess[str]:
    """Run one attempt to its end."""
    return subprocess.run(
        command(run), env=environment(attempt, **more), capture_output=True, text=True, timeout=240, check=False
    )


def curves(run: RunDirectory) -> list[tuple[float, int, str, str, float]]:
    """The curves without the time of measurement."""
    points, damaged = read_points(run.curves)
    assert damaged == 0
    return [(point.epoch, point.step, point.split, point.name, point.value) for point in points]


def events(run: RunDirectory) -> list[str]:
    """What the journal says happened, in order."""
    return [entry.event for entry in read_journal(run)[0]]


def outcome(run: RunDirectory, attempt: int = 1) -> int:
    return int(run.outcome_file(attempt).read_text())


def has_mpi() -> bool:
    """Whether Horovod ranks can be started with mpirun here."""
    if shutil.which("mpirun") is None:
        return False
    asked = subprocess.run(
        [sys.executable, "-c", "import horovod.torch as h; raise SystemExit(not h.mpi_built())"], check=False,
        capture_output=True,
    )  # fmt: skip
    return asked.returncode == 0
