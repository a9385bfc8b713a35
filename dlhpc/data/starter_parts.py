"""What all first specs are made with: a look at some pictures, names, quoting, lines with their explanation."""

from __future__ import annotations

import json
import os
import re
import statistics
import struct
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlhpc.data.catalog import Sample
from dlhpc.errors import DlhpcError, UserError

_LOOKED_AT = 24  # pictures that decide on size and colour


@dataclass(frozen=True)
class Looks:
    """What some of the pictures are like; zeros where none could be looked at."""

    short_side: int = 0
    """Median of the shorter sides, pixels."""
    color: str = "auto"
    smallest: tuple[int, int] = (0, 0)
    """Width and height."""
    largest: tuple[int, int] = (0, 0)
    broken: int = 0

    @property
    def sizes(self) -> str:
        """For people."""
        small, large = ("×".join(map(str, size)) for size in (self.smallest, self.largest))
        return small if small == large else f"{small} to {large}"


def look(train: Sequence[Sample]) -> Looks:
    """Look at some pictures, spread over all. Where NumPy and Pillow are missing, as on a login node, sizes alone are
    seen, of PNG and JPEG.
    """
    step = max(1, len(train) // _LOOKED_AT)
    chosen = [sample.path for sample in train[::step][:_LOOKED_AT]]
    try:
        from dlhpc.data.pictures import BrokenPicture, decode, is_grey
    except ImportError:
        return _looks([size for path in chosen if (size := _size_in_header(path)) is not None], "auto", 0)
    sizes: list[tuple[int, int]] = []
    greys, broken = [], 0
    for path in chosen:
        try:
            values = decode(path)
        except BrokenPicture:
            broken += 1
            continue
        except DlhpcError:
            continue
        sizes.append((values.shape[1], values.shape[0]))
        greys.append(is_grey(values))
    return _looks(sizes, "grey" if all(greys) else "rgb", broken)


def _looks(sizes: list[tuple[int, int]], color: str, broken: int) -> Looks:
    if not sizes:
        return Looks()
    small, large = (pick(sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
    return Looks(round(statistics.median(min(size) for size in sizes)), color, small, large, broken)


def _size_in_header(path: str) -> tuple[int, int] | None:
    """Width and height of a PNG (ISO 15948, IHDR) or JPEG (ITU-T T.81, the frame header SOF), None of others."""
    try:
        with open(path, "rb") as file:
            head = file.read(24)
            if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24:
                width, height = struct.unpack(">II", head[16:24])
                return (width, height) if width and height else None
            if head[:2] != b"\xff\xd8":
                return None
            file.seek(2)
            while len(marker := file.read(4)) == 4 and marker[0] == 0xFF:
                if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
                    _, height, width = struct.unpack(">BHH", file.read(5))
                    return (width, height) if width and height else None
                file.seek(int.from_bytes(marker[2:], "big") - 2, os.SEEK_CUR)
    except (OSError, struct.error):
        pass
    return None


def written_path(path: Path, relative_to: Path | None) -> str:
    """How the spec names a folder or file: relative to where it is written if it lies below, else absolute."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode(errors="surrogateescape").decode(errors="replace")
        raise UserError(f"the name {shown} is not valid UTF-8", remedy="Rename it.") from error
    if relative_to is not None and path.is_relative_to(base := Path(os.path.abspath(relative_to))):
        relative = str(path.relative_to(base))
        return f"./{relative}" if relative.startswith("~") else relative
    return str(path)


def run_name(folder: str) -> str:
    """A run's name out of any folder's name: letters, digits, `-` and `_`, a letter first, at most 40."""
    plain = unicodedata.normalize("NFKD", folder).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-_")
    if name and not name[0].isalpha():
        name = f"run-{name}"
    return name[:40].rstrip("-_") or "pictures"


def quoted(text: str) -> str:
    """A YAML double-quoted scalar, which no character can break out of: as JSON's, and `\\U` for all unprintables."""
    text = json.dumps(text, ensure_ascii=False)
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in text)


def line(setting: str, meaning: str) -> str:
    """A line of YAML with its explanation, which goes below where the setting is long."""
    if len(setting) > 26:
        return f"{setting}\n{'':<27}# {meaning}"
    return f"{setting:<26} # {meaning}"


def batch_size(most: int, train: int, ranks: int) -> int:
    """Pictures per rank and step: a power of two, so small that an epoch has some steps."""
    batch = most
    while batch > 4 and batch * ranks * 4 > train:
        batch //= 2
    return batch
