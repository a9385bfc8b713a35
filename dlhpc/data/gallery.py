"""One self-contained page about a dataset: some of its pictures, and what it holds in numbers.

Everything of the user's passes Jinja2's autoescape; pictures are inside the page, which loads nothing. Without scripts
all is seen but the filters.
"""

from __future__ import annotations

import base64
import functools
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlhpc import __version__, resources
from dlhpc.data.catalog import Catalog, make_catalog
from dlhpc.data.folders import show_path
from dlhpc.data.packed import Packed, open_packed
from dlhpc.data.pictures import Resize, decode, fitted
from dlhpc.data.samples import DONT_CARE, Boxes
from dlhpc.data.splits import SPLITS, SplitName
from dlhpc.errors import DlhpcError, UserError

if TYPE_CHECKING:
    from jinja2 import Environment

    from dlhpc.data.source import Source

THUMBNAIL = 176
"""Longer side in pixels."""
BARS = 40
RESIZES: tuple[Resize, ...] = ("squash", "crop", "fill", "half_crop", "pad")
MAX_CLASSES = 300
"""Of more classes only the first are listed one by one."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the packed picture."""

    left: float
    top: float
    width: float
    height: float
    name: str
    cared: bool


@dataclass(frozen=True)
class Thumbnail:
    """One picture of the page."""

    uri: str
    split: str
    classes: list[int]
    text: str
    path: str
    boxes: list[Box]


@dataclass(frozen=True)
class Histogram:
    """Bars as shares of the highest."""

    name: str
    low: str
    high: str
    bars: list[float]


def page_of_source(source: Source, name: str, most: int) -> str:
    """The page of data that is not packed: a sample of it is prepared as a training would, in a temporary folder."""
    catalog = make_catalog(source.data, source.base, source.task)
    if catalog.packed is not None:
        with open_packed(catalog.packed.folder) as packed:
            return page_of_packed(packed, most)
    from dlhpc.data.__main__ import preparation
    from dlhpc.data.pack import pack
    from dlhpc.data.pack_rows import pack_rows

    settings = source.data.model_dump(mode="json")
    with tempfile.TemporaryDirectory(prefix="dlhpc-show-") as scratch:
        folder = Path(scratch) / "set"
        if catalog.kind == "table":
            packed = pack_rows(catalog, settings["table"], folder, key="")
        else:
            packed = pack(
                _sample(catalog, most), preparation({**settings, "broken": "skip"}), folder, key="", threads=2
            )
        with packed:
            counts: dict[str, int] = {split: catalog.count(split) for split in SPLITS}
            class_counts: dict[str, list[int]] = {split: catalog.counts(split) for split in SPLITS}
            return _render(packed, name, most, counts, class_counts, sampled=catalog.kind != "table")


def page_of_packed(packed: Packed, most: int) -> str:
    """The page of a packed dataset with at most ``most`` pictures."""
    index = packed.index
    return _render(packed, Path(packed.folder).absolute().name, most, index.counts, index.class_counts, sampled=False)


def _sample(catalog: Catalog, most: int) -> Catalog:
    """Some samples of each split, evenly spread, so that every class is among them where there is room."""
    splits = {}
    for split, samples in catalog.splits.items():
        share = max(
            len(catalog.classes), 2, round(most * len(samples) / max(1, sum(map(len, catalog.splits.values()))))
        )
        splits[split] = [samples[place] for place in _spread(len(samples), share)]
    return Catalog(
        catalog.classes,
        splits,
        task=catalog.task,
        several_labels=catalog.several_labels,
        target_names=catalog.target_names,
    )


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly spread."""
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, most)).round()}) if count else []


def _render(
    packed: Packed, name: str, most: int, counts: dict[str, int], class_counts: dict[str, list[int]], *, sampled: bool
) -> str:
    index = packed.index
    pictures = index.kind == "pictures"
    highest = max((count for of in class_counts.values() for count in of), default=0)
    classes = [
        (label, class_name, [(split, class_counts[split][label]) for split in SPLITS if counts[split]])
        for label, class_name in enumerate(index.classes[:MAX_CLASSES])
    ]
    return (
        _environment()
        .get_template("show.html.j2")
        .render(
            name=name,
            index=index,
            pictures=pictures,
            counts={split: counts[split] for split in SPLITS if counts[split]},
            sampled=sampled,
            classes=classes,
            highest=max(1, highest),
            more_classes=max(0, len(index.classes) - MAX_CLASSES),
            thumbnails=_thumbnails(packed, most) if pictures else [],
            values=_value_histograms(index.histogram) if pictures else [],
            targets=_target_histograms(packed) if index.task == "regression" else [],
            mean_picture=_uri(_eight_bits(packed.mean_image * 255)) if pictures and counts["train"] else None,
            resizes=_resizes(packed) if pictures else [],
            features=[*zip(index.features, index.mean, index.std)],
            skipped=[(show_path(path), reason) for path, reason in index.skipped],
            version=__version__,
        )
    )


def _thumbnails(packed: Packed, most: int) -> list[Thumbnail]:
    found = []
    total = max(1, packed.index.total)
    buffer: NDArray[Any] = np.empty((1, *packed.index.shape), packed.dtype)
    for split in SPLITS:
        count = packed.count(split)
        share = max(1, round(most * count / total))
        paths, targets = packed.paths(split), packed.targets(split)
        for place in _chosen(packed, split, share):
            packed.read(split, np.array([place]), buffer)
            classes, text, boxes = _described(packed, targets, place)
            uri = _uri(_eight_bits(buffer[0]))
            found.append(Thumbnail(uri, split, classes, text, show_path(paths[place]), boxes))
    return found


def _chosen(packed: Packed, split: SplitName, most: int) -> list[int]:
    """Places that give every class its share where a picture has one class, else evenly spread ones."""
    count = packed.count(split)
    if packed.task != "classification" or packed.several_labels or count <= most:
        return _spread(count, most)
    labels = packed.labels(split)
    # The first of each class, then the second of each … as far as there is room.
    turn = np.zeros(count, dtype=np.int64)
    for label in np.unique(labels):
        here = np.flatnonzero(labels == label)
        turn[here] = np.arange(len(here))
    return sorted(np.lexsort((labels, turn))[:most].tolist())


def _described(packed: Packed, targets: Any, place: int) -> tuple[list[int], str, list[Box]]:
    """Classes (for the filter), caption and boxes of one picture."""
    if isinstance(targets, Boxes):
        corners, labels = targets.of(place)
        boxes = [
            Box(left, top, right - left, bottom - top, _class_name(packed, label), label != DONT_CARE)
            for (left, top, right, bottom), label in zip(corners.tolist(), labels.tolist())
        ]
        cared = [label for label in labels.tolist() if label != DONT_CARE]
        text = ", ".join(f"{cared.count(label)} {packed.classes[label]}" for label in sorted(set(cared)))
        return sorted(set(cared)), text or "no object", boxes
    if packed.task == "regression":
        shown = [f"{name} {value:.6g}" for name, value in zip(packed.target_names, targets[place].tolist())]
        return [], ", ".join(shown[:4]) + (", …" if len(shown) > 4 else ""), []
    of = np.flatnonzero(targets[place]).tolist() if packed.several_labels else [int(targets[place])]
    return of, ", ".join(packed.classes[label] for label in of) or "none", []


def _class_name(packed: Packed, label: int) -> str:
    return "DontCare" if label == DONT_CARE else packed.classes[label]


def _value_histograms(histogram: list[list[int]]) -> list[Histogram]:
    names = ["grey"] if len(histogram) == 1 else ["red", "green", "blue"]
    found = []
    for name, counts in zip(names, histogram):
        bins = np.array(counts, dtype=np.float64).reshape(64, 4).sum(axis=1)
        highest = max(1.0, bins[1:-1].max() * 1.2)  # black bars and white paper would hide all else
        found.append(Histogram(name, "dark", "bright", np.minimum(bins / highest, 1.0).tolist()))
    return found


def _target_histograms(packed: Packed) -> list[Histogram]:
    found = []
    values = cast("NDArray[np.float64]", packed.targets("train"))
    for column, name in enumerate(packed.target_names[:12]):
        counts, edges = np.histogram(values[:, column], BARS)
        found.append(Histogram(name, f"{edges[0]:.4g}", f"{edges[-1]:.4g}", (counts / max(1, counts.max())).tolist()))
    return found


def _resizes(packed: Packed) -> list[tuple[str, str, bool]]:
    """Name, picture and whether it is the one in use, of each way to bring one picture to the dataset's size.

    Empty where the original is gone: what has been resized says nothing any more.
    """
    height, width = packed.height, packed.width
    original = None
    candidates = [packed.paths("train")[place] for place in _spread(packed.count("train"), 8)]
    for path in candidates:
        try:
            values = decode(path)
        except (DlhpcError, UserError):
            continue
        if original is None or values.shape[0] * width != values.shape[1] * height:
            original = values
            if values.shape[0] * width != values.shape[1] * height:
                break  # one of another shape, on which the ways differ
    if original is None:
        return []
    shape = f"{original.shape[1]}×{original.shape[0]}"
    made = [
        (way, _uri(_eight_bits(fitted(original, height, width, way))), way == packed.index.resize) for way in RESIZES
    ]
    return [(f"original, {shape}", _uri(_eight_bits(np.moveaxis(original, 2, 0))), False), *made]


def _eight_bits(picture: NDArray[Any]) -> NDArray[np.uint8]:
    """C×H×W at full scale (float: from 0 to 255) → H×W×C, 8 bits."""
    if picture.dtype == np.uint16:
        picture = picture >> 8
    values = np.moveaxis(picture, 0, 2)
    return cast("NDArray[np.uint8]", np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _uri(values: NDArray[np.uint8]) -> str:
    """A small picture as a data URI; PNG where that is small, so that tiny pictures keep their pixels."""
    image = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    kind = "PNG" if max(image.size) <= 64 else "JPEG"
    image.save(buffer, kind, **({} if kind == "PNG" else {"quality": 82}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = resources.folder("jobtemplates")
    return Environment(
        loader=FileSystemLoader([templates / "data", templates / "report"]),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
