"""Pictures that look alike: a small fingerprint of each, and all pairs whose fingerprints are close.

The fingerprint is a difference hash (dHash; N. Krawetz, "Kind of Like That", 2013): the grey picture is shrunk to 9×8
and each of 64 bits says whether a pixel is brighter than its left neighbour. It survives other sizes, JPEG quality and
brightness. Of two pictures whose hashes differ in at most ``DISTANCE`` bits, thumbnails of 16×16 decide: they must
correlate by ``CORRELATION`` or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DISTANCE = 5
CORRELATION = 0.99
_BANDS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))
"""First bit and width: hashes that differ in at most 5 bits are equal in one of six bands."""
_NEIGHBOURS = 128  # with so many of one band a picture is compared, nearest hashes first
_SIDE = 16


def fingerprint(values: NDArray[np.uint8] | NDArray[np.uint16]) -> tuple[int, NDArray[np.float16]]:
    """Hash (64 bits) and thumbnail (16×16, mean 0, norm 1; zeros for a flat picture) of a picture H×W×C."""
    grey = values.mean(axis=2, dtype=np.float32)
    image = Image.fromarray(grey)
    small = np.asarray(image.resize((9, 8), Image.Resampling.BOX))
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    thumbnail = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32).ravel()
    thumbnail = thumbnail - thumbnail.mean()
    norm = float(np.linalg.norm(thumbnail))
    flat = norm <= 1e-6 * np.iinfo(values.dtype).max * _SIDE
    thumbnail = np.zeros_like(thumbnail) if flat else thumbnail / norm
    return int.from_bytes(bits.tobytes(), "big"), thumbnail.astype(np.float16)  # there may be a million of them


def alike(hashes: Sequence[int], thumbnails: Sequence[NDArray[np.floating[Any]]]) -> list[tuple[int, int]]:
    """All pairs (i, j), i < j, of pictures that look alike. Of very many with one hash only the nearest are paired."""
    if len(hashes) < 2:
        return []
    codes = np.array(hashes, dtype=np.uint64)
    small = np.stack(thumbnails)
    found: set[tuple[int, int]] = set()
    for first, bits in _BANDS:
        part = (codes >> np.uint64(first)) & np.uint64((1 << bits) - 1)
        order = np.lexsort((codes, part))
        sorted_codes, sorted_part = codes[order], part[order]
        for offset in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            together = sorted_part[offset:] == sorted_part[:-offset]
            if not together.any():
                break
            differing = _ones(sorted_codes[offset:] ^ sorted_codes[:-offset])
            places = np.flatnonzero(together & (differing <= DISTANCE))
            one, other = order[places], order[places + offset]
            close = _correlation(small, one, other) >= CORRELATION
            found.update(zip(np.minimum(one, other)[close].tolist(), np.maximum(one, other)[close].tolist()))
    return sorted(found)


def _correlation(small: NDArray[Any], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of pairs of thumbnails, a few thousand at a time: there may be as many pairs as pictures."""
    found = np.empty(len(one), np.float32)
    for first in range(0, len(one), 4096):
        here = slice(first, first + 4096)
        found[here] = np.einsum("ij,ij->i", small[one[here]], small[other[here]], dtype=np.float32)
    return found


def _ones(codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many bits are 1 in each."""
    bits: NDArray[np.uint8] = np.unpackbits(codes.view(np.uint8).reshape(-1, 8), axis=1)
    return np.asarray(bits.sum(axis=1, dtype=np.int64))


def groups_of(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Sets of pictures that are alike, directly or through others; the largest first."""
    leader: dict[int, int] = {}

    def find(one: int) -> int:
        while leader.setdefault(one, one) != one:
            leader[one] = one = leader[leader[one]]
        return one

    for one, other in pairs:
        leader[find(one)] = find(other)
    groups: dict[int, list[int]] = {}
    for one in sorted(leader):
        groups.setdefault(find(one), []).append(one)
    return sorted(groups.values(), key=lambda group: (-len(group), group))
