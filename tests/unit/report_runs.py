"""Made-up run directories for tests of the report and of predictions."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dlhpc.files import append_lines, replace_json, replace_text
from dlhpc.runs.curves import Point, write_points
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import DatasetSummary, Plan
from dlhpc.spec.models import Spec

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC).timestamp()


def make_run(folder: Path, classes: list[str], *, epochs: int = 20, spec: dict[str, Any] | None = None) -> RunDirectory:
    """A run as it is right after `dlhpc submit`: spec, plan and the first journal entries."""
    run = RunDirectory(folder / "faces-20260105-090000-ab12")
    run.path.mkdir(parents=True)
    asked = {
        "name": "faces",
        "data": {"folder": "/data/faces", "width": 64, "height": 64, "color": "grey"},
        "augment": {"flip_horizontal": True, "shift_pixels": 4},
        "network": {"name": "smallnet"},
        "training": {"epochs": epochs, "batch_size": 32},
        "job": {"ranks_per_node": 2},
        **(spec or {}),
    }
    replace_text(run.spec, "name: faces  # <our people>\ndata: {folder: /data/faces}\n")
    Plan(
        run_id="0123456789abcdef", dlhpc_version="0.1.0", created="2026-01-05T09:00:00+00:00", site="local",
        scheduler="local", dialect=None, queue="local", nodes=1, ranks=2, ranks_per_node=2, cores_per_rank=1,
        gpus_per_rank=0, memory_bytes=None, walltime_seconds=3600, save_margin_seconds=120, kill_grace_seconds=10,
        crash_retries=2, max_attempts=100, launcher="mpirun", launch=["mpirun", "-np", "2"], hostfile_option=None,
        python="/opt/env/bin/python", environment="default", environment_prefix="/opt/env", exports={},
        global_batch=64, steps_per_epoch=4, total_steps=4 * epochs, base_rate=0.01,
        dataset=DatasetSummary(
            key="f" * 64, packed=str(folder / ".datasets" / "f"), classes=len(classes), train=6 * len(classes),
            val=2 * len(classes), unseen=2 * len(classes),
        ),
        spec=Spec.model_validate(asked).model_dump(mode="json"),
    ).write(run.plan)  # fmt: skip
    journal(run, 0, "created", run_id="0123456789abcdef")
    journal(run, 1, "submitting", submission=1, attempt=1)
    journal(run, 1, "submitted", submission=1, attempt=1, job_ids=["17"])
    return run


def journal(run: RunDirectory, at: float, event: str, **details: Any) -> None:
    """One journal entry, so many seconds after the run was created."""
    time = datetime.fromtimestamp(START + at, UTC).isoformat(timespec="milliseconds")
    append_lines(run.journal, [json.dumps({"time": time, "event": event, **details})], durable=False)


def train_some(run: RunDirectory, epochs: int, *, first: int = 1, attempt: int = 1, overfit: bool = False) -> None:
    """Journal and curves of epochs ``first`` to ``epochs``, from the moment at which the attempt's job begins."""
    job_id = str(16 + attempt)
    journal(run, first * 10 - 1, "begun", attempt=attempt, job_id=job_id, host="node07")
    journal(run, first * 10, "started", attempt=attempt, job_id=job_id, hosts=["node07", "node07"], ranks=2)
    points = []
    for epoch in range(first, epochs + 1):
        loss = 3.6 * math.exp(-epoch / 5)
        val = loss + 0.15 + (max(0, epoch - 10) * 0.1 if overfit else 0.0)
        rate = 0.01 * (0.1 if epoch > 14 else 1)
        for split, name, value in (
            ("train", "loss", loss), ("train", "accuracy", 1 - loss / 4), ("train", "learning_rate", rate),
            ("val", "loss", val), ("val", "accuracy", 0.96 * (1 - math.exp(-epoch / 4))),
        ):  # fmt: skip
            points.append(Point(float(epoch), 4 * epoch, split, name, value, START + epoch * 10))
        journal(
            run,
            epoch * 10 + 9,
            "epoch",
            attempt=attempt,
            epoch=epoch,
            epochs=20,
            seconds=9.5,
            pictures_per_second=812.4,
        )
    write_points(run.curves, points)
    replace_json(
        run.provenance,
        {
            "attempts": [
                {
                    "attempt": attempt, "hosts": ["node07", "node07"], "ranks": 2, "collective": "horovod-mpi",
                    "versions": {"python": "3.11.2", "torch": "2.4.1", "horovod": "0.28.1", "mpi": "Open MPI 4.1.4"},
                }
            ],
            "dataset": {"fingerprint": "9f" * 32, "skipped": []},
            "seed": 1,
        },
    )  # fmt: skip


def evaluate(run: RunDirectory, confusion: list[list[int]], classes: list[str], *, epoch: float = 20) -> None:
    """``evaluation.json``."""
    total = sum(map(sum, confusion))
    right = sum(row[index] for index, row in enumerate(confusion))
    replace_json(
        run.evaluation,
        {
            "split": "val", "epoch": epoch, "step": 80, "classes": classes, "confusion": confusion, "loss": 0.21,
            "accuracy": right / total,
        },
    )  # fmt: skip


def predict_unseen(run: RunDirectory, rows: list[tuple[str, str, list[tuple[str, float]]]]) -> None:
    """``predictions/unseen.json`` from (path, truth, top) rows."""
    run.predictions.mkdir(exist_ok=True)
    right = sum(top[0][0] == truth for _, truth, top in rows)
    replace_json(
        run.predictions / "unseen.json",
        {
            "accuracy": right / len(rows),
            "count": len(rows),
            "rows": [{"path": path, "truth": truth, "top": top} for path, truth, top in rows],
        },
    )
