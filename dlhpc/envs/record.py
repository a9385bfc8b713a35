"""What is in a built environment: ``PREFIX/.dlhpc/environment.json``, written last, when everything was verified."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dlhpc.envs.state import FOLDER
from dlhpc.errors import StorageError
from dlhpc.files import read_json, replace_json

RECORD = Path(FOLDER) / "environment.json"


@dataclass(frozen=True)
class MpiRecord:
    """The MPI that Horovod was built with."""

    implementation: str
    """``openmpi``, ``mpich`` or ``intelmpi``."""
    version: str
    mpirun: str
    """Absolute path of the launcher."""


@dataclass(frozen=True)
class EnvironmentRecord:
    """A verified environment. ``horovod`` is None where it has only torch's own collectives; times are UTC."""

    name: str
    recipe_hash: str
    python: str
    torch: str
    torchvision: str | None
    horovod: str | None
    mpi: MpiRecord | None
    gloo: bool
    built_at: str
    packages: dict[str, str] = field(default_factory=dict)
    """Every installed distribution, normalised name → version."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that jobs must set: the recipe's, and what verification found this machine to need."""

    def summary(self) -> str:
        """One line for people."""
        parts = [f"Python {self.python}", f"torch {self.torch}"]
        if self.horovod:
            mpi = f"{self.mpi.implementation} {self.mpi.version}" if self.mpi else ""
            ways = " and ".join(way for way in (mpi, "Gloo" if self.gloo else "") if way)
            parts.append(f"Horovod {self.horovod} with {ways}")
        return ", ".join(parts)


def read_record(prefix: Path) -> EnvironmentRecord | None:
    """The record of the environment at ``prefix``; None if none was finished there.

    Raises :class:`StorageError` for a damaged record.
    """
    path = prefix / RECORD
    if not path.exists():
        return None
    content = read_json(path)
    try:
        known = {one.name for one in fields(EnvironmentRecord)}
        values: dict[str, Any] = {key: value for key, value in content.items() if key in known}
        if values.get("mpi") is not None:
            names = {one.name for one in fields(MpiRecord)}
            values["mpi"] = MpiRecord(**{key: value for key, value in values["mpi"].items() if key in names})
        return EnvironmentRecord(**values)
    except (AttributeError, TypeError) as error:
        raise StorageError(
            "is not an environment record of dlhpc", where=path, remedy="Repeat `dlhpc env build` for this prefix."
        ) from error


def write_record(prefix: Path, record: EnvironmentRecord) -> None:
    """Replace the record at ``prefix`` atomically."""
    replace_json(prefix / RECORD, asdict(record))
