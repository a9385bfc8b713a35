"""Where a box that was found lies in the picture as the user has it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.pictures import Resize, window

Floats = NDArray[np.float32]


def in_original(
    corners: Floats, seen: tuple[int, int], packed: tuple[int, int], original: tuple[int, int], resize: Resize
) -> Floats:
    """Corners n×4 in pixels of the original picture, clipped to it; those given are in pixels of what was seen.

    ``seen``, ``packed`` and ``original`` are heights and widths of what the network saw (the centre of the packed
    picture, where the spec has ``augment.crop``), of the packed picture, and of the original, which ``resize`` brought
    to the packed size.
    """
    frame = window(*original, *packed, resize)
    from_left, from_top, from_right, from_bottom = frame.box
    cut = np.array([(packed[1] - seen[1]) // 2, (packed[0] - seen[0]) // 2])
    start = np.array([frame.left, frame.top])
    scale = np.array([(from_right - from_left) / frame.columns, (from_bottom - from_top) / frame.rows])
    points = (corners.reshape(-1, 2, 2) + cut - start) * scale + (from_left, from_top)
    inside: Floats = np.clip(points, 0, (original[1], original[0])).astype(np.float32)
    return inside.reshape(-1, 4)
