"""What a made-up street consists of, and how it is painted: a small renderer for ``streets``.

A pinhole camera, flat-shaded polygons painted from far to near, and for every pixel the thing that it shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Color = tuple[float, float, float]
"""Red, green and blue from 0 to 255."""

FINE = 3  # pixels are drawn so many times finer and then averaged
CAMERA_HEIGHT_M = 1.65


@dataclass(frozen=True)
class Camera:
    """Where a point in metres (x to the right, y down from the camera, z ahead) lies in the picture, in pixels."""

    width: int
    height: int

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return 0.58 * self.width

    @property
    def horizon(self) -> float:
        """Row of the horizon."""
        return 0.42 * self.height

    def see(self, points: Points) -> Points:
        """n×3 metres → n×2 pixels; all must be ahead."""
        ahead = np.maximum(points[:, 2:], 0.3)
        return points[:, :2] * self.focal / ahead + (self.width / 2, self.horizon)


@dataclass
class Canvas:
    """The picture while it is painted, and whose pixel each is: 0 is nobody's."""

    camera: Camera
    light: float
    values: NDArray[np.float32] = field(init=False)
    owner: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.camera.height * FINE, self.camera.width * FINE)
        self.values = np.zeros((*shape, 3), np.float32)
        self.owner = np.zeros(shape, np.int32)

    def polygon(self, pixels: Points, color: Color, owner: int | None = None, alpha: float = 1.0) -> None:
        """Fill a polygon given in pixels of the final picture; ``owner`` also takes its pixels."""
        corners = np.round(np.clip(pixels * FINE, -20000, 20000) * 16).astype(np.int32)
        if alpha >= 1:
            cv2.fillPoly(self.values, [corners], color, cv2.LINE_8, 4)
        else:
            mask = np.zeros(self.owner.shape, np.uint8)
            cv2.fillPoly(mask, [corners], 1, cv2.LINE_8, 4)
            inside = mask.astype(bool)
            self.values[inside] = self.values[inside] * (1 - alpha) + np.array(color, np.float32) * alpha
        if owner is not None:
            cv2.fillPoly(self.owner, [corners], owner, cv2.LINE_8, 4)

    def surface(self, points: Points, color: Color, owner: int | None = None, alpha: float = 1.0) -> None:
        """Fill a polygon given in metres."""
        if points[:, 2].min() > 0.4:
            self.polygon(self.camera.see(points), color, owner, alpha)


@dataclass(frozen=True)
class Thing:
    """Something that stands on the road: its middle on the ground, its size and direction as KITTI tells them."""

    kind: str
    x: float
    z: float
    length: float
    width: float
    height: float
    yaw: float
    """KITTI's rotation_y: 0 is to the right, −π/2 away from the camera."""
    color: Color = (0.0, 0.0, 0.0)
    detail: int = 0

    def at(self, along: float, across: float, up: float) -> tuple[float, float, float]:
        """Metres in the camera's frame of a point given in parts: along and across −½ … ½, up 0 … 1."""
        forward, side = along * self.length, across * self.width
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        x, z = self.x + forward * cos + side * sin, self.z - forward * sin + side * cos
        return x, CAMERA_HEIGHT_M - up * self.height, z

    def points(self, *parts: tuple[float, float, float]) -> Points:
        return np.array([self.at(*part) for part in parts])

    def hull(self, camera: Camera) -> Points:
        """Left, top, right, bottom of the eight corners in pixels, not yet cut off."""
        corners = [(along, across, up) for along in (-0.5, 0.5) for across in (-0.5, 0.5) for up in (0.0, 1.0)]
        seen = camera.see(self.points(*corners))
        return np.concatenate([seen.min(axis=0), seen.max(axis=0)])


def shaded(color: Color, factor: float) -> Color:
    """The colour under more or less light."""
    red, green, blue = (float(min(255.0, max(0.0, value * factor))) for value in color)
    return red, green, blue


# ---- What stands in a street

# Where the cabin begins and ends along the car: front and back at the belt, front and back at the roof.
_CAR_CABINS = ((0.24, -0.47, 0.06, -0.34), (0.2, -0.36, 0.04, -0.2), (0.24, -0.5, 0.08, -0.44))
_VAN_CABIN = (0.38, -0.5, 0.26, -0.49)
_WALLS: list[Color] = [(196, 172, 140), (170, 120, 98), (206, 202, 190), (150, 150, 148), (188, 160, 120)]
_CIRCLE = [-math.tau * step / 14 for step in range(14)]


def draw_vehicle(canvas: Canvas, thing: Thing, owner: int) -> None:
    """A car or van: body, cabin with windows, wheels, lights; only the sides that face the camera are painted."""
    van = thing.kind == "Van"
    belt, floor = (0.5, 0.12) if van else (0.58, 0.16)
    base_front, base_back, roof_front, roof_back = _VAN_CABIN if van else _CAR_CABINS[thing.detail % 3]
    inner = 0.46 if van else 0.38
    half = 0.5
    canvas.surface(
        thing.points((-0.54, -0.56, 0), (0.54, -0.56, 0), (0.54, 0.56, 0), (-0.54, 0.56, 0)), (14, 14, 16), alpha=0.55
    )

    def face(color: Color, *parts: tuple[float, float, float], owned: bool = True) -> bool:
        """Paint the polygon if its outside faces the camera; corners go around it clockwise as seen from outside."""
        points = thing.points(*parts)
        pixels = canvas.camera.see(points)
        x, y = pixels[:, 0], pixels[:, 1]
        turn = float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
        if turn <= 0 or points[:, 2].min() < 0.4:
            return False
        canvas.polygon(pixels, color, owner if owned else None)
        return True

    paint = thing.color
    glass = shaded((52, 64, 78), canvas.light)
    dark = (24.0, 24.0, 26.0)
    for side in (-1, 1):
        across = half * side
        order = 1 if side < 0 else -1  # keeps the corners clockwise as seen from outside

        def around(
            *parts: tuple[float, float], across: float = across, order: int = order
        ) -> list[tuple[float, float, float]]:
            return [(along, across, up) for along, up in parts[::order]]

        body = around((-half, floor), (-half, belt * 0.94), (half * 0.97, belt * 0.86), (half, floor))
        # As seen from outside the left side (across < 0 is left of the direction) front and back change places.
        face(shaded(paint, 0.8 if side < 0 else 0.7), *body)
        for axle in (-0.31, 0.31):
            radius = 0.3 / thing.height if not van else 0.36 / thing.height
            ring = [(axle + 0.31 / thing.length * math.cos(a), radius + radius * math.sin(a)) for a in _CIRCLE]
            if face(dark, *around(*ring)):
                hub = [(axle + (along - axle) * 0.55, radius + (up - radius) * 0.55) for along, up in ring]
                face(shaded((150, 152, 156), canvas.light), *around(*hub))
    front, back = ((0.5, -0.5), (0.5, 0.5)), ((-0.5, 0.5), (-0.5, -0.5))
    for number, ((along, first), (_, second)) in enumerate((front, back)):
        tint = shaded(paint, (0.92, 0.86)[number])
        top = belt * 0.86 if number == 0 else belt * 0.94
        quad = ((along, first, floor), (along, first, top), (along, second, top), (along, second, floor))
        if face(tint, *quad):
            light = (250.0, 246.0, 220.0) if number == 0 else (190.0, 24.0, 24.0)
            for left, right in ((0.04, 0.22), (0.78, 0.96)):
                a, b = first + (second - first) * left, first + (second - first) * right
                low, high = belt * 0.62, belt * 0.84
                face(light, (along, a, low), (along, a, high), (along, b, high), (along, b, low))
            a, b = first + (second - first) * 0.36, first + (second - first) * 0.64
            face((232, 232, 226), (along, a, 0.22), (along, a, 0.3), (along, b, 0.3), (along, b, 0.22))
            a, b = first + (second - first) * 0.26, first + (second - first) * 0.74
            if number == 0:
                face(
                    (34, 34, 38),
                    (along, a, belt * 0.58),
                    (along, a, belt * 0.78),
                    (along, b, belt * 0.78),
                    (along, b, belt * 0.58),
                )
    # Bonnet and boot lie under the cabin.
    hood = belt * 0.86
    face(
        shaded(paint, 1.1), (half, -half, hood), (base_front, -half, belt), (base_front, half, belt), (half, half, hood)
    )
    face(
        shaded(paint, 1.08),
        (base_back, -half, belt),
        (-half, -half, belt * 0.94),
        (-half, half, belt * 0.94),
        (base_back, half, belt),
    )
    cabin = {
        -1: ((base_back, -half, belt), (roof_back, -inner, 1), (roof_front, -inner, 1), (base_front, -half, belt)),
        1: ((base_front, half, belt), (roof_front, inner, 1), (roof_back, inner, 1), (base_back, half, belt)),
        2: ((base_front, -half, belt), (roof_front, -inner, 1), (roof_front, inner, 1), (base_front, half, belt)),
        3: ((base_back, half, belt), (roof_back, inner, 1), (roof_back, -inner, 1), (base_back, -half, belt)),
    }  # fmt: skip
    roof = ((roof_front, -inner, 1), (roof_back, -inner, 1), (roof_back, inner, 1), (roof_front, inner, 1))
    face(shaded(paint, 1.15), *roof)
    for number, corners in cabin.items():
        if face(shaded(paint, 0.9 if number > 1 else 0.76), *corners):
            if van and number == 3:
                continue
            middle = np.mean(corners, axis=0)
            panes = [tuple(middle + (np.array(corner) - middle) * (0.84, 0.84, 0.8)) for corner in corners]
            if van and number in (-1, 1):  # a van's side is sheet metal behind the driver's window
                panes = [(max(along, 0.12), across, max(up, 0.62)) for along, across, up in panes]
            face(glass, *panes)
            if number in (-1, 1) and not van:  # the pillar between two windows
                belt_back, roof_one, roof_two, belt_front = (np.array(corner) for corner in corners)
                pillar = [
                    one + (other - one) * part
                    for one, other, part in (
                        (belt_back, belt_front, 0.47),
                        (roof_one, roof_two, 0.47),
                        (roof_one, roof_two, 0.53),
                        (belt_back, belt_front, 0.53),
                    )
                ]
                face(shaded(paint, 0.66), *(tuple(corner) for corner in pillar))


def draw_person(canvas: Canvas, thing: Thing, owner: int) -> None:
    """Somebody on the pavement, as a flat figure that faces the camera."""

    def figure(*parts: tuple[float, float]) -> Points:
        return np.array(
            [(thing.x + across * thing.width, CAMERA_HEIGHT_M - up * thing.height, thing.z) for across, up in parts]
        )  # fmt: skip

    skin, legs = (214.0, 170.0, 140.0), shaded((50, 54, 74), canvas.light)
    step = 0.12 * (thing.detail % 3)
    canvas.surface(figure((-0.5, 0), (0.5, 0), (0.5, 0.03), (-0.5, 0.03)), (14, 14, 16), alpha=0.4)
    canvas.surface(figure((-0.3 - step, 0), (-0.05 - step, 0), (0.05, 0.5), (-0.3, 0.5)), legs, owner)
    canvas.surface(figure((0.08 + step, 0), (0.32 + step, 0), (0.3, 0.5), (-0.05, 0.5)), legs, owner)
    coat = ((-0.36, 0.46), (0.36, 0.46), (0.42, 0.8), (0.18, 0.85), (-0.18, 0.85), (-0.42, 0.8))
    canvas.surface(figure(*coat), thing.color, owner)
    head = [(0.2 * math.cos(a), 0.92 + 0.08 * math.sin(a)) for a in _CIRCLE]
    canvas.surface(figure(*head), skin, owner)


def draw_cover(canvas: Canvas, thing: Thing, owner: int, random: np.random.Generator) -> None:
    """A hedge (``Hedge``) or a fence (``Fence``) across the view; hides what is behind it."""
    left, right = thing.x - thing.length / 2, thing.x + thing.length / 2

    def board(a: float, b: float, low: float, high: float) -> Points:
        top, bottom = CAMERA_HEIGHT_M - high * thing.height, CAMERA_HEIGHT_M - low * thing.height
        return np.array([(a, top, thing.z), (b, top, thing.z), (b, bottom, thing.z), (a, bottom, thing.z)])

    if thing.kind == "Fence":
        for low in (0.22, 0.78):
            canvas.surface(board(left, right, low, low + 0.1), thing.color, owner)
        for x in np.arange(left, right, 0.24):
            canvas.surface(board(x, x + 0.1, 0, 1), shaded(thing.color, random.uniform(0.9, 1.1)), owner)
        return
    edge = [(left, 0.0), *((x, random.uniform(0.85, 1.05)) for x in np.linspace(left, right, 16)), (right, 0.0)]
    outline = np.array([(x, CAMERA_HEIGHT_M - up * thing.height, thing.z) for x, up in edge])
    canvas.surface(outline, thing.color, owner)
    for _ in range(90):
        x, up = random.uniform(left, right - 0.15), random.uniform(0, 0.9)
        leaf = board(x, x + random.uniform(0.06, 0.2), up, up + random.uniform(0.05, 0.12))
        canvas.surface(leaf, shaded(thing.color, random.uniform(0.6, 1.4)), owner)


def draw_street(canvas: Canvas, random: np.random.Generator) -> None:
    """Sky with clouds, rows of houses and trees on both sides, pavement, and a road with lines."""
    camera, light = canvas.camera, canvas.light
    rows, columns = canvas.owner.shape
    horizon = int(camera.horizon * FINE)
    high = np.array(shaded((random.uniform(90, 150), random.uniform(140, 180), 215), light), np.float32)
    low = np.array(shaded((205, 214, 222), light), np.float32)
    part = np.linspace(0, 1, max(2, horizon), dtype=np.float32)[:, None, None]
    clouds = cv2.resize(random.random((4, 10)).astype(np.float32), (columns, len(part)), interpolation=cv2.INTER_CUBIC)
    sky = high * (1 - part) + low * part
    canvas.values[: len(part)] = sky + ((clouds - 0.5).clip(0)[:, :, None] * 120 * light)
    ground = shaded((106, 104, 98), light)
    canvas.values[horizon:] = ground

    def flat(left: float, right: float, near: float, far: float, color: Color, alpha: float = 1.0) -> None:
        y = CAMERA_HEIGHT_M
        canvas.surface(
            np.array([(left, y, near), (left, y, far), (right, y, far), (right, y, near)]), color, alpha=alpha
        )

    grass = shaded((84, 112, 62), light)
    for left, right in ((-80.0, -9.5), (8.5, 80.0)):
        flat(left, right, 0.6, 200, grass)
    road = random.uniform(70, 100)
    flat(-7.5, 6.5, 0.6, 200, shaded((road, road, road + 3), light))
    for left, right in ((-9.5, -7.5), (6.5, 8.5)):
        flat(left, right, 0.6, 200, shaded((150, 146, 138), light))
    for x in (-7.3, 6.3):
        flat(x - 0.06, x + 0.06, 0.6, 120, shaded((215, 215, 210), light))
    start = random.uniform(0, 6)
    for near in np.arange(1 + start, 90, 6):
        flat(-1.9, -1.76, near, near + 2.6, shaded((225, 225, 220), light))
    for _ in range(10):  # patches and stains
        x, z = random.uniform(-7, 6), random.uniform(4, 30)
        flat(
            x, x + random.uniform(0.4, 2), z, z + random.uniform(0.5, 4), (40, 40, 42), alpha=random.uniform(0.05, 0.2)
        )
    texture = random.normal(0, 7, (rows - horizon, columns, 1)).astype(np.float32)
    canvas.values[horizon:] += cv2.GaussianBlur(texture, (3, 3), 0)[:, :, None]

    for side in (-1, 1):
        distance = 68.0
        while distance > 7:
            depth = random.uniform(7, 13)
            if random.random() < 0.75:
                _house(canvas, random, side, distance - depth, distance)
            else:
                _tree(canvas, random, side * random.uniform(9.5, 12), distance - depth / 2)
            distance -= depth


def _house(canvas: Canvas, random: np.random.Generator, side: int, near: float, far: float) -> None:
    """A facade along the street with windows, and the gable that faces the camera."""
    wall = shaded(_WALLS[int(random.integers(len(_WALLS)))], canvas.light)
    x, top = side * random.uniform(10, 12), CAMERA_HEIGHT_M - random.uniform(5, 10)
    near = max(near, 1.2)

    def side_wall(z0: float, z1: float, y0: float, y1: float) -> Points:
        return np.array([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)])

    gable = np.array(
        [(x, top, near), (x + side * 9, top, near), (x + side * 9, CAMERA_HEIGHT_M, near), (x, CAMERA_HEIGHT_M, near)]
    )
    canvas.surface(gable, shaded(wall, 0.72))
    canvas.surface(side_wall(near, far, top, CAMERA_HEIGHT_M), wall)
    pane = shaded((70, 80, 92), canvas.light)
    for up in np.arange(CAMERA_HEIGHT_M - 2.6, top + 0.6, -2.7):
        for z in np.arange(near + 0.8, far - 1.2, 2.2):
            canvas.surface(side_wall(z, z + 1.1, up, up + 1.4), shaded(pane, random.uniform(0.8, 1.3)))


def _tree(canvas: Canvas, random: np.random.Generator, x: float, z: float) -> None:
    ground = CAMERA_HEIGHT_M
    trunk = np.array(
        [(x - 0.15, ground - 2.5, z), (x + 0.15, ground - 2.5, z), (x + 0.15, ground, z), (x - 0.15, ground, z)]
    )
    canvas.surface(trunk, shaded((86, 66, 48), canvas.light))
    green = shaded((random.uniform(50, 80), random.uniform(90, 120), 46), canvas.light)
    for _ in range(9):
        cx, cy, radius = x + random.normal(0, 0.8), ground - 3.6 + random.normal(0, 0.7), random.uniform(0.6, 1.2)
        blob = np.array([(cx + radius * math.cos(a), cy + radius * math.sin(a), z) for a in _CIRCLE])
        canvas.surface(blob, shaded(green, random.uniform(0.75, 1.25)))
