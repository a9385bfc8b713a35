"""The tasks: what is learnt, by which losses, and how it is measured. ``base`` says what the loop asks of one.

Each task is a module with two functions: ``make(spec, packed)`` gives the task with a freshly initialised network,
``restore(record, weights)`` the trained network out of a checkpoint, for prediction.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from dlhpc.train.tasks.base import Task

if TYPE_CHECKING:
    from dlhpc.data.packed import Packed
    from dlhpc.runs.checkpoints import CheckpointRecord
    from dlhpc.spec.models import Spec


def make_task(spec: Spec, packed: Packed) -> Task:
    """The task of ``spec`` for these data. The caller seeds torch's generator, which decides the weights."""
    return cast(Task, _module(spec.task).make(spec, packed))


def restore_model(record: CheckpointRecord, weights: dict[str, Tensor]) -> nn.Module:
    """Normalisation and network of a checkpoint with these ``weights``, on the CPU, in evaluation mode.

    Raises KeyError, ValueError, TypeError or RuntimeError if they do not fit each other.
    """
    return cast(nn.Module, _module(record.task).restore(record, weights).eval())


def _module(task: str) -> Any:
    if task not in ("classification", "detection", "regression"):
        raise ValueError(f"there is no task `{task}`")
    return importlib.import_module(f"dlhpc.train.tasks.{task}")
