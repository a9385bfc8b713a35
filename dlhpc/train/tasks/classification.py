"""Classification: which of K classes a picture, or a row of a table, belongs to. For several labels see ``labels``.

What is trained on is, over the samples i of a global batch, (1/N) Σ w[yᵢ]·CE(scoresᵢ, yᵢ), with label smoothing inside
CE where asked for (Szegedy et al. 2016). With MixUp each term is share·CE(yᵢ) + (1 − share)·CE(y of the partner). The
curves show the plain cross-entropy of the main scores, without weights and smoothing, for training and validation
alike: only so can the two be compared, with each other and between runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dlhpc.errors import UserError
from dlhpc.train.build import make_model
from dlhpc.train.build import restore_model as restore_model_of
from dlhpc.train.collective import Collective
from dlhpc.train.models import Model, Outputs, with_auxiliary
from dlhpc.train.own import OwnSums, OwnTask, own_task
from dlhpc.train.tasks.base import DeviceBatch, Evaluation, Losses, Measure

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed
    from dlhpc.runs.checkpoints import CheckpointRecord
    from dlhpc.spec.models import Spec, Training

TOP = 5


class Classification:
    """One class a sample. Accuracy, mean F1, and top-5 accuracy where there are more than five classes."""

    train_sums = ("loss", "right")

    def __init__(
        self,
        model: Model,
        classes: list[str],
        *,
        weights: Tensor | None = None,
        smoothing: float = 0.0,
        own: OwnTask | None = None,
        own_measures: tuple[str, ...] = (),
    ) -> None:
        self.model, self.classes = model, classes
        self.weights, self.smoothing = weights, smoothing
        self.own, self.own_measures = own or OwnTask(), own_measures

    def losses(self, batch: DeviceBatch) -> Losses:
        outputs = in_float32(self.model(batch.inputs, batch.partner, batch.share))
        each = self.own.loss if self.own.has_loss else self.trained_on
        main, total = with_auxiliary(outputs, lambda scores: mixed(batch, each, scores).sum())
        scores = outputs.scores.detach()
        is_shown = self.own.has_loss or (self.weights is None and self.smoothing == 0.0)
        shown = main.detach() if is_shown else mixed(batch, self.plain_loss, scores).sum()
        return Losses(total, torch.stack([shown, mixed(batch, self.right, scores).sum()]))

    def trained_on(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample (n) with class weights and smoothing."""
        losses = functional.cross_entropy(scores, targets, reduction="none", label_smoothing=self.smoothing)
        if self.weights is None:
            return losses
        self.weights = self.weights.to(scores.device)  # copied once
        return self.weights[targets] * losses

    def plain_loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """That without them."""
        return functional.cross_entropy(scores, targets, reduction="none")

    def shown_loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """What the curves call loss, of each sample (n)."""
        return self.own.loss(scores, targets) if self.own.has_loss else self.plain_loss(scores, targets)

    def right(self, scores: Tensor, targets: Tensor) -> Tensor:
        """1 for each sample that is named right, else 0."""
        return (scores.argmax(dim=1) == targets).to(scores.dtype)

    def train_metrics(self, sums: list[float], samples: float) -> dict[str, float]:
        loss, right = sums
        return {"loss": loss / samples, "accuracy": right / samples}

    def measure(self) -> Measure:
        return ClassMeasure(self)


class ClassMeasure:
    """Sums are float64 and divided by real counts."""

    def __init__(self, task: Classification) -> None:
        self.task, self.classes = task, task.classes
        self.own = OwnSums(task.own, task.own_measures)
        count = len(self.classes)
        self._sums = torch.zeros(2, dtype=torch.float64)  # loss, right among the top five
        self._confusion = torch.zeros(count * count, dtype=torch.float64)

    def add(self, batch: DeviceBatch) -> None:
        labels: Tensor = batch.targets
        scores = self.task.model(batch.inputs).scores.float()
        count = len(self.classes)
        device = scores.device
        self._sums, self._confusion = self._sums.to(device), self._confusion.to(device)
        self._sums[0] += self.task.shown_loss(scores, labels).double().sum()
        if count > TOP:
            self._sums[1] += (scores.topk(TOP, dim=1).indices == labels[:, None]).sum()
        self._confusion += torch.bincount(labels * count + scores.argmax(dim=1), minlength=count * count)
        self.own.add(scores, labels)

    def finish(self, collective: Collective) -> Evaluation:
        count = len(self.classes)
        total = collective.sum(torch.cat([self._sums.cpu(), self._confusion.cpu(), self.own.sums]))
        table = total[2 : 2 + count * count].reshape(count, count)
        pictures = max(1.0, float(table.sum()))
        metrics = {"loss": float(total[0]) / pictures, "accuracy": float(table.trace()) / pictures}
        if count > TOP:
            metrics["top5_accuracy"] = float(total[1]) / pictures
        metrics["f1_macro"] = macro_f1(table)
        metrics |= self.own.means(total[2 + count * count :], pictures)
        rows: Any = table.to(torch.int64).tolist()
        return Evaluation(metrics, {"classes": self.classes, "confusion": rows})


def mixed(batch: DeviceBatch, each: Callable[[Tensor, Tensor], Tensor], outputs: Tensor) -> Tensor:
    """``each`` (outputs, targets) → n; for mixed samples in equal shares of both samples' targets."""
    own = each(outputs, batch.targets)
    if batch.partner is None or batch.share is None:
        return own
    return batch.share * own + (1 - batch.share) * each(outputs, batch.targets[batch.partner])


def in_float32(outputs: Outputs) -> Outputs:
    """Losses are computed with full precision, whatever the network computed with."""
    return Outputs(outputs.scores.float(), tuple(side.float() for side in outputs.auxiliary))


def macro_f1(table: Tensor) -> float:
    """Mean over the classes of 2 × right / (true + named), from ``table[truth][named]``; classes that neither occur nor
    are named do not count."""
    counted = table.sum(dim=0) + table.sum(dim=1)
    occur = counted > 0
    return float((2 * table.diagonal()[occur] / counted[occur]).mean()) if bool(occur.any()) else 0.0


def class_weights(settings: Training, classes: Sequence[str], counts: NDArray[np.int64]) -> Tensor | None:
    """How much each class counts (K float32), or None for all alike; ``counts`` are those of the training split.

    ``balanced`` is N / (K·n_k), n_k samples of class k and N in all, so that the mean over the training samples is 1
    (King and Zeng 2001; scikit-learn's ``compute_class_weight``). A class without samples has the weight 1.
    Raises :class:`UserError` for a class that there is not.
    """
    wanted = settings.class_weights
    if wanted == "none":
        return None
    if wanted == "balanced":
        total = counts.sum()
        return torch.tensor([total / (len(classes) * n) if n else 1.0 for n in counts.tolist()], dtype=torch.float32)
    for name in wanted:
        if name not in classes:
            close = difflib.get_close_matches(name, classes, n=1)
            raise UserError(
                f"training.class_weights names `{name}`, which is no class of the data",
                remedy=f"Did you mean `{close[0]}`?"
                if close
                else f"The classes are: {', '.join(classes[:20])}" + (" …" if len(classes) > 20 else "."),
            )
    return torch.tensor([wanted.get(name, 1.0) for name in classes], dtype=torch.float32)


def make(spec: Spec, packed: Packed) -> Classification:
    """The task of ``spec`` with a fresh network."""
    targets = np.asarray(packed.targets("train"))
    model = make_model(spec, packed, len(packed.classes))
    own = own_task(spec.task_file)
    count = min(2, len(targets))
    names = own.check(torch.zeros(count, len(packed.classes)), torch.from_numpy(targets[:count].copy()))
    settings = spec.training
    if own.has_loss and (settings.class_weights != "none" or settings.label_smoothing):
        raise UserError(
            "training.class_weights and label_smoothing would have no effect, as the task file has its own loss",
            where=spec.task_file,
            remedy="Weigh and smooth in your function `loss`, or leave it out.",
        )
    kind: type[Classification]
    if packed.several_labels:
        from dlhpc.train.tasks.labels import SeveralLabels

        kind, counts = SeveralLabels, targets.sum(axis=0, dtype=np.int64)
    else:
        kind, counts = Classification, np.bincount(targets, minlength=len(packed.classes))
    weights = class_weights(settings, packed.classes, counts)
    return kind(model, packed.classes, weights=weights, smoothing=settings.label_smoothing, own=own, own_measures=names)


def restore(record: CheckpointRecord, weights: dict[str, Tensor]) -> Model:
    """The trained network of a checkpoint."""
    model = restore_model_of(record, weights, len(record.classes))
    model.several_labels = bool(record.settings.get("several_labels"))
    return model
