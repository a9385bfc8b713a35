"""Who may import whom, as docs/architecture.md says it, and what a login node never has to load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "dlhpc"
GROUND = {"errors", "files", "process", "resources"}
MAY_IMPORT = {
    "errors": set(),
    "resources": set(),
    "files": {"errors"},
    "process": {"errors"},
    "spec": GROUND,
    "runs": GROUND,
    "schedulers": GROUND,
    "sites": GROUND | {"spec"},
    "envs": GROUND | {"spec", "sites"},
    "data": GROUND | {"spec", "runs"},
    "train": GROUND | {"spec", "runs", "data", "envs"},
    "predict": GROUND | {"runs", "data", "train"},
    "report": GROUND | {"runs", "predict"},
    "jobs": GROUND | {"spec", "sites", "envs", "runs", "schedulers", "data"},
    "cli": GROUND | {"spec", "sites", "envs", "runs", "schedulers", "data", "predict", "report", "jobs"},
    "__main__": {"cli"},
}
HEAVY = {"torch", "torchvision", "horovod", "numpy", "pydantic"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if not {"site", "jobtemplates"} & set(path.parts))


def room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(module: Path) -> Iterator[str]:
    """Full names of everything that the module imports, at its top or later."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "dlhpc":
            yield from (f"dlhpc.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_go_downwards_only(room: str) -> None:
    named = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    for module in (module for module in modules() if room_of(module) == room):
        rooms = {name.split(".")[1] for name in imported(module) if name.startswith("dlhpc.")} & named
        assert rooms <= MAY_IMPORT[room] | {room}, module


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in modules()} == {*MAY_IMPORT, "__init__"}


def test_only_training_prediction_and_the_check_of_an_environment_import_torch() -> None:
    for module in modules():
        if {name.split(".")[0] for name in imported(module)} & {"torch", "torchvision", "horovod"}:
            assert room_of(module) == "train" or module.name in ("classify.py", "probe.py"), module


def test_commands_load_nothing_heavy_before_they_need_it() -> None:
    light = [module for module in modules() if room_of(module) in ("cli", "runs", "schedulers", *GROUND)]
    light.append(PACKAGE / "jobs" / "follow.py")  # what `dlhpc status` calls
    names = [".".join(module.relative_to(PACKAGE.parent).with_suffix("").parts) for module in light]
    code = f"import sys, {', '.join(names)}; print(*{HEAVY!r} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.split() == []
