"""The three splits: what a network learns from, what measures it, what is kept unseen, and who gets which sample."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from dlhpc.errors import DataError

if TYPE_CHECKING:
    from dlhpc.spec.models import Split

SplitName = Literal["train", "val", "unseen"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "unseen")
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "unseen": "unseen", "test": "unseen", "testing": "unseen",
}  # fmt: skip
"""What people call the folders of the three splits."""


def split_counts(count: int, fractions: Sequence[float]) -> list[int]:
    """Share ``count`` out by ``fractions`` (sum 1) by largest remainders, at least 1 for every fraction above 0.

    ``count`` must not be smaller than the number of fractions above 0. Equal remainders favour the earlier split.
    """
    exact = [count * fraction for fraction in fractions]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda split: (counts[split] - exact[split], split))
    wanted = [split for split in by_remainder if fractions[split] > 0]
    for turn in range(count - sum(counts)):
        counts[wanted[turn % len(wanted)]] += 1
    for split in wanted:
        if counts[split] == 0:
            counts[counts.index(max(counts))] -= 1
            counts[split] = 1
    return counts


def needed(split: Split) -> int:
    """How many samples (or groups of them) there must be, so that none of the splits, or folds, is empty."""
    return (split.folds or 2) + (split.unseen > 0)


def in_order(ids: Sequence[str], seed: int, name: str = "") -> list[int]:
    """The positions of ``ids`` in the order that :func:`share_out` deals them out in."""
    place = _places(seed, name)
    return sorted(range(len(ids)), key=lambda at: (place(ids[at]), ids[at]))


def share_out(
    ids: Sequence[str], split: Split, *, name: str = "", groups: Sequence[str] | None = None, most: int | None = None
) -> dict[SplitName, list[int]]:
    """Split → ascending positions in ``ids``, decided by the seed, ``name`` and the ids alone.

    The place of each id comes from a hash of its own. So neither the order of ``ids`` nor where files lie matters, and
    one that is added leaves the order of the others as it was. Call it once for each class, with the class as ``name``
    and at ``most`` so many samples. With ``groups`` (one for each id) all of a group go to one split; shares and folds
    are then as equal as whole groups allow.

    With ``split.folds`` what is not unseen is cut into parts whose sizes differ by at most 1; ``split.fold`` measures.
    Raises :class:`DataError` for fewer samples or groups than :func:`needed`.
    """
    order = in_order(ids, split.seed, name)[:most]
    place = _places(split.seed, name)
    shares = (split.train, split.val, split.unseen)
    if (found := len(order if groups is None else {groups[at] for at in order})) < needed(split):
        what = "samples" if groups is None else "groups of samples that stay together"
        splits = f"{split.folds} folds" if split.folds else "train and val"
        raise DataError(
            f"{found} {what} cannot be shared out to {splits}{' and unseen' if split.unseen else ''}",
            remedy="Add samples, or change data.split.",
        )
    if groups is not None:
        parts = _share_groups(order, groups, split, place)
    elif split.folds is None:
        parts = _cut(order, split_counts(len(order), shares))
    else:
        unseen = min(split_counts(len(order), shares)[2], len(order) - split.folds)
        rest = len(order) - unseen
        shift = int.from_bytes(place("")[:4], "big")  # or the first folds would get one more of every class
        sizes = [
            rest // split.folds + ((fold + shift) % split.folds < rest % split.folds) for fold in range(split.folds)
        ]
        *folds, kept = _cut(order, [*sizes, unseen])
        parts = _of_folds(folds, kept, split)
    return {which: sorted(part) for which, part in zip(SPLITS, parts)}


def _places(seed: int, name: str) -> Callable[[str], bytes]:
    """What puts ids into an order that looks random."""

    def place(identity: str) -> bytes:
        text = f"{seed}\0{name}\0{identity}"
        return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).digest()

    return place


def _cut(order: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    parts, first = [], 0
    for size in sizes:
        parts.append(list(order[first : first + size]))
        first += size
    return parts


def _of_folds(folds: Sequence[list[int]], unseen: list[int], split: Split) -> list[list[int]]:
    others = [at for number, part in enumerate(folds, 1) if number != split.fold for at in part]
    return [others, folds[split.fold - 1], unseen]


def _share_groups(
    order: Sequence[int], groups: Sequence[str], split: Split, place: Callable[[str], bytes]
) -> list[list[int]]:
    members: dict[str, list[int]] = {}
    for at in order:
        members.setdefault(groups[at], []).append(at)
    if split.folds is None:
        return _fill(members, [split.train, split.val, split.unseen], place)
    rest, unseen = _fill(members, [1 - split.unseen, split.unseen], place, least=(split.folds, 1))
    left = {groups[at]: members[groups[at]] for at in rest}
    return _of_folds(_fill(left, [1 / split.folds] * split.folds, place), unseen, split)


def _fill(
    members: dict[str, list[int]], shares: Sequence[float], place: Callable[[str], bytes], least: Sequence[int] = ()
) -> list[list[int]]:
    """Whole groups into parts: the largest first, each to where the part's share is exceeded least.

    That is the rule LPT for machines of different speed (Gonzalez, Ibarra and Sahni, 1977). Every part with a share
    gets at least one group, or as many as ``least`` says.
    """
    total = sum(map(len, members.values()))
    parts: list[list[int]] = [[] for _ in shares]
    lacking = [(least[part] if least else 1) if share > 0 else 0 for part, share in enumerate(shares)]
    names = sorted(members, key=lambda name: (-len(members[name]), place(name), name))
    for turn, name in enumerate(names):
        open_parts = [part for part, share in enumerate(shares) if share > 0]
        if len(names) - turn <= sum(lacking):
            open_parts = [part for part in open_parts if lacking[part]]
        best = min(open_parts, key=lambda part: (len(parts[part]) + len(members[name])) / (shares[part] * total))
        parts[best] += members[name]
        lacking[best] = max(0, lacking[best] - 1)
    return parts
