"""What every picture of a training costs: reading it, the step around the network, saving."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from dlhpc.data.batches import TrainingBatches, steps_per_epoch
from dlhpc.data.catalog import Catalog, Sample
from dlhpc.data.pack import Preparation, pack
from dlhpc.data.packed import Packed
from dlhpc.spec.models import Augment, Optimizer
from dlhpc.train.collective import SingleCollective
from dlhpc.train.gradients import GradientBuckets
from dlhpc.train.models import Classifier, build_network, preprocess_for, training_loss
from dlhpc.train.optimisers import make_optimiser
from tests.bench.measure import Figure, best_of, figure

SIZE, COUNT, BATCH = 64, 512, 32


def _pictures(folder: Path) -> Packed:
    random = np.random.default_rng(1)
    found = []
    for number in range(COUNT):
        path = folder / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
        found.append(Sample(str(path), number % 8))
    catalog = Catalog([f"class {n}" for n in range(8)], {"train": found, "val": found[:8], "unseen": []})
    how = Preparation(color="rgb", height=SIZE, width=SIZE, resize="squash", skip_broken=False)
    return pack(catalog, how, folder / "packed", key="bench", threads=2)


def reading(folder: Path, packed: Packed) -> Figure:
    """One epoch of augmented batches from the packed set against decoding each file with Pillow."""
    augment = Augment(flip_horizontal=True, shift_pixels=4)
    steps = steps_per_epoch(COUNT, BATCH)
    batches = TrainingBatches(packed, augment, 1, 0, 1, steps)

    def ours() -> None:
        for step in batches.epoch(0):
            step.portions[0].inputs.sum()

    def files() -> None:
        for first in range(0, COUNT, BATCH):
            pictures = [np.asarray(Image.open(folder / f"{n}.png")) for n in range(first, first + BATCH)]
            np.stack(pictures).sum()

    times = best_of({"ours": ours, "Pillow, one file a picture": files}, 5)
    return figure("read a picture", times, f"{SIZE}×{SIZE} colour, flip and shift in ours only", per=COUNT)


def step(packed: Packed, network: str) -> Figure:
    """The trainer's step (buckets, flags, preprocessing) against the bare PyTorch loop on ready tensors."""
    model = Classifier(
        preprocess_for("pixel", packed.mean, packed.std, None, SIZE, SIZE), build_network(network, 3, 8, SIZE, SIZE)
    )
    model.train()
    pictures = torch.zeros((BATCH, 3, SIZE, SIZE), dtype=torch.uint8).random_(0, 256)
    ready, labels = model.preprocess(pictures), torch.arange(BATCH) % 8
    gradients = GradientBuckets(model.parameters(), SingleCollective())
    optimiser = make_optimiser(Optimizer(name="sgd"), model.parameters())

    def ours() -> None:
        gradients.begin(stop=False)
        loss = training_loss(model(pictures), labels)[0] / BATCH
        gradients.watch(loss)
        gradients.arm()
        loss.backward()
        gradients.finish()
        optimiser.step()

    def bare() -> None:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()
        functional.cross_entropy(model.network(ready), labels).backward()
        optimiser.step()

    times = best_of({"ours": ours, "bare PyTorch loop": bare}, 12)
    return figure(f"training step, {network}", times, f"batch {BATCH}, {SIZE}×{SIZE}, one rank, CPU")


def figures() -> list[Figure]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        packed = _pictures(Path(scratch))
        with packed:
            return [reading(Path(scratch), packed), *(step(packed, name) for name in ("alexnet", "resnet18"))]
