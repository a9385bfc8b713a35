"""The only place that knows the names of the files in a run directory, and how one comes to be."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dlhpc.errors import StorageError
from dlhpc.files import fsync_folder, storage_errors


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder on shared storage."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        """The user's YAML with overrides applied and data paths made absolute; submits the same again."""
        return self.path / "spec.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def script(self) -> Path:
        return self.path / "job.sh"

    @property
    def catalog(self) -> Path:
        """Which picture belongs to which class and split, decided at submission (JSON)."""
        return self.path / "dataset.json"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def curves(self) -> Path:
        return self.path / "curves.jsonl"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def evaluation(self) -> Path:
        """Confusion matrix over the validation set at the best epoch (JSON)."""
        return self.path / "evaluation.json"

    @property
    def chosen(self) -> Path:
        """What was settled on the node: precision, compiling, smaller batches (JSON)."""
        return self.path / "chosen.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def log(self, attempt: int) -> Path:
        """What attempt number ``attempt`` (from 1) printed."""
        return self.logs / f"{attempt}.out"

    @property
    def job_log(self) -> Path:
        """What jobs printed before they had opened the attempt's log; written by the scheduler, mostly empty."""
        return self.logs / "job.out"

    def begun_file(self, attempt: int) -> Path:
        """Made by the job that is this attempt, so that no other is: one line, its job id."""
        return self.attempts / f"{attempt}.begun"

    def exit_file(self, attempt: int) -> Path:
        """One line: the exit status of the job script, written by the script itself as its last act."""
        return self.attempts / f"{attempt}.exit"

    def outcome_file(self, attempt: int) -> Path:
        """One line: the exit code that rank 0 wants, since launchers change the codes of their ranks."""
        return self.attempts / f"{attempt}.outcome"

    def stop_file(self, attempt: int) -> Path:
        """Its existence asks the ranks of this attempt to save and leave."""
        return self.attempts / f"{attempt}.stop"

    def meeting_file(self, attempt: int) -> Path:
        """Where rank 0 of this attempt is to be found, for ranks that have no MPI to tell them (JSON)."""
        return self.attempts / f"{attempt}.meeting"

    @property
    def submission_lock(self) -> Path:
        """Taken (flock) while an attempt is being submitted."""
        return self.path / ".submit.lock"

    @property
    def training_lock(self) -> Path:
        """Taken (flock) by rank 0 while it trains."""
        return self.path / ".train.lock"


def placeholder_run(runs: Path, name: str) -> RunDirectory:
    """Stands for the run's folder in `dlhpc plan` and `dlhpc render`, before there is one."""
    return RunDirectory(runs / f"{name}-DATE-TIME-xxxx")


def new_run_name(name: str, now: datetime) -> str:
    """``NAME-YYYYMMDD-HHMMSS-xxxx``: sorts by time, unique without a lock."""
    return f"{name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


FOLDERS = ("logs", "attempts", "checkpoints")
"""What every run directory has from the beginning."""


def create_run(
    runs: Path,
    name: str,
    fill: Callable[[RunDirectory, RunDirectory], None],
    *,
    now: datetime | None = None,
    folders: Sequence[str] = FOLDERS,
) -> RunDirectory:
    """Make a new run directory in ``runs``: ``fill(hidden, final)`` writes ``hidden``, which then appears as ``final``.

    ``folders`` are made in it first.

    A process that dies in between leaves a hidden ``.new-…`` folder that no command takes for a run, and that a later
    call removes.
    ``fill`` is called again under another name in the unlikely case that the name is taken.
    """
    with storage_errors(runs, "create a run in"):
        runs.mkdir(parents=True, exist_ok=True)
    _remove_stale(runs)
    for _ in range(10):
        final = runs / new_run_name(name, now or datetime.now())
        hidden = runs / f".new-{final.name}"
        try:
            with storage_errors(runs, "create a run in"):
                hidden.mkdir()
                for folder in folders:
                    (hidden / folder).mkdir()
            fill(RunDirectory(hidden), RunDirectory(final))
            with storage_errors(final, "create"):
                fsync_folder(hidden)
                try:
                    os.rename(hidden, final)
                except FileExistsError:
                    continue
                except OSError:
                    if final.exists():
                        continue
                    raise
                fsync_folder(runs)
            return RunDirectory(final)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    raise StorageError("could not find a free name for the run", where=runs, remedy="Try again.")


def _remove_stale(runs: Path) -> None:
    """Delete what a killed ``create_run`` left behind more than a day ago."""
    for hidden in runs.glob(".new-*"):
        with contextlib.suppress(OSError):
            if time.time() - hidden.stat().st_mtime > 86400:
                shutil.rmtree(hidden, ignore_errors=True)
