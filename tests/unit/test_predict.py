"""Naming pictures with a trained network: as in training, in constant memory, kind about broken files."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dlhpc.cli.predict import predict
from dlhpc.data.batches import evaluation_batches
from dlhpc.data.catalog import Catalog, Sample
from dlhpc.errors import DataError, DlhpcError, ErrorList, StorageError, UserError
from dlhpc.files import read_json
from dlhpc.predict.choose import choose_checkpoint
from dlhpc.predict.results import Prediction, csv_file
from dlhpc.predict.sources import Loaded, Wanted, from_files, picture_paths, unseen_split
from dlhpc.report.collect import as_unseen
from dlhpc.runs.checkpoints import list_checkpoints
from dlhpc.runs.directory import RunDirectory
from dlhpc.spec.models import Augment
from tests import training

torch = pytest.importorskip("torch")

CLASSES = 4
SIZE = 20


def save(folder: Path, pictures: Any, labels: Any) -> list[Path]:
    """One PNG a picture, one folder a class."""
    paths = []
    for number, (picture, label) in enumerate(zip(pictures, labels)):
        path = folder / f"class {label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Path]:
    """A LeNet that has learnt where the bright stripe is, and a folder with its validation and unseen pictures."""
    folder = tmp_path_factory.mktemp("predict")
    splits = {
        name: training.stripes(count, CLASSES, SIZE, seed=seed)
        for seed, (name, count) in enumerate({"train": 48, "val": 20, "unseen": 12}.items())
    }
    run = training.make_run(
        folder / "runs" / "stripes-20260105-090000-ab12",
        splits=splits,
        classes=CLASSES,
        spec={"augment": {"crop": 16}, "data": {"color": "grey", "normalize": "image"}},
    )
    unseen = save(folder / "unseen", *splits["unseen"])
    save(folder / "val", *splits["val"])
    pictures = [Sample(str(path), int(path.parent.name[-1])) for path in unseen]
    Catalog([f"class {n}" for n in range(CLASSES)], {"train": [], "val": [], "unseen": pictures}).write(run.catalog)
    done = training.train(run)
    assert done.returncode == 0, done.stdout + done.stderr
    return run, folder


@pytest.fixture
def run(trained: tuple[RunDirectory, Path], tmp_path: Path) -> RunDirectory:
    """A copy that a test may change; its packed pictures are the shared ones."""
    copy = tmp_path / "runs" / trained[0].name
    shutil.copytree(trained[0].path, copy)
    return RunDirectory(copy)


def ask(run: RunDirectory, *words: str) -> Result:
    return CliRunner().invoke(predict, [str(run.path), *words])


def fault(answer: Result) -> str:
    assert isinstance(answer.exception, DlhpcError), answer.output
    return str(answer.exception)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_named_as_in_validation(run: RunDirectory, trained: tuple[RunDirectory, Path]) -> None:
    answer = ask(run, str(trained[1] / "val"), "--json")
    assert answer.exit_code == 0, answer.output
    value = json.loads(answer.stdout)
    right = sum(Path(row["path"]).parent.name == row["top"][0][0] for row in value["rows"])
    assert right / 20 == read_json(run.evaluation)["accuracy"]
    assert value["count"] == 20
    assert all(sum(share for _, share in row["top"]) == pytest.approx(1, abs=1e-5) for row in value["rows"])
    written = rows(Path(value["csv"]))
    assert [row["path"] for row in written] == [row["path"] for row in value["rows"]]
    assert [row["class_1"] for row in written] == [row["top"][0][0] for row in value["rows"]]
    assert set(written[0]) == {"path", "error", *(f"{n}_{k}" for n in ("class", "probability") for k in range(1, 5))}


def test_one_picture_gets_a_table_and_a_csv(run: RunDirectory, trained: tuple[RunDirectory, Path]) -> None:
    answer = ask(run, str(trained[1] / "unseen" / "class 1" / "1.png"), "--top", "2")
    assert answer.exit_code == 0, answer.output
    assert "class 1" in answer.output
    (path,) = run.predictions.glob("pictures-*.csv")
    assert f"Table: {path}" in answer.output
    assert list(rows(path)[0]) == ["path", "class_1", "probability_1", "class_2", "probability_2", "error"]


def test_unseen_pictures_come_with_their_truth(run: RunDirectory) -> None:
    answer = ask(run, "--unseen")
    assert answer.exit_code == 0, answer.output
    value = read_json(run.predictions / "unseen.json")
    unseen = as_unseen(value)
    assert unseen.count == 12
    assert unseen.accuracy == sum(picture.right for picture in unseen.pictures) / 12
    assert answer.output.splitlines()[-1] == f"unseen accuracy {unseen.accuracy * 100:.1f} %"
    written = rows(run.predictions / "unseen.csv")
    assert [row["truth"] for row in written] == [f"class {number % 4}" for number in range(12)]
    assert sum(int(row["right"]) for row in written) == unseen.accuracy * 12


def test_unseen_pictures_are_read_from_the_originals_when_the_packed_set_is_gone(run: RunDirectory) -> None:
    packed = json.loads(ask(run, "--unseen", "--json").stdout)
    plan = json.loads(run.plan.read_text())
    plan["dataset"]["packed"] = str(run.path / "gone")
    run.plan.write_text(json.dumps(plan))
    answer = ask(run, "--unseen", "--json")
    assert "original pictures are read" in answer.stderr
    original = json.loads(answer.stdout)
    assert original["accuracy"] == packed["accuracy"]
    shares = [[share for _, share in row["top"]] for row in packed["rows"]]
    assert np.allclose([[share for _, share in row["top"]] for row in original["rows"]], shares, atol=1e-5)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux shows them")
def test_unseen_pictures_hold_no_file_open_before_they_are_read(run: RunDirectory) -> None:
    record = choose_checkpoint(run)
    before = os.listdir("/proc/self/fd")
    split = unseen_split(run, record, Wanted.of(record))
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert [len(chunk) for chunk in split.chunks(8)] == [8, 4]
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_16_bit_picture_is_named_as_its_8_bit_twin(
    run: RunDirectory, trained: tuple[RunDirectory, Path], tmp_path: Path
) -> None:
    plain = trained[1] / "unseen" / "class 2" / "2.png"
    deep = tmp_path / "deep.png"
    Image.fromarray(np.asarray(Image.open(plain)).astype(np.uint16) * 257).save(deep)
    value = json.loads(ask(run, str(plain), str(deep), "--json").stdout)
    eight, sixteen = value["rows"]
    assert [name for name, _ in eight["top"]] == [name for name, _ in sixteen["top"]]
    assert np.allclose([s for _, s in eight["top"]], [s for _, s in sixteen["top"]], atol=1e-5)


def test_broken_pictures_are_named_and_passed_over(
    run: RunDirectory, trained: tuple[RunDirectory, Path], tmp_path: Path
) -> None:
    good = trained[1] / "unseen" / "class 0" / "0.png"
    empty, cut, text = tmp_path / "empty.png", tmp_path / "cut.png", tmp_path / "notes.txt"
    empty.touch()
    cut.write_bytes(good.read_bytes()[:-40])
    text.write_text("hello")
    answer = ask(run, str(empty), str(good), str(cut), str(text), "--csv", str(tmp_path / "out.csv"))
    assert answer.exit_code == 0, answer.output
    assert f"not read: {empty}: is empty" in answer.stderr
    assert "3 could not be read" in answer.output
    written = rows(tmp_path / "out.csv")
    assert [bool(row["error"]) for row in written] == [True, False, True, True]
    assert not run.predictions.exists()


def test_if_no_picture_can_be_read_it_fails_and_leaves_nothing(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    answer = ask(run, str(tmp_path / "empty.png"))
    assert isinstance(answer.exception, DataError)
    assert answer.exception.exit_code == 2
    assert "none of the pictures could be read" in fault(answer)
    assert list(run.predictions.iterdir()) == []


def test_missing_paths_are_all_named_at_once(run: RunDirectory, tmp_path: Path) -> None:
    answer = ask(run, str(tmp_path / "a.png"), str(tmp_path / "b"))
    assert isinstance(answer.exception, ErrorList)
    assert "a.png: there is no such file" in fault(answer)
    assert "b: there is no such file" in fault(answer)


def test_a_folder_without_pictures_is_an_error(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    assert "there is no picture in this folder" in fault(ask(run, str(tmp_path / "void")))


def test_pictures_or_unseen_must_be_asked_for(run: RunDirectory) -> None:
    assert "no pictures are given" in fault(ask(run))
    assert "either pictures or --unseen" in fault(ask(run, "a.png", "--unseen"))


def test_a_run_without_a_checkpoint_says_so(run: RunDirectory) -> None:
    shutil.rmtree(run.checkpoints)
    assert "has no checkpoint yet" in fault(ask(run, "--unseen"))


def test_an_unknown_run_says_so(tmp_path: Path) -> None:
    answer = CliRunner().invoke(predict, ["nobody", "a.png", "--runs", str(tmp_path)])
    assert "there is no run `nobody`" in fault(answer)


def test_checkpoints_are_chosen_by_word_or_step(run: RunDirectory) -> None:
    records = list_checkpoints(run)
    assert choose_checkpoint(run, "last") == records[-1]
    assert choose_checkpoint(run, str(records[0].step)) == records[0]
    best = read_json(run.checkpoints / "best.json")
    assert choose_checkpoint(run).name == best["checkpoint"]
    with pytest.raises(UserError, match=f"one of these steps: {records[0].step}"):
        choose_checkpoint(run, "123456")


def test_damaged_weights_are_noticed(run: RunDirectory) -> None:
    path = choose_checkpoint(run).weights.path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    text = fault(ask(run, "--unseen"))
    assert "SHA-256" in text
    assert "--checkpoint" in text


def test_a_network_that_diverged_is_said_to_have(run: RunDirectory) -> None:
    from dlhpc.predict.classify import classify, load_classifier

    record = choose_checkpoint(run)
    classifier = load_classifier(record, torch.device("cpu"))
    with torch.no_grad():
        next(classifier.network.parameters()).fill_(float("nan"))
    chunk = [Loaded("a.png", np.zeros((1, 16, 16), np.uint8))]
    with pytest.raises(DataError, match="diverged"):
        list(classify(classifier, record.classes, [chunk], 5))


@pytest.mark.parametrize("name", ["lenet", "smallnet", "googlenet", "resnet18"])
def test_every_network_is_loaded_with_its_own_weights(name: str, tmp_path: Path) -> None:
    import safetensors.torch

    from dlhpc.predict.classify import load_classifier
    from dlhpc.runs.checkpoints import CheckpointFile, CheckpointRecord
    from dlhpc.train.models import Model, Preprocess, build_network

    torch.manual_seed(3)
    with torch.device("meta"):  # GoogLeNet's own initialisation takes long
        network = build_network(name, 1, 7, 32, 32)
    network.to_empty(device="cpu")
    for key, tensor in network.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.05)
        else:
            tensor.zero_()
    whole = Model(Preprocess(torch.full((1, 1, 1), 0.4), torch.full((1, 1, 1), 0.2)), network).eval()
    content = safetensors.torch.save({key: tensor.contiguous() for key, tensor in whole.state_dict().items()})
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    file = CheckpointFile(path, hashlib.sha256(content).hexdigest(), len(content))
    given = {"channels": 1, "height": 32, "width": 32}
    record = CheckpointRecord(
        "step-000000001", tmp_path / "m.json", 1.0, 1, 0, {}, "classification", [str(n) for n in range(7)], name, {},
        given, file, file, 1, {},
    )  # fmt: skip
    pictures = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected = whole(pictures).scores
        assert expected.std() > 0
        assert torch.equal(load_classifier(record, torch.device("cpu"))(pictures).scores, expected)
    with pytest.raises(StorageError, match="does not fit the network"):
        load_classifier(CheckpointRecord(**{**vars(record), "classes": ["a", "b"]}))


def test_folders_are_walked_in_order_and_without_circles(tmp_path: Path) -> None:
    for name in ("10.png", "9.PNG", "sub/2.jpg", ".hidden.png", ".thumbs/1.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    found = [str(Path(path).relative_to(tmp_path)) for path in picture_paths([str(tmp_path)])]
    assert found == ["9.PNG", "10.png", "sub/2.jpg"]


def test_many_pictures_are_not_held_at_once(trained: tuple[RunDirectory, Path]) -> None:
    wanted = Wanted.of(choose_checkpoint(trained[0]))
    path = str(trained[1] / "unseen" / "class 0" / "0.png")
    asked = 0

    def endless() -> Any:
        nonlocal asked
        while True:
            asked += 1
            yield path

    chunks = from_files(endless(), wanted, 4)
    for _ in range(3):
        assert len(next(chunks)) == 4
    assert asked <= 4 * 4
    chunks.close()  # type: ignore[attr-defined]


def test_a_table_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("before")

    def stopped_by_the_user() -> None:
        with csv_file(path, 1) as write:
            write(Prediction("a.png", (("cat", 1.0),)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_by_the_user()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="nowhere"), csv_file(tmp_path / "nowhere" / "out.csv", 1):
        pass
    with pytest.raises(UserError, match="is a folder"), csv_file(tmp_path, 1):
        pass


def test_the_command_line_part_does_not_import_torch_before_it_runs() -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'altair', 'jinja2'}"
    code = f"import sys, dlhpc.cli.predict, dlhpc.cli.report; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=training.ROOT)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("anna", "anna"),
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-40", "-40"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+"),
    ],
)
def test_no_class_name_is_a_formula_in_a_spreadsheet(tmp_path: Path, name: str, cell: str) -> None:
    path = tmp_path / "out.csv"
    with csv_file(path, 1, with_truth=True) as write:
        write(Prediction("-x.png", ((name, 1.0),), name))
    (row,) = rows(path)
    assert row["class_1"].startswith(cell)
    assert row["truth"].startswith(cell)
    assert row["path"] == "'-x.png"
    assert row["right"] == "1"


@pytest.mark.parametrize("augment", [Augment(crop=12), Augment(crop=12, resized_crop=(0.3, 1.0))], ids=["crop", "part"])
def test_prediction_sees_the_part_of_a_picture_that_validation_sees(tmp_path: Path, augment: Augment) -> None:
    splits = {"train": training.stripes(4, 2), "val": training.stripes(4, 2, seed=1)}
    with training.write_packed(tmp_path / "packed", splits, ["a", "b"]) as packed:
        (batch,) = evaluation_batches(packed, "val", augment, 4)
        wanted = Wanted(1, 16, 16, 12, 12, "squash", resized_crop=augment.resized_crop is not None)
        for seen, picture in zip(batch.inputs, splits["val"][0]):
            assert np.array_equal(wanted.crop(picture), seen)
