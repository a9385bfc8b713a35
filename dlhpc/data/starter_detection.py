"""A first spec for pictures with boxes in KITTI's layout: sizes and classes are taken from what is there."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from dlhpc.data.catalog import make_catalog
from dlhpc.data.faults import Faults
from dlhpc.data.kitti import Labelled, read_folder
from dlhpc.data.source import IMAGES, LABELS
from dlhpc.data.splits import SPLIT_WORDS
from dlhpc.data.starter_parts import Looks, batch_size, line, look, quoted, run_name, written_path
from dlhpc.errors import DataError
from dlhpc.spec.load import parse_document, validate
from dlhpc.spec.models import Spec

_LONGEST = 1280  # pixels: a longer side is shrunk, or a picture would take too much memory
_GRID = 32  # sides are multiples of this, so that nothing is added at the edges of deep layers
_FEW = 10  # objects of a type that are too few to learn it
_MANY_PICTURES = 40  # from here on some are kept unseen


@dataclass(frozen=True)
class _Folders:
    """Names relative to the source folder: split → (images, labels)."""

    pairs: dict[str, tuple[str, str]]
    sequences: str | None


def detection_spec(
    folder: Path, name: str | None = None, *, relative_to: Path | None = None, ranks_per_node: int = 1
) -> str:
    """A commented YAML spec for ``folder``, which holds ``images`` and ``labels`` (or ``image_2`` and ``label_2``), or
    folders for train, val and test that do. Arguments and errors as for :func:`dlhpc.data.starter.starter_spec`.
    """
    folder = Path(os.path.abspath(folder))
    found = _find(folder)
    written = written_path(folder, relative_to)
    faults = Faults()
    images, labels = found.pairs["train"]
    pictures, _ = read_folder(folder / images, folder / labels, faults)
    faults.raise_if_any()
    mapping = _mapping(pictures)
    heights = _heights(pictures, {kind for kind, _, learnt in mapping if learnt})
    shares = None if "val" in found.pairs else _shares(len(pictures), "unseen" in found.pairs)
    source = _source_lines(found, written, mapping, heights, shares)
    draft = "\n".join(["name: draft", "task: detection", "data:", *source])
    data = validate(parse_document(draft, folder), Spec).data
    base = Path(os.path.abspath(relative_to or folder))
    catalog = make_catalog(data, base, "detection")
    looks = look(catalog.splits["train"])
    counts = {split: catalog.count(split) for split in catalog.splits}
    objects = sum(sum(catalog.counts(split)) for split in counts)
    many = len(catalog.classes)
    if looks.short_side:
        color = "" if looks.color == "auto" else f"{looks.color} and "
        seen = f"# The pictures that were looked at are {color}{looks.sizes} pixels large."
    else:
        seen = "# The pictures could not be looked at from here; check width and height below."
    head = [
        "# What dlhpc shall find in pictures, learnt from which. It runs as it is:  dlhpc submit THIS_FILE --wait",
        "# Change what you like; text after a # is explanation. `dlhpc plan THIS_FILE` shows what would happen, and",
        "# `dlhpc data check THIS_FILE` looks for boxes that do not fit and for pictures that are there twice.",
        f"# Found: {sum(counts.values())} pictures, {objects} objects of {many} class{'' if many == 1 else 'es'}:",
        f"#   {counts['train']} to learn from, {counts['val']} to measure by (val), {counts['unseen']} kept unseen.",
        seen,
        "",
        line(
            f"name: {quoted(run_name(folder.name) if name is None else name)}", "each run is called this, with its date"
        ),
        line('notes: ""', "what you want to remember; it is shown in the report"),
        line("task: detection", "say where the objects are, as boxes, and of which class"),
        "",
        "data:",
        *source,
    ]
    lines = [*head, *_data_lines(looks), "", *_training_lines(looks, heights, counts["train"], ranks_per_node)]
    text = "\n".join(lines) + "\n"
    validate(parse_document(text, folder), Spec)  # a bad --name is told here, in the words of the spec
    return text


def _find(folder: Path) -> _Folders:
    if not folder.is_dir():
        what = "is a file; a folder is needed" if folder.exists() else "there is no such folder"
        raise DataError(what, where=folder, remedy="Name the folder that holds the folders of pictures and labels.")
    own = _pair(folder)
    pairs = {} if own is None else {"train": own}
    if own is None:
        for entry in sorted(folder.iterdir()):
            split = SPLIT_WORDS.get(entry.name.lower())
            if split is not None and entry.is_dir() and (pair := _pair(entry)) is not None:
                pairs.setdefault(split, (f"{entry.name}/{pair[0]}", f"{entry.name}/{pair[1]}"))
    if "train" not in pairs:
        raise DataError(
            "holds no pair of folders for pictures and labels",
            where=folder,
            remedy="Put pictures into `images` and label files of the same names (X.png, X.txt) into `labels`, or use "
            "KITTI's names image_2 and label_2; or put such pairs into folders train and val.",
        )
    for place in (".", "mapping", "devkit/mapping", "devkit_object/mapping"):
        if all((folder / place / file).is_file() for file in ("train_mapping.txt", "train_rand.txt")):
            return _Folders(pairs, os.path.normpath(f"{place}/train_mapping.txt"))
    return _Folders(pairs, None)


def _pair(folder: Path) -> tuple[str, str] | None:
    inside = {entry.name.lower(): entry.name for entry in folder.iterdir() if entry.is_dir()}
    images, labels = ([inside[word] for word in words if word in inside] for words in (IMAGES, LABELS))
    return (images[0], labels[0]) if images and labels else None


def _mapping(pictures: list[Labelled]) -> list[tuple[str, int, bool]]:
    """Each type with its number of objects and whether they are enough to learn it; the most frequent first."""
    counted = Counter(one.type for picture in pictures for one in picture.objects if one.type.lower() != "dontcare")
    most = max(counted.values(), default=0)
    return [(kind, count, count >= min(_FEW, most)) for kind, count in counted.most_common()]


def _heights(pictures: list[Labelled], learnt: set[str]) -> tuple[float, float]:
    """Heights in pixels of the files that a twentieth, and a quarter, of the objects stay below."""
    found = [one.bottom - one.top for picture in pictures for one in picture.objects if one.type in learnt]
    if len(found) < 2:
        return (found * 2 or [1.0, 1.0])[0], (found or [1.0])[0]
    cuts = quantiles(found, n=20)
    return cuts[0], cuts[4]


def _shares(pictures: int, unseen_apart: bool) -> tuple[float, float, float]:
    if unseen_apart or pictures < _MANY_PICTURES:
        return (0.75, 0.25, 0.0) if pictures < 4000 else (0.85, 0.15, 0.0)
    return (0.7, 0.15, 0.15)


def _source_lines(
    found: _Folders,
    written: str,
    mapping: list[tuple[str, int, bool]],
    heights: tuple[float, float],
    shares: tuple[float, float, float] | None,
) -> list[str]:
    def path(inside: str) -> str:
        return quoted(inside if written == "." else os.path.join(written, inside))

    keys = {"train": "", "val": "val_", "unseen": "unseen_"}
    lines = [line("  kitti:", "picture X.png has its boxes in X.txt, one a line: type, …, left, top, right, bottom")]
    for split, (images, labels) in found.pairs.items():
        lines += [f"    {keys[split]}images: {path(images)}", f"    {keys[split]}labels: {path(labels)}"]
    if found.sequences is not None:
        lines.append(line(f"    sequences: {path(found.sequences)}", "pictures of one drive go to the same split"))
    elif shares is not None:
        lines.append(
            "    # sequences: FILE       # if pictures are frames of films: lines NAME FILM keep a film's together"
        )
    lines.append(line("    mapping:", "type in the label files → class; `dontcare` is neither learnt nor a mistake"))
    for kind, count, learnt in mapping:
        what = f"{count} object{'' if count == 1 else 's'}"
        lines.append(
            line(
                f"      {quoted(kind)}: {quoted(kind) if learnt else 'dontcare'}",
                what + ("" if learnt else ": too few"),
            )
        )
    lines.append(
        line(f"    min_height: {_lowest(heights)}", "lower objects, in pixels of the picture, are not cared for")
    )
    lines.append(line("    max_occluded: 3", "2: leave out those whose visibility is unknown, 1: the largely hidden"))
    lines.append(line("    max_truncated: 1.0", "0.5: leave out those of which half is outside of the picture"))
    if shares is not None:
        train, val, unseen = shares
        lines += [
            line("  split:", "the pictures are shared out like this; the three sum to 1"),
            line(f"    train: {train:g}", "the network learns from these"),
            line(f"    val: {val:g}", "these measure it after every epoch"),
            line(f"    unseen: {unseen:g}", "kept aside for an honest test: dlhpc predict RUN --unseen"),
            line("    seed: 1", "another number shares the same pictures out otherwise"),
        ]
    return lines


def _lowest(heights: tuple[float, float]) -> int:
    """As in DIGITS, unless many objects are small."""
    return 25 if heights[1] >= 40 else 0


def _size(looks: Looks) -> tuple[int, int]:
    """Width and height that hold every picture, or its shrunk copy."""
    width, height = looks.largest if looks.short_side else (640, 640)
    shrink = min(1.0, _LONGEST / max(width, height))
    return max(_size_up(width * shrink), 64), max(_size_up(height * shrink), 64)


def _size_up(side: float) -> int:
    return -(-round(side) // _GRID) * _GRID


def _data_lines(looks: Looks) -> list[str]:
    width, height = _size(looks)
    broken = "skip" if looks.broken else "fail"
    return [
        line(f"  color: {looks.color}", "grey, rgb, or auto: grey if the pictures are"),
        line(f"  width: {width}", "what the network sees, in pixels; small objects need large pictures"),
        line(f"  height: {height}", "  which take more memory and time"),
        line("  resize: pad", "keep the scale and add black at the right and below; only larger ones are shrunk"),
        line(f"  broken: {broken}", "damaged pictures: `fail` stops, `skip` names them and goes on"),
    ]


def _training_lines(looks: Looks, heights: tuple[float, float], train: int, ranks: int) -> list[str]:
    width, height = _size(looks)
    largest = max(looks.largest) if looks.short_side else max(width, height)
    shrink = min(1.0, _LONGEST / largest)
    batch = batch_size(8, train, ranks)
    epochs = min(200, max(30, round(6000 * batch * ranks / train)))
    lowest = max(1, min(22, int(max(heights[0], _lowest(heights)) * shrink * 0.8)))
    shift = min(32, max(2, min(width, height) // 12))
    return [
        line("augment:", "random changes to the training pictures; the boxes follow"),
        line("  flip_horizontal: true", "left and right swapped; false where a mirror image is something else"),
        line("  flip_vertical: false", "upside down; true for pictures without an up and down, such as micrographs"),
        line("  scale: [0.8, 1.2]", "enlarged by a factor between these"),
        line(f"  shift_pixels: {shift}", "moved by up to so many pixels each way"),
        line("  brightness: 0.2", "made darker or brighter by up to this part"),
        "",
        line("network:", "others: ssdlite, retinanet, fcos"),
        line("  name: detectnet", "NVIDIA's, which DIGITS has: good for objects of similar size"),
        "  # pretrained: torchvision  # begin with weights that know pictures, if staff have placed them; saves epochs",
        "",
        "detection:",
        line(f"  min_height: {lowest}", "lower boxes are not reported, in pixels that the network sees"),
        line("  match_iou: 0.7", "a box is right if it overlaps the true one so much (intersection over union)"),
        "",
        line("optimizer:", "how the network is corrected after each step"),
        line("  name: adam", "others: sgd, nesterov, adamw, rmsprop, adagrad, adadelta, lars, lamb"),
        "",
        line("learning_rate:", "how large the corrections are"),
        line("  base: 0.0005", "too large diverges, too small takes for ever; 0.0001 with pretrained weights"),
        line("  policy: cosine", "how it falls: fixed, step, multistep, exp, inv, poly, sigmoid, cosine, linear"),
        line("  warmup_epochs: 1", "rise gently to `base` during so many epochs"),
        "",
        "training:",
        line(f"  epochs: {epochs}", "how often every training picture is seen; boxes come late, have patience"),
        line(
            f"  batch_size: {batch}", "pictures for each rank and step; halved by itself if the memory does not suffice"
        ),
        line("  validation_interval: 1", "measure after so many epochs"),
        line("  snapshot_interval: 1", "save after so many epochs"),
        line("  seed: 1", "another number starts from other random weights"),
        "",
        line("job:", "what to ask of the machine"),
        line("  nodes: 1", "computers; more than one on a cluster only"),
        line(f"  ranks_per_node: {ranks}", "training processes at the same time: one for each GPU, or a few on cores"),
        line("  walltime: 4:00:00", "hours:minutes:seconds for one go; a longer training is saved and goes on"),
    ]
