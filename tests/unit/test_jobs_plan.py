"""The plan decides every number, and says before anything is written what cannot be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlhpc.envs.record import EnvironmentRecord, MpiRecord
from dlhpc.errors import ErrorList, UserError
from dlhpc.jobs.launch import Launch, decide_launch, rank_exports, uses_ddp
from dlhpc.jobs.plan import make_plan
from dlhpc.runs.plan import read_plan
from dlhpc.schedulers.base import Abilities
from dlhpc.sites.models import Environment, Launcher, Queue, Site
from dlhpc.spec.models import Distributed
from tests.unit.conftest import MakeRun
from tests.unit.job_runs import ALL_ABLE, CLUSTER, SITE, FakeScheduler, changed, plan

pytestmark = pytest.mark.usefixtures("any_machine")


def test_batches_steps_and_rate_follow_from_ranks(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        training={"batch_size": 8, "epochs": 5},
        job={"ranks_per_node": 4},
        learning_rate={"base": 0.01, "scale": "linear"},
    )
    assert (made.ranks, made.cores_per_rank, made.global_batch) == (4, 2, 32)
    assert (made.steps_per_epoch, made.total_steps) == (4, 20)
    assert made.base_rate == pytest.approx(0.04)
    assert made.launch[:3] == ["mpirun", "-np", "4"]


def test_a_global_batch_larger_than_the_set_is_capped_and_said(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        training={"batch_size": 32},
        job={"ranks_per_node": 8},
        learning_rate={"base": 0.01, "scale": "linear"},
    )
    assert made.global_batch == 100
    assert made.base_rate == pytest.approx(0.01 * 100 / 32)
    assert "larger than the 100 training pictures" in made.warnings[0]


def test_a_warm_up_longer_than_a_short_trial_is_only_said(tmp_path: Path) -> None:
    made = plan(tmp_path, training={"epochs": 1}, learning_rate={"warmup_epochs": 2})
    assert "longer than the training of 1 epochs" in made.warnings[0]


def test_a_plan_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = plan(tmp_path)
    made.write(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == made


def test_the_copied_spec_works_from_another_folder(tmp_path: Path) -> None:
    for person in ("anna", "bert"):
        for n in range(4):
            path = tmp_path / "photos" / person / f"{n}.pgm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P5 1 1 255\n\x00")
    spec_file = tmp_path / "cars.yaml"
    spec_file.write_text("name: cars\ndata:\n  folder: photos  # all of them\n")
    planned = make_plan(spec_file, runs=tmp_path / "runs")
    assert planned.spec.data.folder == str(tmp_path / "photos")
    text = planned.document.text()
    assert str(tmp_path / "photos") in text
    assert "# all of them" in text


# --- What the site does not allow -------------------------------------------------------------------------------


def test_a_job_that_no_node_can_hold_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(ErrorList) as caught:
        plan(tmp_path, job={"nodes": 2, "ranks_per_node": 16, "gpus_per_rank": 1})
    shown = str(caught.value)
    assert "the site `here` is one machine" in shown
    assert "16 cores" in shown
    assert "has 8" in shown
    assert "16 GPUs" in shown


def test_a_walltime_beyond_the_queue_is_refused(tmp_path: Path) -> None:
    site = changed(SITE, queues=[{"name": "short", "max_walltime": "1h"}])
    with pytest.raises(ErrorList, match=r"job\.walltime is 2:00:00, but queue `short` allows 1:00:00"):
        plan(tmp_path, site, job={"walltime": "2h"})


def test_an_unknown_queue_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Its queues: all"):
        plan(tmp_path, job={"queue": "gpu"})


@pytest.mark.parametrize(
    ("site", "job", "words"),
    [
        ({}, {"nodes": 7}, "job.nodes is 7, but queue `gpu` gives at most 6"),
        ({"queues": [Queue(name="large", min_nodes=4)]}, {"nodes": 3}, "queue `large` is for 4 nodes or more"),
        (
            {"nodes": {"gpu": {"cores": 32, "gpus": 4, "count": 10, "off": 6}}},
            {"nodes": 5},
            "job.nodes is 5, but only 4 nodes of this kind run (6 of 10 are switched off)",
        ),
        ({}, {"memory": "300GB"}, "job.memory is 300.0 GB, but a node of queue `gpu` has 256.0 GB"),
    ],
)
def test_more_than_the_queue_and_its_nodes_give_is_refused(
    tmp_path: Path, scheduler: FakeScheduler, site: dict[str, object], job: dict[str, object], words: str
) -> None:
    with pytest.raises(ErrorList) as caught:
        plan(tmp_path, changed(CLUSTER, **site), job=job)
    assert words in str(caught.value)
    assert not scheduler.jobs


@pytest.mark.usefixtures("scheduler")
def test_accounts_follow_the_rules_of_the_centre(tmp_path: Path) -> None:
    rules = {"required": True, "pattern": "[a-z]{2}[0-9]{3}"}
    strict = changed(CLUSTER, accounts=rules)
    with pytest.raises(ErrorList, match="charges every job to a project") as caught:
        plan(tmp_path, strict)
    assert "Set job.account" in str(caught.value)
    with pytest.raises(ErrorList, match=r"job\.account is `ab12`, but accounts of the site `centre` look like"):
        plan(tmp_path, strict, job={"account": "ab12"})
    assert plan(tmp_path, strict, job={"account": "ab123"}).account == "ab123"
    assert plan(tmp_path, changed(CLUSTER, accounts={**rules, "default": "cd456"})).account == "cd456"


def test_what_means_nothing_on_one_machine_is_left_out_and_said(tmp_path: Path) -> None:
    made = plan(tmp_path, job={"account": "ab123", "mail": "me@example.org", "exclusive": True})
    assert (made.account, made.mail, made.exclusive) == (None, None, False)
    assert [warning.split()[0] for warning in made.warnings] == ["job.account", "job.mail", "job.exclusive"]


@pytest.mark.parametrize(
    ("abilities", "site", "job", "words"),
    [
        (Abilities(), {}, {"hold": True}, "the scheduler `slurm` cannot hold a job"),
        (Abilities(), {"compute_may_submit": False}, {}, "lets no job submit another one, and `slurm` knows no depend"),
        (Abilities(), {}, {"after": ["first"]}, "`slurm` knows no dependencies, so that job.after cannot be kept"),
        (Abilities(steps=True), {}, {"after": ["first"]}, "knows dependencies only between the steps of one job"),
    ],
)
def test_what_the_scheduler_cannot_do_is_said_in_a_sentence(
    tmp_path: Path,
    scheduler: FakeScheduler,
    make_run: MakeRun,
    abilities: Abilities,
    site: dict[str, object],
    job: dict[str, object],
    words: str,
) -> None:
    make_run("first")
    scheduler.abilities = abilities
    with pytest.raises(UserError) as caught:
        plan(tmp_path, changed(CLUSTER, **site), job=job)
    assert words in str(caught.value)
    scheduler.abilities = ALL_ABLE
    assert plan(tmp_path, changed(CLUSTER, **site), job=job)


def test_where_jobs_may_not_submit_three_attempts_are_queued_ahead(tmp_path: Path, scheduler: FakeScheduler) -> None:
    scheduler.abilities = ALL_ABLE
    assert plan(tmp_path, CLUSTER).attempts_ahead == 0
    closed = changed(CLUSTER, compute_may_submit=False)
    assert plan(tmp_path, closed).attempts_ahead == 3
    assert plan(tmp_path, closed, job={"attempts_ahead": 7}).attempts_ahead == 7


def test_an_environment_that_is_not_there_is_said_before_anything_is_submitted(tmp_path: Path) -> None:
    site = SITE.model_copy(update={"environments": {"gpu": Environment(prefix=str(tmp_path / "gpu"))}})
    with pytest.raises(UserError, match="the environment `gpu` of the site `here` is not there") as caught:
        plan(tmp_path, site)
    assert f"dlhpc env build RECIPE --prefix {tmp_path}/gpu" in str(caught.value)


# --- How the ranks are started ----------------------------------------------------------------------------------


def launch(
    scheduler: str, kind: str, implementation: str | None = None, *, nodes: int = 2, **launcher: object
) -> Launch:
    """The launcher of two nodes with four ranks each, by site and by the MPI that the environment was built with."""
    site = Site.model_validate(
        {"name": "centre", "scheduler": scheduler, "queues": [{"name": "q"}], "launcher": {"kind": kind, **launcher}}
    )
    mpi = MpiRecord(implementation, "4", "/opt/mpi/bin/mpirun") if implementation else None
    record = EnvironmentRecord("cpu", "", "3.11", "2", None, "0.28.1", mpi, True, "now") if implementation else None
    return decide_launch(
        site,
        nodes=nodes,
        ranks_per_node=4,
        cores_per_rank=8,
        prefix=Path("/opt/env"),
        record=record,
        exports={"OMP_NUM_THREADS": "8"},
        warnings=[],
    )


def test_ddp_is_started_by_whatever_launcher_there_is() -> None:
    local = Site.model_validate({"name": "here", "queues": [{"name": "q"}], "launcher": {"kind": "gloo"}})
    about: dict[str, Any] = {"cores_per_rank": 1, "prefix": Path("/opt/env"), "exports": {}, "warnings": []}
    made = decide_launch(local, nodes=1, ranks_per_node=2, record=None, ddp=True, **about)
    assert made.kind == "torchrun"
    assert made.argv == ["/opt/env/bin/torchrun", "--standalone", "--nproc-per-node", "2", "--no-python"]
    slurm = Site.model_validate(
        {"name": "c", "scheduler": "slurm", "queues": [{"name": "q"}], "launcher": {"kind": "srun"}}
    )
    made = decide_launch(slurm, nodes=2, ranks_per_node=4, record=None, ddp=True, **about)
    assert (made.kind, made.argv[-1]) == ("srun", "--kill-on-bad-exit=1")  # no MPI is needed


def test_ranks_sum_by_horovod_where_the_environment_has_it() -> None:
    without = EnvironmentRecord("ddp", "", "3.11", "2", None, None, None, False, "now")
    assert not uses_ddp(Distributed(), None)
    assert uses_ddp(Distributed(), without)
    assert uses_ddp(Distributed(strategy="ddp"), None)
    with pytest.raises(UserError, match="the environment has no Horovod"):
        uses_ddp(Distributed(strategy="horovod"), without)
    with pytest.raises(UserError, match=r"distributed\.adasum is of Horovod"):
        uses_ddp(Distributed(strategy="ddp", adasum=True), None)


def test_horovods_settings_reach_the_ranks() -> None:
    assert rank_exports(Distributed(), 4)["HOROVOD_FUSION_THRESHOLD"] == "0"
    asked = rank_exports(Distributed(fusion_mb=64, cycle_ms=2), 4)
    assert (asked["HOROVOD_FUSION_THRESHOLD"], asked["HOROVOD_CYCLE_TIME"]) == (str(64 * 2**20), "2")
    tuned = rank_exports(Distributed(autotune=True), 4)
    assert "HOROVOD_CYCLE_TIME" not in tuned  # Horovod does not tune what is set
    assert tuned["HOROVOD_AUTOTUNE"] == "1"


def test_srun_is_told_the_layout_since_steps_do_not_inherit_it() -> None:
    made = launch("slurm", "srun")
    layout = ["--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=8", "--kill-on-bad-exit=1", "--mpi=pmix"]
    assert made == Launch("srun", ["srun", *layout])
    own = launch("slurm", "srun", options=["--mpi=pmi2"], command="/opt/slurm/bin/srun")
    assert own.argv == ["/opt/slurm/bin/srun", *layout[:-1], "--mpi=pmi2"]


def test_poe_takes_its_layout_from_loadleveler() -> None:
    made = launch("loadleveler", "poe", options=["-labelio", "yes"])
    assert made == Launch("poe", ["poe", "-labelio", "yes"])


@pytest.mark.parametrize("scheduler", ["pbs", "loadleveler"])
@pytest.mark.parametrize(
    ("kind", "implementation", "program", "hostfile"),
    [
        ("mpirun", "openmpi", "/opt/mpi/bin/mpirun", "--hostfile"),
        ("mpiexec", "mpich", "mpiexec", "-f"),
        ("mpirun", "intel", "/opt/mpi/bin/mpirun", "-f"),
    ],
)
def test_mpi_gets_the_hosts_from_the_file_of_the_batch_system(
    scheduler: str, kind: str, implementation: str, program: str, hostfile: str
) -> None:
    made = launch(scheduler, kind, implementation)
    assert made.argv[:3] == [program, "-np", "8"]
    assert made.hostfile_option == hostfile
    assert launch(scheduler, kind, implementation, nodes=1).hostfile_option is None
    assert launch("slurm", kind, implementation).hostfile_option is None  # Slurm tells the launcher itself


def test_open_mpi_is_told_which_variables_go_to_other_nodes() -> None:
    sent = launch("pbs", "mpirun", "openmpi").argv
    named = [sent[place + 1] for place, word in enumerate(sent) if word == "-x"]
    assert {"PATH", "LD_LIBRARY_PATH", "DLHPC_ATTEMPT", "DLHPC_DEADLINE", "OMP_NUM_THREADS"} <= set(named)
    assert "-x" not in launch("pbs", "mpirun", "openmpi", nodes=1).argv
    assert "-x" not in launch("pbs", "mpirun", "mpich").argv


@pytest.mark.parametrize(("implementation", "option"), [("openmpi", "--bind-to"), ("mpich", "-bind-to")])
def test_ranks_are_placed_in_the_words_of_the_environments_mpi(implementation: str, option: str) -> None:
    assert launch("slurm", "mpirun", implementation).argv[:4] == ["/opt/mpi/bin/mpirun", "-np", "8", option]
    own = launch("slurm", "mpirun", implementation, options=["--mca", "btl", "tcp"])
    assert own.argv[3:6] == ["--mca", "btl", "tcp"]


def test_horovods_own_launcher_knows_one_node_only() -> None:
    assert launch("slurm", "gloo", nodes=1).argv[:4] == ["/opt/env/bin/horovodrun", "--gloo", "-np", "4"]
    with pytest.raises(UserError, match="on one node only, and the job asks for 2 nodes"):
        launch("slurm", "gloo")


def test_a_launcher_that_is_not_on_this_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlhpc.jobs.launch.shutil.which", lambda _: None)
    with pytest.raises(UserError, match="starts ranks with `mpirun`, which was not found"):
        launch("local", "mpirun", nodes=1)
    assert launch("local", "auto", nodes=1).kind == "gloo"
    assert launch("slurm", "mpirun").kind == "mpirun"  # compute nodes may have what the login node lacks


@pytest.mark.usefixtures("scheduler")
def test_variables_of_the_launcher_come_last(tmp_path: Path) -> None:
    site = CLUSTER.model_copy(update={"launcher": Launcher(kind="srun", environment={"OMP_NUM_THREADS": "1"})})
    assert plan(tmp_path, site, job={"nodes": 2}).exports["OMP_NUM_THREADS"] == "1"


def test_a_variable_of_the_job_script_cannot_be_set_from_outside(tmp_path: Path) -> None:
    site = changed(SITE, launcher=Launcher(kind="mpirun", environment={"status": "0"}))
    with pytest.raises(UserError, match="the variable `status` of the launcher or environment"):
        plan(tmp_path, site)


def test_a_value_with_a_line_end_never_reaches_a_script(tmp_path: Path) -> None:
    site = changed(SITE, launcher=Launcher(kind="mpirun", environment={"GREETING": "a\n# @ queue"}))
    with pytest.raises(UserError, match="holds a line end"):
        plan(tmp_path, site)
