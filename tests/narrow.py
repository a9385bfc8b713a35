"""A machine with little memory, for tests: ``python -m tests.narrow RUN RANK MOST`` trains with one such rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from dlhpc.data.packed import open_packed
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import read_plan
from dlhpc.spec.models import Spec
from dlhpc.train.attempt import Attempt
from dlhpc.train.collective import join
from dlhpc.train.loop import Training
from dlhpc.train.stop import StopRequests


class Narrow:
    """A task for which more than ``most`` samples at a time are too many; ``fail`` is raised then."""

    def __init__(self, task: Any, most: int, fail: BaseException) -> None:
        self._task, self._most, self._fail = task, most, fail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def losses(self, batch: Any) -> Any:
        self._check(batch)
        return self._task.losses(batch)

    def measure(self) -> Any:
        measure, check = self._task.measure(), self._check

        class Careful:
            def add(self, batch: Any) -> None:
                measure.add(batch)  # something is counted before memory runs out
                check(batch)

            finish = measure.finish

        return Careful()

    def _check(self, batch: Any) -> None:
        if len(batch) > self._most:
            raise self._fail


def main(path: str, rank: int, most: int) -> int:
    """Train with this many ranks as the launcher started; rank ``rank`` has memory for ``most`` samples."""
    run = RunDirectory(Path(path))
    plan = read_plan(run.plan)
    spec = Spec.model_validate(plan.spec)
    collective = join(plan.launcher, plan.ranks, spec.distributed.strategy, run.meeting_file(1))
    stop = StopRequests(run.stop_file(1), None)
    with open_packed(plan.dataset.packed) as packed:
        one = Training(Attempt(run, plan, spec, 1), packed, collective, stop, torch.device("cpu"))
        if collective.rank == rank:
            one.task = one.stepper.task = Narrow(one.task, most, MemoryError())  # type: ignore[assignment]
        code = one.run()
    collective.barrier()
    collective.shutdown()
    return int(code)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
