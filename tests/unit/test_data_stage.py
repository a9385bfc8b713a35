"""A copy of the dataset on the node's own disk, and what happens where there is no room for one."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dlhpc.data import stage
from dlhpc.data.packed import Packed, open_packed
from dlhpc.data.stage import scratch_of, staged
from dlhpc.errors import DataError
from tests.training import stripes, write_packed


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    splits = {"train": stripes(30), "val": stripes(10, seed=1)}
    write_packed(tmp_path / "shared", splits, [*"abcd"], per_shard=8).close()
    return tmp_path / "shared"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks as if it lay on another disk."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(stage, "_on_one_disk", lambda *_: False)
    return tmp_path / "scratch"


def pictures(packed: Packed) -> np.ndarray:
    out = np.empty((packed.count("train"), packed.channels, packed.height, packed.width), packed.dtype)
    packed.read("train", np.arange(len(out)), out)
    return out


def test_the_copy_is_the_dataset_and_stays_for_the_next_attempt(shared: Path, scratch: Path) -> None:
    warnings: list[str] = []
    folder = staged(shared, scratch, warn=warnings.append)
    assert folder.parent.parent == scratch
    assert folder.parent.stat().st_mode & 0o077 == 0, "nobody else can put something else there"
    with open_packed(folder) as copy, open_packed(shared) as original:
        assert np.array_equal(pictures(copy), pictures(original))
        assert copy.verify() == []
        assert copy.paths("val") == original.paths("val")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert staged(shared, scratch, warn=warnings.append) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert warnings == []


def test_without_scratch_or_on_the_same_disk_nothing_is_copied(shared: Path, tmp_path: Path) -> None:
    assert staged(shared, None) == shared
    assert staged(shared, tmp_path / "missing on this node") == shared
    (tmp_path / "here").mkdir()
    assert staged(shared, tmp_path / "here") == shared
    assert not list((tmp_path / "here").iterdir())


def test_scratch_is_above_the_folder_of_the_job() -> None:
    assert scratch_of({"DLHPC_SCRATCH": "/local/dlhpc-0123-1"}) == Path("/local")
    assert scratch_of({"DLHPC_SCRATCH": ""}) is None
    assert scratch_of({}) is None


def test_all_ranks_of_a_node_copy_once(shared: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Path] = []
    real = stage._copied

    def counted(source: Path, target: Path) -> int:
        copied.append(source)
        time.sleep(0.005)
        return real(source, target)

    monkeypatch.setattr(stage, "_copied", counted)
    monkeypatch.setattr(stage, "_POLL_SECONDS", 0.01)
    found: list[Path] = []
    ranks = [threading.Thread(target=lambda: found.append(staged(shared, scratch))) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(set(found)) == 1
    assert len(copied) == len(set(copied))


def test_no_room_is_told_once_and_the_shared_dataset_used(
    shared: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    warnings: list[str] = []
    for _ in range(3):
        assert staged(shared, scratch, warn=warnings.append) == shared
    (said,) = warnings
    assert "read from shared storage" in said
    assert "GB are free" in said


def test_old_copies_make_room_and_fresh_ones_do_not(
    shared: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = scratch / f"dlhpc-datasets-{os.getuid()}"
    for name in ("old", "fresh"):
        (own / name).mkdir(parents=True)
    own.chmod(0o700)
    os.utime(own / "old", (0, 0))

    def usage(_: Path) -> object:
        free = 10**9 if not (own / "old").exists() else 0
        return shutil._ntuple_diskusage(10**9, 10**9 - free, free)

    monkeypatch.setattr(stage.shutil, "disk_usage", usage)
    assert staged(shared, scratch).parent == own
    assert (own / "fresh").exists()


def test_a_damaged_shard_is_not_staged(shared: Path, scratch: Path) -> None:
    shard = shared / "pictures-00002.npy"
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)
    warnings: list[str] = []
    assert staged(shared, scratch, warn=warnings.append) == shared
    assert "does not have the checksum" in warnings[0]
    assert not [path for path in (scratch / f"dlhpc-datasets-{os.getuid()}").iterdir() if path.is_dir()]


def test_a_copy_that_was_cut_is_made_again(shared: Path, scratch: Path) -> None:
    folder = staged(shared, scratch)
    os.truncate(folder / "pictures-00001.npy", 10)
    assert staged(shared, scratch) == folder
    with open_packed(folder) as copy:
        assert copy.verify() == []


def test_a_folder_that_others_may_write_to_is_not_used(shared: Path, scratch: Path) -> None:
    own = scratch / f"dlhpc-datasets-{os.getuid()}"
    own.mkdir()
    own.chmod(0o777)
    warnings: list[str] = []
    assert staged(shared, scratch, warn=warnings.append) == shared
    assert "not a folder of yours alone" in warnings[0]


def test_another_dataset_than_planned_is_an_error(shared: Path, scratch: Path) -> None:
    with pytest.raises(DataError, match="not the one any more"):
        staged(shared, scratch, fingerprint="0" * 64)
