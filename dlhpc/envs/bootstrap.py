"""``python3 -m dlhpc.envs.bootstrap PREFIX``: a checkout's own environment with dlhpc in it, and nothing heavy.

This is the step before `dlhpc env build` can be called. It runs in the system's Python, so it imports only the
standard library and what of dlhpc needs no more than that.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tomllib
from pathlib import Path

import dlhpc
from dlhpc.envs.commands import stream
from dlhpc.envs.progress import Progress, pip_news
from dlhpc.envs.state import FOLDER, Stamps, key_of, locked
from dlhpc.envs.venv import check_place, ensure_venv, installed, remove_cut_installations
from dlhpc.errors import DlhpcError
from dlhpc.files import storage_errors
from dlhpc.process import ask

_STEP = "dlhpc"


def bootstrap(checkout: Path, prefix: Path, progress: Progress) -> None:
    """Make the environment and install the checkout into it, editable; all that is done already is skipped."""
    check_place(prefix)
    log = prefix / FOLDER / "build.log"

    def waiting() -> None:
        progress.note(f"another set-up of {prefix} is running; waiting for it to end")

    with locked(prefix / FOLDER / "lock", waiting):
        python = ensure_venv(prefix, log=log, progress=progress)
        stamps = Stamps(prefix)
        key = key_of(*_inputs(checkout), str(checkout), python.version, python.prefix)
        if stamps.found(_STEP, key) is None or "dlhpc" not in installed(python.site_packages):
            stamps.drop(_STEP)
            progress.step("dlhpc and its command line")
            remove_cut_installations(python.site_packages)
            doing = ["pip"]

            def hear(line: str) -> None:
                doing[0] = pip_news(line) or doing[0]

            stream(
                [python.executable, "-m", "pip", "install", "--no-input", "--editable", checkout],
                log=log,
                env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"},
                remedy="See the log; then repeat the command, it continues.",
                on_line=hear,
                on_tick=lambda: progress.detail(doing[0]),
            )
            stamps.put(_STEP, key)
            progress.done()
        # so that the command starts fast also where PYTHONDONTWRITEBYTECODE is set; of no consequence if it fails
        with contextlib.suppress(DlhpcError):
            ask([python.executable, "-m", "compileall", "-q", checkout / "dlhpc"], timeout=120)


def _inputs(checkout: Path) -> list[object]:
    """What an editable installation depends on: metadata, not code."""
    with storage_errors(checkout, "read"):
        texts = [(checkout / name).read_text(encoding="utf-8") for name in ("setup.cfg", "setup.py")]
        settings = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    return [*texts, settings["build-system"], dlhpc.__version__]


def main() -> None:
    """The command; its one argument is the folder of the environment."""
    if len(sys.argv) != 2:
        sys.exit("usage: python3 -m dlhpc.envs.bootstrap PREFIX")
    try:
        bootstrap(Path(dlhpc.__file__).resolve().parent.parent, Path(sys.argv[1]).absolute(), Progress())
    except DlhpcError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; repeat the command to continue", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
