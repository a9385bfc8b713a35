"""``python -m dlhpc.train RUN``: started once per rank by the job script's launcher, or alone.

From the environment: ``DLHPC_ATTEMPT`` (from 1), ``DLHPC_DEADLINE`` (seconds since 1970, may be absent),
``DLHPC_JOB_ID``, ``OMP_NUM_THREADS``. The exit code (:class:`dlhpc.errors.AttemptExit`) is left in
``RUN/attempts/ATTEMPT.outcome``, which counts more than what a launcher makes of those of its ranks.
"""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dlhpc.errors import DlhpcError, StorageError, UserError
from dlhpc.files import storage_errors
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.plan import Plan, read_plan
from dlhpc.train.stop import StopRequests

if TYPE_CHECKING:
    import torch

    from dlhpc.spec.models import Spec
    from dlhpc.train.collective import Collective

_LOCK_PATIENCE_S = 60.0  # that a killed attempt's last process may take to vanish


def main(argv: list[str]) -> int:
    """Train; gives the exit code."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print(
            "usage: python -m dlhpc.train RUN\n  → The job script calls this; people use `dlhpc submit`.",
            file=sys.stderr,
        )
        return UserError.exit_code
    run = RunDirectory(Path(argv[0]).absolute())
    attempt = int(os.environ.get("DLHPC_ATTEMPT") or 1)
    deadline = os.environ.get("DLHPC_DEADLINE")
    stop = StopRequests(run.stop_file(attempt), float(deadline) if deadline else None)
    stop.listen()  # before torch is imported, which takes seconds

    from dlhpc.train.collective import rank_hint
    from dlhpc.train.failures import report_failure, write_outcome

    rank = rank_hint()
    try:
        plan = read_plan(run.plan)
        spec = _read_spec(run, plan)
        _set_up_torch(plan)
        from dlhpc.train.collective import join
        from dlhpc.train.collective.cores import keep_to_own_cores

        if spec.distributed.timeline:
            os.environ["HOROVOD_TIMELINE"] = str(run.path / "timeline.json")
        collective = join(plan.launcher, plan.ranks, spec.distributed.strategy, run.meeting_file(attempt))
        rank = collective.rank
        if not plan.gpus_per_rank:
            keep_to_own_cores(collective, plan.cores_per_rank)
        with _only_attempt(run) if rank == 0 else contextlib.nullcontext():
            code = _train(run, plan, spec, attempt, collective, stop)
            if rank == 0:
                write_outcome(run, attempt, code)
            # All leave in step, or the launcher would take the first to go for a crash.
            collective.barrier()
            collective.shutdown()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the outermost place there is
        code = report_failure(run, attempt, rank, error)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: other ranks wait for us in a collective operation, and so would the exit handlers of MPI.
        os._exit(code)
    # The outcome is in its file. Launchers take any other exit code than 0 for a crash, and fill the log with it.
    return code if collective.size == 1 else 0


def _train(
    run: RunDirectory, plan: Plan, spec: "Spec", attempt: int, collective: "Collective", stop: StopRequests
) -> int:
    from dlhpc.data.packed import open_packed
    from dlhpc.data.stage import scratch_of, staged
    from dlhpc.train.attempt import Attempt, Teller
    from dlhpc.train.loop import Training

    this = Attempt(run, plan, spec, attempt)
    fingerprint = plan.dataset.fingerprint or None
    # One process of each node copies; only rank 0 tells of a node that cannot.
    warn = Teller(this, leader=collective.rank == 0).warn
    folder = staged(Path(plan.dataset.packed), scratch_of(os.environ), fingerprint=fingerprint, warn=warn)
    with open_packed(folder, fingerprint) as packed:
        return int(Training(this, packed, collective, stop, _device(plan, collective)).run())


def _read_spec(run: RunDirectory, plan: Plan) -> "Spec":
    from pydantic import ValidationError

    from dlhpc.spec.models import Spec

    try:
        return Spec.model_validate(plan.spec)
    except ValidationError as error:
        raise StorageError(
            f"holds a spec that this version of dlhpc does not understand: {error.errors()[0]['msg']}",
            where=run.plan,
            remedy="Submit the run anew from its spec.yaml.",
        ) from error


def _set_up_torch(plan: Plan) -> None:
    """Threads, and the same bits every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or plan.cores_per_rank))
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if plan.gpus_per_rank and torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)


def _device(plan: Plan, collective: "Collective") -> "torch.device":
    import torch

    if not plan.gpus_per_rank:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if collective.rank == 0:
            print("warning: the plan gives each rank a GPU, but torch sees none here; training on CPU", flush=True)
        return torch.device("cpu")
    # A launcher may show each rank its own GPU only.
    device = torch.device("cuda", collective.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def _only_attempt(run: RunDirectory) -> Iterator[None]:
    """Hold the run's training lock. Ranks that outlived a killed launcher would write over our files."""
    with storage_errors(run.training_lock):
        descriptor = os.open(run.training_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        until = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise DlhpcError(
                        "another attempt of this run is still training",
                        where=run.path,
                        remedy="Wait for its end, or cancel it; then `dlhpc resume`.",
                    ) from error
                time.sleep(0.5)
                continue
            except OSError:  # a file system without locks
                pass
            break
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
