"""Writing a sweep's folder with all its members, so that it appears whole or not at all."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhpc.files import current_umask, fsync_folder, replace_text, storage_errors
from dlhpc.jobs.render import render
from dlhpc.jobs.sources import keep_code
from dlhpc.runs.directory import FOLDERS, RunDirectory, create_run
from dlhpc.runs.journal import Event
from dlhpc.runs.sweep import SweepDirectory, SweepEvent, log_line, read_record

if TYPE_CHECKING:
    from dlhpc.data.catalog import Catalog
    from dlhpc.jobs.sweep import PlannedMember, PlannedSweep


def create_sweep(planned: PlannedSweep, runs: Path) -> SweepDirectory:
    """Make the sweep's folder with every member in it; nothing is submitted yet.

    It appears at once, when all is written and on the disk.
    """
    record = planned.record

    def fill(hidden: RunDirectory, final: RunDirectory) -> None:
        sweep, place = SweepDirectory(final.path), SweepDirectory(hidden.path)
        record.write(place.record)
        replace_text(place.spec, planned.document.text())
        with storage_errors(final.path):
            place.log.write_text(log_line(SweepEvent.CREATED, sweep_id=record.sweep_id) + "\n", encoding="utf-8")
            if planned.search:
                with storage_errors(final.path):
                    place.generations.mkdir()
            for member in planned.members():
                name = sweep.member_name(member.index, record.width)
                _write_member(member, RunDirectory(hidden.path / name), RunDirectory(final.path / name), writer)
            _flush(hidden.path)

    writer = _Writer(0o777 & ~current_umask())
    made = create_run(runs, record.name, fill, folders=("logs", "arrays"))
    return SweepDirectory(made.path)


def add_members(planned: PlannedSweep, sweep: SweepDirectory) -> None:
    """Add a generation to a search, each member appearing whole; those that are there already are left alone."""
    writer = _Writer(0o777 & ~current_umask())
    width = read_record(sweep).width
    with storage_errors(sweep.path, "write"):
        for left in sweep.path.glob(".member-*"):
            shutil.rmtree(left)
        ready: list[tuple[Path, Path]] = []
        for member in planned.members():
            final = sweep.member(member.index, width)
            if not final.path.exists():
                hidden = sweep.path / f".member-{member.index}"
                _write_member(member, RunDirectory(hidden), final, writer)
                ready.append((hidden, final.path))
        _flush(sweep.path)
        for hidden, path in ready:
            hidden.rename(path)
        fsync_folder(sweep.path)


@dataclass
class _Writer:
    """What the members that are being written share."""

    script_mode: int
    catalog: Catalog | None = None
    catalog_file: Path = Path()
    """Where ``catalog`` stands already."""


def _write_member(member: PlannedMember, hidden: RunDirectory, final: RunDirectory, writer: _Writer) -> None:
    """One run directory. Nothing is flushed on its own: all appears together, after one flush of everything."""
    hidden.path.mkdir()
    for folder in FOLDERS:
        (hidden.path / folder).mkdir()
    hidden.spec.write_text(member.spec_text, encoding="utf-8")
    made = keep_code(member.plan, hidden, final)
    plan = {**vars(made), "dataset": vars(made.dataset)}
    hidden.plan.write_text(json.dumps(plan, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    hidden.script.write_text(render(made, final), encoding="utf-8")
    hidden.script.chmod(writer.script_mode)
    created = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": Event.CREATED.value,
        "run_id": member.plan.run_id,
        "version": member.plan.dlhpc_version,
        "settings": member.settings,
    }
    hidden.journal.write_text(json.dumps(created, ensure_ascii=False) + "\n", encoding="utf-8")
    if writer.catalog is member.catalog and _link(writer.catalog_file, hidden.catalog):
        return
    member.catalog.write(hidden.catalog)
    writer.catalog, writer.catalog_file = member.catalog, hidden.catalog


def _link(file: Path, name: Path) -> bool:
    """The same file under another name; copied where links are impossible. False if it is gone."""
    try:
        os.link(file, name)
    except FileNotFoundError:
        return False
    except OSError:  # no links on this file system, or too many of one file
        shutil.copyfile(file, name)
    return True


@functools.cache
def _syncfs() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):  # not on every system
        return None


def _flush(folder: Path) -> None:
    """Everything that was written onto this file system is on the disk: one request in place of thousands."""
    call = _syncfs()
    if call is None:
        for place, _, files in os.walk(folder):
            for name in files:
                _fsync(os.path.join(place, name))
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if call(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
