"""What is settled on the node and not in the plan: RUN/chosen.json, so that all attempts of a run do the same."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from dlhpc.errors import StorageError
from dlhpc.files import read_json, replace_json
from dlhpc.runs.directory import RunDirectory
from dlhpc.spec.models import Training
from dlhpc.train.precision import PrecisionName

FORMAT = 1


@dataclass(frozen=True)
class Chosen:
    """Where the spec says ``auto``, what was chosen; and how often memory did not suffice."""

    precision: PrecisionName | None = None
    """``None`` as long as it is still to be measured."""
    compile: bool | None = None
    """Likewise."""
    halvings: int = 0
    """So often the batch was halved and accumulation doubled."""
    evaluation_batch: int | None = None
    """Samples at a time while measuring; ``None``: as in training."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What a step took with each setting that was tried."""

    def accumulate(self, training: Training) -> int:
        """Portions of a step."""
        return training.accumulate << self.halvings

    def batch_size(self, training: Training) -> int:
        """Samples per rank and portion, at most."""
        return max(1, -(-training.batch_size // (1 << self.halvings)))


def from_spec(training: Training) -> Chosen:
    """What the spec itself says."""
    return Chosen(
        None if training.precision == "auto" else training.precision,
        {"yes": True, "no": False}.get(training.compile),
    )


def read_chosen(run: RunDirectory, training: Training) -> Chosen:
    """What earlier attempts chose, or what the spec says; raises StorageError for a damaged file."""
    try:
        value: Any = read_json(run.chosen)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return from_spec(training)
        raise
    try:
        if value.pop("format") != FORMAT:
            raise ValueError("another format")
        return Chosen(**value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"is damaged: {error}", where=run.chosen, remedy="Remove the file: what it holds is measured again."
        ) from error


def write_chosen(run: RunDirectory, chosen: Chosen) -> None:
    """Keep it for the attempts to come (rank 0 only)."""
    replace_json(run.chosen, {"format": FORMAT, **dataclasses.asdict(chosen)})
