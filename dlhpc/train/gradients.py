"""Summing gradients over ranks in buckets of our own.

Why not ``hvd.DistributedOptimizer``: Horovod fuses whatever gradients happen to be ready into one allreduce, so the
way a sum is cut, and with it the last bits of the result, depends on timing. Here every allreduce has a fixed content
(set ``HOROVOD_FUSION_THRESHOLD=0`` so that it stays so), which gives the same bits in every run. Besides, a rank
without pictures in a step takes part like any other, batch accumulation needs no counting of backward passes, and three
extra numbers in the last bucket carry "please stop", "my loss is not finite" and "my memory does not suffice", so that
all ranks agree on them in the same step at no cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dlhpc.train.collective import Collective

BUCKET_BYTES = 25 * 2**20  # as torch's DistributedDataParallel: large enough for bandwidth, small enough to overlap


@dataclass(frozen=True)
class Agreement:
    """What all ranks know after a step, each the same."""

    stop: bool
    """At least one rank asked to stop."""
    finite: bool
    """Every rank's loss was finite."""
    out_of_memory: bool = False
    """At least one rank could not finish its part; the gradients mean nothing."""


@dataclass
class _Bucket:
    name: str
    buffer: Tensor
    parameters: int
    missing: int = 0
    """Gradients that are still to come in this step's last portion."""
    handle: Any = None


@dataclass
class GradientBuckets:
    """The gradients of a network as views of flat float32 buffers that are summed over all ranks.

    A step is ``begin`` · for each portion: ``watch(loss)``, ``arm()`` before the last one, ``loss.backward()`` ·
    ``finish()``. In the last portion each bucket's allreduce begins as soon as its gradients are there, while the
    backward pass goes on; buckets begin in the same order on every rank. Never set gradients to ``None``.
    """

    parameters: Iterable[nn.Parameter]
    collective: Collective
    bucket_bytes: int = BUCKET_BYTES
    _buckets: list[_Bucket] = field(default_factory=list, init=False)
    _fired: int = field(default=0, init=False)
    _armed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        # The backward pass meets the last layers first.
        groups: list[list[nn.Parameter]] = [[]]
        filled = 0
        for parameter in reversed(trained):
            if parameter.dtype != torch.float32:
                raise TypeError(f"gradients are summed in float32, not {parameter.dtype}")
            if groups[-1] and filled + parameter.numel() * 4 > self.bucket_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(parameter)
            filled += parameter.numel() * 4
        for number, group in enumerate(groups):
            flags = 3 if number == len(groups) - 1 else 0
            length = sum(parameter.numel() for parameter in group) + flags
            buffer = torch.zeros(length, dtype=torch.float32, device=trained[0].device)
            bucket = _Bucket(f"gradients.{number}", buffer, len(group))
            self._buckets.append(bucket)
            offset = 0
            for parameter in group:
                # The parameter's own strides, so that optimisers meet both in the same layout (channels-last or not).
                parameter.grad = buffer.as_strided(parameter.shape, parameter.stride(), offset)
                offset += parameter.numel()
                parameter.register_post_accumulate_grad_hook(self._make_hook(bucket))  # type: ignore[no-untyped-call]
        self._flags = self._buckets[-1].buffer[-3:]

    def begin(self, stop: bool) -> None:
        """Start a step with zero gradients; ``stop`` asks all ranks to stop after it."""
        for bucket in self._buckets:
            bucket.buffer.zero_()
            bucket.missing = bucket.parameters
        self._fired, self._armed = 0, False
        if stop:
            self._flags[0] = 1.0

    def watch(self, loss: Tensor) -> None:
        """Note whether a portion's loss is finite, without waiting for it."""
        self._flags[1] += (~torch.isfinite(loss.detach())).to(torch.float32)

    def out_of_memory(self) -> None:
        """This rank gives its part up; all ranks are to do the step again. :meth:`finish` is called as always."""
        if self._fired == len(self._buckets):
            raise RuntimeError("gradients that are being sent already cannot be taken back")
        self._flags[2] = 1.0

    def arm(self) -> None:
        """The next backward pass is this rank's last one in this step."""
        self._armed = True

    def finish(self) -> Agreement:
        """Wait until every gradient is the sum over all ranks and portions."""
        while self._fired < len(self._buckets):  # no pictures here, or layers that got no gradient
            self._fire()
        for bucket in self._buckets:
            self.collective.wait(bucket.handle)
            bucket.handle = None
        stop, not_finite, out_of_memory = self._flags.tolist()
        return Agreement(stop=stop > 0, finite=not_finite == 0, out_of_memory=out_of_memory > 0)

    def _make_hook(self, bucket: _Bucket) -> Any:
        def gradient_is_there(_: Tensor) -> None:
            if not self._armed:
                return
            bucket.missing -= 1
            while self._fired < len(self._buckets) and self._buckets[self._fired].missing == 0:
                self._fire()

        return gradient_is_there

    def _fire(self) -> None:
        bucket = self._buckets[self._fired]
        bucket.handle = self.collective.allreduce_async(bucket.buffer, bucket.name)
        self._fired += 1
