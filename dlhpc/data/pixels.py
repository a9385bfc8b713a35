"""Carries out the changes that :mod:`dlhpc.data.augment` decides: from one picture straight into its place in a batch.

Copies are NumPy's; mirroring, resizing, warping and colours are OpenCV's, which lets other threads run meanwhile and
writes where it is told to. Buffers live as long as the thread that uses them.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.draws import normal_field
from dlhpc.errors import UserError

if TYPE_CHECKING:
    from dlhpc.data.augment import Change
    from dlhpc.data.packed import Pictures

Values = NDArray[Any]

LUMA = np.array([0.299, 0.587, 0.114])
"""Brightness of red, green and blue (ITU-R BT.601)."""
_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""From red, green, blue to brightness and two colour differences, in whose plane hue is an angle (NTSC)."""
_AREA_FROM = 2
"""Without antialiasing bilinear resizing looks at four pixels; from this reduction on it would leave some out, and
all are averaged instead."""


@cache
def opencv() -> Any:
    """The module ``cv2``, which must not start threads of its own beside each rank's."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "this augmentation needs OpenCV, which the environment lacks",
            remedy="Install it there: pip install opencv-python-headless.",
        ) from error
    cv2.setNumThreads(0)
    cv2.ocl.setUseOpenCL(False)
    return cv2


class Scratch(threading.local):
    """Each thread's buffers, which grow to what is asked of them and are used again."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Values:
        """A contiguous array with any content; the one that was last asked for under this name is lost."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, dtype=np.uint8)
        return buffer[:size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Normalisation:
    """Makes float32 of pictures: value · ``scale`` + ``offset``, values being 0 … 255 or 65535."""

    scale: NDArray[np.float32]
    """C×1×1, or C×h×w like the pictures."""
    offset: NDArray[np.float32]
    """Likewise."""

    def __call__(self, picture: Pictures, out: NDArray[np.float32]) -> None:
        """C×h×w, both contiguous. One plane after another, so that it is still in the processor's cache."""
        if self.scale[0].size > 1 or self.offset[0].size > 1:
            np.multiply(picture, self.scale, out=out, casting="unsafe")
            np.add(out, self.offset, out=out)
            return
        cv2 = opencv()
        for plane, to, scale, offset in zip(picture, out, self.scale.ravel().tolist(), self.offset.ravel().tolist()):
            # OpenCV's one pass of convert, scale and shift is reached by asking for what the extremes shall become.
            low, high, _, _ = cv2.minMaxLoc(plane)
            if scale > 0:
                cv2.normalize(plane, to, low * scale + offset, high * scale + offset, cv2.NORM_MINMAX, cv2.CV_32F)
            else:
                np.multiply(plane, np.float32(scale), out=to)
                np.add(to, np.float32(offset), out=to)


def copy_window(picture: Pictures, top: int, left: int, out: Pictures) -> None:
    """``out[:, y, x] = picture[:, top + y, left + x]`` (C×h×w from C×H×W); outside the picture its edge is repeated."""
    _, full_height, full_width = picture.shape
    _, height, width = out.shape
    top = min(max(top, 1 - height), full_height - 1)  # at least one row and column of the picture stays in sight
    left = min(max(left, 1 - width), full_width - 1)
    first_row, end_row = max(0, -top), min(height, full_height - top)
    first_column, end_column = max(0, -left), min(width, full_width - left)
    out[:, first_row:end_row, first_column:end_column] = picture[
        :, top + first_row : top + end_row, left + first_column : left + end_column
    ]
    out[:, first_row:end_row, :first_column] = out[:, first_row:end_row, first_column : first_column + 1]
    out[:, first_row:end_row, end_column:] = out[:, first_row:end_row, end_column - 1 : end_column]
    out[:, :first_row] = out[:, first_row : first_row + 1]
    out[:, end_row:] = out[:, end_row - 1 : end_row]


def place(picture: Pictures, change: Change, out: Pictures, scratch: Scratch, *, antialias: bool) -> None:
    """The geometry of ``change``: ``picture`` C×H×W → ``out`` C×h×w, both contiguous planes of the same type."""
    _, height, width = picture.shape
    if change.resizes or change.warps(height, width):
        for plane, to in zip(picture, out):
            _place_values(plane, change, to, scratch, antialias=antialias)
        return
    if not (change.mirrors or change.quarter_turns):
        copy_window(picture, change.top, change.left, out)
        return
    rows, columns = slice(change.top, change.top + change.height), slice(change.left, change.left + change.width)
    part = picture[:, rows, columns]
    if not change.is_within(height, width):
        part = scratch.array("window", (len(picture), change.height, change.width), picture.dtype)
        copy_window(picture, change.top, change.left, part)
    for plane, to in zip(part, out):
        _mirror_and_turn(plane, change, to, scratch)


def place_decoded(values: Values, change: Change, out: Pictures, scratch: Scratch, *, antialias: bool) -> None:
    """As :func:`place`, from a decoded picture H×W×C, for changes that resize or warp."""
    channels = values.shape[2]
    if channels == 1:
        _place_values(values[:, :, 0], change, out[0], scratch, antialias=antialias)
        return
    placed = scratch.array("placed", (*change.size, channels), values.dtype)
    _place_values(values, change, placed, scratch, antialias=antialias)
    opencv().split(placed, list(out))


def _place_values(values: Values, change: Change, out: Values, scratch: Scratch, *, antialias: bool) -> None:
    """One plane H×W, or H×W×C."""
    cv2 = opencv()
    height, width = values.shape[:2]
    if change.warps(height, width):
        half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV counts from the middle of the first pixel
        back = np.linalg.inv(half) @ np.linalg.inv(change.matrix(height, width)) @ half
        cv2.warpAffine(
            values, back[:2], out.shape[1::-1], dst=out, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        return
    part = values[change.top : change.top + change.height, change.left : change.left + change.width]
    simple = not (change.mirrors or change.quarter_turns)
    size = (change.to_height, change.to_width)
    resized = out if simple else scratch.array("resized", (*size, *values.shape[2:]), values.dtype)
    if antialias and (change.height > change.to_height or change.width > change.to_width):
        _antialiased(part, resized)
    else:
        much = change.height >= _AREA_FROM * change.to_height and change.width >= _AREA_FROM * change.to_width
        cv2.resize(part, size[::-1], dst=resized, interpolation=cv2.INTER_AREA if much else cv2.INTER_LINEAR)
    if not simple:
        _mirror_and_turn(resized, change, out, scratch)


def _mirror_and_turn(values: Values, change: Change, out: Values, scratch: Scratch) -> None:
    cv2 = opencv()
    if not change.mirrors:
        mirrored = values
    else:
        mirrored = scratch.array("mirrored", values.shape, values.dtype) if change.quarter_turns else out
        cv2.flip(values, change.flip_horizontal - (change.flip_horizontal and change.flip_vertical) * 2, mirrored)
    if change.quarter_turns:
        turns = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}
        cv2.rotate(mirrored, turns[change.quarter_turns], out)


def _antialiased(part: Values, out: Values) -> None:
    """Pillow's bilinear filter, which widens as the picture shrinks; torchvision's is the same."""
    from PIL import Image

    size = out.shape[1::-1]
    if part.dtype == np.uint8:
        out[:] = np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize(size, Image.Resampling.BILINEAR))
        return
    channels = [part] if part.ndim == 2 else [part[:, :, channel] for channel in range(part.shape[2])]
    for channel, values in enumerate(channels):  # 16 bits: float32 holds them exactly
        smooth = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        target = out if part.ndim == 2 else out[:, :, channel]
        target[:] = np.clip(np.rint(np.asarray(smooth)), 0, 0xFFFF)


def recolour(picture: Pictures, change: Change, scratch: Scratch) -> None:
    """Hue, saturation, contrast and brightness of ``picture`` (C×h×w) in place, in one step and clipped once.

    All four are linear: colours turn and stretch about the grey axis of YIQ, contrast is about the mean brightness. A
    picture of one channel has no hue and saturation.
    """
    cv2 = opencv()
    channels, *size = picture.shape
    if channels != 3:
        for plane in picture:
            shift = (1 - change.contrast) * cv2.mean(plane)[0] * change.brightness
            cv2.transform(plane, np.array([[change.contrast * change.brightness, shift]]), plane)
        return
    values = scratch.array("coloured", (*size, channels), picture.dtype)
    cv2.merge(list(picture), values)
    shift = 0.0
    if change.contrast != 1:
        shift = (1 - change.contrast) * float(LUMA @ cv2.mean(values)[:3]) * change.brightness
    colours = change.contrast * change.brightness * _colour_matrix(change.hue, change.saturation)
    recoloured = scratch.array("recoloured", (*size, channels), picture.dtype)
    cv2.transform(values, np.column_stack([colours, np.full(3, shift)]), recoloured)
    cv2.split(recoloured, list(picture))


def _colour_matrix(hue: float, saturation: float) -> NDArray[np.float64]:
    """3×3 from red, green, blue to themselves; greys stay as they are."""
    angle = 2 * math.pi * hue
    cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
    turned: NDArray[np.float64] = np.linalg.solve(_YIQ, np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ)
    return turned


def add_noise(picture: Pictures, sigma: float, words: NDArray[np.uint64], scratch: Scratch) -> None:
    """Add normally distributed noise to ``picture`` (C×h×w, contiguous) in place; ``sigma`` in its own units.

    ``words`` are random, one for every four values.
    """
    cv2 = opencv()
    channels, height, width = picture.shape
    field = scratch.array("noise", (channels * height, width), np.dtype(np.float32))
    normal_field(words, field)
    np.multiply(field, np.float32(sigma), out=field)
    flat = picture.reshape(channels * height, width)
    cv2.add(flat, field, flat, None, cv2.CV_8U if picture.dtype == np.uint8 else cv2.CV_16U)
