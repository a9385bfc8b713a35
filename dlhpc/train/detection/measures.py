"""What was found against what is there, over all pictures of a split: precision, recall, and the curve of both.

Matching is greedy, as in DIGITS and KITTI's development kit: the detections of a picture, the surest first, each take
the true box of their class that they overlap most, if by at least ``match_iou`` and not taken yet. A detection that
lies mostly in a region of the class *DontCare* and matched nothing is neither right nor wrong. Precision is right /
(right + wrong), recall is right / true boxes. DIGITS called their product "mAP"; here it is ``digits_map``, beside the
true average precision of ``average_precision``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.samples import DONT_CARE

Doubles = NDArray[np.float64]
CURVE_POINTS = 101
"""Of a precision–recall curve, at recalls 0, 0.01 … 1: those that COCO averages over."""


@dataclass(frozen=True)
class Split:
    """All boxes of a split: T true ones (with ignored regions) and D found ones; pictures are numbered from 0."""

    pictures: int
    true_picture: NDArray[np.int64]
    true_class: NDArray[np.int64]
    true_corners: Doubles
    found_picture: NDArray[np.int64]
    found_class: NDArray[np.int64]
    found_corners: Doubles
    found_score: Doubles


def areas(corners: Doubles) -> Doubles:
    """n: width times height."""
    sizes: Doubles = (corners[:, 2:] - corners[:, :2]).clip(min=0)
    return sizes[:, 0] * sizes[:, 1]


def intersections(first: Doubles, second: Doubles) -> Doubles:
    """n×m: the area that boxes n×4 and m×4 share."""
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides: Doubles = (bottom_right - top_left).clip(min=0)
    return sides[..., 0] * sides[..., 1]


def overlaps(first: Doubles, second: Doubles) -> Doubles:
    """n×m: intersection over union."""
    shared = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


RIGHT, WRONG, IGNORED = 1, 0, -1


def verdicts(split: Split, match_iou: float) -> NDArray[np.int64]:
    """D: whether each detection is right, wrong, or in a region that does not count."""
    verdict = np.full(len(split.found_score), WRONG, dtype=np.int64)
    true_order = np.argsort(split.true_picture, kind="stable")
    # Per picture, the surest first.
    found_order = np.lexsort((-split.found_score, split.found_picture))
    true_ends = np.searchsorted(split.true_picture[true_order], np.arange(split.pictures + 1))
    found_ends = np.searchsorted(split.found_picture[found_order], np.arange(split.pictures + 1))
    for picture in range(split.pictures):
        found = found_order[found_ends[picture] : found_ends[picture + 1]]
        if not len(found):
            continue
        true = true_order[true_ends[picture] : true_ends[picture + 1]]
        objects = true[split.true_class[true] != DONT_CARE]
        ignored = true[split.true_class[true] == DONT_CARE]
        overlap = overlaps(split.found_corners[found], split.true_corners[objects])
        overlap[split.found_class[found][:, None] != split.true_class[objects][None, :]] = 0
        for number, detection in enumerate(found.tolist()):
            if len(objects) and (best := overlap[number].argmax()) >= 0 and overlap[number, best] >= match_iou:
                verdict[detection] = RIGHT
                overlap[:, best] = 0
        own = areas(split.found_corners[found])
        inside = intersections(split.found_corners[found], split.true_corners[ignored]).max(axis=1, initial=0)
        unmatched = (verdict[found] == WRONG) & (inside > 0.5 * own)
        verdict[found[unmatched]] = IGNORED
    return verdict


@dataclass(frozen=True)
class Counts:
    """Of one class, or of all."""

    true: int
    right: int
    wrong: int

    @property
    def precision(self) -> float:
        """0 where nothing was found."""
        return self.right / max(1, self.right + self.wrong)

    @property
    def recall(self) -> float:
        """0 where there is nothing to find."""
        return self.right / max(1, self.true)

    @property
    def digits_map(self) -> float:
        """What DIGITS called mAP."""
        return self.precision * self.recall


def count(split: Split, verdict: NDArray[np.int64], kind: int | None = None) -> Counts:
    """Of class ``kind``, or of all classes."""
    true = split.true_class == kind if kind is not None else split.true_class != DONT_CARE
    found = verdict if kind is None else verdict[split.found_class == kind]
    return Counts(int(true.sum()), int((found == RIGHT).sum()), int((found == WRONG).sum()))


def precision_recall_curve(split: Split, verdict: NDArray[np.int64], kind: int) -> list[dict[str, float]]:
    """Precision, recall and score at the least sure detection that reaches each recall; up to CURVE_POINTS points.

    Precision is the best at this recall or a higher one, as COCO and PASCAL VOC draw it.
    """
    mine = (split.found_class == kind) & (verdict != IGNORED)
    order = np.argsort(-split.found_score[mine], kind="stable")
    scores, right = split.found_score[mine][order], (verdict[mine][order] == RIGHT).cumsum()
    true = int((split.true_class == kind).sum())
    if not len(order) or not true:
        return []
    recall = right / true
    best = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    points = np.searchsorted(recall, np.linspace(0, 1, CURVE_POINTS), side="left")
    points = np.unique(points[points < len(recall)])
    return [
        {"recall": float(recall[at]), "precision": float(best[at]), "score": float(scores[at])}
        for at in points.tolist()
    ]


def per_class(split: Split, verdict: NDArray[np.int64], classes: list[str]) -> list[dict[str, Any]]:
    """A row for each class: name, counts, precision, recall, and the curve."""
    rows = []
    for kind, name in enumerate(classes):
        counts = count(split, verdict, kind)
        rows.append(
            {
                "class": name,
                "true": counts.true,
                "right": counts.right,
                "wrong": counts.wrong,
                "precision": counts.precision,
                "recall": counts.recall,
                "digits_map": counts.digits_map,
                "curve": precision_recall_curve(split, verdict, kind),
            }
        )
    return rows
