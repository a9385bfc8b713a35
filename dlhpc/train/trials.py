"""``precision: auto`` and ``compile``: what the node computes fastest with, found by a few steps of real batches.

All ranks try at the same time, since ranks of a node share its memory's bandwidth; nothing is exchanged between them
meanwhile, and weights, statistics and random numbers are afterwards what they were.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

import torch

from dlhpc.errors import UserError
from dlhpc.spec.models import Training
from dlhpc.train.attempt import Teller
from dlhpc.train.chosen import Chosen
from dlhpc.train.collective import Collective
from dlhpc.train.feed import DeviceStep
from dlhpc.train.memory import is_out_of_memory, tidy_up
from dlhpc.train.precision import PrecisionName, check_precision
from dlhpc.train.step import Stepper

_STEPS = 4
_WARM_UP = 2
_PATIENCE_S = 30.0  # for the measured steps of one setting
_WORTH = 0.97  # a setting that is closer than this to plain fp32 is not worth its rounding


@dataclass(frozen=True)
class Trial:
    """One setting, as one rank saw it."""

    precision: PrecisionName
    compile: bool
    seconds: float | None
    """Of a step; ``None`` if it cannot be done here."""
    beginning: float = 0.0
    """Seconds that compiling took."""
    why: str = ""
    """What prevented it."""

    @property
    def name(self) -> str:
        return f"{self.precision}, compiled" if self.compile else self.precision


def choose(
    chosen: Chosen, training: Training, stepper: Stepper, step: DeviceStep, steps_left: int, collective: Collective,
    teller: Teller,
) -> Chosen:  # fmt: skip
    """Try what is still open in ``chosen`` on ``step``, and settle it; the same on all ranks.

    With ``compile: yes`` this is where a missing compiler is met: then training goes on without, and says so.
    """
    mine = [_try(one, training, stepper, step, stepper.device) for one in candidates(chosen, stepper.device)]
    of_ranks = collective.gather_json([vars(trial) for trial in mine])
    trials = [slowest([Trial(**trial) for trial in of_one]) for of_one in zip(*of_ranks)]
    # Rank 0 decides, so that no rounding of numbers on their way can make two ranks disagree.
    best = Trial(**collective.share_json(vars(fastest(trials, steps_left, training.compile == "yes"))))
    for trial in trials:
        if trial.why:
            teller.warn(f"{trial.name} cannot be used here: {trial.why}")
    tried = {trial.name: round(trial.seconds, 6) for trial in trials if trial.seconds is not None}
    if len(tried) > 1:
        words = ", ".join(f"{name} {1000 * seconds:.3g} ms" for name, seconds in tried.items())
        teller.say(f"a step takes with {words}: training with {best.name}")
    return replace(chosen, precision=best.precision, compile=best.compile, seconds=tried)


def candidates(chosen: Chosen, device: torch.device) -> list[tuple[PrecisionName, bool]]:
    """What is to be tried: plain first, since all else is compared with it."""
    precisions: list[PrecisionName] = ["fp32", "bf16", "fp16"] if device.type == "cuda" else ["fp32", "bf16"]
    if chosen.precision is not None:
        precisions = [chosen.precision]
    # `compile: yes` is settled already, but has to be possible.
    return list(product(precisions, [False] if chosen.compile is False else [False, True]))


def slowest(of_one: list[Trial]) -> Trial:
    """A setting over all ranks, who wait for each other in every step."""
    for trial in of_one:
        if trial.seconds is None:
            return trial
    return max(of_one, key=lambda trial: trial.seconds or 0.0)


def fastest(trials: list[Trial], steps_left: int, compiled: bool = False) -> Trial:
    """The setting that trains fastest. Compiling must win back its time within ``steps_left``, unless it is wanted."""
    able = [trial for trial in trials if trial.seconds is not None]
    if compiled and any(trial.compile for trial in able):
        able = [trial for trial in able if trial.compile]
    if not able:
        return replace(trials[0], seconds=None)  # not even this fits into memory; the loop will halve the batch

    def cost(trial: Trial) -> float:
        seconds = trial.seconds or 0.0
        return seconds if compiled else seconds + trial.beginning / max(1, steps_left)

    best = min(able, key=cost)
    return best if cost(best) < _WORTH * cost(able[0]) else able[0]


def _try(
    setting: tuple[PrecisionName, bool], training: Training, stepper: Stepper, step: DeviceStep, device: torch.device
) -> Trial:
    precision, compiled = setting
    if compiled and (missing := missing_compiler(device)):
        return Trial(precision, compiled, None, why=missing)
    with _unchanged(stepper):
        try:
            check_precision(precision, device)
            stepper.use(precision)
            use_compiled(stepper, compiled)
            began = time.perf_counter()
            times = list(_times(stepper, step, device))
            beginning = time.perf_counter() - began - sum(times)
            return Trial(precision, compiled, min(times), beginning if compiled else 0.0)
        except UserError as error:
            return Trial(precision, compiled, None, why=error.what if training.precision != "auto" else "")
        except Exception as error:  # whatever torch.compile's many layers raise, training goes on without
            if is_out_of_memory(error):
                tidy_up(device)
                return Trial(precision, compiled, None)
            if not compiled:
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return Trial(precision, compiled, None, why=f"torch.compile failed ({lines[0][:200]})")
        finally:
            use_compiled(stepper, False)


def _times(stepper: Stepper, step: DeviceStep, device: torch.device) -> Iterator[float]:
    """Seconds of each measured forward and backward pass."""
    spent = 0.0
    for number in range(_WARM_UP + _STEPS):
        began = time.perf_counter()
        for batch in step.portions[:1]:
            stepper.losses(batch).total.backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        if number >= _WARM_UP:
            spent += seconds
            yield seconds
        if spent > _PATIENCE_S:
            return


@contextmanager
def _unchanged(stepper: Stepper) -> Iterator[None]:
    """Afterwards statistics, gradients and random numbers are as before; weights are not touched at all."""
    buffers = [(buffer, buffer.clone()) for buffer in stepper.model.buffers()]
    precision, scale = stepper.precision, stepper.scale
    gpus = [stepper.device] if stepper.device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            stepper.precision, stepper.scale = precision, scale
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for parameter in stepper.trained:
                parameter.grad = None


def use_compiled(stepper: Stepper, compiled: bool) -> None:
    """Let torch.compile make one program of the network, or not. The names of its weights stay the same."""
    if compiled:
        stepper.model.compile()
    else:
        stepper.model._compiled_call_impl = None


def missing_compiler(device: torch.device) -> str:
    """What torch.compile lacks on this node, in words; empty if nothing."""
    names = ("gcc", "cc", "clang") if device.type == "cuda" else ("g++", "clang++", "c++")
    own = os.environ.get("CC" if device.type == "cuda" else "CXX", "")
    if any(shutil.which(name) for name in (*shlex.split(own)[:1], *names)):
        return ""
    return f"torch.compile needs a C++ compiler, and there is none on this node ({', '.join(names)})"
