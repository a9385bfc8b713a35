"""KITTI's layout: what becomes a box of which class, who measures, and what is said of files that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dlhpc.data.catalog import Catalog, make_catalog
from dlhpc.errors import DataError, ErrorList
from dlhpc.spec.models import Data

REST = "1.89 0.48 1.20 1.84 1.47 8.41 0.01"


def line(kind: str, *box: float, truncated: float = 0, occluded: int = 0) -> str:
    left, top, right, bottom = box or (10, 20, 50, 60)
    return f"{kind} {truncated} {occluded} -0.20 {left} {top} {right} {bottom} {REST}"


def street(folder: Path, pictures: dict[str, Sequence[str]]) -> Path:
    """A folder with image_2 and label_2; nothing opens the pictures here."""
    (folder / "image_2").mkdir(parents=True, exist_ok=True)
    (folder / "label_2").mkdir(exist_ok=True)
    for name, lines in pictures.items():
        (folder / "image_2" / f"{name}.png").touch()
        (folder / "label_2" / f"{name}.txt").write_text("".join(f"{one}\n" for one in lines))
    return folder


def catalog(base: Path, split: dict[str, Any] | None = None, **kitti: Any) -> Catalog:
    where = {"images": "street/image_2", "labels": "street/label_2", **kitti}
    return make_catalog(Data.model_validate({"kitti": where, "split": split or {}}), base, "detection")


def complaint(base: Path, **kitti: Any) -> str:
    with pytest.raises((DataError, ErrorList)) as caught:
        catalog(base, **kitti)
    return str(caught.value)


def boxes(found: Catalog) -> dict[str, Any]:
    return {Path(sample.path).stem: sample.target for part in found.splits.values() for sample in part}


def names(found: Catalog, split: str) -> set[str]:
    return {Path(sample.path).stem for sample in found.splits[split]}


def test_each_type_is_a_class_but_dontcare(tmp_path: Path) -> None:
    street(
        tmp_path / "street",
        {
            "000000": [line("Pedestrian", 712.4, 143, 810.73, 307.92), line("Car")],
            "000001": [line("Car"), "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"],
            "000002": [],
        },
    )
    found = catalog(tmp_path)
    assert found.task == "detection"
    assert found.classes == ["Car", "Pedestrian"]
    assert boxes(found) == {
        "000000": [[1, 712.4, 143, 810.73, 307.92], [0, 10, 20, 50, 60]],
        "000001": [[0, 10, 20, 50, 60], [-1, 503.89, 169.71, 590.61, 190.13]],
        "000002": [],
    }
    assert (found.count("train"), found.count("val")) == (2, 1)
    found.write(tmp_path / "dataset.json")
    assert Catalog.read(tmp_path / "dataset.json") == found


def test_a_mapping_makes_classes_and_the_rest_is_not_cared_for(tmp_path: Path) -> None:
    street(tmp_path / "street", {f"{n:06d}": [line("Car"), line("Van"), line("Tram"), line("Misc")] for n in range(8)})
    found = catalog(tmp_path, mapping={"car": "vehicle", "Van": "vehicle", "Misc": "dontcare", "Truck": "vehicle"})
    assert found.classes == ["vehicle"]
    assert [box[0] for box in boxes(found)["000003"]] == [0, 0, -1, -1]
    assert sum(found.counts(split)[0] for split in ("train", "val")) == 16
    said = "\n".join(found.notes)
    assert "8 of type Tram, 8 of type Misc" in said
    assert "names `Truck`, which is in no label file" in said


def test_filters_make_dontcare_of_objects_and_keep_the_picture(tmp_path: Path) -> None:
    lines = [
        line("Car"),
        line("Car", truncated=0.6),
        line("Car", occluded=2),
        line("Car", 0, 0, 30, 24),
        line("Car", truncated=0.5, occluded=1),
    ]
    street(tmp_path / "street", {str(number): lines for number in range(4)})
    found = catalog(tmp_path, max_truncated=0.5, max_occluded=1, min_height=25)
    assert [box[0] for box in boxes(found)["0"]] == [0, -1, -1, -1, 0]
    (said,) = found.notes
    assert said.endswith(
        "neither learnt nor counted as mistakes: 4 cut off by the edge, 4 hidden, 4 lower than 25 pixels"
    )


def test_faults_are_told_with_file_and_line_all_at_once(tmp_path: Path) -> None:
    street(
        tmp_path / "street",
        {
            "a": [line("Car"), "Car 0 0 0 1 2 3 4"],
            "b": [line("Car", 50, 20, 10, 60)],
            "c": [line("Car", 5, 20, 10, 20)],
            "d": ["Person sitting 0 0 0 1 2 3 4 1 1 1 1 1 1 1"],
            "e": [line("Car", 1, 2, float("nan"), 4)],
            "f": [line("Car", truncated=50)],
            "g": [line("Car", occluded=7)],
        },
    )
    (tmp_path / "street" / "image_2" / "h.jpg").touch()
    (tmp_path / "street" / "image_2" / "a.jpg").touch()
    said = complaint(tmp_path)
    labels = tmp_path / "street" / "label_2"
    assert f"{labels / 'a.txt'}:2: 8 columns; KITTI's format has 15" in said
    assert f"{labels / 'b.txt'}:1: the box has no width: left is 50 and right 10" in said
    assert f"{labels / 'c.txt'}:1: the box has no height" in said
    assert f"{labels / 'd.txt'}:1: truncated is `sitting`, not a number" in said
    assert f"{labels / 'e.txt'}:1: right is nan" in said
    assert f"{labels / 'f.txt'}:1: truncated is 50" in said
    assert f"{labels / 'g.txt'}:1: occluded is 7" in said
    assert f"picture h.jpg has no label file h.txt in {labels}" in said
    assert "a.jpg and a.png would share one label file" in said


def test_very_many_faults_are_counted(tmp_path: Path) -> None:
    street(tmp_path / "street", {f"{n:06d}": ["Car 0 0"] for n in range(50)})
    said = complaint(tmp_path)
    assert said.count("columns") == 20
    assert "30 more faults" in said


def test_label_files_without_a_picture_are_a_note(tmp_path: Path) -> None:
    street(tmp_path / "street", {"a": [line("Car")], "b": [line("Car")]})
    (tmp_path / "street" / "label_2" / "z.txt").write_text("what?\n")
    assert any("1 label file without a picture" in note for note in catalog(tmp_path).notes)


def test_missing_classes_and_folders_are_told(tmp_path: Path) -> None:
    assert "there is no such folder" in complaint(tmp_path)
    street(tmp_path / "street", {str(n): [line("DontCare")] for n in range(4)})
    assert "no object is of a class that can be learnt" in complaint(tmp_path)
    said = complaint(tmp_path, mapping={"Car": "car", "Cyclist": "bike"})
    assert "train has no object of the classes `bike`, `car`" in said
    assert f"Name {tmp_path / 'street' / 'image_2'}" in complaint(tmp_path, images="street")


def test_folders_of_their_own_for_val_and_unseen(tmp_path: Path) -> None:
    for part, count in (("street", 6), ("val", 2), ("test", 3)):
        street(tmp_path / part, {f"{part}{n}": [line("Car")] for n in range(count)})
    own = {
        "val_images": "val/image_2",
        "val_labels": "val/label_2",
        "unseen_images": "test/image_2",
        "unseen_labels": "test/label_2",
    }
    found = catalog(tmp_path, **own, sequences="none.txt")
    assert found.notes == ["data.kitti.sequences is not used: val lies apart, and nothing is shared out"]
    assert [found.count(split) for split in ("train", "val", "unseen")] == [6, 2, 3]
    only_unseen = {key: value for key, value in own.items() if key.startswith("unseen")}
    found = catalog(tmp_path, {"train": 0.4, "val": 0.2, "unseen": 0.4}, **only_unseen)
    assert [found.count(split) for split in ("train", "val", "unseen")] == [4, 2, 3]


def test_pictures_of_a_sequence_stay_together(tmp_path: Path) -> None:
    pictures = [f"{drive}-{n}" for drive in range(6) for n in range(3 + drive)]
    street(tmp_path / "street", {name: [line("Car")] for name in pictures})
    (tmp_path / "drives.txt").write_text("".join(f"{name}.png drive{name[0]}\n" for name in pictures))
    found = catalog(tmp_path, {"train": 0.6, "val": 0.4}, sequences="drives.txt")
    assert {name[0] for name in names(found, "train")}.isdisjoint(name[0] for name in names(found, "val"))
    folded = [catalog(tmp_path, {"folds": 3, "fold": fold}, sequences="drives.txt") for fold in (1, 2, 3)]
    measured = [names(one, "val") for one in folded]
    assert set.union(*measured) == set(pictures)
    assert sum(map(len, measured)) == len(pictures)
    (tmp_path / "drives.txt").write_text("".join(f"{name} one\n" for name in pictures))
    assert "1 sequence cannot be shared out; at least 2 are needed" in complaint(tmp_path, sequences="drives.txt")


def test_kittis_own_files_say_which_drive_a_picture_is_of(tmp_path: Path) -> None:
    """Entry i of train_rand.txt is the line, from 1, of picture i in train_mapping.txt."""
    street(tmp_path / "street", {f"{n:06d}": [line("Car")] for n in range(4)})
    drives = ["0001", "0001", "0005", "0005"]
    rows = [f"2011_09_26 2011_09_26_drive_{drive}_sync 000000010{n}\n" for n, drive in enumerate(drives)]
    (tmp_path / "train_mapping.txt").write_text("".join(rows))
    (tmp_path / "train_rand.txt").write_text("3,1,4,2\n")
    found = catalog(tmp_path, {"train": 0.5, "val": 0.5}, sequences="train_mapping.txt")
    assert {frozenset(names(found, split)) for split in ("train", "val")} == {
        frozenset(["000000", "000002"]),
        frozenset(["000001", "000003"]),
    }
    (tmp_path / "train_rand.txt").write_text("3,1,9\n")
    said = complaint(tmp_path, sequences="train_mapping.txt")
    assert "`9` for picture 000002 is no line of train_mapping.txt" in said
    assert "picture `000003` is none of KITTI's" in said
    (tmp_path / "train_rand.txt").unlink()
    assert "train_rand.txt: there is no such file" in complaint(tmp_path, sequences="train_mapping.txt")


def test_a_picture_without_a_sequence_is_told(tmp_path: Path) -> None:
    street(tmp_path / "street", {str(n): [line("Car")] for n in range(3)})
    (tmp_path / "drives.txt").write_text("0 a\n1 b c\n")
    said = complaint(tmp_path, sequences="drives.txt")
    assert f"{tmp_path / 'drives.txt'}:2: 3 words" in said
    assert "no sequence is given for `1`, `2`" in said


def test_the_key_changes_with_boxes_and_mapping(tmp_path: Path) -> None:
    street(tmp_path / "street", {str(n): [line("Car")] for n in range(4)})
    data = Data.model_validate({"kitti": {"images": "street/image_2", "labels": "street/label_2"}})

    def key() -> str:
        return make_catalog(data, tmp_path, "detection").key(data)

    before = key()
    assert key() == before
    (tmp_path / "street" / "label_2" / "2.txt").write_text(line("Car", 10, 20, 50, 61))
    assert key() != before
