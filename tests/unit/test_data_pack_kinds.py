"""Packed datasets of every kind: shards, encoded pictures, boxes that follow, pictures added later, rows."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlhpc.data import shards
from dlhpc.data.catalog import Catalog, Sample, make_catalog
from dlhpc.data.pack import Preparation, pack
from dlhpc.data.pack_add import add_pictures
from dlhpc.data.packed import Packed, open_packed
from dlhpc.data.pictures import read_picture
from dlhpc.data.samples import Boxes
from dlhpc.errors import DataError, StorageError, UserError
from dlhpc.files import replace_json
from dlhpc.spec.models import Data
from tests.training import write_packed_table
from tests.unit.test_data_pack import everything, photos

GREY = Preparation("grey", 10, 12, "squash", skip_broken=False)


def prepared(**changed: Any) -> Preparation:
    return Preparation(**{**vars(GREY), **changed})


def sample(path: Path, target: Any) -> Sample:
    status = path.stat()
    return Sample(str(path), target, status.st_size, status.st_mtime_ns)


def gradient(height: int, width: int, *, rgb: bool = True) -> np.ndarray:
    """A smooth picture, as photographs are."""
    down, across = np.mgrid[0:height, 0:width]
    grey = 20 + 200 * down / height
    return (
        np.stack([grey, 20 + 200 * across / width, 255 - grey], axis=2).astype(np.uint8) if rgb else grey.astype("u1")
    )


# --- Shards ------------------------------------------------------------------------------------------------------


def test_a_large_set_lies_in_several_files_that_anybody_can_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos", 10))), tmp_path)
    with pack(catalog, GREY, tmp_path / "one", key="k", threads=2) as whole:
        monkeypatch.setattr(shards, "SHARD_BYTES", 7 * 120)
        with pack(catalog, GREY, tmp_path / "many", key="k", threads=2) as packed:
            files = [shard.file for shard in packed.index.shards]
            assert files == ["pictures-00000.npy", "pictures-00001.npy", "pictures-00002.npy"]
            mapped = [np.load(packed.folder / file, mmap_mode="r") for file in files]
            assert [part.shape for part in mapped] == [(7, 1, 10, 12), (7, 1, 10, 12), (6, 1, 10, 12)]
            both = np.concatenate([everything(packed, "train"), everything(packed, "val")])
            assert np.array_equal(np.concatenate(mapped), both)
            assert packed.fingerprint == whole.fingerprint
            assert np.array_equal(packed.mean_image, whole.mean_image)
            assert packed.index.histogram == whole.index.histogram
            assert sum(packed.index.histogram[0]) == packed.count("train") * 120
            assert packed.index.class_counts == {"train": [8, 8], "val": [2, 2], "unseen": [0, 0]}


def test_the_index_is_read_without_numpy(tmp_path: Path) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos"))), tmp_path)
    pack(catalog, GREY, tmp_path / "set", key="k", threads=1).close()
    code = (
        "import sys; from dlhpc.data.index import read_index; index = read_index(sys.argv[1]);"
        "print(index.task, index.counts, index.classes, 'numpy' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set")], capture_output=True, text=True, check=True
    )
    assert said.stdout == "classification {'train': 10, 'val': 2, 'unseen': 0} ['a', 'b'] False\n"


def test_damage_inside_a_shard_is_found_by_its_checksum(tmp_path: Path) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos"))), tmp_path)
    with pack(catalog, GREY, tmp_path / "set", key="k", threads=1) as packed:
        shard = packed.folder / "pictures-00000.npy"
        content = bytearray(shard.read_bytes())
        content[128 + 120 * 3 + 5] ^= 1
        shard.write_bytes(content)
        ((path, reason),) = packed.verify()
        assert path == packed.paths("train")[3]
        assert "is not as it was packed (in pictures-00000.npy)" in reason


def test_one_pread_a_picture_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos", 20))), tmp_path)
    monkeypatch.setattr(shards, "SHARD_BYTES", 5 * 120)
    with pack(catalog, GREY, tmp_path / "set", key="k", threads=1) as packed:
        calls: list[str] = []
        real = os.preadv

        def counted(*given: Any) -> int:
            calls.append("preadv")
            return real(*given)

        monkeypatch.setattr(os, "preadv", counted)
        for name in ("open", "stat", "fstat", "lseek"):
            monkeypatch.setattr(os, name, lambda *_, name=name, **__: calls.append(name))
        everything(packed, "train")
        monkeypatch.undo()
        assert calls == ["preadv"] * packed.count("train")


def test_a_killed_pack_goes_on_from_its_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * 120)
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos", 12))), tmp_path)
    with pack(catalog, GREY, tmp_path / "undisturbed", key="k", threads=1) as packed:
        fingerprint = packed.fingerprint

    class Killed(BaseException):
        pass

    def kill(done: int, total: int) -> None:
        if done == 15:
            raise Killed

    folder = tmp_path / "sets" / "k"
    with pytest.raises(Killed):
        pack(catalog, GREY, folder, key="k", threads=1, progress=kill)
    (left,) = folder.parent.iterdir()
    assert sorted(path.name for path in left.glob("*.npz")) == [f"pictures-0000{n}.npz" for n in range(3)]
    (left / "pictures-00001.npy").write_bytes(b"cut")  # what the disk lost meanwhile is made again
    read: list[str] = []
    monkeypatch.setattr("dlhpc.data.pack.file_content", lambda path: read.append(path) or Path(path).read_bytes())
    with pack(catalog, GREY, folder, key="k", threads=1) as packed:
        assert packed.fingerprint == fingerprint
        assert packed.verify() == []
    assert len(read) == 24 - 8, "two shards of four were finished"
    assert [path.name for path in folder.parent.iterdir()] == ["k"]


def test_a_shard_without_any_whole_picture_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 120)
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos", 8))), tmp_path)
    for picture in catalog.splits["train"][2:5]:
        Path(picture.path).write_bytes(b"")
    changed = Catalog(
        catalog.classes,
        {split: [sample(Path(s.path), s.target) for s in found] for split, found in catalog.splits.items()},
    )
    with pack(changed, prepared(skip_broken=True), tmp_path / "set", key="k", threads=2) as packed:
        assert len(packed.skipped) == 3
        assert [shard.samples for shard in packed.index.shards] == [2, 1, 2, 2, 2, 2, 2]
        for picture, path in zip(everything(packed, "train"), packed.paths("train")):
            assert np.array_equal(picture, read_picture(path, "grey", 10, 12))
        assert packed.verify() == []


# --- Encoded -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Catalog:
    """A JPEG, a PNG, a JPEG that lies on its side, a grey one, one with transparency, a BMP."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    picture = Image.fromarray(gradient(40, 60))
    picture.save(folder / "0.jpg", quality=90)
    picture.save(folder / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "2.jpg", exif=exif)
    picture.convert("L").save(folder / "3.jpg")
    picture.convert("RGBA").save(folder / "4.png")
    picture.save(folder / "5.bmp")
    found = [sample(path, number % 2) for number, path in enumerate(sorted(folder.iterdir()))]
    return Catalog(["a", "b"], {"train": found, "val": found[:2], "unseen": []})


@pytest.mark.parametrize(("storage", "kept"), [("jpeg", {0}), ("png", {0, 1})])
def test_plain_files_are_kept_and_others_encoded(mixed: Catalog, tmp_path: Path, storage: Any, kept: set[int]) -> None:
    how = prepared(color="rgb", height=16, width=24, storage=storage)
    with pack(mixed, how, tmp_path / "set", key="k", threads=2) as packed:
        assert packed.storage == storage
        pictures = everything(packed, "train")
        for number, found in enumerate(mixed.splits["train"]):
            content = packed.content(number)
            assert (content == Path(found.path).read_bytes()) == (number in kept)
            upright = (60, 40) if number == 2 else (40, 60)
            assert packed.decoded("train", number).shape == (*upright, 3)
            assert Image.open(io.BytesIO(content)).size == upright[::-1]
            off = np.abs(pictures[number] - read_picture(found.path, "rgb", 16, 24).astype(int)).max()
            assert off <= (0 if storage == "png" or number in kept else 3)
        assert np.allclose(packed.mean, (pictures / 255).mean(axis=(0, 2, 3)))
        assert np.allclose(packed.std, (pictures / 255).std(axis=(0, 2, 3)))
        assert packed.verify() == []


def test_16_bits_are_kept_as_png_and_refused_as_jpeg(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    import tifffile

    found = []
    for number in range(3):
        tifffile.imwrite(tmp_path / f"{number}.tif", values + np.uint16(number))
        found.append(sample(tmp_path / f"{number}.tif", number % 2))
    catalog = Catalog(["a", "b"], {"train": found, "val": found, "unseen": []})
    for storage in ("raw", "png"):
        with pack(catalog, prepared(storage=storage), tmp_path / storage, key=storage, threads=1) as packed:
            assert packed.dtype == np.uint16
            if storage == "png":
                assert np.array_equal(packed.decoded("train", 2)[:, :, 0], values + np.uint16(2))
            assert np.array_equal(everything(packed, "train")[1], read_picture(found[1].path, "grey", 10, 12))
    with pytest.raises(DataError, match="has 16 bits a value, and a JPEG keeps 8") as caught:
        pack(catalog, prepared(storage="jpeg"), tmp_path / "jpeg", key="j", threads=1)
    assert "storage: png" in str(caught.value)
    assert not (tmp_path / "jpeg").exists()


def test_a_picture_that_cannot_be_decoded_any_more_is_told_from_one_that_never_could(
    mixed: Catalog, tmp_path: Path
) -> None:
    with pack(mixed, prepared(color="rgb", storage="jpeg"), tmp_path / "set", key="k", threads=1) as packed:
        (shard,) = packed.folder.glob("pictures-*.bin")
        content = bytearray(shard.read_bytes())
        content[:40] = bytes(40)
        shard.write_bytes(content)
        with pytest.raises(DataError, match=r"pictures-00000\.bin no longer holds .*0\.jpg as it was packed"):
            everything(packed, "train")


# --- Boxes -------------------------------------------------------------------------------------------------------


def street(tmp_path: Path, boxes: list[list[float]], height: int = 40, width: int = 80) -> Catalog:
    """One picture that is black but for its boxes, which are white."""
    values = np.zeros((height, width), np.uint8)
    for _, left, top, right, bottom in boxes:
        values[max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))] = 255
    Image.fromarray(values).save(tmp_path / "street.png")
    found = [sample(tmp_path / "street.png", boxes)]
    return Catalog(["car", "van"], {"train": found, "val": found, "unseen": []}, task="detection")


@pytest.mark.parametrize("resize", ["squash", "crop", "fill", "half_crop", "pad"])
@pytest.mark.parametrize("size", [(40, 80), (80, 80), (32, 48), (48, 200)])
def test_boxes_stay_on_what_they_surround(tmp_path: Path, resize: Any, size: tuple[int, int]) -> None:
    catalog = street(tmp_path, [[1, 30, 12, 54, 30]])
    how = prepared(height=size[0], width=size[1], resize=resize)
    with pack(catalog, how, tmp_path / "set", key="k", threads=1) as packed:
        boxes = packed.targets("train")
        assert isinstance(boxes, Boxes)
        ((left, top, right, bottom),), (label,) = boxes.of(0)
        assert label == 1
        rows, columns = np.nonzero(everything(packed, "train")[0, 0] > 127)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.array([left, top, right, bottom]) - seen).max() <= 1
        assert packed.index.class_counts["train"] == [0, 1]


def test_boxes_are_clipped_dropped_or_no_longer_cared_for(tmp_path: Path) -> None:
    boxes = [[0, -10, 5, 20, 20], [0, 60, 5, 61, 30], [1, 0, 0, 9, 9], [-1, 100, 100, 200, 200]]
    with pack(street(tmp_path, boxes), prepared(height=40, width=80), tmp_path / "a", key="a", threads=1) as packed:
        targets = packed.targets("train")
        assert isinstance(targets, Boxes)
        assert targets.corners.tolist() == [[0, 5, 20, 20], [60, 5, 61, 30], [0, 0, 9, 9]]
        assert targets.classes.tolist() == [0, -1, 1], "one pixel wide: neither to be learnt nor to be found"
    with pack(
        street(tmp_path, boxes), prepared(height=40, width=40, resize="crop"), tmp_path / "b", key="b", threads=1
    ) as packed:
        assert len(packed.targets("train").of(0)[1]) == 0, "the sides are cut off, and all boxes with them"


@pytest.mark.parametrize("box", [[0, 90, 5, 99, 20], [0, 5, 5, 5, 20], [1, 5, -20, 9, 0]])
def test_a_box_outside_of_its_picture_is_an_error_or_skips_it(tmp_path: Path, box: list[float]) -> None:
    catalog = street(tmp_path, [[0, 1, 1, 9, 9], box])
    with pytest.raises(DataError) as caught:
        pack(catalog, GREY, tmp_path / "set", key="k", threads=1)
    assert "street.png" in str(caught.value)
    assert "its box 2 (`" in str(caught.value)
    (tmp_path / "photos").mkdir()
    good = street(tmp_path / "photos", [[0, 1, 1, 9, 9]])
    both = [*good.splits["train"], *catalog.splits["train"]]
    two = Catalog(["car", "van"], {"train": both, "val": good.splits["val"], "unseen": []}, task="detection")
    with pack(two, prepared(skip_broken=True), tmp_path / "skipped", key="s", threads=1) as packed:
        assert packed.count("train") == 1
        assert "box 2" in packed.skipped[0][1]


# --- Targets of the other tasks ------------------------------------------------------------------------------------


def test_numbers_and_several_labels(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 3)
    files = sorted((tmp_path / "photos").rglob("*.png"))
    numbers = [sample(path, [float(at), -30000.123]) for at, path in enumerate(files)]
    catalog = Catalog(
        [], {"train": numbers[:4], "val": numbers[4:], "unseen": []}, task="regression", target_names=["gap", "energy"]
    )
    with pack(catalog, GREY, tmp_path / "r", key="r", threads=1) as packed:
        assert packed.targets("val").tolist() == [[4, -30000.123], [5, -30000.123]]
        assert packed.target_names == ["gap", "energy"]
        assert packed.target_mean.tolist() == [1.5, -30000.123]
        assert packed.target_std.tolist() == pytest.approx([np.std([0, 1, 2, 3]), 1.0])
    marked = [sample(path, [[], [0], [0, 2], [1, 2]][at % 4]) for at, path in enumerate(files)]
    catalog = Catalog(["x", "y", "z"], {"train": marked[:4], "val": marked[4:], "unseen": []}, several_labels=True)
    with pack(catalog, GREY, tmp_path / "s", key="s", threads=1) as packed:
        assert packed.targets("train").tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 1, 1]]
        assert packed.index.class_counts["train"] == [2, 1, 2]
    nan = Catalog([], {"train": [sample(files[0], [float("nan")])], "val": numbers, "unseen": []}, task="regression")
    with pytest.raises(DataError, match="is not a finite number"):
        pack(nan, GREY, tmp_path / "n", key="n", threads=1)


def test_rows_of_a_table(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    targets = np.arange(6, dtype=np.float64) * 10
    splits = {"train": (rows[:4], targets[:4]), "val": (rows[4:], targets[4:])}
    with write_packed_table(tmp_path / "set", splits, features=["a", "b"], coding={"a": "number"}) as packed:
        assert (packed.kind, packed.features, packed.coding) == ("table", ["a", "b"], {"a": "number"})
        out = np.empty((2, 2), np.float32)
        packed.read("val", np.array([1, 0]), out)
        assert np.array_equal(out, rows[[5, 4]])
        assert packed.targets("val").tolist() == [[40], [50]]
        assert packed.mean.tolist() == [3, 4]
        assert packed.verify() == []
        assert np.array_equal(np.load(packed.folder / "rows.npy"), rows)


# --- Adding --------------------------------------------------------------------------------------------------------


def with_more(tmp_path: Path) -> Catalog:
    """The catalogue of `photos` after 4 pictures more were put into each of the classes."""
    photos(tmp_path / "more", 4, seed=9)
    for path in sorted((tmp_path / "more").rglob("*.png")):
        path.rename(tmp_path / "photos" / path.parent.name / f"new-{path.name}")
    return make_catalog(Data(folder=str(tmp_path / "photos")), tmp_path)


def test_pictures_are_added_without_packing_again(tmp_path: Path) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos", 6))), tmp_path)
    folder = tmp_path / "set"
    with pack(catalog, GREY, folder, key="k", threads=1) as before:
        old = {split: before.paths(split) for split in ("train", "val")}
        untouched = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "index.json"}
        done = add_pictures(folder, with_more(tmp_path), skip_broken=False, threads=2)
        assert (done.new, done.known) == (8, 12)
        with done.packed as packed:
            for split in ("train", "val"):
                assert packed.paths(split)[: len(old[split])] == old[split], "nobody changes place or split"
                for picture, path, label in zip(everything(packed, split), packed.paths(split), packed.targets(split)):
                    assert np.array_equal(picture, read_picture(path, "grey", 10, 12))
                    assert Path(path).parent.name == packed.classes[label]
            train = everything(packed, "train") / 255
            assert np.allclose(packed.mean, train.mean())
            assert np.allclose(packed.std, train.std())
            assert np.allclose(packed.mean_image, train.mean(axis=0))
            assert sum(map(sum, packed.index.class_counts.values())) == 20
            assert packed.fingerprint != before.fingerprint
            assert packed.verify() == []
        # Who trains on it, or goes on later with a run that did, sees what was there.
        assert {name: (folder / name).read_bytes() for name in untouched} == untouched
        assert len(everything(before, "train")) == len(old["train"])
        with open_packed(folder, before.fingerprint) as again:
            assert again.paths("train") == old["train"]
            assert np.array_equal(everything(again, "train"), everything(before, "train"))
    with pytest.raises(DataError, match="not the one any more"):
        open_packed(folder, "0" * 64)


def test_adding_twice_adds_nothing_and_new_classes_come_last(tmp_path: Path) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos", 6, classes="bd"))), tmp_path)
    folder = tmp_path / "set"
    pack(catalog, GREY, folder, key="k", threads=1).close()
    (tmp_path / "photos" / "b" / "0.png").touch()  # touched, but the same picture
    copy = tmp_path / "photos" / "b" / "copy of 1.png"
    copy.write_bytes((tmp_path / "photos" / "b" / "1.png").read_bytes())
    again = make_catalog(Data(folder=str(tmp_path / "photos")), tmp_path)
    done = add_pictures(folder, again, skip_broken=False, threads=1)
    done.packed.close()
    assert (done.new, done.known) == (0, 13)
    assert json.loads((folder / "index.json").read_text())["generation"] == 1
    photos(tmp_path / "photos", 4, classes="ac", seed=3)
    done = add_pictures(
        folder, make_catalog(Data(folder=str(tmp_path / "photos")), tmp_path), skip_broken=False, threads=1
    )
    with done.packed as packed:
        assert packed.classes == ["b", "d", "a", "c"]
        assert done.new == 8
        for path, label in zip(packed.paths("train"), packed.labels("train")):
            assert Path(path).parent.name == packed.classes[label]


def test_what_does_not_fit_is_not_added(tmp_path: Path) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos", 6))), tmp_path)
    folder = tmp_path / "set"
    pack(catalog, GREY, folder, key="k", threads=1).close()
    before = (folder / "index.json").read_bytes()

    def add() -> Any:
        found = make_catalog(Data(folder=str(tmp_path / "photos")), tmp_path)
        return add_pictures(folder, found, skip_broken=False, threads=1)

    one = tmp_path / "photos" / "a" / "1.png"
    content = one.read_bytes()
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(one)
    with pytest.raises(DataError, match="1 pictures of the dataset have changed since they were packed") as caught:
        add()
    assert str(one) in str(caught.value)
    one.write_bytes(content)
    deep = tmp_path / "photos" / "a" / "deep.png"
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 90).save(deep)
    with pytest.raises(DataError, match="has 16 bits a value, but the packed dataset has 8"):
        add()
    deep.write_bytes(b"no picture")
    with pytest.raises(DataError, match="1 of 2 pictures cannot be read"):
        add()
    deep.unlink()
    with pytest.raises(UserError, match="the dataset is for classification, what is to be added for detection"):
        add_pictures(folder, street(tmp_path, [[0, 1, 1, 9, 9]]), skip_broken=False, threads=1)
    assert (folder / "index.json").read_bytes() == before
    assert not [path for path in folder.iterdir() if "-g2" in path.name or path.name.endswith(".part")]


def test_an_addition_that_dies_leaves_the_dataset_as_it_was_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos", 6))), tmp_path)
    folder = tmp_path / "set"
    with pack(catalog, GREY, folder, key="k", threads=1) as packed:
        fingerprint = packed.fingerprint
    more = with_more(tmp_path)
    with monkeypatch.context() as patched:

        def full(*_: Any) -> None:
            raise StorageError("cannot write: No space left on device")

        patched.setattr("dlhpc.data.pack_add.write_index", full)
        with pytest.raises(StorageError):
            add_pictures(folder, more, skip_broken=False, threads=1)
    with open_packed(folder) as packed:
        assert packed.fingerprint == fingerprint
        assert packed.verify() == []
    done = add_pictures(folder, more, skip_broken=False, threads=1)
    with done.packed as packed:
        assert done.new == 8
        assert packed.verify() == []


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos"))), tmp_path)
    pack(catalog, GREY, tmp_path / "set", key="k", threads=1).close()
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    for name in ("../photos/a/0.png", "/etc/passwd", ""):
        index["shards"][0]["file"] = name
        replace_json(tmp_path / "set" / "index.json", index)
        with pytest.raises(DataError, match="names of files"):
            open_packed(tmp_path / "set")


def test_what_is_no_dataset_is_never_replaced_by_one(tmp_path: Path) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos"))), tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        pack(catalog, GREY, tmp_path / "thesis", key="k", threads=1, replace_damaged=False)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


def test_packed_closes_once(tmp_path: Path) -> None:
    catalog = make_catalog(Data(folder=str(photos(tmp_path / "photos"))), tmp_path)
    packed: Packed = pack(catalog, GREY, tmp_path / "set", key="k", threads=1)
    packed.close()
    packed.close()
