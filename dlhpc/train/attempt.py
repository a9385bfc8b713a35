"""Which attempt this is, what it says in the log and in the journal, and where its random numbers begin."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, record
from dlhpc.runs.plan import Plan
from dlhpc.spec.models import Spec


@dataclass(frozen=True)
class Attempt:
    """One attempt of one run; ``number`` counts from 1."""

    run: RunDirectory
    plan: Plan
    spec: Spec
    number: int

    def epoch_of(self, step: int) -> float:
        """How many epochs ``step`` finished steps are."""
        return step / self.plan.steps_per_epoch


@dataclass(frozen=True)
class Teller:
    """What rank 0 says for all; on other ranks nothing happens."""

    attempt: Attempt
    leader: bool

    def journal(self, event: Event, *, durable: bool = True, **details: Any) -> None:
        """Append to the run's journal; ``durable`` waits for the disk."""
        if self.leader:
            record(self.attempt.run, event, durable=durable, attempt=self.attempt.number, **details)

    def warn(self, message: str) -> None:
        """Something that the user should know, in the log and in the journal."""
        self.say(f"warning: {message}")
        self.journal(Event.WARNING, message=message)

    def say(self, line: str) -> None:
        if self.leader:
            print(line, flush=True)


def derived_seed(*parts: object) -> int:
    """A seed for torch that is a function of ``parts`` alone."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
