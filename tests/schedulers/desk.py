"""A user of the local scheduler, as the tests need one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dlhpc.schedulers.base import Dependency, Header, JobRequest, JobState, JobStatus, get_scheduler
from dlhpc.schedulers.local_spool import JobFolder, Spool

PATIENCE_S = 40.0
ROOT = Path(__file__).parents[2]


def until(what: Callable[[], object]) -> None:
    """Wait until it holds; the machine may be busy."""
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def waits(after: dict[str, str]) -> tuple[Dependency, ...]:
    return tuple(Dependency(job, kind) for job, kind in after.items())


class Desk:
    """A user at a machine: writes scripts, submits them and looks at what happened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scheduler = get_scheduler("local")

    def request(
        self, tag: str, text: str, *, cores: int = 1, gpus: int = 0, walltime: int = 120, grace: int = 5
    ) -> JobRequest:
        script = self.folder / f"{tag}.sh"
        script.write_text(f"#!/bin/sh\n{text}\n")
        header = Header(
            name=f"name of {tag}",
            output=self.folder / "logs" / f"{tag}.out",
            queue=None,
            nodes=1,
            ranks_per_node=1,
            cores_per_rank=cores,
            gpus_per_node=gpus,
            memory_bytes=None,
            walltime_seconds=walltime,
            warning_seconds=0,
        )
        return JobRequest(tag, script, header, kill_grace_seconds=grace)

    def submit(
        self, tag: str, text: str, *, held: bool = False, after: dict[str, str] | None = None, **more: int
    ) -> str:
        """``after`` holds the kinds of dependencies by the id of the job that comes first."""
        request = replace(self.request(tag, text, **more), held=held, after=waits(after or {}))
        (job,) = self.scheduler.submit(request)
        return job

    def find(self, tag: str) -> str | None:
        found = self.scheduler.find(tag)
        assert len(found) <= 1
        return found[0] if found else None

    def cancel(self, *jobs: str) -> None:
        self.scheduler.cancel(jobs)

    def elsewhere(self, tag: str, text: str, **more: int) -> list[str]:
        """The command line that submits this from another process, saying `ready` just before, then the id."""
        request = self.request(tag, text, **more)
        code = (
            "from pathlib import Path, PosixPath\n"
            "from dlhpc.schedulers.base import Header, JobRequest, get_scheduler\n"
            "scheduler = get_scheduler('local')\n"
            "print('ready', flush=True)\n"
            f"print(*scheduler.submit({request!r}), flush=True)"
        )
        return [sys.executable, "-c", code]

    def status(self, job: str) -> JobStatus:
        return self.scheduler.query([job])[job]

    def ended(self, job: str) -> JobStatus:
        until(lambda: self.status(job).state == JobState.ENDED)
        return self.status(job)

    def log(self, tag: str) -> str:
        return (self.folder / "logs" / f"{tag}.out").read_text()

    def has(self, name: str) -> Callable[[], bool]:
        return (self.folder / name).exists

    def pid(self, name: str) -> int:
        until(lambda: (self.folder / name).exists() and (self.folder / name).read_text().strip())
        return int((self.folder / name).read_text())

    def job_folder(self, job: str) -> JobFolder:
        folder = Spool.here().folder_of(int(job.partition(".")[0]))
        assert folder is not None
        return folder
