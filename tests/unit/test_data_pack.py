"""Packing a run's pictures as the job does, and reading them back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlhpc.data import workplace
from dlhpc.data.__main__ import main
from dlhpc.data.catalog import make_catalog
from dlhpc.data.pack import Preparation, pack
from dlhpc.data.pack_add import add_pictures
from dlhpc.data.packed import Packed, open_packed
from dlhpc.data.pictures import read_picture
from dlhpc.errors import AttemptExit, DataError, StorageError
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, read_journal
from dlhpc.runs.plan import DatasetSummary, Plan, read_plan
from dlhpc.spec.models import Data


def photos(folder: Path, count: int = 6, *, classes: str = "ab", mode: str = "L", seed: int = 0) -> Path:
    """Class folders of small random pictures."""
    random = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            shape = (20, 30) if mode == "L" else (20, 30, 3)
            Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / name / f"{number}.png")
    return folder


def make_run(base: Path, number: int = 1, *, task: Any = "classification", **settings: Any) -> RunDirectory:
    """A run directory as submission leaves it, for the pictures in ``base``/photos or what ``settings`` name."""
    source = {} if {"packed", "table", "kitti"} & set(settings) else {"folder": "photos"}
    data = Data.model_validate({**source, "width": 12, "height": 10, **settings})
    catalog = make_catalog(data, base, task)
    key = catalog.key(data)
    run = RunDirectory(base / "runs" / f"run{number}")
    run.path.mkdir(parents=True)
    catalog.write(run.catalog)
    counts = [catalog.count(split) for split in ("train", "val", "unseen")]
    folder = catalog.packed.folder if catalog.packed is not None else str(base / "runs" / ".datasets" / key)
    summary = DatasetSummary(key, folder, len(catalog.classes), *counts)
    Plan(
        run_id="x", dlhpc_version="0", created="2026-01-01T00:00:00+00:00", site="local", scheduler="local",
        dialect=None, queue="local", nodes=1, ranks=2, ranks_per_node=2, cores_per_rank=1, gpus_per_rank=0,
        memory_bytes=None, walltime_seconds=3600, save_margin_seconds=60, kill_grace_seconds=30, crash_retries=2,
        max_attempts=100, launcher="none", launch=[], hostfile_option=None, python=sys.executable, environment="here",
        environment_prefix="/", exports={},
        global_batch=4, steps_per_epoch=1, total_steps=1, base_rate=0.1, dataset=summary,
        spec={"data": data.model_dump(mode="json")},
    ).write(run.plan)  # fmt: skip
    return run


def packed_of(run: RunDirectory) -> Packed:
    return open_packed(json.loads(run.plan.read_text())["dataset"]["packed"])


def everything(packed: Packed, split: Any) -> Any:
    count = packed.count(split)
    out = np.empty((count, packed.channels, packed.height, packed.width), dtype=packed.dtype)
    packed.read(split, np.arange(count), out)
    return out


def test_the_packed_pictures_are_those_of_the_catalogue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos", mode="RGB")
    run = make_run(tmp_path, split={"train": 0.5, "val": 0.3, "unseen": 0.2})
    assert main([str(run.path)]) == 0
    assert "pictures (rgb 12×10, 8 bits)" in capsys.readouterr().out
    with packed_of(run) as packed:
        assert packed.classes == ["a", "b"]
        assert [packed.count(split) for split in ("train", "val", "unseen")] == [6, 4, 2]
        for split in ("train", "val", "unseen"):
            pictures = everything(packed, split)
            for picture, path, label in zip(pictures, packed.paths(split), packed.labels(split)):
                assert Path(path).parent.name == packed.classes[label]
                assert np.array_equal(picture, read_picture(path, "rgb", 10, 12))
        assert packed.verify() == []
        train = everything(packed, "train") / 255
        assert np.allclose(packed.mean, train.mean(axis=(0, 2, 3)))
        assert np.allclose(packed.std, train.std(axis=(0, 2, 3)))
        assert np.allclose(packed.mean_image, train.mean(axis=0))
        chosen = np.array([3, 0, 3])
        out = np.empty((3, 3, 10, 12), np.uint8)
        packed.read("train", chosen, out)
        assert np.array_equal(out / 255, train[chosen])
    assert not list((tmp_path / "runs" / ".datasets").glob(".*"))


def test_a_second_run_of_the_same_pictures_packs_nothing(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    first, second = make_run(tmp_path, 1), make_run(tmp_path, 2)
    assert main([str(first.path)]) == 0
    folder = packed_of(first).folder
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    shutil.move(tmp_path / "photos", tmp_path / "moved")  # so packing again would fail
    assert main([str(second.path)]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 20)
    catalog = make_catalog(Data(folder="photos"), tmp_path)
    how = Preparation("grey", 10, 12, "squash", skip_broken=False)
    found = [pack(catalog, how, tmp_path / f"{n}", key="k", threads=n).fingerprint for n in (1, 2, 7)]
    assert len(set(found)) == 1


def test_colour_is_found_out_and_16_bits_win(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 40)
    run = make_run(tmp_path, 1)
    assert main([str(run.path)]) == 0
    assert (packed_of(run).channels, packed_of(run).dtype) == (1, np.uint8)
    with packed_of(run) as packed:
        eight = everything(packed, "train")
        # A picture among those that are not looked at beforehand turns out to be deep.
        late = packed.paths("train")[1]
    deep = np.asarray(Image.open(late)).astype(np.uint16) * 257
    Image.fromarray(deep).save(late)
    run = make_run(tmp_path, 2)
    assert main([str(run.path)]) == 0
    with packed_of(run) as packed:
        assert packed.dtype == np.uint16
        sixteen = everything(packed, "train")
        assert np.abs(sixteen / 257 - eight).max() <= 1
        assert 0 < packed.mean[0] < 1


def spoil(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:50])


def test_broken_pictures_are_fatal_and_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos", 30)
    spoil(tmp_path / "photos", "a/1.png", "b/29.png")
    run = make_run(tmp_path)
    assert main([str(run.path)]) == 65
    said = capsys.readouterr().err
    assert "2 of 60 pictures cannot be read" in said
    assert f"{tmp_path}/photos/a/1.png: is truncated" in said
    assert f"{tmp_path}/photos/b/29.png: is truncated" in said
    assert "Traceback" not in said
    (last,) = read_journal(run)[0]
    assert (last.event, last.details["code"], last.attempt) == (Event.FAILED, 65, 1)
    assert not list((tmp_path / "runs" / ".datasets").iterdir())


def test_many_broken_pictures_are_counted_after_the_first_20(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "photos", 40)
    spoil(tmp_path / "photos", *(f"{name}/{number}.png" for name in "ab" for number in range(0, 40, 2)))
    assert main([str(make_run(tmp_path, 1).path)]) == 65
    assert "… and 20 more" in capsys.readouterr().err
    run = make_run(tmp_path, 2, broken="skip")
    monkeypatch.setenv("DLHPC_ATTEMPT", "3")
    for _ in range(2):  # a second attempt does not warn again
        assert main([str(run.path)]) == 0
        warned = [entry for entry in read_journal(run)[0] if entry.event == Event.WARNING]
        assert len(warned) == 21
        assert {entry.attempt for entry in warned} == {3}
    assert warned[20].details["message"].startswith("skipped 20 more broken pictures")
    with packed_of(run) as packed:
        assert len(packed.skipped) == 40
        assert packed.count("train") + packed.count("val") == 40
        for picture, path in zip(everything(packed, "val"), packed.paths("val")):
            assert np.array_equal(picture, read_picture(path, "grey", 10, 12))


def test_skipping_may_not_empty_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos", 4)
    spoil(tmp_path / "photos", *(f"b/{number}.png" for number in range(4)))
    assert main([str(make_run(tmp_path, broken="skip").path)]) == 65
    said = capsys.readouterr().err
    assert "class `b`: all 3 pictures in train are broken" in said
    assert "class `b`: all 1 pictures in val are broken" in said


def test_a_full_disk_is_told_before_and_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path / "photos")
    catalog = make_catalog(Data(folder="photos"), tmp_path)
    how = Preparation("grey", 10, 12, "squash", skip_broken=False)
    with monkeypatch.context() as patched:
        patched.setattr(workplace.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
        with pytest.raises(StorageError, match=r"packing needs 1\.\d MB, but only 0\.0 MB are free here"):
            pack(catalog, how, tmp_path / "sets" / "k", key="k", threads=1)
    code = (
        "import resource, sys; from pathlib import Path; from dlhpc.data.__main__ import main;"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); sys.exit(main(sys.argv[1:]))"
    )
    run = make_run(tmp_path)
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs" / ".datasets").iterdir())
    assert not list((tmp_path / "sets").iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_while_packing_nothing_counts_and_the_next_attempt_packs(tmp_path: Path, number: int) -> None:
    photos(tmp_path / "photos", 60)
    run = make_run(tmp_path, width=400, height=400)
    sets = tmp_path / "runs" / ".datasets"
    command = [sys.executable, "-m", "dlhpc.data", str(run.path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(sets.glob(".*.part/.pictures-*")):
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate()
    if process.returncode == 0:
        pytest.skip("packing was too fast to be killed")
    left = list(sets.iterdir())
    if number == signal.SIGTERM:
        assert (process.returncode, left) == (128 + 15, [])
        assert "packing was stopped by SIGTERM" in said
    else:
        assert [path.name[0] for path in left] == ["."], "a hidden folder that counts for nothing"
        for path in [*left[0].iterdir(), left[0]]:
            os.utime(path, (0, 0))  # a day later it is swept away
    assert main([str(run.path)]) == 0
    assert [path.name for path in sets.iterdir()] == [packed_of(run).folder.name]


def test_two_packs_at_once_do_not_mix(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 30)
    catalog = make_catalog(Data(folder="photos"), tmp_path)
    how = Preparation("grey", 50, 50, "squash", skip_broken=False)
    together = threading.Barrier(3)
    found: list[str] = []

    def work() -> None:
        together.wait()
        found.append(pack(catalog, how, tmp_path / "sets" / "k", key="k", threads=1).fingerprint)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["k"]


@pytest.mark.parametrize("file", ["index.json", "pictures-00000.npy", "targets.npy", "samples.npy"])
@pytest.mark.parametrize("damage", ["cut", "gone", "garbled"])
def test_a_damaged_packed_dataset_is_noticed_and_packed_anew(tmp_path: Path, file: str, damage: str) -> None:
    photos(tmp_path / "photos")
    run = make_run(tmp_path)
    assert main([str(run.path)]) == 0
    path = packed_of(run).folder / file
    fingerprint = packed_of(run).fingerprint
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"[1, 2]")
    with pytest.raises((DataError, StorageError)) as caught:
        packed_of(run)
    assert file in str(caught.value)
    assert main([str(run.path)]) == 0
    assert packed_of(run).fingerprint == fingerprint


def test_one_changed_byte_is_noticed_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos")
    run = make_run(tmp_path)
    assert main([str(run.path)]) == 0
    path = packed_of(run).folder / "pictures-00000.npy"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main([str(run.path)]) == AttemptExit.BAD_DATA
    said = capsys.readouterr().err
    assert "pictures-00000.npy is not as it was written" in said
    assert "Delete the folder" in said


def test_a_file_that_shrinks_while_open_is_noticed(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    run = make_run(tmp_path)
    assert main([str(run.path)]) == 0
    with packed_of(run) as packed:
        os.truncate(packed.folder / "pictures-00000.npy", 100)
        with pytest.raises(DataError, match="ends in the middle"):
            everything(packed, "train")
        with pytest.raises(IndexError):
            packed.read("train", np.array([packed.count("train")]), np.empty((1, 1, 10, 12), np.uint8))


def test_bad_run_directories_are_told_kindly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 1
    assert "error: " in capsys.readouterr().err
    assert main([]) == 78
    photos(tmp_path / "photos")
    run = make_run(tmp_path)
    run.catalog.write_text("{")
    assert main([str(run.path)]) == 1
    assert read_journal(run)[0][-1].event == Event.FAILED


def test_pictures_that_changed_after_submission_are_named_and_not_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(photos(tmp_path / "photos").parent)
    changed = tmp_path / "photos" / "a" / "3.png"
    shutil.copyfile(tmp_path / "photos" / "b" / "1.png", changed)
    assert main([str(run.path)]) == 65
    said = capsys.readouterr().err
    assert "1 picture has changed since the run was submitted" in said
    assert str(changed) in said
    assert not packing_folder(run).exists()


def test_touched_pictures_do_not_stop_a_run_that_was_trained_on_them(tmp_path: Path) -> None:
    run = make_run(photos(tmp_path / "photos").parent)
    assert main([str(run.path)]) == 0
    with open_packed(packing_folder(run)) as packed:
        run.provenance.write_text(json.dumps({"dataset": {"fingerprint": packed.fingerprint}}))
    shutil.rmtree(packing_folder(run))
    (tmp_path / "photos" / "a" / "3.png").touch()
    assert main([str(run.path)]) == 0


def test_a_run_on_a_packed_dataset_uses_it_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos"))), tmp_path)
    how = Preparation("grey", 10, 12, "squash", skip_broken=False)
    pack(catalog, how, tmp_path / "set", key="k", threads=1).close()
    run = make_run(tmp_path, packed="set")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    shutil.rmtree(tmp_path / "photos")
    assert main([str(run.path)]) == 0
    assert f"10 train, 2 val, 0 unseen in {tmp_path}/set" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == before
    # Pictures that are added do not change what this run was planned with.
    photos(tmp_path / "more", 3, seed=7)
    added = add_pictures(
        tmp_path / "set", make_catalog(Data(folder=str(tmp_path / "more")), tmp_path), skip_broken=False, threads=1
    )
    added.packed.close()
    assert main([str(run.path)]) == 0
    assert "10 train, 2 val, 0 unseen" in capsys.readouterr().out
    # Another dataset in its place is told, and nothing is written over it.
    shutil.rmtree(tmp_path / "set")
    other = make_catalog(Data(folder=str(tmp_path / "more")), tmp_path)
    pack(other, how, tmp_path / "set", key="k", threads=1).close()
    assert main([str(run.path)]) == 65
    assert "the packed dataset is not the one any more" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "set")
    assert main([str(run.path)]) == 1
    assert not (tmp_path / "set").exists()


def test_a_run_on_rows_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{n},{'abc'[n % 3]},{2 * n}\n" for n in range(24))
    (tmp_path / "t.csv").write_text("x,kind,y\n" + rows)
    run = make_run(tmp_path, task="regression", table={"file": "t.csv", "targets": "y"})
    for _ in range(2):
        assert main([str(run.path)]) == 0
    with packed_of(run) as packed:
        assert (packed.kind, packed.task, packed.target_names) == ("table", "regression", ["y"])
        values = np.empty((packed.count("train"), len(packed.features)), np.float32)
        packed.read("train", np.arange(len(values)), values)
        assert np.array_equal(2 * values[:, packed.features.index("x")], packed.targets("train")[:, 0])
        assert packed.coding is not None
        assert packed.verify() == []
        fingerprint = packed.fingerprint
    shutil.rmtree(packing_folder(run))
    (tmp_path / "t.csv").write_text("x,kind,y\n" + rows.replace("2,c,4", "2,c,5"))
    assert main([str(run.path)]) == 65
    assert "1 table has changed since the run was submitted" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("x,kind,y\n" + rows)  # as it was, though with another mtime
    run.provenance.write_text(json.dumps({"dataset": {"fingerprint": fingerprint}}))
    assert main([str(run.path)]) == 0


def packing_folder(run: RunDirectory) -> Path:
    return Path(read_plan(run.plan).dataset.packed)
