"""What people see while they wait."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from dlhpc.cli.progress import follow, progress_bar
from dlhpc.errors import DlhpcError, UserError
from dlhpc.jobs import follow as jobs_follow
from dlhpc.jobs.follow import RunStatus
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.state import RunState


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


class Watch:
    """A run whose states are known beforehand."""

    def __init__(self, *states: RunState) -> None:
        self._states: Iterator[RunState] = iter(states)

    def look(self) -> RunStatus:
        return RunStatus("cars", "/runs/cars", next(self._states), "7", 1, 3, 9, None, None, None)


def followed(monkeypatch: pytest.MonkeyPatch, fault: DlhpcError, *states: RunState) -> list[RunState]:
    """The states that are shown of a run that could not be submitted again where it had failed."""

    def look_after(_run: RunDirectory, now: RunStatus) -> bool:
        if now.state is RunState.FAILED:
            raise fault
        return False

    monkeypatch.setattr(jobs_follow, "Watch", lambda _run: Watch(*states))
    monkeypatch.setattr(jobs_follow, "look_after", look_after)
    return [now.state for now in follow(RunDirectory(Path("/runs/cars")), pause=0)]


def test_a_run_that_another_watcher_was_quicker_to_go_on_with_is_followed_further(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quicker = UserError("attempt 2 of cars is submitted already")
    states = (RunState.RUNNING, RunState.FAILED, RunState.QUEUED, RunState.FINISHED)
    shown = followed(monkeypatch, quicker, *states)
    assert shown == [RunState.RUNNING, RunState.QUEUED, RunState.FINISHED]
    assert capsys.readouterr().err == ""


def test_a_run_that_cannot_go_on_is_left_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = UserError("anna-1, which must finish first (job.after), is cancelled")
    assert followed(monkeypatch, refused, RunState.FAILED, RunState.FAILED) == [RunState.FAILED]
    assert "cars could not go on by itself: anna-1, which must finish first" in capsys.readouterr().err
