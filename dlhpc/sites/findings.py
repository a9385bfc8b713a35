"""What a check of a site profile found: each finding names both sides, and where and how to mend the profile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlhpc.spec.load import Document, Location


class Verdict(StrEnum):
    """How profile and machine compare."""

    OK = "ok"
    DIFFERS = "differs"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Finding:
    """One thing that was compared."""

    subject: str
    """What it is about: `queue gpu`, `nodes cpu: GPUs`."""
    verdict: Verdict
    what: str
    """One phrase for people."""
    profile: str | None = None
    """What the profile says, where it says anything."""
    live: str | None = None
    """What the machine says."""
    remedy: str | None = None
    key: Location = ()
    """The profile's key that it is about."""
    place: str | None = None
    """File and line of that key, once :func:`placed`."""


def ok(subject: str, what: str, *, profile: object = None, live: object = None, key: Location = ()) -> Finding:
    """A finding that agrees."""
    return Finding(subject, Verdict.OK, what, _text(profile), _text(live), key=key)


def differs(
    subject: str, what: str, remedy: str, *, profile: object = None, live: object = None, key: Location = ()
) -> Finding:
    """A finding that does not agree, and what to do."""
    return Finding(subject, Verdict.DIFFERS, what, _text(profile), _text(live), remedy, key)


def cannot_tell(subject: str, what: str, remedy: str | None = None, *, key: Location = ()) -> Finding:
    """Something that could not be compared."""
    return Finding(subject, Verdict.CANNOT_TELL, what, remedy=remedy, key=key)


def placed(findings: Iterable[Finding], document: Document) -> list[Finding]:
    """The findings with the file and line of the keys that they are about."""
    return [replace(finding, place=str(document.place(finding.key))) for finding in findings]


def _text(value: object) -> str | None:
    return None if value is None else str(value)
