"""The face job on a real Slurm: two nodes with one Horovod rank each, and all that happens to jobs at a centre.

Whatever happens, the curves are those of a run that was left alone, to the last bit.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Entry, Event, read_journal
from dlhpc.runs.sweep import SweepDirectory
from tests.e2e.conftest import World, curves, make_world
from tests.slurm_cluster import SlurmCluster, temporary_cluster

# From TERM to KILL: centres give 30 seconds, and a rank that has lost its partner uses them all up.
KILL_WAIT_S = 15

SITE = f"""
name: cluster
scheduler: slurm
nodes: {{gpu: {{cores: 8, memory: 60GB, gpus: 2, count: 2}}}}
queues: [{{name: gpu, max_walltime: 1h}}, {{name: short, max_walltime: 5min}}]
kill_grace: {KILL_WAIT_S}s
launcher: """


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with temporary_cluster(accounting=True, settings={"KillWait": str(KILL_WAIT_S)}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def slurm(cluster: SlurmCluster, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("slurm"), photos)
    text = world.spec.read_text()
    text = text.replace("ranks_per_node: 2", "nodes: 2, ranks_per_node: 1").replace("epochs: 60", "epochs: 40")
    world.spec.write_text(text)
    for launcher in ("srun", "mpirun"):
        (world.folder / f"{launcher}.yaml").write_text(f"{SITE}{{kind: {launcher}}}\n")
    world.site = world.folder / "srun.yaml"
    world.environment |= cluster.environment
    return world


@pytest.fixture(scope="module")
def left_alone(slurm: World) -> RunDirectory:
    """A run that nobody disturbs."""
    return slurm.submit()


@pytest.fixture(autouse=True)
def in_order(cluster: SlurmCluster) -> Iterator[None]:
    yield
    cluster.reset()


def until(true: Callable[[], object], what: str, run: RunDirectory | None = None, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        said = "" if run is None else f"{World.log(run)}\n{run.journal.read_text()}"
        assert time.monotonic() < end, f"not in time: {what}\n{said}"
        time.sleep(0.1)


def entries(run: RunDirectory, event: Event, attempt: int | None = None) -> list[Entry]:
    return [
        entry
        for entry in read_journal(run)[0]
        if entry.event == event and (attempt is None or entry.attempt == attempt)
    ]


def until_trained(run: RunDirectory, attempt: int) -> None:
    """Wait until this attempt is in the middle of its training."""
    until(lambda: len(entries(run, Event.EPOCH, attempt)) >= 2, f"attempt {attempt} trains", run)


def jobs(cluster: SlurmCluster, *options: str) -> list[str]:
    """Ids of what waits and runs."""
    return cluster.ask(["squeue", "--noheader", "--array", "--format=%i", *options]).stdout.split()


def job_of(run: RunDirectory) -> str:
    """The job that began last."""
    return str(entries(run, Event.BEGUN)[-1].details["job_id"])


def job_script(cluster: SlurmCluster, run: RunDirectory) -> psutil.Process:
    """The shell that Slurm started for the job of this run."""
    for process in psutil.process_iter():
        try:
            variables = process.environ()
            mine = variables.get("SLURM_CONF") == str(cluster.configuration) and variables.get("SLURM_STEP_ID") is None
            task = variables.get("SLURM_ARRAY_TASK_ID")
            job = variables.get("SLURM_JOB_ID") if task is None else f"{variables['SLURM_ARRAY_JOB_ID']}_{task}"
            if mine and job == job_of(run) and process.parent().name().startswith("slurmstepd"):
                return process
        except (psutil.Error, AttributeError):
            continue
    raise AssertionError("no process is the job's script")


def ranks(run: RunDirectory) -> list[psutil.Process]:
    found = [one for one in World.processes(run) if "dlhpc.train" in one.cmdline() and "python" in one.name()]
    assert len(found) == 2
    return found


@contextlib.contextmanager
def standing_still(run: RunDirectory) -> Iterator[None]:
    """Nothing is trained meanwhile, so that a busy machine does not find the run finished."""
    stopped = ranks(run)
    for rank in stopped:
        rank.suspend()
    yield
    for rank in stopped:
        rank.resume()


def forget_ended_jobs(cluster: SlurmCluster) -> None:
    """As slurmctld does some minutes after a job's end; here it loses what it had saved."""
    cluster.kill_controller()
    for file in (cluster.folder / "state").glob("job_state*"):
        file.unlink()
    cluster.start_controller()
    cluster.wait_nodes()


def test_two_nodes_train_and_name_unseen_people(slurm: World, cluster: SlurmCluster, left_alone: RunDirectory) -> None:
    now = slurm.state(left_alone)
    assert (now["state"], now["attempt"]) == ("finished", 1)
    assert "NodeList=gpu[1-2]\n" in cluster.ask(["scontrol", "show", "job", now["job_id"]]).stdout
    (attempt,) = json.loads(left_alone.provenance.read_text())["attempts"]
    assert (attempt["ranks"], attempt["collective"]) == (2, "horovod-mpi")
    slurm.dlhpc("predict", left_alone.name, "--unseen")
    unseen = json.loads((left_alone.predictions / "unseen.json").read_text())
    assert unseen["count"] == 16
    assert unseen["accuracy"] >= 0.75


def test_warned_and_killed_it_goes_on_to_the_same_bits(
    slurm: World, cluster: SlurmCluster, left_alone: RunDirectory
) -> None:
    run = slurm.submit(wait=False)
    until_trained(run, 1)
    job = job_of(run)
    cluster.ask(["scancel", "--batch", "--signal=USR2", job])  # as Slurm does ahead of the walltime's end
    until_trained(run, 2)
    assert run.exit_file(1).read_text() == "75\n"
    assert jobs(cluster) == [job_of(run)] == [job]

    for rank in ranks(run):
        rank.kill()
    until_trained(run, 3)
    assert jobs(cluster) == [job_of(run)]

    script = job_script(cluster, run)
    script.kill()
    until(lambda: not jobs(cluster), "Slurm ends the job")
    forget_ended_jobs(cluster)
    assert job_of(run) not in jobs(cluster, "--states=all")
    now = slurm.state(run)
    assert now["state"] == "failed"
    assert "137" in now["reason"]
    assert "dlhpc resume" in now["reason"]
    slurm.dlhpc("resume", run.name, "--wait")
    assert slurm.state(run)["attempt"] == 4
    assert curves(run) == curves(left_alone)


def test_scancel_saves_and_ends_it_and_a_resumed_run_outlives_the_controller(
    slurm: World, cluster: SlurmCluster, left_alone: RunDirectory
) -> None:
    run = slurm.submit(wait=False)
    until_trained(run, 1)
    cluster.ask(["scancel", job_of(run)])
    until(lambda: not jobs(cluster), "Slurm ends the job")
    now = slurm.state(run)
    assert (now["state"], now["attempt"]) == ("cancelled", 1)
    assert "dlhpc resume" in now["reason"]
    assert entries(run, Event.STOPPED)

    slurm.dlhpc("resume", run.name)
    until_trained(run, 2)
    with standing_still(run):
        cluster.kill_controller()
        now = slurm.state(run)
        assert now["state"] == "unknown"
        assert now["reason"].startswith("since ")
        cluster.start_controller()
        now = slurm.state(run)
        assert (now["state"], now["attempt"]) == ("running", 2)
    slurm.until(run, "finished")
    assert curves(run) == curves(left_alone)


def test_requeued_by_the_staff_and_by_the_loss_of_a_node_it_stays_one_job(
    slurm: World, cluster: SlurmCluster, left_alone: RunDirectory
) -> None:
    slurm.site = slurm.folder / "mpirun.yaml"
    run = slurm.submit(wait=False)
    slurm.site = slurm.folder / "srun.yaml"
    until_trained(run, 1)
    job = job_of(run)
    cluster.ask(["scontrol", "requeue", job])
    until_trained(run, 2)
    assert jobs(cluster) == [job_of(run)] == [job]

    cluster.stop_node("gpu1")  # where the job's script ran
    until(lambda: "PENDING" in cluster.ask(["squeue", "-h", "-o", "%T", "-j", job]).stdout, "Slurm requeues the job")
    assert slurm.state(run)["state"] == "queued"
    cluster.start_node("gpu1")
    slurm.until(run, "finished")
    assert job_of(run) == job
    assert len(entries(run, Event.BEGUN)) == 3
    assert curves(run) == curves(left_alone)


def test_the_warning_comes_before_the_walltime_and_cancel_ends_the_chain(slurm: World, cluster: SlurmCluster) -> None:
    run = slurm.submit("training.epochs=100000", "job.walltime=5min", wait=False)
    until_trained(run, 1)
    # The trainer knows its deadline too. Of this new limit only Slurm knows; it looks every half minute.
    used = time.time() - entries(run, Event.BEGUN)[0].time
    cluster.ask(["scontrol", "update", f"JobId={job_of(run)}", f"TimeLimit={math.ceil((used + 31) / 60)}"])
    until(lambda: entries(run, Event.CONCLUDED), "the attempt ends", run)
    assert [entry.details["reason"] for entry in entries(run, Event.STOPPED)] == ["signal SIGUSR2"]
    assert entries(run, Event.CHECKPOINTED, attempt=1)
    assert run.exit_file(1).read_text() == "75\n"
    assert slurm.until(run, "queued")["attempt"] == 2

    until(lambda: len(entries(run, Event.BEGUN)) == 2, "the second attempt begins")
    slurm.dlhpc("cancel", run.name)
    assert slurm.state(run)["state"] == "cancelled"
    until(lambda: not jobs(cluster), "Slurm ends the job")
    assert World.processes(run) == []
    assert len(entries(run, Event.BEGUN)) == 2


def test_members_of_an_array_fail_and_go_on_by_themselves(
    slurm: World, cluster: SlurmCluster, left_alone: RunDirectory
) -> None:
    said = slurm.dlhpc(
        *("submit", "people.yaml", "--site", str(slurm.site), "--json"), "--sweep", "lr=0.003,0.002,0.001"
    )
    sweep = SweepDirectory(Path(json.loads(said.stdout)["path"]))
    members = sweep.found_members()
    first, broken, last = members
    what_happens = {
        broken: lambda: job_script(cluster, broken).kill(),
        # The last task of an array has the id of the whole array.
        last: lambda: cluster.ask(["scancel", "--batch", "--signal=USR2", job_of(last)]),
    }
    while what_happens:
        until(lambda: any(entries(member, Event.EPOCH) for member in what_happens), "a member trains", broken)
        for member in [one for one in what_happens if entries(one, Event.EPOCH)]:
            what_happens.pop(member)()
    array = job_of(first).partition("_")[0]
    assert [job_of(member) for member in members] == [f"{array}_{task}" for task in range(3)]
    until(lambda: len(entries(last, Event.BEGUN)) == 2, "the last member goes on")
    until(lambda: f"{array}_1" not in jobs(cluster), "Slurm ends the broken member's job")
    assert slurm.state(broken)["state"] == "failed"
    slurm.dlhpc("resume", broken.name)
    for member in members:
        slurm.until(member, "finished")
    assert [len(entries(member, Event.BEGUN)) for member in members] == [1, 2, 2]
    assert (job_of(first), job_of(last)) == (f"{array}_0", f"{array}_2")
    assert not job_of(broken).startswith(f"{array}_")
    assert curves(first) == curves(left_alone)
