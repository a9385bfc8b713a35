"""Tables: what is read, what is refused and at which line, who gets which row, and what the network is given."""

from __future__ import annotations

import builtins
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlhpc.data.catalog import Catalog, make_catalog
from dlhpc.data.coding import Coding, code_table, encode_rows
from dlhpc.data.table_files import read_table
from dlhpc.errors import DataError, DlhpcError, ErrorList, UserError
from dlhpc.spec.models import Data

STEELS = """alloy,carbon,chromium,furnace,hardness
A,0.10,1.0,north,110
B,0.20,2.0,south,130
C,0.30,1.5,north,170
D,0.40,3.0,south,150
E,0.50,0.5,north,190
F,0.60,1.0,south,250
G,0.70,2.5,north,210
H,0.80,0.0,south,240
"""


def table(folder: Path, text: str, name: str = "steels.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def data(path: Path, targets: Any = "hardness", *, several_labels: bool = False, **more: Any) -> Data:
    settings = {key: more.pop(key) for key in ("split", "min_per_class", "max_per_class") if key in more}
    return Data.model_validate(
        {"table": {"file": str(path), "targets": targets, **more}, "several_labels": several_labels, **settings}
    )


def catalog(path: Path, targets: Any = "hardness", task: Any = "regression", **more: Any) -> Catalog:
    return make_catalog(data(path, targets, **more), path.parent, task)


def refused(path: Path, targets: Any = "hardness", task: Any = "regression", **more: Any) -> str:
    with pytest.raises((DataError, ErrorList)) as caught:
        catalog(path, targets, task, **more)
    return str(caught.value)


def coded(path: Path, targets: Any = "hardness", task: Any = "regression", **more: Any) -> Any:
    settings = data(path, targets, **more)
    assert settings.table is not None
    return code_table(make_catalog(settings, path.parent, task), settings.table.model_dump(mode="json"))


# ---- Reading


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_commas_semicolons_and_tabs(tmp_path: Path, separator: str) -> None:
    read = read_table(table(tmp_path, STEELS.replace(",", separator)))
    assert list(read.columns) == ["alloy", "carbon", "chromium", "furnace", "hardness"]
    assert read.numbers("carbon")[:2] == [0.1, 0.2]


def test_what_spreadsheets_write_is_understood(tmp_path: Path) -> None:
    text = '\ufeffname;"strength; MPa";note\r\n\r\n"A ""x""";3,5;"two\r\nlines"\r\n;;\r\nB;-1,25e2;\r\n'
    read = read_table(table(tmp_path, text))
    assert read.columns["name"] == ['A "x"', "B"]
    assert read.numbers("strength; MPa") == [3.5, -125.0]
    assert read.columns["note"] == ["two\r\nlines", None]
    assert list(read.lines) == [3, 6]


def test_numbers_as_programs_print_them_and_gaps_as_people_write_them(tmp_path: Path) -> None:
    cells = ["1.5D+03", "-2e-1", "NaN", "", "NA", "None", "Na", "1_000"]
    read = read_table(table(tmp_path, "a,b\n" + "".join(f"{cell},x\n" for cell in cells)))
    numbers = read.numbers("a")
    assert numbers[:2] == [1500.0, -0.2]
    assert all(number is not None and math.isnan(number) for number in numbers[2:6])
    assert numbers[6:] == [None, None]  # sodium, and what only Python takes for a number
    assert read.words("a")[6] == "Na"


def test_a_decimal_comma_in_a_comma_file_is_no_number(tmp_path: Path) -> None:
    read = read_table(table(tmp_path, 'a,b\n"3,5",x\n'))
    assert read.numbers("a") == [None]


def test_wrong_numbers_of_fields_are_told_with_their_lines(tmp_path: Path) -> None:
    path = table(tmp_path, STEELS.replace("0.20,2.0", "0.20").replace("170", "170,9"))
    said = refused(path)
    assert f"{path}:3: has 4 fields, but the first line names 5 columns" in said
    assert f"{path}:4: has 6 fields" in said


def test_a_quote_that_is_never_closed_is_told_with_its_line(tmp_path: Path) -> None:
    path = table(tmp_path, STEELS.replace("C,", '"C,'))
    assert f"{path}:4: the quotes of this row do not fit" in refused(path)


def test_doubled_and_missing_names_of_columns(tmp_path: Path) -> None:
    assert "two columns are called `carbon`" in refused(table(tmp_path, STEELS.replace("chromium", "carbon")))
    numbered = "".join(
        f"{n}{line}\n" for n, line in zip(["", *"01234567"], ("," + STEELS.replace("\n", "\n,")).split("\n"))
    )
    found = catalog(table(tmp_path, numbered))
    assert any("column 1 has no name and is not used" in note for note in found.notes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"a,b\n", "has no rows"),
        ("名,hardness\n鉄,1\n".encode("shift-jis"), "not UTF-8"),
        (b"PK\x03\x04rest", "is a spreadsheet"),
        (b"\x1f\x8brest", "is compressed"),
        (b"PAR1rest", "damaged, or no Parquet file"),
    ],
)
def test_what_is_no_table(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    assert said in refused(path, "b" if content == b"a,b\n" else "hardness")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    table(tmp_path, STEELS)
    assert "Did you mean" in refused(tmp_path / "steel.csv")


def test_parquet_is_the_same_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = table(tmp_path, STEELS)
    rows = [line.split(",") for line in STEELS.splitlines()]
    columns: dict[str, list[Any]] = {name: list(cells) for name, *cells in zip(*rows)}
    columns |= {name: [float(cell) for cell in columns[name]] for name in ("carbon", "chromium", "hardness")}
    parquet.write_table(pyarrow.table(columns | {"spectrum": [[1.0]] * 8}), tmp_path / "steels.parquet")
    mine, theirs = coded(path), coded(tmp_path / "steels.parquet")
    np.testing.assert_array_equal(mine.inputs["train"], theirs.inputs["train"])
    assert mine.features == theirs.features
    assert any("`spectrum` holds lists" in note for note in catalog(tmp_path / "steels.parquet").notes)


def test_parquet_without_pyarrow_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "steels.parquet"
    path.write_bytes(b"PAR1")
    known = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return known(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install pyarrow"):
        read_table(path)


# ---- Columns


def test_all_other_columns_are_inputs_but_those_that_name_rows(tmp_path: Path) -> None:
    rows = "".join(f"sample-{n},{n % 7},{n % 3},{'ab'[n % 2]},{n * n}\n" for n in range(30))
    path = table(tmp_path, "sample,x,site,kind,y\n" + rows)
    made = coded(path, "y", categories=["site"])
    assert made.features == ["x", "site=0", "site=1", "site=2", "kind=a", "kind=b"]
    assert any("`sample` holds 30 different words in 30 rows" in note for note in catalog(path, "y").notes)
    assert "Take it out of data.table.inputs" in refused(path, "y", inputs=["sample", "x"])


def test_unknown_columns_are_told_with_the_nearest(tmp_path: Path) -> None:
    path = table(tmp_path, STEELS)
    assert "Did you mean `hardness`?" in refused(path, "hardnes")
    assert "Did you mean `carbon`?" in refused(path, inputs=["carbn"])
    assert "has no column `batch`, which data.table.group names" in refused(path, group="batch")
    assert "which is no input" in refused(path, inputs=["carbon"], categories=["furnace"])


def test_a_word_among_numbers_is_a_mistake_with_its_line(tmp_path: Path) -> None:
    path = table(tmp_path, STEELS.replace("0.30", "0.3o"))
    said = refused(path)
    assert f"{path}:4: `0.3o` in column `carbon` is no number" in said
    assert "data.table.categories" in said


def test_infinite_inputs_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, STEELS.replace("0.30", "inf"))
    assert f"{path}:4: `inf` in column `carbon` is no finite number" in refused(path)


def test_an_input_that_is_the_target(tmp_path: Path) -> None:
    copied = "\n".join(
        line + "," + (line.split(",")[-1] if n else "vickers") for n, line in enumerate(STEELS.splitlines())
    )
    assert "the input column `vickers` equals the target `hardness`" in refused(table(tmp_path, copied + "\n"))
    scaled = "\n".join(
        line + "," + (str(9.81 * float(line.split(",")[-1])) if n else "mpa")
        for n, line in enumerate(STEELS.splitlines())
    )
    assert any(
        "`mpa` is the target `hardness` on another scale" in note for note in catalog(table(tmp_path, scaled)).notes
    )
    assert "is among data.table.inputs and data.table.targets" in refused(
        table(tmp_path, STEELS), inputs=["carbon", "hardness"]
    )


# ---- Targets


@pytest.mark.parametrize(("cell", "said"), [("hard", "is no number"), ("inf", "is no finite number")])
def test_targets_that_are_no_numbers(tmp_path: Path, cell: str, said: str) -> None:
    path = table(tmp_path, STEELS.replace("170", cell))
    assert f"{path}:4: `{cell}` in the target column `hardness` {said}" in refused(path)


@pytest.mark.parametrize("cell", ["", "NaN", "None"])
def test_missing_targets_are_errors_or_left_out(tmp_path: Path, cell: str) -> None:
    path = table(tmp_path, STEELS.replace("170", cell))
    assert f"{path}:4: the target (hardness) has no value here" in refused(path)
    assert "no value here" in refused(path, missing="fill")
    found = catalog(path, missing="drop")
    assert sum(map(found.count, found.rows)) == 7
    assert any("1 of 8 rows lack a value and are left out" in note for note in found.notes)


def test_the_emptiest_columns_are_told(tmp_path: Path) -> None:
    empty = table(tmp_path, "x,z,y\n" + "".join(f"{n if n < 3 else ''},{'' if n < 3 else n},{n}\n" for n in range(9)))
    said = refused(empty, "y", missing="drop")
    assert "has no row in which nothing is missing (gaps: `x` 6, `z` 3)" in said


def test_a_column_that_may_number_the_rows_is_told(tmp_path: Path) -> None:
    path = table(tmp_path, "id,x,y\n" + "".join(f"{n},{n % 5},{n % 7}\n" for n in range(30)))
    assert any("`id` holds another whole number in each row" in note for note in catalog(path, "y").notes)
    assert not any("another whole number" in note for note in catalog(path, "y", inputs=["id", "x"]).notes)


def test_nothing_to_learn(tmp_path: Path) -> None:
    same = "\n".join(
        line.rsplit(",", 1)[0] + (",5" if n else ",hardness") for n, line in enumerate(STEELS.splitlines())
    )
    assert "the target `hardness` is 5 in all" in refused(table(tmp_path, same + "\n"))
    assert "cannot be shared out" in refused(table(tmp_path, "\n".join(STEELS.splitlines()[:2]) + "\n"))


def test_classes_in_a_column_are_shared_out_class_by_class(tmp_path: Path) -> None:
    path = table(tmp_path, STEELS)
    found = catalog(path, "furnace", "classification", inputs=["carbon", "hardness"])
    assert found.classes == ["north", "south"]
    assert found.counts("train") == [3, 3]
    assert found.counts("val") == [1, 1]
    made = coded(path, "furnace", "classification", inputs=["carbon", "hardness"])
    assert made.targets["train"].dtype == np.int64
    assert made.targets["train"].tolist() == [row % 2 for row in found.rows["train"].numbers]


def test_numbers_named_as_classes_say_regression(tmp_path: Path) -> None:
    said = refused(table(tmp_path, STEELS), "carbon", "classification", inputs=["chromium"])
    assert "these classes have too few rows" in said
    assert "task: regression" in said
    assert "data.several_labels: true" in refused(table(tmp_path, STEELS), ["furnace", "alloy"], "classification")


def test_several_labels_are_columns_of_0_and_1(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n % 2},{'true' if n % 3 else 'false'}\n" for n in range(12))
    path = table(tmp_path, "x,magnetic,brittle\n" + rows)
    found = catalog(path, ["magnetic", "brittle"], "classification", several_labels=True)
    assert found.classes == ["magnetic", "brittle"]
    made = coded(path, ["magnetic", "brittle"], "classification", several_labels=True)
    numbers = found.rows["train"].numbers
    assert made.targets["train"].tolist() == [[n % 2, int(n % 3 > 0)] for n in numbers]
    wrong = table(tmp_path, "x,magnetic,brittle\n0,2,0\n" + rows, "wrong.csv")
    assert f"{wrong}:2: `2` in column `magnetic` is not 0 or 1" in refused(
        wrong, ["magnetic", "brittle"], "classification", several_labels=True
    )


# ---- Who gets which row


def test_the_same_seed_gives_the_same_rows_and_each_row_once(tmp_path: Path) -> None:
    path = table(tmp_path, "x,y\n" + "".join(f"{n},{n * n}\n" for n in range(100)))
    split = {"train": 0.6, "val": 0.2, "unseen": 0.2}
    first, again = (catalog(path, "y", split=split) for _ in range(2))
    assert first == again
    assert [first.count(name) for name in ("train", "val", "unseen")] == [60, 20, 20]
    assert sorted(row for rows in first.rows.values() for row in rows.numbers) == list(range(100))
    other = catalog(path, "y", split={**split, "seed": 2})
    assert other.rows["val"].numbers != first.rows["val"].numbers
    folds = [catalog(path, "y", split={"folds": 5, "fold": fold}).rows["val"].numbers for fold in range(1, 6)]
    assert sorted(row for fold in folds for row in fold) == list(range(100))


def test_groups_stay_together(tmp_path: Path) -> None:
    path = table(tmp_path, "x,compound,y\n" + "".join(f"{n},c{n // 5},{n * n}\n" for n in range(100)))
    found = catalog(path, "y", group="compound")
    sides = [{row // 5 for row in found.rows[name].numbers} for name in ("train", "val")]
    assert not sides[0] & sides[1]
    assert found.count("val") == 25
    assert coded(path, "y", group="compound").features == ["x"]


def test_rows_of_files_of_their_own(tmp_path: Path) -> None:
    path = table(tmp_path, STEELS)
    val = table(tmp_path, "hardness,chromium,carbon,furnace\n100,1,0.15,east\n", "val.csv")
    found = catalog(path, val=str(val), inputs=["carbon", "furnace"])
    assert found.count("train") == 8
    assert found.rows["val"].path == str(val)
    made = coded(path, val=str(val), inputs=["carbon", "furnace"])
    assert made.inputs["val"].tolist() == [[np.float32(0.15), 0, 0]]
    assert any("1 rows in val have categories in `furnace` that no training row has: `east`" in n for n in made.notes)
    less = table(tmp_path, "hardness,carbon\n100,0.15\n", "less.csv")
    assert "has no column `furnace`" in refused(path, val=str(less), inputs=["carbon", "furnace"])


def test_rows_that_were_learnt_and_measured_are_told(tmp_path: Path) -> None:
    path = table(tmp_path, "x,y\n" + "".join(f"{n % 4},{n}\n" for n in range(40)))
    assert any("10 of 10 validation rows have the very inputs of a training row" in n for n in catalog(path, "y").notes)


def test_a_table_of_pictures(tmp_path: Path) -> None:
    for n in range(8):
        (tmp_path / f"{n}.png").write_bytes(b"picture")
    path = table(tmp_path, "file,angle,phase\n" + "".join(f"{n}.png,{n}.5,{'ab'[n % 2]}\n" for n in range(8)))
    found = catalog(path, "angle", pictures="file")
    assert found.kind == "pictures"
    assert found.target_names == ["angle"]
    sample = found.splits["train"][0]
    assert sample.target == [float(Path(sample.path).stem) + 0.5]
    assert sample.size == 7
    named = catalog(path, "phase", "classification", pictures="file")
    assert all(sample.target == int(Path(sample.path).stem) % 2 for sample in named.splits["train"])
    (tmp_path / "3.png").unlink()
    assert f"{path}:5: there is no file {tmp_path / '3.png'}" in refused(path, "angle", pictures="file")


# ---- Coding


def test_missing_inputs_fail_are_dropped_or_filled(tmp_path: Path) -> None:
    path = table(tmp_path, STEELS.replace("0.30", "").replace("0.50", "NaN"))
    split = {"split": {"train": 0.75, "val": 0.25, "seed": 3}, "inputs": ["carbon", "furnace"]}
    said = refused(path, **split)
    assert f"{path}:4: column `carbon` has no value here" in said
    assert f"{path}:6: column `carbon` has no value here" in said
    dropped = coded(path, missing="drop", **split)
    assert sum(map(len, dropped.inputs.values())) == 6
    filled = coded(path, missing="fill", **split)
    rows = catalog(path, missing="fill", **split).rows["train"].numbers
    assert sum(map(len, filled.inputs.values())) == 8
    gaps = [row in (2, 4) for row in rows]
    assert any(gaps)
    assert filled.features == ["carbon", "carbon missing", "furnace=north", "furnace=south"]
    known = [(row + 1) / 10 for row in rows if row not in (2, 4)]
    np.testing.assert_allclose(filled.inputs["train"][gaps, 0], np.mean(known), rtol=1e-6)
    assert filled.inputs["train"][:, 1].tolist() == [float(gap) for gap in gaps]
    assert any("mean stands in" in note for note in filled.notes)


def test_statistics_are_those_of_the_training_rows(tmp_path: Path) -> None:
    made = coded(table(tmp_path, STEELS), inputs=["carbon", "furnace"])
    carbon = made.inputs["train"][:, 0].astype(np.float64)
    np.testing.assert_allclose(made.mean, [carbon.mean(), 0, 0])
    np.testing.assert_allclose(made.std, [carbon.std(), 1, 1])
    np.testing.assert_allclose(made.target_mean, made.targets["train"].mean(axis=0))
    assert made.targets["train"].dtype == np.float64


def test_large_numbers_that_differ_little_keep_their_digits(tmp_path: Path) -> None:
    rows = "".join(f"{1.7e9 + n},{n * 1e-40},{n % 5}\n" for n in range(20))
    made = coded(table(tmp_path, "time,charge,y\n" + rows), "y")
    numbers = catalog(table(tmp_path, "time,charge,y\n" + rows), "y").rows["train"].numbers
    for column in (0, 1):
        steps = np.diff(made.inputs["train"][:, column]) / np.diff(numbers)
        np.testing.assert_allclose(steps, steps[0], rtol=1e-5)
        assert made.std[column] > 1e-3


def test_new_rows_are_coded_as_those_that_were_learnt(tmp_path: Path) -> None:
    made = coded(table(tmp_path, STEELS), inputs=["carbon", "furnace"])
    coding = json.loads(json.dumps(made.coding))  # as an index or a manifest holds it
    new = read_table(table(tmp_path, "furnace;carbon\nsouth;0,25\nwest;0,5\nnorth;\nsouth;low\n", "new.csv"))
    encoded = encode_rows(coding, new)
    assert Coding.from_json(coding).features == made.features
    assert encoded.values[:2].tolist() == [[0.25, 0, 1], [0.5, 0, 0]]
    assert encoded.unknown == {("furnace", "west"): 1}
    assert list(encoded.faults) == [2, 3]
    assert f"{new.path}:4: column `carbon` has no value" in encoded.faults[2]
    assert "`low` in column `carbon` is no number" in encoded.faults[3]
    with pytest.raises(DataError, match="has no column `furnace`"):
        encode_rows(coding, read_table(table(tmp_path, "carbon\n1\n", "less.csv")))


def test_a_table_that_changed_since_it_was_listed(tmp_path: Path) -> None:
    path = table(tmp_path, STEELS)
    settings = data(path)
    listed, mapping = make_catalog(settings, tmp_path, "regression"), settings.table.model_dump()  # type: ignore[union-attr]
    assert code_table(listed, mapping).changed == []
    table(tmp_path, STEELS.replace("110", "111"))
    assert code_table(listed, mapping).changed == [str(path)]
    table(tmp_path, "\n".join(STEELS.splitlines()[:3]) + "\n")
    with pytest.raises(DlhpcError, match="submit its spec"):
        code_table(listed, mapping)
