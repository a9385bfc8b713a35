"""Horovod from its source archive to a cached wheel.

Horovod has no ready wheels, and one that is built belongs to one combination of Python, torch, MPI and CUDA. The
wheel is therefore cached under a name made of these, and a build whose inputs were seen before takes seconds.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dlhpc.envs.commands import StepFailed, stream
from dlhpc.envs.progress import Progress
from dlhpc.envs.recipe import HorovodPart, Patch
from dlhpc.envs.state import key_of, locked
from dlhpc.envs.system import Mpi
from dlhpc.envs.venv import Python
from dlhpc.errors import DlhpcError, StorageError, UserError
from dlhpc.files import fsync_folder, read_json, replace_json, storage_errors

_PERCENT = re.compile(r"^\s*\[\s*(\d+)%\]\s*(.*)")
_MEMORY_PER_COMPILER_BYTES = 3 * 2**30  # seen: 2.4 GiB for one file of Horovod against torch 2.15


@dataclass(frozen=True)
class Target:
    """Everything that a Horovod wheel depends on."""

    horovod: str
    python: str
    machine: str
    libc: str
    torch: str
    cxx_standard: int
    mpi: str | None
    cuda: str | None
    gpu_architectures: tuple[str, ...]
    nccl: str | None
    options: tuple[tuple[str, str], ...]
    patches: tuple[tuple[str, str, str], ...]

    @property
    def name(self) -> str:
        """The wheel's folder in the cache: readable parts, and a hash of all of them."""
        parts = [self.horovod, self.python, f"torch{self.torch}", self.mpi or "nompi", self.cuda or "cpu"]
        return "horovod-" + "-".join([*parts, key_of(asdict(self))[:10]])


def cxx_standard(torch_version: str) -> int:
    """The C++ standard that torch's headers need: 14 up to 2.0, 17 from 2.1, 20 from 2.10 on."""
    major, minor = (int(part) for part in re.findall(r"\d+", torch_version)[:2])
    if (major, minor) >= (2, 10):
        return 20
    return 17 if (major, minor) >= (2, 1) else 14


def target_of(
    part: HorovodPart, python: Python, torch: str, mpi: Mpi | None, *, cuda: str | None = None, nccl: str | None = None
) -> Target:
    """The target for a recipe's Horovod in an environment; ``cuda`` and ``nccl`` are versions where GPUs are asked."""
    return Target(
        horovod=part.version,
        python=python.tag,
        machine=python.machine,
        libc=python.libc,
        torch=torch,
        cxx_standard=cxx_standard(torch),
        mpi=mpi.tag if mpi else None,
        cuda=f"cuda{cuda}" if cuda else None,
        gpu_architectures=part.gpu_architectures if cuda else (),
        nccl=nccl,
        options=tuple(sorted(part.options.items())),
        patches=tuple((patch.file, patch.find, patch.replace) for patch in part.patches),
    )


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/dlhpc``, by default ``~/.cache/dlhpc``; absolute."""
    above = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(above) if above.startswith("/") else Path.home() / ".cache"
    return folder / "dlhpc"


def cached_wheel(folder: Path) -> Path | None:
    """The wheel in its cache folder, if it is there and is what was put there."""
    try:
        noted = read_json(folder / "wheel.json")
        wheel = folder / str(noted["file"])
        return wheel if sha256_of(wheel) == noted["sha256"] else None
    except (StorageError, KeyError, TypeError):
        return None


def sha256_of(path: Path) -> str:
    """The hash of a file's content."""
    with storage_errors(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class WheelBuilder:
    """Builds one target in one environment; the caller has installed the requirements and knows the variables."""

    part: HorovodPart
    target: Target
    python: Python
    variables: dict[str, str]
    """What the build needs beside the recipe's options: where MPI, CUDA and NCCL are."""
    log: Path
    progress: Progress
    check: Callable[[], None]
    """Called before compiling starts; raises if a compiler is missing."""

    def wheel(self) -> Path:
        """The wheel from the cache, built now if it is not there. Two builds of one target at once do not mix."""
        wheels = cache_folder() / "wheels"
        folder = wheels / self.target.name
        if (wheel := cached_wheel(folder)) is not None:
            return wheel

        def waiting() -> None:
            self.progress.detail("waiting")
            self.progress.note("another build of the same Horovod wheel is running; waiting for it to end")

        with locked(wheels / f".{self.target.name}.lock", waiting):
            if (wheel := cached_wheel(folder)) is not None:
                return wheel
            self.check()
            return self._build(folder, wheels / f".{self.target.name}.building")

    def _build(self, folder: Path, work: Path) -> Path:
        """Build in ``work`` and rename into place. Interrupted, ``work`` stays and compiling continues from there."""
        source = work / "source"
        prepared = work / "prepared"
        made = work / "made"
        try:
            with storage_errors(work):
                work.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                if not self._is_prepared(prepared):
                    prepared.unlink(missing_ok=True)
                    shutil.rmtree(source, ignore_errors=True)
                    unpack(self._archive(), source)
                    apply_patches(source, self.part.patches, self.target.cxx_standard)
                    prepared.write_text(self.python.prefix)
            self._compile(source, made)
            wheels = list(made.glob("horovod-*.whl"))
            if len(wheels) != 1:
                raise StepFailed("pip ended well but left no wheel", where=self.log, remedy="See the log.")
            replace_json(
                made / "wheel.json",
                {"file": wheels[0].name, "sha256": sha256_of(wheels[0]), "target": asdict(self.target)},
            )
            with storage_errors(folder):
                _fsync(wheels[0])
                shutil.rmtree(folder, ignore_errors=True)  # only ever one whose wheel is damaged
                made.rename(folder)
                fsync_folder(folder.parent)
        except DlhpcError:
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)
        return folder / wheels[0].name

    def _is_prepared(self, marker: Path) -> bool:
        """Whether the sources are patched, and for this prefix: CMake remembers where it found torch."""
        return marker.exists() and marker.read_text() == self.python.prefix

    def _archive(self) -> Path:
        """The source archive, from the cache or downloaded now; its hash is checked either way."""
        name = f"horovod-{self.part.version}.tar.gz"
        cache = cache_folder() / "sdists"
        path = cache / name
        with storage_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
        if path.exists() and self._is_right(path):
            return path
        self.progress.detail("downloading its source")
        fetched = cache / f".{self.target.name}.download"
        shutil.rmtree(fetched, ignore_errors=True)
        try:
            stream(
                [
                    *(self.python.executable, "-m", "pip", "download", "--no-input", "--no-deps"),
                    *("--no-build-isolation", "--no-binary", ":all:", "--dest", fetched),
                    f"horovod=={self.part.version}",
                ],
                log=self.log,
                env=self._environment(),
                remedy="Check the network connection or proxy, then repeat the command.",
                on_tick=lambda: self.progress.detail("downloading its source"),
            )
            archive = next(iter(fetched.glob("horovod-*.tar.gz")), None)
            if archive is None or not self._is_right(archive):
                raise UserError(
                    f"the downloaded source of Horovod {self.part.version} is not what the recipe's sha256 says",
                    where=archive,
                    remedy="Check where pip downloads from; with another version, the recipe needs another sha256.",
                )
            with storage_errors(path):
                _fsync(archive)
                archive.replace(path)
        finally:
            shutil.rmtree(fetched, ignore_errors=True)
        return path

    def _is_right(self, archive: Path) -> bool:
        return tarfile.is_tarfile(archive) and self.part.sha256 in (None, sha256_of(archive))

    def _compile(self, source: Path, made: Path) -> None:
        now = ["preparing", ""]
        fraction: list[float | None] = [None]

        def hear(line: str) -> None:
            if found := _PERCENT.match(line):
                fraction[0] = int(found[1]) / 100
                now[0] = found[2].rsplit("/", 1)[-1]

        stream(
            [
                *(self.python.executable, "-m", "pip", "wheel", "--verbose", "--no-input", "--no-deps"),
                *("--no-build-isolation", "--wheel-dir", made, source),
            ],
            log=self.log,
            env=self._environment(),
            remedy="The log shows what the compiler said. A patch in the recipe may be needed for this torch.",
            on_line=hear,
            on_tick=lambda: self.progress.detail(now[0], fraction[0]),
        )

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ}
        for name in ("MAKELEVEL", "MFLAGS", "MAKEFLAGS", "MAKEOVERRIDES"):  # set-up may itself run under make
            environment.pop(name, None)
        environment["PATH"] = f"{self.python.executable.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        environment["MAKEFLAGS"] = f"-j{compiler_jobs(os.environ)}"
        environment["CMAKE_POLICY_VERSION_MINIMUM"] = "3.5"  # CMake 4 would refuse the bundled Gloo
        environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        return {**environment, **self.part.options, **self.variables}


def compiler_jobs(environment: os._Environ[str] | dict[str, str]) -> int:
    """How many compilers may run at once: the user's own ``MAKEFLAGS=-jN``, else by cores and memory."""
    if "MAKELEVEL" not in environment and (wanted := re.search(r"-j\s*(\d+)", environment.get("MAKEFLAGS", ""))):
        return int(wanted[1])
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory_bytes // _MEMORY_PER_COMPILER_BYTES))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the one top folder of a source archive as ``folder``; members that would leave it are refused."""
    aside = folder.with_name(folder.name + ".unpacking")
    shutil.rmtree(aside, ignore_errors=True)
    with storage_errors(folder), tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.isfile() or member.isdir()]
        for member in members:
            if member.name.startswith("/") or ".." in Path(member.name).parts:
                raise UserError(f"the archive holds an unsafe path: {member.name}", where=archive)
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        tar.extractall(aside, members=members)
        (top,) = aside.iterdir()
        top.rename(folder)
        aside.rmdir()


def apply_patches(source: Path, patches: tuple[Patch, ...], standard: int) -> None:
    """Apply a recipe's patches to an unpacked source tree; one that does not fit is a :class:`UserError`."""
    for patch in patches:
        path = source / patch.file
        if not path.is_file():
            raise UserError(
                f"the recipe patches `{patch.file}`, but this Horovod has no such file",
                remedy="Adapt the recipe's patches to this version of Horovod.",
            )
        text = path.read_text(encoding="utf-8")
        if patch.find not in text:
            raise UserError(
                f"the recipe's patch of `{patch.file}` does not fit: it does not hold `{patch.find}`",
                remedy="Adapt the recipe's patches to this version of Horovod.",
            )
        path.write_text(
            text.replace(patch.find, patch.replace.replace("{cxx_standard}", str(standard))), encoding="utf-8"
        )


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
