"""`dlhpc data pack` and `dlhpc data show`, as a user calls them."""

from __future__ import annotations

import html.parser
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dlhpc.cli import cli
from dlhpc.data.index import read_index
from dlhpc.data.packed import open_packed
from dlhpc.errors import DataError, DlhpcError, UserError
from dlhpc.files import replace_text
from tests.unit.test_data_pack import photos

SMALL = ["--set", "data.width=12", "--set", "data.height=10"]


def dlhpc(*words: object) -> str:
    """What the command prints; its error is raised."""
    done = CliRunner().invoke(cli, [str(word) for word in words])
    if done.exception is not None:
        raise done.exception
    return done.output


def kitti(folder: Path, boxes: str = "Car 0.00 0 -1.58 10 5 30 20 1.6 1.6 3.9 1 1 20 -1.5") -> Path:
    """Pictures and labels in KITTI's layout."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(8):
        Image.fromarray(np.full((24, 48, 3), 30 * number, np.uint8)).save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text(boxes + "\n")
    return folder


def test_a_folder_is_packed_and_the_lines_for_a_spec_are_shown(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    said = dlhpc("data", "pack", tmp_path / "photos", "--to", tmp_path / "set", *SMALL)
    assert "Packed pictures (grey 12×10, 8 bits): 10 train, 2 val" in said
    assert "2 classes: a, b" in said
    assert f"data:\n  packed: {tmp_path}/set\n" in said
    again = dlhpc("data", "pack", tmp_path / "photos", "--to", tmp_path / "set", *SMALL)
    assert "10 train, 2 val" in again
    with pytest.raises(UserError, match="holds another packed dataset already") as caught:
        dlhpc("data", "pack", tmp_path / "photos", "--to", tmp_path / "set", "--set", "data.width=20")
    assert "--add" in str(caught.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists already, and is no whole packed dataset"):
        dlhpc("data", "pack", tmp_path / "photos", "--to", tmp_path / "thesis", *SMALL)
    assert (tmp_path / "thesis" / "chapter1.txt").exists()


def test_a_spec_and_its_packed_form_are_planned_alike(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    replace_text(
        tmp_path / "a.yaml", "name: a\nnetwork: {name: lenet}\ndata:\n  folder: photos\n  width: 20\n  height: 20\n"
    )
    summary = json.loads(dlhpc("data", "pack", tmp_path / "a.yaml", "--to", tmp_path / "set", "--json"))
    assert summary["counts"] == {"train": 10, "val": 2, "unseen": 0}
    assert summary["fingerprint"] == read_index(tmp_path / "set").fingerprint
    replace_text(
        tmp_path / "b.yaml",
        f"name: b\nnetwork: {{name: lenet}}\ndata: {{packed: '{tmp_path}/set', width: 20, height: 20}}\n",
    )
    with pytest.raises(UserError, match="is packed already"):
        dlhpc("data", "pack", tmp_path / "b.yaml", "--to", tmp_path / "other")


def test_pictures_are_added_by_name(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    dlhpc("data", "pack", tmp_path / "photos", "--to", tmp_path / "set", *SMALL)
    photos(tmp_path / "later", 2, seed=5)
    said = dlhpc("data", "pack", tmp_path / "later", "--to", tmp_path / "set", "--add")
    assert "4 pictures were added; 0 were in it already." in said
    assert sum(read_index(tmp_path / "set").counts.values()) == 16
    said = dlhpc("data", "pack", tmp_path / "later", "--to", tmp_path / "set", "--add")
    assert "0 pictures were added; 4 were in it already." in said


def test_boxes_and_tables_are_found_by_their_looks(tmp_path: Path) -> None:
    summary = json.loads(dlhpc("data", "pack", kitti(tmp_path / "streets"), "--to", tmp_path / "s", *SMALL, "--json"))
    assert (summary["task"], summary["classes"]) == ("detection", ["Car"])
    assert sum(map(sum, summary["class_counts"].values())) == 8
    rows = "".join(f"{n},{n % 3},{2 * n}\n" for n in range(20))
    (tmp_path / "t.csv").write_text("x,kind,y\n" + rows)
    said = dlhpc("data", "pack", tmp_path / "t.csv", "--to", tmp_path / "t", "--set", "data.table.targets=y")
    assert "To predict: y" in said
    assert "task: regression" in said
    with open_packed(tmp_path / "t") as packed:
        values = np.empty((packed.count("train"), len(packed.features)), np.float32)
        packed.read("train", np.arange(len(values)), values)
        assert np.array_equal(values[:, packed.features.index("x")] * 2, packed.targets("train")[:, 0])


@pytest.mark.parametrize("word", ["nothing-here", "a.yaml"])
def test_a_wrong_source_is_told(tmp_path: Path, word: str) -> None:
    with pytest.raises(DlhpcError, match="there is no such"):
        dlhpc("data", "pack", tmp_path / word, "--to", tmp_path / "set")


def test_broken_pictures_are_named_before_anything_is_left(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    (tmp_path / "photos" / "a" / "1.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a/1\.png"):
        dlhpc("data", "pack", tmp_path / "photos", "--to", tmp_path / "set", *SMALL)
    assert sorted(os.listdir(tmp_path)) == ["photos"]
    said = dlhpc("data", "pack", tmp_path / "photos", "--to", tmp_path / "set", *SMALL, "--set", "data.broken=skip")
    assert f"left out: {tmp_path}/photos/a/1.png: " in said


# --- The page ------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The elements of a page, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]


def shown(tmp_path: Path, *words: object) -> Page:
    dlhpc("data", "show", *words, "--out", tmp_path / "page.html")
    return Page((tmp_path / "page.html").read_text())


def test_the_page_shows_pictures_classes_and_every_way_to_resize(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 10)
    dlhpc("data", "pack", tmp_path / "photos", "--to", tmp_path / "set", *SMALL)
    page = shown(tmp_path, tmp_path / "set", "--pictures", 10)
    figures = [figure for figure in page.all("figure") if "data-split" in figure]
    assert {figure["data-split"] for figure in figures} == {"train", "val"}
    assert {figure["data-classes"].split()[0] for figure in figures if figure["data-split"] == "train"} == {"0", "1"}
    assert 8 <= len(figures) <= 12
    assert all(picture["src"].startswith("data:image/") for picture in page.all("img"))
    assert not page.all("link")
    for way in ("squash", "crop", "fill", "half_crop", "pad", "original, 30×20"):
        assert way in page.text
    assert page.text.count("8") == 2, "samples of each class in train"


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    evil = '<script>alert("1")<'
    (tmp_path / "photos" / "a").rename(tmp_path / "photos" / evil)
    before = len(shown(tmp_path, photos(tmp_path / "harmless"), *SMALL).all("script"))
    page = shown(tmp_path, tmp_path / "photos", *SMALL)
    assert len(page.all("script")) == before == 1
    assert evil in page.text
    assert "'unsafe-inline'" in str(page.all("meta"))
    assert "default-src 'none'" in str(page.all("meta"))


def test_boxes_are_drawn_and_targets_told(tmp_path: Path) -> None:
    page = shown(tmp_path, kitti(tmp_path / "streets"), *SMALL)
    boxes = page.all("rect")
    assert len(boxes) == 8
    assert float(boxes[0]["width"]) == pytest.approx(20 * 12 / 48)
    assert "1 Car" in page.text
    rows = "".join(f"{n},{n % 3},{2 * n}\n" for n in range(20))
    (tmp_path / "t.csv").write_text("x,kind,y\n" + rows)
    page = shown(tmp_path, tmp_path / "t.csv", "--set", "data.table.targets=y")
    assert {"Features", "x", "kind", "y"} <= set(page.text)


def test_help_has_an_example_everywhere() -> None:
    for command in ("pack", "show"):
        said = dlhpc("data", command, "--help")
        assert f"dlhpc data {command} photos" in said
    assert "pack" in dlhpc("data", "--help")
