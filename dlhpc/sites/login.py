"""What can be seen of a site from the login node: commands, launcher, environments, and where runs go."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlhpc import resources
from dlhpc.errors import CommandError
from dlhpc.process import ask
from dlhpc.sites.findings import Finding, cannot_tell, differs, ok
from dlhpc.sites.probe import COMMANDS

if TYPE_CHECKING:
    from dlhpc.sites.models import Site
    from dlhpc.spec.load import Location

_ENVIRONMENT_WITHIN_S = 120.0
"""A Python on shared storage may take long to start."""


def look(site: Site, runs: Path) -> list[Finding]:
    """Everything that the login node can tell; ``runs`` is the folder of runs that commands would use."""
    findings = [*_commands(site), *_runs(runs)]
    for name in site.environments:
        try:
            said = ask(["sh", *environment_arguments(site, name)], timeout=_ENVIRONMENT_WITHIN_S).out
        except CommandError as error:
            findings.append(cannot_tell(f"environment {name}", error.what, key=("environments", name)))
            continue
        findings += environment_findings(site, name, said, "the login node")
    return findings


def _commands(site: Site) -> Iterator[Finding]:
    needed = COMMANDS["torque" if site.dialect == "torque" else site.scheduler]
    missing = [command for command in needed if shutil.which(command) is None]
    if missing:
        yield differs(
            "commands",
            f"not on PATH: {', '.join(missing)}",
            "Put the batch system's folder on PATH, or correct `scheduler`.",
            profile=site.scheduler,
            key=("scheduler",),
        )
    elif needed:
        yield ok("commands", ", ".join(needed), key=("scheduler",))


def _runs(runs: Path) -> Iterator[Finding]:
    subject, key = "folder of runs", ("paths", "runs")
    standing = next(folder for folder in (runs, *runs.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=standing) as file:
            file.write(b"dlhpc")
            file.flush()
    except OSError as error:
        yield differs(
            subject,
            f"{runs}: the login node cannot write to {standing}: {error.strerror or error}",
            "Correct paths.runs to a folder that you may write to.",
            profile=str(runs),
            key=key,
        )
        return
    free = shutil.disk_usage(standing).free
    made = "" if standing == runs else " (made by the first run)"
    yield ok(subject, f"{runs}{made}: writable, {free / 1e9:.0f} GB free", profile=str(runs), key=key)


def python_of(site: Site, environment: str) -> str:
    """The interpreter that jobs in this environment use."""
    prefix = site.environments[environment].prefix
    if prefix is None:
        return sys.executable
    return str(Path(os.path.expandvars(prefix)).expanduser().absolute() / "bin" / "python")


def environment_arguments(site: Site, environment: str, script: Path | None = None) -> Sequence[str]:
    """The words after ``sh`` that run ``site-environment.sh`` (or a copy of it) for one environment."""
    file = script or resources.folder("jobtemplates") / "site-environment.sh"
    modules = site.environments[environment].modules
    return [str(file), site.paths.module_init or "", python_of(site, environment), launcher_of(site), *modules]


def launcher_of(site: Site) -> str:
    """The program that starts the ranks; empty for Horovod's own launcher, which comes with the environment."""
    if site.launcher.command is not None:
        return site.launcher.command
    return {"auto": "mpirun", "gloo": ""}.get(site.launcher.kind, site.launcher.kind)


def environment_findings(site: Site, environment: str, said: str, where: str) -> Iterator[Finding]:
    """What ``site-environment.sh`` answered on ``where`` (`the login node`, a compute node's name)."""
    subject = f"environment {environment}"
    key: Location = ("environments", environment)
    lines = [line.removeprefix("dlhpc:").split(" ") for line in said.splitlines() if line.startswith("dlhpc:")]
    modules = {words[1]: words[2] == "yes" for words in lines if words[0] == "module"}
    python = next((words[1:] for words in lines if words[0] == "python"), ["silent"])
    launcher = next((words[1:] for words in lines if words[0] == "launcher"), None)
    file = python_of(site, environment)
    lost = [name for name, loaded in modules.items() if not loaded]
    if lost:
        yield differs(
            f"{subject}: modules",
            f"cannot be loaded on {where}: {', '.join(lost)}",
            "See `module avail`; where `module` itself is not known, name its file in paths.module_init.",
            profile=", ".join(modules),
            key=(*key, "modules"),
        )
    elif modules:
        yield ok(f"{subject}: modules", f"load on {where}: {', '.join(modules)}", key=(*key, "modules"))
    if python[0] != "runs":
        words = {"missing": "is not there", "fails": "does not run"}.get(python[0], "gave no answer")
        yield differs(
            subject,
            f"{file} {words} on {where}",
            "Build it with `dlhpc env build RECIPE --prefix PREFIX`, or correct its prefix.",
            profile=file,
            key=(*key, "prefix"),
        )
    elif absent := [name for name in ("dlhpc", "torch") if name not in python[2:]]:
        yield differs(
            subject,
            f"Python {python[1]} on {where}, but without {' and '.join(absent)}",
            "Build it with `dlhpc env build RECIPE --prefix PREFIX`.",
            profile=file,
            key=(*key, "prefix"),
        )
    else:
        yield ok(subject, f"Python {python[1]} with {', '.join(python[2:])} on {where}", profile=file, key=key)
    if launcher is not None:
        yield from _launcher(site, subject, launcher, where)


def _launcher(site: Site, subject: str, answer: Sequence[str], where: str) -> Iterator[Finding]:
    subject, key, name = f"{subject}: launcher", ("launcher", "kind"), launcher_of(site)
    if answer[0] == "yes":
        yield ok(subject, f"{' '.join(answer[1:])} on {where}", profile=site.launcher.kind, key=key)
    elif site.launcher.kind == "auto":
        yield ok(subject, f"no {name} on {where}: Horovod's own launcher is used", profile="auto", key=key)
    elif where == "the login node":
        yield cannot_tell(subject, f"{name} is not on the login node, where it need not be", key=key)
    else:
        yield differs(
            subject,
            f"{name} is not on PATH on {where}",
            "Correct launcher.kind, name the program in launcher.command, or load its module in the environment.",
            profile=name,
            key=key,
        )
