"""Batch systems: scripts against other tools, sweeps and their status on a real Slurm, and very large sweeps."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dlhpc.data.catalog import Catalog, Sample
from dlhpc.jobs import sweep_follow
from dlhpc.jobs.follow import statuses
from dlhpc.jobs.plan import decide
from dlhpc.jobs.render import render
from dlhpc.jobs.sweep import make_sweep, read_sweep
from dlhpc.jobs.sweep_write import create_sweep
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import Plan
from dlhpc.runs.state import RunState
from dlhpc.runs.sweep import SweepDirectory
from dlhpc.sites.models import Launcher, Node, Queue, Site
from dlhpc.spec.models import Spec
from tests.bench.measure import Figure, best_of, figure, shown
from tests.bench.script_peers import Maker, makers
from tests.slurm_cluster import SlurmCluster, missing_programs

SCRIPTS = 1000
MEMBERS = 1000
ONE_BY_ONE = 100
"""So many single submissions are measured, and multiplied."""
LARGE = 10_000
MEMORY_BAR = 500 * 2**20


# --- Scripts --------------------------------------------------------------------------------------------------------


def _plan(folder: Path, scheduler: str) -> Plan:
    """Two nodes, four ranks with a GPU each on both."""
    picture = folder / "a.pgm"
    picture.touch()
    catalog = Catalog(["a", "b"], {"train": [Sample(str(picture), 0)] * 6400, "val": [], "unseen": []})
    site = Site(
        name="cluster",
        scheduler=scheduler,
        nodes={"gpu": Node(cores=36, gpus=4, memory="192G")},
        queues=[Queue(name="gpu", node="gpu", max_walltime="24:00:00")],
        launcher=Launcher(kind="srun" if scheduler == "slurm" else "mpirun"),
    )
    job = {"nodes": 2, "ranks_per_node": 4, "gpus_per_rank": 1, "cores_per_rank": 8, "memory": "64G"}
    asked = {**job, "walltime": "2:00:00", "account": "materials", "queue": "gpu"}
    return decide(
        Spec.model_validate({"name": "faces", "data": {"folder": str(folder)}, "job": asked}), site, catalog, folder
    )


def scripts() -> list[Figure]:
    """1,000 scripts of the same job, each for a run of its own, against every other tool that is installed."""
    made = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for system, tools in makers(folder).items():
            plan = _plan(folder, system)
            runs = [RunDirectory(folder / f"faces-20261124-120000-{number:04x}") for number in range(SCRIPTS)]
            ready: dict[str, Maker] = {"ours": lambda number, plan=plan, runs=runs: render(plan, runs[number])}  # type: ignore[misc]
            for name, (make, _) in tools.items():
                try:
                    ready[name] = make()
                except ImportError as error:
                    print(f"left out: {name} ({error})", flush=True)
            lines = {name: len(maker(0).splitlines()) for name, maker in ready.items()}
            times = best_of({name: _all(maker) for name, maker in ready.items()}, 7)
            for name in ready:
                if name != "ours":
                    gpus = "" if tools[name][1] else "; theirs lacks the GPUs"
                    both = {"ours": times["ours"], name: times[name]}
                    note = f"{lines['ours']} lines, theirs {lines[name]}{gpus}"
                    made.append(figure(f"one {_NAMES[system]} script of {SCRIPTS:,}", both, note, per=SCRIPTS))
    return made


_NAMES = {"slurm": "Slurm", "pbs": "PBS"}


def _all(maker: Maker) -> Callable[[], object]:
    return lambda: [maker(number) for number in range(SCRIPTS)]


# --- A real Slurm ---------------------------------------------------------------------------------------------------


def on_slurm() -> list[Figure]:
    """Submitting a sweep with 1,000 members, and asking where they stand."""
    if os.geteuid() != 0 or missing_programs():
        print("left out: sweeps on Slurm (only root can start one, with Debian's slurm-wlm)", flush=True)
        return []
    with tempfile.TemporaryDirectory(prefix="dlhpc-bench-") as scratch:
        folder = Path(scratch)
        settings = {"MaxArraySize": "2001", "MaxJobCount": "20000"}
        with SlurmCluster(folder / "slurm", settings=settings) as cluster, _variables(cluster.environment):
            sweep = _written_sweep(folder, MEMBERS, "scheduler: slurm", "down")
            return [*_submission(cluster, sweep, folder), *_status(cluster, sweep)]


def _submission(cluster: SlurmCluster, sweep: SweepDirectory, folder: Path) -> list[Figure]:
    single = folder / "single.sh"
    single.write_text("#!/bin/sh\n#SBATCH --partition=down --time=10\ntrue\n")
    environment = {**os.environ, **cluster.environment}
    began = time.perf_counter()
    for _ in range(ONE_BY_ONE):
        subprocess.run(["sbatch", "--parsable", single], check=True, capture_output=True, env=environment)
    one_by_one = (time.perf_counter() - began) / ONE_BY_ONE * MEMBERS
    cluster.ask(["scancel", "--quiet", "--me"])
    with _calls() as calls:
        began = time.perf_counter()
        sweep_follow.start(sweep)
        ours = time.perf_counter() - began
    times = {"ours": ours, f"{MEMBERS:,} times sbatch": one_by_one}
    note = f"calls: {', '.join(calls)}; the peer is measured on {ONE_BY_ONE}; bar: 50"
    return [figure(f"submit a sweep of {MEMBERS:,} to Slurm", times, note)]


def _status(cluster: SlurmCluster, sweep: SweepDirectory) -> list[Figure]:
    runs = sweep.found_members()
    states = {one.state for one in statuses(runs)}
    if states != {RunState.QUEUED}:
        raise RuntimeError(f"every member waits in the queue, and not: {states}")
    with _calls() as calls:
        statuses(runs)
    sides = {"ours": lambda: statuses(runs), "squeue": lambda: cluster.ask(["squeue"])}
    each = {"ours": sides["ours"], "squeue --array": lambda: cluster.ask(["squeue", "--array"])}
    name, note = f"status of {len(runs):,} runs in the queue", f"calls: {', '.join(calls)}; bar: 0.05"
    return [
        figure(name, best_of(sides, 7), f"{note}; squeue shows the array as one line"),
        figure(name, best_of(each, 7), f"{note}; a line for each"),
    ]


@contextmanager
def _calls() -> Iterator[list[str]]:
    """The programs that dlhpc calls meanwhile."""
    made: list[str] = []

    def run(argv: Sequence[str], **how: Any) -> subprocess.CompletedProcess[Any]:
        made.append(argv[0])
        return real(argv, **how)

    real = subprocess.run
    with patch("dlhpc.process.subprocess.run", run):
        yield made


@contextmanager
def _variables(wanted: dict[str, str]) -> Iterator[None]:
    with patch.dict(os.environ, wanted):
        yield


# --- Sweeps ---------------------------------------------------------------------------------------------------------


def _written_sweep(folder: Path, members: int, scheduler: str, queue: str) -> SweepDirectory:
    """Planned, rendered and written; nothing is submitted."""
    for name in ("anna/0", "anna/1", "bert/0", "bert/1"):
        path = folder / "photos" / f"{name}.pgm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P5 1 1 255\n\x00")
    site = folder / "site.yaml"
    site.write_text(
        f"name: here\n{scheduler}\nnodes: {{gpu: {{cores: 8, gpus: 2}}}}\nqueues: [{{name: {queue}}}]\n"
        f"max_array: {members}\n"
    )
    spec = folder / "faces.yaml"
    spec.write_text(
        "name: faces\ndata: {folder: photos, width: 32, height: 32}\nnetwork: {name: smallnet}\n"
        f"job: {{walltime: 10min, cores_per_rank: 2}}\nsweep:\n  random:\n    count: {members}\n    seed: 1\n"
        "    over:\n      lr: {low: 0.0001, high: 0.1, log: true}\n"
    )
    document, sweep = read_sweep(spec)
    assert sweep is not None
    runs = folder / "runs"
    return create_sweep(make_sweep(document, sweep, spec, runs=runs, site=str(site)), runs)


def large_sweep() -> list[Figure]:
    """A sweep of 10,000 members, planned, rendered and written by a process of its own."""
    with tempfile.TemporaryDirectory(prefix="dlhpc-bench-") as scratch:
        code = (
            "import sys, time\nfrom pathlib import Path\nfrom tests.bench.schedulers import _written_sweep\n"
            "began = time.perf_counter()\n"
            f"_written_sweep(Path(sys.argv[1]), {LARGE}, 'scheduler: slurm', 'gpu')\n"
            "print(time.perf_counter() - began)\n"
            # not ru_maxrss, which begins with that of the process that started this one
            "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        )
        done = subprocess.run([sys.executable, "-c", code, scratch], check=True, capture_output=True, text=True)
    seconds, kibibytes = (float(word) for word in done.stdout.split())
    peak = kibibytes * 1024
    return [
        Figure(
            f"write a sweep of {LARGE:,} members: peak memory",
            f"{peak / 2**20:.0f} MiB",
            f"{MEMORY_BAR / 2**20:.0f} MiB (bar)",
            MEMORY_BAR / peak,
            f"planned, rendered and written in {shown(seconds)}, {LARGE / seconds:.0f} members/s",
        )
    ]


def figures() -> list[Figure]:
    return [*scripts(), *on_slurm(), *large_sweep()]
