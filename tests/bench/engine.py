"""What the trainer adds to the network itself: time of a step, stall of a checkpoint, memory, curves.

``python -m tests.bench.engine SIDE NETWORK`` is one side of the figure about memory, in a process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional

from dlhpc.data.packed import open_packed
from dlhpc.runs.plan import read_plan
from dlhpc.spec.models import Spec
from dlhpc.train.attempt import Attempt
from dlhpc.train.collective import SingleCollective
from dlhpc.train.loop import Training
from dlhpc.train.measuring import write_curves
from dlhpc.train.stop import StopRequests
from tests.bench.measure import Figure, shown
from tests.training import make_run

SIZE, CLASSES = 224, 10
BATCH = {"alexnet": 32, "resnet18": 16}
BEST = {"alexnet": 1.8, "resnet18": 2.2}
NETWORKS = tuple(BATCH)
STEPS = 4  # of one side in a round: all but the first batch are made while the side itself runs


def training(folder: Path, network: str, **settings: Any) -> Training:
    """A training as a job begins it: pictures of 256² in a packed set on disk, crop of 224², flips."""
    random = np.random.default_rng(1)
    batch = BATCH[network]

    def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
        return random.integers(0, 256, (count, 3, 256, 256), dtype=np.uint8), np.arange(count) % CLASSES

    spec = {
        "network": {"name": network},
        "optimizer": {"name": "sgd"},
        "learning_rate": {"base": 1e-4, "policy": "fixed"},
        "augment": {"crop": SIZE, "flip_horizontal": True},
        "training": {"epochs": 10_000, "batch_size": batch, **settings},
    }
    splits = {"train": pictures(batch * 2 * STEPS), "val": pictures(batch)}
    run = make_run(folder, spec=spec, splits=splits, classes=CLASSES)
    plan = read_plan(run.plan)
    attempt = Attempt(run, plan, Spec.model_validate(plan.spec), 1)
    packed = open_packed(plan.dataset.packed)
    made = Training(attempt, packed, SingleCollective(), StopRequests(run.stop_file(1), None), torch.device("cpu"))
    made.resume_or_start()
    made.settle()
    return made


def trainer(made: Training) -> Callable[[], None]:
    """The next few steps of the trainer, as it does them."""

    def steps() -> Iterator[None]:
        for epoch in itertools.count():
            for step in made.steps(epoch, 0):
                assert made.train_step(step).finite
                made.position.step += 1
                yield

    going = steps()
    return lambda: [next(going) for _ in range(STEPS)] and None


def bare(network: str, *, tuned: bool) -> Callable[[], None]:
    """The loop of PyTorch's tutorials with data in memory; ``tuned``: channels-last and a fused optimiser as ours."""
    torch.manual_seed(1)
    model: nn.Module = getattr(torchvision.models, network)(weights=None, num_classes=CLASSES)
    batch = BATCH[network]
    inputs, labels = torch.randn(batch, 3, SIZE, SIZE), torch.arange(batch) % CLASSES
    if tuned:
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=tuned or None)

    def steps() -> None:
        for _ in range(STEPS):
            optimiser.zero_grad()
            loss = functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimiser.step()
            assert loss.item() < 1e6  # every loop looks at its loss

    return steps


def interleaved(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of a step of each side, the best of ``rounds``.

    Sides follow each other closely and change their order, so that what else the machine does meets all of them.
    """
    best = dict.fromkeys(sides, float("inf"))
    for side in sides.values():
        side()
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            sides[name]()
            best[name] = min(best[name], (time.perf_counter() - began) / STEPS)
    return best


def step(folder: Path, network: str, rounds: int) -> list[Figure]:
    """The trainer's step against the bare loop, alike and as each begins."""
    plain = training(folder / f"{network}-fp32", network)
    short = training(folder / f"{network}-bf16", network, precision="bf16")
    sides = {
        "plain": bare(network, tuned=False), "tuned": bare(network, tuned=True),
        "ours": trainer(plain), "ours bf16": trainer(short),
    }  # fmt: skip
    times = interleaved(sides, rounds)
    plain.packed.close()
    short.packed.close()
    note = f"batch {BATCH[network]}, {SIZE}², CPU, {torch.get_num_threads()} threads; best of {rounds} rounds"
    same, best = times["tuned"] / times["ours"], times["plain"] / times["ours bf16"]
    return [
        Figure(f"training step, {network}", shown(times["ours"]), f"{shown(times['tuned'])} (bare PyTorch loop)", same,
               f"fp32, both channels-last and fused; {note}; bar ≥ 0.97"),
        Figure(f"best setting, {network}", shown(times["ours bf16"]), f"{shown(times['plain'])} (plain fp32 loop)",
               best, f"bf16, channels-last, fused; {note}; bar ≥ {BEST[network]}"),
    ]  # fmt: skip


def curves(folder: Path) -> list[Figure]:
    """What an epoch's points cost the training thread, and what is summed up for them in every step."""
    made = training(folder / "curves", "alexnet")
    go = trainer(made)
    go()
    began = time.perf_counter()
    go()
    of_step = (time.perf_counter() - began) / STEPS
    names = ("train_loss", "train_accuracy", "train_learning_rate", "val_loss", "val_accuracy", "val_top5_accuracy")
    metrics = dict.fromkeys((*names, "system_seconds", "system_samples_per_second"), 0.123456789)
    took = []
    for number in range(200):
        began = time.perf_counter()
        write_curves(made.attempt, number, metrics)
        took.append(time.perf_counter() - began)
    running, sums = made.stepper.running, torch.ones(2, dtype=torch.float64)

    def in_step() -> None:
        part = torch.zeros_like(running)
        part[:-1] += sums
        part[-1] += 32
        running.add_(part)
        made.clock.step(32, 0.1)

    began = time.perf_counter()
    for _ in range(1000):
        in_step()
    summing = (time.perf_counter() - began) / 1000
    made.packed.close()

    def one(name: str, seconds: float) -> Figure:
        share = seconds / of_step
        peer = f"{shown(of_step)} (a step of alexnet)"
        return Figure(name, shown(seconds), peer, of_step / seconds, f"{share:.4%} of a step; bar ≤ 0.1 %")

    return [one("curves, in a step", summing), one("curves, in an epoch", statistics.median(took))]


def stall(folder: Path, rounds: int = 5) -> Figure:
    """For how long the training thread stands still for a checkpoint, against writing it there and then."""
    made = training(folder / "stall", "alexnet")
    go = trainer(made)
    go()
    waited = {"async": [0.0], "blocking": [0.0]}
    release = made.saver.release

    def timed_release() -> None:
        began = time.perf_counter()
        release()
        waited["async"][-1] += time.perf_counter() - began

    made.stepper.before_update = timed_release
    for _ in range(rounds):
        for how, times in waited.items():
            times.append(0.0)
            began = time.perf_counter()
            made.save(snapshot=False)
            if how == "blocking":
                made.saver.wait()
            times[-1] += time.perf_counter() - began
            go()  # in which the optimiser wants the tensors that are not written yet
            made.saver.wait()
    made.packed.close()
    ours, theirs = (statistics.median(waited[how][1:]) for how in ("async", "blocking"))
    ratios = [a / b for a, b in zip(waited["async"][1:], waited["blocking"][1:])]
    return Figure(
        "stall of a checkpoint", shown(ours), f"{shown(theirs)} (blocking)", theirs / ours,
        f"AlexNet and momentum; ours / blocking {ours / theirs:.3f}, at worst {max(ratios):.3f}; bar ≤ 0.2",
    )  # fmt: skip


def memory(network: str) -> Figure:
    """The greatest resident memory of a process that trains, measures and saves, against one that only trains."""
    found: dict[str, int] = {}
    for side in ("bare", "ours"):
        said = subprocess.run(
            [sys.executable, "-m", "tests.bench.engine", side, network], capture_output=True, text=True, check=True
        )
        found[side] = json.loads(said.stdout.splitlines()[-1])
    ours, theirs = (f"{found[side] / 1e6:.0f} MB" for side in ("ours", "bare"))
    share = found["ours"] / found["bare"]
    note = f"with validation and checkpoints; ours / bare {share:.3f}, bar ≤ 1.15"
    return Figure(f"peak memory, {network}", ours, f"{theirs} (bare PyTorch loop)", 1 / share, note)


def one_side(side: str, network: str) -> int:
    """Bytes of resident memory at the peak."""
    if side == "bare":
        go = bare(network, tuned=True)
        for _ in range(3):
            go()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            made = training(Path(scratch) / "run", network)
            with made.packed:
                go = trainer(made)
                go()
                made.position.measured_step = 0
                for _ in range(2):
                    made.validate()
                    made.save(snapshot=True)
                    go()
                made.saver.wait()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def figures() -> list[Figure]:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rounds = int(os.environ.get("BENCH_ROUNDS") or 7)
        steps = [one for network in NETWORKS for one in step(folder, network, rounds)]
        return [*steps, *curves(folder), stall(folder), *(memory(network) for network in NETWORKS)]


if __name__ == "__main__":
    print(json.dumps(one_side(*sys.argv[1:])))
