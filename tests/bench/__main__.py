"""``python -m tests.bench``: run every benchmark, print the table, and write it into docs/performance.md."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

from dlhpc.files import replace_text
from tests.bench import login, training
from tests.bench.measure import Figure

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- table: made by `make bench` -->", "<!-- end of table -->"


def table(figures: list[Figure]) -> str:
    lines = ["| figure | dlhpc | peer | peer / dlhpc | note |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {one.name} | {one.ours} | {one.peer} | **{one.ratio:.2f}** | {one.note} |" for one in figures]
    return "\n".join(lines)


def main() -> None:
    figures: list[Figure] = []
    for room in (login, training):
        print(f"measuring {room.__doc__.split(':')[0].lower() if room.__doc__ else room.__name__} …", flush=True)
        figures += room.figures()
    made = table(figures)
    print(made)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    stamp = f"Run of {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {platform.machine()}."
    replace_text(PAGE, f"{before}{BEGIN}\n\n{stamp}\n\n{made}\n\n{END}{after}")


if __name__ == "__main__":
    main()
