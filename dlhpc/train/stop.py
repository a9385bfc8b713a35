"""When an attempt must save its state and leave: signals, the stop file, the deadline."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGXCPU)
_FILE_INTERVAL_S = 1.0  # between looks at the stop file: shared storage is not to be polled faster


@dataclass
class StopRequests:
    """Collects the reasons to stop on this rank. Files and the deadline are rank 0's to watch, signals everyone's."""

    stop_file: Path
    deadline: float | None
    """Seconds since 1970."""
    _signal: int | None = None
    _seen_file: bool = False
    _next_look: float = 0.0

    def listen(self) -> None:
        """Note signals from now on. The handler only keeps a number: it may run between any two instructions."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number

    def reason(self, rank: int, seconds_needed: float) -> str | None:
        """Why to stop now, in words, or ``None``; ``seconds_needed`` is what one more step and saving would take."""
        if self._signal is not None:
            return f"signal {signal.Signals(self._signal).name}"
        if rank != 0:
            return None
        now = time.time()
        if self.deadline is not None and now + seconds_needed > self.deadline:
            return f"the walltime ends in {max(0.0, self.deadline - now):.0f} s"
        if not self._seen_file and now >= self._next_look:
            self._next_look = now + _FILE_INTERVAL_S
            self._seen_file = self.stop_file.exists()
        return "it was asked to save and leave" if self._seen_file else None
