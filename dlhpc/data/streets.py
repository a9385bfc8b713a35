"""Street-like pictures with boxes, made by a small renderer: ``python -m dlhpc.data.streets FOLDER --count 400``.

They stand in for KITTI's photographs (https://www.cvlibs.net/datasets/kitti) where those may not be copied: to try a
detection training in minutes, and to test one. FOLDER gets ``images/000000.png`` and ``labels/000000.txt`` in KITTI's
layout. A pinhole camera of KITTI's kind (focal length 0.58 of the picture's width, 1.65 m above the road) looks along a
street. Cars, vans and people stand on the ground with sizes in metres, seen from the front, the side or at an angle,
cut off by the picture's edge, hidden by each other and by hedges and fences; all columns of a label are those of this
geometry. Things lower than 12 pixels, or hidden or cut off almost wholly, are *DontCare* regions.

Everything is a function of (seed, number of the picture), so that a longer set begins with a shorter one.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dlhpc.data.street_scene import (
    CAMERA_HEIGHT_M,
    FINE,
    Camera,
    Canvas,
    Color,
    Thing,
    draw_cover,
    draw_person,
    draw_street,
    draw_vehicle,
    shaded,
)
from dlhpc.errors import DlhpcError, UserError
from dlhpc.files import storage_errors

_LOWEST_PIXELS = 12.0
_HIDDEN = 0.15  # visible part below which nobody could say that there is a car
_CUT_OFF = 0.85  # part outside the picture, likewise
_PAINT: list[Color] = [
    (196, 30, 36), (28, 66, 140), (225, 225, 228), (40, 42, 46), (150, 154, 160), (20, 96, 66), (222, 180, 40),
    (110, 26, 46), (70, 130, 180), (170, 120, 80), (245, 245, 240), (88, 92, 98),
]  # fmt: skip


# ---- Who stands where


def place_things(camera: Camera, random: np.random.Generator) -> list[Thing]:
    """Cars, vans, people and what hides them, at places where no two stand in each other."""
    things: list[Thing] = []

    def free(new: Thing) -> bool:
        return all(
            math.hypot(new.x - old.x, (new.z - old.z) * 0.9) > 0.5 * (reach(new) + reach(old)) + 0.3 for old in things
        )

    def reach(thing: Thing) -> float:
        return 0.75 * thing.length + 0.25 * thing.width

    wanted, tries = int(random.integers(1, 6)), 0
    while len(things) < wanted and tries < 40:
        tries += 1
        kind = "Van" if random.random() < 0.12 else "Car"
        length, width, height = (
            (random.uniform(4.6, 5.4), random.uniform(1.85, 2.0), random.uniform(1.9, 2.3)) if kind == "Van"
            else (random.uniform(3.5, 4.7), random.uniform(1.6, 1.85), random.uniform(1.38, 1.62))
        )  # fmt: skip
        pixels = math.exp(random.uniform(math.log(0.16 * camera.height), math.log(0.52 * camera.height)))
        z = camera.focal * height / pixels
        along = -math.pi / 2 if random.random() < 0.5 else math.pi / 2
        view = random.random()
        if view < 0.5:  # with the traffic or against it, nearly straight
            yaw = along + random.normal(0, 0.08)
        elif view < 0.75:  # crossing
            yaw = random.choice([0.0, math.pi]) + random.normal(0, 0.12)
        else:
            yaw = random.uniform(-math.pi, math.pi)
        edge = z * camera.width / 2 / camera.focal
        x = random.uniform(-min(edge * 1.02, 8.5), min(edge * 1.02, 7.5))
        paint = shaded(_PAINT[int(random.integers(len(_PAINT)))], random.uniform(0.85, 1.1))
        new = Thing(kind, x, z, length, width, height, yaw, paint, int(random.integers(3)))
        if free(new):
            things.append(new)
    for _ in range(int(random.integers(0, 3))):  # far away
        z = camera.focal * 1.5 / random.uniform(6, _LOWEST_PIXELS - 1)
        paint = _PAINT[int(random.integers(len(_PAINT)))]
        new = Thing("Car", random.uniform(-7, 6), z, 4.2, 1.7, 1.5, random.choice([-1, 1]) * math.pi / 2, paint)
        if free(new):
            things.append(new)
    for _ in range(int(random.integers(0, 3))):
        coat = shaded(_PAINT[int(random.integers(len(_PAINT)))], 0.9)
        z = random.uniform(7, 22)
        x = random.choice([-1, 1]) * random.uniform(4, 8.5)
        new = Thing("Pedestrian", x, z, 0.6, 0.6, random.uniform(1.55, 1.9), 0.0, coat, int(random.integers(3)))
        if free(new):
            things.append(new)
    cars = [thing for thing in things if thing.kind == "Car"]
    if cars and random.random() < 0.4:  # hide part of one
        car = cars[int(random.integers(len(cars)))]
        kind = "Hedge" if random.random() < 0.5 else "Fence"
        color: Color = (52, 84, 40) if kind == "Hedge" else (136, 104, 70)
        z = max(3.0, car.z - random.uniform(2.6, 3.4))
        x = car.x * z / car.z + random.choice([-1, 1]) * random.uniform(0.8, 2.4)
        things.append(Thing(kind, x, z, random.uniform(2, 4), 0.1, random.uniform(0.6, 0.95), 0.0, color))
    return sorted(things, key=lambda thing: -thing.z)


# ---- A picture and its labels


@dataclass(frozen=True)
class Street:
    """One picture and the lines of its label file."""

    picture: NDArray[np.uint8]
    """H×W×3, red first."""
    labels: list[str]


def draw(seed: int, number: int, width: int = 320, height: int = 96) -> Street:
    """Picture ``number`` of the set ``seed``."""
    random = np.random.default_rng([seed, number])
    camera = Camera(width, height)
    canvas = Canvas(camera, light=random.uniform(0.75, 1.1))
    draw_street(canvas, random)
    things = place_things(camera, random)
    shapes: list[Shape] = []
    for owner, thing in enumerate(things, start=1):
        if thing.kind in ("Car", "Van"):
            draw_vehicle(canvas, thing, owner)
        elif thing.kind == "Pedestrian":
            draw_person(canvas, thing, owner)
        else:
            draw_cover(canvas, thing, owner, random)
        shapes.append(_shape(canvas.owner == owner))
    labels = []
    for owner, (thing, shape) in enumerate(zip(things, shapes), start=1):
        if shape.pixels and thing.kind not in ("Hedge", "Fence"):
            visible = int((canvas.owner == owner).sum()) / shape.pixels
            labels.append(_label(thing, camera, shape, visible))
    values = cv2.resize(canvas.values, (width, height), interpolation=cv2.INTER_AREA)
    warmth = random.normal(1, 0.03, 3)
    noise = random.normal(0, random.uniform(1, 5), values.shape)
    blurred = cv2.GaussianBlur((values * warmth + noise).astype(np.float32), (3, 3), random.uniform(0.2, 0.6))
    return Street(blurred.clip(0, 255).astype(np.uint8), labels)


@dataclass(frozen=True)
class Shape:
    """What a thing covers of the picture before others are painted over it."""

    pixels: int
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the final picture."""


def _shape(mask: NDArray[np.bool_]) -> Shape:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return Shape(0, (0.0, 0.0, 0.0, 0.0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return Shape(int(mask.sum()), (left / FINE, top / FINE, right / FINE, bottom / FINE))


def _label(thing: Thing, camera: Camera, shape: Shape, visible: float) -> str:
    """The line of KITTI's label file; ``visible`` is the part of the shape that nothing hides."""
    corners = " ".join(f"{value:.2f}" for value in shape.box)
    whole = thing.hull(camera)
    inside = np.clip(whole, 0, (camera.width, camera.height, camera.width, camera.height))
    truncated = 1 - float((inside[2:] - inside[:2]).prod() / (whole[2:] - whole[:2]).prod())
    if shape.box[3] - shape.box[1] < _LOWEST_PIXELS or visible < _HIDDEN or truncated > _CUT_OFF:
        return f"DontCare -1 -1 -10 {corners} -1 -1 -1 -1000 -1000 -1000 -10"
    occluded = 0 if visible > 0.9 else 1 if visible > 0.5 else 2
    alpha = _turned(thing.yaw - math.atan2(thing.x, thing.z))
    return (
        f"{thing.kind} {truncated:.2f} {occluded} {alpha:.2f} {corners} {thing.height:.2f} {thing.width:.2f} "
        f"{thing.length:.2f} {thing.x:.2f} {CAMERA_HEIGHT_M:.2f} {thing.z:.2f} {_turned(thing.yaw):.2f}"
    )


def _turned(angle: float) -> float:
    """The same angle between −π and π."""
    return math.atan2(math.sin(angle), math.cos(angle))


def write_streets(folder: Path, count: int, seed: int, width: int = 320, height: int = 96) -> None:
    """Write pictures 0 to ``count`` − 1 with their labels into ``folder``; files of the same names are replaced."""
    images, labels = folder / "images", folder / "labels"
    with storage_errors(folder):
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(exist_ok=True)
        for number in range(count):
            street = draw(seed, number, width, height)
            done, encoded = cv2.imencode(".png", street.picture[:, :, ::-1])
            assert done
            (images / f"{number:06d}.png").write_bytes(encoded.tobytes())
            (labels / f"{number:06d}.txt").write_text("".join(line + "\n" for line in street.labels), encoding="utf-8")


def main(argv: list[str]) -> int:
    """``python -m dlhpc.data.streets``; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dlhpc.data.streets", description="Make street-like pictures with boxes, in KITTI's layout."
    )
    parser.add_argument("folder", type=Path, help="gets images/ and labels/")
    parser.add_argument("--count", type=int, default=400, help="number of pictures (400)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same pictures (1)")
    parser.add_argument("--width", type=int, default=320, help="in pixels (320)")
    parser.add_argument("--height", type=int, default=96, help="in pixels (96)")
    asked = parser.parse_args(argv)
    try:
        if asked.count < 1 or not 64 <= asked.width <= 4096 or not 48 <= asked.height <= 4096 or asked.seed < 0:
            raise UserError(
                "--count must be at least 1, --seed at least 0, --width from 64 to 4096 and --height from 48 to 4096"
            )
        write_streets(asked.folder, asked.count, asked.seed, asked.width, asked.height)
    except DlhpcError as error:
        print(f"dlhpc: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{asked.count} pictures of {asked.width}×{asked.height} with their labels are in {asked.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
