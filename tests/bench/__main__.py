"""``python -m tests.bench [ROOM …]``: run benchmarks, print their tables, and write these into docs/performance.md.

A room is a module beside this one; without a name all are measured, each table has its own place on the page.
"""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

from dlhpc.files import replace_text
from tests.bench import engine, loading, login, ranks, schedulers
from tests.bench.measure import Figure

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
ROOMS = {"login": login, "schedulers": schedulers, "loading": loading, "engine": engine, "ranks": ranks}
END = "<!-- end of table -->"


def table(figures: list[Figure]) -> str:
    lines = ["| figure | dlhpc | peer | peer / dlhpc | note |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {one.name} | {one.ours} | {one.peer} | **{one.ratio:.3g}** | {one.note} |" for one in figures]
    return "\n".join(lines)


def into_page(page: str, room: str, made: str) -> str:
    """The page with this table in the place of the one before."""
    begin = f"<!-- table of {room}: made by `make bench` -->"
    before, found, rest = page.partition(begin)
    if not found:
        raise SystemExit(f"{PAGE} has no place for the table of {room}: {begin} … {END}")
    stamp = f"Run of {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {platform.machine()}."
    return f"{before}{begin}\n\n{stamp}\n\n{made}\n\n{END}{rest.partition(END)[2]}"


def main(names: list[str]) -> None:
    if unknown := set(names) - set(ROOMS):
        raise SystemExit(f"no room {', '.join(sorted(unknown))}; there are {', '.join(ROOMS)}")
    for name in names or ROOMS:
        print(f"measuring {name} …", flush=True)
        made = table(ROOMS[name].figures())
        print(made, flush=True)
        replace_text(PAGE, into_page(PAGE.read_text(encoding="utf-8"), name, made))


if __name__ == "__main__":
    main(sys.argv[1:])
