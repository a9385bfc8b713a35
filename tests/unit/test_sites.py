"""A damaged site profile is named with its line, also by commands that only want its folder of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlhpc.errors import UserError
from dlhpc.sites.load import load_site, runs_folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nqueues: [\n", r"here\.yaml:3: is not valid YAML"),
        ("only words\n", r"here\.yaml: the profile and its `paths` must hold"),
        ("name: x\npaths: words\n", r"here\.yaml: the profile and its `paths` must hold"),
        ("name: x\npaths: {runs: [a]}\n", r"here\.yaml: `paths\.runs` must be the name of a folder"),
        ("name: x\npaths: " + "[" * 5000, r"here\.yaml: cannot be read"),
    ],
)
def test_a_profile_without_sense_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.delenv("DLHPC_RUNS", raising=False)
    profile = tmp_path / "here.yaml"
    profile.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        runs_folder(site=str(profile))
    assert "Mend the profile" in str(caught.value)
    with pytest.raises(UserError):
        load_site(str(profile))


def test_the_folder_of_runs_needs_no_paths_in_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLHPC_RUNS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    profile = tmp_path / "here.yaml"
    profile.write_text("name: x\nqueues: [{name: all}]\npaths:\n")
    assert runs_folder(site=str(profile)) == tmp_path / "dlhpc-runs"
