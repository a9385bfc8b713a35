"""The spec that `dlhpc init` writes: it must load and run as it is for whatever folder a user points at."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dlhpc.cli.common import shell_word
from dlhpc.data.catalog import Catalog, make_catalog
from dlhpc.data.starter import starter_spec
from dlhpc.data.starter_parts import quoted, run_name
from dlhpc.errors import DlhpcError, UserError
from dlhpc.spec.load import load_spec
from dlhpc.spec.models import Spec


def photos(folder: Path, count: int, *, classes: tuple[str, ...] = ("anna", "ben"), size: Any = (112, 92)) -> Path:
    """Class folders of plain pictures; ``size`` is height, width and perhaps 3."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            values = np.full(size, number % 256, dtype=np.uint8)
            values[..., 0] = 200
            Image.fromarray(values).save(folder / name / f"{number}.png")
    return folder


def loaded(folder: Path, where: Path, **settings: Any) -> tuple[Spec, Catalog]:
    """What the written spec says, loaded from the folder that it is written to."""
    file = where / "it.yaml"
    file.write_text(starter_spec(folder, relative_to=where, **settings), encoding="utf-8")
    spec, _ = load_spec(file)
    return spec, make_catalog(spec.data, where)


def test_small_grey_photos_get_the_small_network_and_an_unseen_share(tmp_path: Path) -> None:
    spec, catalog = loaded(photos(tmp_path / "faces", 10), tmp_path, ranks_per_node=2)
    assert spec.name == "faces"
    assert (spec.network.name, spec.data.color, spec.input_size) == ("smallnet", "grey", (64, 64))
    assert spec.data.folder == "faces"
    assert spec.job.ranks_per_node == 2
    assert [catalog.counts(split) for split in ("train", "val", "unseen")] == [[6, 6], [2, 2], [2, 2]]
    assert spec.training.batch_size * 2 <= 12


def test_large_colour_photos_get_what_digits_users_know(tmp_path: Path) -> None:
    spec, _ = loaded(photos(tmp_path / "cars", 4, size=(300, 400, 3)), tmp_path)
    assert (spec.network.name, spec.data.color, spec.data.width, spec.augment.crop) == ("alexnet", "rgb", 256, 227)
    assert spec.data.split.unseen == 0


@pytest.mark.parametrize(
    ("folders", "used"),
    [
        (("train", "val", "test"), {"train": "train", "val": "val", "unseen": "test"}),
        (("Training", "Validation"), {"train": "Training", "val": "Validation", "unseen": None}),
        (("train", "test"), {"train": "train", "val": "test", "unseen": None}),
    ],
)
def test_separate_folders_are_recognised(tmp_path: Path, folders: tuple[str, ...], used: dict[str, Any]) -> None:
    for name in folders:
        photos(tmp_path / "set" / name, 3)
    spec, catalog = loaded(tmp_path / "set", tmp_path)
    assert spec.data.folders is not None
    for split, name in used.items():
        assert getattr(spec.data.folders, split) == (name and f"set/{name}")
        assert sum(catalog.counts(split)) == (6 if name else 0)


ODD = [
    "My \"photos\": #1 & 'more'",
    "顔写真",
    "no",
    "1e5",
    "~",
    "a\nb: c\n- d",
    "{x}",
    "%s $(x) `y` \\",
    "tab\there",
    "🦆",
]


@pytest.mark.parametrize("name", ODD)
def test_folders_and_classes_of_any_name(tmp_path: Path, name: str) -> None:
    photos(tmp_path / name, 5, classes=(name, "other #2"))
    spec, catalog = loaded(tmp_path / name, tmp_path)
    assert sorted(catalog.classes) == sorted([name, "other #2"])
    (tmp_path / "elsewhere").mkdir()
    spec, catalog = loaded(tmp_path / name, tmp_path / "elsewhere")
    assert spec.data.folder == str(tmp_path / name), "absolute where the spec lies elsewhere"
    assert len(catalog.classes) == 2


@given(st.text())
def test_any_folder_name_gives_arun_name(name: str) -> None:
    Spec.model_validate({"name": run_name(name), "data": {"folder": "x"}})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_quoting(text: str) -> None:
    from ruamel.yaml import YAML

    assert YAML(typ="rt").load(f"key: {quoted(text)}  # said {quoted(text)}\n")["key"] == text


def test_a_given_name_is_used_and_a_bad_one_is_told(tmp_path: Path) -> None:
    folder = photos(tmp_path / "x", 3)
    assert loaded(folder, tmp_path, name="ducks")[0].name == "ducks"
    with pytest.raises(DlhpcError, match="must begin with a letter"):
        starter_spec(folder, name="9 lives")


def test_damaged_pictures_make_it_skip_them(tmp_path: Path) -> None:
    folder = photos(tmp_path / "x", 8)
    assert loaded(folder, tmp_path)[0].data.broken == "fail"
    for number in range(4):
        (folder / "anna" / f"{number}.png").write_bytes(b"")
    assert loaded(folder, tmp_path)[0].data.broken == "skip"


def test_digits_and_letters_are_not_mirrored(tmp_path: Path) -> None:
    spec, _ = loaded(photos(tmp_path / "mnist", 5, classes=tuple("0123"), size=(28, 28)), tmp_path)
    assert not spec.augment.flip_horizontal
    assert spec.data.width == 32


def test_where_nothing_can_decode_pictures_their_headers_say_how_large_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = builtins.__import__

    def without_pillow(name: str, *rest: Any, **more: Any) -> Any:
        if name == "dlhpc.data.pictures":
            raise ImportError(name)
        return genuine(name, *rest, **more)

    folder = photos(tmp_path / "x", 3)
    Image.new("RGB", (300, 200)).save(folder / "anna" / "1.jpg", progressive=True)
    unknown = photos(tmp_path / "y", 0)
    for name in ("anna", "ben"):
        for number in range(3):
            (unknown / name / f"{number}.pgm").write_bytes(b"P5 1 1 255\n\0")
    monkeypatch.setattr(builtins, "__import__", without_pillow)
    spec, _ = loaded(folder, tmp_path)
    assert (spec.data.color, spec.network.name) == ("auto", "smallnet")
    assert "looked at are 92×112 to 300×200 pixels large" in (tmp_path / "it.yaml").read_text()
    spec, _ = loaded(unknown, tmp_path)
    assert spec.data.color == "auto"
    assert "could not be looked at" in (tmp_path / "it.yaml").read_text()


def test_a_folder_that_cannot_be_trained_on_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty"):
        starter_spec(tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder"):
        starter_spec(tmp_path / "missing")
    with pytest.raises(UserError, match="`ben` 1"):
        starter_spec(photos(tmp_path / "few", 1))


def test_every_setting_is_explained(tmp_path: Path) -> None:
    text = starter_spec(photos(tmp_path / "x", 5), relative_to=tmp_path)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        assert len(line) <= 120
        if ":" in line.split("#")[0] and line.rstrip() not in ("data:", "training:"):
            assert "# " in line or lines[number + 1].strip().startswith("# "), line


@pytest.mark.parametrize(
    ("path", "typed"),
    [("cars.yaml", "cars.yaml"), ("-dash.yaml", "./-dash.yaml"), ("my cars.yaml", "'my cars.yaml'")],
)
def test_the_file_to_submit_is_named_as_one_may_type_it(path: str, typed: str) -> None:
    assert shell_word(Path(path)) == typed
