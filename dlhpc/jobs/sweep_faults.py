"""Settings into a sweep's members, and what is wrong with them: each fault once, with the members that have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from dlhpc.errors import ErrorList, UserError
from dlhpc.spec.load import Document, kind_error
from dlhpc.spec.models import Spec
from dlhpc.spec.sweep import Settings, shown

_MOST_ERRORS = 20


def with_settings(values: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A copy of ``values`` with dotted keys set; what is not on their way is shared."""
    changed = dict(values)
    for key, value in settings.items():
        *above, last = key.split(".")
        node = changed
        for part in above:
            below = node.get(part)
            node[part] = dict(below) if isinstance(below, dict) else {}
            node = node[part]
        node[last] = value
    return changed


class Faults:
    """Errors of members, each shown once with the members that have it."""

    def __init__(self, members: Sequence[Settings]) -> None:
        self._members = members
        self._found: dict[tuple[str, str | None, str | None], list[int]] = {}
        self._index = 0

    def __bool__(self) -> bool:
        return bool(self._found)

    def of(self, index: int) -> Faults:
        """What is raised in the block is a fault of this member."""
        self._index = index
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, UserError):
            return False
        for one in error.errors if isinstance(error, ErrorList) else [error]:
            self.add(self._index, one)
        return True

    def add(self, index: int, error: UserError) -> None:
        self._found.setdefault((error.what, error.where, error.remedy), []).append(index)

    def throw(self) -> None:
        """Raise what was found, if anything was."""
        if not self._found:
            return
        errors = [
            UserError(what, where=self._place(where, indices), remedy=remedy)
            for (what, where, remedy), indices in list(self._found.items())[:_MOST_ERRORS]
        ]
        if len(self._found) > _MOST_ERRORS:
            errors.append(UserError(f"… and {len(self._found) - _MOST_ERRORS} more errors of this kind"))
        raise ErrorList(errors)

    def _place(self, where: str | None, indices: list[int]) -> str | None:
        if len(indices) == len(self._members):
            return where
        more = f" and {len(indices) - 1} more" if len(indices) > 1 else ""
        member = f"sweep member {indices[0]:04d} ({shown(self._members[indices[0]])}){more}"
        return member if where is None else f"{where}: {member}"


def validate_all(document: Document, values: Mapping[str, Any], members: Sequence[Settings]) -> Spec:
    """Every member's spec against the model; gives the first. Raises :class:`ErrorList`."""
    faults = Faults(members)
    first: Spec | None = None
    for index, settings in enumerate(members):
        try:
            spec = Spec.model_validate(with_settings(values, settings))
            first = first or spec
        except ValidationError as error:
            for detail in error.errors():
                fault = kind_error(document, Spec, detail)
                location = ".".join(str(part) for part in detail["loc"])
                if not location or any(key.startswith(location) or location.startswith(key) for key in settings):
                    fault.where = None  # the value is the member's, not that of the line in the file
                faults.add(index, fault)
    faults.throw()
    assert first is not None
    return first
