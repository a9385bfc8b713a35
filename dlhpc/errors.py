"""The errors that people see: what happened, where, and what to do about it.

Every expected failure in dlhpc is a :class:`DlhpcError`; the command line prints it as one short block and leaves
with its ``exit_code``. Anything else that reaches the command line is a bug of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class AttemptExit(IntEnum):
    """Exit codes of one training attempt; 65, 75 and 78 are those of BSD's ``sysexits.h``."""

    FINISHED = 0
    BAD_DATA = 65
    CONTINUE = 75  # state saved; submit me again
    BAD_CONFIGURATION = 78

    @classmethod
    def may_be_retried(cls, code: int) -> bool:
        """Whether another attempt could end differently: true for crashes, never for bad data or configuration."""
        return code not in (cls.FINISHED, cls.BAD_DATA, cls.BAD_CONFIGURATION)


@dataclass(frozen=True)
class Place:
    """A position in a user's file; ``line`` counts from 1."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class DlhpcError(Exception):
    """An expected failure. ``what`` is one sentence, ``where`` a file or a :class:`Place`, ``remedy`` what to do."""

    exit_code = 1
    attempt_exit: int = 1  # what a training attempt that meets this error exits with

    def __init__(self, what: str, *, where: object | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        return text if self.remedy is None else f"{text}\n  → {self.remedy}"


class UserError(DlhpcError):
    """Something the user can put right in what they typed or wrote."""

    exit_code = 2
    attempt_exit = AttemptExit.BAD_CONFIGURATION


class DataError(UserError):
    """The user's pictures or tables cannot be trained on as they are."""

    attempt_exit = AttemptExit.BAD_DATA


class StorageError(DlhpcError):
    """The file system refused: disk full, no permission, file gone."""


class CommandError(DlhpcError):
    """An external command is missing, failed or did not answer in time."""


class ErrorList(UserError):
    """Several errors found in one go, shown together."""

    def __init__(self, errors: list[UserError]) -> None:
        super().__init__(f"{len(errors)} errors" if len(errors) != 1 else "1 error")
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)
