"""What must be on the machine itself: compilers, headers and an MPI, and how Debian's apt brings them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dlhpc.envs.commands import StepFailed, stream
from dlhpc.envs.progress import Progress
from dlhpc.errors import CommandError
from dlhpc.process import CommandMissing, CommandTimeout, ask

_APT_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
_APT_LISTS = Path("/var/lib/apt/lists")


@dataclass(frozen=True)
class Mpi:
    """An MPI that can be compiled against: its launcher and its compiler wrapper are on PATH."""

    implementation: str
    version: str
    mpirun: str

    @property
    def tag(self) -> str:
        """For names of files: ``openmpi4.1.4``."""
        return f"{self.implementation}{self.version}"

    def launch(self, ranks: int) -> list[str]:
        """The start of a command line for a few ranks on this machine, whatever its number of cores."""
        placing = ["--oversubscribe", "--bind-to", "none"] if self.implementation == "openmpi" else []
        return [self.mpirun, "-np", str(ranks), *placing]


def mpi_from_banner(banner: str, mpirun: str) -> Mpi:
    """Tell the implementation and version from what ``mpirun --version`` says."""
    if found := re.search(r"\(Open MPI\)\s+v?(\S+)", banner):
        return Mpi("openmpi", found[1], mpirun)
    if found := re.search(r"Intel\(R\) MPI Library.*?Version\s+(\S+)", banner, re.DOTALL):
        return Mpi("intelmpi", found[1], mpirun)
    if found := re.search(r"HYDRA build details:.*?Version:\s+(\S+)", banner, re.DOTALL):
        return Mpi("mpich", found[1], mpirun)
    return Mpi("mpi", "unknown", mpirun)


def find_mpi() -> Mpi | None:
    """The MPI on PATH, or None where its launcher or its C++ compiler wrapper is missing."""
    mpirun = shutil.which("mpirun") or shutil.which("mpiexec")
    if mpirun is None or not (shutil.which("mpicxx") or shutil.which("mpic++")):
        return None
    try:
        answer = ask([mpirun, "--version"], timeout=60)
    except (CommandMissing, CommandTimeout):
        return None
    return mpi_from_banner(answer.out + answer.err, mpirun)


def may_install() -> bool:
    """Whether we are root on a machine with apt."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(packages: Iterable[str], *, log: Path, progress: Progress) -> None:
    """Install Debian packages; the package lists are fetched first when there are none or they are too old."""
    names = list(packages)
    environment = {**os.environ, **_APT_ENVIRONMENT}
    remedy = f"Install these packages yourself, then repeat the command: apt-get install {' '.join(names)}"

    def run(*argv: str) -> None:
        # dpkg must not be cut in the middle of a package: it gets time to end by itself
        stream(argv, log=log, env=environment, remedy=remedy, on_line=lambda line: progress.detail(line), grace=120)

    install = ["apt-get", "install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", *names]
    run("dpkg", "--configure", "-a")  # an earlier installation may have been cut
    updated = not any(_APT_LISTS.glob("*_Packages*"))
    if updated:
        run("apt-get", "update")
    try:
        run(*install)
    except StepFailed:
        if updated:
            raise
        run("apt-get", "update")
        run(*install)


def missing_error(what: Iterable[str], packages: Iterable[str]) -> CommandError:
    """The error for somebody who may not install what is missing."""
    return CommandError(
        f"building needs {', '.join(what)}, which this machine does not have",
        remedy=f"Load your centre's compiler module or ask its staff; on Debian: apt-get install {' '.join(packages)}. "
        "Then repeat the command; it continues.",
    )
