"""Making a virtual environment that is either whole or known to be half-made, and what is installed in it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from dlhpc.envs.commands import stream
from dlhpc.envs.progress import Progress
from dlhpc.envs.state import FOLDER
from dlhpc.envs.system import apt_install, may_install
from dlhpc.errors import CommandError, StorageError, UserError
from dlhpc.files import storage_errors
from dlhpc.process import CommandMissing, CommandTimeout, ask

OLDEST = (3, 11)
_MADE_BY_US = "made-by-dlhpc"
_QUESTION = """
import json, platform, sys, sysconfig, pip
print(json.dumps({
    "version": platform.python_version(), "tag": f"cp{sys.version_info[0]}{sys.version_info[1]}",
    "prefix": sys.prefix, "site_packages": sysconfig.get_path("purelib"), "machine": platform.machine(),
    "headers": sysconfig.get_path("include", vars={"installed_base": sys.base_prefix}), "libc": platform.libc_ver()[1],
}))
"""


@dataclass(frozen=True)
class Python:
    """The interpreter of an environment and where its parts lie."""

    executable: Path
    version: str
    tag: str
    prefix: str
    site_packages: Path
    headers: Path
    machine: str
    libc: str

    def has_header(self, name: str) -> bool:
        """Whether a header such as ``Python.h`` is there to compile against."""
        return (self.headers / name).exists()


def ask_python(prefix: Path) -> Python | None:
    """The interpreter at ``prefix``; None where it is missing, broken, moved from elsewhere or without pip."""
    executable = prefix / "bin" / "python"
    try:
        answer = ask([executable, "-c", _QUESTION], timeout=120)
        said = json.loads(answer.out)
    except (CommandMissing, CommandTimeout, ValueError):
        return None
    if not os.path.samefile(said["prefix"], prefix):
        return None
    return Python(
        executable,
        said["version"],
        said["tag"],
        said["prefix"],
        Path(said["site_packages"]),
        Path(said["headers"]),
        said["machine"],
        said["libc"],
    )


def check_place(prefix: Path) -> None:
    """Refuse a folder that holds something else, before anything is written into it."""
    others = {entry.name for entry in _entries(prefix)} - {FOLDER}
    if others and not (prefix / "pyvenv.cfg").exists() and not (prefix / FOLDER / _MADE_BY_US).exists():
        raise UserError(
            "holds other files and is no Python environment",
            where=prefix,
            remedy="Name a new folder, or an environment, as the prefix.",
        )


def ensure_venv(prefix: Path, *, log: Path, progress: Progress) -> Python:
    """The environment at ``prefix``, made now if it is not there; a half-made one of ours is made anew.

    The caller has called :func:`check_place` and holds the prefix's lock. Somebody else's broken environment is an
    error.
    """
    marker = prefix / FOLDER / _MADE_BY_US
    whole = _moved_scripts_are_absent(prefix) and not (marker.exists() and _cut(marker))
    if whole and (python := ask_python(prefix)) is not None:
        if tuple(int(part) for part in python.version.split(".")[:2]) < OLDEST:
            raise UserError(
                f"has Python {python.version}; dlhpc needs {OLDEST[0]}.{OLDEST[1]} or newer",
                where=prefix,
                remedy=f"Remove it (rm -r {prefix}) and repeat the command with a newer Python.",
            )
        return python
    foreign = [entry for entry in _entries(prefix) if entry.name != FOLDER]
    if foreign and not marker.exists():
        raise UserError(
            "is there, but is no working Python environment with pip",
            where=prefix,
            remedy=f"If nobody needs it, remove it (rm -r {prefix}) and repeat the command; it will be made anew.",
        )
    progress.step("virtual environment" if not foreign else "virtual environment (the one here is half-made: anew)")
    _clear(prefix)
    with storage_errors(marker):
        marker.write_text("making\n")
    _need_ensurepip(log=log, progress=progress)
    stream(
        [_base_python(), "-m", "venv", prefix],
        log=log,
        remedy="See the log; then repeat the command.",
        on_tick=lambda: progress.detail("making it"),
    )
    python = ask_python(prefix)
    if python is None:
        raise CommandError("the new environment does not work", where=prefix, remedy=f"See {log}.")
    with storage_errors(marker):
        marker.write_text(f"made at {prefix}\n")
    progress.done()
    return python


def _cut(marker: Path) -> bool:
    try:
        return marker.read_text().startswith("making")
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", where=marker) from error


def _moved_scripts_are_absent(prefix: Path) -> bool:
    """Whether pip's own script starts the interpreter of this very place: a copied environment's does not."""
    script = prefix / "bin" / "pip"
    try:
        first = script.read_bytes()[:4096]
    except OSError:
        return True  # no such script; whether pip works is asked elsewhere
    return os.fsencode(prefix.absolute()) in first or os.fsencode(prefix.resolve()) in first


def _entries(prefix: Path) -> list[Path]:
    try:
        with storage_errors(prefix, "read"):
            return list(prefix.iterdir())
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise


def _clear(prefix: Path) -> None:
    """Empty the environment but for our own folder (its lock is held), and forget what was done in it."""
    with storage_errors(prefix, "remove"):
        for entry in _entries(prefix):
            if entry.name == FOLDER:
                shutil.rmtree(entry / "steps", ignore_errors=True)
                (entry / "environment.json").unlink(missing_ok=True)
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _base_python() -> Path:
    """The interpreter that environments are made from, also when we run in one."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable)


def _need_ensurepip(*, log: Path, progress: Progress) -> None:
    """Debian keeps the part that makes environments in a package of its own."""
    python = _base_python()
    if ask([python, "-c", "import ensurepip, venv"], timeout=60).code == 0:
        return
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    if not may_install():
        raise CommandError(
            f"{python} cannot make virtual environments: its `ensurepip` is missing",
            remedy=f"Ask for the package {package} (apt-get install {package}), or name another Python: "
            "make setup PYTHON=/path/to/python3",
        )
    apt_install([package], log=log, progress=progress)


def installed(site_packages: Path) -> dict[str, str]:
    """Every whole distribution in a site-packages folder, normalised name → version.

    Read from the names of the ``dist-info`` folders: no metadata is opened. pip writes ``INSTALLER`` after all files
    of a distribution, so one without it was cut while being installed and does not count.
    """
    found: dict[str, str] = {}
    for folder in sorted(site_packages.glob("*.dist-info")):
        if (folder / "INSTALLER").exists():
            name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
            found[normal_name(name)] = version
    return found


def remove_cut_installations(site_packages: Path) -> list[str]:
    """Remove the metadata of distributions that were cut while being installed, so that pip installs them again."""
    removed = []
    for folder in site_packages.glob("*.dist-info"):
        if not (folder / "INSTALLER").exists():
            with storage_errors(folder, "remove"):
                shutil.rmtree(folder)
            removed.append(folder.name)
    return removed


def normal_name(name: str) -> str:
    """A distribution's name as PEP 503 normalises it."""
    return name.lower().replace("_", "-").replace(".", "-")
