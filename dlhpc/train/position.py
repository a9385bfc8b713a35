"""Where training stands: small numbers for the manifest, tensors for the trainer's file of a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlhpc.runs.measures import better


@dataclass(frozen=True)
class Best:
    """The best validation so far: by its measure; of equal ones the lowest loss; of equal ones the earliest."""

    checkpoint: str
    epoch: float
    step: int
    measure: str
    """As the curves call it: ``val_accuracy``."""
    value: float
    loss: float

    def beaten_by(self, value: float, loss: float) -> bool:
        return better(self.measure, value, self.value) or (value == self.value and loss < self.loss)


@dataclass(frozen=True)
class Patience:
    """When the measure that early stopping looks at was last better than before."""

    value: float
    step: int


@dataclass
class Position:
    """Where training stands; small enough for the manifest."""

    step: int = 0
    """Finished optimiser steps."""
    measured_step: int = 0
    """Step of the last validation."""
    snapshots: int = 0
    """Regular snapshots taken."""
    saved_step: int = 0
    """Step of the last checkpoint."""
    best: Best | None = None
    loss_scale: float | None = None
    """fp16: what losses are multiplied by; ``None`` at the beginning and with other precisions."""
    scale_steps: int = 0
    """Steps since the scale last changed."""
    patience: Patience | None = None
    """Early stopping: the last improvement."""
    ended: str | None = None
    """Why training ended before its last step, in words."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Position:
        best, patience = value["best"], value["patience"]
        return cls(
            **{
                **value,
                "best": None if best is None else Best(**best),
                "patience": None if patience is None else Patience(**patience),
            }
        )


@dataclass
class TrainerState:
    """What training goes on from, besides weights and position."""

    optimiser: dict[str, Any]
    """``state``: number of the parameter → name → tensor or number; ``groups``: the parameters' numbers by group."""
    rank_floats: Tensor
    """Ranks×F: each rank's running statistics."""
    rank_counters: Tensor
    """Ranks×I, likewise."""
    running: Tensor
    """Ranks×k float64: the task's ``train_sums`` and the number of samples since the last point of the training
    curves."""
    averaged_floats: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Where weights are averaged (``training.ema``): ranks×F, each rank's averaged running statistics."""
    raw: dict[str, Tensor] = field(default_factory=dict)
    """Where weights are averaged, those that the optimiser moves; the weights file then holds the averages."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under flat names."""
        named = {name: getattr(self, name) for name in _TABLES} | {f"raw.{k}": v for k, v in self.raw.items()}
        for number, entries in self.optimiser["state"].items():
            named |= {f"optimiser.{number}.{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
        return named

    def numbers(self) -> dict[str, Any]:
        """What is no tensor, JSON-able."""
        plain = {
            str(number): {name: value for name, value in entries.items() if not isinstance(value, Tensor)}
            for number, entries in self.optimiser["state"].items()
        }
        return {"state": plain, "groups": self.optimiser["groups"]}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], numbers: dict[str, Any]) -> TrainerState:
        """The inverse of :meth:`tensors` and :meth:`numbers`; raises KeyError or ValueError."""
        state: dict[int, dict[str, Any]] = {int(number): dict(plain) for number, plain in numbers["state"].items()}
        raw = {name.removeprefix("raw."): tensor for name, tensor in tensors.items() if name.startswith("raw.")}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, number, key = name.split(".", 2)
                state[int(number)][key] = tensor
        optimiser = {"state": state, "groups": numbers["groups"]}
        return cls(optimiser, **{name: tensors[name] for name in _TABLES}, raw=raw)


_TABLES = ("rank_floats", "rank_counters", "running", "averaged_floats")
