"""Where the folders that ship with dlhpc lie: ``site`` and ``jobtemplates``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def folder(name: Literal["site", "jobtemplates"]) -> Path:
    """The folder of that name: inside the package when installed from a wheel, beside it in a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
