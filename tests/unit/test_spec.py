"""A spec's faults are shown all at once, each with file, line and remedy; a good spec needs hardly a line."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from dlhpc.errors import ErrorList, UserError
from dlhpc.spec.base import format_duration, parse_duration, parse_size
from dlhpc.spec.load import load_spec, override, parse_document
from dlhpc.spec.models import Spec


def spec_file(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(folder: Path, text: str, *settings: str) -> list[str]:
    with pytest.raises(ErrorList) as caught:
        load_spec(spec_file(folder, text), settings)
    return [str(error) for error in caught.value.errors]


def test_three_lines_are_enough(tmp_path: Path) -> None:
    spec, _ = load_spec(spec_file(tmp_path, "name: cars\ndata:\n  folder: photos\n"))
    assert spec.data.folder == "photos"
    assert spec.network.name == "alexnet"
    assert spec.training.epochs == 30


def test_every_fault_is_shown_with_its_line(tmp_path: Path) -> None:
    shown = faults(
        tmp_path,
        "name: cars\ndata:\n  foldr: photos\n  width: 3\nnetwork:\n  name: alexnt\ntraining:\n  epochs: no\njob:\n"
        "  walltime: 90\n",
    )
    assert [line.split(":")[1] for line in shown] == ["3", "4", "6", "8", "10"]
    assert "Did you mean `folder`?" in shown[0]
    assert "Did you mean `alexnet`?" in shown[2]
    assert "given: 'no'" in shown[3]  # YAML 1.2: `no` is a word, not false
    assert all("→" in line for line in shown)


def test_a_missing_section_says_what_it_is_for(tmp_path: Path) -> None:
    assert "`data` is missing" in faults(tmp_path, "name: cars\n")[0]


def test_settings_override_and_are_named_in_errors(tmp_path: Path) -> None:
    text = "name: cars\ndata: {folder: photos}\n"
    spec, document = load_spec(spec_file(tmp_path, text), ["training.epochs=7", "job.walltime=2h"])
    assert spec.training.epochs == 7
    assert spec.job.walltime == timedelta(hours=2)
    assert "epochs: 7" in document.text()
    assert "--set training.sed=4: unknown key" in faults(tmp_path, text, "training.sed=4")[0]


def test_overrides_keep_the_comments_of_the_user() -> None:
    document = parse_document("name: cars  # ours\ndata:\n  folder: photos  # many\n", Path("spec.yaml"))
    override(document, ["data.width=64"])
    assert "# ours" in document.text()
    assert "# many" in document.text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: [\n", "spec.yaml:2: is not valid YAML"),
        (b"name: a\nname: b\n", "spec.yaml:2"),
        (b"- a\n- b\n", "spec.yaml:1: must hold `key: value` lines"),
        (b"", "must hold `key: value` lines"),
        (b"name: a\nnotes: \xff\xfe\n", "spec.yaml:2: is not UTF-8"),
        (b"name: a\n\tdata: b\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_spec_is_named_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_spec(path)
    assert said in str(caught.value)


def test_a_mistyped_file_name_is_guessed(tmp_path: Path) -> None:
    spec_file(tmp_path, "name: cars\n")
    with pytest.raises(UserError, match=r"Did you mean .*spec\.yaml"):
        load_spec(tmp_path / "spce.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer: {name: adam, momentum: 0.9}", "adam has no momentum"),
        ("optimizer: {name: adam, betas: [0.9, 1.0]}", "less than 1"),
        ("augment: {crop: 300}", "larger than the picture"),
        ("network: {name: alexnet}\naugment: {crop: 40}", "alexnet needs pictures of at least 63×63"),
        ("learning_rate: {policy: multistep, steps: [50, 20]}", "rising percents"),
        ("training: {learning: 3}", "unknown key"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in faults(tmp_path, f"name: cars\ndata: {{folder: photos}}\n{text}\n")[0]


def test_split_must_sum_to_one(tmp_path: Path) -> None:
    shown = faults(tmp_path, "name: cars\ndata: {folder: photos, split: {train: 0.5, val: 0.2}}\n")
    assert "train + val + unseen is 0.7" in shown[0]


def test_exactly_one_source_of_data(tmp_path: Path) -> None:
    assert "exactly one of" in faults(tmp_path, "name: cars\ndata: {width: 64}\n")[0]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1:30:00", 5400), ("0:30", 1800), ("2-00:00:00", 172800), ("90min", 5400), ("1h 30m", 5400), ("45s", 45)],
)
def test_durations_as_people_write_them(text: str, seconds: int) -> None:
    assert parse_duration(text).total_seconds() == seconds
    assert parse_duration(format_duration(seconds)).total_seconds() == seconds


@pytest.mark.parametrize("text", ["90", "1.5", "1:99:00", "soon", ""])
def test_durations_without_a_unit_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_sizes_as_people_write_them() -> None:
    assert (parse_size("16GB"), parse_size("512 MiB"), parse_size("2g")) == (16 * 10**9, 512 * 2**20, 2 * 10**9)


def test_the_schema_describes_every_key() -> None:
    schema = Spec.model_json_schema()
    assert schema["required"] == ["name", "data"]
    assert "of each class" in str(schema["$defs"]["Split"])


@pytest.mark.parametrize("walltime", ["999999999999h", "99999999999999999999999:00:00", "11 d 99999999 h"])
def test_a_walltime_without_end_is_refused(tmp_path: Path, walltime: str) -> None:
    text = f"name: cars\ndata: {{folder: photos}}\njob:\n  walltime: {walltime}\n"
    assert "longer than ten years" in faults(tmp_path, text)[0]


def test_a_file_that_grows_without_end_when_read_is_refused(tmp_path: Path) -> None:
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(UserError, match="more than 100000 values"):
        load_spec(spec_file(tmp_path, "\n".join(["name: cars", *lines])))


def test_a_spec_nested_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nested too deeply"):
        load_spec(spec_file(tmp_path, "name: cars\ndata: " + "[" * 5000))


def test_a_character_that_yaml_does_not_allow_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"spec\.yaml:2: holds the character U\+0000"):
        load_spec(spec_file(tmp_path, "name: cars\nnotes: a\0b\n"))


def test_a_setting_inside_a_value_is_named_as_it_was_given(tmp_path: Path) -> None:
    text = "name: cars\ndata: {folder: photos}\ntraining: {epochs: 3}\n"
    assert "--set training.epochs.x=3" in faults(tmp_path, text, "training.epochs.x=3")[0]
    assert "the default is ." not in faults(tmp_path, text, "notes=[1]")[0]


def test_a_billion_portions_are_refused(tmp_path: Path) -> None:
    text = "name: cars\ndata: {folder: photos}\n"
    assert "less than or equal to 10000" in faults(tmp_path, text, "training.accumulate=1000000000")[0]


def test_one_run_to_wait_for_needs_no_list(tmp_path: Path) -> None:
    text = "name: cars\ndata:\n  folder: photos\njob:\n  after: last\n  directives: -l feature=big\n  mail_on: end\n"
    job = load_spec(spec_file(tmp_path, text))[0].job
    assert (job.after, job.directives, job.mail_on) == (("last",), ("-l feature=big",), ("end",))
    assert load_spec(spec_file(tmp_path, text), ("job.after=[a, b]",))[0].job.after == ("a", "b")
    assert "string" in str(Spec.model_json_schema()["$defs"]["Job"]["properties"]["after"])
