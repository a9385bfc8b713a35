"""Classification with several labels: which of K classes a sample belongs to; any number of them, also none.

Each class is a yes or no of its own: the loss of a sample is the mean over the classes of w[k]·BCE(score, label), BCE
being the binary cross-entropy of the score's sigmoid; label smoothing moves 0 and 1 towards a half. Curves show it
without weights and smoothing, as those of ``classification``. A class is named where its probability is above a half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dlhpc.train.collective import Collective
from dlhpc.train.own import OwnSums
from dlhpc.train.tasks.base import DeviceBatch, Evaluation
from dlhpc.train.tasks.classification import Classification

BLOCK_BYTES = 64 * 2**20
"""Of gathered scores that are held at once."""


class SeveralLabels(Classification):
    """Metrics: ``accuracy`` (samples with all labels right), ``f1_micro``, ``f1_macro`` and ``map``."""

    def trained_on(self, scores: Tensor, targets: Tensor) -> Tensor:
        soft = targets.to(scores.dtype) * (1 - self.smoothing) + self.smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(scores, soft, reduction="none")
        if self.weights is not None:
            self.weights = self.weights.to(scores.device)  # copied once
            losses = losses * self.weights
        return losses.mean(dim=1)

    def plain_loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropies(scores, targets)

    def right(self, scores: Tensor, targets: Tensor) -> Tensor:
        return _all_right(scores, targets)

    def measure(self) -> LabelMeasure:
        return LabelMeasure(self)


class LabelMeasure:
    """Counts are summed over ranks; scores are gathered, as an average precision needs the order of all of them."""

    def __init__(self, task: SeveralLabels) -> None:
        self.task, self.classes = task, task.classes
        self.own = OwnSums(task.own, task.own_measures)
        self._sums = torch.zeros(3, dtype=torch.float64)  # loss, all labels right, samples
        self._counts = torch.zeros(3, len(self.classes), dtype=torch.float64)  # true, named, both
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, batch: DeviceBatch) -> None:
        labels: Tensor = batch.targets
        scores = self.task.model(batch.inputs).scores.float()
        loss = self.task.shown_loss(scores, labels).double().sum()
        self._sums += torch.stack([loss, _all_right(scores, labels).double().sum(), loss * 0 + len(labels)]).cpu()
        true, named = labels > 0, scores > 0
        self._counts += torch.stack([each.double().sum(dim=0) for each in (true, named, true & named)]).cpu()
        self._scores.append(scores.cpu())
        self._labels.append(labels.cpu())
        self.own.add(scores, labels)

    def finish(self, collective: Collective) -> Evaluation:
        classes = len(self.classes)
        total = collective.sum(torch.cat([self._sums, self._counts.flatten(), self.own.sums]))
        samples = max(1.0, float(total[2]))
        true, named, both = total[3 : 3 + 3 * classes].reshape(3, classes)
        scores = torch.cat([torch.zeros(0, classes), *self._scores])
        labels = torch.cat([torch.zeros(0, classes, dtype=torch.uint8), *self._labels])
        precisions = average_precisions(scores, labels, collective)
        occur, counted = true > 0, true + named
        metrics = {
            "loss": float(total[0]) / samples,
            "accuracy": float(total[1]) / samples,
            "f1_micro": float(2 * both.sum() / counted.sum().clamp(min=1)),
            "f1_macro": float((2 * both / counted.clamp(min=1))[counted > 0].mean()) if bool(counted.any()) else 0.0,
            "map": float(precisions[occur].mean()) if bool(occur.any()) else 0.0,
            **self.own.means(total[3 + 3 * classes :], samples),
        }
        rows = [
            _row(name, *values)
            for name, *values in zip(
                self.classes, true.tolist(), named.tolist(), both.tolist(), precisions.tolist(), strict=True
            )
        ]
        return Evaluation(metrics, {"classes": self.classes, "several_labels": True, "per_class": rows})


def _row(name: str, true: float, named: float, both: float, average_precision: float) -> dict[str, Any]:
    """Figures of one class; None where there was nothing to be counted."""
    return {
        "name": name,
        "count": int(true),
        "named": int(named),
        "right": int(both),
        "precision": both / named if named else None,
        "recall": both / true if true else None,
        "f1": 2 * both / (true + named) if true + named else None,
        "ap": average_precision if true else None,
    }


def binary_cross_entropies(scores: Tensor, targets: Tensor) -> Tensor:
    """Of each sample (n), the mean over its classes."""
    return functional.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype), reduction="none").mean(dim=1)


def _all_right(scores: Tensor, targets: Tensor) -> Tensor:
    return ((scores > 0) == (targets > 0)).all(dim=1).to(scores.dtype)


def average_precisions(scores: Tensor, labels: Tensor, collective: Collective) -> Tensor:
    """Average precision of each class (K float64; 0 for one that does not occur) over the samples of all ranks.

    ``scores`` n×K float32 and ``labels`` n×K uint8 are those of this rank. Each rank ranks some of the classes.
    """
    count, classes = scores.shape
    counts = collective.gather(torch.tensor([count], dtype=torch.int64)).flatten().tolist()
    longest, ranks = max(counts), len(counts)
    found = torch.zeros(classes, dtype=torch.float64)
    width = max(1, BLOCK_BYTES // max(1, 4 * longest * ranks))
    for first in range(0, classes if longest else 0, width):
        # Filled up to one length: all ranks must give the same shape.
        fill = (0, 0, 0, longest - count)
        block = slice(first, min(classes, first + width))
        all_scores = collective.gather(functional.pad(scores[:, block], fill).contiguous()).numpy()
        all_labels = collective.gather(functional.pad(labels[:, block], fill).contiguous()).numpy()
        for column in range(all_scores.shape[2]):
            if (first + column) % ranks == collective.rank:
                own = [(all_scores[rank, :n, column], all_labels[rank, :n, column]) for rank, n in enumerate(counts)]
                found[first + column] = average_precision(*(np.concatenate(parts) for parts in zip(*own, strict=True)))
    return collective.sum(found)


def average_precision(scores: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    """Σ (Rₙ − Rₙ₋₁)·Pₙ over the thresholds, from the highest score down; equal scores are one threshold.

    The definition of scikit-learn's ``average_precision_score``; 0 without a true label.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    right = np.cumsum(labels[order] > 0)
    if not len(right) or not right[-1]:
        return 0.0
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # last of each run of equal scores
    right = right[ends]
    return float(np.sum(np.diff(right, prepend=0) * (right / (ends + 1))) / right[-1])
