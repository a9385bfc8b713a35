"""Scripts share what they have in common; each says what a script of its own would say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlhpc.errors import UserError
from dlhpc.jobs.render import refuse_control, render
from dlhpc.runs.directory import RunDirectory, placeholder_run
from dlhpc.runs.plan import Plan
from tests.unit.job_runs import CLUSTER, plan

pytestmark = pytest.mark.usefixtures("any_machine")

SCHEDULERS = ["local", "slurm", "pbs", "loadleveler"]
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("runs")
    full = plan(folder, CLUSTER, job={"nodes": 2})
    return dataclasses.replace(
        full, modules=["gcc/12.2.0"], scratch="/scratch/$USER", hostfile_option="--hostfile", gpu_resource="gpu"
    )


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_site_s_own_template_that_changes_nothing_gives_the_same_script(
    made: Plan, tmp_path: Path, scheduler: str
) -> None:
    own = tmp_path / "here.sh.j2"
    own.write_text(f'{{% extends "{scheduler}.sh.j2" %}}\n')
    ours = dataclasses.replace(made, scheduler=scheduler, dialect=None)
    run = RunDirectory(tmp_path / "cars-20261124-120000-ab12")
    assert render(ours, run) == render(dataclasses.replace(ours, template=str(own)), run)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_two_runs_differ_only_in_what_is_their_own(made: Plan, tmp_path: Path, scheduler: str) -> None:
    def script(name: str, run_id: str, **own: Any) -> str:
        one = dataclasses.replace(made, scheduler=scheduler, dialect=None, run_id=run_id, **own)
        return render(one, RunDirectory(tmp_path / name))

    first, second = script("cars-a", "id-one"), script("cars-b", "id-two", base_rate=0.5, spec={**made.spec, "seed": 9})
    assert first != second
    assert first == second.replace("cars-b", "cars-a").replace("id-two", "id-one")


@given(values=st.tuples(TEXT, TEXT, TEXT))
def test_a_change_of_anything_that_the_script_shows_shows(made: Plan, values: tuple[str, str, str]) -> None:
    ours = dataclasses.replace(made, scheduler="local")
    run = RunDirectory(Path("/runs/cars-a"))
    python, value, prefix = (f"{one}?{number}" for number, one in enumerate(values))
    changed = dataclasses.replace(ours, python=python, exports={"GREETING": value}, environment_prefix=prefix)
    assert render(changed, run) != render(ours, run) == render(ours, run)
    assert "\0" not in render(changed, run)


def test_a_directive_with_a_control_character_is_refused_with_the_line() -> None:
    refuse_control(["#SBATCH --nodes=2", "#SBATCH --comment=é"])
    with pytest.raises(UserError, match="control character") as caught:
        refuse_control(["#SBATCH --nodes=2", "#SBATCH --comment=a\n#SBATCH --uid=0"])
    assert "uid" in str(caught.value.where)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 / 0 }}", "the site's job template is wrong: division by zero"),
        ("{{ plan.nothing }}", "the site's job template is wrong: .*nothing"),
        ("", "lacks `#!/`"),
        ("#!/bin/sh\necho hello\n", r"lacks `dlhpc\.jobs\.begin`"),
    ],
)
def test_a_wrong_template_of_a_site_is_refused_kindly(tmp_path: Path, template: str, said: str) -> None:
    own = tmp_path / "here.sh.j2"
    own.write_text(template)
    made = dataclasses.replace(plan(tmp_path), template=str(own))
    with pytest.raises(UserError, match=said) as caught:
        render(made, placeholder_run(tmp_path, "cars"))
    assert str(own) in str(caught.value)
