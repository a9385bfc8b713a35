"""Bringing batches to where the network is; to a GPU while it works on the batch before."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from dlhpc.data.samples import Batch, Step
from dlhpc.train.tasks.base import DeviceBatch, to_device

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class DeviceStep:
    """A :class:`dlhpc.data.samples.Step` where the network is."""

    global_count: int
    portions: list[DeviceBatch]


def feed_steps(steps: Iterable[Step], device: torch.device, empty: bool = False) -> Generator[DeviceStep]:
    """The steps, without portions that hold no sample unless ``empty``. A step may be used until the next is asked."""

    def moved(step: Step) -> DeviceStep:
        return DeviceStep(step.global_count, [to_device(one, device) for one in step.portions if empty or len(one)])

    return _moved(steps, moved, device)


def feed_batches(batches: Iterable[Batch], device: torch.device) -> Generator[DeviceBatch]:
    """The batches, without empty ones."""
    filled = (batch for batch in batches if len(batch))
    return _moved(filled, lambda batch: to_device(batch, device), device)


def making(device: torch.device) -> dict[str, Any]:
    """How ``dlhpc.data.batches`` is to make batches for this device: for a GPU in page-locked memory, two at a time."""
    return {"allocate": _page_locked, "held": 2} if device.type == "cuda" else {}


def _page_locked(shape: tuple[int, ...], dtype: Any) -> Any:
    return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True).numpy()


@dataclass(frozen=True)
class _Copied(Generic[Made]):
    value: Made
    ready: torch.cuda.Event


def _moved(given: Iterable[Given], move: Callable[[Given], Made], device: torch.device) -> Generator[Made]:
    if device.type != "cuda":
        yield from map(move, given)
        return
    source = iter(given)
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy_next() -> _Copied[Made] | None:
        beside.synchronize()  # the copy before is done: after this request its arrays may be filled anew
        one = next(source, None)
        if one is None:
            return None
        with torch.cuda.stream(beside):
            return _Copied(move(one), beside.record_event())

    with ThreadPoolExecutor(1, thread_name_prefix="to-gpu") as thread:
        following = thread.submit(copy_next)
        while (copied := following.result()) is not None:
            following = thread.submit(copy_next)
            torch.cuda.current_stream(device).wait_event(copied.ready)
            yield copied.value
