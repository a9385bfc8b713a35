"""The three splits: what a network learns from, what measures it, what is kept unseen, and who gets which picture."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from dlhpc.data.folders import FoundFile

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


def shuffled(files: list[FoundFile], name: str, split: Split) -> list[FoundFile]:
    """The files of class ``name`` in an order that depends on the seed, class and relative paths alone.

    Each file's place comes from a hash of its own, so neither the order of the directory nor where the folder lies
    matters, and a picture that is added leaves the order of the others as it was.
    """

    def place(file: FoundFile) -> bytes:
        text = f"{split.seed}\0{name}\0{file.relative}"
        return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).digest()

    return sorted(files, key=lambda file: (place(file), file.relative))
