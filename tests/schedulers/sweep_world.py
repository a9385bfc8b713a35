"""A user with a sweep and the real command line, whatever the batch system is; training itself is stood in for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dlhpc.jobs.sweep_status import sweep_status
from dlhpc.runs.sweep import SweepDirectory

ROOT = Path(__file__).resolve().parents[2]

STAND_IN = f"""#!/bin/sh
# In place of an interpreter with torch: training is over at once, or goes as a file beside the runs says.
export PYTHONPATH={ROOT}
case "$2" in
    dlhpc.data) exit 0 ;;
    dlhpc.train) ;;
    *) exec {sys.executable} "$@" ;;
esac
name=${{3##*.}}
[ ! -f "$3/../../$name.waits" ] || [ "$DLHPC_ATTEMPT" != 1 ] || {{
    trap 'exit 75' USR2
    touch "$3/trains"
    while :; do sleep 0.2; done
}}
[ ! -f "$3/../../$name.breaks" ] || [ "$DLHPC_ATTEMPT" != 1 ] || exit 65
exec {sys.executable} -c '
import json, math, os, sys
from pathlib import Path
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, record
from dlhpc.runs.plan import read_plan
run = RunDirectory(Path(sys.argv[1]))
loss = (math.log10(read_plan(run.plan).base_rate) + 2) ** 2
(run.checkpoints / "best.json").write_text(json.dumps(dict(measure="val_loss", value=loss, epoch=1.0)))
record(run, Event.FINISHED, attempt=int(os.environ["DLHPC_ATTEMPT"]), code=0)
' "$3"
"""


class World:
    """A spec, a site, and the real command line in the environment of a batch system."""

    def __init__(self, folder: Path, environment: Mapping[str, str], scheduler: str, queue: str) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.runs.mkdir()
        self.environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
        python = folder / "env" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(STAND_IN)
        python.chmod(0o755)
        self.site = folder / "site.yaml"
        self.site.write_text(
            f"name: here\n{scheduler}\nnodes: {{gpu: {{cores: 8, gpus: 0}}}}\nqueues: [{{name: {queue}}}]\n"
            f"environments: {{default: {{prefix: {folder / 'env'}}}}}\n"
        )
        self.spec = folder / "cars.yaml"
        self.spec.write_text(
            "name: cars\ndata: {folder: photos, width: 32, height: 32}\nnetwork: {name: smallnet}\n"
            "job: {walltime: 10min, cores_per_rank: 2}\n"
        )
        for name in ("anna/0", "anna/1", "bert/0", "bert/1"):
            path = folder / "photos" / f"{name}.pgm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P5 1 1 255\n\x00")

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dlhpc", *words, "--runs", str(self.runs), "--site", str(self.site)]
        return subprocess.Popen(
            command, env=self.environment, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def dlhpc(self, *words: str) -> str:
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        return out

    def submit(self, number: int, *words: str) -> SweepDirectory:
        rates = ",".join(str((n + 1) / 1000) for n in range(number))
        return SweepDirectory(
            Path(json.loads(self.dlhpc("submit", "cars.yaml", "--sweep", f"lr={rates}", "--json", *words))["path"])
        )


SEARCH = """\
sweep:
  genetic:
    population: 4
    generations: 3
    over: {lr: {low: 0.00001, high: 1.0, log: true}}
"""


def search(world: World) -> SweepDirectory:
    """A search of three generations, submitted."""
    world.spec.write_text(world.spec.read_text() + SEARCH)
    return SweepDirectory(Path(json.loads(world.dlhpc("submit", "cars.yaml", "--json"))["path"]))


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.3)


def over(sweep: SweepDirectory) -> Callable[[], bool]:
    return lambda: sweep_status(sweep).is_over
