"""Plays the trainer in tests of job chains: the journal, signals, deadline and exit codes of a real one, no network.

``python player.py RUN`` is what a job script starts in place of ``python -m dlhpc.train``. The spec's notes say what
each attempt does, one word an attempt, the last one for all that follow:

``finish``  train an epoch, and be finished
``save``    train an epoch, save, and ask for another attempt
``train``   train until there is a file ``enough`` in the run, or until asked to leave in any way there is
``deaf``    the same, but asked by a signal only
``stuck``   save every epoch, and leave for nothing but KILL
``crash``   train an epoch, and crash
``refuse``  find the data bad
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

from dlhpc.errors import AttemptExit
from dlhpc.files import replace_text
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, record
from dlhpc.runs.plan import read_plan
from dlhpc.train.stop import SIGNALS, StopRequests

CRASH = "the card has fallen out of its slot"
TWO = "two trainings at once"
"""A file of this name is left where another attempt of the run still trains."""
_EPOCH_S = 0.1


def main(run: RunDirectory) -> int:
    """Give the exit code of the attempt that the environment names."""
    attempt = int(os.environ["DLHPC_ATTEMPT"])
    plan = read_plan(run.plan)
    acts = plan.spec["notes"].split()
    act = acts[min(attempt, len(acts)) - 1]
    deaf = act == "deaf"
    stop = StopRequests(
        run.path / "never" if deaf else run.stop_file(attempt), None if deaf else float(os.environ["DLHPC_DEADLINE"])
    )
    stop.listen()
    if act == "stuck":
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    replace_text(run.path / "script.pid", f"{os.getppid()}\n")
    replace_text(run.path / "player.pid", f"{os.getpid()}\n")
    lock = os.open(run.training_lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (run.path / TWO).touch()
        return 1
    return _train(run, attempt, act, stop, plan.save_margin_seconds)


def _train(run: RunDirectory, attempt: int, act: str, stop: StopRequests, margin: int) -> int:
    saved = run.checkpoints / "epoch"
    epoch = int(saved.read_text()) if saved.exists() else 0
    job = os.environ["DLHPC_JOB_ID"]
    record(run, Event.STARTED, attempt=attempt, job_id=job, hosts=[os.uname().nodename], ranks=1)
    if epoch:
        record(run, Event.RESUMED, attempt=attempt, epoch=epoch, step=epoch, checkpoint=saved.name)
    print(f"attempt {attempt} goes on from epoch {epoch}", flush=True)
    while True:
        time.sleep(_EPOCH_S)
        epoch += 1
        record(run, Event.EPOCH, attempt=attempt, epoch=epoch, epochs=1000)
        replace_text(saved, str(epoch))
        record(run, Event.CHECKPOINTED, attempt=attempt, epoch=epoch, step=epoch, checkpoint=saved.name)
        if act == "crash":
            print(CRASH, file=sys.stderr, flush=True)
            return 1
        if act == "refuse":
            record(run, Event.FAILED, attempt=attempt, code=int(AttemptExit.BAD_DATA), reason="no picture is readable")
            return _leave(run, attempt, AttemptExit.BAD_DATA)
        if act == "finish" or (run.path / "enough").exists():
            record(run, Event.FINISHED, attempt=attempt, code=0)
            return _leave(run, attempt, AttemptExit.FINISHED)
        reason = "told by the test" if act == "save" else stop.reason(0, margin)
        if reason is not None and act != "stuck":
            record(run, Event.STOPPED, attempt=attempt, reason=reason)
            return _leave(run, attempt, AttemptExit.CONTINUE)


def _leave(run: RunDirectory, attempt: int, code: AttemptExit) -> int:
    replace_text(run.outcome_file(attempt), f"{int(code)}\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(RunDirectory(Path(sys.argv[1]))))
