"""Checkpoints that are written while training goes on: what they hold, and what happens when something fails."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from dlhpc.errors import StorageError
from dlhpc.runs.directory import RunDirectory
from dlhpc.train import stream
from dlhpc.train.checkpoint import Checkpoints, Pending, load
from dlhpc.train.position import Position, TrainerState
from dlhpc.train.saver import Saver
from dlhpc.train.stream import Held

DESCRIPTION: dict[str, Any] = {"task": "classification", "classes": ["a"], "network": "x", "settings": {}, "input": {}}


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "counter": torch.tensor(7),
        "matrix": torch.randn(300, 50),
        "pictures": torch.randn(8, 4, 5, 6).to(memory_format=torch.channels_last),
        "turned": torch.randn(30, 40).t(),
        "half": torch.randn(9).to(torch.bfloat16),
        "double": torch.randn(3, dtype=torch.float64),
        "flags": torch.tensor([True, False, True]),
        "nothing": torch.zeros(2, 0),
    }


def same_names(named: dict[str, Tensor]) -> dict[str, str]:
    return {name: name for name in named}


@pytest.mark.parametrize("chunk", [100, 4096, 2**22])
def test_the_safetensors_library_reads_what_we_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", chunk)
    given = tensors()
    path = tmp_path / "some.safetensors"
    digest, length = Held(given).write(path, same_names(given), {"note": "é"})
    assert (digest, length) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    found = safetensors.torch.load_file(path)
    assert set(found) == set(given)
    for name, tensor in given.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype
    with safetensors.safe_open(path, "pt") as opened:
        assert opened.metadata() == {"note": "é"}


def test_tensors_may_change_in_the_middle_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1000)
    given = {"one": torch.arange(3000.0).reshape(300, 10), "two": torch.ones(500)}
    before = {name: tensor.clone() for name, tensor in given.items()}
    held = Held(given)
    half_written, changed = threading.Event(), threading.Event()
    original = stream._Tensor.next_rows

    def slowly(self: Any) -> Any:
        rows = original(self)
        if self.shape == [300, 10] and len(self._rows) == 200:
            half_written.set()
        return rows

    monkeypatch.setattr(stream._Tensor, "next_rows", slowly)

    def train() -> None:
        half_written.wait()
        held.keep_all()
        for tensor in given.values():
            tensor.zero_()
        changed.set()

    thread = threading.Thread(target=train)
    thread.start()
    held.write(tmp_path / "x", same_names(given), {})
    thread.join()
    assert changed.is_set()
    found = safetensors.torch.load_file(tmp_path / "x")
    assert all(torch.equal(found[name], before[name]) for name in given)


def test_only_what_is_not_written_yet_is_copied(tmp_path: Path) -> None:
    given = {"large": torch.zeros(1000), "small": torch.zeros(10)}
    held = Held(given)
    held.write(tmp_path / "x", {"large": "large"}, {})
    assert held.keep_all() == 40


# ---- The saver


class Slow(Checkpoints):
    """A file system that takes its time, until it is let go."""

    gate = threading.Event()

    def write(self, pending: Pending) -> str:
        self.gate.wait(10)
        return super().write(pending)


def prepared(store: Checkpoints, step: int, weights: Tensor) -> Pending:
    empty = torch.zeros(1, 0)
    state = TrainerState({"state": {}, "groups": []}, empty, empty, torch.zeros(1, 3))
    return store.prepare(Position(step=step), 10, {}, {"weight": weights}, state, snapshot=True)


def test_training_goes_on_while_a_slow_disk_is_written_to(tmp_path: Path) -> None:
    store, told = Slow(RunDirectory(tmp_path), None, DESCRIPTION), list[str]()
    store.gate.clear()
    saver = Saver(store, lambda pending: told.append(pending.name))
    weights = torch.ones(5)
    saver.start(prepared(store, 10, weights))
    saver.release()
    weights.zero_()
    assert told == []
    store.gate.set()
    saver.wait()
    assert told == ["step-000000010"]
    loaded = store.newest(lambda _: None)
    assert loaded is not None
    assert torch.equal(load(loaded.record).weights["weight"], torch.ones(5))


def test_what_goes_wrong_is_told_before_the_next_update(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    store = Checkpoints(RunDirectory(tmp_path), None, DESCRIPTION)
    told: list[str] = []
    saver = Saver(store, lambda pending: told.append(pending.name))
    saver.start(prepared(store, 10, torch.ones(5)))
    while saver.busy:
        time.sleep(0.01)
    with pytest.raises(StorageError, match="cannot create"):
        saver.release()
    assert told == []
    saver.release()  # told once


def test_the_next_checkpoint_waits_for_the_one_before(tmp_path: Path) -> None:
    store, told = Checkpoints(RunDirectory(tmp_path), None, DESCRIPTION), list[str]()
    saver = Saver(store, lambda pending: told.append(pending.name))
    for step in (10, 20, 30):
        saver.start(prepared(store, step, torch.ones(5)))
    saver.wait()
    assert told == ["step-000000010", "step-000000020", "step-000000030"]
