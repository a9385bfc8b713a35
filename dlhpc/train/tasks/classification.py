"""Classification: which of K classes a picture belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dlhpc.train.collective import Collective
from dlhpc.train.models import Classifier, Preprocess, build_network, preprocess_for, training_loss
from dlhpc.train.tasks.base import DeviceBatch, Evaluation, Losses

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed
    from dlhpc.runs.checkpoints import CheckpointRecord
    from dlhpc.spec.models import Spec

TOP = 5


class Classification:
    """One class a picture. Cross-entropy; accuracy, and top-5 accuracy where there are more than five classes."""

    train_sums = ("loss", "right")

    def __init__(self, model: Classifier, classes: list[str]) -> None:
        self.model = model
        self.classes = classes

    def losses(self, batch: DeviceBatch) -> Losses:
        outputs = self.model(batch.inputs)
        total, main = training_loss(outputs, batch.targets)
        right = (outputs.scores.detach().argmax(dim=1) == batch.targets).sum()
        return Losses(total, torch.stack([main, right.to(main.dtype)]))

    def train_metrics(self, sums: list[float], samples: float) -> dict[str, float]:
        loss, right = sums
        return {"loss": loss / samples, "accuracy": right / samples}

    def measure(self) -> ClassMeasure:
        return ClassMeasure(self.model, self.classes)


class ClassMeasure:
    """Sums are float64 and divided by real counts."""

    def __init__(self, model: Classifier, classes: list[str]) -> None:
        self.model, self.classes = model, classes
        count = len(classes)
        self._sums = torch.zeros(2, dtype=torch.float64)  # loss, right among the top five
        self._confusion = torch.zeros(count * count, dtype=torch.float64)

    def add(self, batch: DeviceBatch) -> None:
        labels: Tensor = batch.targets
        scores = self.model(batch.inputs).scores.float()
        count = len(self.classes)
        device = scores.device
        self._sums, self._confusion = self._sums.to(device), self._confusion.to(device)
        self._sums[0] += functional.cross_entropy(scores, labels, reduction="sum")
        if count > TOP:
            self._sums[1] += (scores.topk(TOP, dim=1).indices == labels[:, None]).sum()
        self._confusion += torch.bincount(labels * count + scores.argmax(dim=1), minlength=count * count)

    def finish(self, collective: Collective) -> Evaluation:
        count = len(self.classes)
        total = collective.sum(torch.cat([self._sums, self._confusion]).cpu())
        table = total[2:].reshape(count, count)
        pictures = max(1.0, float(table.sum()))
        metrics = {"loss": float(total[0]) / pictures, "accuracy": float(table.trace()) / pictures}
        if count > TOP:
            metrics["top5_accuracy"] = float(total[1]) / pictures
        rows: Any = table.to(torch.int64).tolist()
        return Evaluation(metrics, {"classes": self.classes, "confusion": rows})


def make(spec: Spec, packed: Packed) -> Classification:
    """The task of ``spec`` with a fresh network."""
    height, width = spec.input_size
    image = packed.mean_image if spec.data.normalize == "image" else None
    preprocess = preprocess_for(spec.data.normalize, packed.mean, packed.std, image, height, width)
    network = build_network(spec.network.name, packed.channels, len(packed.classes), height, width)
    return Classification(Classifier(preprocess, network), packed.classes)


def restore(record: CheckpointRecord, weights: dict[str, Tensor]) -> Classifier:
    """The trained network of a checkpoint."""
    given = record.input
    with torch.device("meta"):  # weights come from the file; drawing random ones first would only cost time
        network = build_network(record.network, given["channels"], len(record.classes), given["height"], given["width"])
    preprocess = Preprocess(weights["preprocess.mean"], weights["preprocess.std"])
    below = {name.removeprefix("network."): value for name, value in weights.items() if name.startswith("network.")}
    network.load_state_dict(below, assign=True)
    return Classifier(preprocess, network)
