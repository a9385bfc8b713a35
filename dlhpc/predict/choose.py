"""Which checkpoint to predict with."""

from __future__ import annotations

from dlhpc.errors import UserError
from dlhpc.runs.checkpoints import CheckpointRecord, best_checkpoint, list_checkpoints
from dlhpc.runs.directory import RunDirectory


def choose_checkpoint(run: RunDirectory, which: str = "best") -> CheckpointRecord:
    """``best`` (the newest, if none was measured yet), ``last``, or the checkpoint after step number ``which``.

    Raises :class:`UserError` if there is none (yet), with the steps that there are.
    """
    records = list_checkpoints(run)
    if not records:
        raise UserError(
            f"{run.name} has no checkpoint yet",
            where=run.checkpoints,
            remedy="Wait for the first one (`dlhpc status`); if the run failed before it, see `dlhpc logs`.",
        )
    if which == "best":
        return best_checkpoint(run) or records[-1]
    if which == "last":
        return records[-1]
    for record in records:
        if which == record.name or (which.isdecimal() and int(which) == record.step):
            return record
    steps = ", ".join(str(record.step) for record in records)
    raise UserError(
        f"{run.name} has no checkpoint `{which}`", remedy=f"Give `best`, `last` or one of these steps: {steps}."
    )
