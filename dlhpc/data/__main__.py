"""``python -m dlhpc.data RUN``: pack the run's data; the job script does this once, before the ranks start."""

import contextlib
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from dlhpc.data.catalog import Catalog
from dlhpc.data.pack import SHOWN, Preparation, pack
from dlhpc.data.pack_rows import pack_rows
from dlhpc.data.packed import Packed, open_packed
from dlhpc.data.shards import check_shards
from dlhpc.data.splits import SPLITS
from dlhpc.errors import AttemptExit, DlhpcError, StorageError, UserError
from dlhpc.files import read_json
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, read_journal, record
from dlhpc.runs.plan import Plan, read_plan


class _Interrupted(BaseException):
    """A signal asked us to leave; ``number`` says which."""

    def __init__(self, number: int) -> None:
        self.number = number


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU, signal.SIGUSR2)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    for other in _SIGNALS:  # once is enough: tidying up must not be interrupted
        signal.signal(other, signal.SIG_IGN)
    raise _Interrupted(number)


class _Progress:
    """One line at most every second, since the output goes to a log file."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            print(f"packing {done} of {total} pictures", flush=True)


_PATIENCE_S = 30.0
"""An attempt begins by comparing files with their checksums: what was damaged must not be learnt. Of a set too large to
be read in this time the others are trusted; `dlhpc data check` compares all."""


def pack_run(run: RunDirectory, attempt: int) -> None:
    """Pack what the plan of ``run`` asks for; broken pictures that are skipped become warnings in its journal."""
    plan = read_plan(run.plan)
    began = time.monotonic()
    with _packed(run, plan) as packed:
        shards = packed.index.shards
        checked = check_shards(packed.folder, shards, max(1, plan.cores_per_rank * plan.ranks_per_node), _PATIENCE_S)
        if checked < len(shards):
            print(f"compared {checked} of {len(shards)} files with their checksums in {_PATIENCE_S:.0f} s", flush=True)
        _warn(run, attempt, packed)
        counts = ", ".join(f"{packed.count(split)} {split}" for split in SPLITS)
        seconds = time.monotonic() - began
        print(f"packed {described(packed)}: {counts} in {packed.folder}, {seconds:.1f} s", flush=True)


def described(packed: Packed) -> str:
    """What a packed dataset holds: ``pictures (rgb 256×256, 8 bits)``, ``rows (8 features)``."""
    if packed.kind == "table":
        return f"rows ({len(packed.features)} features)"
    stored = "" if packed.storage == "raw" else f", kept as {packed.storage.upper()}"
    size = f"{packed.width}×{packed.height}, {packed.dtype.itemsize * 8} bits"
    return f"pictures ({packed.index.color} {size}{stored})"


def _packed(run: RunDirectory, plan: Plan) -> Packed:
    """What the run trains on, made now if it is not there."""
    catalog = Catalog.read(run.catalog)
    folder, key, trained_on = Path(plan.dataset.packed), plan.dataset.key, _fingerprint(run)
    if catalog.packed is not None:
        return open_packed(folder, catalog.packed.fingerprint)
    if catalog.kind == "table":
        return pack_rows(catalog, plan.spec["data"]["table"], folder, key=key, trained_on=trained_on)
    threads = max(1, plan.cores_per_rank * plan.ranks_per_node)
    how = preparation(plan.spec.get("data", {}))
    return pack(catalog, how, folder, key=key, threads=threads, progress=_Progress(), trained_on=trained_on)


def _fingerprint(run: RunDirectory) -> str | None:
    """Of the packed pictures that an earlier attempt trained on, if there was one."""
    with contextlib.suppress(StorageError, AttributeError):  # no attempt has come so far
        found = read_json(run.provenance).get("dataset", {}).get("fingerprint")
        return found if isinstance(found, str) else None
    return None


def preparation(data: Mapping[str, Any]) -> Preparation:
    """How the ``data`` of a spec wants pictures to be brought to one shape."""
    try:
        return Preparation(
            color=None if data["color"] == "auto" else data["color"],
            height=int(data["height"]),
            width=int(data["width"]),
            resize=data["resize"],
            skip_broken=data["broken"] == "skip",
            storage=data.get("storage", "raw"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the plan's spec says nothing of `data`: {error}", remedy="Submit the run anew from its spec.yaml."
        ) from error


def _warn(run: RunDirectory, attempt: int, packed: Packed) -> None:
    """Name what was left out once in a run's journal, also when another run packed it."""
    skipped = packed.skipped
    what = "picture" if packed.kind == "pictures" else "row"
    messages = [f"skipped {what} {path}: {reason}" for path, reason in skipped[:SHOWN]]
    if len(skipped) > SHOWN:
        messages.append(f"skipped {len(skipped) - SHOWN} more broken {what}s; all are in {packed.folder}/index.json")
    messages += packed.index.notes
    if not messages:
        return
    told = {entry.details.get("message") for entry in read_journal(run)[0] if entry.event == Event.WARNING}
    for message in messages:
        print(f"warning: {message}", flush=True)
        if message not in told:
            record(run, Event.WARNING, attempt=attempt, message=message)


def main(arguments: Sequence[str]) -> int:
    """Pack and give the exit code that the attempt should end with (see :class:`AttemptExit`)."""
    if len(arguments) != 1:
        print("usage: python -m dlhpc.data RUN_DIRECTORY", file=sys.stderr)
        return AttemptExit.BAD_CONFIGURATION
    warnings.simplefilter("ignore")  # the picture libraries warn of odd tags; what matters is raised
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    run = RunDirectory(Path(arguments[0]))
    given = os.environ.get("DLHPC_ATTEMPT", "")
    attempt = int(given) if given.isdecimal() else 1
    try:
        pack_run(run, attempt)
        return AttemptExit.FINISHED
    except _Interrupted as interrupted:
        name = signal.Signals(interrupted.number).name
        print(f"packing was stopped by {name}; the next attempt goes on from what is finished", file=sys.stderr)
        return 128 + interrupted.number
    except DlhpcError as error:
        print(f"error: {error}", file=sys.stderr)
        _record_failure(run, attempt, error.attempt_exit, f"{error}".replace("\n", " "))
        return error.attempt_exit
    except Exception as error:  # noqa: BLE001  # the journal must know of our bugs too
        traceback.print_exc()
        _record_failure(run, attempt, 1, f"packing the data crashed: {error!r}")
        return 1


def _record_failure(run: RunDirectory, attempt: int, code: int, reason: str) -> None:
    with contextlib.suppress(DlhpcError):  # the journal may be what failed; the exit code still tells
        record(run, Event.FAILED, attempt=attempt, code=int(code), reason=reason)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
