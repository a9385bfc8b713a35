"""Regression: one or several numbers of a picture, or of a row of a table.

Targets are standardised with mean μ and σ of the training samples, z = (t − μ) / σ, so that the loss has the same
scale for any unit and no target outweighs another; the trained model gives values in the user's units. The loss of a
sample is the mean over its targets of (ẑ − z)² (``mse``), |ẑ − z| (``mae``) or Huber's loss with δ = 1 (Huber 1964).
With MixUp (Zhang et al. 2018) a sample's target is mixed as the sample is.

Measures of n samples, with errors e = t̂ − t in the user's units, each over the whole split:

* per target ``mae`` = Σ|e| / n, ``rmse`` = √(Σe² / n) and ``r2`` = 1 − Σe² / Σ(t − t̄)², t̄ being the split's own mean;
  r2 is left out where the targets of the split do not vary;
* with one target these are called ``mae``, ``rmse`` and ``r2``. With several they are ``mae_NAME`` and so on, and the
  plain names stand for all: ``mae`` is the mean of mae/σ, ``rmse`` the root of the mean of (rmse/σ)², both without a
  unit, and ``r2`` the mean of those that there are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dlhpc.data.splits import SPLITS
from dlhpc.errors import DataError
from dlhpc.train.build import make_model
from dlhpc.train.build import restore_model as restore_model_of
from dlhpc.train.collective import Collective
from dlhpc.train.models import Model, Outputs, with_auxiliary
from dlhpc.train.own import OwnSums, OwnTask, own_task
from dlhpc.train.tasks.base import DeviceBatch, Evaluation, Losses

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed
    from dlhpc.runs.checkpoints import CheckpointRecord
    from dlhpc.spec.models import Spec

PAIRS = 500
"""So many samples of a split are told one by one, as truth and prediction."""

Each = Callable[[Tensor, Tensor], Tensor]
"""n×T answers and truths, both standardised → one loss a sample (n)."""


class Regressor(Model):
    """Raw inputs in, N×T float64 values in the user's units out. Its ``state_dict`` is the weights file.

    ``target_mean`` and ``target_std`` are float64 buffers (T): energies of −30,000.123 eV have too many digits for
    float32.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, model: Model, mean: Tensor, std: Tensor) -> None:
        super().__init__(model.preprocess, model.network)
        self.register_buffer("target_mean", mean.to(torch.float64))
        self.register_buffer("target_std", std.to(torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]  # people want values
        return self.in_units(self.standardised(inputs).scores)

    def standardised(self, inputs: Tensor, partner: Tensor | None = None, share: Tensor | None = None) -> Outputs:
        """N×T answers on the scale of the loss, float32, and those of side outputs while training."""
        outputs = super().forward(inputs, partner, share)
        return Outputs(outputs.scores.float(), tuple(side.float() for side in outputs.auxiliary))

    def in_units(self, answers: Tensor) -> Tensor:
        """Standardised answers as float64 values in the user's units."""
        return answers.double() * self.target_std + self.target_mean

    def from_units(self, values: Tensor) -> Tensor:
        """Values in the user's units (any float type) as float32 on the scale of the loss."""
        return ((values.double() - self.target_mean) / self.target_std).float()


class _FullPrecision(nn.Linear):
    """A linear layer that is not rounded to bf16 or fp16 under autocast: eight bits are too few for a result."""

    def forward(self, input: Tensor) -> Tensor:  # as torch calls it
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.float(), self.weight, self.bias)


def keep_last_layer_exact(network: nn.Module) -> None:
    """Let the last linear layer compute in float32 whatever ``training.precision`` says; its weights stay the same."""
    linear = [(name, module) for name, module in network.named_modules() if type(module) is nn.Linear and name]
    if linear:
        name, last = linear[-1]
        exact = _FullPrecision(last.in_features, last.out_features, last.bias is not None, device="meta")
        exact.weight, exact.bias = last.weight, last.bias
        network.set_submodule(name, exact)


class Regression:
    """Learns T numbers a sample; ``names`` are what the user calls them."""

    def __init__(
        self,
        model: Regressor,
        names: list[str],
        loss: str = "mse",
        own: OwnTask | None = None,
        own_measures: tuple[str, ...] = (),
    ) -> None:
        self.model, self.names = model, names
        self.own, self.own_measures = own or OwnTask(), own_measures
        self._each: Each = self._own_loss if self.own.has_loss else _LOSSES[loss]

    @property
    def train_sums(self) -> tuple[str, ...]:
        return ("loss", *(f"absolute {name}" for name in self.names), *(f"squared {name}" for name in self.names))

    def losses(self, batch: DeviceBatch) -> Losses:
        truths = self.model.from_units(batch.targets)
        if batch.partner is not None and batch.share is not None:
            truths = truths[batch.partner].lerp(truths, batch.share[:, None])
        outputs = self.model.standardised(batch.inputs, batch.partner, batch.share)
        main, total = with_auxiliary(outputs, lambda answers: self._each(answers, truths).sum())
        errors = (outputs.scores.detach() - truths).double()
        sums = [main.detach().double()[None], errors.abs().sum(dim=0), errors.square().sum(dim=0)]
        return Losses(total, torch.cat(sums))

    def each_loss(self, answers: Tensor, truths: Tensor) -> Tensor:
        """The loss of each sample (n) out of n×T standardised answers and truths."""
        return self._each(answers, truths)

    def _own_loss(self, answers: Tensor, truths: Tensor) -> Tensor:
        """The user's own, which gets both as float32 in the user's units."""
        return self.own.loss(self.model.in_units(answers).float(), self.model.in_units(truths).float())

    def train_metrics(self, sums: list[float], samples: float) -> dict[str, float]:
        count = len(self.names)
        absolute = [total / samples for total in sums[1 : 1 + count]]
        squared = [total / samples for total in sums[1 + count :]]
        unit = float(self.model.target_std[0]) if count == 1 else 1.0
        mae, rmse = unit * _mean(absolute), unit * math.sqrt(_mean(squared))
        return {"loss": sums[0] / samples, "mae": mae, "rmse": rmse}

    def measure(self) -> RegressionMeasure:
        return RegressionMeasure(self)


def _mse(answers: Tensor, truths: Tensor) -> Tensor:
    return (answers - truths).square().mean(dim=1)


def _mae(answers: Tensor, truths: Tensor) -> Tensor:
    return (answers - truths).abs().mean(dim=1)


def _huber(answers: Tensor, truths: Tensor) -> Tensor:
    return functional.huber_loss(answers, truths, reduction="none").mean(dim=1)


_LOSSES: dict[str, Each] = {"mse": _mse, "mae": _mae, "huber": _huber}


class RegressionMeasure:
    """Sums are float64 and divided by real counts.

    Deviations of the truth are taken from the training mean, close to the split's own, so that no digits are lost.
    """

    def __init__(self, task: Regression) -> None:
        self.task = task
        self.own = OwnSums(task.own, task.own_measures)
        self._sums = torch.zeros(2 + 5 * len(task.names), dtype=torch.float64)
        self._pairs: list[Tensor] = []
        self._seen, self._stride = 0, 1

    def add(self, batch: DeviceBatch) -> None:
        model = self.task.model
        truths = batch.targets.double()
        answers = model.standardised(batch.inputs).scores
        values = model.in_units(answers)
        errors, deviations = values - truths, truths - model.target_mean
        self._sums = self._sums.to(errors.device)
        self._sums[0] += len(batch)
        self._sums[1] += self.task.each_loss(answers, model.from_units(truths)).double().sum()
        parts = [errors.abs(), errors.square(), deviations, deviations.square(), deviations.abs()]
        self._sums[2:] += torch.cat([part.sum(dim=0) for part in parts])
        self.own.add(values.float(), truths.float())
        self._keep(torch.stack([truths, values], dim=2))

    def _keep(self, pairs: Tensor) -> None:
        """Every so many samples (n×T×2), twice as sparsely whenever they become too many."""
        self._pairs.append(pairs[-self._seen % self._stride :: self._stride])
        self._seen += len(pairs)
        if sum(map(len, self._pairs)) > 2 * PAIRS:
            self._pairs = [torch.cat(self._pairs)[::2]]
            self._stride *= 2

    def finish(self, collective: Collective) -> Evaluation:
        totals = collective.sum(torch.cat([self._sums.cpu(), self.own.sums]))
        count = max(1.0, float(totals[0]))
        end = 2 + 5 * len(self.task.names)
        absolute, squared, shifted, spread, plain = totals[2:end].reshape(5, -1).tolist()
        model, rows = self.task.model, []
        for at, name in enumerate(self.task.names):
            about_own_mean = spread[at] - shifted[at] ** 2 / count
            varies = about_own_mean > 1e-12 * spread[at]
            rows.append(
                {
                    "name": name,
                    "mae": absolute[at] / count,
                    "rmse": math.sqrt(squared[at] / count),
                    "r2": 1 - squared[at] / about_own_mean if varies else None,
                    "mean": float(model.target_mean[at]),
                    "std": float(model.target_std[at]),
                    "mean_predictor": {
                        "mae": plain[at] / count,
                        "rmse": math.sqrt(spread[at] / count),
                        "r2": 1 - spread[at] / about_own_mean if varies else None,
                    },
                }
            )
        metrics = {"loss": float(totals[1]) / count, **overall(rows)}
        metrics |= self.own.means(totals[end:], count)
        samples = self._gathered(collective)
        pairs = {name: [sample[at] for sample in samples] for at, name in enumerate(self.task.names)}
        return Evaluation(metrics, {"targets": rows, "pairs": pairs})

    def _gathered(self, collective: Collective) -> list[list[list[float]]]:
        """Up to ``PAIRS`` samples of all ranks in the split's order, each T times [truth, prediction]."""
        kept = torch.cat(self._pairs).tolist() if self._pairs else []
        found = []
        for rank, (stride, pairs) in enumerate(collective.gather_json([self._stride, kept])):
            found += [(rank + at * stride * collective.size, pair) for at, pair in enumerate(pairs)]
        found.sort(key=lambda numbered: numbered[0])
        chosen = range(len(found)) if len(found) <= PAIRS else [at * len(found) // PAIRS for at in range(PAIRS)]
        return [found[at][1] for at in chosen]


def overall(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The measures for the curves out of those of each target; see the module."""
    if len(rows) == 1:
        return {name: float(rows[0][name]) for name in ("mae", "rmse", "r2") if rows[0][name] is not None}
    known = [row["r2"] for row in rows if row["r2"] is not None]
    metrics = {
        "mae": _mean([row["mae"] / row["std"] for row in rows]),
        "rmse": math.sqrt(_mean([(row["rmse"] / row["std"]) ** 2 for row in rows])),
    }
    if known:
        metrics["r2"] = _mean(known)
    for row, name in zip(rows, measure_names([row["name"] for row in rows])):
        metrics |= {f"{what}_{name}": row[what] for what in ("mae", "rmse", "r2") if row[what] is not None}
    return metrics


def measure_names(names: Sequence[str]) -> list[str]:
    """The names of targets as parts of names of measures: letters and digits of any script, each name once.

    >>> measure_names(["Strength (MPa)", "Strength [MPa]", "強度"])
    ['Strength_MPa', 'Strength_MPa_2', '強度']
    """
    given: list[str] = []
    for number, name in enumerate(names, 1):
        plain = re.sub(r"\W+", "_", name).strip("_") or str(number)
        given.append(plain if plain not in given else f"{plain}_{number}")
    return given


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def make(spec: Spec, packed: Packed) -> Regression:
    """The task of ``spec`` with a fresh network; :class:`DataError` if a target is no finite number."""
    names = list(packed.target_names)
    for split in SPLITS:
        targets = np.asarray(packed.targets(split), dtype=np.float64)
        odd = np.argwhere(~np.isfinite(targets))
        if len(odd):
            raise DataError(
                f"{len(odd)} targets in {split} are no finite numbers, the first `{names[odd[0][1]]}` of "
                f"{packed.paths(split)[odd[0][0]]}",
                remedy="Correct them in the table or list, and submit the run anew.",
            )
    model = make_model(spec, packed, len(names))
    keep_last_layer_exact(model.network)
    regressor = Regressor(model, torch.from_numpy(packed.target_mean), torch.from_numpy(packed.target_std))
    own = own_task(spec.task_file)
    few = torch.from_numpy(np.array(packed.targets("train")[:2], dtype=np.float32))  # type: ignore[index]
    return Regression(regressor, names, spec.training.loss, own, own.check(torch.zeros_like(few), few))


def restore(record: CheckpointRecord, weights: dict[str, Tensor]) -> Regressor:
    """The trained network of a checkpoint."""
    mean, std = weights["target_mean"], weights["target_std"]
    return Regressor(restore_model_of(record, weights, len(mean)), mean, std)
