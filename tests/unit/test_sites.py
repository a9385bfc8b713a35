"""Site profiles: those that ship, what the staff guide says of them, and damaged ones, named with their line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from dlhpc import resources
from dlhpc.cli import cli
from dlhpc.errors import UserError
from dlhpc.sites.load import load_site, runs_folder
from dlhpc.sites.models import Launcher, Paths, Prices, Queue, Site


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nqueues: [\n", r"here\.yaml:3: is not valid YAML"),
        ("only words\n", r"here\.yaml: the profile and its `paths` must hold"),
        ("name: x\npaths: words\n", r"here\.yaml: the profile and its `paths` must hold"),
        ("name: x\npaths: {runs: [a]}\n", r"here\.yaml: `paths\.runs` must be the name of a folder"),
        ("name: x\npaths: " + "[" * 1000, r"here\.yaml: cannot be read"),
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


def examples() -> list[str]:
    return sorted(file.stem for file in resources.folder("site").glob("*.yaml"))


@pytest.mark.parametrize("name", examples())
def test_every_shipped_profile_loads_and_is_called_as_its_file(name: str) -> None:
    profile = load_site(name)
    assert profile.name == name
    assert profile.description


def test_shipped_profiles_show_every_scheduler_and_dialect() -> None:
    profiles = [load_site(name) for name in examples()]
    assert {profile.scheduler for profile in profiles} == set(get_args(Site.model_fields["scheduler"].annotation))
    dialects = {profile.dialect for profile in profiles if profile.scheduler == "pbs"}
    assert dialects == {"select", "nodes", "totals", "torque"}


def test_the_profiles_that_people_ask_for() -> None:
    pbs = load_site("gpu-pbs").nodes["gpu10"]
    assert (pbs.cores, pbs.gpus) == (36, 10), "2 × 18 cores and 10 GPUs"
    power = load_site("power-aix").nodes["power7"]
    assert (power.count, power.off, power.on) == (10, 4, 6), "sixty per cent are switched on"


@pytest.mark.parametrize("name", [name for name in examples() if name != "local"])
def test_examples_say_what_power_and_nodes_cost(name: str) -> None:
    profile = load_site(name)
    for node in profile.nodes.values():
        assert node.power is not None
        assert None not in (node.cores, node.memory, node.gpus, node.count)
    assert (profile.prices.node_hour, profile.prices.kwh) != (None, None)


def keys(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every key of a profile as the guide writes it: `queues[].name`, `nodes.*.cores`."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        kinds += [inner for kind in kinds for inner in get_args(kind)]
        below = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        origins = {get_origin(kind) for kind in kinds}
        suffix = "[]" if list in origins and below else ".*" if dict in origins else ""
        if below is None:
            yield f"{above}{name}{suffix}"
        else:
            yield from keys(below, f"{above}{name}{suffix}.")


GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "staff-guide.md").read_text(encoding="utf-8")


def test_the_staff_guide_has_every_key_and_no_other() -> None:
    table = GUIDE.partition("## 3. Every key")[2].partition("**Dialects")[0]
    told = re.findall(r"^\| `([\w.*\[\]]+)` \|", table, re.MULTILINE)
    assert sorted(told) == sorted([*keys(Site), "nodes.*"])


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("max_array", str(Site.model_fields["max_array"].default)),
        ("kill_grace", f"{Site.model_fields['kill_grace'].default.total_seconds():g}s"),
        ("compute_may_submit", str(Site.model_fields["compute_may_submit"].default).lower()),
        ("paths.runs", Paths().runs),
        ("prices.currency", Prices().currency),
        ("launcher.kind", Launcher().kind),
        ("queues[].min_nodes", str(Queue(name="q").min_nodes)),
        ("scheduler", Site.model_fields["scheduler"].default),
    ],
)
def test_the_staff_guide_has_the_right_defaults(key: str, default: str) -> None:
    assert re.search(rf"^\| `{re.escape(key)}` \|.*\| `{re.escape(default)}` \|$", GUIDE, re.MULTILINE)


def test_the_staff_guide_names_every_profile_and_every_block_of_the_job_script() -> None:
    for name in examples():
        assert f"| `{name}` |" in GUIDE
    base = (resources.folder("jobtemplates") / "base.sh.j2").read_text(encoding="utf-8")
    table = GUIDE.partition("| block |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == re.findall(r"{% block (\w+) %}", base)


@pytest.mark.parametrize("template", sorted(resources.folder("site").glob("*.sh.j2")), ids=lambda file: file.name)
def test_templates_of_sites_extend_theirs_and_override_blocks_that_exist(template: Path) -> None:
    profile = load_site(template.name.removesuffix(".sh.j2"))
    source = template.read_text(encoding="utf-8")
    assert f'{{% extends "{profile.scheduler}.sh.j2" %}}' in source
    base = (resources.folder("jobtemplates") / "base.sh.j2").read_text(encoding="utf-8")
    assert set(re.findall(r"{% block (\w+) %}", source)) <= set(re.findall(r"{% block (\w+) %}", base))


def test_profiles_are_listed_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.yaml").write_text("name: broken\nqueus: []\n")
    monkeypatch.setenv("DLHPC_SITE_PATH", str(tmp_path))
    listed = CliRunner().invoke(cli, ["site", "list", "--json"])
    rows = {row["name"]: row for row in json.loads(listed.output)}
    assert rows["gpu-slurm"]["scheduler"] == "slurm"
    assert "Did you mean `queues`?" in rows["broken"]["error"]
    table = CliRunner().invoke(cli, ["site", "list"]).output
    assert "cannot be used; `dlhpc site show broken` says why" in table
    assert rows["broken"]["file"] in table  # one line a profile, whatever is wrong with it
    shown = CliRunner().invoke(cli, ["site", "show", "power-aix"])
    assert "power7  6   4    32     120 GB" in shown.output
    whole = json.loads(CliRunner().invoke(cli, ["site", "show", "power-aix", "--json"]).output)
    assert whole["nodes"]["power7"]["off"] == 4
