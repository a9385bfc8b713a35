"""How a figure is taken: the two sides in turn, several times, the best of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table. ``ratio`` is peer time / our time: above 1 we are faster."""

    name: str
    ours: str
    peer: str
    ratio: float
    note: str


def best_of(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest of ``rounds`` runs of each side; sides alternate, so that disturbances meet both."""
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def shown(seconds: float) -> str:
    """``1.23 s``, ``4.56 ms``, ``7.89 µs``."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def figure(name: str, times: dict[str, float], note: str, per: int = 1) -> Figure:
    """From the times of ``{"ours": …, PEER: …}``; ``per`` divides both, for example by the number of lines."""
    (peer,) = (side for side in times if side != "ours")
    return Figure(
        name, shown(times["ours"] / per), f"{shown(times[peer] / per)} ({peer})", times[peer] / times["ours"], note
    )
