"""What can be wrong with samples, as pure functions: from what was seen of each sample to findings for people."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from dlhpc.data.catalog import Target
from dlhpc.data.folders import named_list, show_path
from dlhpc.data.samples import DONT_CARE
from dlhpc.data.similar import alike, groups_of

SHOWN = 10
"""So many examples are kept of each finding."""

IMBALANCE = 10.0
"""Classes of which one has so many times the samples of another are called unbalanced."""

FAR_OUT = 10.0
"""Targets so many robust σ (interquartile range / 1.349) from the median are looked at."""

TINY = 2.0
"""Boxes with a side below this many pixels, at the size that the network sees, can neither be learnt nor found."""


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """Training would fail or its figures would be wrong."""
    WARNING = "warning"
    """Probably not wanted."""
    NOTE = "note"
    """Good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found in a dataset."""

    severity: Severity
    kind: str
    """A word for programs, such as ``broken`` or ``leak``."""
    what: str
    count: int
    """Of samples, boxes or groups."""
    remedy: str
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    """What was seen of one sample."""

    split: str
    path: str
    target: Target
    broken: str | None = None
    """Why it cannot be read."""
    content: bytes = b""
    """Digest of the file or values: equal for exact copies."""
    height: int = 0
    width: int = 0
    grey: bool = False
    bits: int = 8
    flat: bool = False
    """All pixels have the same value."""
    hash: int = 0
    thumbnail: NDArray[np.float16] | None = None


def _finding(
    severity: Severity, kind: str, what: str, found: Sequence[str], remedy: str, count: int | None = None
) -> Finding:
    return Finding(severity, kind, what, len(found) if count is None else count, remedy, list(found[:SHOWN]))


def _is(count: int, what: str = "picture", plural: str | None = None) -> str:
    return f"{count} {what} is" if count == 1 else f"{count} {plural or what + 's'} are"


def _of(count: int, name: str) -> str:
    return f"{count} value{'' if count == 1 else 's'} of `{name}` {'is' if count == 1 else 'are'}"


def broken(looks: Iterable[Look], *, skipped: bool) -> Iterator[Finding]:
    """Files that cannot be read; ``skipped`` if the spec says to go on without them."""
    found = [f"{show_path(look.path)}: {look.broken}" for look in looks if look.broken is not None]
    if found:
        remedy = "Replace or delete them" + ("." if skipped else ", or set `broken: skip` under `data:`.")
        severity = Severity.WARNING if skipped else Severity.ERROR
        yield _finding(severity, "broken", f"{_is(len(found))} broken", found, remedy)


def duplicates(looks: Sequence[Look], *, rows: bool = False) -> Iterator[Finding]:
    """Exact copies: in two splits, with two truths, or twice in one split.

    ``rows`` of a table are copies if their inputs are; then it may be right that the truths differ.
    """
    bad = Severity.WARNING if rows else Severity.ERROR
    what = "row" if rows else "picture"
    groups: dict[bytes, list[Look]] = defaultdict(list)
    for look in looks:
        if look.broken is None:
            groups[look.content].append(look)
    leaks, contradictions, twice = [], [], []
    for group in groups.values():
        if len(group) == 1:
            continue
        if len({look.split for look in group}) > 1:
            leaks.append(_together(group))
        if len({str(look.target) for look in group}) > 1:
            contradictions.append(_together(group))
        elif len({look.split for look in group}) == 1:
            twice.append(_together(group))
    if leaks:
        yield _finding(
            bad,
            "leak",
            f"{_is(len(leaks), what)} in several splits as exact copies",
            leaks,
            "Keep each in one split: what is measured on known samples looks too good."
            + (" data.table.group keeps rows together." if rows else ""),
        )
    if contradictions:
        yield _finding(
            bad,
            "contradiction",
            f"{_is(len(contradictions), what)} there several times, and what is to be learnt of them differs",
            contradictions,
            "Keep the right one of each." if not rows else "Is an input missing that tells them apart?",
        )
    if twice:
        yield _finding(
            Severity.NOTE if rows else Severity.WARNING,
            "duplicate",
            f"{_is(len(twice), what)} there several times in one split",
            twice,
            "Keep one of each, unless they are meant to count more.",
        )


def _together(group: Iterable[Look]) -> str:
    return " = ".join(f"{look.split} {show_path(look.path)}" for look in group)


def near_duplicates(looks: Sequence[Look]) -> Iterator[Finding]:
    """Pictures that look the same without being exact copies; see :mod:`dlhpc.data.similar`."""
    seen = [look for look in looks if look.broken is None and not look.flat and look.thumbnail is not None]
    pairs = alike([look.hash for look in seen], [look.thumbnail for look in seen if look.thumbnail is not None])
    pairs = [(one, other) for one, other in pairs if seen[one].content != seen[other].content]
    groups = [[seen[one] for one in group] for group in groups_of(pairs)]
    across = [group for group in groups if len({look.split for look in group}) > 1]
    within = [group for group in groups if len({look.split for look in group}) == 1]
    if across:
        yield _finding(
            Severity.WARNING,
            "near-leak",
            f"{_is(len(across), 'group')} of pictures that look the same, in several splits",
            _shown(across),
            "Look at them. Frames of one film or one specimen belong into one split (data.kitti.sequences, "
            "data.table.group, or folders of your own for train and val).",
        )
    if within:
        yield _finding(
            Severity.NOTE,
            "near-duplicate",
            f"{_is(len(within), 'group')} of pictures that look the same within one split",
            _shown(within),
            "Look at them; copies teach nothing new.",
        )


def _shown(groups: Iterable[Sequence[Look]]) -> list[str]:
    return [
        " ~ ".join(f"{look.split} {show_path(look.path)}" for look in group[:4])
        + (f" and {len(group) - 4} more" if len(group) > 4 else "")
        for group in groups
    ]


def classes(names: Sequence[str], counts: Mapping[str, Sequence[int]], *, what: str = "samples") -> Iterator[Finding]:
    """Classes that a split lacks, and classes that are far rarer than others; ``counts`` is split → of each class."""
    train = counts.get("train", [])
    for split, of_split in counts.items():
        missing = [name for name, count in zip(names, of_split) if not count]
        if missing and any(of_split):
            severity = Severity.ERROR if split == "train" else Severity.WARNING
            yield _finding(
                severity,
                "class-missing",
                f"{split} has no {what} of {named_list(missing)}",
                missing,
                "Add some" if split == "train" else "Add some, or these classes cannot be measured there.",
            )
    there = [(count, name) for name, count in zip(names, train) if count]
    if len(there) < 2:
        return
    (least, rare), (most, common) = min(there), max(there)
    if most >= IMBALANCE * least:
        yield Finding(
            Severity.WARNING,
            "imbalance",
            f"in train the class `{common}` has {most} {what}, `{rare}` only {least}",
            most // least,
            "Collect more of the rare ones, or set `training: {class_weights: balanced}` (classification) so that "
            "they count more.",
            [f"{name}: {count}" for count, name in sorted(there)[:SHOWN]],
        )


def few_to_measure(counts: Mapping[str, int]) -> Iterator[Finding]:
    """A val split in which one sample changes the figures much."""
    if 0 < counts.get("val", 0) < 20:
        val = counts["val"]
        yield Finding(
            Severity.NOTE,
            "small-val",
            f"val has only {val} samples: each is {100 / val:.0f} % of what is measured",
            val,
            "Give val more, or use data.split.folds to measure on all in turn.",
        )


def shapes(looks: Iterable[Look], height: int, width: int) -> Iterator[Finding]:
    """Pictures that are unlike the others in shape, colour or depth, or far smaller than ``height`` × ``width``."""
    seen = [look for look in looks if look.broken is None]
    if not seen:
        return
    flat = [show_path(look.path) for look in seen if look.flat]
    if flat:
        yield _finding(
            Severity.WARNING,
            "constant",
            f"{_is(len(flat))} of one value throughout",
            flat,
            "Delete them; a failed exposure or export teaches nothing.",
        )
    ratios = np.log([look.width / look.height for look in seen])
    odd = [
        f"{show_path(look.path)} ({look.width}×{look.height})"
        for look, far in zip(seen, np.abs(ratios - np.median(ratios)) > math.log(2))
        if far
    ]
    if odd:
        yield _finding(
            Severity.WARNING,
            "odd-shape",
            f"{_is(len(odd))} more than twice as wide or high as the others, for the same area",
            odd,
            "Check that they belong here; data.resize says how they are brought to one shape.",
        )
    small = [
        f"{show_path(look.path)} ({look.width}×{look.height})"
        for look in seen
        if 2 * look.height <= height and 2 * look.width <= width
    ]
    if small:
        yield _finding(
            Severity.NOTE,
            "enlarged",
            f"{_is(len(small))} enlarged to twice their size or more ({width}×{height})",
            small,
            "Smaller data.width and data.height train faster and lose nothing.",
        )
    yield from _minority(seen, lambda look: "grey" if look.grey else "coloured", "color", "Set data.color.")
    yield from _minority(
        seen,
        lambda look: f"of {look.bits} bits",
        "depth",
        "All are packed with 16 bits; check that both use the range.",
    )


def _minority(looks: Sequence[Look], kind_of: Callable[[Look], str], kind: str, remedy: str) -> Iterator[Finding]:
    """Few that are unlike the rest."""
    counted = Counter(kind_of(look) for look in looks)
    if len(counted) < 2:
        return
    rare, count = counted.most_common()[-1]
    severity = Severity.WARNING if 10 * count <= len(looks) else Severity.NOTE
    found = [show_path(look.path) for look in looks if kind_of(look) == rare]
    yield _finding(severity, kind, f"{_is(count)} {rare}, the other {len(looks) - count} are not", found, remedy)


def targets(
    values: Mapping[str, NDArray[np.float64]], names: Sequence[str], where: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    """Regression: numbers far from all others, or the same everywhere; ``values`` is split → n×T."""
    for column, name in enumerate(names):
        train = values["train"][:, column]
        if not len(train):
            continue
        low, middle, high = np.percentile(train, [25, 50, 75])
        sigma = (high - low) / 1.349 or float(train.std())
        if not sigma:
            yield _finding(
                Severity.ERROR,
                "constant-target",
                f"`{name}` is {middle:g} for every training sample",
                [],
                "There is nothing to learn; name another column or check the numbers.",
                len(train),
            )
            continue
        far: list[str] = []
        outside = 0
        for split, of_split in values.items():
            distance = np.abs(of_split[:, column] - middle) / sigma
            for at in np.argsort(-distance, kind="stable"):
                if distance[at] <= FAR_OUT:
                    break
                far.append(f"{split} {show_path(where[split][at])}: {of_split[at, column]:g}")
            if split != "train":
                outside += int(((of_split[:, column] < train.min()) | (of_split[:, column] > train.max())).sum())
        if far:
            yield _finding(
                Severity.WARNING,
                "far-out",
                f"{_of(len(far), name)} far from the others (median {middle:g}, σ {sigma:g})",
                far,
                "Check units and missing-value codes such as −999; `training: {loss: huber}` is less led by them.",
            )
        if outside:
            yield _finding(
                Severity.NOTE,
                "outside-range",
                f"{_of(outside, name)} in val or unseen, but outside of what train covers",
                [],
                "A network guesses badly beyond what it has seen.",
                outside,
            )


def boxes(
    looks: Iterable[Look], names: Sequence[str], scale: Callable[[int, int], tuple[float, float]]
) -> Iterator[Finding]:
    """Detection: boxes outside of their picture, too small to see, or there twice.

    ``scale`` gives, for the height and width of a picture, how much larger the network sees it, downwards and across.
    """
    outside, clipped, tiny, twice, empty, pictures = [], [], [], [], [], 0
    for look in looks:
        if look.broken is not None:
            continue
        pictures += 1
        there = [box for box in look.target if isinstance(box, list)] if isinstance(look.target, list) else []
        real = [box for box in there if box[0] != DONT_CARE]
        if not real:
            empty.append(f"{look.split} {show_path(look.path)}")
        down, across = scale(look.height, look.width)
        for label, left, top, right, bottom in real:
            shown = f"{show_path(look.path)}: {names[int(label)]} {left:g} {top:g} {right:g} {bottom:g}"
            if right <= left or bottom <= top or right <= 0 or bottom <= 0 or left >= look.width or top >= look.height:
                outside.append(f"{shown} (the picture is {look.width}×{look.height})")
                continue
            seen = [max(left, 0), max(top, 0), min(right, look.width), min(bottom, look.height)]
            if max(-left, -top, right - look.width, bottom - look.height) > 1:  # rounding is no fault
                clipped.append(f"{shown} (the picture is {look.width}×{look.height})")
            if (seen[2] - seen[0]) * across < TINY or (seen[3] - seen[1]) * down < TINY:
                tiny.append(shown)
        counted = Counter(tuple(box) for box in real)
        twice += [
            f"{show_path(look.path)}: {number} times {list(box)}" for box, number in counted.items() if number > 1
        ]
    if outside:
        yield _finding(
            Severity.ERROR,
            "box-outside",
            f"{_is(len(outside), 'box', 'boxes')} empty or wholly outside of the picture",
            outside,
            "Labels and pictures do not belong together, or the picture was cut or shrunk after labelling.",
        )
    if clipped:
        yield _finding(
            Severity.WARNING,
            "box-clipped",
            f"{_is(len(clipped), 'box', 'boxes')} partly outside of the picture and cut",
            clipped,
            "Check some: the picture may have been shrunk or turned after it was labelled.",
        )
    if tiny:
        yield _finding(
            Severity.WARNING,
            "box-tiny",
            f"{_is(len(tiny), 'box', 'boxes')} below {TINY:g} pixels at the size that the network sees: DontCare",
            tiny,
            "Make data.width and data.height larger, or cut the pictures into parts.",
        )
    if twice:
        yield _finding(
            Severity.WARNING,
            "box-twice",
            f"{_is(len(twice), 'box', 'boxes')} there twice or more in one picture",
            twice,
            "Delete the copies: one of the two always counts as not found.",
        )
    if empty:
        yield _finding(
            Severity.NOTE,
            "no-boxes",
            f"{len(empty)} of {pictures} pictures have nothing to find",
            empty,
            "That is right for background pictures, which teach what is no object.",
        )
