"""Started on every rank: are our summed gradients those of one large batch, whatever carries and packs them?

``ranks_gradients.py LAUNCHER STRATEGY MEETING``; the strategy is `horovod` or `ddp`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dlhpc.spec.training import Distributed
from dlhpc.train.collective import Collective, join
from dlhpc.train.gradients import GradientBuckets
from dlhpc.train.sync_norm import convert_sync_norm

SMALL = 4096 / 2**20  # MiB: several buckets, and one tensor larger than a bucket


def network() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 30), nn.ReLU(), nn.Linear(30, 5))
    net[0].bias.requires_grad_(False)  # type: ignore[union-attr]
    return net


def train(collective: Collective, how: Distributed) -> tuple[nn.Module, nn.Module]:
    """A few steps over all ranks, and the same with the whole batch on this rank alone."""
    rank, size = collective.rank, collective.size
    torch.manual_seed(1)
    pictures, labels = torch.randn(7, 1, 8, 8), torch.randint(0, 5, (7,))
    ours, alone = network(), network()
    gradients = GradientBuckets(ours.parameters(), collective, how)
    optimisers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (ours, alone)]
    for step in range(5):
        # In the last step one rank has no picture at all, in the others the shares are uneven.
        count = 7 if step < 4 else size - 1
        mine = torch.arange(rank, count, size)
        last = rank == size - 1
        gradients.begin(stop=step == 2 and last)
        portions = [part for part in torch.tensor_split(mine, 2) if len(part)]
        for number, part in enumerate(portions):
            loss = functional.cross_entropy(ours(pictures[part]), labels[part], reduction="sum") / count
            gradients.watch(loss * float("inf") if step == 1 and rank == 0 else loss)
            if number == len(portions) - 1:
                gradients.arm()
            loss.backward()
        if step == 3 and last:
            gradients.out_of_memory()
        agreed = gradients.finish()
        assert (agreed.stop, agreed.finite, agreed.out_of_memory) == (step == 2, step != 1, step == 3), agreed
        told = torch.stack(
            [parameter.grad.double().sum() for parameter in ours.parameters() if parameter.requires_grad]
        )
        assert len({tuple(row.tolist()) for row in collective.gather(told)}) == 1, "ranks differ"
        squares = sum(float(p.grad.double().square().sum()) for p in ours.parameters() if p.grad is not None)
        torch.testing.assert_close(float(gradients.norm()), squares**0.5, rtol=1e-5, atol=1e-6)
        optimisers[0].step()

        alone.zero_grad()
        functional.cross_entropy(alone(pictures[:count]), labels[:count]).backward()
        optimisers[1].step()
    return ours, alone


def check_gradients(collective: Collective, strategy: str) -> None:
    for compression, close in (("none", 1e-6), ("fp16", 2e-3), ("bf16", 2e-2)):
        settings: dict[str, Any] = {"bucket_mb": SMALL, "compression": compression}
        ours, alone = train(collective, Distributed(**settings))
        for a, b in zip(ours.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=10 * close, atol=close)
    if strategy == "horovod" and collective.name == "horovod-mpi":
        check_adasum(collective)


def check_adasum(collective: Collective) -> None:
    """Equal gradients give themselves, those at right angles their sum (Maleki et al. 2020), layer by layer."""
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    gradients = GradientBuckets(weights, collective, Distributed(adasum=True))
    gradients.begin(stop=False)
    gradients.arm()
    mine = torch.eye(2)[collective.rank % 2]
    # Of a mean over both ranks' samples, each rank's part is half of its own mean.
    ((weights[0] * mine).sum() / 2 + (weights[1] * torch.tensor([3.0, 4.0])).sum() / 2).backward()
    gradients.finish()
    torch.testing.assert_close(weights[0].grad, torch.ones(2))
    torch.testing.assert_close(weights[1].grad, torch.tensor([3.0, 4.0]))


def normalised() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(108, 4),
        nn.BatchNorm1d(4, affine=False, momentum=None),
    )


def check_norm(collective: Collective) -> None:
    """Batch normalisation over all ranks' samples is that of one rank with all of them."""
    whole, shared = normalised(), convert_sync_norm(normalised(), collective)
    gradients = GradientBuckets(shared.parameters(), collective)
    optimisers = [torch.optim.SGD(net.parameters(), lr=0.01) for net in (whole, shared)]
    for step in range(3):
        pictures = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(step)) + 30
        # In the second step all samples are on rank 0.
        mine = pictures[collective.rank :: collective.size] if step != 1 else pictures[: 7 * (collective.rank == 0)]
        gradients.begin(stop=False)
        gradients.arm()
        shared(mine).tanh().pow(3).sum().backward()
        gradients.finish()
        whole.zero_grad()
        whole(pictures).tanh().pow(3).sum().backward()
        for a, b in zip(shared.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
        for a, b in zip(shared.buffers(), whole.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        for optimiser in optimisers:
            optimiser.step()


def check_talk(collective: Collective) -> None:
    rank, size = collective.rank, collective.size
    told = collective.gather_json({"rank": rank, "text": "é" * rank})
    assert told == [{"rank": number, "text": "é" * number} for number in range(size)], told
    assert collective.share_json([rank, "é"]) == [0, "é"]
    for kind in (torch.int64, torch.uint8, torch.bool, torch.float64, torch.float16, torch.bfloat16):
        assert collective.gather(torch.full((2,), rank, dtype=kind)).tolist() == [[n] * 2 for n in range(size)], kind
        sent = torch.full((3,), rank + 1, dtype=kind)
        collective.broadcast(sent)
        assert sent.tolist() == [1] * 3, kind
    assert collective.sum(torch.tensor([2.0**40 + rank], dtype=torch.float64)).item() == size * 2.0**40 + 1
    assert (collective.local_rank, collective.local_size) == (rank, size)
    collective.barrier()


def main(launcher: str, strategy: Any, meeting: str) -> None:
    collective = join(launcher, 2, strategy, Path(meeting))
    check_talk(collective)
    check_gradients(collective, strategy)
    check_norm(collective)
    collective.barrier()
    collective.shutdown()
    print(f"rank {collective.rank} of {collective.size} agrees over {collective.name}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
