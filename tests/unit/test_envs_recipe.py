"""Recipes: the shipped one is sound, and faults in a centre's own are told with file and line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dlhpc.envs.recipe import Recipe, load_recipe, recipe_files, requirement_name
from dlhpc.envs.record import EnvironmentRecord, MpiRecord, read_record, write_record
from dlhpc.errors import ErrorList, StorageError, UserError

SMALL = """\
name: small
requirements:
  - torch==2.15.0
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_shipped_recipe_loads_and_is_named_as_its_file(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


def test_the_hash_changes_with_what_the_recipe_says_and_not_with_comments(tmp_path: Path) -> None:
    plain = load_recipe(written(tmp_path, SMALL))
    commented = load_recipe(written(tmp_path, "# ours\n" + SMALL))
    other = load_recipe(written(tmp_path, SMALL + "environment: {OMP_NUM_THREADS: '1'}\n"))
    assert plain.hash() == commented.hash() != other.hash()


def test_a_misspelt_key_is_told_with_its_line_and_the_right_word(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL + "enviroment: {}\n")
    with pytest.raises(ErrorList) as caught:
        load_recipe(path)
    text = str(caught.value)
    assert f"{path}:4" in text
    assert "`environment`" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALL.replace("torch==2.15.0", "torch>=2"), "no exact version"),
        (SMALL.replace("torch==2.15.0", "--index-url=x"), "no requirement of pip"),
        (SMALL + "system:\n  - {what: g++}\n", "either `command` or `header`"),
        (SMALL + "system:\n  - {what: x, command: x, apt: ['--force']}\n", "apt"),
        (SMALL + "horovod:\n  version: 0.28.1\n  patches: [{file: ../x, find: a, replace: b}]\n", "inside Horovod"),
        (SMALL + "environment: {'A B': x}\n", "environment"),
    ],
)
def test_values_that_cannot_work_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ErrorList, match=said):
        load_recipe(written(tmp_path, text))


def test_a_misspelt_recipe_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="Did you mean `cpu`"):
        load_recipe("cpv")


def test_a_centre_lays_its_own_recipe_over_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "cpu.yaml").write_text(SMALL.replace("small", "cpu"))
    monkeypatch.setenv("DLHPC_SITE_PATH", str(tmp_path))
    assert load_recipe("cpu").horovod is None


def test_requirement_names_are_compared_as_pip_does() -> None:
    assert requirement_name("Ruamel.YAML[x]>=0.18") == requirement_name("ruamel_yaml") == "ruamel-yaml"


RECORD = EnvironmentRecord(
    name="cpu",
    recipe_hash="0",
    python="3.11.2",
    torch="2.15.0",
    torchvision="0.29.2",
    horovod="0.28.1",
    mpi=MpiRecord("openmpi", "4.1.4", "/usr/bin/mpirun"),
    gloo=True,
    built_at="2026-01-01T00:00:00+00:00",
    packages={"torch": "2.15.0"},
)


def test_a_record_is_read_back_as_written_and_later_fields_do_no_harm(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / ".dlhpc").mkdir()
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD
    path = tmp_path / ".dlhpc" / "environment.json"
    path.write_text(path.read_text().replace('"gloo": true', '"gloo": true, "later": 1'))
    assert read_record(tmp_path) == RECORD
    assert RECORD.summary() == "Python 3.11.2, torch 2.15.0, Horovod 0.28.1 with openmpi 4.1.4 and Gloo"


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "cpu"}', '{"mpi": 3}'])
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / ".dlhpc").mkdir()
    (tmp_path / ".dlhpc" / "environment.json").write_text(content)
    with pytest.raises(StorageError, match=r"environment\.json"):
        read_record(tmp_path)


def test_reading_a_record_imports_neither_pydantic_nor_torch() -> None:
    code = "import sys, dlhpc.envs.record; print([m for m in ('pydantic', 'torch', 'rich') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_the_recipe_schema_explains_every_field() -> None:
    schema = Recipe.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    silent = [
        f"{model['title']}.{name}"
        for model in models
        for name, field in model.get("properties", {}).items()
        if not field.get("description") and "$ref" not in str(field)
    ]
    assert silent == []
