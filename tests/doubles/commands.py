"""One entry for every command of every double: ``main(folder, command, words)``.

The executables on PATH are three lines each; they import this file with ``python -I -S``, so it imports little.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from tests.doubles.engine import Store

_HOMES = {
    "pbs_qsub": ("qsub",),
    "pbs_show": ("qstat", "qselect"),
    "pbs_machine": ("pbsnodes", "qmgr"),
    "pbs_change": ("qdel", "qhold", "qrls", "qsig", "qalter", "qrerun"),
    "ll_submit": ("llsubmit",),
    "ll_show": ("llq", "llclass", "llstatus"),
    "ll_change": ("llcancel", "llhold"),
}
COMMANDS = {
    "openpbs": [*_HOMES["pbs_qsub"], *_HOMES["pbs_show"], *_HOMES["pbs_machine"], *_HOMES["pbs_change"]],
    "torque": ["qsub", "qstat", "qselect", "pbsnodes", "qdel", "qhold", "qrls", "qsig", "qalter", "qrerun"],
    "loadleveler": [*_HOMES["ll_submit"], *_HOMES["ll_show"], *_HOMES["ll_change"]],
}


def _refuse(store: Store, command: str) -> None:
    """The server does not answer. LoadLeveler's message is from users' reports, its exit code is our assumption."""
    if store.config["system"] == "loadleveler":
        sys.stderr.write(
            f'{command}: 2539-463 Cannot connect to {store.config["host"]} "LoadL_schedd" on port 9605. errno = 111\n'
        )
        raise SystemExit(255)
    sys.stderr.write(
        f"Connection refused\n{command}: cannot connect to server {store.config['server']} (errno=15010)\n"
    )
    raise SystemExit(255)


def main(folder: str, command: str, words: list[str]) -> None:
    """Run one command and leave with its exit code."""
    from importlib import import_module

    store = Store(folder)
    faults = store.faults()
    concerned = command in faults.get("commands", [command])
    if concerned and faults.get("slow"):
        time.sleep(faults["slow"])
    if (concerned and faults.get("down")) or store.peek().get("crashed"):
        _refuse(store, command)
    home = next(module for module, names in _HOMES.items() if command in names)
    lose = faults.get("lose_answer") if concerned and command in ("qsub", "llsubmit") else None
    if lose:
        _forget_once(store, faults)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    code = 0
    try:
        code = getattr(import_module(f"tests.doubles.{home}"), command)(store, words)
        sys.stdout.flush()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except BrokenPipeError:
        code = 141
    if lose == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if concerned and faults.get("slow_answer"):
        sys.stdout.flush()
        time.sleep(faults["slow_answer"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _forget_once(store: Store, faults: dict[str, object]) -> None:
    """A fault that is to happen a number of times has happened once more."""
    times = faults.get("times")
    if isinstance(times, int):
        faults = faults | {"times": times - 1}
        if times <= 1:
            faults = {name: value for name, value in faults.items() if name not in ("times", "lose_answer")}
        store.set_faults(dict(faults))
