"""What ``dlhpc data …`` is pointed at: a spec, or the data itself, of which this guesses the kind by its looks."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dlhpc.data.splits import SPLIT_WORDS
from dlhpc.errors import UserError
from dlhpc.spec.base import Model
from dlhpc.spec.load import load_spec, override, parse_document, validate
from dlhpc.spec.models import Data, TaskName

IMAGES = ("images", "image_2", "image")
LABELS = ("labels", "label_2", "label")
_TABLES = (".csv", ".tsv", ".parquet", ".pq")


class Source(NamedTuple):
    """Data that somebody named."""

    data: Data
    task: TaskName
    base: Path
    """What its paths are relative to."""


class _Asked(Model):
    task: TaskName = "classification"
    data: Data


def find_source(named: Path, settings: Sequence[str] = (), *, adding: bool = False) -> Source:
    """The data that ``named`` means: a spec (``.yaml``), a folder of class folders, of splits, or in KITTI's layout
    (``images`` and ``labels`` inside), a list file or a table. ``settings`` are ``key=value`` as for a spec.

    ``adding`` allows few pictures a class. Raises :class:`UserError`.
    """
    named = Path(os.path.abspath(named))
    if named.suffix.lower() in (".yaml", ".yml"):
        spec, _ = load_spec(named, settings)
        data = spec.data.model_copy(update={"min_per_class": 1}) if adding else spec.data
        return Source(data, spec.task, named.parent)
    if not named.exists():
        raise UserError("there is no such file or folder", where=named, remedy="Check the path.")
    task, data_keys = _guess(named)
    if adding:
        data_keys["min_per_class"] = 1
    document = parse_document(json.dumps({"task": task, "data": data_keys}), named)
    override(document, settings)
    asked = validate(document, _Asked)
    return Source(asked.data, asked.task, named.parent if named.is_file() else named)


def _guess(named: Path) -> tuple[str, dict[str, Any]]:
    """Task and keys of ``data``."""
    name = str(named)
    if named.is_dir():
        inside = {entry.name.lower(): entry for entry in named.iterdir() if entry.is_dir()}
        images, labels = ([inside[word] for word in words if word in inside] for words in (IMAGES, LABELS))
        if images and labels and len(inside) <= 3:
            return "detection", {"kitti": {"images": str(images[0]), "labels": str(labels[0])}}
        splits = {SPLIT_WORDS.get(word): str(entry) for word, entry in inside.items()}
        if None not in splits and {"train", "val"} <= set(splits):
            return "classification", {"folders": splits}
        return "classification", {"folder": name}
    if named.suffix.lower() in _TABLES:
        return "regression", {"table": {"file": name}}
    return "classification", {"lists": {"train": name}}
