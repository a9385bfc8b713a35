"""What the end-to-end tests share: real photographs, and the real command line in a world of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from dlhpc.runs.curves import read_points
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.find import find_run

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 400 ORL face photographs, one folder per person."""
    folder = tmp_path_factory.mktemp("orl") / "faces"
    subprocess.run([sys.executable, ROOT / "docs/examples/faces/photos.py", folder], check=True, timeout=300)
    return folder


@dataclass
class World:
    """A folder with photographs of eight people, a spec, its own runs and its own local scheduler (or a ``site``)."""

    folder: Path
    environment: dict[str, str]
    site: Path | None = None

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def spec(self) -> Path:
        return self.folder / "people.yaml"

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start ``dlhpc WORDS`` and do not wait."""
        return subprocess.Popen(
            [sys.executable, "-m", "dlhpc", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def dlhpc(self, *words: str, code: int | None = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run ``dlhpc WORDS``; its exit code must be ``code`` (None: any), and it must never show a trace."""
        process = self.start(*words)
        out, err = process.communicate(timeout=timeout)
        assert "Traceback" not in err + out, err + out
        assert code is None or process.returncode == code, f"{words} gave {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def submit(self, *settings: str, wait: bool = True) -> RunDirectory:
        """Submit the spec with ``key=value`` settings; with ``wait`` it must finish."""
        options = [word for setting in settings for word in ("--set", setting)]
        if self.site is not None:
            options += ["--site", str(self.site)]
        said = self.dlhpc("submit", "people.yaml", "--json", *(["--wait"] if wait else []), *options)
        return RunDirectory(Path(json.loads(said.stdout)["path"]))

    def state(self, run: RunDirectory) -> dict[str, Any]:
        (found,) = json.loads(self.dlhpc("status", run.name, "--json").stdout)
        assert isinstance(found, dict)
        return found

    def until(self, run: RunDirectory, *states: str, epoch: int = 0, timeout: float = 200) -> dict[str, Any]:
        """Wait until the run is in one of these states and has finished ``epoch`` epochs."""
        end = time.monotonic() + timeout
        while True:
            now = self.state(run)
            if now["state"] in states and now["epoch"] >= epoch:
                return now
            late = time.monotonic() > end or now["state"] in ("finished", "failed", "cancelled")
            assert not late, f"{now}\n{self.log(run)}"
            time.sleep(0.2)

    def only_run(self) -> RunDirectory:
        return find_run("last", self.runs)

    @staticmethod
    def log(run: RunDirectory) -> str:
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in sorted(run.logs.glob("*.out")))

    @staticmethod
    def processes(run: RunDirectory) -> list[psutil.Process]:
        """Every living process of the run's job: ranks, launcher, script."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(run.path) in word for word in words):
                found.append(process)
        return found


def curves(run: RunDirectory) -> list[tuple[float, int, str, str, float]]:
    """Every point of training and validation; times, energy and what else belongs to the machine is left out."""
    points, damaged = read_points(run.curves)
    assert damaged == 0
    learnt = [point for point in points if point.split != "system"]
    return sorted((point.epoch, point.step, point.split, point.name, point.value) for point in learnt)


def make_world(folder: Path, photos: Path) -> World:
    """Lay out the folder; its training takes two ranks."""
    for person in range(1, 9):
        shutil.copytree(photos / f"s{person}", folder / "people" / f"s{person}")
    (folder / "people.yaml").write_text(
        "name: people\n"
        "data:\n  folder: people\n  split: {train: 0.6, val: 0.2, unseen: 0.2}\n  width: 48\n  height: 48\n"
        "network: {name: smallnet}\n"
        "augment: {flip_horizontal: true, shift_pixels: 3}\n"
        "optimizer: {name: adam}\n"
        "learning_rate: {base: 0.003, policy: cosine}\n"
        # Sixty epochs are some ten seconds on a quiet machine: time enough to meet a run in the middle of its training.
        "training: {epochs: 60, batch_size: 8}\n"
        "job: {ranks_per_node: 2, cores_per_rank: 1, walltime: 10min}\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DLHPC_", "OMPI_"))}
    environment |= {
        "DLHPC_RUNS": str(folder / "runs"),
        "DLHPC_LOCAL_SPOOL": str(folder / "spool"),
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
    }
    return World(folder, environment)


@pytest.fixture
def world(tmp_path: Path, photos: Path) -> World:
    return make_world(tmp_path, photos)
