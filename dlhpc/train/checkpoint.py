"""Writing, choosing and reading checkpoints, so that a death at any instruction leaves the earlier ones intact.

Order of writing: weights, trainer state (each fsynced and renamed into place), manifest with their SHA-256, pointer to
the best, and only then are older checkpoints removed, manifest first. ``dlhpc.runs.checkpoints`` tells what the files
are. Nothing is ever unpickled: weights are safetensors, the rest is read with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for content that it will not execute
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dlhpc.errors import StorageError
from dlhpc.files import fsync_folder, read_json, replace_bytes, replace_json, storage_errors
from dlhpc.runs.checkpoints import BEST, FORMAT, CheckpointFile, CheckpointRecord, list_checkpoints, read_manifests
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.measures import better

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed
    from dlhpc.spec.models import Spec

KEEP_LAST = 2


@dataclass(frozen=True)
class Best:
    """The best validation so far: by its measure; of equal ones the lowest loss; of equal ones the earliest."""

    checkpoint: str
    epoch: float
    step: int
    measure: str
    """As the curves call it: ``val_accuracy``."""
    value: float
    loss: float

    def beaten_by(self, value: float, loss: float) -> bool:
        return better(self.measure, value, self.value) or (value == self.value and loss < self.loss)


@dataclass
class Position:
    """Where training stands; small enough for the manifest."""

    step: int = 0
    """Finished optimiser steps."""
    measured_step: int = 0
    """Step of the last validation."""
    snapshots: int = 0
    """Regular snapshots taken."""
    saved_step: int = 0
    """Step of the last checkpoint."""
    best: Best | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Position:
        best = value["best"]
        return cls(**{**value, "best": None if best is None else Best(**best)})


@dataclass
class TrainerState:
    """What training goes on from, besides weights and position."""

    optimiser: dict[str, Any]
    rank_floats: Tensor
    """Ranks×F: each rank's running statistics."""
    rank_counters: Tensor
    """Ranks×I, likewise."""
    running: Tensor
    """Ranks×k float64: the task's ``train_sums`` and the number of samples since the last point of the training
    curves."""


@dataclass
class Loaded:
    """A checkpoint that was read and found whole."""

    record: CheckpointRecord
    position: Position
    weights: dict[str, Tensor]
    state: TrainerState


@dataclass
class Checkpoints:
    """The checkpoints of one run, as rank 0 writes them. ``keep_every`` keeps every N-th snapshot for good."""

    run: RunDirectory
    keep_every: int | None
    description: dict[str, Any] = field(default_factory=dict)
    """See :func:`describe`."""

    def save(
        self,
        position: Position,
        steps_per_epoch: int,
        metrics: dict[str, float],
        weights: dict[str, Tensor],
        state: TrainerState,
        *,
        snapshot: bool,
    ) -> str:
        """Write a checkpoint durably, point to the best, then remove what is no longer kept; gives its name.

        Raises :class:`StorageError` (disk full, …); then earlier checkpoints are all still there.
        """
        name = name_of(position.step)
        folder = self.run.checkpoints
        with storage_errors(folder, "create"):
            folder.mkdir(exist_ok=True)
            # A damaged checkpoint of the same step may be here: without its manifest it does not count.
            (folder / f"{name}.json").unlink(missing_ok=True)
        content = safetensors.torch.save({key: tensor.cpu().contiguous() for key, tensor in weights.items()})
        written = {"weights": _write(folder / f"{name}.safetensors", content)}
        buffer = io.BytesIO()
        torch.save(vars(state), buffer)
        written["trainer"] = _write(folder / f"{name}.trainer.pt", buffer.getbuffer())
        replace_json(
            folder / f"{name}.json",
            {
                "format": FORMAT,
                "name": name,
                "epoch": position.step / steps_per_epoch,
                "step": position.step,
                "step_in_epoch": position.step % steps_per_epoch,
                "metrics": {key: value if math.isfinite(value) else None for key, value in metrics.items()},
                **self.description,
                **written,
                "snapshot": position.snapshots if snapshot else None,
                "state": position.to_json(),
            },
        )
        self.point_to_best(position.best)
        self._prune(position.best)
        return name

    def point_to_best(self, best: Best | None) -> None:
        """Let ``best.json`` name ``best``; does nothing if it does already."""
        path = self.run.checkpoints / BEST
        value = None if best is None else dataclasses.asdict(best)
        try:
            known = read_json(path)
        except StorageError:
            known = None
        if value is None:
            with storage_errors(path, "remove"):
                path.unlink(missing_ok=True)
        elif known != value:
            replace_json(path, value)

    def newest(self, warn: Callable[[str], None]) -> Loaded | None:
        """The newest whole checkpoint, or ``None``; each damaged one is named through ``warn`` and passed over."""
        records, damaged = read_manifests(self.run)
        for path in damaged:
            warn(f"the checkpoint manifest {path} is damaged; that checkpoint is not used")
        for record in reversed(records):
            try:
                return load(record)
            except DamagedCheckpoint as error:
                warn(f"{error.where}: {error.what}; the checkpoint before it is used")
        return None

    def forget_after(self, position: Position) -> None:
        """Training goes on from ``position``: checkpoints of later steps are damaged ones and count no more."""
        with storage_errors(self.run.checkpoints, "clean up"):
            for path in self.run.checkpoints.glob("step-*.json"):
                if path.stem > name_of(position.step):
                    path.unlink(missing_ok=True)
        self.point_to_best(position.best)

    def tidy(self) -> None:
        """Remove what a killed attempt left behind: temporary files, and files whose manifest was never written."""
        folder = self.run.checkpoints
        known = {path.stem for path in folder.glob("step-*.json")}
        with storage_errors(folder, "clean up"):
            for path in [*folder.glob(".*.tmp"), *folder.glob("step-*.safetensors"), *folder.glob("step-*.trainer.pt")]:
                if path.name.startswith(".") or path.name.split(".")[0] not in known:
                    path.unlink(missing_ok=True)

    def _prune(self, best: Best | None) -> None:
        records = list_checkpoints(self.run)
        for record in records[:-KEEP_LAST]:
            for_good = self.keep_every and record.snapshot and record.snapshot % self.keep_every == 0
            if for_good or (best is not None and record.name == best.checkpoint):
                continue
            # Nobody's work depends on this: a file that cannot be removed now is removed next time.
            with contextlib.suppress(OSError):
                record.manifest.unlink(missing_ok=True)
                fsync_folder(record.manifest.parent)
                record.weights.path.unlink(missing_ok=True)
                record.trainer.path.unlink(missing_ok=True)


def describe(spec: Spec, packed: Packed) -> dict[str, Any]:
    """What every manifest of a run says of the network and its input; see :class:`CheckpointRecord`."""
    height, width = spec.input_size
    return {
        "task": spec.task,
        "classes": packed.classes,
        "network": spec.network.name,
        "settings": {
            "network": spec.network.model_dump(mode="json"),
            "detection": spec.detection.model_dump(mode="json"),
            "several_labels": spec.data.several_labels,
            "targets": list(spec.data.table.targets) if spec.data.table is not None else [],
        },
        "input": {
            "channels": packed.channels,
            "height": height,
            "width": width,
            "color": "grey" if packed.channels == 1 else "rgb",
            "resize": spec.data.resize,
            "picture_height": packed.height,
            "picture_width": packed.width,
            "dtype": str(packed.dtype),
        },
    }


class DamagedCheckpoint(StorageError):
    """A checkpoint's file is not what its manifest says."""


def name_of(step: int) -> str:
    """What the checkpoint after ``step`` steps is called."""
    return f"step-{step:09d}"


def load(record: CheckpointRecord) -> Loaded:
    """Read a checkpoint and check it; :class:`DamagedCheckpoint` if a file is missing, cut or changed."""
    weights, trainer = _read(record.weights), _read(record.trainer)
    try:
        state = TrainerState(**torch.load(io.BytesIO(trainer), map_location="cpu", weights_only=True))
        return Loaded(record, Position.from_json(record.state), safetensors.torch.load(weights), state)
    except (RuntimeError, ValueError, TypeError, KeyError, EOFError, UnpicklingError, SafetensorError) as error:
        raise DamagedCheckpoint(f"cannot be read ({str(error).splitlines()[0]})", where=record.trainer.path) from error


def load_weights(record: CheckpointRecord) -> dict[str, Tensor]:
    """The weights alone, checked, on the CPU; for prediction."""
    return safetensors.torch.load(_read(record.weights))


def _write(path: Path, content: bytes | memoryview) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    replace_bytes(path, content)  # type: ignore[arg-type]
    return {"file": path.name, "sha256": digest, "bytes": len(content)}


def _read(file: CheckpointFile) -> bytes:
    try:
        content = file.path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedCheckpoint("is missing", where=file.path) from error
    except OSError as error:  # may pass; going back to an older checkpoint is not our decision then
        raise StorageError(
            f"cannot be read: {error.strerror}",
            where=file.path,
            remedy="If this does not pass, delete the checkpoint's three files to go on from the one before.",
        ) from error
    if len(content) != file.bytes or hashlib.sha256(content).hexdigest() != file.sha256:
        raise DamagedCheckpoint("is damaged (size or SHA-256 is not what its manifest says)", where=file.path)
    return content
