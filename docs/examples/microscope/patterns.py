"""Electron back-scatter patterns of nickel as 16-bit TIFFs in class folders, from the PyPI package kikuchipy.

``python patterns.py FOLDER [COUNT]`` downloads the wheel with pip into the cache (nothing of it is imported) and writes

* ``FOLDER/measured/CLASS``: the nine patterns that a microscope measured, of two grains (``grain-1`` and ``grain-2``);
* ``FOLDER/train/CLASS`` and ``FOLDER/val/CLASS``: COUNT and COUNT/4 computed patterns of crystals that lie, up to some
  degrees, like one of these grains or as is common in rolled nickel (``cube``, ``goss`` and ``brass``). They are the
  wheel's dynamical simulation of nickel at 20 kV (its master pattern), projected onto the detector, with noise.

So a network that has only seen computed patterns can be asked to which grain the measured ones belong. Measured ones
are divided by the detector's background, all have what changes slowly removed and are stretched to 16 bits, as is usual
before indexing.
A folder that is complete already is left alone. Needs h5py, NumPy and tifffile.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGE = "kikuchipy==0.13.1"
MEASURED = "kikuchipy/data/kikuchipy_h5ebsd/patterns.h5"
SIMULATED = "kikuchipy/data/emsoft_ebsd_master_pattern/ni_mc_mp_20kv_uint8_gzip_opts9.h5"
SIZE = 60  # pixels of the detector each way
GRAINS = {"grain-1": (0, 3, 6), "grain-2": (1, 2, 4, 5, 7, 8)}  # measured patterns of each, by the wheel's orientations
COMPONENTS = {"cube": (0.0, 0.0, 0.0), "goss": (0.0, 45.0, 0.0), "brass": (35.26, 45.0, 0.0)}  # Euler angles, degrees
SPREAD = 2.5  # degrees (σ) by which crystals of a class are turned against each other

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Detector:
    """Where it stands: x and y of the pattern centre in fractions of its width from the left and height from the top,
    its distance in heights (Bruker's convention), and the tilt of the sample in degrees."""

    x: float
    y: float
    distance: float
    tilt: float

    def moved(self, random: np.random.Generator) -> Detector:
        """A little elsewhere: its place is known to about a hundredth."""
        x, y, distance = random.normal(0, 0.005, 3)
        return Detector(self.x + x, self.y + y, self.distance + distance, self.tilt)

    def directions(self) -> Array:
        """Unit vectors (rows×columns×3) from the sample to each pixel; x down the slope, y across, z the normal."""
        column, row = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
        across, down = column / SIZE - self.x, row / SIZE - self.y
        angle = np.deg2rad(90 - self.tilt)
        cos, sin = np.cos(angle), np.sin(angle)
        found = np.stack([down * cos + self.distance * sin, across, -down * sin + self.distance * cos], axis=-1)
        return found / np.linalg.norm(found, axis=-1, keepdims=True)


def project(master: Array, directions: Array) -> Array:
    """The master pattern (n×n, Lambert's equal-area square of the upper half; the lower is the same by symmetry) in
    these crystal directions (…×3). Square by Roşca 2010, as Callahan and De Graef 2013 use it."""
    x, y, z = directions[..., 0], directions[..., 1], np.abs(directions[..., 2])
    radius = np.sqrt(np.clip(2 * (1 - z), 0, None))
    wide = np.abs(y) <= np.abs(x)
    longer, shorter = np.where(wide, x, y), np.where(wide, y, x)
    first = np.sign(longer) * radius * np.sqrt(np.pi) / 2
    second = first * 4 / np.pi * np.arctan(np.divide(shorter, longer, out=np.zeros_like(x), where=longer != 0))
    half = master.shape[0] // 2
    place = np.stack([np.where(wide, first, second), np.where(wide, second, first)]) / np.sqrt(np.pi / 2) * half + half
    corner = np.clip(np.floor(place).astype(int), 0, 2 * half - 1)
    (i, j), (down, right) = corner, place - corner
    upper = master[i, j] * (1 - right) + master[i, j + 1] * right
    lower = master[i + 1, j] * (1 - right) + master[i + 1, j + 1] * right
    return upper * (1 - down) + lower * down


def rotation(phi1: float, phi: float, phi2: float) -> Array:
    """The matrix that takes a vector from the sample's to the crystal's axes, by Bunge's Euler angles in radians."""
    (a, b, c), (p, q, r) = np.cos([phi1, phi, phi2]), np.sin([phi1, phi, phi2])
    return np.array([
        [a * c - p * r * b, p * c + a * r * b, r * q],
        [-a * r - p * c * b, -p * r + a * c * b, c * q],
        [p * q, -a * q, b],
    ])  # fmt: skip


def turned(random: np.random.Generator, angle: float) -> Array:
    """A rotation by ``angle`` (radians) about a random axis (Rodrigues)."""
    x, y, z = (axis := random.standard_normal(3)) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def wheel() -> Path:
    """The package's wheel, downloaded once into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dlhpc" / "downloads"
    name = PACKAGE.replace("==", "-")
    found = sorted(cache.glob(f"{name}-*.whl"))
    if found:
        return found[0]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run(pip, check=False).returncode != 0:
            sys.exit(f"patterns: pip could not download {PACKAGE}; check the connection and run this again")
        (downloaded,) = Path(scratch).glob("*.whl")
        return Path(shutil.move(downloaded, cache / downloaded.name))


def open_inside(archive: zipfile.ZipFile, name: str) -> Any:
    """An HDF5 file inside the wheel."""
    try:
        import h5py
    except ImportError:
        sys.exit("patterns: the patterns are HDF5 files, and h5py is not installed: pip install h5py")
    return h5py.File(BytesIO(archive.read(name)))


def write(folder: Path, number: int, values: Array) -> None:
    """A 16-bit TIFF from the darkest to the brightest half percent, without what changes slowly over the picture."""
    import tifffile

    folder.mkdir(parents=True, exist_ok=True)
    flat = values - blurred(values, SIZE / 8)
    dark, bright = np.percentile(flat, [0.5, 99.5])
    scaled = np.clip((flat - dark) / (bright - dark), 0, 1)
    tifffile.imwrite(folder / f"{number:05d}.tif", np.round(65535 * scaled).astype(np.uint16))


def lay_out(folder: Path, count: int = 600, seed: int = 1) -> None:
    """Write all patterns; ``folder`` appears when it is whole."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        with zipfile.ZipFile(wheel()) as archive:
            scan = open_inside(archive, MEASURED)["Scan 1/EBSD"]
            master = open_inside(archive, SIMULATED)["EMData/EBSDmaster/mLPNH"][0, 0].astype(np.float64)
        header, angles = scan["Header"], scan["CrystalMap/crystal_map/data"]
        turns = [rotation(*(float(angles[name][i]) for name in ("phi1", "Phi", "phi2"))) for i in range(9)]
        background = header["static_background"][()].astype(np.float64)
        where = Detector(*(float(header[name][()].mean()) for name in ("pcx", "pcy", "pcz")), 70.0)
        for name, numbers in GRAINS.items():
            for number in numbers:
                write(scratch / "measured" / name, number, scan["Data/patterns"][number] / background)
        middles = {name: [turns[number] for number in numbers] for name, numbers in GRAINS.items()}
        middles |= {name: [rotation(*np.deg2rad(angles))] for name, angles in COMPONENTS.items()}
        random = np.random.default_rng(seed)
        for split, patterns in (("train", count), ("val", count // 4)):
            for number in range(patterns):
                name = list(middles)[number % len(middles)]
                turn = middles[name][random.integers(len(middles[name]))]
                turn = turned(random, np.deg2rad(SPREAD) * random.standard_normal()) @ turn
                write(scratch / split / name, number, computed(master, where, turn, random))
        scratch.chmod(0o755)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def computed(master: Array, where: Detector, turn: Array, random: np.random.Generator) -> Array:
    """A pattern as the microscope might have measured it: bands without bright crossings, uneven light, noise."""
    bands = project(master, where.moved(random).directions() @ turn.T)
    bands = blurred(np.clip(bands, *np.percentile(bands, [1, random.uniform(80, 99)])), random.uniform(0.4, 1.2))
    uneven = blurred(random.standard_normal(bands.shape), random.uniform(3, 8))
    noise = random.uniform(1.0, 3.0) * random.standard_normal(bands.shape)
    return (bands - bands.mean()) / bands.std() + random.uniform(0, 1) * uneven / uneven.std() + noise


def blurred(values: Array, sigma: float) -> Array:
    """Smoothed by a Gaussian of ``sigma`` pixels; beyond the edges the picture is mirrored."""
    reach = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for _ in range(2):
        padded = np.pad(values, ((reach, reach), (0, 0)), mode="symmetric")
        views = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis=0)
        values = (views @ (weights / weights.sum())).T
    return values


if __name__ == "__main__":
    target = Path(sys.argv[1])
    lay_out(target, int(sys.argv[2]) if len(sys.argv) > 2 else 600)
    counts = {split.name: sum(1 for _ in split.glob("*/*.tif")) for split in sorted(target.iterdir())}
    print(", ".join(f"{count} {name}" for name, count in counts.items()), f"in {target}")
