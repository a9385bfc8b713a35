"""From the proposals of many cells to one box an object, as OpenCV's ``groupRectangles`` does it.

The method is that of OpenCV's object detection module (``cv::groupRectangles``): rectangles are similar if all four
edges differ by no more than ``eps`` times the mean of the smaller width and the smaller height; the chains of similar
ones are groups; a group of more than ``threshold`` members becomes their mean; a weak group inside a strong one falls
away. It is done here once more because OpenCV rounds to whole pixels and does not say who belongs to a group, which the
confidence needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MOST_PROPOSALS = 4096
"""Of a picture and class that are compared with each other; an untrained network may propose everywhere."""


@dataclass(frozen=True)
class Groups:
    """One row for each group."""

    corners: Floats
    """m×4: mean of the members."""
    members: NDArray[np.int64]
    """m: how many."""
    confidence: Floats
    """m: mean of the members' coverage."""


def similar(corners: Floats, eps: float) -> NDArray[np.bool_]:
    """n×n: which rectangles OpenCV's ``SimilarRects`` takes for the same."""
    sizes = corners[:, 2:] - corners[:, :2]
    smaller = np.minimum(sizes[:, None], sizes[None, :])
    within = (eps * 0.5) * smaller.sum(axis=2)
    result: NDArray[np.bool_] = np.ones_like(within, dtype=np.bool_)
    for edge in range(4):
        result &= np.abs(corners[:, None, edge] - corners[None, :, edge]) <= within
    return result


def chains(same: NDArray[np.bool_]) -> NDArray[np.int64]:
    """n: the number of the group of each, from 0 in the order of their first members; ``same`` is symmetric."""
    group = np.full(len(same), -1, dtype=np.int64)
    count = 0
    for start in range(len(same)):
        if group[start] >= 0:
            continue
        members = np.zeros(len(same), dtype=np.bool_)
        edge = members.copy()
        edge[start] = True
        while edge.any():
            members |= edge
            edge = same[edge].any(axis=0) & ~members
        group[members] = count
        count += 1
    return group


def group_boxes(corners: Floats, coverage: Floats, threshold: int, eps: float) -> Groups:
    """Groups of more than ``threshold`` of n proposals (corners n×4 and coverage n); each its own group if it is 0."""
    if len(corners) > MOST_PROPOSALS:
        surest = np.argsort(-coverage, kind="stable")[:MOST_PROPOSALS]
        corners, coverage = corners[surest], coverage[surest]
    if threshold == 0 or len(corners) == 0:
        return Groups(corners, np.ones(len(corners), np.int64), coverage)
    group = chains(similar(corners, eps))
    members = np.bincount(group)
    means = np.stack([np.bincount(group, corners[:, edge]) for edge in range(4)], axis=1) / members[:, None]
    confidence = np.bincount(group, coverage) / members
    strong = np.flatnonzero(members > threshold)
    keep = strong[~_inside_a_stronger(means[strong], members[strong], eps)]
    return Groups(means[keep].astype(np.float32), members[keep], confidence[keep].astype(np.float32))


def _inside_a_stronger(corners: NDArray[np.float64], members: NDArray[np.int64], eps: float) -> NDArray[np.bool_]:
    """m: whether a group lies inside another one with more members (and more than 3), or has fewer than 3 itself."""
    margin = (corners[:, 2:] - corners[:, :2]) * eps
    inner, outer = corners[:, None], corners[None, :]
    within = np.concatenate(
        [inner[..., :2] - outer[..., :2] + margin, outer[..., 2:] - inner[..., 2:] + margin], axis=2
    )
    inside = np.logical_and.reduce(within >= 0, axis=2) & ~np.eye(len(corners), dtype=np.bool_)
    stronger = (members[None, :] > np.maximum(3, members)[:, None]) | (members < 3)[:, None]
    falls: NDArray[np.bool_] = np.logical_or.reduce(inside & stronger, axis=1)
    return falls
