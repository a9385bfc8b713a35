"""A world for tests of sweeps and searches: pictures, a spec, and an array scheduler in memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dlhpc.errors import CommandError
from dlhpc.jobs import conclude, follow, plan, render, submit, sweep_follow, sweep_submit
from dlhpc.jobs import sweep as sweep_module
from dlhpc.jobs.sweep import PlannedSweep, make_sweep, read_sweep
from dlhpc.jobs.sweep_write import create_sweep
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, record
from dlhpc.runs.state import RunState
from dlhpc.runs.sweep import SweepDirectory
from dlhpc.schedulers.base import Abilities, Header, JobRequest, JobState, JobStatus

SPEC = """\
name: cars
data:
  folder: photos  # all of them
  width: 32
  height: 32
network: {name: smallnet}
learning_rate:
  base: 0.01  # try others
training: {epochs: 2, batch_size: 8}
"""


class World:
    """A folder with pictures, a spec and runs, and an array scheduler in memory."""

    def __init__(self, folder: Path, scheduler: FakeScheduler) -> None:
        self.folder = folder
        self.scheduler = scheduler
        self.runs = folder / "runs"
        self.spec = folder / "cars.yaml"
        self.site = folder / "site.yaml"
        self.profile()
        self.spec.write_text(SPEC)
        for person, number in itertools.product(("anna", "bert"), range(6)):
            path = folder / "photos" / person / f"{number}.pgm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P5 1 1 255\n\x00")

    def profile(self, *, max_jobs: int | None = None, max_array: int = 1000) -> None:
        limit = "" if max_jobs is None else f", max_jobs: {max_jobs}"
        self.site.write_text(
            f"name: here\nscheduler: slurm\nmax_array: {max_array}\nnodes: {{all: {{cores: 8, gpus: 0}}}}\n"
            f"queues: [{{name: all{limit}}}]\n"
        )

    def plan(self, *axes: str, cap: int | None = None, settings: Sequence[str] = ()) -> PlannedSweep:
        document, sweep = read_sweep(self.spec, settings, axes, cap)
        assert sweep is not None
        return make_sweep(document, sweep, self.spec, runs=self.runs, site=str(self.site))

    def create(self, *axes: str, cap: int | None = None, settings: Sequence[str] = ()) -> SweepDirectory:
        return create_sweep(self.plan(*axes, cap=cap, settings=settings), self.runs)

    def create_many(self, number: int, cap: int | None = None) -> SweepDirectory:
        return self.create(f"lr={','.join(str((n + 1) / 1000) for n in range(number))}", cap=cap)


class FakeScheduler:
    """Keeps arrays and jobs in memory; ``fault`` is raised by submit, before or after the job is queued."""

    def __init__(self) -> None:
        self.abilities = Abilities(arrays=True, dependencies=True, requeue=True, hold=True)
        self.jobs: dict[str, JobState] = {}
        self.tags: dict[str, str] = {}
        self.requests: list[JobRequest] = []
        self.fault: BaseException | None = None
        self.arrives = True
        self.silent = False
        self.queries = 0
        self.held: list[str] = []

    def directives(self, header: Header) -> list[str]:
        return [f"#FAKE array={len(header.array)}"]

    def submit(self, request: JobRequest) -> list[str]:
        self.requests.append(request)
        number = str(len(self.requests))
        if self.arrives:
            self.tags[request.tag] = number
            state = JobState.HELD if request.held else JobState.QUEUED
            self.jobs.update(dict.fromkeys(self.member_ids(number, request.header.array) or [number], state))
        if self.fault is not None:
            raise self.fault
        return [number]

    def member_ids(self, array_id: str, indices: Sequence[int]) -> list[str]:
        return [f"{array_id}_{index}" for index in indices]

    def query(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        self.queries += 1
        if self.silent:
            raise CommandError("the scheduler does not answer")
        return {job_id: JobStatus(job_id, self.jobs.get(job_id, JobState.GONE)) for job_id in job_ids}

    def find(self, tag: str) -> list[str]:
        if self.silent:
            raise CommandError("the scheduler does not answer")
        return [self.tags[tag]] if tag in self.tags else []

    def cancel(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            self.jobs.pop(job_id, None)

    def hold(self, job_ids: Sequence[str]) -> None:
        self.held += job_ids

    def release(self, job_ids: Sequence[str]) -> None:
        self.held = [job_id for job_id in self.held if job_id not in job_ids]

    def requeue(self, job_id: str) -> None:
        raise CommandError("not here")


def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    fake = FakeScheduler()
    for module in (conclude, follow, plan, render, submit, sweep_follow, sweep_module, sweep_submit):
        monkeypatch.setattr(module, "get_scheduler", lambda *_: fake)
    return World(tmp_path, fake)


def finish(run: RunDirectory, job_id: str, accuracy: float = 0.5) -> None:
    """What a job that trained to its end leaves behind."""
    record(run, Event.BEGUN, attempt=1, job_id=job_id, host="node1")
    record(run, Event.EPOCH, attempt=1, epoch=2, epochs=2)
    (run.checkpoints / "best.json").write_text(json.dumps({"measure": "val_accuracy", "value": accuracy, "epoch": 2.0}))
    record(run, Event.FINISHED, attempt=1, code=0)
    run.exit_file(1).write_text("0\n")
    record(run, Event.CONCLUDED, attempt=1, job_id=job_id, next="over")


def states(sweep: SweepDirectory) -> list[RunState]:
    return [one.state for one in follow.statuses(sweep.found_members())]
