"""Runs and packed datasets for the tests of the trainer, made without the planner and the packer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dlhpc.data import index, pack_rows, packed, shards, writing
from dlhpc.data.catalog import Catalog
from dlhpc.data.samples import Boxes, join_boxes
from dlhpc.runs.curves import read_points
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import read_journal
from dlhpc.runs.plan import DatasetSummary, Plan
from dlhpc.spec.models import Spec

ROOT = Path(__file__).resolve().parents[1]


def write_packed(
    folder: Path,
    splits: dict[str, tuple[np.ndarray, Any]],
    classes: list[str],
    *,
    task: str = "classification",
    several_labels: bool = False,
    target_names: list[str] | None = None,
    per_shard: int = 1000,
) -> packed.Packed:
    """A packed dataset of (N×C×H×W pictures uint8 or uint16, targets) per split; targets as ``Packed.targets`` gives
    them: class numbers n, uint8 n×K with ``several_labels``, float64 n×T for regression, ``Boxes`` for detection."""
    folder.mkdir(parents=True, exist_ok=True)
    present = [name for name in packed.SPLITS if name in splits]
    pictures = np.concatenate([splits[name][0] for name in present])
    samples, sources = np.zeros(len(pictures), packed.SAMPLE), np.zeros(len(pictures), packed.SOURCE)
    shards_ = []
    for first in range(0, len(pictures), per_shard):
        part = np.ascontiguousarray(pictures[first : first + per_shard])
        content = shards.npy_header(part.dtype, part.shape) + part.tobytes()
        file = f"pictures-{len(shards_):05d}.npy"
        (folder / file).write_bytes(content)
        here = slice(first, first + len(part))
        samples["shard"][here], samples["length"][here] = len(shards_), part[0].nbytes
        samples["offset"][here] = shards.HEADER_BYTES + np.arange(len(part)) * part[0].nbytes
        sources["checksum"][here] = [np.frombuffer(packed.checksum(picture.tobytes()), np.uint8) for picture in part]
        shards_.append(index.Shard(file, len(content), len(part), packed.crc(content)))
    train = splits["train"][0]
    values = np.stack(
        [np.bincount(train[:, channel].ravel(), minlength=np.iinfo(train.dtype).max + 1)
         for channel in range(train.shape[1])]
    )  # fmt: skip
    mean, std, histogram = writing.value_statistics(values)
    targets = _joined([splits[name][1] for name in present], task, several_labels)
    names = (target_names or [f"y{n}" for n in range(targets.shape[1])]) if task == "regression" else []
    _, channels, height, width = pictures.shape
    about = index.Index(
        kind="pictures", task=task, storage="raw", dtype=str(pictures.dtype), byte_order=sys.byteorder,
        classes=classes, counts={}, class_counts={}, mean=mean, std=std, shards=shards_, files={}, fingerprint="",
        several_labels=several_labels, target_names=names, channels=channels, height=height, width=width,
        color="rgb" if channels == 3 else "grey", resize="squash", histogram=histogram,
        **_target_statistics(splits["train"][1], task),
    )  # fmt: skip
    paths = [f"/pictures/{number}.png" for number in range(len(pictures))]
    table = writing.Table(samples, sources, paths, targets, _counts(splits))
    arrays = {"sums": train.sum(axis=0, dtype=np.int64), "values": values}
    writing.write_index(folder, writing.write_table(folder, about, table, arrays))
    return packed.open_packed(folder)


def write_packed_table(
    folder: Path,
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    *,
    task: str = "regression",
    classes: list[str] | None = None,
    several_labels: bool = False,
    features: list[str] | None = None,
    target_names: list[str] | None = None,
    coding: dict[str, Any] | None = None,
) -> packed.Packed:
    """A packed table of (rows n×F, targets) per split; mean and σ of every feature are those of the training rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, targets = splits["train"]
    statistics = {"target_mean": [], "target_std": [], **_target_statistics(targets, task)}
    coded = SimpleNamespace(
        inputs={name: rows for name, (rows, _) in splits.items()},
        targets={name: _joined([values], task, several_labels) for name, (_, values) in splits.items()},
        origins={name: [f"/table.csv:{n}" for n in range(len(rows))] for name, (rows, _) in splits.items()},
        features=features or [f"x{n}" for n in range(rows.shape[1])],
        mean=rows.mean(axis=0, dtype=np.float64), std=packed.never_zero(rows.std(axis=0, dtype=np.float64)),
        coding=coding, notes=[], changed=[], **statistics,
    )  # fmt: skip
    names = (target_names or [f"y{n}" for n in range(coded.targets["train"].shape[1])]) if task == "regression" else []
    catalog = Catalog(classes or [], {}, task=task, several_labels=several_labels, target_names=names, kind="table")  # type: ignore[arg-type]
    writing.write_index(folder, pack_rows.write_rows(folder, catalog, coded))
    return packed.open_packed(folder)


def _joined(parts: list[Any], task: str, several_labels: bool) -> Any:
    if isinstance(parts[0], Boxes):
        return join_boxes([boxes.of(picture) for boxes in parts for picture in range(len(boxes))])
    if task == "regression":
        return np.concatenate([np.asarray(part, np.float64).reshape(len(part), -1) for part in parts])
    return np.concatenate(parts).astype(np.uint8 if several_labels else np.int64)


def _target_statistics(targets: Any, task: str) -> dict[str, Any]:
    if task != "regression":
        return {}
    mean, std = writing.target_statistics(_joined([targets], task, False))
    return {"target_mean": mean, "target_std": std}


def _counts(splits: dict[str, Any]) -> dict[str, int]:
    return {name: len(splits[name][1]) if name in splits else 0 for name in packed.SPLITS}


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
    if plan["launcher"] == "torchrun":
        torchrun = str(Path(sys.executable).with_name("torchrun"))
        return [torchrun, "--standalone", "--nproc-per-node", str(plan["ranks"]), "--no-python", *python]
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
    """The curves without times: that of measurement, and the split that tells how long and how costly epochs were."""
    points, damaged = read_points(run.curves)
    assert damaged == 0
    learnt = [point for point in points if point.split != "system"]
    return [(point.epoch, point.step, point.split, point.name, point.value) for point in learnt]


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
