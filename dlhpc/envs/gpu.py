"""Where the CUDA toolkit and NCCL lie, in the shape in which Horovod's build looks for them."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dlhpc.envs.venv import Python, installed
from dlhpc.errors import CommandError
from dlhpc.files import storage_errors
from dlhpc.process import demand


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit to compile with, and the NCCL that torch brought along."""

    home: Path
    version: str
    nccl_package: Path
    nccl_version: str


def find_cuda(python: Python) -> Cuda:
    """The toolkit of CUDA_HOME, /usr/local/cuda or the nvcc on PATH; :class:`CommandError` if a part is missing."""
    nvcc = shutil.which("nvcc")
    given = os.environ.get("CUDA_HOME")
    candidates = (
        [Path(given)] if given else [Path("/usr/local/cuda"), *([Path(nvcc).resolve().parent.parent] if nvcc else [])]
    )
    home = next((one for one in candidates if (one / "bin/nvcc").exists() and (one / "include/cuda.h").exists()), None)
    if home is None:
        raise CommandError(
            "the recipe asks for NCCL, but there is no CUDA toolkit here (nvcc and cuda.h)",
            remedy="Load your centre's CUDA module, or set CUDA_HOME to the toolkit's folder, then repeat the command.",
        )
    said = demand([home / "bin/nvcc", "--version"], timeout=60).out
    release = re.search(r"release (\S+?),", said)
    packages = installed(python.site_packages)
    nccl = next((version for name, version in packages.items() if name.startswith("nvidia-nccl")), None)
    package = python.site_packages / "nvidia" / "nccl"
    if nccl is None or not (package / "include/nccl.h").exists():
        raise CommandError(
            "the recipe asks for NCCL, but this torch brought none",
            where=package,
            remedy="Name a torch that is built with CUDA in the recipe.",
        )
    return Cuda(home, release[1] if release else "unknown", package, nccl)


def nccl_home(cuda: Cuda, folder: Path) -> Path:
    """Links to NCCL in the layout that CMake expects: the package calls its library only ``libnccl.so.2``."""
    links = {"include": cuda.nccl_package / "include", "lib/libnccl.so": cuda.nccl_package / "lib/libnccl.so.2"}
    with storage_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        for name, target in links.items():
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    return folder


def build_variables(cuda: Cuda, architectures: tuple[str, ...], links: Path) -> dict[str, str]:
    """What Horovod's build is told: which toolkit, which NCCL, which architectures."""
    variables = {
        "CUDA_HOME": str(cuda.home),
        "HOROVOD_CUDA_HOME": str(cuda.home),
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_NCCL_HOME": str(nccl_home(cuda, links)),
    }
    if architectures:
        variables["HOROVOD_BUILD_CUDA_CC_LIST"] = ",".join(architectures)
    return variables
