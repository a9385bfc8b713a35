"""A site, specs and a scheduler in memory, for tests of planning, rendering, submitting and following."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlhpc.data.catalog import Catalog, Sample
from dlhpc.errors import CommandError
from dlhpc.jobs.begin import begin
from dlhpc.jobs.conclude import conclude
from dlhpc.jobs.plan import decide
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import Plan
from dlhpc.schedulers.base import Abilities, Header, JobRequest, JobState, JobStatus, StartEstimate
from dlhpc.sites.models import Launcher, Node, Queue, Site
from dlhpc.spec.models import Spec

SITE = Site(
    name="here", nodes={"box": Node(cores=8, gpus=0)}, queues=[Queue(name="all")], launcher=Launcher(kind="mpirun")
)
CLUSTER = Site(
    name="centre",
    scheduler="slurm",
    nodes={"gpu": Node(cores=32, gpus=4, memory="256GB", count=10)},
    queues=[Queue(name="gpu", max_nodes=6)],
    launcher=Launcher(kind="mpirun"),
)
ALL_ABLE = Abilities(arrays=True, dependencies=True, requeue=True, hold=True)


def spec(**changes: object) -> Spec:
    return Spec.model_validate({"name": "cars", "data": {"folder": "/photos"}, **changes})


def catalog(folder: Path, train: int = 100) -> Catalog:
    pictures = [folder / f"{n}.pgm" for n in range(train + 2)]
    for path in pictures:
        path.touch()
    found = [Sample(str(path), n % 2) for n, path in enumerate(pictures)]
    return Catalog(["anna", "bert"], {"train": found[:-2], "val": found[-2:], "unseen": []})


def plan(folder: Path, site: Site = SITE, *, template: str | None = None, **changes: object) -> Plan:
    return decide(spec(**changes), site, catalog(folder), folder / "runs", template=template)


def changed(site: Site, **fields: object) -> Site:
    """The site with other fields, checked anew."""
    return Site.model_validate({**site.model_dump(exclude_unset=True), **fields})


class FakeScheduler:
    """Keeps jobs in memory; ``fault`` is raised by submit, before or after the job is queued."""

    def __init__(self) -> None:
        self.abilities = Abilities()
        self.jobs: dict[str, JobState] = {}
        self.requests: dict[str, JobRequest] = {}
        self.cancelled: list[str] = []
        self.exit_code: int | None = None
        self.fault: BaseException | None = None
        self.requeue_fault: CommandError | None = None
        self.arrives = True
        self.silent = False

    def _answer(self) -> None:
        if self.silent:
            raise CommandError("the scheduler does not answer")

    def directives(self, header: Header) -> list[str]:
        return [f"#FAKE nodes={header.nodes}"]

    def submission(self, request: JobRequest) -> list[str]:
        return ["fake-submit", str(request.script)]

    def submit(self, request: JobRequest) -> list[str]:
        ids = [f"job{len(self.requests) + step}" for step in range(1, request.steps + 1)]
        if self.arrives:
            self.jobs.update(dict.fromkeys(ids, JobState.HELD if request.held else JobState.QUEUED))
            self.requests.update(dict.fromkeys(ids, request))
        if self.fault is not None:
            raise self.fault
        return ids

    def member_ids(self, array_id: str, indices: Sequence[int]) -> list[str]:
        return [f"{array_id}_{index}" for index in indices]

    def query(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        self._answer()
        return {job: JobStatus(job, self.jobs.get(job, JobState.GONE), self.exit_code) for job in job_ids}

    def find(self, tag: str) -> list[str]:
        self._answer()
        return [job for job, request in self.requests.items() if request.tag == tag]

    def cancel(self, job_ids: Sequence[str]) -> None:
        self._answer()
        for job in job_ids:
            self.cancelled.append(job)
            self.jobs[job] = JobState.ENDED

    def hold(self, job_ids: Sequence[str]) -> None:
        self.jobs.update(dict.fromkeys(job_ids, JobState.HELD))

    def release(self, job_ids: Sequence[str]) -> None:
        self.jobs.update(dict.fromkeys(job_ids, JobState.QUEUED))

    def requeue(self, job_id: str) -> None:
        if self.requeue_fault is not None:
            raise self.requeue_fault
        self.jobs[job_id] = JobState.QUEUED

    def estimate_start(self, request: JobRequest) -> StartEstimate:
        return StartEstimate(None, f"nobody knows when {request.tag} starts")

    def alive(self) -> list[str]:
        """Jobs that wait or run."""
        return [job for job, state in self.jobs.items() if state is not JobState.ENDED]

    # What happens on the compute nodes.

    def start(self, run: RunDirectory, job: str) -> int | None:
        """The job's script begins; gives the number of the attempt that it is."""
        self.jobs[job] = JobState.RUNNING
        return begin(run, job)

    def end(self, run: RunDirectory, job: str, attempt: int, status: int, *, saved: bool = False) -> None:
        """The attempt's ranks leave with this status, and the script with it."""
        if saved:
            record(run, Event.CHECKPOINTED, attempt=attempt, epoch=1, step=10)
        run.exit_file(attempt).write_text(f"{status}\n")
        conclude(run, attempt, status, job)
        if self.jobs[job] is JobState.RUNNING:  # it has not been requeued
            self.jobs[job] = JobState.ENDED


def events(run: RunDirectory) -> list[str]:
    return [entry.event for entry in read_journal(run)[0]]
