"""What keeps a job of the local scheduler from starting besides want of room: a hold, and jobs that must end first."""

from __future__ import annotations

from dataclasses import dataclass

from dlhpc.errors import StorageError
from dlhpc.schedulers.local_spool import Job, JobFolder, Spool, parse_id


@dataclass(frozen=True)
class Obstacle:
    """Why a job does not start although there may be room."""

    reason: str
    held: bool = False
    """Its user wants it so."""
    for_ever: bool = False
    """It can never start."""


def obstacle(folder: JobFolder, job: Job) -> Obstacle | None:
    """What keeps this job from starting; None if nothing does."""
    if folder.hold.exists():
        return Obstacle("held until it is released", held=True)
    waits: Obstacle | None = None
    for job_id, kind in job.after:
        found = _unmet(job_id, kind)
        if found is not None and found.for_ever:
            return found
        waits = waits or found
    return waits


def _unmet(job_id: str, kind: str) -> Obstacle | None:
    """Why a dependency is not met. A job that never ran has neither ended well nor failed, but it is over."""
    known = parse_id(job_id)
    folder = Spool.of(known[1]).folder_of(known[0]) if known is not None else None
    if folder is not None and not folder.has_ended():
        return Obstacle(f"waits for the end of job {job_id} ({kind})")
    if kind == "afterany":
        return None
    if folder is None:
        how = "is not known any more"
    else:
        try:
            end = folder.ended()
        except StorageError as error:
            return Obstacle(f"how job {job_id} ended cannot be read: {error.what}")
        if end.started is None:
            how = f"never ran ({end.reason})"
        elif (end.exit_code == 0) == (kind == "afterok"):
            return None
        else:
            how = f"ended with code {end.exit_code}" if end.exit_code is not None else f"was lost: {end.reason}"
    wanted = "well" if kind == "afterok" else "badly"
    return Obstacle(f"cannot start any more: job {job_id}, which had to end {wanted} ({kind}), {how}", for_ever=True)
