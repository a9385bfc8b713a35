"""What staff write to describe a software environment, and how a recipe is found and loaded."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from dlhpc.envs.state import key_of
from dlhpc.envs.venv import normal_name
from dlhpc.errors import UserError
from dlhpc.sites.load import site_folders
from dlhpc.spec.base import Model
from dlhpc.spec.load import read_document, validate

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[\w\s,.-]+\])?\s*(?:[<>=!~]=?.*|@.*)?")


def _requirement(text: str) -> str:
    if not _REQUIREMENT.fullmatch(text.strip()):
        raise ValueError(f"`{text}` is no requirement of pip; write for example torch==2.15.0")
    return text.strip()


def requirement_name(text: str) -> str:
    """The normalised name of the distribution that a requirement asks for."""
    found = _REQUIREMENT.fullmatch(text)
    return normal_name(found[1] if found else text)


class _Requirements(Model):
    @field_validator("requirements", check_fields=False)
    @classmethod
    def _all_requirements(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_requirement(value) for value in values)


_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]*$")]


class SystemPart(Model):
    """Something the machine itself must have before the environment can be built."""

    what: str
    """Its name for people, as in `building needs a C++ compiler`"""
    command: str | None = None
    """The program that shows it is there"""
    header: str | None = None
    """The Python header that shows it is there, such as Python.h"""
    apt: tuple[_Package, ...] = ()
    """Debian packages that bring it"""
    pip: str | None = None
    """A requirement of pip that brings it to those who are not root"""

    @model_validator(mode="after")
    def _one_sign(self) -> SystemPart:
        if (self.command is None) == (self.header is None):
            raise ValueError("give either `command` or `header`, so that it can be looked for")
        return self


class MpiPart(_Requirements):
    """Whether Horovod is built with MPI, and what brings one."""

    use: Literal["auto", "required", "never"] = "auto"
    """auto takes the machine's MPI, or installs it as root, or goes on without"""
    apt: tuple[_Package, ...] = ()
    """Debian packages that bring an MPI and its compiler wrappers"""
    requirements: tuple[str, ...] = ()
    """Installed with pip when there is an MPI, such as mpi4py"""


class Patch(Model):
    """One replacement in Horovod's sources; text that is not found is an error, so that no patch is lost silently."""

    file: str
    """Path inside the source tree"""
    find: str = Field(min_length=1)
    """The text to replace, everywhere in the file"""
    replace: str
    """What stands there instead; {cxx_standard} becomes the C++ standard that torch needs"""

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("must be a path inside Horovod's source tree")
        return value


class HorovodPart(_Requirements):
    """Which Horovod is built, and how."""

    version: str = Field(pattern=r"^\d+(\.\d+)+$")
    """The release on PyPI"""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """What its source archive must hash to"""
    gpu: Literal["none", "nccl"] = "none"
    """nccl builds the exchange between GPUs; it needs the CUDA toolkit (nvcc) where it is built"""
    gpu_architectures: tuple[Annotated[str, Field(pattern=r"^\d+$")], ...] = ()
    """CUDA compute capabilities to compile for, such as 80 and 90; all that Horovod knows if empty"""
    requirements: tuple[str, ...] = ()
    """What must be installed before it can be compiled"""
    patches: tuple[Patch, ...] = ()
    """Changes to its sources"""
    options: dict[_Variable, str] = {}
    """Further variables of its build, HOROVOD_…"""


class Recipe(_Requirements):
    """A software environment as staff describe it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """How specs and sites name it"""
    description: str = ""
    """One line for `dlhpc env list`"""
    python: str = Field(default="3.11", pattern=r"^3\.\d+$")
    """The oldest Python that will do"""
    requirements: tuple[str, ...]
    """What pip installs; torch must be among it with an exact version"""
    system: tuple[SystemPart, ...] = ()
    """What the machine must have"""
    extras: dict[str, tuple[SystemPart, ...]] = {}
    """What the machine should have for a group of dlhpc's own requirements (`--extra`); without it, it is left out"""
    mpi: MpiPart = MpiPart()
    """With or without MPI"""
    horovod: HorovodPart | None = None
    """Left out, jobs use torch's own collectives"""
    environment: dict[_Variable, str] = {}
    """Variables that every job in this environment gets"""

    @field_validator("requirements")
    @classmethod
    def _torch_is_exact(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if not any(requirement_name(value) == "torch" and "==" in value for value in values):
            raise ValueError("torch is missing, or has no exact version such as torch==2.15.0")
        return values

    def hash(self) -> str:
        """A short hash of everything the recipe says."""
        return key_of(self.model_dump(mode="json"))


def recipe_files() -> dict[str, Path]:
    """Every recipe that can be named, name → file; the centre's own (DLHPC_SITE_PATH) lie over the shipped ones."""
    found: dict[str, Path] = {}
    for folder in reversed(site_folders()):
        for file in sorted((folder / "envs").glob("*.yaml")):
            found[file.stem] = file
    return found


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The checked recipe of that name or file; :class:`UserError` with file and line for every fault in it."""
    named = str(name_or_path)
    if os.sep in named or named.endswith((".yaml", ".yml")):
        path = Path(named).expanduser()
    else:
        files = recipe_files()
        if named not in files:
            near = difflib.get_close_matches(named, files, n=1)
            remedy = f"Did you mean `{near[0]}`? " if near else ""
            raise UserError(
                f"there is no recipe `{named}`", remedy=f"{remedy}Known: {', '.join(sorted(files))}; or name a file."
            )
        path = files[named]
    return validate(read_document(path), Recipe)
