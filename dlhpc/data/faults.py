"""Faults that are gathered, so that a user sees many at once and not one a day."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dlhpc.errors import DataError, ErrorList, Place, UserError

SHOWN = 20
"""So many faults are told in full."""


@dataclass
class Faults:
    """The first faults in full and the number of all."""

    shown: list[UserError] = field(default_factory=list)
    count: int = 0

    def add(self, what: str, where: Place | Path, remedy: str | None = None) -> None:
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(DataError(what, where=where, remedy=remedy))

    def take(self, other: Faults) -> None:
        """Add those that were gathered elsewhere."""
        self.count += other.count
        self.shown += other.shown[: SHOWN - len(self.shown)]

    def raise_if_any(self) -> None:
        """Raise the only fault, or an :class:`ErrorList` of the first ones that tells how many more there are."""
        if self.count == 1:
            raise self.shown[0]
        if self.count > len(self.shown):
            self.shown.append(DataError(f"… and {self.count - len(self.shown)} more faults like these"))
        if self.shown:
            raise ErrorList(self.shown)
