"""What to do when memory does not suffice."""

from __future__ import annotations

import gc

import torch

from dlhpc.errors import UserError

_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there was no memory for what torch wanted to do, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch has no class of its own for the CPU, nor for what cuDNN and cuBLAS say.
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def tidy_up(device: torch.device) -> None:
    """Give back what a failed forward or backward pass has left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def does_not_suffice(doing: str) -> UserError:
    """Even for one sample."""
    return UserError(
        f"memory does not suffice for {doing} with one sample at a time",
        remedy="Ask for more memory (job.memory), a GPU with more, smaller pictures (data.width, data.height) or a "
        "smaller network.",
    )
