"""One user at many batch systems: the machines of the test matrix, and stories that are told to all of them.

A *centre* is a batch system that runs here (the local one, a real Slurm, a double) with its site profile. A *story* is
a generator: it does what a user would, and yields what it waits for, so that many stories of one centre go on at the
same time. Training is played (:mod:`tests.schedulers.player`); all else is what users run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from dlhpc.cli import cli
from dlhpc.errors import DlhpcError
from dlhpc.jobs.follow import RunStatus, look_after, status
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Entry, read_journal
from dlhpc.runs.plan import read_plan
from dlhpc.runs.state import RunState
from dlhpc.schedulers.base import Abilities, Scheduler, get_scheduler
from dlhpc.schedulers.local_spool import Spool, parse_id
from tests.doubles import Double, LoadLevelerDouble, PbsDouble, TorqueDouble
from tests.schedulers.player import TWO
from tests.slurm_cluster import SlurmCluster, temporary_cluster

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0
Waits = Generator[Callable[[], object], None, None]
"""A story as it goes on: what it waits for."""
Story = Callable[["Centre"], Waits]

_STAND_IN = f"""#!/bin/sh
# The interpreter of an environment whose trainer is played.
PYTHONPATH={shlex.quote(str(ROOT))}
export PYTHONPATH
case "$2" in
    dlhpc.data) exit 0 ;;
    dlhpc.train) exec {shlex.quote(sys.executable)} {shlex.quote(str(ROOT / "tests/schedulers/player.py"))} "$3" ;;
esac
exec {shlex.quote(sys.executable)} "$@"
"""

_WRAPPER = """#!/bin/sh
# Counts calls, and for a submission may take its time or lose the answer.
[ -z "${{MATRIX_CALLS:-}}" ] || echo {name} >> "$MATRIX_CALLS"
if [ {submits} = yes ] && [ -f {folder}/slow ]; then
    read -r seconds < {folder}/slow
    rm {folder}/slow
    sleep "$seconds"
fi
if [ {submits} = yes ] && [ -f {folder}/lose ]; then
    read -r how < {folder}/lose
    rm {folder}/lose
    {real} "$@" >/dev/null 2>&1
    [ "$how" = silent ] || kill -9 $$
    exit 0
fi
exec {real} "$@"
"""


@dataclass(frozen=True)
class Said:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Run:
    """One run of the user's."""

    centre: Centre
    directory: RunDirectory

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def run_id(self) -> str:
        return read_plan(self.directory.plan).run_id

    def status(self) -> RunStatus:
        return status(self.directory)

    def entries(self, event: str) -> list[Entry]:
        return [entry for entry in read_journal(self.directory)[0] if entry.event == event]

    def jobs_begun(self) -> list[str]:
        return [entry.details["job_id"] for entry in self.entries("begun")]

    def log(self, attempt: int = 1) -> str:
        return self.directory.log(attempt).read_text()

    def alive(self) -> list[str]:
        """Its jobs that wait or run, as the batch system has them, whatever dlhpc knows of them."""
        return self._own(self.centre.alive_now())

    def _own(self, jobs: Sequence[tuple[str, str]]) -> list[str]:
        return [job for job, name in jobs if f"-{self.run_id}-" in name]

    def trains(self, attempt: int = 1) -> Callable[[], object]:
        """To wait for: an epoch of this attempt is trained and saved."""
        return lambda: any(entry.attempt == attempt for entry in self.entries("checkpointed"))

    def over(self) -> bool:
        """To wait for: it has begun, and no job of it is left."""
        return bool(self.entries("begun")) and self.gone() and self.status().state.is_over

    def gone(self) -> bool:
        """To wait for: no job of it is left."""
        return not self._own(self.centre.alive())

    def cared_for(self) -> bool:
        """To wait for: as :meth:`over`, while somebody watches it."""
        now = self.status()
        return not look_after(self.directory, now) and now.state.is_over and self.gone()

    def enough(self) -> None:
        """Training ends well now."""
        (self.directory.path / "enough").touch()

    def kill_script(self) -> None:
        """Kill the job script, and no more where the batch system itself kills what a script leaves behind."""
        names = ("script.pid", "player.pid") if self.centre.leaves_orphans else ("script.pid",)
        for name in names:
            os.kill(int((self.directory.path / name).read_text()), signal.SIGKILL)


class Centre:
    """A batch system with its site profile and one user."""

    name: ClassVar[str]
    adapter: ClassVar[str]
    """How the modules of its adapter begin."""
    profile: ClassVar[str]
    """The lines of the site profile that name the batch system and say what is special."""
    queue: ClassVar[str] = "batch"
    closed: ClassVar[str | None] = "closed"
    """A queue that takes jobs and starts none."""
    programs: ClassVar[Sequence[str]] = ()
    """The first one submits."""
    leaves_orphans: ClassVar[bool] = False
    """Whether processes live on when their job script is killed."""
    ask_programs: ClassVar[Sequence[str]] = ()
    """With these dlhpc asks where jobs stand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        self.runs = folder / "runs"
        self._alive: tuple[float, list[tuple[str, str]]] = (0.0, [])

    # --- The machine ------------------------------------------------------------------------------------------------

    def environment(self) -> Mapping[str, str]:
        """Variables of a login session."""
        return {}

    def stop(self) -> None:
        """Switch it off."""

    def _look(self) -> list[tuple[str, str]]:
        """Ids and names of all jobs that wait or run."""
        raise NotImplementedError

    def show(self, job: str) -> str:
        """All that the batch system says of a job."""
        raise NotImplementedError

    def fail_nodes(self, runs: Sequence[Run]) -> None:
        """The nodes on which these runs train die, with all that runs on them."""
        for run in runs:
            self._fail_node(run)

    def _fail_node(self, run: Run) -> None:
        raise NotImplementedError

    def mend(self) -> None:
        """The node is switched on again."""

    def forbid_submission(self, forbidden: bool) -> None:
        """Whether jobs may submit jobs."""

    def down(self) -> None:
        """The scheduler answers nobody."""
        raise NotImplementedError

    def up(self) -> None:
        """The scheduler answers again."""
        raise NotImplementedError

    # --- Around it --------------------------------------------------------------------------------------------------

    @property
    def scheduler(self) -> Scheduler:
        words = dict(
            line.split(": ") for line in self.profile.splitlines() if line.startswith(("scheduler", "dialect"))
        )
        return get_scheduler(words["scheduler"], words.get("dialect"))

    @property
    def abilities(self) -> Abilities:
        return self.scheduler.abilities

    def alive(self) -> list[tuple[str, str]]:
        """Ids and names of all jobs that wait or run; not looked at more often than makes sense."""
        then, found = self._alive
        if time.monotonic() - then > 0.1:
            found = self._look()
            self._alive = (time.monotonic(), found)
        return found

    def alive_now(self) -> list[tuple[str, str]]:
        self._alive = (0.0, [])
        return self.alive()

    def prepare(self) -> None:
        """Everything that a user finds: an environment, pictures, a spec, profiles, and our own wrappers on PATH."""
        python = self.folder / "environment" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(_STAND_IN)
        python.chmod(0o755)
        for name in ("anna/0", "anna/1", "bert/0", "bert/1"):
            picture = self.work / "photos" / f"{name}.pgm"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(b"P5 1 1 255\n\x00")
        (self.work / "cars.yaml").write_text(
            "name: cars\ndata: {folder: photos, width: 32, height: 32}\nnetwork: {name: smallnet}\n"
            "job: {walltime: 5min, cores_per_rank: 1, gpus_per_rank: 0}\n"
        )
        for name, may in (("site", "true"), ("strict", "false")):
            self.site_file(name).write_text(
                f"name: here\n{self.profile}\nnodes: {{box: {{cores: 64, gpus: 4}}}}\n"
                f"queues: [{{name: {self.queue}}}{f', {{name: {self.closed}}}' if self.closed else ''}]\n"
                "launcher: {kind: mpirun}\n"
                f"environments: {{default: {{prefix: '{self.folder / 'environment'}'}}}}\ncompute_may_submit: {may}\n"
            )
        for number, program in enumerate(self.programs):
            real = shutil.which(program, path=self.environment().get("PATH"))
            assert real is not None, program
            wrapper = self.folder / "wrappers" / program
            wrapper.parent.mkdir(exist_ok=True)
            wrapper.write_text(
                _WRAPPER.format(
                    name=program,
                    real=shlex.quote(real),
                    folder=shlex.quote(str(self.folder)),
                    submits="no" if number else "yes",
                )
            )
            wrapper.chmod(0o755)

    def session(self) -> dict[str, str]:
        """The variables of the user's session, with our wrappers first on PATH."""
        given = dict(self.environment())
        given["PATH"] = f"{self.folder / 'wrappers'}:{given.get('PATH', os.environ['PATH'])}"
        return {"PYTHONPATH": str(ROOT), **given}

    def site_file(self, name: str) -> Path:
        """A profile: `site`, or `strict`, where jobs may not submit jobs."""
        return self.folder / f"{name}.yaml"

    # --- What the user does -----------------------------------------------------------------------------------------

    def run(self, *words: str, site: str = "site", runs: Path | None = None) -> Said:
        """A command of dlhpc, in this process."""
        options = ["--site", str(self.site_file(site)), "--runs", str(runs or self.runs)]
        with contextlib.chdir(self.work):
            result = CliRunner().invoke(cli, [*words, *options])
        error = result.exception
        if isinstance(error, DlhpcError):
            return Said(error.exit_code, result.stdout, f"dlhpc: {error}")
        if error is not None and not isinstance(error, SystemExit):
            raise error
        return Said(result.exit_code, result.stdout, result.stderr)

    def ask(self, *words: str, runs: Path | None = None) -> str:
        """As :meth:`run`, and it is to go well."""
        said = self.run(*words, runs=runs)
        assert said.code == 0, said
        return said.out

    def start(self, *words: str, site: str = "site", runs: Path | None = None) -> subprocess.Popen[str]:
        """A command of dlhpc as a process of its own."""
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dlhpc",
                *words,
                "--site",
                str(self.site_file(site)),
                "--runs",
                str(runs or self.runs),
            ],
            cwd=self.work,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def submit(
        self, notes: str, *settings: str, site: str = "site", runs: Path | None = None, spec: str = "cars.yaml"
    ) -> Run:
        """Submit a run whose attempts do what the notes say; settings are ``job.hold=true`` and the like."""
        said = self.try_submit(notes, *settings, site=site, runs=runs, spec=spec)
        assert said.code == 0, said
        return Run(self, RunDirectory(Path(said.json["path"])))

    def try_submit(
        self, notes: str, *settings: str, site: str = "site", runs: Path | None = None, spec: str = "cars.yaml"
    ) -> Said:
        sets = [word for setting in (f"notes={notes}", *settings) for word in ("--set", setting)]
        return self.run("submit", spec, "--json", *sets, site=site, runs=runs)

    def count_calls(self, action: Callable[[], object]) -> list[str]:
        """The programs of the batch system that are called meanwhile."""
        log = self.folder / "calls"
        log.unlink(missing_ok=True)
        os.environ["MATRIX_CALLS"] = str(log)
        try:
            action()
        finally:
            del os.environ["MATRIX_CALLS"]
        return log.read_text().split() if log.exists() else []

    def lose_answer(self, how: str) -> None:
        """The next submission arrives, and its answer does not: ``silent`` or ``killed``."""
        (self.folder / "lose").write_text(f"{how}\n")

    def slow_submission(self, seconds: float) -> None:
        """The next submission takes so long before it arrives."""
        (self.folder / "slow").write_text(f"{seconds}\n")

    def cancel_all(self, but: Collection[str] = ()) -> None:
        """Leave an empty queue, or only these jobs in it."""
        left = [job for job, _ in self.alive_now() if job not in but]
        if left:
            self.scheduler.cancel(left[::-1])


class LocalCentre(Centre):
    """This machine's own queue."""

    name = "local"
    adapter = "local"
    profile = "scheduler: local"
    queue = "local"
    closed = None

    def environment(self) -> Mapping[str, str]:
        return {
            "DLHPC_LOCAL_SPOOL": str(self.folder / "spool"),
            "DLHPC_LOCAL_CORES": "64",
            "DLHPC_LOCAL_GPUS": "0",
            "HOME": str(self.folder),
        }

    def stop(self) -> None:
        self.cancel_all()

    def _look(self) -> list[tuple[str, str]]:
        spool = Spool.here()
        with spool.lock():
            live = [*spool.live()]
            return [(spool.job_id(one), one.job().tag) for one in live if not one.has_ended()]

    def _fail_node(self, run: Run) -> None:
        (job,) = run.alive()
        known = parse_id(job)
        assert known is not None
        folder = Spool.here().folder_of(known[0])
        assert folder is not None
        token = f"DLHPC_LOCAL_TOKEN={folder.job().token}".encode()
        os.kill(folder.started().pid, signal.SIGKILL)
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and token in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)


class SlurmCentre(Centre):
    """A real Slurm."""

    name = "slurm"
    adapter = "slurm"
    profile = "scheduler: slurm"
    queue = "gpu"
    closed = "down"
    leaves_orphans = True  # with proctrack/linuxproc, which needs no cgroups
    programs = ("sbatch", "squeue", "sacct", "scancel", "scontrol")
    ask_programs = ("squeue", "sacct")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stack = contextlib.ExitStack()
        self.cluster: SlurmCluster = self._stack.enter_context(temporary_cluster())

    def environment(self) -> Mapping[str, str]:
        return {**self.cluster.environment, "PATH": os.environ["PATH"]}

    def stop(self) -> None:
        self._stack.close()

    def _look(self) -> list[tuple[str, str]]:
        lines = self.cluster.ask(["squeue", "-h", "-a", "-o", "%i %j"]).stdout.splitlines()
        return [(line.split()[0], line.split()[1]) for line in lines]

    def show(self, job: str) -> str:
        return self.cluster.ask(["scontrol", "show", "job", job]).stdout

    def node_of(self, run: Run) -> str:
        (job,) = run.alive()
        return self.cluster.ask(["squeue", "-h", "-j", job, "-o", "%N"]).stdout.strip()

    def fail_nodes(self, runs: Sequence[Run]) -> None:
        for node in {self.node_of(run) for run in runs}:
            self.cluster.stop_node(node)

    def mend(self) -> None:
        self.cluster.reset()

    def down(self) -> None:
        self.cluster.kill_controller()

    def up(self) -> None:
        self.cluster.start_controller()
        self.cluster.wait_nodes()


@dataclass
class _Kind:
    """How a double is made."""

    make: Callable[..., Double]
    more: Mapping[str, Any] = field(default_factory=dict)


class DoubleCentre(Centre):
    """A double of a batch system."""

    kind: ClassVar[_Kind]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.double = self.kind.make(
            folder / "machine",
            nodes=4,
            cores=16,
            gpus=2,
            queues={"batch": {"max_walltime": 86400}, "closed": {"started": False}},
            **self.kind.more,
        )

    def environment(self) -> Mapping[str, str]:
        given = self.double.environment
        return {"PATH": given["PATH"], "HOME": given["HOME"]}

    def stop(self) -> None:
        self.double.stop()

    def _look(self) -> list[tuple[str, str]]:
        found = self.double.jobs().items()
        return [(self.told_id(job), self.tag_of(one)) for job, one in found if one["state"] != "done"]

    def told_id(self, job: str) -> str:
        """The id as it was told at submission."""
        return job

    def own_id(self, job: str) -> str:
        """The id by which the double keeps the job."""
        return job

    def tag_of(self, record: dict[str, Any]) -> str:
        return str(record["name"])

    def _fail_node(self, run: Run) -> None:
        jobs = [self.own_id(job) for job in run.alive()]
        (running,) = [job for job in jobs if self.double.jobs()[job]["state"] == "running"]
        self.double.node_failure(running)

    def forbid_submission(self, forbidden: bool) -> None:
        self.double.change(compute_may_submit=not forbidden)

    def down(self) -> None:
        self.double.fail(down=True)

    def up(self) -> None:
        self.double.fail()

    def _answer(self, *words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return done.stdout


class PbsCentre(DoubleCentre):
    """OpenPBS, asked with `select`; nine seconds between TERM and KILL."""

    name = "pbs"
    adapter = "pbs"
    profile = "scheduler: pbs\ndialect: select"
    programs = ("qsub", "qstat", "qselect", "qdel", "qhold", "qrls")
    ask_programs = ("qstat",)
    kind = _Kind(PbsDouble)

    def show(self, job: str) -> str:
        return self._answer("qstat", "-fw", job)


class PbsNodesCentre(PbsCentre):
    """OpenPBS, asked with `nodes`."""

    name = "pbs-nodes"
    profile = "scheduler: pbs\ndialect: nodes"


class PbsTotalsCentre(PbsCentre):
    """OpenPBS, asked with totals."""

    name = "pbs-totals"
    profile = "scheduler: pbs\ndialect: totals"


class TorqueCentre(PbsCentre):
    """Torque."""

    name = "torque"
    profile = "scheduler: pbs\ndialect: torque"
    kind = _Kind(TorqueDouble, {"kill_grace": 4.0})

    def show(self, job: str) -> str:
        return self._answer("qstat", "-f", job).replace("\n\t", "")


class LoadLevelerCentre(DoubleCentre):
    """LoadLeveler on a machine whose /bin/sh is a Korn shell, and which has no GNU tool."""

    name = "loadleveler-mksh"
    adapter = "loadleveler"
    profile = "scheduler: loadleveler\ngpu: {resource: gpus}"
    programs = ("llsubmit", "llq", "llcancel", "llhold")
    ask_programs = ("llq",)
    kind = _Kind(LoadLevelerDouble, {"shell": "/usr/bin/mksh", "posix_path": True})

    def told_id(self, job: str) -> str:
        return job.replace("sched1.", f"{self.double.config['host']}.", 1)

    def own_id(self, job: str) -> str:
        return job.replace(f"{self.double.config['host']}.", "sched1.", 1)

    def tag_of(self, record: dict[str, Any]) -> str:
        return str(record["data"]["job_name"])

    def show(self, job: str) -> str:
        chunks = self.double.jobs()[self.own_id(job)]["chunks"]
        asked = [
            f"cpus={[chunk['ncpus'] for chunk in chunks]}",
            f"gpus={[chunk['ngpus'] for chunk in chunks]}",
            f"MiB={[chunk['mem'] // 2**20 for chunk in chunks]}",
        ]
        return "\n".join([self._answer("llq", "-l", job), *asked])  # llq tells nothing of resources


class LoadLevelerDashCentre(LoadLevelerCentre):
    """The same with dash."""

    name = "loadleveler-dash"
    kind = _Kind(LoadLevelerDouble, {"shell": "/usr/bin/dash", "posix_path": True})


WHOLE: Sequence[type[Centre]] = (LocalCentre, SlurmCentre, PbsCentre, TorqueCentre, LoadLevelerCentre)
"""All stories are told here."""
PARTS: Sequence[type[Centre]] = (PbsNodesCentre, PbsTotalsCentre, LoadLevelerDashCentre)
"""Dialects that differ in how jobs are asked for, and a shell: told a few."""


class Teller:
    """Tells stories at one centre, those of one kind at the same time."""

    def __init__(self, centre: Centre) -> None:
        self.centre = centre
        self._heard: dict[Story, BaseException | None] = {}

    def tell(self, stories: Sequence[Story]) -> None:
        """Tell these from beginning to end, in turns; how each ended is kept."""
        going: dict[Story, tuple[Waits, Callable[[], object], float]] = {
            story: (story(self.centre), _always, time.monotonic()) for story in stories if story not in self._heard
        }
        while going:
            for story, (told, waits_for, since) in [*going.items()]:
                try:
                    if waits_for():
                        going[story] = (told, next(told), time.monotonic())
                    elif time.monotonic() - since > PATIENCE_S:
                        told.throw(AssertionError(f"this did not come to pass in {PATIENCE_S:.0f} s"))
                    continue
                except StopIteration:
                    self._heard[story] = None
                except (Exception, AssertionError) as error:  # noqa: BLE001  # of one story; the others go on
                    self._heard[story] = error
                del going[story]
            time.sleep(0.03)

    def check(self, story: Story) -> None:
        """Raise what the story raised; and in none may two jobs train one run at the same time."""
        assert [*self.centre.folder.rglob(TWO)] == []
        error = self._heard[story]
        if error is not None:
            raise error


def _always() -> bool:
    return True


@contextlib.contextmanager
def at(kind: type[Centre], folder: Path) -> Iterator[Teller]:
    """A centre that is up, with this process as its user's session."""
    centre = kind(folder)
    with pytest.MonkeyPatch.context() as patch:
        # Nobody pulls the plug of this machine: what a killed process has written is there without it.
        patch.setattr(os, "fsync", lambda _descriptor: None)
        try:
            centre.prepare()
            for name, value in centre.session().items():
                patch.setenv(name, value)
            yield Teller(centre)
        finally:
            centre.stop()


__all__ = ["PARTS", "WHOLE", "Centre", "Run", "RunState", "Said", "SlurmCentre", "Story", "Teller", "Waits", "at"]
