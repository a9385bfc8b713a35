"""Boxes of a detection task follow their picture to the packed size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.pictures import BrokenPicture, Window
from dlhpc.data.samples import DONT_CARE

TINY_PIXELS = 2.0
"""A box of which less than this is left in height or width can neither be learnt nor be found."""

OneOfBoxes = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Corners (m×4: left, top, right, bottom in pixels) and classes (m) of one picture."""


def boxes_in_frame(
    boxes: Sequence[Sequence[float]], height: int, width: int, window: Window, path: str, classes: Sequence[str]
) -> OneOfBoxes:
    """The boxes ``[class, left, top, right, bottom]`` of a ``height``×``width`` picture, moved as ``window`` moves it.

    They are clipped to what is seen of the picture. One that ``window`` cuts away is left out, one of which less than
    ``TINY_PIXELS`` remains becomes DontCare. Raises :class:`BrokenPicture` for a box that lies wholly outside of the
    picture or has no area (DontCare regions may): then labels and picture do not belong together.
    """
    for number, (label, left, top, right, bottom) in enumerate(boxes, 1):
        inside = right > left and bottom > top and right > 0 and bottom > 0 and left < width and top < height
        if label != DONT_CARE and not (inside and np.isfinite([left, top, right, bottom]).all()):
            where = "has no area or is not finite" if right <= left or bottom <= top else "lies outside of the picture"
            raise BrokenPicture(
                path,
                f"has the size {width}×{height}, but its box {number} (`{classes[int(label)]}`, {left:g} {top:g} "
                f"{right:g} {bottom:g}) {where}",
            )
    if not boxes:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    values = np.array(boxes, dtype=np.float64)
    from_left, from_top, from_right, from_bottom = window.box
    across, down = window.columns / (from_right - from_left), window.rows / (from_bottom - from_top)
    scale = np.array([across, down, across, down])
    start = np.array([window.left, window.top] * 2, dtype=np.float64)
    size = np.array([window.columns, window.rows] * 2, dtype=np.float64)
    moved = np.clip((values[:, 1:] - [from_left, from_top] * 2) * scale, 0, size) + start
    sides = moved[:, 2:] - moved[:, :2]
    seen = (sides > 0).all(axis=1)
    labels = np.where((sides < TINY_PIXELS).any(axis=1), DONT_CARE, values[:, 0]).astype(np.int64)
    return moved[seen].astype(np.float32), labels[seen]
