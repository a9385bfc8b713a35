"""What `dlhpc init detection` and `dlhpc init regression` write: it loads, and a plan can be made of it, as it is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from dlhpc.cli.init import init
from dlhpc.data.catalog import Catalog, make_catalog
from dlhpc.data.starter_detection import detection_spec
from dlhpc.data.starter_regression import regression_spec
from dlhpc.errors import DataError, UserError
from dlhpc.spec.load import load_spec
from dlhpc.spec.models import Spec


def street(folder: Path, count: int, *, images: str = "images", labels: str = "labels", height: int = 60) -> Path:
    """Pictures of 1242×375 with a car each, in some a tram, and a region that nobody labelled."""
    (folder / images).mkdir(parents=True)
    (folder / labels).mkdir()
    for number in range(count):
        Image.new("RGB", (1242, 375), (number % 256, 90, 90)).save(folder / images / f"{number:06d}.png")
        rest = "1 1 1 1 1 1 1"
        lines = [f"Car 0 0 0 100 100 180 {100 + height} {rest}", f"DontCare -1 -1 -10 1 1 9 9 {rest}"]
        lines += [f"Tram 0 0 0 300 100 400 200 {rest}"] if number == 0 else []
        (folder / labels / f"{number:06d}.txt").write_text("\n".join(lines) + "\n")
    return folder


def loaded(text: str, where: Path) -> tuple[Spec, Catalog]:
    (where / "it.yaml").write_text(text, encoding="utf-8")
    spec, _ = load_spec(where / "it.yaml")
    return spec, make_catalog(spec.data, where, spec.task)


def test_pictures_with_labels_become_a_detection(tmp_path: Path) -> None:
    spec, catalog = loaded(detection_spec(street(tmp_path / "street", 40), relative_to=tmp_path), tmp_path)
    assert (spec.name, spec.task, spec.network.name) == ("street", "detection", "detectnet")
    assert (spec.data.width, spec.data.height, spec.data.resize) == (1248, 384, "pad")
    assert spec.data.kitti is not None
    assert spec.data.kitti.images == "street/images"
    assert spec.data.kitti.mapping == {"Car": "Car", "Tram": "dontcare"}
    assert (spec.data.kitti.min_height, spec.detection.min_height) == (25, 22)
    assert [catalog.count(split) for split in ("train", "val", "unseen")] == [28, 6, 6]


def test_small_objects_are_looked_for_too(tmp_path: Path) -> None:
    spec, catalog = loaded(detection_spec(street(tmp_path / "cells", 8, height=12)), tmp_path)
    assert spec.data.kitti is not None
    assert spec.data.kitti.min_height == 0
    assert spec.detection.min_height < 12
    assert catalog.counts("train") == [6]


def test_kittis_own_names_and_drives(tmp_path: Path) -> None:
    street(tmp_path / "training", 6, images="image_2", labels="label_2")
    drives = "".join(f"2011_09_26 drive_{number // 2} {number}\n" for number in range(6))
    (tmp_path / "mapping").mkdir()
    (tmp_path / "mapping" / "train_mapping.txt").write_text(drives)
    (tmp_path / "mapping" / "train_rand.txt").write_text("1,2,3,4,5,6\n")
    spec, catalog = loaded(detection_spec(tmp_path, "cars", relative_to=tmp_path), tmp_path)
    assert spec.data.kitti is not None
    assert spec.data.kitti.labels == "training/label_2"
    assert spec.data.kitti.sequences == "mapping/train_mapping.txt"
    pairs = [{int(Path(one.path).stem) // 2 for one in catalog.splits[split]} for split in ("train", "val")]
    assert pairs[0].isdisjoint(pairs[1])


def test_folders_for_val_as_digits_has_them(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        street(tmp_path / "set" / split, count)
    spec, catalog = loaded(detection_spec(tmp_path / "set", relative_to=tmp_path), tmp_path)
    assert spec.data.kitti is not None
    assert spec.data.kitti.val_images == "set/val/images"
    assert [catalog.count(split) for split in ("train", "val", "unseen")] == [4, 2, 0]


def test_a_folder_without_labels_is_told_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="holds no pair of folders for pictures and labels"):
        detection_spec(tmp_path)
    with pytest.raises(DataError, match="there is no such folder"):
        detection_spec(tmp_path / "nowhere")


def table(path: Path, rows: int = 40, *, gap: str = "") -> Path:
    """Columns a, kind, "y: GPa", comment."""
    chance = random.Random(1)
    lines = ['a,kind,"y: GPa",comment']
    for number in range(rows):
        first = gap if number == 3 and gap else f"{chance.random():.4f}"
        lines.append(f"{first},{'bcc' if number % 2 else 'fcc'},{chance.random():.5f},text {number}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_last_column_of_numbers_is_predicted(tmp_path: Path) -> None:
    spec, catalog = loaded(regression_spec(table(tmp_path / "steel.csv"), relative_to=tmp_path), tmp_path)
    assert (spec.name, spec.task, spec.network.name) == ("steel", "regression", "mlp")
    assert spec.data.table is not None
    assert (spec.data.table.file, spec.data.table.targets, spec.data.table.missing) == (
        "steel.csv",
        ("y: GPa",),
        "fail",
    )
    assert [catalog.count(split) for split in ("train", "val", "unseen")] == [28, 6, 6]
    assert catalog.target_names == ["y: GPa"]


def test_gaps_are_filled_or_left_out(tmp_path: Path) -> None:
    file = table(tmp_path / "steel.csv", gap="NA")
    spec, catalog = loaded(regression_spec(file), tmp_path)
    assert spec.data.table is not None
    assert spec.data.table.missing == "fill"
    spec, catalog = loaded(regression_spec(file, targets=["a"]), tmp_path)
    assert spec.data.table is not None
    assert spec.data.table.missing == "drop"
    assert sum(catalog.count(split) for split in catalog.splits) == 39


def test_several_targets_and_wrong_ones(tmp_path: Path) -> None:
    file = table(tmp_path / "steel.csv")
    spec, _ = loaded(regression_spec(file, targets=["a", "y: GPa"]), tmp_path)
    assert spec.data.table is not None
    assert spec.data.table.targets == ("a", "y: GPa")
    with pytest.raises(DataError, match="no column `aa`, which --target names") as caught:
        regression_spec(file, targets=["aa"])
    assert "Did you mean `a`?" in str(caught.value)
    (tmp_path / "words.csv").write_text("a,b\nx,y\nz,w\n")
    with pytest.raises(DataError, match="no column of numbers"):
        regression_spec(tmp_path / "words.csv")


def test_a_column_of_pictures_is_what_the_network_sees(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for number in range(12):
        Image.new("L", (30, 30), number * 20).save(tmp_path / "p" / f"{number}.png")
    rows = "".join(f"p/{number}.png,{number}\n" for number in range(12))
    (tmp_path / "grains.csv").write_text("file,size\n" + rows)
    spec, catalog = loaded(regression_spec(tmp_path / "grains.csv", relative_to=tmp_path), tmp_path)
    assert spec.data.table is not None
    assert (spec.data.table.pictures, spec.network.name, spec.data.width) == ("file", "smallnet", 32)
    assert catalog.kind == "pictures"
    assert sum(len(samples) for samples in catalog.splits.values()) == 12


def test_the_command_writes_each_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    street(tmp_path / "street", 4)
    table(tmp_path / "steel.csv")
    for arguments, written in (
        (["detection", "street"], "street.yaml"),
        (["regression", "steel.csv", "--target", "a", "--name", "young"], "steel.yaml"),
    ):
        result = CliRunner().invoke(init, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert f"Wrote {written}" in result.output
    spec, _ = load_spec(tmp_path / "steel.yaml")
    assert spec.name == "young"
    result = CliRunner().invoke(init, ["detection", "street", "--target", "a", "--force"])
    assert "--target is for regression" in result.output
    with pytest.raises(UserError, match="exists already"):
        CliRunner().invoke(init, ["regression", "steel.csv"], catch_exceptions=False)
