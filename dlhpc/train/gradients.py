"""Summing gradients over ranks in buckets of our own.

Why not ``hvd.DistributedOptimizer`` or torch's ``DistributedDataParallel``: Horovod fuses whatever gradients happen to
be ready into one allreduce, so the way a sum is cut, and with it the last bits of the result, depends on timing. Here
every allreduce has a fixed content (``HOROVOD_FUSION_THRESHOLD=0`` keeps it so), which gives the same bits in every
run, and Horovod's copies in and out of its fusion buffer fall away. Besides, a rank without samples in a step takes
part like any other, batch accumulation needs no counting of backward passes, and a few more numbers carry "please
stop", "my loss is not finite" and "my memory does not suffice", so that all ranks agree on them in the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlhpc.spec.training import Distributed
from dlhpc.train.collective.base import Collective

_STOP, _NOT_FINITE, _OUT_OF_MEMORY = range(3)
_HALVES = {"none": None, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    flat: Tensor
    """The gradients of ``parameters``, one behind the other."""
    parameters: list[nn.Parameter]
    views: list[Tensor]
    """Of each gradient in ``flat``, in its parameter's layout."""
    sent: Tensor
    """What travels: ``flat`` itself, or its numbers in half the bytes."""
    missing: int = 0
    """Gradients that are still to come in this step's last portion."""
    handle: Any = None


class GradientBuckets:
    """The gradients of a network's trained parameters, summed over all portions of a step and over all ranks.

    A step is ``begin`` · for each portion: ``watch(loss)``, ``arm()`` before the last one, ``loss.backward()`` ·
    ``finish()``; then every trained parameter has its ``grad``, zero if nothing came, the same bits on every rank. In
    the last portion each bucket's allreduce begins as soon as its gradients are there, while the backward pass goes on;
    buckets begin in the same order on every rank. ``begin`` is what drops the gradients of the step before; nobody else
    may. On one rank there are no buckets, and autograd's own tensors stay what they are.

    With compression each rank's gradients and their sum are rounded to half precision, parameters see float32 still.
    With Adasum (Maleki et al. 2020, arXiv:2006.02924) every parameter is a bucket of its own, because the paper
    combines layer by layer, and what is combined are the ranks' mean gradients over their own share of the batch.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], collective: Collective, how: Distributed | None = None
    ) -> None:
        how = how or Distributed()
        self.collective = collective
        self._adasum = how.adasum and collective.size > 1
        self._trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in self._trained:
            if parameter.dtype != torch.float32:
                raise TypeError(f"gradients are summed in float32, not {parameter.dtype}")
        device = self._trained[0].device if self._trained else torch.device("cpu")
        self._flags = torch.zeros(3, device=device)
        self._buckets: list[_Bucket] = []
        self._fired = 0
        self._armed = False
        if collective.size > 1:
            half = _HALVES[how.compression]
            for group in share_out(self._trained, 0 if self._adasum else round(how.bucket_mb * 2**20)):
                self._buckets.append(self._make_bucket(group, half))

    def begin(self, stop: bool) -> None:
        """Start a step without gradients; ``stop`` asks all ranks to stop after it."""
        for parameter in self._trained:
            parameter.grad = None
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._fired, self._armed = 0, False
        self._flags.zero_()
        if stop:
            self._flags[_STOP] = 1.0

    def watch(self, loss: Tensor) -> None:
        """Note whether a portion's loss is finite, without waiting for it."""
        self._flags[_NOT_FINITE] += (~torch.isfinite(loss.detach())).to(torch.float32)

    def out_of_memory(self) -> None:
        """This rank gives its part up; all ranks are to do the step again. :meth:`finish` is called as always."""
        self._flags[_OUT_OF_MEMORY] = 1.0

    def arm(self) -> None:
        """The next backward pass is this rank's last one in this step."""
        self._armed = True

    def finish(self) -> Agreement:
        """Wait until every gradient is the sum over all ranks and portions."""
        collective = self.collective
        while self._fired < len(self._buckets):  # no samples here, or layers that got no gradient
            self._fire()
        flags = collective.allreduce_async(self._flags, "flags")
        for bucket in self._buckets:
            collective.wait(bucket.handle)
            bucket.handle = None
            if bucket.sent is not bucket.flat:
                bucket.flat.copy_(bucket.sent)
            if self._adasum:  # each rank's part of the mean over the global batch → its mean over its own share
                bucket.flat.mul_(collective.size)
        if not self._buckets:
            for parameter in self._trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        collective.wait(flags)
        stop, not_finite, out_of_memory = self._flags.tolist()
        return Agreement(stop=stop > 0, finite=not_finite == 0, out_of_memory=out_of_memory > 0)

    def norm(self) -> Tensor:
        """Euclidean length of all gradients together, after :meth:`finish`; a number (no dimensions) on the device."""
        lengths = [torch.linalg.vector_norm(part) for part in self._parts()]
        return torch.linalg.vector_norm(torch.stack(lengths)) if lengths else torch.zeros(())

    def scale_(self, factor: float | Tensor) -> None:
        """Multiply all gradients, after :meth:`finish`."""
        for part in self._parts():
            part.mul_(factor)

    def _parts(self) -> list[Tensor]:
        """Tensors that hold all gradients, each once."""
        if self._buckets:
            return [bucket.flat for bucket in self._buckets]
        return [parameter.grad for parameter in self._trained if parameter.grad is not None]

    def _make_bucket(self, group: list[nn.Parameter], half: torch.dtype | None) -> _Bucket:
        flat = torch.zeros(sum(parameter.numel() for parameter in group), device=group[0].device)
        sent = flat if half is None else torch.zeros_like(flat, dtype=half)
        bucket = _Bucket(f"gradients.{len(self._buckets)}", flat, group, [], sent)
        offset = 0
        for parameter in group:
            # The parameter's own strides, so that optimisers meet both in the same layout (channels-last or not).
            view = flat.as_strided(parameter.shape, parameter.stride(), offset)
            offset += parameter.numel()
            bucket.views.append(view)
            parameter.register_post_accumulate_grad_hook(self._make_hook(bucket, view))  # type: ignore[no-untyped-call]
        return bucket

    def _make_hook(self, bucket: _Bucket, view: Tensor) -> Callable[[Tensor], None]:
        def gradient_is_there(parameter: Tensor) -> None:
            # A step's first gradient is autograd's own tensor: one copy is half of what zeroing the bucket before and
            # adding to it would cost. Later portions are added in place.
            if parameter.grad is not view:
                assert parameter.grad is not None
                view.copy_(parameter.grad)
                parameter.grad = view
            if not self._armed:
                return
            bucket.missing -= 1
            while self._fired < len(self._buckets) and self._buckets[self._fired].missing == 0:
                self._fire()

        return gradient_is_there

    def _fire(self) -> None:
        bucket = self._buckets[self._fired]
        if bucket.missing:
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                if parameter.grad is not view:
                    view.zero_()
                    parameter.grad = view
        if bucket.sent is not bucket.flat:
            bucket.sent.copy_(bucket.flat)
        bucket.handle = self.collective.allreduce_async(bucket.sent, bucket.name, adasum=self._adasum)
        self._fired += 1


def share_out(parameters: list[nn.Parameter], most_bytes: int) -> list[list[nn.Parameter]]:
    """Groups of at most ``most_bytes``, the last layers first, as the backward pass meets them.

    A larger parameter is a group of its own.
    """
    groups: list[list[nn.Parameter]] = []
    filled = 0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        if not groups or filled + size > most_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(parameter)
        filled += size
    return groups
