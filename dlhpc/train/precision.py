"""The numbers that layers compute with. Weights, gradients and optimiser stay float32."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from dlhpc.errors import UserError

PrecisionName = Literal["fp32", "bf16", "fp16"]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(name: PrecisionName, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside, layers that suffer it compute in 16 bits."""
    if name == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[name])


def check_precision(name: PrecisionName, device: torch.device) -> None:
    """:class:`UserError` if this device cannot compute so."""
    if name == "fp32":
        return
    try:
        with torch.no_grad(), autocast(name, device):
            functional.conv2d(torch.zeros(1, 4, 8, 8, device=device), torch.zeros(4, 4, 3, 3, device=device))
    except RuntimeError as error:
        where = "this GPU" if device.type == "cuda" else "this processor"
        raise UserError(
            f"training.precision is {name}, which torch cannot compute with on {where}",
            remedy="Set training.precision to bf16, or to auto, which takes the fastest that the node can do.",
        ) from error


@dataclass
class LossScale:
    """fp16 knows no number below 6e-8, so losses are multiplied before the backward pass, and gradients divided again.

    After Micikevicius et al. 2018 (Mixed precision training), with the constants of ``torch.amp.GradScaler``: halved
    where gradients overflow, doubled after 2000 steps without. Powers of two change no bit of a gradient.
    """

    value: float = 65536.0
    steps: int = 0
    """Since the last change."""

    def fits(self) -> None:
        """Gradients were finite."""
        self.steps += 1
        if self.steps >= 2000:
            self.value, self.steps = min(2.0 * self.value, 2.0**24), 0

    def overflow(self) -> bool:
        """Gradients were not finite; gives whether a smaller scale is left to try."""
        if self.value <= 1.0:
            return False
        self.value, self.steps = self.value / 2.0, 0
        return True
