"""What a person at the login node waits for: the command's start, the status of many runs, curves."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from dlhpc.jobs.follow import statuses
from dlhpc.runs.curves import Point, read_points, write_points
from dlhpc.runs.directory import RunDirectory, create_run
from dlhpc.runs.find import all_runs
from dlhpc.runs.journal import Event, record
from dlhpc.runs.state import RunState
from tests.bench.measure import Figure, best_of, figure


def start() -> Figure:
    """`dlhpc --help` against the bare import of its command-line library."""
    command = str(Path(sys.executable).with_name("dlhpc"))
    times = best_of(
        {
            "ours": lambda: subprocess.run([command, "--help"], check=True, capture_output=True),
            "python -c 'import click'": lambda: subprocess.run([sys.executable, "-c", "import click"], check=True),
        },
        15,
    )
    return figure("start: `dlhpc --help`", times, "bar: at least 0.33")


def status() -> Figure:
    """The state of 1,000 finished runs against just parsing their journals."""
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch)

        def fill(hidden: RunDirectory, _: RunDirectory) -> None:
            lines = [
                {"event": "created"},
                {"event": "submitting", "submission": 1, "attempt": 1},
                {"event": "submitted", "submission": 1, "attempt": 1, "job_ids": ["1"]},
                {"event": "begun", "attempt": 1, "job_id": "1", "host": "node1"},
                *({"event": "epoch", "attempt": 1, "epoch": n, "epochs": 30} for n in range(1, 31)),
                {"event": "finished", "attempt": 1, "code": 0},
                {"event": "concluded", "attempt": 1, "job_id": "1", "next": "over"},
            ]
            time = datetime.now().astimezone().isoformat()
            hidden.journal.write_text("".join(json.dumps({"time": time, **line}) + "\n" for line in lines))
            hidden.exit_file(1).write_text("0\n")

        for _ in range(1000):
            create_run(runs, "bench", fill)

        def parse() -> None:
            for path in runs.glob("*/journal.jsonl"):
                for line in path.read_text().splitlines():
                    json.loads(line)

        assert {one.state for one in statuses(all_runs(runs))} == {RunState.FINISHED}
        times = best_of({"ours": lambda: statuses(all_runs(runs)), "json.loads of every line": parse}, 3)
        return figure("status of 1,000 finished runs", times, "30 epochs each")


def curves() -> list[Figure]:
    """Writing an epoch's points durably, and reading 100,000 points back."""
    with tempfile.TemporaryDirectory() as scratch:
        ours, plain = Path(scratch) / "ours.jsonl", Path(scratch) / "plain.jsonl"
        points = [Point(1.0, 10, split, name, 0.5, 0.0) for split in ("train", "val") for name in ("loss", "accuracy")]
        run = RunDirectory(Path(scratch))
        written = best_of(
            {
                "ours": lambda: write_points(ours, points),
                "one durable line each": lambda: [record(run, Event.EPOCH, epoch=1) for _ in points],
            },
            200,
        )
        many = [Point(n / 10, n, "train", "loss", 1 / (n + 1), 0.0) for n in range(100_000)]
        write_points(plain, many)
        read = best_of(
            {
                "ours": lambda: read_points(plain),
                "json.loads of every line": lambda: [json.loads(line) for line in plain.read_text().splitlines()],
            },
            3,
        )
    return [
        figure("write an epoch's four points durably", written, "one write and one fsync"),
        figure("read 100,000 points", read, "with checking and the later-counts rule"),
    ]


def figures() -> list[Figure]:
    return [start(), status(), *curves()]
