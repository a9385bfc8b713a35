"""Average precision as COCO defines it, by pycocotools: https://cocodataset.org/#detection-eval.

*DontCare* regions are COCO's crowds of every class: a detection that lies mostly inside one is not counted.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlhpc.data.samples import DONT_CARE
from dlhpc.errors import UserError
from dlhpc.train.detection.base import MOST
from dlhpc.train.detection.measures import Split, areas


@dataclass(frozen=True)
class AveragePrecision:
    """Mean over the classes that have true boxes; 0 if none has."""

    ap: float
    """Averaged over the overlaps 0.50, 0.55 … 0.95."""
    ap50: float
    ap75: float
    by_class: list[tuple[float, float, float] | None]
    """The same three of each class; ``None`` where it has no true box."""


def require_pycocotools() -> None:
    """:class:`UserError` if average precision cannot be computed here, which is better known before training."""
    try:
        _module("cocoeval")
    except ImportError as error:
        raise UserError(
            f"average precision needs pycocotools, which cannot be loaded: {error}",
            remedy="Build the software environment again (`dlhpc env build`), or `pip install pycocotools` into it.",
        ) from error


def _module(name: str) -> Any:
    return importlib.import_module(f"pycocotools.{name}")  # it has no types


def average_precision(split: Split, classes: int) -> AveragePrecision:
    """COCO's evaluation of ``split`` with at most :data:`MOST` detections a picture."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and tables
        truth = _module("coco").COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": number} for number in range(split.pictures)],
            "categories": [{"id": kind} for kind in range(classes)],
            "annotations": _annotations(split, classes),
        }
        truth.createIndex()
        found = truth.loadRes(_found(split)) if len(split.found_score) else _nothing(truth)
        evaluation = _module("cocoeval").COCOeval(truth, found, "bbox")
        evaluation.params.maxDets = [1, 10, MOST]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # Overlaps × recalls × classes × areas × detections; −1 where a class has no true boxes.
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    by_class = [_three(precision[:, :, kind]) for kind in range(classes)]
    known = np.array([values for values in by_class if values is not None], dtype=np.float64).reshape(-1, 3)
    ap, ap50, ap75 = known.mean(axis=0).tolist() if len(known) else (0.0, 0.0, 0.0)
    return AveragePrecision(ap, ap50, ap75, by_class)


def _three(precision: Any) -> tuple[float, float, float] | None:
    return (
        (float(precision.mean()), float(precision[0].mean()), float(precision[5].mean()))
        if (precision > -1).any()
        else None
    )


def _boxes(corners: Any) -> list[list[float]]:
    """Left, top, width, height."""
    boxes: list[list[float]] = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
    return boxes


def _annotations(split: Split, classes: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    truths = zip(
        split.true_picture.tolist(), split.true_class.tolist(), _boxes(split.true_corners), areas(split.true_corners)
    )
    for picture, kind, box, area in truths:
        crowd = int(kind == DONT_CARE)
        for category in range(classes) if crowd else (kind,):
            rows.append(
                {
                    "id": len(rows) + 1,  # 0 would mean unmatched
                    "image_id": picture,
                    "category_id": category,
                    "bbox": box,
                    "area": float(area),
                    "iscrowd": crowd,
                }
            )
    return rows


def _found(split: Split) -> list[dict[str, Any]]:
    found = zip(
        split.found_picture.tolist(), split.found_class.tolist(), _boxes(split.found_corners),
        split.found_score.tolist(),
    )  # fmt: skip
    return [
        {"image_id": picture, "category_id": kind, "bbox": box, "score": score} for picture, kind, box, score in found
    ]


def _nothing(truth: Any) -> Any:
    found = _module("coco").COCO()
    found.dataset = {**truth.dataset, "annotations": []}
    found.createIndex()
    return found
