"""One optimiser step over a global batch: forward and backward of each portion, the sum over ranks, the update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dlhpc.errors import UserError
from dlhpc.spec.models import Spec
from dlhpc.train.average import Average
from dlhpc.train.collective import Collective
from dlhpc.train.feed import DeviceStep
from dlhpc.train.gradients import GradientBuckets
from dlhpc.train.memory import is_out_of_memory, tidy_up
from dlhpc.train.models import batch_norms, running_statistics
from dlhpc.train.optimisers import make_optimiser, set_rate
from dlhpc.train.precision import LossScale, PrecisionName, autocast
from dlhpc.train.pretrained import parameter_groups
from dlhpc.train.tasks.base import DeviceBatch, Losses, Task


@dataclass(frozen=True)
class Outcome:
    """How a step ended; the same on all ranks."""

    stop: bool = False
    """At least one rank asks to stop after it."""
    finite: bool = True
    """If not, training has diverged: weights are as they were."""
    out_of_memory: bool = False
    """At least one rank had not enough: nothing has changed, the step is to be done again in smaller portions."""


class Stepper:
    """Moves a task's network. ``before_update`` is called when weights are about to change."""

    def __init__(self, task: Task, spec: Spec, collective: Collective, device: torch.device) -> None:
        self.task, self.model, self.device = task, task.model, device
        self.sync_norm = spec.training.sync_batch_norm and collective.size > 1
        self.batch_norms = [] if self.sync_norm else batch_norms(self.model)
        groups = parameter_groups(self.model, spec.learning_rate.factors)
        self.optimiser = make_optimiser(spec.optimizer, groups)
        self.gradients = GradientBuckets(self.model.parameters(), collective, spec.distributed)
        self.trained = [one for one in self.model.parameters() if one.requires_grad]
        self.clip_norm = spec.training.clip_norm
        self.average = None if spec.training.ema is None else Average(self.model, spec.training.ema)
        self.precision: PrecisionName = "fp32"
        self.scale: LossScale | None = None
        self.before_update: Callable[[], None] = lambda: None
        # The task's sums and the number of samples, since the last point of the training curves.
        self.running = torch.zeros(len(task.train_sums) + 1, dtype=torch.float64, device=device)

    def use(self, precision: PrecisionName, scale: LossScale | None = None) -> None:
        """Compute with this precision from now on; fp16 goes on with ``scale`` if there is one."""
        self.precision = precision
        self.scale = (scale or LossScale()) if precision == "fp16" else None

    def take(self, step: DeviceStep, number: int, seed: int, rate: float, stop: bool) -> Outcome:
        """Do optimiser step ``number`` (from 0) at this learning ``rate``; ``stop`` asks all ranks to stop after it."""
        torch.manual_seed(seed)
        set_rate(self.optimiser, rate)
        self.gradients.begin(stop=stop)
        sums = torch.zeros_like(self.running)
        exhausted = False
        try:
            self.accumulate(step, sums)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.sync_norm:  # the other ranks wait for our pictures in the middle of their forward pass
                raise UserError(
                    "memory does not suffice, and with training.sync_batch_norm portions cannot be halved on the way",
                    remedy="Halve training.batch_size and double training.accumulate.",
                ) from error
            exhausted = True
        if exhausted:  # outside of `except`, which holds on to all that the failed pass has made
            tidy_up(self.device)
            self.gradients.out_of_memory()
        agreed = self.gradients.finish()
        if agreed.out_of_memory:
            return Outcome(stop=agreed.stop, out_of_memory=True)
        self.running += sums
        return Outcome(stop=agreed.stop, finite=agreed.finite and self.update(number))

    def accumulate(self, step: DeviceStep, sums: Tensor) -> None:
        """Gradients of this rank's portions; adds what they measure to ``sums``."""
        for number, batch in enumerate(step.portions, start=1):
            losses = self.losses(batch)
            # Summed over portions and ranks this is the mean over the global batch, however unevenly it is shared.
            loss = losses.total / step.global_count
            self.gradients.watch(loss)
            if number == len(step.portions):
                self.gradients.arm()
            (loss if self.scale is None else loss * self.scale.value).backward()  # type: ignore[no-untyped-call]
            sums[:-1] += losses.sums
            sums[-1] += len(batch)

    def losses(self, batch: DeviceBatch) -> Losses:
        """The forward pass, in the precision that was chosen."""
        with running_statistics(self.batch_norms if len(batch) == 1 else []), autocast(self.precision, self.device):
            return self.task.losses(batch)

    def update(self, number: int) -> bool:
        """Move the weights by the summed gradients; gives whether there is any sense in going on.

        With fp16, gradients that overflow are no reason to stop: they are thrown away, and the next losses scaled less.
        The sum is the same on all ranks, and infinite if one rank's part is, so that all of them decide alike.
        """
        factor = 1.0 if self.scale is None else 1.0 / self.scale.value
        if self.clip_norm is not None or self.scale is not None:
            norm = factor * float(self.gradients.norm())
            if self.scale is not None:
                if not norm < float("inf"):
                    return self.scale.overflow()
                self.scale.fits()
            if self.clip_norm is not None and norm > self.clip_norm:
                factor *= self.clip_norm / norm
        if factor != 1.0:
            self.gradients.scale_(factor)
        self.before_update()
        self.optimiser.step()
        if self.average is not None:
            self.average.update(number + 1)
        return True
