"""What people see while they wait."""

from __future__ import annotations

import io

from rich.console import Console

from dlhpc.cli.progress import progress_bar


def drawn(width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    bar = progress_bar(width)
    bar.add_task("running (attempt 12)", total=1200, completed=1200)
    with console.capture() as captured:
        console.print(bar)
    return captured.get().rstrip("\n")


def test_the_times_are_whole_on_a_terminal_of_80_columns() -> None:
    line = drawn(80)
    assert "\n" not in line
    assert len(line) <= 80
    assert "…" not in line
    assert "running (attempt 12)" in line
    assert "1200/1200" in line
    assert line.count("━") >= 20


def test_a_wide_terminal_does_not_stretch_the_bar_over_all_of_it() -> None:
    assert drawn(200).count("━") == 40
