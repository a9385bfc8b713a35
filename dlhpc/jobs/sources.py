"""What a spec names on the disk: paths made absolute, earlier runs found, own code kept with the run, packed data."""

from __future__ import annotations

import ast
import dataclasses
import os
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from dlhpc.data.catalog import Catalog
from dlhpc.errors import Place, UserError
from dlhpc.files import read_user_text, replace_text, storage_errors
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.find import find_run
from dlhpc.runs.plan import DatasetSummary, Plan
from dlhpc.spec.models import Folders, Kitti, Lists, Spec, check_network, check_sizes, usual_network

DATASETS = ".datasets"
"""Folder beside the runs that holds the packed datasets they share."""

CODE = "code"
"""Folder in a run directory that holds copies of the user's own Python files."""

PATHS = frozenset(
    [
        "data.folder", "data.packed", "network.file", "task_file",
        *(f"data.folders.{name}" for name in Folders.model_fields),
        *(f"data.lists.{name}" for name in Lists.model_fields),
        *(f"data.kitti.{name}" for name in Kitti.model_fields if name.endswith(("images", "labels", "sequences"))),
        *(f"data.table.{name}" for name in ("file", "val", "unseen", "root")),
    ]
)  # fmt: skip
"""Dotted keys of a spec whose values are paths."""

PRETRAINED = "network.pretrained"


def make_paths_absolute(
    root: MutableMapping[str, Any], base: Path, runs: Path, place: Callable[[tuple[str, ...]], Place]
) -> None:
    """All paths of a spec's YAML made absolute, in place; they are relative to ``base``.

    What is no text is left for the models to refuse. ``place`` says where a key stands, for messages.
    """
    for key in [*PATHS, PRETRAINED]:
        *above, last = key.split(".")
        node: Any = root
        for part in above:
            node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, MutableMapping) and isinstance(value := node.get(last), str):
            node[last] = pinned(key, value, base, runs, place(tuple(key.split("."))))


def pinned(key: str, value: str, base: Path, runs: Path, where: Place | None = None) -> str:
    """The value of one of :data:`PATHS`, or of network.pretrained, as it means the same from everywhere and later."""
    if key in PATHS:
        return os.path.abspath(base / os.path.expanduser(value))
    if value == "torchvision":
        return value
    if "/" in value or value.endswith((".safetensors", ".pth", ".pt")):
        path = os.path.abspath(base / os.path.expanduser(value))
        if not os.path.exists(path):
            raise UserError(
                f"network.pretrained: there is no {path}",
                where=where,
                remedy="Correct the path, or name a run, or `torchvision`.",
            )
        return path
    try:
        return str(find_run(value, runs).path.absolute())
    except UserError as error:
        raise UserError(f"network.pretrained: {error.what}", where=where, remedy=error.remedy) from error


# --- Packed data ----------------------------------------------------------------------------------------------------


def fit_to_packed(spec: Spec, catalog: Catalog) -> Spec:
    """The spec with what a packed dataset decided when it was made; :class:`UserError` if the two do not fit."""
    packed = catalog.packed
    if packed is None:
        return spec
    given = {"width": packed.width, "height": packed.height, "storage": packed.storage}
    changed = {name: value for name, value in given.items() if value is not None}
    table = catalog.kind == "table"
    network = spec.network
    if "name" not in network.model_fields_set:
        network = network.model_copy(update={"name": usual_network(spec.task, table=table)})
    data = spec.data.model_copy(update={**changed, "several_labels": catalog.several_labels})
    spec = spec.model_copy(update={"data": data, "network": network})
    try:
        check_network(spec, table=table)
        if not table:
            check_sizes(spec)
    except ValueError as error:
        raise UserError(
            f"{error} (the packed dataset holds {_content(catalog)})",
            where=packed.folder,
            remedy="Change the spec, or pack the data anew with other settings.",
        ) from error
    return spec


def _content(catalog: Catalog) -> str:
    packed = catalog.packed
    assert packed is not None
    return "rows of a table" if catalog.kind == "table" else f"pictures of {packed.width}×{packed.height}"


def summary(spec: Spec, catalog: Catalog, runs: Path) -> DatasetSummary:
    """What the plan says of the data."""
    key = catalog.key(spec.data)
    packed = catalog.packed
    return DatasetSummary(
        key=key,
        packed=str(runs / DATASETS / key) if packed is None else packed.folder,
        classes=len(catalog.classes),
        train=catalog.count("train"),
        val=catalog.count("val"),
        unseen=catalog.count("unseen"),
        kind=catalog.kind,
        targets=len(catalog.target_names),
        fingerprint="" if packed is None else packed.fingerprint,
    )


# --- Own code -------------------------------------------------------------------------------------------------------


def own_code(spec: Mapping[str, Any]) -> dict[str, Path]:
    """Key → Python file of the user, for ``network.file`` and ``task_file`` where they are given."""
    given = {"network.file": spec["network"].get("file"), "task_file": spec.get("task_file")}
    return {key: Path(path) for key, path in given.items() if path is not None}


def check_code(spec: Mapping[str, Any]) -> list[str]:
    """Look at the user's Python files without running them; :class:`UserError` for what is no Python.

    Gives warnings: modules that lie beside such a file do not travel with the run.
    """
    warnings = []
    for key, path in own_code(spec).items():
        if not path.is_file():
            raise UserError(
                f"{key}: there is no such file" if not path.exists() else f"{key}: is not a file",
                where=path,
                remedy="Correct the path; it is relative to the spec.",
            )
        try:
            tree = ast.parse(read_user_text(path), filename=str(path))
        except (SyntaxError, ValueError) as error:
            line = error.lineno if isinstance(error, SyntaxError) else None
            what = error.msg if isinstance(error, SyntaxError) else str(error)
            raise UserError(
                f"{key}: is not valid Python: {what}", where=Place(str(path), line), remedy="Correct this line."
            ) from error
        beside = sorted({name for name in _imported(tree) if path.with_name(f"{name}.py").exists()} - {path.stem})
        if beside:
            warnings.append(
                f"{path.name} imports {', '.join(beside)} from beside it, but only {path.name} itself is kept with the "
                "run: put all into one file, or install the module in the environment"
            )
    return warnings


def _imported(tree: ast.Module) -> set[str]:
    """First parts of the names of all modules that are imported."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names.add(node.module.split(".")[0])
    return names


def keep_code(plan: Plan, hidden: RunDirectory, final: RunDirectory) -> Plan:
    """Copy the user's Python files into the run that is being made; the plan that names the copies.

    So what they change later does not change the run.
    """
    files = own_code(plan.spec)
    if not files:
        return plan
    with storage_errors(hidden.path / CODE, "create"):
        (hidden.path / CODE).mkdir()
    spec = {**plan.spec, "network": {**plan.spec["network"]}}
    alike = len({path.name for path in files.values()}) < len(set(files.values()))
    for key, path in files.items():
        group = key.partition("_" if key == "task_file" else ".")[0]
        name = f"{group}_{path.name}" if alike else path.name
        replace_text(hidden.path / CODE / name, read_user_text(path))
        copy = str(final.path / CODE / name)
        if key == "task_file":
            spec["task_file"] = copy
        else:
            spec["network"]["file"] = copy
    return dataclasses.replace(plan, spec=spec)
