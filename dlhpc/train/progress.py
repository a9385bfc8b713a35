"""How long things take, and the line that rank 0 prints after every epoch.

Durations enter the curves as the split ``system`` only: those of ``train`` and ``val`` are the same to the last bit
however often a run was interrupted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from dlhpc.runs.measures import HEADLINES, measure_in_words


@dataclass
class Clock:
    """Durations in seconds, as last measured in this attempt; 0 if not yet."""

    step_seconds: float = 0.0
    validation_seconds: float = 0.0
    epoch_seconds: float = 0.0
    """Spent in training steps of the running epoch."""
    epoch_samples: int = 0
    """Trained on by all ranks in the running epoch."""
    _steps: int = 0
    _began: float = field(default_factory=time.perf_counter)
    _epoch_began: float = field(default_factory=time.perf_counter)

    def step(self, samples: int, seconds: float) -> None:
        """A training step over ``samples`` took ``seconds``."""
        self.step_seconds = seconds
        self.epoch_seconds += seconds
        self.epoch_samples += samples
        self._steps += 1

    @property
    def epoch_wall_seconds(self) -> float:
        """Since the end of the epoch before, with waiting for data, validation and saving."""
        return time.perf_counter() - self._epoch_began

    @property
    def samples_per_second(self) -> float:
        """Of all ranks together, in training steps of the running epoch."""
        return self.epoch_samples / max(1e-9, self.epoch_seconds)

    def new_epoch(self) -> None:
        self.epoch_seconds, self.epoch_samples = 0.0, 0
        self._epoch_began = time.perf_counter()

    def seconds_left(self, steps: int) -> float:
        """For so many more steps, with all that comes between them, at this attempt's pace."""
        return (time.perf_counter() - self._began) / max(1, self._steps) * steps


def progress_line(epoch: int, epochs: int, metrics: dict[str, float], seconds_left: float) -> str:
    """``epoch 12/60  train loss 0.213  val loss 0.311  val accuracy 96.3 %  41 s left``."""
    parts = [f"epoch {epoch:{len(str(epochs))}}/{epochs}"]
    shown = [name for name in ("train_loss", "val_loss", *HEADLINES) if name in metrics]
    parts += [measure_in_words(name, metrics[name]) for name in shown]
    parts.append(f"{_duration(seconds_left)} left")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
