"""Detection: where in a picture the objects of K classes are, as boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dlhpc.data.samples import Boxes
from dlhpc.errors import UserError
from dlhpc.spec.network import DETECTORS
from dlhpc.spec.network import Detection as Settings
from dlhpc.train.collective import Collective
from dlhpc.train.detection import networks
from dlhpc.train.detection.average_precision import average_precision, require_pycocotools
from dlhpc.train.detection.base import DetectionNetwork, Detections, Raw, in_fp32
from dlhpc.train.detection.measures import Split, count, per_class, verdicts
from dlhpc.train.models import Preprocess, preprocess_for
from dlhpc.train.pretrained import freeze
from dlhpc.train.tasks.base import BoxTensors, DeviceBatch, Evaluation, Losses

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed
    from dlhpc.runs.checkpoints import CheckpointRecord
    from dlhpc.spec.models import Spec


class Detector(nn.Module):
    """Normalisation and network as one: raw pictures in, undecoded outputs out. Its ``state_dict`` is the weights
    file."""

    def __init__(self, preprocess: Preprocess, network: DetectionNetwork) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Raw:
        raw: Raw = self.network(self.preprocess(pictures))
        return raw


def detect(model: Detector, inputs: Tensor) -> list[Detections]:
    """What ``model`` (in evaluation mode) finds in raw pictures n×C×h×w, which are where the model is."""
    with torch.inference_mode():
        raw = model(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            return model.network.detections(in_fp32(raw), _size(inputs))


class Detection:
    """Losses of the network; precision, recall and DIGITS' product of both at ``match_iou``; average precision."""

    def __init__(self, model: Detector, classes: list[str], match_iou: float) -> None:
        self.model = model
        self.classes = classes
        self.match_iou = match_iou
        self.train_sums = ("loss", *(f"loss_{name}" for name in model.network.loss_names))

    def losses(self, batch: DeviceBatch) -> Losses:
        return _losses(self.model, self.model(batch.inputs), batch)

    def train_metrics(self, sums: list[float], samples: float) -> dict[str, float]:
        return {name: value / samples for name, value in zip(self.train_sums, sums)}

    def measure(self) -> DetectionMeasure:
        return DetectionMeasure(self.model, self.classes, self.train_sums, self.match_iou)


def _losses(model: Detector, raw: Raw, batch: DeviceBatch) -> Losses:
    network, boxes = model.network, batch.targets
    assert isinstance(boxes, BoxTensors)
    with torch.autocast(batch.inputs.device.type, enabled=False):
        parts = network.losses(in_fp32(raw), boxes, _size(batch.inputs))
        total = (parts * parts.new_tensor(network.loss_weights)).sum()
    return Losses(total, torch.cat([total.detach()[None], parts.detach()]))


def _size(inputs: Tensor) -> tuple[int, int]:
    return inputs.shape[-2], inputs.shape[-1]


class DetectionMeasure:
    """Keeps what was found on this rank, and what is there; all ranks' are brought together at the end."""

    def __init__(self, model: Detector, classes: list[str], sums: tuple[str, ...], match_iou: float) -> None:
        self.model, self.classes, self.names, self.match_iou = model, classes, sums, match_iou
        self._sums = torch.zeros(len(sums), dtype=torch.float64)
        self._pictures = 0
        self._true: list[Tensor] = []  # picture on this rank, class, four corners
        self._found: list[Tensor] = []  # the same and the score

    def add(self, batch: DeviceBatch) -> None:
        raw = self.model(batch.inputs)
        self._sums += _losses(self.model, raw, batch).sums.to("cpu", torch.float64)
        with torch.autocast(batch.inputs.device.type, enabled=False):
            found = self.model.network.detections(in_fp32(raw), _size(batch.inputs))
        boxes: BoxTensors = batch.targets
        per_picture = torch.tensor(boxes.starts).diff()
        self._true.append(_rows(self._numbers(per_picture), boxes.classes, boxes.corners))
        for number, seen in enumerate(found):
            numbers = torch.full((len(seen),), self._pictures + number)
            self._found.append(_rows(numbers, seen.classes, seen.corners, seen.scores))
        self._pictures += len(batch)

    def _numbers(self, per_picture: Tensor) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(per_picture)) + self._pictures, per_picture)

    def finish(self, collective: Collective) -> Evaluation:
        pictures = collective.gather(torch.tensor([self._pictures])).flatten()
        sums = collective.sum(self._sums)
        true, found = _all_rows(self._true, 6, collective), _all_rows(self._found, 7, collective)
        # One rank computes, so that all have the same numbers; threads of several ranks would only be in the way.
        answer: Any = None
        if collective.rank == 0:
            losses = dict(zip(self.names, (sums / max(1, int(pictures.sum()))).tolist()))
            answer = self._evaluation(losses, _split(pictures, true, found), int(pictures.sum()))
        metrics, details = collective.share_json(answer)
        return Evaluation(metrics, details)

    def _evaluation(
        self, losses: dict[str, float], split: Split, pictures: int
    ) -> tuple[dict[str, float], dict[str, Any]]:
        verdict = verdicts(split, self.match_iou)
        counts = count(split, verdict)
        precise = average_precision(split, len(self.classes))
        metrics = {
            **losses,
            "precision": counts.precision,
            "recall": counts.recall,
            "digits_map": counts.digits_map,
            "ap": precise.ap,
            "ap50": precise.ap50,
            "ap75": precise.ap75,
        }
        rows = per_class(split, verdict, self.classes)
        for row, values in zip(rows, precise.by_class):
            row |= dict(zip(("ap", "ap50", "ap75"), values or (None, None, None)))
        details = {
            "classes": self.classes,
            "match_iou": self.match_iou,
            "pictures": pictures,
            "counts": {
                "true": counts.true,
                "right": counts.right,
                "wrong": counts.wrong,
                "dont_care_regions": len(split.true_class) - counts.true,
                "found_in_dont_care": len(verdict) - counts.right - counts.wrong,
            },
            "per_class": rows,
        }
        return metrics, details


def _rows(picture: Tensor, classes: Tensor, corners: Tensor, *more: Tensor) -> Tensor:
    """Rows of float64, exact for all that goes in."""
    columns = [picture, classes, *corners.unbind(dim=1), *more]
    return torch.stack([column.to("cpu", torch.float64) for column in columns], dim=1)


def _all_rows(rows: list[Tensor], width: int, collective: Collective) -> list[Tensor]:
    """The rows of every rank; they travel filled up to the longest."""
    mine = torch.cat([torch.zeros(0, width, dtype=torch.float64), *rows])
    lengths = collective.gather(torch.tensor([len(mine)])).flatten().tolist()
    longest = max(lengths)
    if not longest:
        return [mine for _ in lengths]
    filled = torch.zeros(longest, width, dtype=torch.float64)
    filled[: len(mine)] = mine
    return [part[:length] for part, length in zip(collective.gather(filled), lengths)]


def _split(pictures: Tensor, true: list[Tensor], found: list[Tensor]) -> Split:
    """All ranks' rows as one split. Rank r of R has the pictures r, r + R, …: equally sure detections are then in the
    order of the split, whatever R is."""

    def joined(parts: Iterator[Tensor]) -> Any:
        rows = torch.cat(list(parts)).numpy()
        return rows[np.argsort(rows[:, 0], kind="stable")]

    ranks = len(pictures)

    def numbered(parts: list[Tensor]) -> Iterator[Tensor]:
        for rank, rows in enumerate(parts):
            yield torch.cat([rows[:, :1] * ranks + rank, rows[:, 1:]], dim=1)

    there, seen = joined(numbered(true)), joined(numbered(found))
    total = int((pictures * ranks).max()) if len(pictures) else 0
    return Split(
        total, there[:, 0].astype(np.int64), there[:, 1].astype(np.int64), there[:, 2:6],
        seen[:, 0].astype(np.int64), seen[:, 1].astype(np.int64), seen[:, 2:6], seen[:, 6],
    )  # fmt: skip


def make(spec: Spec, packed: Packed) -> Detection:
    """The task of ``spec`` with a fresh network."""
    require_pycocotools()
    if spec.network.file is not None:
        raise UserError(
            "network.file is not for task detection, whose networks bring their own losses and decoding",
            remedy=f"Choose one of {', '.join(DETECTORS)} as network.name.",
        )
    if spec.task_file is not None:
        raise UserError(
            "task_file is for classification and regression; detection measures by its own rules",
            remedy="Leave task_file away; what detection may be told stands under `detection:`.",
        )
    height, width = spec.augment.crop_size or (packed.height, packed.width)
    image = packed.mean_image if spec.data.normalize == "image" else None
    preprocess = preprocess_for(spec.data.normalize, packed.mean, packed.std, image, height, width)
    boxes = packed.targets("train")
    assert isinstance(boxes, Boxes)
    network = networks.fresh_network(
        spec.network.name, spec.network.options, packed.channels, len(packed.classes), boxes, (height, width),
        spec.detection,
    )  # fmt: skip
    model = Detector(preprocess, network)
    freeze(model, spec.network.freeze)
    return Detection(model, packed.classes, spec.detection.match_iou)


def restore(record: CheckpointRecord, weights: dict[str, Tensor]) -> Detector:
    """The trained network of a checkpoint."""
    settings = Settings.model_validate(record.settings["detection"])
    below = {name.removeprefix("network."): value for name, value in weights.items() if name.startswith("network.")}
    network = networks.network_of(
        record.network, record.settings["network"].get("options", {}), record.input["channels"], len(record.classes),
        settings, below,
    )  # fmt: skip
    return Detector(Preprocess(weights["preprocess.mean"], weights["preprocess.std"]), network)
