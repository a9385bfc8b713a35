"""What people see of a long build: lines for logs, and a live line where standard error is a terminal."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

_QUIET_SECONDS = 15.0
_PIP_WIDTH = 90


def clock(seconds: float) -> str:
    """``M:SS``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def pip_news(line: str) -> str | None:
    """What is worth showing of a line of `pip install`, for as long as nothing newer comes."""
    line = line.strip()
    if line.startswith("Installing collected packages:"):
        return f"installing {line.count(',') + 1} packages"
    if line.startswith(("Collecting ", "Downloading ", "Building ", "Preparing ", "Processing ")):
        return line if len(line) <= _PIP_WIDTH else line[: _PIP_WIDTH - 1] + "…"
    return None


class Progress:
    """Plain lines on standard error; a running step speaks at most every 15 seconds."""

    def __init__(self) -> None:
        self.title = ""
        self.started = self._spoke = time.monotonic()

    def step(self, title: str) -> None:
        """A step begins."""
        self.title = title
        self.started = self._spoke = time.monotonic()
        self.say(f"… {title}")

    def detail(self, text: str, fraction: float | None = None) -> None:
        """What the step is doing now; ``fraction`` is 0 to 1 where it is known. Call it as often as you like."""
        now = time.monotonic()
        if now - self._spoke >= _QUIET_SECONDS:
            self._spoke = now
            self.say(f"    {self._now(text, fraction)}")

    def done(self) -> None:
        """The step has ended well."""
        self.say(f"✓ {self.title} ({clock(self.elapsed)})")

    def note(self, sentence: str) -> None:
        """Something people should know, at any time."""
        self.say(sentence)

    def close(self) -> None:
        """Nothing more will come, for whatever reason."""

    def say(self, line: str) -> None:
        """Write one line."""
        print(line, file=sys.stderr, flush=True)

    @property
    def elapsed(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started

    def _now(self, text: str, fraction: float | None) -> str:
        percent = "" if fraction is None else f"{fraction:4.0%}  "
        return f"{clock(self.elapsed)}  {percent}{text}"


class LiveProgress(Progress):
    """One line that changes in place, through rich."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._status: Status | None = None

    def step(self, title: str) -> None:
        """A step begins."""
        self.close()
        self.title = title
        self.started = time.monotonic()
        self._status = self._console.status(self._line("", None))
        self._status.start()

    def detail(self, text: str, fraction: float | None = None) -> None:
        """Show what the step is doing now."""
        if self._status is not None:
            self._status.update(self._line(text, fraction))

    def done(self) -> None:
        """The step has ended well."""
        self.close()
        super().done()

    def close(self) -> None:
        """Stop the live line."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def say(self, line: str) -> None:
        """Write one line above the live one."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self, text: str, fraction: float | None) -> Text:
        from rich.text import Text

        line = Text(f"{self.title}  {self._now(text, fraction)}")
        line.truncate(max(20, self._console.width - 3), overflow="ellipsis")  # beside the spinner, in one line
        return line


def for_terminal() -> Progress:
    """A live line if standard error is a terminal that can show one, else plain lines."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return Progress()
    from rich.console import Console

    return LiveProgress(Console(stderr=True))
