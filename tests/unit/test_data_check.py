"""What `dlhpc data check` says of data that would harm a training, and that it says nothing of good data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dlhpc.cli import run
from dlhpc.cli.data_check import check as command
from dlhpc.data.catalog import Catalog, Sample, make_catalog
from dlhpc.data.check import check, check_packed
from dlhpc.data.findings import Finding
from dlhpc.data.samples import join_boxes
from dlhpc.data.similar import alike, fingerprint, groups_of
from dlhpc.spec.models import Data
from tests.training import write_packed, write_packed_table


def scene(seed: int, height: int = 48, width: int = 64, channels: int = 3) -> Any:
    """A picture with large shapes, unlike that of another seed."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    values = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).copy()
    return values if channels == 3 else values[:, :, 0]


def save(path: Path, values: Any, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **how)
    return path


def people(folder: Path, count: int = 12) -> Path:
    for person, first in (("anna", 0), ("ben", 100)):
        for number in range(count):
            split = "val" if number % 3 == 2 else "train"
            save(folder / split / person / f"{number}.png", scene(first + number))
    return folder


def separate(folder: Path, **more: Any) -> tuple[Catalog, Data]:
    folders = {"train": str(folder / "train"), "val": str(folder / "val")}
    data = Data.model_validate({"folders": folders, "width": 64, "height": 48, **more})
    return make_catalog(data, folder), data


def found(folder: Path, **more: Any) -> dict[str, Finding]:
    catalog, data = separate(folder, **more)
    return {finding.kind: finding for finding in check(catalog, data)}


def test_of_good_pictures_there_is_little_to_say(tmp_path: Path) -> None:
    assert set(found(people(tmp_path))) == {"small-val"}


def test_broken_files_are_named_with_the_reason(tmp_path: Path) -> None:
    whole = (people(tmp_path) / "train" / "anna" / "0.png").read_bytes()
    (tmp_path / "train" / "anna" / "0.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train" / "ben" / "0.png").write_bytes(b"")
    broken = found(tmp_path)["broken"]
    assert (broken.severity, broken.count, broken.what) == ("error", 2, "2 pictures are broken")
    assert any(example.endswith("ben/0.png: is empty") for example in broken.examples)
    assert found(tmp_path, broken="skip")["broken"].severity == "warning"


def test_a_copy_in_train_and_val_is_an_error(tmp_path: Path) -> None:
    people(tmp_path)
    (tmp_path / "val" / "anna" / "copy.png").write_bytes((tmp_path / "train" / "anna" / "0.png").read_bytes())
    leak = found(tmp_path)["leak"]
    assert (leak.severity, leak.count) == ("error", 1)
    (example,) = leak.examples
    assert example == f"train {tmp_path}/train/anna/0.png = val {tmp_path}/val/anna/copy.png"


def test_a_picture_in_two_classes_contradicts_itself(tmp_path: Path) -> None:
    people(tmp_path)
    (tmp_path / "train" / "ben" / "x.png").write_bytes((tmp_path / "train" / "anna" / "0.png").read_bytes())
    (tmp_path / "train" / "ben" / "y.png").write_bytes((tmp_path / "train" / "ben" / "0.png").read_bytes())
    said = found(tmp_path)
    assert (said["contradiction"].severity, said["contradiction"].count) == ("error", 1)
    assert (said["duplicate"].severity, said["duplicate"].count) == ("warning", 1)


def test_another_size_format_or_brightness_does_not_hide_a_copy(tmp_path: Path) -> None:
    people(tmp_path)
    original = scene(0)
    larger = Image.fromarray(original).resize((100, 80), Image.Resampling.BICUBIC)
    save(tmp_path / "val" / "anna" / "larger.jpg", np.asarray(larger), quality=80)
    save(tmp_path / "val" / "anna" / "darker.png", (original * 0.8).astype(np.uint8))
    leak = found(tmp_path)["near-leak"]
    assert (leak.severity, leak.count) == ("warning", 1)
    for name in ("train/anna/0.png", "val/anna/larger.jpg", "val/anna/darker.png"):
        assert str(tmp_path / name) in leak.examples[0]


def test_odd_pictures_are_named(tmp_path: Path) -> None:
    people(tmp_path)
    save(tmp_path / "train" / "anna" / "flat.png", np.full((48, 64, 3), 7, np.uint8))
    save(tmp_path / "train" / "anna" / "long.png", scene(300, 20, 200))
    save(tmp_path / "train" / "anna" / "grey.png", scene(301, channels=1))
    save(tmp_path / "train" / "anna" / "deep.png", scene(302, channels=1).astype(np.uint16) * 250)
    said = found(tmp_path)
    assert said["constant"].examples == [str(tmp_path / "train" / "anna" / "flat.png")]
    assert said["odd-shape"].examples == [f"{tmp_path / 'train' / 'anna' / 'long.png'} (200×20)"]
    assert said["color"].count == 3, "flat, grey and deep"
    assert said["depth"].what == "1 picture is of 16 bits, the other 27 are not"


def test_rare_and_missing_classes(tmp_path: Path) -> None:
    people(tmp_path)
    catalog, data = separate(tmp_path)
    few = [sample for sample in catalog.splits["train"] if sample.label == 0]
    many = [sample for sample in catalog.splits["train"] if sample.label == 1]
    unbalanced = Catalog(["anna", "ben", "cleo"], {"train": [*few[:1], *many * 2], "val": many[:1], "unseen": []})
    said = {(one.kind, one.what) for one in check(unbalanced, data)}
    assert ("imbalance", "in train the class `ben` has 16 samples, `anna` only 1") in said
    assert ("class-missing", "train has no samples of `cleo`") in said
    assert ("class-missing", "val has no samples of `anna`, `cleo`") in said


def detection(folder: Path, boxes: list[list[list[float]]]) -> Catalog:
    samples = [Sample(str(save(folder / f"{n}.png", scene(n))), there) for n, there in enumerate(boxes)]
    return Catalog(["car"], {"train": samples, "val": [], "unseen": []}, task="detection")


def test_boxes_that_do_not_fit_their_picture(tmp_path: Path) -> None:
    """Pictures are 64×48 and the network sees half of each side."""
    catalog = detection(
        tmp_path,
        [
            [[0, 5, 5, 30, 30], [0, 5, 5, 30, 30], [-1, 900, 900, 901, 901]],
            [[0, 70, 5, 90, 30], [0, 50, 5, 90, 30], [0, 10, 10, 13, 40], [0, 0, 0, 64.5, 20]],
            [[-1, 1, 1, 9, 9]],
        ],
    )
    data = Data.model_validate({"folder": "x", "width": 32, "height": 24})
    said = {finding.kind: finding for finding in check(catalog, data)}
    assert (said["box-outside"].severity, said["box-outside"].count) == ("error", 1)
    assert said["box-outside"].examples == [f"{tmp_path}/1.png: car 70 5 90 30 (the picture is 64×48)"]
    assert said["box-clipped"].examples == [f"{tmp_path}/1.png: car 50 5 90 30 (the picture is 64×48)"]
    assert said["box-tiny"].examples == [f"{tmp_path}/1.png: car 10 10 13 40"]
    assert said["box-twice"].count == 1
    assert said["no-boxes"].what == "1 of 3 pictures have nothing to find"


def test_numbers_far_out_and_numbers_that_never_change(tmp_path: Path) -> None:
    paths = [str(save(tmp_path / f"{n}.png", scene(n))) for n in range(24)]
    samples = [Sample(path, [10 + n % 5, 3.0]) for n, path in enumerate(paths)]
    samples[7] = Sample(paths[7], [-999.0, 3.0])
    splits = {"train": samples[:20], "val": [Sample(path, [30.0, 3.0]) for path in paths[20:]], "unseen": []}
    catalog = Catalog([], splits, task="regression", target_names=["energy", "volume"])
    said = {finding.kind: finding for finding in check(catalog, Data(folder="x", width=64, height=48))}
    assert said["far-out"].examples[0] == f"train {paths[7]}: -999"
    assert said["far-out"].remedy.startswith("Check units and missing-value codes such as −999")
    assert said["outside-range"].count == 4
    assert said["constant-target"].what == "`volume` is 3 for every training sample"
    assert said["constant-target"].severity == "error"


def test_a_packed_dataset_is_checked_likewise(tmp_path: Path) -> None:
    pictures = np.stack([np.moveaxis(scene(n), 2, 0) for n in range(10)])
    splits = {"train": (pictures, np.arange(10) % 2), "val": (pictures[[3]], np.array([1]))}
    with write_packed(tmp_path / "set", splits, ["a", "b"]) as packed:
        kinds = {finding.kind for finding in check_packed(packed)}
    assert kinds == {"leak", "small-val", "class-missing"}
    shard = next((tmp_path / "set").glob("pictures*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    result = CliRunner().invoke(command, [str(tmp_path / "set"), "--json"])
    assert result.exit_code == 2
    (damaged,) = json.loads(result.stdout)["findings"]
    assert damaged["kind"] == "damaged"


def test_packed_boxes_and_rows(tmp_path: Path) -> None:
    pictures = np.stack([np.moveaxis(scene(n), 2, 0) for n in range(3)])
    one = (np.array([[1, 1, 20, 20], [1, 1, 20, 20]], np.float32), np.array([0, 0]))
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    splits = {"train": (pictures[:2], join_boxes([one, none])), "val": (pictures[2:], join_boxes([one]))}
    with write_packed(tmp_path / "boxes", splits, ["car"], task="detection") as packed:
        said = {finding.kind: finding.count for finding in check_packed(packed)}
    assert said == {"box-twice": 2, "no-boxes": 1, "small-val": 1}
    rows = np.random.default_rng(1).normal(size=(30, 3)).astype(np.float32)
    rows[:, 1] = 4
    table = {"train": (rows, np.arange(30.0)[:, None]), "val": (rows[:2], np.array([[0.0], [7.0]]))}
    with write_packed_table(tmp_path / "rows", table, features=["a", "b", "c"]) as packed:
        said_of_rows = {finding.kind: finding for finding in check_packed(packed)}
    assert said_of_rows["leak"].severity == "warning"
    assert "data.table.group" in said_of_rows["leak"].remedy
    assert said_of_rows["contradiction"].count == 1
    assert said_of_rows["constant-input"].examples == ["b"]


def test_the_command_says_what_to_do_and_its_exit_code_tells_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people(tmp_path / "set")
    result = CliRunner().invoke(command, [str(tmp_path / "set")])
    assert result.exit_code == 0, result.output
    assert "Looked at 24 samples: 16 train, 8 val" in result.stdout
    (tmp_path / "set" / "val" / "anna" / "again.png").write_bytes((tmp_path / "set/train/anna/0.png").read_bytes())
    result = CliRunner().invoke(command, [str(tmp_path / "set")])
    assert result.exit_code == 2
    assert "error: 1 picture is in several splits as exact copies" in result.stdout
    assert "→ Keep each in one split" in result.stdout
    monkeypatch.setattr("sys.argv", ["dlhpc", "data", "check", str(tmp_path / "set")])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    result = CliRunner().invoke(command, [str(tmp_path / "set"), "--json"])
    assert {one["kind"] for one in json.loads(result.stdout)["findings"]} >= {"leak", "small-val"}


def test_a_table_is_checked_before_it_is_packed(tmp_path: Path) -> None:
    lines = [f"{n % 7},{n % 3},{n}" for n in range(40)]
    (tmp_path / "t.csv").write_text("a,b,y\n" + "\n".join([*lines, "6,2,-9999"]) + "\n")
    result = CliRunner().invoke(command, [str(tmp_path / "t.csv"), "--set", "data.table.targets=y", "--json"])
    assert result.exit_code == 0, result.output
    said = {one["kind"]: one for one in json.loads(result.stdout)["findings"]}
    assert "-9999" in said["far-out"]["examples"][0]
    assert "t.csv:42" in said["far-out"]["examples"][0]


# --- Alike ------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(0, 1000))
def test_every_pair_within_the_distance_is_found(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    hashes = [int(random.integers(0, 2**63)) for _ in range(count)]
    for at in range(1, count, 2):
        hashes[at] = hashes[at - 1]
        for bit in random.choice(64, int(random.integers(0, 8)), replace=False):
            hashes[at] = hashes[at] ^ (1 << int(bit))
    hashes[-1] = hashes[0] ^ 0b1000000000000000100000000000000001
    same = np.full(256, 1 / 16, np.float32)
    expected = [
        (one, other)
        for one in range(count)
        for other in range(one + 1, count)
        if (hashes[one] ^ hashes[other]).bit_count() <= 5
    ]
    assert alike(hashes, [same] * count) == expected
    assert (0, count - 1) in expected


def test_groups_hold_what_hangs_together() -> None:
    assert groups_of([(0, 1), (5, 6), (1, 2)]) == [[0, 1, 2], [5, 6]]
    assert groups_of([]) == []


def test_flat_pictures_are_alike_to_nothing() -> None:
    _, thumbnail = fingerprint(np.full((20, 20, 1), 3, np.uint8))
    assert not thumbnail.any()


def test_different_scenes_are_not_alike() -> None:
    seen = [fingerprint(scene(seed)) for seed in range(200)]
    assert alike([code for code, _ in seen], [thumbnail for _, thumbnail in seen]) == []


@pytest.mark.parametrize("bits", [8, 16])
def test_a_small_shift_keeps_pictures_alike(bits: int) -> None:
    values = scene(5, 240, 320).astype(np.uint16)
    one, other = (part.astype(f"uint{bits}") for part in (values[:, :-2], values[:, 2:]))
    pair = [fingerprint(one), fingerprint(other)]
    assert alike([code for code, _ in pair], [thumbnail for _, thumbnail in pair]) == [(0, 1)]
