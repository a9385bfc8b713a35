"""One rank of a benchmark: takes training steps when it is told to, ``ADDRESS KIND NETWORK PORTION SIZE LAUNCHER``.

KIND is ``OURS-STRATEGY`` or ``bare-STRATEGY``; STRATEGY is ``horovod``, ``ddp`` or ``single``. ``ours`` is what the
trainer does with a step; ``bare`` a loop as the collective's own documentation shows it, with the same network (also
laid out channels last), the same fused SGD, and tensors that are ready.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Client
from pathlib import Path

import numpy as np
import torch
from torch import optim
from torch.nn import functional

from dlhpc.spec.models import Spec
from dlhpc.train.collective import join, rank_hint
from dlhpc.train.collective.cores import keep_to_own_cores
from dlhpc.train.feed import DeviceStep
from dlhpc.train.models import Model, build_network, preprocess_for
from dlhpc.train.step import Stepper
from dlhpc.train.tasks.base import DeviceBatch
from dlhpc.train.tasks.classification import Classification

CLASSES = 10


def ours(strategy: str, network: str, portion: int, size: int, launcher: str) -> Callable[[], object]:
    """The trainer's step: normalisation of raw pictures, buckets, flags, the rate of the step."""
    single = strategy == "single"
    meeting = Path(tempfile.gettempdir()) / f"meeting-{os.environ['BENCH_GROUP']}"
    collective = join("none" if single else launcher, 1 if single else 2, strategy, meeting)  # type: ignore[arg-type]
    if os.environ.get("BENCH_PIN", "1") == "1":
        keep_to_own_cores(collective, 1)
    spec = Spec.model_validate(
        {
            "name": "bench",
            "data": {"folder": "/x", "width": size, "height": size},
            "network": {"name": network},
            "distributed": {"bucket_mb": float(os.environ.get("BENCH_BUCKET", "25"))},
        }
    )
    task = Classification(_model(network, size), [str(number) for number in range(CLASSES)])
    stepper = Stepper(task, spec, collective, torch.device("cpu"))
    pictures = torch.randint(0, 256, (portion, 3, size, size), dtype=torch.uint8)
    step = DeviceStep([DeviceBatch(pictures, torch.arange(portion) % CLASSES)], portion * collective.size)
    return lambda: stepper.take(step, 0, 1, 1e-4, stop=False)


def bare(strategy: str, network: str, portion: int, size: int, _launcher: str) -> Callable[[], object]:
    model = _model(network, size)
    ready = model.preprocess(torch.randint(0, 256, (portion, 3, size, size), dtype=torch.uint8))
    labels = torch.arange(portion) % CLASSES
    net: torch.nn.Module = model.network
    optimiser: optim.Optimizer = optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True)
    if strategy == "horovod":
        import horovod.torch as hvd

        hvd.init()
        hvd.broadcast_parameters(net.state_dict(), root_rank=0)
        optimiser = hvd.DistributedOptimizer(optimiser, named_parameters=net.named_parameters())
    elif strategy == "ddp":
        torch.distributed.init_process_group("gloo")
        net = torch.nn.parallel.DistributedDataParallel(net)

    def step() -> None:
        optimiser.zero_grad()
        functional.cross_entropy(net(ready), labels).backward()
        optimiser.step()

    return step


def _model(network: str, size: int) -> Model:
    torch.manual_seed(1)
    half = np.full(3, 0.5)
    model = Model(preprocess_for("pixel", half, half, None, size, size), build_network(network, 3, CLASSES, size, size))
    return model.train()


def main(address: str, kind: str, network: str, portion: str, size: str, launcher: str) -> None:
    torch.set_num_threads(1)
    who, _, strategy = kind.partition("-")
    step = {"ours": ours, "bare": bare}[who](strategy, network, int(portion), int(size), launcher)
    step()  # all that happens only once
    with Client(address) as parent:
        parent.send((rank_hint(), os.getpid()))
        while (count := parent.recv()) is not None:
            began = time.perf_counter()
            for _ in range(count):
                step()
            parent.send((time.perf_counter() - began) / count)
    os._exit(0)  # the others may be gone already


if __name__ == "__main__":
    main(*sys.argv[1:])
