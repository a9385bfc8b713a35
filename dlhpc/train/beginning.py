"""How an attempt begins, the same on all ranks: with the newest whole checkpoint, or fresh or pretrained weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dlhpc.errors import StorageError
from dlhpc.runs.checkpoints import list_checkpoints
from dlhpc.runs.curves import forget_after
from dlhpc.runs.journal import Event
from dlhpc.train.attempt import Attempt, Teller
from dlhpc.train.checkpoint import Checkpoints, Loaded, load
from dlhpc.train.collective import Collective
from dlhpc.train.evaluate import RankState
from dlhpc.train.optimisers import restore_state
from dlhpc.train.position import Position
from dlhpc.train.precision import LossScale
from dlhpc.train.pretrained import load_pretrained
from dlhpc.train.step import Stepper


@dataclass
class Beginning:
    """From where training goes on."""

    position: Position = field(default_factory=Position)
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last validation."""


def begin(
    attempt: Attempt, teller: Teller, checkpoints: Checkpoints, stepper: Stepper, state: RankState,
    collective: Collective,
) -> Beginning:  # fmt: skip
    """Bring network and optimiser to where training goes on, and forget what was measured after that."""
    loaded: Loaded | None = None
    if teller.leader:
        checkpoints.tidy()
        loaded = checkpoints.newest(teller.warn)
    name = collective.share_json(None if loaded is None else loaded.record.name)
    if name is None:
        _start(attempt, teller, stepper, collective)
        found = Beginning()
    else:
        found = _take_up(loaded or _find(attempt, name), teller, stepper, state, collective)
    if teller.leader:
        checkpoints.forget_after(found.position)
        forget_after(attempt.run.curves, found.position.step)
    if name is not None:
        epoch = attempt.epoch_of(found.position.step)
        teller.journal(Event.RESUMED, epoch=epoch, step=found.position.step, checkpoint=name)
        teller.say(f"going on after epoch {epoch:.4g} from {name}")
    return found


def _start(attempt: Attempt, teller: Teller, stepper: Stepper, collective: Collective) -> None:
    if teller.leader:
        for note in load_pretrained(stepper.model, attempt.spec.network):
            teller.warn(note)
    for tensor in [*stepper.model.parameters(), *stepper.model.buffers()]:
        values = tensor.detach().contiguous()
        collective.broadcast(values)
        tensor.data.copy_(values)
    if stepper.average is not None:
        stepper.average.restart()


def _find(attempt: Attempt, name: str) -> Loaded:
    """The checkpoint that rank 0 chose, as this rank sees it."""
    for record in list_checkpoints(attempt.run):
        if record.name == name:
            return load(record)
    raise StorageError(
        f"rank 0 sees the checkpoint {name}, but this node does not",
        where=attempt.run.checkpoints,
        remedy="Check that the run directory is on storage that all nodes share.",
    )


def _take_up(loaded: Loaded, teller: Teller, stepper: Stepper, state: RankState, collective: Collective) -> Beginning:
    saved, average = loaded.state, stepper.average
    rank, same_ranks = collective.rank, len(saved.running) == collective.size
    try:
        stepper.model.load_state_dict(loaded.weights)
        if average is not None:  # the weights file holds the averages
            average.restart()
            if same_ranks:
                with average.in_place():
                    state.write(saved.averaged_floats[rank], saved.rank_counters[rank])
            stepper.model.load_state_dict({**loaded.weights, **saved.raw})
        restore_state(stepper.optimiser, saved.optimiser)
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        raise StorageError(
            f"does not fit the network and optimiser of the plan: {str(error).splitlines()[0]}",
            where=loaded.record.manifest,
            remedy="Submit the run anew from its spec.yaml.",
        ) from error
    position = loaded.position
    if position.loss_scale is not None:
        stepper.use("fp16", LossScale(position.loss_scale, position.scale_steps))
    if same_ranks:
        state.write(saved.rank_floats[rank], saved.rank_counters[rank])
        stepper.running.copy_(saved.running[rank])
    elif teller.leader:  # the mean statistics are in the weights, the sums go on here
        teller.warn(f"the checkpoint is of {len(saved.running)} ranks: the curves go on, but not to the last bit")
        stepper.running.copy_(saved.running.sum(dim=0))
    metrics = {key: math.nan if value is None else value for key, value in loaded.record.metrics.items()}
    return Beginning(position, metrics)
