"""What the models of specs, sites and recipes share: forbidden unknown keys and human-written durations and sizes."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema


class Model(BaseModel):
    """Base of every model that people write in YAML: unknown keys are errors, values are not converted loosely."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_CLOCK_UNITS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
_LONGEST_S = 10 * 366 * 86400
_CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>[0-5]\d)(?::(?P<seconds>[0-5]\d))?")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(sec|min|[smhd])")


def parse_duration(value: Any) -> timedelta:
    """``1:30:00``, ``0:30``, ``2-00:00:00``, ``90min``, ``1h 30m``; a bare number has no unit and is refused."""
    if isinstance(value, timedelta):
        return value
    text = str(value).strip().lower()
    if clock := _CLOCK.fullmatch(text):
        seconds = sum(float(part or 0) * _CLOCK_UNITS[name] for name, part in clock.groupdict().items())
    elif (parts := _PART.findall(text)) and not _PART.sub("", text).strip():
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        raise ValueError(f"`{value}` is not a duration; write for example 1:30:00, 90min or 2h")
    if seconds > _LONGEST_S:
        raise ValueError(f"`{value}` is longer than ten years")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta | float) -> str:
    """``H:MM:SS``, hours may exceed 24; takes a timedelta or seconds."""
    seconds = round(duration.total_seconds() if isinstance(duration, timedelta) else duration)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta():
        raise ValueError("must be longer than zero")
    return value


OneOrMore = BeforeValidator(
    lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=str | tuple[str, ...]
)
"""Mark of a tuple of texts that may also be written as one text: `after: last`."""

Duration = Annotated[
    timedelta,
    BeforeValidator(lambda value: _positive(parse_duration(value))),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["1:30:00", "90min", "2h"]}),
]
"""A length of time as people write it; seconds in code are ``.total_seconds()``."""

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(value: Any) -> int:
    """``16GB``, ``512MiB``, ``2 g``: bytes as an integer; a bare number is refused, it could be anything."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)b?", str(value).strip().lower())
    if not found:
        raise ValueError(f"`{value}` is not a memory size; write for example 16GB or 512MiB")
    return round(float(found[1]) * _SIZES[found[2]])


def _as_bytes(value: Any) -> int:
    return value if isinstance(value, int) and value > 10**6 else parse_size(value)


MemoryBytes = Annotated[
    int, BeforeValidator(_as_bytes), WithJsonSchema({"type": ["string", "integer"], "examples": ["16GB", "512MiB"]})
]
"""An amount of memory in bytes, written with its unit."""

SchedulerWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+:@-]*$")]
"""A name that may stand in a directive of every batch system: no blank, no quote, nothing that a shell expands."""
