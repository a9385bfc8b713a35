"""What the directives of several batch systems have in common. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from dlhpc.errors import ErrorList, UserError

MEBIBYTE = 2**20

Piece = TypeVar("Piece")


def gather(*parts: Iterable[Piece]) -> list[Piece]:
    """All that the parts of a head yield, in order.

    Raises :class:`UserError`, or an ``ErrorList`` of them, with what every part had to say against the request.
    """
    found: list[Piece] = []
    faults: list[UserError] = []
    for part in parts:
        try:
            found += part
        except UserError as error:
            faults += error.errors if isinstance(error, ErrorList) else [error]
    raise_faults(faults)
    return found


def raise_faults(faults: Sequence[UserError]) -> None:
    """Raise what was found: one error as it is, several as an ``ErrorList``; nothing for none."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise ErrorList(list(faults))


def clock(seconds: int) -> str:
    """``HH:MM:SS``; hours may exceed 24, since PBS and LoadLeveler know no days."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def compressed(indices: Sequence[int], *, steps: bool = False) -> str:
    """Rising numbers in few words: ``0-9``, ``1,5,10-12``; with ``steps`` also ``0-8:2``."""
    parts = []
    at = 0
    while at < len(indices):
        end = at + 1
        step = indices[end] - indices[at] if end < len(indices) else 1
        while end < len(indices) and indices[end] - indices[end - 1] == step:
            end += 1
        if step == 1 and end - at > 1:
            parts.append(f"{indices[at]}-{indices[end - 1]}")
        elif steps and end - at > 2:
            parts.append(f"{indices[at]}-{indices[end - 1]}:{step}")
        else:
            parts.append(str(indices[at]))
            end = at + 1
        at = end
    return ",".join(parts)
