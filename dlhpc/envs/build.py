"""From a recipe to a built, verified and recorded environment, step by step.

Every step is stamped with a hash of what it depends on: a finished step is skipped, an interrupted one is done
again (compiling continues where it was), and the record is written last, when two ranks have really run.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dlhpc.envs import gpu, horovod
from dlhpc.envs.commands import stream
from dlhpc.envs.progress import Progress, pip_news
from dlhpc.envs.recipe import HorovodPart, Recipe, SystemPart, requirement_name
from dlhpc.envs.record import EnvironmentRecord, MpiRecord, read_record, write_record
from dlhpc.envs.state import FOLDER, Stamps, key_of, locked
from dlhpc.envs.system import Mpi, apt_install, find_mpi, may_install, missing_error
from dlhpc.envs.venv import check_place, ensure_venv, installed, remove_cut_installations
from dlhpc.envs.verify import verify
from dlhpc.errors import CommandError, StorageError, UserError
from dlhpc.files import storage_errors

_OWN_EXTRAS = ("train", "report", "search")
_REPEAT = "See the log; then repeat the command, it continues."


def build(recipe: Recipe, prefix: Path, progress: Progress, extras: Sequence[str] = ()) -> EnvironmentRecord:
    """Build ``recipe`` at ``prefix`` (made if it is not there) and give its record.

    ``extras`` are further groups of dlhpc's own requirements to install, such as ``test``. What is done already is
    skipped. Raises :class:`DlhpcError`; whatever happens, repeating the call continues.
    """
    prefix = prefix.absolute()
    check_place(prefix)

    def waiting() -> None:
        progress.note(f"another build in {prefix} is running; waiting for it to end")

    try:
        with locked(prefix / FOLDER / "lock", waiting):
            return _Build(recipe, prefix, progress).run(extras)
    except KeyboardInterrupt:
        progress.close()
        progress.note("What is done so far is kept: repeat the command to continue.")
        raise
    finally:
        progress.close()


@dataclass
class _Build:
    """One build under the prefix's lock; the steps share what they found out."""

    recipe: Recipe
    prefix: Path
    progress: Progress
    keys: list[str] = field(default_factory=list)
    """The keys of the steps that verification depends on."""
    worked: bool = False

    def __post_init__(self) -> None:
        self.log = self.prefix / FOLDER / "build.log"
        self.stamps = Stamps(self.prefix)

    def run(self, extras: Sequence[str]) -> EnvironmentRecord:
        """All steps in order."""
        python = ensure_venv(self.prefix, log=self.log, progress=self.progress)
        if _version(python.version) < _version(self.recipe.python):
            raise UserError(
                f"recipe `{self.recipe.name}` needs Python {self.recipe.python} or newer, not {python.version}",
                where=self.prefix,
                remedy="Run dlhpc with a newer Python, or choose another folder.",
            )
        self.python = python
        mpi = self._system()
        self._requirements()
        self._dlhpc()
        for extra in extras:
            self._system_of(extra)
            self._pip(f"extra-{extra}", f"what dlhpc's {extra} part needs", requirements_of_extra(extra))
        if mpi is not None and self.recipe.mpi.requirements:
            self.keys.append(self._pip("mpi", "Python packages for MPI", self.recipe.mpi.requirements))
        if self.recipe.horovod is not None:
            self._horovod(self.recipe.horovod, mpi)
        found = self._verify(mpi)
        return self._record(mpi, found)

    # the steps ------------------------------------------------------------------------------------------------------

    def _system(self) -> Mpi | None:
        """Compilers and MPI, through apt where we may."""
        wish = self.recipe.mpi
        mpi = find_mpi() if wish.use != "never" else None
        wants_mpi = wish.use != "never" and mpi is None
        key = key_of([part.model_dump(mode="json") for part in self.recipe.system], wish.model_dump(mode="json"))
        stamp = key_of(key, may_install())  # what was missing for a user may be installed by root
        before = self.stamps.found("system", stamp)
        if before is not None and before.get("mpi") == (mpi.tag if mpi else None):
            self.keys.append(key)
            return mpi
        missing = [part for part in self.recipe.system if not self._has(part)]
        packages = [package for part in missing for package in part.apt]
        packages += wish.apt if wants_mpi else ()
        if packages and may_install():
            self._begin("system", f"system packages: {' '.join(packages)}")
            apt_install(packages, log=self.log, progress=self.progress)
            self.progress.done()
            mpi = find_mpi() if wish.use != "never" else None
            missing = [part for part in self.recipe.system if not self._has(part)]
        self._cannot_compile(part for part in missing if part.pip is None)
        self._pip("system-pip", "build tools", [part.pip for part in missing if part.pip is not None])
        if wish.use == "required" and mpi is None:
            raise missing_error(["an MPI (mpirun and mpicxx)"], wish.apt)
        if wish.use == "auto" and mpi is None:
            self.progress.note(
                "There is no MPI here, and installing one takes root and apt: going on with Horovod's Gloo."
            )
        self.stamps.put("system", stamp, mpi=mpi.tag if mpi else None)
        self.keys.append(key)
        return mpi

    def _system_of(self, extra: str) -> None:
        """What an extra needs from the machine: root gets it, others are told what they do without."""
        missing = [part for part in self.recipe.extras.get(extra, ()) if not self._has(part)]
        packages = dict.fromkeys(package for part in missing for package in part.apt)
        if packages and may_install():
            self._begin(f"system-{extra}", f"system packages for {extra}: {' '.join(packages)}")
            apt_install(packages, log=self.log, progress=self.progress)
            self.progress.done()
            missing = [part for part in missing if not self._has(part)]
        self._pip(f"system-pip-{extra}", f"tools for {extra}", [part.pip for part in missing if part.pip is not None])
        without = [part for part in missing if part.pip is None]
        if without:
            names = ", ".join(part.what for part in without)
            wanted = " ".join(dict.fromkeys(package for part in without for package in part.apt))
            self.progress.note(f"Going on without {names}; as root on Debian: apt-get install {wanted}")

    def _requirements(self) -> None:
        """Everything from pip in one go, so that pip sees all wishes together."""
        wanted = [*self.recipe.requirements]
        if self.recipe.horovod is not None:
            wanted += self.recipe.horovod.requirements
        for extra in _OWN_EXTRAS:
            wanted += requirements_of_extra(extra)
        self.keys.append(self._pip("requirements", "Python packages", wanted))

    def _dlhpc(self) -> None:
        """dlhpc itself, so that jobs can run in the environment; a checkout's own .venv has it already."""
        if Path(sys.prefix).resolve() == Path(self.python.prefix).resolve():
            return
        source = _checkout()
        if source is None:
            wanted, inputs = f"dlhpc=={importlib.metadata.version('dlhpc')}", ""
        else:
            wanted, inputs = str(source), _tree_hash(source)
        self._pip(
            "dlhpc", "dlhpc", [wanted], inputs=inputs, options=["--force-reinstall", "--no-deps"], check=["dlhpc"]
        )
        self._pip("dlhpc-needs", "what dlhpc needs", _requirements_where(None))

    def _horovod(self, part: HorovodPart, mpi: Mpi | None) -> None:
        """The wheel, from the cache or built now, and its installation."""
        packages = installed(self.python.site_packages)
        cuda = gpu.find_cuda(self.python) if part.gpu == "nccl" else None
        target = horovod.target_of(
            part,
            self.python,
            packages["torch"],
            mpi,
            cuda=cuda.version if cuda else None,
            nccl=cuda.nccl_version if cuda else None,
        )
        key = key_of(target.name)
        if self.stamps.found("horovod", key) is not None and packages.get("horovod") == part.version:
            self.keys.append(key)
            return
        with_mpi = {"HOROVOD_WITH_MPI": "1"} if mpi else {"HOROVOD_WITHOUT_MPI": "1"}
        variables = {"HOROVOD_WITH_GLOO": "1", **with_mpi}
        if cuda is not None:
            variables |= gpu.build_variables(cuda, part.gpu_architectures, self.prefix / FOLDER / "nccl")
        ready = horovod.cached_wheel(horovod.cache_folder() / "wheels" / target.name) is not None
        ways = "MPI and Gloo" if mpi else "Gloo"
        how = "from the cache" if ready else "compiled, 4 to 10 minutes"
        self._begin("horovod", f"Horovod with {ways} ({how})")
        builder = horovod.WheelBuilder(
            part,
            target,
            self.python,
            variables,
            self.log,
            self.progress,
            check=lambda: self._cannot_compile(one for one in self.recipe.system if not self._has(one)),
        )
        wheel = builder.wheel()
        self._run_pip("--no-deps", "--no-index", "--force-reinstall", wheel)
        self.stamps.put("horovod", key, wheel=target.name)
        self.keys.append(key)
        self.progress.done()

    def _verify(self, mpi: Mpi | None) -> dict[str, str]:
        """Two ranks run, unless they did with exactly these steps; gives the variables that this machine needs."""
        key = key_of(self.keys, self.recipe.environment, mpi.mpirun if mpi else None)
        if (before := self.stamps.found("verify", key)) is not None:
            return {str(name): str(value) for name, value in before.get("environment", {}).items()}
        self._begin("verify", "check: import, collectives, torchvision")
        if self.recipe.horovod is not None:
            needs = verify(self.python, mpi, dict(self.recipe.environment), log=self.log, progress=self.progress)
        else:
            needs = {}
            stream([self.python.executable, "-c", "import torch"], log=self.log, remedy=_REPEAT)
        self.stamps.put("verify", key, environment=needs)
        self.progress.done()
        return needs

    def _record(self, mpi: Mpi | None, found: dict[str, str]) -> EnvironmentRecord:
        packages = installed(self.python.site_packages)
        part = self.recipe.horovod
        record = EnvironmentRecord(
            name=self.recipe.name,
            recipe_hash=self.recipe.hash(),
            python=self.python.version,
            torch=packages["torch"],
            torchvision=packages.get("torchvision"),
            horovod=packages.get("horovod") if part is not None else None,
            mpi=MpiRecord(mpi.implementation, mpi.version, mpi.mpirun) if mpi else None,
            gloo=part is not None,
            built_at=datetime.now(UTC).isoformat(timespec="seconds"),
            packages=packages,
            environment={**self.recipe.environment, **found},
        )
        try:
            before = read_record(self.prefix)
        except StorageError:
            before = None  # damaged: written anew
        if before is not None and not self.worked and before.recipe_hash == record.recipe_hash:
            return before
        write_record(self.prefix, record)
        return record

    # their tools ----------------------------------------------------------------------------------------------------

    def _begin(self, step: str, title: str) -> None:
        self.worked = True
        self.stamps.drop(step)
        self.progress.step(title)

    def _pip(
        self,
        step: str,
        title: str,
        wanted: Iterable[str],
        *,
        inputs: str = "",
        options: Sequence[str] = (),
        check: Sequence[str] | None = None,
    ) -> str:
        """Install requirements, unless the same ones were and are still there in the same versions; gives their key."""
        requirements = sorted(set(wanted))
        key = key_of(requirements, inputs, self.python.version)
        names = check if check is not None else [requirement_name(one) for one in requirements]
        there = _chosen(installed(self.python.site_packages), names)
        before = self.stamps.found(step, key)
        if requirements and (before is None or before.get("versions") != there):
            self._begin(step, title)
            remove_cut_installations(self.python.site_packages)
            self._run_pip(*options, *requirements)
            there = _chosen(installed(self.python.site_packages), names)
            self.stamps.put(step, key, versions=there)
            self.progress.done()
        return key_of(key, there)

    def _run_pip(self, *arguments: str | Path) -> None:
        doing = ["asking pip"]

        def hear(line: str) -> None:
            doing[0] = pip_news(line) or doing[0]

        stream(
            [self.python.executable, "-m", "pip", "install", "--no-input", "--progress-bar", "off", *arguments],
            log=self.log,
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"},
            remedy=_REPEAT,
            on_line=hear,
            on_tick=lambda: self.progress.detail(doing[0]),
        )

    def _has(self, part: SystemPart) -> bool:
        if part.header is not None:
            return self.python.has_header(part.header)
        # daemons are in /usr/sbin, which is not on every user's PATH
        folders = os.pathsep.join(
            [str(self.python.executable.parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
        )
        return part.command is not None and shutil.which(part.command, path=folders) is not None

    def _cannot_compile(self, missing: Iterable[SystemPart]) -> None:
        parts = list(missing)
        if parts:
            raise missing_error([part.what for part in parts], [name for part in parts for name in part.apt])


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _chosen(packages: dict[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: packages[name] for name in sorted(set(names)) if name in packages}


def requirements_of_extra(extra: str) -> list[str]:
    """What one of dlhpc's extras asks for, from the metadata of the dlhpc that runs."""
    return _requirements_where(extra)


def _requirements_where(extra: str | None) -> list[str]:
    try:
        lines = importlib.metadata.requires("dlhpc") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise CommandError(
            "dlhpc runs here without being installed", remedy="Install it first: pip install -e . in its checkout."
        ) from error
    found = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        named = re.search(r"extra\s*==\s*[\"']([\w-]+)[\"']", marker)
        if (named[1] if named else None) == extra:
            found.append(requirement.strip())
    if not found:
        raise UserError(f"dlhpc has no extra `{extra}`", remedy="See [options.extras_require] in setup.cfg.")
    return found


def _checkout() -> Path | None:
    """The source tree that dlhpc runs from, or None if it was installed from a wheel."""
    above = Path(__file__).resolve().parents[2]
    return above if (above / "setup.py").is_file() and (above / "setup.cfg").is_file() else None


def _tree_hash(source: Path) -> str:
    """A hash of everything that a wheel of this checkout would hold."""
    parts: list[Any] = []
    with storage_errors(source, "read"):
        for folder in ("dlhpc", "site", "jobtemplates"):
            files = [path for path in sorted((source / folder).rglob("*")) if path.is_file()]
            parts += [
                [str(path.relative_to(source)), horovod.sha256_of(path)]
                for path in files
                if "__pycache__" not in path.parts
            ]
        parts.append([horovod.sha256_of(source / name) for name in ("setup.py", "setup.cfg", "pyproject.toml")])
    return key_of(parts)
