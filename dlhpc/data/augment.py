"""What happens to each picture: decided from random numbers alone, without looking at a pixel; and to its boxes.

:func:`decide` gives the :class:`Change` of one picture; :mod:`dlhpc.data.pixels` carries it out. A change is made in
this order: turn and enlarge about the centre, cut a part, bring it to size, mirror, turn by quarters, colours, noise.
All of the geometry is one affine map, :meth:`Change.matrix`, which boxes follow too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.draws import MIXING, MIXING_WORDS, Stream, below, beta, between
from dlhpc.data.samples import DONT_CARE, Indices, Mixing
from dlhpc.errors import UserError

if TYPE_CHECKING:
    from dlhpc.spec.models import Augment

LEAST_OF_A_BOX = 0.25
"""A box of which less than this part of its area stays in the picture is no longer fit to learn from: what is left of
a car may be one wheel. It becomes a region that nothing is learnt in. DIGITS' loader and SSD's sampling draw a line
there too; a quarter keeps cars that the frame cuts in half, as KITTI labels them."""
CENTRE_OF_RESIZED = 7 / 8
"""Trained with resized crops, a network is measured on this part of the picture's height and width: the usual 224 of
256 pixels. Crops enlarge objects, and the whole picture would show them smaller than in training."""
RATIOS = (3 / 4, 4 / 3)
"""Width : height of a resized crop (Szegedy et al. 2015)."""
TRIES = 10
"""To find a part of the drawn area and ratio that lies within the picture, as torchvision does."""

# One place for every decision, whether it is used or not, so that switching one on does not change the others.
_TOP, _SHIFT_DOWN, _LEFT, _SHIFT_RIGHT, _VERTICAL, _HORIZONTAL, _QUARTERS, _DEGREES = range(8)
_ZOOM, _HUE, _SATURATION, _BRIGHTNESS, _CONTRAST, _NOISE, _PART_TOP, _PART_LEFT, _PART = range(8, 17)
WORDS = _PART + 2 * TRIES
"""Random numbers for each picture."""


def words_needed(augment: Augment) -> int:
    """How many of them :func:`decide` looks at."""
    return _PART_TOP if augment.resized_crop is None else WORDS


class Change(NamedTuple):
    """All that is done to one picture of H×W pixels."""

    top: int
    left: int
    height: int
    width: int
    """The part that is cut; what lies outside the picture repeats its edge."""
    to_height: int
    to_width: int
    """What the part is brought to, before quarter turns."""
    flip_vertical: bool = False
    flip_horizontal: bool = False
    quarter_turns: int = 0
    """Anticlockwise, 0 to 3."""
    degrees: float = 0.0
    """Anticlockwise, about the picture's centre."""
    zoom: float = 1.0
    hue: float = 0.0
    """Part of the colour circle, −0.5 to 0.5."""
    saturation: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0
    noise: float = 0.0
    """σ as a fraction of the full scale."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.to_width, self.to_height) if self.quarter_turns % 2 else (self.to_height, self.to_width)

    @property
    def resizes(self) -> bool:
        return (self.height, self.width) != (self.to_height, self.to_width)

    @property
    def mirrors(self) -> bool:
        return self.flip_vertical or self.flip_horizontal

    @property
    def recolours(self) -> bool:
        return (self.hue, self.saturation, self.brightness, self.contrast) != (0, 1, 1, 1)

    def is_within(self, height: int, width: int) -> bool:
        """Whether the part lies in a picture of this size."""
        return 0 <= self.top <= height - self.height and 0 <= self.left <= width - self.width

    def warps(self, height: int, width: int) -> bool:
        """Whether it takes more than copying, mirroring and resizing a part of the picture."""
        return self.degrees != 0 or self.zoom != 1 or (self.resizes and not self.is_within(height, width))

    def is_identity(self, height: int, width: int) -> bool:
        """Whether a picture of this size stays as it is, but for colours and noise."""
        same = (self.top, self.left, self.height, self.width) == (0, 0, height, width) == (0, 0, *self.size)
        return same and not (self.mirrors or self.quarter_turns or self.warps(height, width))

    def on(self, size: tuple[int, int], reduced: tuple[int, int]) -> Change:
        """The same on a picture that was decoded at a ``reduced`` height and width instead of ``size``."""
        if size == reduced:
            return self
        down, across = reduced[0] / size[0], reduced[1] / size[1]
        top, left = round(self.top * down), round(self.left * across)
        height, width = max(1, round(self.height * down)), max(1, round(self.width * across))
        if self.is_within(*size):  # rounding must not push it over the edge
            height, width = min(height, reduced[0]), min(width, reduced[1])
            top, left = min(top, reduced[0] - height), min(left, reduced[1] - width)
        return self._replace(top=top, left=left, height=height, width=width)

    def matrix(self, height: int, width: int) -> NDArray[np.float64]:
        """3×3: where a point (x, y, 1) of a picture of this size goes. Whole numbers are edges between pixels."""
        middle_x, middle_y = width / 2, height / 2
        angle = math.radians(self.degrees)
        cos, sin = self.zoom * math.cos(angle), self.zoom * math.sin(angle)
        turned = np.array(
            [
                [cos, sin, middle_x - cos * middle_x - sin * middle_y],
                [-sin, cos, middle_y + sin * middle_x - cos * middle_y],
                [0, 0, 1],
            ]
        )
        across, down = self.to_width / self.width, self.to_height / self.height
        cut = np.array([[across, 0, -self.left * across], [0, down, -self.top * down], [0, 0, 1]])
        x, y = (-1 if self.flip_horizontal else 1), (-1 if self.flip_vertical else 1)
        mirrored = np.array([[x, 0, self.to_width * (x < 0)], [0, y, self.to_height * (y < 0)], [0, 0, 1.0]])
        quarter = [
            [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            [[0, 1, 0], [-1, 0, self.to_width], [0, 0, 1]],
            [[-1, 0, self.to_width], [0, -1, self.to_height], [0, 0, 1]],
            [[0, -1, self.to_height], [1, 0, 0], [0, 0, 1]],
        ][self.quarter_turns]
        made: NDArray[np.float64] = np.array(quarter, dtype=np.float64) @ mirrored @ cut @ turned
        return made


def output_size(augment: Augment, height: int, width: int) -> tuple[int, int]:
    """Height and width that the network gets from packed pictures of this size.

    Raises :class:`UserError` if quarter turns would need another size.
    """
    size = augment.crop_size or (height, width)
    if augment.quarter_turns and augment.resized_crop is None and (size[1] > height or size[0] > width):
        raise UserError(
            f"quarter turns need square pictures, and these are {height} pixels high and {width} wide",
            remedy="Set `crop` under `augment:` to one number, or `width` and `height` under `data:` to the same one.",
        )
    return size


def decide(augment: Augment, numbers: list[float], height: int, width: int, size: tuple[int, int]) -> Change:
    """The change of a training picture of ``height``×``width``, out of ``words_needed`` random numbers from 0 to 1.

    ``size`` is what :func:`output_size` says.
    """
    quarters = below(4, numbers[_QUARTERS]) if augment.quarter_turns else 0
    to_height, to_width = (size[1], size[0]) if quarters % 2 else size
    if augment.resized_crop is None:
        part_height, part_width = to_height, to_width
        top = below(height - part_height + 1, numbers[_TOP])
        left = below(width - part_width + 1, numbers[_LEFT])
    else:
        top, left, part_height, part_width = _part(augment.resized_crop, numbers, height, width)
    shift = augment.shift_pixels
    if shift:
        top += below(2 * shift + 1, numbers[_SHIFT_DOWN]) - shift
        left += below(2 * shift + 1, numbers[_SHIFT_RIGHT]) - shift
    low, high = augment.scale
    return Change(
        top, left, part_height, part_width, to_height, to_width,
        flip_vertical=augment.flip_vertical and numbers[_VERTICAL] >= 0.5,
        flip_horizontal=augment.flip_horizontal and numbers[_HORIZONTAL] >= 0.5,
        quarter_turns=quarters,
        degrees=between(-augment.rotate_degrees, augment.rotate_degrees, numbers[_DEGREES]),
        zoom=between(low, high, numbers[_ZOOM]),
        hue=between(-augment.hue, augment.hue, numbers[_HUE]),
        saturation=between(1 - augment.saturation, 1 + augment.saturation, numbers[_SATURATION]),
        brightness=between(1 - augment.brightness, 1 + augment.brightness, numbers[_BRIGHTNESS]),
        contrast=between(1 - augment.contrast, 1 + augment.contrast, numbers[_CONTRAST]),
        noise=augment.noise * numbers[_NOISE],
    )  # fmt: skip


def _part(areas: tuple[float, float], numbers: list[float], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part, as torchvision's ``RandomResizedCrop`` draws it."""
    low, high = math.log(RATIOS[0]), math.log(RATIOS[1])
    for one in range(_PART, WORDS, 2):
        area = height * width * between(*areas, numbers[one])
        ratio = math.exp(between(low, high, numbers[one + 1]))
        part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < part_width <= width and 0 < part_height <= height:
            top, left = numbers[_PART_TOP], numbers[_PART_LEFT]
            return below(height - part_height + 1, top), below(width - part_width + 1, left), part_height, part_width
    part_width = min(width, max(1, round(height * RATIOS[1])))
    part_height = min(height, max(1, round(width / RATIOS[0])))
    return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width


def centre(augment: Augment, height: int, width: int, size: tuple[int, int]) -> Change:
    """The middle of a picture of ``height``×``width``, as validation sees it; see :func:`middle`."""
    return middle(height, width, size, resized=augment.resized_crop is not None)


def middle(height: int, width: int, size: tuple[int, int], *, resized: bool) -> Change:
    """The middle ``size`` (height, width) pixels of a picture of ``height``×``width``.

    Where training brings random parts to size (``resized``), it is the largest part of that shape within 7/8 of the
    picture, which is the same for the usual 224 of 256 pixels.
    """
    part_height, part_width = size
    if resized:
        ratio = CENTRE_OF_RESIZED * min(height / size[0], width / size[1])
        part_height, part_width = max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))
    return Change((height - part_height) // 2, (width - part_width) // 2, part_height, part_width, *size)


def moved_boxes(
    corners: NDArray[np.float32], classes: NDArray[np.int64], matrix: NDArray[np.float64], size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Boxes (m×4 left, top, right, bottom; m classes) after a change with this ``matrix`` and resulting height, width.

    A box is what encloses its four moved corners, cut off at the edges. Boxes of which nothing is left are dropped;
    those of which less than ``LEAST_OF_A_BOX`` of the area is left become ``DONT_CARE``.
    """
    left, top, right, bottom = corners.T.astype(np.float64)
    x, y = np.stack([left, right, right, left]), np.stack([top, top, bottom, bottom])
    moved_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    moved_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    whole = np.stack([moved_x.min(0), moved_y.min(0), moved_x.max(0), moved_y.max(0)])
    height, width = size
    cut = np.clip(whole, 0, np.array([[width], [height], [width], [height]]))
    area, left_over = _area(whole), _area(cut)
    seen = left_over > 0
    kept = np.where(left_over >= LEAST_OF_A_BOX * area, classes, DONT_CARE)
    return cut.T[seen].astype(np.float32), kept[seen].astype(np.int64)


def _area(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    left, top, right, bottom = corners
    return np.asarray((right - left) * (bottom - top))


def mixing(alpha: float, indices: Indices, seed: int, epoch: int) -> Mixing:
    """MixUp's partners and shares for a portion of samples (Zhang et al. 2018).

    Each sample draws a λ of its own, so that it does not depend on how samples are shared out to ranks; its partner
    must come from the same portion. Partners form one ring in random order: nobody is mixed with itself, but alone.
    """
    drawn = Stream(seed, epoch, MIXING).fractions(indices, MIXING_WORDS)
    ring = np.argsort(np.array([numbers[0] for numbers in drawn]), kind="stable")
    partner = np.empty(len(indices), dtype=np.int64)
    partner[ring] = np.roll(ring, -1)
    return Mixing(partner, np.array([beta(alpha, numbers[1:]) for numbers in drawn], dtype=np.float32))
