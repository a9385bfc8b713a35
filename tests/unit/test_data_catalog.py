"""Listing and splitting: folders of classes, separate folders, list files, and what is said when they do not fit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlhpc.data.catalog import Catalog, make_catalog
from dlhpc.data.splits import split_counts
from dlhpc.errors import DataError, ErrorList, StorageError
from dlhpc.spec.models import Data


def fill(folder: Path, **counts: int) -> Path:
    """Class folders with so many files named like pictures (a catalogue never opens them)."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(b"x" * (number + 1))
    return folder


def data(**settings: object) -> Data:
    return Data.model_validate(settings)


def relative(catalog: Catalog, folder: Path) -> dict[str, list[str]]:
    return {split: [os.path.relpath(p.path, folder) for p in found] for split, found in catalog.splits.items()}


def complaint(base: Path, **settings: object) -> str:
    with pytest.raises((DataError, ErrorList)) as caught:
        make_catalog(data(**settings), base)
    return str(caught.value)


fractions = st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any).map(lambda w: [v / sum(w) for v in w])


@given(st.integers(3, 5000), fractions)
def test_every_split_with_a_share_gets_a_picture_and_none_is_lost(count: int, shares: list[float]) -> None:
    counts = split_counts(count, shares)
    assert sum(counts) == count
    for share, got in zip(shares, counts):
        assert (got > 0) == (share > 0)
        assert abs(got - share * count) < 2 or got == 1


def test_the_usual_shares_come_out_as_one_expects() -> None:
    assert split_counts(10, [0.6, 0.2, 0.2]) == [6, 2, 2]
    assert split_counts(10, [0.75, 0.25, 0.0]) == [8, 2, 0]
    assert split_counts(3, [0.98, 0.01, 0.01]) == [1, 1, 1]


def test_one_folder_per_class_is_split_per_class(tmp_path: Path) -> None:
    fill(tmp_path / "faces", anna=10, ben=5)
    asked = data(folder="faces", split={"train": 0.6, "val": 0.2, "unseen": 0.2})
    catalog = make_catalog(asked, tmp_path)
    assert catalog.classes == ["anna", "ben"]
    assert catalog.counts("train") == [6, 3]
    assert catalog.counts("val") == [2, 1]
    assert catalog.counts("unseen") == [2, 1]
    every = [picture.path for found in catalog.splits.values() for picture in found]
    assert sorted(every) == sorted(map(str, (tmp_path / "faces").rglob("*.png")))
    assert all(os.path.isabs(path) for path in every)


def test_the_split_depends_on_the_seed_only_not_on_place_or_directory_order(tmp_path: Path) -> None:
    names = [f"p{number}.jpg" for number in range(40)]
    for place, seed in (("here", 1), ("there/deeper", 2)):
        for name in ("a", "b"):
            (tmp_path / place / name).mkdir(parents=True)
            for file in random.Random(seed).sample(names, len(names)):
                (tmp_path / place / name / file).touch()
    here, there = (
        relative(make_catalog(data(folder=place), tmp_path), tmp_path / place) for place in ("here", "there/deeper")
    )
    assert here == there
    other = make_catalog(data(folder="here", split={"seed": 2}), tmp_path)
    assert relative(other, tmp_path / "here") != here


def test_an_added_picture_does_not_reshuffle_the_others(tmp_path: Path) -> None:
    fill(tmp_path / "s", a=100, b=100)
    before = relative(make_catalog(data(folder="s"), tmp_path), tmp_path / "s")
    (tmp_path / "s" / "a" / "new.png").touch()
    after = relative(make_catalog(data(folder="s"), tmp_path), tmp_path / "s")
    assert len(set(before["val"]) - set(after["val"])) <= 1


def test_deep_folders_links_hidden_and_other_files(tmp_path: Path) -> None:
    fill(tmp_path / "set", a=4, b=4)
    (tmp_path / "set" / "a" / "2024" / "may").mkdir(parents=True)
    (tmp_path / "set" / "a" / "2024" / "may" / "x.TIFF").touch()
    (tmp_path / "set" / "a" / "2024" / "round").symlink_to(tmp_path / "set" / "a")
    (tmp_path / "set" / "a" / ".hidden.png").touch()
    (tmp_path / "set" / ".git").mkdir()
    (tmp_path / "set" / "b" / "notes.txt").touch()
    (tmp_path / "set" / "loose.png").touch()
    os.mkfifo(tmp_path / "set" / "b" / "pipe.png")
    catalog = make_catalog(data(folder="set"), tmp_path)
    assert sum(map(len, catalog.splits.values())) == 9
    said = "\n".join(catalog.notes)
    assert "1 .txt" in said
    assert "1 pictures that lie in no class folder" in said


def test_max_per_class_takes_a_seeded_choice(tmp_path: Path) -> None:
    fill(tmp_path / "s", a=50, b=5)
    catalog = make_catalog(data(folder="s", max_per_class=8), tmp_path)
    assert [sum(pair) for pair in zip(catalog.counts("train"), catalog.counts("val"))] == [8, 5]


def test_too_few_pictures_are_told_with_the_numbers(tmp_path: Path) -> None:
    fill(tmp_path / "s", anna=1, ben=9)
    three = {"train": 0.6, "val": 0.2, "unseen": 0.2}
    said = complaint(tmp_path, folder="s", split=three)
    assert (
        "class `anna` has 1 picture; 3 are needed: at least one each for train, val and unseen; "
        "data.min_per_class is 2" in said
    )
    (tmp_path / "s" / "empty").mkdir()
    said = complaint(tmp_path, folder="s", split=three)
    assert "2 classes have too few pictures: `anna` 1, `empty` 0; 3 are needed" in said
    said = complaint(tmp_path, folder="s", min_per_class=10)
    assert "`ben` 9" in said


def test_a_wrong_folder_gets_a_suggestion(tmp_path: Path) -> None:
    fill(tmp_path / "faces", a=3, b=3)
    assert f"Did you mean {tmp_path / 'faces'}?" in complaint(tmp_path, folder="facse")
    assert "has no `nowhere`" in complaint(tmp_path, folder="nowhere/at/all")
    assert "is a file" in complaint(tmp_path, folder="faces/a/0.png")


def test_folders_that_are_no_set_of_classes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is empty" in complaint(tmp_path, folder="empty")
    fill(tmp_path, flat=7)
    assert "holds 7 pictures, but no class folders" in complaint(tmp_path, folder="flat")
    fill(tmp_path / "one", only=7)
    said = complaint(tmp_path, folder="one")
    assert "only one class folder, `only`" in said
    for split in ("train", "val", "test"):
        fill(tmp_path / "sets" / split, a=3, b=3)
    said = complaint(tmp_path, folder="sets")
    assert "look like splits" in said
    assert "`folders:`" in said


def test_a_class_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "s", a=3, b=3)
    os.mkdir(os.fsencode(tmp_path / "s") + b"/caf\xe9")
    assert "is not valid UTF-8" in complaint(tmp_path, folder="s")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_an_unreadable_folder_is_a_storage_error(tmp_path: Path) -> None:
    fill(tmp_path / "s", a=3, b=3)
    (tmp_path / "s" / "a").chmod(0)
    with pytest.raises(StorageError, match="cannot read the folder"):
        make_catalog(data(folder="s"), tmp_path)


def test_separate_folders(tmp_path: Path) -> None:
    fill(tmp_path / "train", a=4, b=3)
    fill(tmp_path / "val", a=2, b=1)
    fill(tmp_path / "test", b=1)
    folders = {"train": "train", "val": "val", "unseen": "test"}
    catalog = make_catalog(data(folders=folders), tmp_path)
    assert [catalog.counts(split) for split in ("train", "val", "unseen")] == [[4, 3], [2, 1], [0, 1]]
    fill(tmp_path / "val", c=1)
    fill(tmp_path / "train", d=5)
    said = complaint(tmp_path, folders=folders)
    assert "train has no picture of the class `c`" in said
    assert "val has no picture of the class `d`" in said


def write_lists(folder: Path, **lists: str) -> dict[str, str]:
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return {name: f"{name}.txt" for name in lists}


def test_lists_with_class_names_and_blanks_in_paths(tmp_path: Path) -> None:
    fill(tmp_path / "my set", a=3, b=3)
    lists = write_lists(
        tmp_path,
        train="\ufeff# made by hand\r\nmy set/a/0.png a\r\nmy set/a/1.png\ta\n\nmy set/b/0.png b\nmy set/b/1.png  b\n",
        val=f"{tmp_path}/my set/a/2.png a\nmy set/b/2.png b\nmy set/b/0.png b\n",
    )
    catalog = make_catalog(data(lists=lists), tmp_path)
    assert catalog.classes == ["a", "b"]
    assert catalog.counts("train") == [2, 2]
    assert catalog.counts("val") == [1, 2]
    assert catalog.notes == ["1 picture is listed in train and val: accuracy measured on known pictures looks too good"]


def test_lists_with_numbers_and_a_labels_file(tmp_path: Path) -> None:
    fill(tmp_path / "s", x=4, y=4)
    lists = write_lists(
        tmp_path,
        labels="dog\ncat\n",
        train="x/0.png 1\nx/1.png 1\ny/0.png 0\ny/1.png dog\n",
        val="x/2.png 1\ny/2.png 0\n",
    )
    catalog = make_catalog(data(lists={**lists, "root": "s"}), tmp_path)
    assert catalog.classes == ["dog", "cat"]
    assert [(os.path.relpath(p.path, tmp_path / "s"), p.label) for p in catalog.splits["val"]] == [
        ("y/2.png", 0),
        ("x/2.png", 1),
    ]


def test_numbered_classes_without_a_labels_file_sort_by_number(tmp_path: Path) -> None:
    fill(tmp_path / "s", x=24)
    rows = [f"s/x/{number}.png {number % 12}" for number in range(24)]
    lists = write_lists(tmp_path, train="\n".join(rows), val="\n".join(rows))
    assert make_catalog(data(lists=lists, min_per_class=1), tmp_path).classes == [str(n) for n in range(12)]


def test_every_fault_of_a_list_is_told_at_its_line(tmp_path: Path) -> None:
    fill(tmp_path / "s", x=4)
    lists = write_lists(
        tmp_path,
        labels="dog\ncat\n",
        train="s/x/0.png 0\ns/x/missing.png 1\nlonely\ns/x/1.png bird\ns/x/2.png 7\ns/x/0.png 1\n",
        val="s/x/3.png 0\n" + "\n".join(f"gone{n}.png 1" for n in range(30)),
    )
    said = complaint(tmp_path, lists=lists)
    assert f"{tmp_path}/train.txt:2: there is no file {tmp_path}/s/x/missing.png" in said
    assert f"{tmp_path}/train.txt:3: `lonely` has no label" in said
    assert f"{tmp_path}/train.txt:4: class `bird` is not in the labels file" in said
    assert f"{tmp_path}/train.txt:5: class number 7 is not in the labels file" in said
    assert f"{tmp_path}/train.txt:6: s/x/0.png is of class `cat` here and of class `dog` in train" in said
    assert "… and 15 more faults" in said


def test_a_missing_or_binary_list(tmp_path: Path) -> None:
    assert "there is no such file" in complaint(tmp_path, lists={"train": "t.txt", "val": "v.txt"})
    (tmp_path / "t.txt").write_bytes(b"a.png x\nb\xff.png y\n")
    assert f"{tmp_path}/t.txt:2: is not UTF-8" in complaint(tmp_path, lists={"train": "t.txt", "val": "v.txt"})


def test_the_catalogue_survives_a_round_trip_with_any_file_name(tmp_path: Path) -> None:
    fill(tmp_path / "s", a=3, b=3)
    (Path(os.fsdecode(os.fsencode(tmp_path / "s" / "a") + b"/caf\xe9.png"))).touch()
    (tmp_path / "s" / "b" / "猫\n\"'$(x).png").touch()
    catalog = make_catalog(data(folder="s"), tmp_path)
    catalog.write(tmp_path / "dataset.json")
    assert Catalog.read(tmp_path / "dataset.json") == catalog


@pytest.mark.parametrize("content", ["", "{}", '{"format": 1, "classes": ["a"], "splits": {"train": [["p"]]}}', "[1]"])
def test_a_damaged_catalogue_is_an_error_not_a_crash(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(StorageError):
        Catalog.read(tmp_path / "dataset.json")


def test_the_key_changes_with_pictures_and_preparation_only(tmp_path: Path) -> None:
    fill(tmp_path / "s", a=3, b=3)

    def key(**settings: object) -> str:
        asked = data(folder="s", **settings)
        return make_catalog(asked, tmp_path).key(asked)

    first = key()
    assert first == key() == key(normalize="image")
    assert len({first, key(width=64), key(color="rgb"), key(resize="crop"), key(broken="skip")}) == 5
    later = time.time() + 10
    os.utime(tmp_path / "s" / "a" / "0.png", (later, later))
    assert key() != first


def test_the_login_node_needs_no_numpy_or_pillow_to_make_a_catalogue() -> None:
    heavy = "('numpy', 'PIL', 'pydantic', 'pyarrow')"
    modules = ", ".join(
        f"dlhpc.data.{name}" for name in ("catalog", "class_folders", "lists", "kitti", "tables", "index")
    )
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- Lists with several labels, and with numbers ----------------------------------------------------------------------


def listed(base: Path, train: str, val: str, **more: object) -> dict[str, object]:
    """List files beside ten pictures p0.png … p9.png."""
    (base / "s").mkdir(exist_ok=True)
    for number in range(10):
        (base / "s" / f"p{number}.png").touch()
    (base / "train.txt").write_text(train)
    (base / "val.txt").write_text(val)
    return {"lists": {"train": "train.txt", "val": "val.txt", "root": "s", **more}}


def test_a_picture_may_have_several_labels_or_none(tmp_path: Path) -> None:
    train = "p0.png cat,dog\np1.png dog, cat\np2.png cat\np3.png\np4.png dog\n"
    given = listed(tmp_path, train, "p8.png cat\np9.png cat\n")
    catalog = make_catalog(data(**given, several_labels=True), tmp_path)
    assert catalog.classes == ["cat", "dog"]
    assert [sample.target for sample in catalog.splits["train"]] == [[0, 1], [0, 1], [0], [], [1]]
    assert catalog.counts("train") == [3, 3]
    assert catalog.notes == ["no picture in val has the label `dog`: it cannot be measured"]
    catalog.write(tmp_path / "dataset.json")
    assert Catalog.read(tmp_path / "dataset.json") == catalog


def test_labels_of_several_may_be_numbers_of_a_labels_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\nowl\n")
    given = listed(tmp_path, "p0.png 0,1\np1.png 1 , 2\np2.png 7\np3.png 0,bird\n", "p8.png\n", labels="labels.txt")
    said = complaint(tmp_path, **given, several_labels=True)
    assert "train.txt:3: class number 7 is not in the labels file" in said
    assert "train.txt:4: class `bird` is not in the labels file" in said
    given = listed(tmp_path, "p0.png 0,1\np1.png 1 , 0\n", "p8.png\n", labels="labels.txt")
    said = complaint(tmp_path, **given, several_labels=True)
    assert "too few pictures in train have these labels: `owl` 0; data.min_per_class is 2" in said


def regression(base: Path, train: str, val: str, **more: object) -> Catalog:
    return make_catalog(data(**listed(base, train, val, **more)), base, "regression")


def test_numbers_to_learn(tmp_path: Path) -> None:
    catalog = regression(tmp_path, "p0.png 1.5 -2e3\np1.png 2, 7\n", "p9.png 0 0\n")
    assert (catalog.task, catalog.classes, catalog.target_names) == ("regression", [], ["target 1", "target 2"])
    assert [sample.target for sample in catalog.splits["train"]] == [[1.5, -2000.0], [2.0, 7.0]]
    (tmp_path / "names.txt").write_text("energy\nvolume\n")
    named = regression(tmp_path, "p0.png 1.5 3\np1.png 2 3\n", "p9.png 0 0\n", labels="names.txt")
    assert named.target_names == ["energy", "volume"]
    assert named.notes == ["the target `volume` is 3 for every training picture: there is nothing to learn"]
    assert catalog.key(data(**listed(tmp_path, "", ""))) != named.key(data(**listed(tmp_path, "", "")))


def test_numbers_that_are_none_are_told_with_their_lines(tmp_path: Path) -> None:
    train = "p0.png 1\np1.png nan\np2.png 1 2\np3.png\np4.png many\np5.png inf\np0.png 2\np77.png 3\n"
    with pytest.raises(ErrorList) as caught:
        regression(tmp_path, train, "p9.png 1\n")
    said, file = str(caught.value), tmp_path / "train.txt"
    assert f"{file}:2: the target is nan" in said
    assert f"{file}:3: 2 numbers here, but earlier lines have 1" in said
    assert f"{file}:4: `p3.png` has no label" in said
    assert f"{file}:5: `many` is not a number" in said
    assert f"{file}:6: the target is inf" in said
    assert f"{file}:7: p0.png is 2 here and 1 in train" in said
    assert f"{file}:8: there is no file {tmp_path / 's' / 'p77.png'}" in said


def test_an_empty_list_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the list for val names no pictures"):
        regression(tmp_path, "p0.png 1\n", "# nothing\n")


def test_a_catalogue_of_the_first_format_is_still_read(tmp_path: Path) -> None:
    old = '{"format":1,"classes":["a"],"splits":{"train":[["/a.png",0,3,4]],"val":[],"unseen":[]},"notes":[]}'
    (tmp_path / "dataset.json").write_text(old)
    catalog = Catalog.read(tmp_path / "dataset.json")
    assert (catalog.task, catalog.splits["train"][0].label) == ("classification", 0)
