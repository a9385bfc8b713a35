"""Writing, choosing and reading checkpoints, so that a death at any instruction leaves the earlier ones intact.

Order of writing: weights, trainer state (each fsynced and renamed into place), the curves so far (fsynced), manifest
with the SHA-256 of both, pointer to the best, and only then are older checkpoints removed, manifest first.
``dlhpc.runs.checkpoints`` tells what the files are. Both hold tensors in the format of safetensors: nothing is pickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlhpc.errors import StorageError
from dlhpc.files import fsync_folder, read_json, replace_json, replacing, storage_errors
from dlhpc.runs.checkpoints import BEST, FORMAT, CheckpointFile, CheckpointRecord, list_checkpoints, read_manifests
from dlhpc.runs.directory import RunDirectory
from dlhpc.train.position import Best, Position, TrainerState
from dlhpc.train.stream import Held

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed
    from dlhpc.spec.models import Spec

KEEP_LAST = 2


@dataclass
class Loaded:
    """A checkpoint that was read and found whole. Its tensors are memory-mapped: copy them before files may go."""

    record: CheckpointRecord
    position: Position
    weights: dict[str, Tensor]
    state: TrainerState


@dataclass
class Pending:
    """A checkpoint that is still to be written."""

    held: Held
    manifest: dict[str, Any]
    """All of it but what is known only once the files are there."""
    numbers: str
    """JSON, of the trainer state."""
    best: Best | None
    released: bool = False
    """The held tensors have been copied where they were not written yet."""

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    def write(self, path: Path, prefix: str, notes: dict[str, str]) -> dict[str, Any]:
        """Write the tensors whose names begin so; gives SHA-256 and length, as the manifest has them."""
        names = {name.removeprefix(prefix): name for name in self.held.names if name.startswith(prefix)}
        digest, length = self.held.write(path, names, notes)
        return {"sha256": digest, "bytes": length}


@dataclass
class Checkpoints:
    """The checkpoints of one run, as rank 0 writes them. ``keep_every`` keeps every N-th snapshot for good."""

    run: RunDirectory
    keep_every: int | None
    description: dict[str, Any] = field(default_factory=dict)
    """See :func:`describe`."""

    def prepare(
        self,
        position: Position,
        steps_per_epoch: int,
        metrics: dict[str, float],
        weights: Mapping[str, Tensor],
        state: TrainerState,
        *,
        snapshot: bool,
    ) -> Pending:
        """Hold everything that a checkpoint of this moment needs. The tensors may change after ``held.keep_all()``."""
        named = {f"weights.{name}": tensor for name, tensor in weights.items()}
        named |= {f"trainer.{name}": tensor for name, tensor in state.tensors().items()}
        manifest = {
            "format": FORMAT,
            "name": name_of(position.step),
            "epoch": position.step / steps_per_epoch,
            "step": position.step,
            "step_in_epoch": position.step % steps_per_epoch,
            "metrics": {key: value if math.isfinite(value) else None for key, value in metrics.items()},
            **self.description,
            "snapshot": position.snapshots if snapshot else None,
            "state": position.to_json(),
        }
        return Pending(Held(named), manifest, json.dumps(state.numbers()), position.best)

    def write(self, pending: Pending) -> str:
        """Write a checkpoint durably, point to the best, then remove what is no longer kept; gives its name.

        Raises :class:`StorageError` (disk full, …); then earlier checkpoints are all still there.
        """
        name = pending.name
        folder = self.run.checkpoints
        with storage_errors(folder, "create"):
            folder.mkdir(exist_ok=True)
            # A damaged checkpoint of the same step may be here: without its manifest it does not count.
            (folder / f"{name}.json").unlink(missing_ok=True)
        weights, trainer = folder / f"{name}.safetensors", folder / f"{name}.trainer.safetensors"
        # Everything is read before the first fsync, which may take long: then the tensors are free again. Weights are
        # renamed into place first.
        with replacing(trainer) as new_trainer, replacing(weights) as new_weights:
            written = {
                "weights": {"file": weights.name, **pending.write(new_weights, "weights.", {})},
                "trainer": {
                    "file": trainer.name, **pending.write(new_trainer, "trainer.", {"trainer": pending.numbers})
                },
            }  # fmt: skip
        _make_durable(self.run.curves)  # a point that is older than a checkpoint is not measured again
        replace_json(folder / f"{name}.json", {**pending.manifest, **written})
        self.point_to_best(pending.best)
        self._prune(pending.best)
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
            for path in [*folder.glob(".*.tmp"), *folder.glob("step-*.safetensors")]:
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
    return {
        "task": spec.task,
        "classes": packed.classes,
        "network": spec.network.name,
        "settings": {
            "network": spec.network.model_dump(mode="json"),
            "detection": spec.detection.model_dump(mode="json"),
            "several_labels": packed.several_labels,
            "targets": packed.target_names,
            "coding": packed.coding,
        },
        "input": {"kind": "table", "features": packed.features} if packed.kind == "table" else _pictures(spec, packed),
    }


def _pictures(spec: Spec, packed: Packed) -> dict[str, Any]:
    height, width = spec.input_size
    return {
        "kind": "pictures",
        "channels": packed.channels,
        "height": height,
        "width": width,
        "color": "grey" if packed.channels == 1 else "rgb",
        "resize": spec.data.resize,
        "resized_crop": spec.augment.resized_crop is not None,
        "antialias": spec.augment.antialias,
        "picture_height": packed.height,
        "picture_width": packed.width,
        "dtype": str(packed.dtype),
        "features": [],
    }


class DamagedCheckpoint(StorageError):
    """A checkpoint's file is not what its manifest says."""


def name_of(step: int) -> str:
    """What the checkpoint after ``step`` steps is called."""
    return f"step-{step:09d}"


def load(record: CheckpointRecord) -> Loaded:
    """Read a checkpoint and check it; :class:`DamagedCheckpoint` if a file is missing, cut or changed."""
    weights, _ = _read(record.weights)
    tensors, notes = _read(record.trainer)
    try:
        state = TrainerState.of(tensors, json.loads(notes["trainer"]))
        return Loaded(record, Position.from_json(record.state), weights, state)
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedCheckpoint(f"cannot be read ({str(error).splitlines()[0]})", where=record.trainer.path) from error


def load_weights(record: CheckpointRecord) -> dict[str, Tensor]:
    """The weights alone, checked, on the CPU; for prediction."""
    return {name: tensor.clone() for name, tensor in _read(record.weights)[0].items()}  # the file may go meanwhile


def _read(file: CheckpointFile) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (memory-mapped) and notes of a file that is what its manifest says."""
    try:
        with file.path.open("rb", buffering=0) as content:
            whole = os.fstat(content.fileno()).st_size == file.bytes
            whole = whole and hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
        if not whole:
            raise DamagedCheckpoint("is damaged (size or SHA-256 is not what its manifest says)", where=file.path)
        with safe_open(file.path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise DamagedCheckpoint("is missing", where=file.path) from error
    except SafetensorError as error:
        raise DamagedCheckpoint(f"cannot be read ({str(error).splitlines()[0]})", where=file.path) from error
    except OSError as error:  # may pass; going back to an older checkpoint is not our decision then
        raise StorageError(
            f"cannot be read: {error.strerror or error}",
            where=file.path,
            remedy="If this does not pass, delete the checkpoint's three files to go on from the one before.",
        ) from error


def _make_durable(path: Path) -> None:
    """Wait until what was appended to ``path`` is on the disk, if there is such a file."""
    with storage_errors(path), contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
