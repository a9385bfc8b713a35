"""Started by mpirun or horovodrun: do our summed gradients equal Horovod's and those of one large batch?"""

from __future__ import annotations

import sys

import horovod.torch as hvd
import torch
from torch import nn
from torch.nn import functional

from dlhpc.train.collective import HorovodCollective
from dlhpc.train.gradients import GradientBuckets


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 30), nn.ReLU(), nn.Linear(30, 5)
    )


def main() -> None:
    collective = HorovodCollective()
    rank, size = collective.rank, collective.size
    torch.manual_seed(1)
    pictures, labels = torch.randn(7, 1, 8, 8), torch.randint(0, 5, (7,))
    ours, theirs, alone = network(), network(), network()
    # Small buckets, so that there are several, and one tensor larger than a bucket.
    gradients = GradientBuckets(ours.parameters(), collective, bucket_bytes=4096)
    optimisers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (ours, theirs, alone)]
    distributed = hvd.DistributedOptimizer(optimisers[1], named_parameters=theirs.named_parameters(), op=hvd.Sum)

    for step in range(4):
        # In the last step one rank has no picture at all, in the others the shares are uneven.
        count = 7 if step < 3 else size - 1
        mine = torch.arange(rank, count, size)
        stop = step == 2 and rank == size - 1
        gradients.begin(stop=stop)
        portions = [part for part in torch.tensor_split(mine, 2) if len(part)]
        for number, part in enumerate(portions):
            loss = functional.cross_entropy(ours(pictures[part]), labels[part], reduction="sum") / count
            gradients.watch(loss * float("inf") if step == 1 and rank == 0 else loss)
            if number == len(portions) - 1:
                gradients.arm()
            loss.backward()
        agreed = gradients.finish()
        assert agreed.stop == (step == 2), agreed
        assert agreed.finite == (step != 1), agreed
        optimisers[0].step()

        theirs.zero_grad()
        share = functional.cross_entropy(theirs(pictures[mine]), labels[mine], reduction="sum") / count
        share.backward()
        distributed.step()

        alone.zero_grad()
        functional.cross_entropy(alone(pictures[:count]), labels[:count]).backward()
        optimisers[2].step()
        for a, b, c in zip(ours.parameters(), theirs.parameters(), alone.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6)

    told = collective.gather_json({"rank": rank, "text": "é" * rank})
    assert told == [{"rank": number, "text": "é" * number} for number in range(size)], told
    assert collective.share_json([rank, "é"]) == [0, "é"]
    assert collective.gather(torch.full((2,), rank)).tolist() == [[number] * 2 for number in range(size)]
    collective.barrier()
    collective.shutdown()
    print(f"rank {rank} of {size} agrees over {collective.name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
