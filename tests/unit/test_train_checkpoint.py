"""Checkpoints: what is kept, what is believed, and what a full disk leaves behind."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dlhpc.errors import StorageError
from dlhpc.files import read_json
from dlhpc.runs.checkpoints import best_checkpoint, list_checkpoints
from dlhpc.runs.directory import RunDirectory
from dlhpc.train.checkpoint import Checkpoints, load_weights
from dlhpc.train.position import Best, Position, TrainerState

DESCRIPTION = {
    "task": "classification",
    "classes": ["a", "b"],
    "network": "lenet",
    "settings": {},
    "input": {"channels": 1},
}


def checkpoints(folder: Path, keep_every: int | None = None) -> Checkpoints:
    return Checkpoints(RunDirectory(folder), keep_every, DESCRIPTION)


def save(store: Checkpoints, step: int, *, best: Best | None = None, size: int = 8, accuracy: float = 0.5) -> str:
    position = Position(step=step, measured_step=step, snapshots=step // 10, saved_step=step, best=best)
    weights = {"weight": torch.full((size,), float(step))}
    state = TrainerState({"state": {}, "groups": []}, torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 3))
    metrics = {"val_accuracy": accuracy, "val_loss": math.nan}
    return store.write(store.prepare(position, 10, metrics, weights, state, snapshot=True))


def names(folder: Path) -> list[int]:
    return [record.step for record in list_checkpoints(RunDirectory(folder))]


def nothing(message: str) -> None:
    raise AssertionError(message)


def newest_step(store: Checkpoints) -> int | None:
    """Of the newest checkpoint that is whole; its files are closed again."""
    loaded = store.newest(nothing)
    return None if loaded is None else loaded.position.step


def test_the_last_two_the_best_and_every_nth_are_kept(tmp_path: Path) -> None:
    store = checkpoints(tmp_path, keep_every=3)
    best = None
    for step in range(10, 110, 10):
        if step == 40:
            best = Best("step-000000040", 4.0, 40, "val_accuracy", 0.9, 0.1)
        save(store, step, best=best)
    assert names(tmp_path) == [30, 40, 60, 90, 100]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 5 * 3 + 1
    found = best_checkpoint(RunDirectory(tmp_path))
    assert found is not None
    assert found.step == 40


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    store = checkpoints(tmp_path)
    save(store, 10, best=Best("step-000000010", 1.0, 10, "val_accuracy", 0.5, 0.7))
    loaded = store.newest(nothing)
    assert loaded is not None
    assert loaded.position == Position(10, 10, 1, 10, Best("step-000000010", 1.0, 10, "val_accuracy", 0.5, 0.7))
    assert torch.equal(loaded.weights["weight"], torch.full((8,), 10.0))
    assert loaded.record.metrics == {"val_accuracy": 0.5, "val_loss": None}
    assert (loaded.record.epoch, loaded.record.step_in_epoch, loaded.record.classes) == (1.0, 0, ["a", "b"])
    assert torch.equal(load_weights(loaded.record)["weight"], loaded.weights["weight"])


def damage_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("harm", [damage_one_byte, cut_short, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("suffix", ["safetensors", "trainer.safetensors", "json"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, suffix: str, harm) -> None:
    if suffix == "json" and harm is damage_one_byte:
        pytest.skip("one changed byte of a manifest may be as good as the other")
    store = checkpoints(tmp_path)
    save(store, 10)
    name = save(store, 20)
    harm(tmp_path / "checkpoints" / f"{name}.{suffix}")
    warnings: list[str] = []
    loaded = store.newest(warnings.append)
    assert loaded is not None
    assert loaded.position.step == 10
    if not (suffix == "json" and harm is Path.unlink):  # without its manifest it never was a checkpoint
        assert f"{name}.{suffix}" in warnings[0]


def test_nothing_from_a_checkpoint_is_executed(tmp_path: Path) -> None:
    store = checkpoints(tmp_path)
    save(store, 10)
    name = save(store, 20)

    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "executed",))

    content = pickle.dumps({"optimiser": Evil()}, protocol=2)
    (tmp_path / "checkpoints" / f"{name}.trainer.safetensors").write_bytes(content)
    manifest = tmp_path / "checkpoints" / f"{name}.json"
    value = read_json(manifest)
    value["trainer"].update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    manifest.write_text(json.dumps(value))
    loaded = store.newest(lambda _: None)
    assert not (tmp_path / "executed").exists()
    assert loaded is not None
    assert loaded.position.step == 10


def test_what_a_killed_attempt_left_is_swept_up(tmp_path: Path) -> None:
    store = checkpoints(tmp_path)
    save(store, 10)
    folder = tmp_path / "checkpoints"
    before = set(folder.iterdir())
    (folder / ".step-000000020.safetensors.abcd.tmp").write_bytes(b"half")
    (folder / "step-000000020.safetensors").write_bytes(b"whole, but no manifest")
    (folder / "step-000000020.trainer.safetensors").write_bytes(b"")
    store.tidy()
    assert set(folder.iterdir()) == before


def test_the_pointer_follows_the_best_even_backwards(tmp_path: Path) -> None:
    store = checkpoints(tmp_path)
    save(store, 10, best=Best("step-000000010", 1.0, 10, "val_accuracy", 0.5, 0.7))
    save(store, 20, best=Best("step-000000020", 2.0, 20, "val_accuracy", 0.6, 0.6))
    store.forget_after(Position(10, best=Best("step-000000010", 1.0, 10, "val_accuracy", 0.5, 0.7)))
    assert names(tmp_path) == [10]
    found = best_checkpoint(RunDirectory(tmp_path))
    assert found is not None
    assert found.step == 10


def test_of_equal_accuracies_the_lower_loss_is_the_best() -> None:
    best = Best("x", 1.0, 10, "val_accuracy", 0.5, 0.7)
    assert best.beaten_by(0.5, 0.6)
    assert best.beaten_by(0.6, 9.0)
    assert not best.beaten_by(0.5, 0.7)
    assert not best.beaten_by(0.4, 0.1)


def test_a_file_size_limit_is_a_kind_error_and_keeps_the_earlier_checkpoints(tmp_path: Path) -> None:
    store = checkpoints(tmp_path)
    save(store, 10)
    before = set((tmp_path / "checkpoints").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="cannot write"):
            save(store, 20, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert set((tmp_path / "checkpoints").iterdir()) == before
    loaded = store.newest(nothing)
    assert loaded is not None
    assert loaded.position.step == 10


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of one megabyte, where mounting is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False)
    except OSError:
        pytest.skip("there is no mount command")
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_a_kind_error_and_keeps_the_earlier_checkpoints(small_disk: Path) -> None:
    store = checkpoints(small_disk)
    save(store, 10, size=50_000)
    before = set((small_disk / "checkpoints").iterdir())
    with pytest.raises(StorageError, match="No space left") as caught:
        save(store, 20, size=250_000)
    assert "Free some space" in str(caught.value)
    assert set((small_disk / "checkpoints").iterdir()) == before
    assert newest_step(store) == 10


def test_checkpoints_are_listed_without_torch(tmp_path: Path) -> None:
    save(checkpoints(tmp_path), 10)
    code = (
        "import sys; from pathlib import Path; from dlhpc.runs.checkpoints import *; "
        "from dlhpc.runs.directory import RunDirectory; "
        "print(list_checkpoints(RunDirectory(Path(sys.argv[1])))[0].name, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["step-000000010", "False"]
