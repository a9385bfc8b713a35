"""What checkpoints a run has, without loading one; for reports, prediction and the trainer alike.

A checkpoint is three files in ``RUN/checkpoints``: ``step-N.safetensors`` (weights, all that prediction needs),
``step-N.trainer.safetensors`` (what training goes on from) and the manifest ``step-N.json``, which is written last and
removed first: what has no manifest is no checkpoint. ``best.json`` names the best one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlhpc.errors import StorageError
from dlhpc.files import read_json, storage_errors
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.measures import DEFAULT_BEST, rises

FORMAT = 2
BEST = "best.json"


@dataclass(frozen=True)
class CheckpointFile:
    """One of a checkpoint's files, as it was written."""

    path: Path
    sha256: str
    bytes: int


@dataclass(frozen=True)
class CheckpointRecord:
    """A manifest."""

    name: str
    """``step-000000120``."""
    manifest: Path
    epoch: float
    """Finished epochs, with fraction."""
    step: int
    """Finished steps of the whole training."""
    step_in_epoch: int
    metrics: dict[str, float | None]
    """As measured at this very step: ``val_loss``, ``val_accuracy``, …; ``None`` was not finite, empty not measured."""
    task: str
    """``classification``, ``detection`` or ``regression``."""
    classes: list[str]
    network: str
    settings: dict[str, Any]
    """What else the network is built from: the sections ``network`` and ``detection`` of the spec, ``several_labels``
    and ``targets``, the names of what is predicted."""
    input: dict[str, Any]
    """What the network sees: channels, height, width (after the crop), and how a picture becomes that: color, resize,
    picture_height, picture_width, dtype."""
    weights: CheckpointFile
    trainer: CheckpointFile
    snapshot: int | None
    """Number of this snapshot, from 1; ``None`` if it was taken out of turn (best so far, or before leaving)."""
    state: dict[str, Any]
    """The trainer's own small numbers."""


def list_checkpoints(run: RunDirectory) -> list[CheckpointRecord]:
    """All checkpoints with a readable manifest, oldest first; their files are not opened."""
    return read_manifests(run)[0]


def read_manifests(run: RunDirectory) -> tuple[list[CheckpointRecord], list[Path]]:
    """All readable manifests by step, and the paths of damaged ones."""
    found: list[CheckpointRecord] = []
    damaged: list[Path] = []
    with storage_errors(run.checkpoints, "list"):
        try:
            paths = sorted(run.checkpoints.glob("step-*.json"))
        except FileNotFoundError:
            paths = []
    for path in paths:
        try:
            found.append(_record(path))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # removed by the trainer while we looked
                continue
            if isinstance(error.__cause__, OSError):
                raise
            damaged.append(path)
        except (KeyError, TypeError, ValueError):
            damaged.append(path)
    found.sort(key=lambda record: record.step)
    return found, damaged


def best_checkpoint(run: RunDirectory) -> CheckpointRecord | None:
    """The checkpoint that ``best.json`` names; if that cannot be read, the best by its task's usual measure."""
    records = list_checkpoints(run)
    try:
        pointer = read_json(run.checkpoints / BEST)
        name = pointer.get("checkpoint") if isinstance(pointer, dict) else None
    except StorageError:
        name = None
    for record in records:
        if record.name == name:
            return record
    return min((record for record in records if record.metrics), key=_rank, default=None)


def _rank(record: CheckpointRecord) -> tuple[float, float, int]:
    """Sorts the best first; a number that is missing or not finite counts as the worst."""
    measure = DEFAULT_BEST[record.task]
    value, loss = record.metrics.get(measure), record.metrics.get("val_loss")
    merit = math.inf if value is None else -value if rises(measure) else value
    return (merit, math.inf if loss is None else loss, record.step)


def _record(path: Path) -> CheckpointRecord:
    value = read_json(path)
    if value["format"] != FORMAT or value["name"] != path.stem:
        raise ValueError("another format or name")
    return CheckpointRecord(
        name=value["name"],
        manifest=path,
        epoch=float(value["epoch"]),
        step=int(value["step"]),
        step_in_epoch=int(value["step_in_epoch"]),
        metrics=dict(value["metrics"]),
        task=str(value["task"]),
        classes=list(value["classes"]),
        network=str(value["network"]),
        settings=dict(value["settings"]),
        input=dict(value["input"]),
        weights=_file(path.parent, value["weights"]),
        trainer=_file(path.parent, value["trainer"]),
        snapshot=value["snapshot"],
        state=dict(value["state"]),
    )


def _file(folder: Path, value: dict[str, Any]) -> CheckpointFile:
    name = str(value["file"])
    if Path(name).name != name:
        raise ValueError("a checkpoint's files lie beside its manifest")
    return CheckpointFile(folder / name, str(value["sha256"]), int(value["bytes"]))
