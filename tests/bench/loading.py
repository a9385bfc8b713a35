"""What a picture costs until it lies in a batch: one process, one worker thread, against other loaders.

Peers: torchvision's ``ImageFolder`` in a ``DataLoader``, and FFCV where it is installed (it needs OpenCV's and
libjpeg-turbo's headers to build: apt-get install libopencv-dev libturbojpeg0-dev pkg-config, pip install
--no-build-isolation ffcv). Start it with OMP_NUM_THREADS=1, so that numeric libraries start no threads of their own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from dlhpc.data.batches import Normalisation, TrainingBatches, steps_per_epoch
from dlhpc.data.catalog import make_catalog
from dlhpc.data.pack import Preparation, pack
from dlhpc.data.packed import Packed, open_packed
from dlhpc.spec.models import Augment, Data
from tests.bench.measure import Figure, best_of, figure

COUNT, SIZE, CROP, BATCH = 2000, 256, 224, 64
SOME = 512
"""Pictures a round of the slow peers; a figure is a time for one picture."""
ROUNDS = 5
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
AREAS = (0.08, 1.0)
Sides = dict[str, Callable[[], object]]


def photographs(folder: Path) -> None:
    """JPEG files of some 20 kB in ten class folders: soft colours, edges and grain, as photographs have them."""
    random = np.random.default_rng(1)
    for number in range(COUNT):
        soft = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((SIZE, SIZE), 3)
        fine = Image.fromarray(random.integers(0, 256, (96, 96, 3), dtype=np.uint8)).resize((SIZE, SIZE), 2)
        values = np.asarray(soft, dtype=np.int16) + np.asarray(fine, dtype=np.int16) // 8
        values += random.integers(-6, 7, values.shape, dtype=np.int16)
        top, left = random.integers(0, SIZE - 80, 2)
        values[top : top + 80, left : left + 80] += 40
        path = folder / f"class{number % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(path, quality=90)


def packed_set(photos: Path, storage: Any) -> Packed:
    data = Data(folder=str(photos), color="rgb", width=SIZE, height=SIZE, storage=storage)
    how = Preparation(color="rgb", height=SIZE, width=SIZE, resize="squash", skip_broken=False, storage=storage)
    return pack(make_catalog(data, photos), how, photos.parent / storage, key="bench", threads=2)


def normalisation() -> Normalisation:
    mean, std = (np.array(values, dtype=np.float64).reshape(3, 1, 1) for values in (MEAN, STD))
    return Normalisation((1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32))


class Ours:
    """Epochs of the packed set; each call goes through as many pictures as the peers do."""

    def __init__(self, packed: Packed, augment: Augment, *, floats: bool) -> None:
        self.epoch = 0
        steps = steps_per_epoch(packed.count("train"), BATCH)
        normalise = normalisation() if floats else None
        self.batches = TrainingBatches(packed, augment, 1, 0, 1, steps, threads=1, normalise=normalise)

    def __call__(self) -> None:
        self.epoch += 1
        seen = 0
        for step in self.batches.epoch(self.epoch):
            seen += step.global_count
            if seen >= SOME:
                return


def torchvision_loader(photos: Path, cut: Any) -> Callable[[], None]:
    ways = [cut, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    loader = DataLoader(datasets.ImageFolder(str(photos), transforms.Compose(ways)), BATCH, shuffle=True, num_workers=0)
    return lambda: _take(loader)


def _take(loader: Any) -> None:
    seen = 0
    for pictures, _ in loader:
        seen += len(pictures)
        if seen >= SOME:
            return


def ffcv_loader(photos: Path, mode: str, *, floats: bool) -> Callable[[], None] | None:
    """FFCV's random-resized-crop and flip with one worker; None where it is not installed."""
    try:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
        from ffcv.writer import DatasetWriter
    except ImportError:
        return None
    path = photos.parent / f"ffcv-{mode}.beton"
    if not path.exists():
        image = RGBImageField(write_mode=mode, max_resolution=SIZE, jpeg_quality=90)
        DatasetWriter(str(path), {"image": image, "label": IntField()}, num_workers=1).from_indexed_dataset(
            datasets.ImageFolder(str(photos))
        )
    ways: list[Any] = [RandomResizedCropRGBImageDecoder((CROP, CROP), scale=AREAS), RandomHorizontalFlip()]
    if floats:
        ways.append(NormalizeImage(255 * np.array(MEAN), 255 * np.array(STD), np.float32))
    ways += [ToTensor(), ToTorchImage(channels_last=False, convert_back_int16=False)]
    pipelines = {"image": ways, "label": [IntDecoder(), ToTensor()]}
    loader = Loader(
        str(path), BATCH, num_workers=1, order=OrderOption.RANDOM, os_cache=True, drop_last=False, pipelines=pipelines
    )
    return lambda: _take(loader)


def limit() -> Callable[[], None]:
    """Cast and normalise pictures that lie in memory into a reused batch, each while it is in the cache."""
    values = np.random.default_rng(1).integers(0, 256, (SOME, 3, CROP, CROP), dtype=np.uint8)
    out, how = np.empty((BATCH, 3, CROP, CROP), dtype=np.float32), normalisation()

    def run() -> None:
        for number in range(SOME):
            target = out[number % BATCH]
            np.copyto(target, values[number])
            np.multiply(target, how.scale, out=target)
            np.add(target, how.offset, out=target)

    return run


def per_picture(name: str, sides: Sides, bar: str, note: str = "") -> list[Figure]:
    """One line for each peer beside ``ours``."""
    for side in sides.values():
        side()  # buffers, compiled peers, the page cache
    times = best_of(sides, ROUNDS)
    return [
        figure(name, {"ours": times["ours"], peer: times[peer]}, f"bar: {bar}{note}", per=SOME)
        for peer in times
        if peer != "ours"
    ]


def random_crops(photos: Path, packed: Packed) -> list[Figure]:
    augment = Augment(crop=CROP, flip_horizontal=True)
    floats, whole = Ours(packed, augment, floats=True), Ours(packed, augment, floats=False)
    peer = torchvision_loader(photos, transforms.RandomCrop(CROP))
    return [
        *per_picture("crop, flip, normalise to float32", {"ours": floats, "torchvision": peer}, "15"),
        *per_picture("crop, flip, uint8", {"ours": whole, "torchvision": peer}, "20", "; theirs is float32"),
        *per_picture("crop, flip, normalise to float32", {"ours": floats, "NumPy, data in memory": limit()}, "0.65"),
    ]


def resized_crops(photos: Path, packed: Packed, mode: str) -> list[Figure]:
    name, found = f"random resized crop of {packed.storage}", []
    smooth = torchvision_loader(photos, transforms.RandomResizedCrop(CROP, AREAS))
    for floats in (True, False):
        kind = "float32" if floats else "uint8"
        ours = Ours(packed, Augment(crop=CROP, flip_horizontal=True, resized_crop=AREAS), floats=floats)
        if peer := ffcv_loader(photos, mode, floats=floats):
            bar = "1.5" if mode == "raw" else "1.15"
            found += per_picture(f"{name}, {kind}", {"ours": ours, f"FFCV {mode}": peer}, bar)
        if floats:
            found += per_picture(f"{name}, {kind}", {"ours": ours, "torchvision": smooth}, "8 where FFCV is missing")
    same = Augment(crop=CROP, flip_horizontal=True, resized_crop=AREAS, antialias=True)
    sides: Sides = {"ours": Ours(packed, same, floats=True), "torchvision": smooth}
    return found + per_picture(f"{name}, antialiased, float32", sides, "none", "; both smooth alike")


def system_calls(packed: Packed) -> list[Figure]:
    """Of an epoch over the packed set, counted by strace; nothing where that is missing or not allowed."""
    if shutil.which("strace") is None:
        print("strace is not installed: system calls are not counted", flush=True)
        return []
    code = (
        "from dlhpc.data.batches import TrainingBatches; from dlhpc.data.packed import open_packed;"
        "from dlhpc.spec.models import Augment; import sys;"
        "steps = TrainingBatches(open_packed(sys.argv[1]), Augment(crop=224), 1, 0, 1, 30).epoch(0);"
        "print(sum(len(step.portions[0]) for step in steps))"
    )
    calls = {
        "opens": ("open", "openat", "openat2"),
        "stats": ("stat", "lstat", "fstat", "newfstatat", "statx"),
        "reads": ("read", "pread64", "preadv", "preadv2", "readv"),
    }
    with tempfile.NamedTemporaryFile() as log:
        traced = ",".join("?" + name for names in calls.values() for name in names)
        command = ["strace", "-f", "-y", "-e", f"trace={traced}", "-o", log.name, sys.executable, "-c", code]
        done = subprocess.run([*command, str(packed.folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"strace does not work here: {done.stderr.strip()[-200:]}", flush=True)
            return []
        lines = [line for line in Path(log.name).read_text().splitlines() if str(packed.folder) in line]
    count, found = int(done.stdout), []
    for name, kinds in calls.items():
        started = re.compile(rf"\d+ +({'|'.join(kinds)})\(")
        each = sum(1 for line in lines if started.match(line)) / count
        bar = 1.0 if name == "reads" else 0.1
        note = f"{count} pictures from {len(packed.index.shards)} shards"
        found.append(Figure(f"{name} a picture", f"{each:.3f}", f"{bar:g} (bar)", bar / each if each else np.inf, note))
    return found


def figures() -> list[Figure]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch) / "photos"
        photographs(photos)
        packed_set(photos, "raw").close()
        packed_set(photos, "jpeg").close()
        with open_packed(photos.parent / "raw") as raw, open_packed(photos.parent / "jpeg") as jpeg:
            return [
                *random_crops(photos, raw),
                *resized_crops(photos, raw, "raw"),
                *resized_crops(photos, jpeg, "jpg"),
                *system_calls(raw),
            ]
