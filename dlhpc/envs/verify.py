"""The proof at the end of a build: two ranks really run in the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dlhpc.envs import probe
from dlhpc.envs.commands import StepFailed, stream
from dlhpc.envs.progress import Progress
from dlhpc.envs.system import Mpi
from dlhpc.envs.venv import Python
from dlhpc.errors import CommandError

RANKS = 2
_SECONDS = 300.0

# Some containers forbid one process to copy from another's memory; Open MPI then complains or fails, and its shared
# memory transport must be told to copy twice instead.
_NO_SINGLE_COPY = {"OMPI_MCA_btl_vader_single_copy_mechanism": "none"}
_SINGLE_COPY_SIGNS = ("Read -1, expected", "process_vm_readv", "CMA support is not available")


def launch_command(python: Python, mpi: Mpi | None) -> list[str]:
    """The command line that starts the probe on two ranks: through MPI, or through Horovod's own Gloo launcher."""
    program = [str(python.executable), "-m", probe.__name__]
    if mpi is not None:
        return [*mpi.launch(RANKS), *program]
    return [str(python.executable.parent / "horovodrun"), "--gloo", "-np", str(RANKS), *program]


def launch_environment(python: Python, extra: dict[str, str]) -> dict[str, str]:
    """Variables for it: this environment's programs first, one thread a rank, and leave for root in containers."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **extra}
    environment["PATH"] = f"{python.executable.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return environment


def verify(
    python: Python, mpi: Mpi | None, variables: dict[str, str], *, log: Path, progress: Progress
) -> dict[str, str]:
    """Run the probe; gives the variables that jobs need here beside the recipe's. Raises :class:`CommandError`."""
    try:
        said = _run(python, mpi, variables, log=log, progress=progress)
    except StepFailed as error:
        if mpi is None or mpi.implementation != "openmpi" or not _complains(str(error).splitlines()):
            raise
        said = []
    if said and not _complains(said):
        _check(said, mpi, log)
        return {}
    progress.note("this machine lets no process copy from another's memory; Open MPI is told so from now on")
    said = _run(python, mpi, {**variables, **_NO_SINGLE_COPY}, log=log, progress=progress)
    _check(said, mpi, log)
    return dict(_NO_SINGLE_COPY)


def _run(python: Python, mpi: Mpi | None, variables: dict[str, str], *, log: Path, progress: Progress) -> list[str]:
    way = (
        "MPI: check that `mpirun` starts ranks on this machine" if mpi else "Gloo: check that this host's name resolves"
    )
    return stream(
        launch_command(python, mpi),
        log=log,
        env=launch_environment(python, variables),
        timeout=_SECONDS,
        remedy=f"The ranks did not work together over {way}; the log shows what they said. Then repeat the command.",
        on_tick=lambda: progress.detail(f"{RANKS} ranks add up a tensor"),
    )


def _complains(said: list[str]) -> bool:
    return any(sign in line for line in said for sign in _SINGLE_COPY_SIGNS)


def _check(said: list[str], mpi: Mpi | None, log: Path) -> None:
    found = parse(said)
    if found is None or found.get("ranks") != RANKS:
        ranks = "nothing" if found is None else f"{found.get('ranks')} rank(s)"
        raise CommandError(
            f"the check of the new environment found {ranks} instead of {RANKS} ranks",
            where=log,
            remedy="`mpirun` on PATH may belong to another MPI than `mpicxx`; put one of them right.",
        )
    if mpi is not None and not found.get("mpi_built"):
        raise CommandError("this Horovod was built without MPI", where=log, remedy="Remove its wheel from the cache.")


def parse(said: list[str]) -> dict[str, Any] | None:
    """What the probe printed; launchers may put their own prefix before it."""
    for line in said:
        _, mark, text = line.partition(probe.MARK)
        if mark:
            try:
                found = json.loads(text)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return None
