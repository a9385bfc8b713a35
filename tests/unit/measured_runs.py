"""Made-up runs whose journals and curves tell how fast they were."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dlhpc.files import append_lines
from dlhpc.runs.curves import Point, write_points
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import Plan
from dlhpc.sites.models import Site
from tests.unit import job_runs

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC).timestamp()


class Journal:
    """A run's journal, written event by event while a clock goes on."""

    def __init__(self, run: RunDirectory, plan: Plan) -> None:
        self.run, self.plan, self.now, self.attempt, self.epoch = run, plan, START, 0, 0

    def event(self, name: str, **details: Any) -> None:
        time = datetime.fromtimestamp(self.now, UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": name, "attempt": self.attempt, **details})
        append_lines(self.run.journal, [line], durable=False)

    def begin(self, startup: float) -> None:
        """The next attempt: its job begins, and its first training step so many seconds later."""
        self.attempt += 1
        self.event("begun", job_id=str(self.attempt))
        self.now += startup
        self.event("started", job_id=str(self.attempt), hosts=["node1"], ranks=self.plan.ranks)

    def epochs(self, number: int, *, step: float, validation: float = 0.0, saving: float = 0.0) -> None:
        """Whole epochs, each with steps, a validation and a checkpoint of these seconds."""
        for _ in range(number):
            self.epoch += 1
            done = self.epoch * self.plan.steps_per_epoch
            training = step * self.plan.steps_per_epoch
            self.now += training + validation
            write_points(self.run.curves, [Point(self.epoch, done, "val", "loss", 0.5, self.now)])
            self.now += saving
            self.event("checkpointed", epoch=self.epoch, step=done, checkpoint=f"step-{done:09d}")
            speed = self.plan.dataset.train / training
            self.event("epoch", epoch=self.epoch, epochs=99, seconds=training, pictures_per_second=speed)


def new_run(runs: Path, plan: Plan, name: str = "cars") -> Journal:
    """A run of this plan, newer than those before it; nothing has happened to it yet."""
    number = sum(1 for _ in runs.glob("*")) if runs.exists() else 0
    run = RunDirectory(runs / f"{name}-20260105-{number:06d}-aaaa")
    run.checkpoints.mkdir(parents=True)
    plan.write(run.plan)
    journal = Journal(run, plan)
    journal.event("created")
    return journal


def ran(
    folder: Path,
    site: Site,
    *,
    step: float,
    epochs: int = 4,
    startup: float = 30.0,
    validation: float = 0.0,
    saving: float = 0.0,
    train: int = 100,
    **changes: Any,
) -> Plan:
    """A run with these durations in ``folder/runs``; gives its plan."""
    made = job_runs.decide(job_runs.spec(**changes), site, job_runs.catalog(folder, train), folder / "runs")
    journal = new_run(folder / "runs", made)
    journal.begin(startup)
    journal.epochs(epochs, step=step, validation=validation, saving=saving)
    journal.event("finished", code=0)
    return made
