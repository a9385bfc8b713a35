"""What is left behind when an attempt cannot go on: the wanted exit code, a line in the journal, words in the log."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback

from dlhpc.errors import DlhpcError, ErrorList
from dlhpc.files import replace_text
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, record
from dlhpc.train.collective import LostContact

_PATIENCE_S = 5.0  # that other ranks give the one which failed first to say so


def write_outcome(run: RunDirectory, attempt: int, code: int) -> None:
    """Leave the exit code where the job script looks for it, since launchers change the codes of their ranks."""
    path = run.outcome_file(attempt)
    path.parent.mkdir(exist_ok=True)
    replace_text(path, f"{code}\n")


def report_failure(run: RunDirectory, attempt: int, rank: int, error: BaseException) -> int:
    """Tell of ``error`` and give the exit code. Where all ranks meet the same error, only one of them tells.

    Rank 0 tells at once. Another rank waits a little: if somebody has told meanwhile, it was the same error or the
    cause of ours. A :class:`LostContact` waits on rank 0 too, because the rank that went away knows the cause.
    """
    code = error.attempt_exit if isinstance(error, DlhpcError) else 1
    if (rank != 0 or isinstance(error, LostContact)) and _somebody_told(run, attempt):
        return code
    who = "" if rank == 0 else f"rank {rank}: "
    if isinstance(error, DlhpcError):
        print(f"dlhpc: {who}{error}", file=sys.stderr, flush=True)
        reason = who + (_first_line(error) if isinstance(error, ErrorList) else error.what)
    else:
        traceback.print_exception(error)
        reason = f"{who}{type(error).__name__}: {_first_line(error)}"
        print(f"dlhpc: {reason}\n  → This is a fault in dlhpc or its libraries; the trace is above.", file=sys.stderr)
    # The disk may be full or gone: then the exit code itself and the log are all that can be left.
    with contextlib.suppress(DlhpcError, OSError):
        write_outcome(run, attempt, int(code))
    with contextlib.suppress(DlhpcError, OSError):
        record(run, Event.FAILED, attempt=attempt, code=int(code), reason=reason)
    return code


def _somebody_told(run: RunDirectory, attempt: int) -> bool:
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if run.outcome_file(attempt).exists():
                return True
        time.sleep(0.2)
    return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
