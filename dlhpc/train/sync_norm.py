"""Batch normalisation over the samples of all ranks, as if one rank had the whole global batch.

Worth its price where a rank has only a few samples in a step, as in detection with large pictures: statistics of two
pictures are mostly noise. Each layer costs one exchange of 2·C+1 numbers in the forward and one of 2·C in the backward
pass. A rank without samples takes part by running the network on an empty batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlhpc.train.collective.base import Collective


def convert_sync_norm(model: nn.Module, collective: Collective) -> nn.Module:
    """Let every batch normalisation of ``model`` (1d, 2d, 3d) compute over all ranks from now on; gives ``model``.

    Parameters, statistics and their names stay what they are. Layers of other classes are left alone, among them those
    that a user has frozen: they use their stored statistics anyway.
    """
    for layer in model.modules():
        for plain, shared in _SHARED.items():
            if type(layer) is plain:
                layer.__class__ = shared
                layer.collective = collective  # type: ignore[assignment]
    return model


class _Shared(nn.modules.batchnorm._BatchNorm):
    """In training the statistics of all ranks' samples, in evaluation the running ones, as always."""

    collective: Collective

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        normalised: Tensor = self._over_all_ranks(input)
        return normalised

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled graph cannot hold an exchange of ours
    def _over_all_ranks(self, samples: Tensor) -> Any:
        mean, variance, count = _statistics(samples, self.collective)
        if self.running_mean is not None and self.running_var is not None:
            self._remember(mean, variance * (count / max(1.0, count - 1.0)))
        return _Normalise.apply(samples, self.weight, self.bias, mean, variance, count, self.eps, self.collective)

    @torch.no_grad()
    def _remember(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class SharedBatchNorm1d(_Shared, nn.BatchNorm1d):
    """N×C or N×C×L."""


class SharedBatchNorm2d(_Shared, nn.BatchNorm2d):
    """N×C×H×W."""


class SharedBatchNorm3d(_Shared, nn.BatchNorm3d):
    """N×C×D×H×W."""


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SharedBatchNorm1d,
    nn.BatchNorm2d: SharedBatchNorm2d,
    nn.BatchNorm3d: SharedBatchNorm3d,
}


@torch.no_grad()
def _statistics(samples: Tensor, collective: Collective) -> tuple[Tensor, Tensor, float]:
    """Mean and (biased) variance of each channel, float32, and the number of values per channel, over all ranks."""
    channels = samples.shape[1]
    count = samples.numel() // channels
    # float64, because the difference of a large mean square and a large squared mean is taken.
    sums = torch.zeros(2 * channels + 1, dtype=torch.float64, device=samples.device)
    if count:
        dimensions = [0, *range(2, samples.dim())]
        variance, mean = torch.var_mean(samples.float(), dimensions, correction=0)
        mean = mean.double()
        sums[:channels] = mean * count
        sums[channels:-1] = (variance.double() + mean.square()) * count
        sums[-1] = count
    collective.sum(sums)
    total = float(sums[-1])
    mean = sums[:channels] / total
    variance = (sums[channels:-1] / total - mean.square()).clamp_(min=0.0)
    return mean.float(), variance.float(), total


class _Normalise(torch.autograd.Function):
    """y = (x − mean) / √(variance + ε) · weight + bias, with mean and variance functions of all ranks' x.

    With x̂ = (x − mean) / √(variance + ε) over N values per channel, the gradient is
    dx = weight / √(variance + ε) · (dy − Σdy / N − x̂ · Σ(dy · x̂) / N), the sums over all ranks (Ioffe, Szegedy 2015).
    The gradients of weight and bias are this rank's part; they are summed with all others.
    """

    @staticmethod
    def forward(
        ctx: Any,
        samples: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: float,
        epsilon: float,
        collective: Collective,
    ) -> Tensor:
        ctx.save_for_backward(samples, torch.ones_like(mean) if weight is None else weight, mean, variance)
        ctx.count, ctx.epsilon, ctx.collective = count, epsilon, collective
        return functional.batch_norm(samples, mean, variance, weight, bias, training=False, eps=epsilon)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        samples, weight, mean, variance = ctx.saved_tensors
        channels = len(mean)
        if samples.numel():
            direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                gradient.contiguous(memory_format=_format_of(samples)), samples, weight, mean, variance, None, None,
                False, ctx.epsilon, [True, True, True],
            )  # fmt: skip
        else:
            direct, of_weight, of_bias = torch.zeros_like(samples), torch.zeros_like(mean), torch.zeros_like(mean)
        means = torch.cat([of_weight, of_bias]).float()
        ctx.collective.sum(means).div_(ctx.count)
        inverse = (variance + ctx.epsilon).rsqrt()
        slope = weight * inverse.square() * means[:channels]
        offset = weight * inverse * means[channels:] - slope * mean
        shape = [1, channels] + [1] * (samples.dim() - 2)
        kind = samples.dtype
        direct = direct.addcmul(samples, slope.reshape(shape).to(kind), value=-1).sub_(offset.reshape(shape).to(kind))
        needed = ctx.needs_input_grad
        return (
            direct,
            of_weight if needed[1] else None,
            of_bias if needed[2] else None,
            None, None, None, None, None,
        )  # fmt: skip


def _format_of(samples: Tensor) -> torch.memory_format:
    if samples.dim() == 4 and samples.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
