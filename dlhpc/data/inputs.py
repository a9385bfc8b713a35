"""From the packed dataset into a batch: read or decode each sample, change it, normalise it, and move its boxes."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.augment import Change, centre, decide, moved_boxes, output_size, words_needed
from dlhpc.data.draws import CHANGES, NOISE, Stream
from dlhpc.data.pixels import Normalisation, Scratch, add_noise, place, place_decoded, recolour
from dlhpc.data.samples import Boxes, Indices
from dlhpc.data.splits import SplitName

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed, Pictures
    from dlhpc.spec.models import Augment

MovedBoxes = list[tuple[NDArray[np.float32], NDArray[np.int64]]] | None
"""Corners and classes of each picture, or nothing where the dataset has no boxes or they stay where they are."""


class Inputs:
    """Samples of a split as the network gets them. :meth:`fill` is safe from several threads."""

    def __init__(self, packed: Packed, split: SplitName, augment: Augment, normalise: Normalisation | None) -> None:
        self._packed, self._split, self._augment, self._normalise = packed, split, augment, normalise
        self._scratch = Scratch()
        self._is_table = packed.kind == "table"
        self.shape: tuple[int, ...]
        """Of one sample: C×h×w, or F."""
        if self._is_table:
            self.shape, self.dtype = (len(packed.features),), np.dtype(np.float32)
            return
        self._size = output_size(augment, packed.height, packed.width)
        self.shape = (packed.channels, *self._size)
        self.dtype = packed.dtype if normalise is None else np.dtype(np.float32)
        self._boxes = packed.targets(split)
        self._cuts_stored = packed.storage != "raw" and augment.resized_crop is not None
        self._words = words_needed(augment)
        self._values = packed.channels * self._size[0] * self._size[1]

    def fill(self, indices: Indices, out: NDArray[Any], random: tuple[int, int] | None = None) -> MovedBoxes:
        """The samples ``indices`` of the split into ``out``, one after another.

        ``random`` is (seed, epoch) in training; without it pictures are cut from the middle.
        """
        if self._is_table:
            self._packed.read(self._split, indices, out)
            return None
        draws = [None] * len(indices) if random is None else self._numbers(indices, random)
        noise = None if random is None or not self._augment.noise else Stream(*random, NOISE)
        moved = []
        for slot, (index, numbers) in enumerate(zip(indices.tolist(), draws)):
            target = out[slot]
            made = target if self._normalise is None else self._array("made", self.shape)
            if self._cuts_stored:
                change, matrix = self._from_stored(index, numbers, made)
            else:
                change = self._decide(numbers, self._packed.height, self._packed.width)
                matrix = None
                self._from_packed(indices[slot : slot + 1], change, made)
            if change.recolours:
                recolour(made, change, self._scratch)
            if noise is not None:
                sigma = change.noise * np.iinfo(made.dtype).max
                add_noise(made, sigma, noise.words(index, -(-self._values // 4)), self._scratch)
            if self._normalise is not None:
                self._normalise(made, target)
            if isinstance(self._boxes, Boxes):
                if matrix is None:
                    matrix = change.matrix(self._packed.height, self._packed.width)
                moved.append(moved_boxes(*self._boxes.of(index), matrix, self._size))
        return moved if isinstance(self._boxes, Boxes) else None

    def _numbers(self, indices: Indices, random: tuple[int, int]) -> list[list[float]]:
        return Stream(*random, CHANGES).fractions(indices, self._words)

    def _array(self, name: str, shape: tuple[int, ...]) -> Pictures:
        return self._scratch.array(name, shape, self._packed.dtype)

    def _decide(self, numbers: list[float] | None, height: int, width: int) -> Change:
        if numbers is None:
            return centre(self._augment, height, width, self._size)
        return decide(self._augment, numbers, height, width, self._size)

    def _from_packed(self, one: Indices, change: Change, out: Pictures) -> None:
        packed = self._packed
        if change.is_identity(packed.height, packed.width):
            packed.read(self._split, one, out[None])
            return
        whole = self._array("whole", (1, packed.channels, packed.height, packed.width))
        packed.read(self._split, one, whole)
        place(whole[0], change, out, self._scratch, antialias=self._augment.antialias)

    def _from_stored(
        self, index: int, numbers: list[float] | None, out: Pictures
    ) -> tuple[Change, NDArray[np.float64]]:
        """A part of a JPEG or PNG file at full detail; also gives where a point of the packed picture goes."""
        values, change = self._decoded(index, numbers)
        place_decoded(values, change, out, self._scratch, antialias=self._augment.antialias)
        size = values.shape[:2]
        return change, change.matrix(*size) @ self._packed_to_stored(*size)

    def _decoded(self, index: int, numbers: list[float] | None) -> tuple[NDArray[Any], Change]:
        first, _ = self._packed.index.range_of(self._split)
        content = self._packed.content(first + index)
        size = _jpeg_size(content)
        if size is not None:
            change = self._decide(numbers, *size)
            reduced = self._jpeg(content, size, change)
            if reduced is not None:
                return reduced, change.on(size, reduced.shape[:2])
        values = self._packed.decoded(self._split, index)  # a PNG, or a damaged file, which this tells kindly
        return values, self._decide(numbers, *values.shape[:2])

    def _jpeg(self, content: bytes, size: tuple[int, int], change: Change) -> NDArray[Any] | None:
        """The whole picture, in half, a quarter or an eighth of its size if the part has more pixels than are needed.

        libjpeg-turbo then computes smaller blocks, which averages neighbouring pixels and saves most of the work.
        """
        height, width = size
        reduce = change.height >= 2 * change.to_height and change.width >= 2 * change.to_width
        least = (
            {
                "min_height": -(-height * change.to_height // change.height),
                "min_width": -(-width * change.to_width // change.width),
                "min_factor": 2,
            }
            if reduce
            else {}
        )
        channels = self._packed.channels
        try:
            values: NDArray[Any] = _simplejpeg().decode_jpeg(
                content, "GRAY" if channels == 1 else "RGB", fastdct=False, fastupsample=False,
                buffer=self._scratch.array("decoded", (height * width * channels,), np.dtype(np.uint8)), **least,
            )  # fmt: skip
        except ValueError:
            return None
        return values if values.dtype == self._packed.dtype and values.shape[2] == channels else None

    def _packed_to_stored(self, height: int, width: int) -> NDArray[np.float64]:
        """3×3: from pixels of packed width × height, which boxes are in, to those of the stored picture."""
        from dlhpc.data.pictures import window

        frame = window(height, width, self._packed.height, self._packed.width, cast(Any, self._packed.index.resize))
        left, top, right, bottom = frame.box
        across, down = (right - left) / frame.columns, (bottom - top) / frame.rows
        return np.array([[across, 0, left - frame.left * across], [0, down, top - frame.top * down], [0, 0, 1]])


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG file, if it is one and can be decoded quickly."""
    if not content.startswith(b"\xff\xd8\xff") or _simplejpeg() is None:
        return None
    try:
        height, width, *_ = _simplejpeg().decode_jpeg_header(content)
    except ValueError:
        return None
    return int(height), int(width)


@cache
def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None
