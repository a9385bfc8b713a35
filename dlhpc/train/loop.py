"""The training, from top to bottom: resume or start → steps → validations and checkpoints → finish.

Nothing random has a state: the order of the pictures, their augmentation, dropout and the learning rate are functions
of (seed, step, rank). So a checkpoint needs only weights, optimiser, and what each rank has summed up so far, and a run
that was cut at any moment goes on to the same curves, to the last bit on the same hardware.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from dlhpc.data.batches import TrainingBatches, evaluation_batches
from dlhpc.data.packed import Packed
from dlhpc.data.samples import Step
from dlhpc.errors import AttemptExit, StorageError, UserError
from dlhpc.files import replace_json
from dlhpc.runs.checkpoints import list_checkpoints
from dlhpc.runs.curves import Point, forget_after, write_points
from dlhpc.runs.directory import RunDirectory
from dlhpc.runs.journal import Event, record
from dlhpc.runs.measures import DEFAULT_BEST, better, measure_in_words
from dlhpc.runs.plan import Plan
from dlhpc.spec.models import Spec
from dlhpc.train.checkpoint import Best, Checkpoints, Loaded, Position, TrainerState, describe, load, name_of
from dlhpc.train.collective import Collective
from dlhpc.train.evaluate import RankState, evaluate
from dlhpc.train.gradients import Agreement, GradientBuckets
from dlhpc.train.models import batch_norms, running_statistics
from dlhpc.train.optimisers import make_optimiser, set_rate
from dlhpc.train.progress import Clock, progress_line
from dlhpc.train.provenance import this_rank, write_provenance
from dlhpc.train.schedule import rate_at
from dlhpc.train.stop import StopRequests
from dlhpc.train.tasks import make_task
from dlhpc.train.tasks.base import Evaluation, to_device


@dataclass(frozen=True)
class Attempt:
    """Which attempt of which run this is."""

    run: RunDirectory
    plan: Plan
    spec: Spec
    number: int


class Training:
    """One attempt on one rank. ``run()`` gives the exit code that all ranks agree on."""

    def __init__(
        self, attempt: Attempt, packed: Packed, collective: Collective, stop: StopRequests, device: torch.device
    ) -> None:
        self.attempt, self.packed, self.collective, self.stop, self.device = attempt, packed, collective, stop, device
        self.run_directory, self.plan, self.spec = attempt.run, attempt.plan, attempt.spec
        self.leader = collective.rank == 0
        spec, plan = self.spec, self.plan
        seed = spec.training.seed

        torch.manual_seed(derived_seed(seed, "weights"))
        self.task = make_task(spec, packed)
        self.model = self.task.model.to(device)
        self.model.train()
        self.batch_norms = batch_norms(self.model)
        self.rank_state = RankState(self.model)
        self.gradients = GradientBuckets(self.model.parameters(), collective)
        self.optimiser = make_optimiser(spec.optimizer, self.model.parameters())

        self.batches = TrainingBatches(
            packed, spec.augment, seed, collective.rank, collective.size, plan.steps_per_epoch, spec.training.accumulate
        )
        self.validation_every = spec.training.validation_interval * plan.steps_per_epoch
        self.snapshot_every = spec.training.snapshot_interval * plan.steps_per_epoch
        self.checkpoints = Checkpoints(attempt.run, spec.training.keep_every, describe(spec, packed))

        self.position = Position()
        # The task's sums and the number of samples, since the last point of the training curves.
        self.running = torch.zeros(len(self.task.train_sums) + 1, dtype=torch.float64, device=device)
        self.best_by = spec.training.best or DEFAULT_BEST[spec.task]
        self.metrics: dict[str, float] = {}
        self.stop_reason: str | None = None
        self.clock = Clock()

    def run(self) -> AttemptExit:
        """Train to the end, or until something asks to stop."""
        self.resume_or_start()
        if self.is_complete():
            self.say(f"training is complete already: {self.plan.total_steps} steps are done")
            return self.finish()
        self.measure_and_save()  # what was due where the last attempt had to leave
        while self.position.step < self.plan.total_steps:
            epoch, first_step = divmod(self.position.step, self.plan.steps_per_epoch)
            for step in self.batches.epoch(epoch, first_step):
                agreed = self.train_step(step)
                if not agreed.finite:
                    return self.give_up()
                self.position.step += 1
                if agreed.stop:
                    return self.leave()
                self.measure_and_save()
        return self.finish()

    def train_step(self, step: Step) -> Agreement:
        """One optimiser step over a global batch. With a loss that is not finite, weights stay as they are."""
        began = time.perf_counter()
        torch.manual_seed(derived_seed(self.spec.training.seed, "dropout", self.position.step, self.collective.rank))
        set_rate(self.optimiser, self.rate(self.position.step))
        self.stop_reason = self.stop.reason(self.collective.rank, self.seconds_needed())
        self.gradients.begin(stop=self.stop_reason is not None)

        portions = [portion for portion in step.portions if len(portion)]
        for portion in portions:
            batch = to_device(portion, self.device)
            with running_statistics(self.batch_norms if len(portion) == 1 else []):
                losses = self.task.losses(batch)
            # Summed over portions and ranks this is the mean over the global batch, however unevenly it is shared.
            loss = losses.total / step.global_count
            self.gradients.watch(loss)
            if portion is portions[-1]:
                self.gradients.arm()
            loss.backward()  # type: ignore[no-untyped-call]
            self.running[:-1] += losses.sums
            self.running[-1] += len(portion)

        agreed = self.gradients.finish()
        if agreed.finite:
            self.optimiser.step()
        self.clock.step(step.global_count, time.perf_counter() - began)
        return agreed

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, counted from 0."""
        progress, epoch = step / self.plan.total_steps, (step + 1) / self.plan.steps_per_epoch
        return rate_at(self.spec.learning_rate, self.plan.base_rate, progress, epoch)

    def seconds_needed(self) -> float:
        """From now on: one more step, the validation that may follow it, and saving."""
        saving = max(self.plan.save_margin_seconds, 2 * self.clock.checkpoint_seconds)
        validating = self.clock.validation_seconds if self.validation_is_due(self.position.step + 1) else 0.0
        return saving + self.clock.step_seconds + validating

    def validation_is_due(self, step: int) -> bool:
        return is_due(step, self.validation_every) or step == self.plan.total_steps

    def snapshot_is_due(self, step: int) -> bool:
        return is_due(step, self.snapshot_every) or step == self.plan.total_steps

    def is_complete(self) -> bool:
        return self.position.measured_step == self.position.step == self.plan.total_steps

    # ---- Between two steps

    def measure_and_save(self) -> None:
        """The validation, checkpoint and epoch line that are due after the steps done so far, each once."""
        position, step = self.position, self.position.step
        measured = best = False
        if self.validation_is_due(step) and position.measured_step < step:
            best = self.validate()
            measured = True
        snapshot = self.snapshot_is_due(step) and position.saved_step < step
        if snapshot or best or (measured and step == self.plan.total_steps):
            self.save(snapshot)
        self.end_epoch()

    def validate(self) -> bool:
        """Measure, write points (and the confusion matrix); gives whether this is the best so far."""
        began = time.perf_counter()
        step = self.position.step
        with self.rank_state.averaged(self.collective):
            batches = evaluation_batches(
                self.packed,
                "val",
                self.spec.augment,
                self.spec.training.batch_size,
                self.collective.rank,
                self.collective.size,
            )
            found = evaluate(self.task, batches, self.device, self.collective)
        *sums, samples = self.collective.sum(self.running.cpu().clone()).tolist()
        self.running.zero_()
        trained = self.task.train_metrics(sums, max(1.0, samples))
        self.metrics = {f"train_{name}": value for name, value in trained.items()}
        self.metrics["train_learning_rate"] = self.rate(step - 1)
        self.metrics |= {f"val_{name}": value for name, value in found.metrics.items()}
        self.position.measured_step = step
        epoch = step / self.plan.steps_per_epoch
        best = self.is_best(found.metrics["loss"])
        if best:
            value = self.metrics[self.best_by]
            self.position.best = Best(name_of(step), epoch, step, self.best_by, value, found.metrics["loss"])
        if self.leader:
            now = time.time()
            points = [
                Point(epoch, step, *_split_and_name(key), value=value, time=now) for key, value in self.metrics.items()
            ]
            write_points(self.run_directory.curves, points)
            if best:
                self.write_evaluation(found, epoch)
        self.clock.validation_seconds = time.perf_counter() - began
        return best

    def is_best(self, loss: float) -> bool:
        """Whether the validation just made is the best of this run."""
        if self.best_by not in self.metrics:
            raise UserError(
                f"training.best is {self.best_by}, which is not measured in this training",
                remedy=f"Choose one of: {', '.join(sorted(self.metrics))}.",
            )
        value, known = self.metrics[self.best_by], self.position.best
        if known is None:
            return better(self.best_by, value, math.nan) and math.isfinite(loss)
        return known.beaten_by(value, loss)

    def write_evaluation(self, found: Evaluation, epoch: float) -> None:
        replace_json(
            self.run_directory.evaluation,
            {
                "task": self.spec.task,
                "split": "val",
                "epoch": epoch,
                "step": self.position.step,
                **found.metrics,
                **found.details,
            },
        )

    def save(self, snapshot: bool) -> None:
        """Write a checkpoint; all ranks take part, rank 0 writes."""
        began = time.perf_counter()
        position, step = self.position, self.position.step
        floats, counters = self.rank_state.gather(self.collective)
        running = self.collective.gather(self.running.cpu())
        position.saved_step = step
        position.snapshots += snapshot
        with self.rank_state.averaged(self.collective):
            if self.leader:
                state = TrainerState(self.optimiser.state_dict(), floats, counters, running)
                metrics = self.metrics if position.measured_step == step else {}
                name = self.checkpoints.save(
                    position, self.plan.steps_per_epoch, metrics, self.model.state_dict(), state, snapshot=snapshot
                )
                epoch = step / self.plan.steps_per_epoch
                self.journal(Event.CHECKPOINTED, epoch=epoch, step=step, checkpoint=name)
        self.clock.checkpoint_seconds = time.perf_counter() - began

    def end_epoch(self) -> None:
        """At the end of an epoch: a line for people and one for the journal."""
        epoch, rest = divmod(self.position.step, self.plan.steps_per_epoch)
        if rest or not self.clock.epoch_pictures:
            return
        epochs = self.spec.training.epochs
        remaining = self.plan.total_steps - self.position.step
        self.say(progress_line(epoch, epochs, self.metrics, self.clock.seconds_left(remaining)))
        self.journal(
            Event.EPOCH,
            epoch=epoch,
            epochs=epochs,
            seconds=round(self.clock.epoch_seconds, 3),
            pictures_per_second=round(self.clock.epoch_pictures / max(1e-9, self.clock.epoch_seconds), 1),
        )
        self.clock.new_epoch()

    # ---- Beginning and ending

    def resume_or_start(self) -> None:
        """Take up the newest whole checkpoint, or begin: fresh weights, the same on all ranks."""
        # Every rank says where it is before anything is written.
        ranks = self.collective.gather_json(this_rank(self.device))
        loaded: Loaded | None = None
        if self.leader:
            hosts = list(dict.fromkeys(rank["host"] for rank in ranks))
            job_id = os.environ.get("DLHPC_JOB_ID") or None
            self.journal(Event.STARTED, job_id=job_id, hosts=hosts, ranks=self.collective.size)
            write_provenance(self.run_directory, self.plan, self.packed, self.collective, self.attempt.number, ranks)
            self.checkpoints.tidy()
            loaded = self.checkpoints.newest(self.warn)
        name = self.collective.share_json(None if loaded is None else loaded.record.name)
        if name is None:
            for parameter in self.model.parameters():
                weights = parameter.detach().contiguous()
                self.collective.broadcast(weights)
                parameter.data.copy_(weights)
        else:
            self.take_up(loaded or self.find(name))
        if self.leader:
            self.checkpoints.forget_after(self.position)
            forget_after(self.run_directory.curves, self.position.step)
            if name is not None:
                epoch = self.position.step / self.plan.steps_per_epoch
                self.journal(Event.RESUMED, epoch=epoch, step=self.position.step, checkpoint=name)
                self.say(f"going on after epoch {epoch:.4g} from {name}")

    def find(self, name: str) -> Loaded:
        """The checkpoint that rank 0 chose, as this rank sees it."""
        for record_ in list_checkpoints(self.run_directory):
            if record_.name == name:
                return load(record_)
        raise StorageError(
            f"rank 0 sees the checkpoint {name}, but this node does not",
            where=self.run_directory.checkpoints,
            remedy="Check that the run directory is on storage that all nodes share.",
        )

    def take_up(self, loaded: Loaded) -> None:
        state = loaded.state
        try:
            self.model.load_state_dict(loaded.weights)
            self.optimiser.load_state_dict(state.optimiser)
        except (RuntimeError, ValueError, KeyError) as error:
            raise StorageError(
                f"does not fit the network and optimiser of the plan: {str(error).splitlines()[0]}",
                where=loaded.record.manifest,
                remedy="Submit the run anew from its spec.yaml.",
            ) from error
        self.position = loaded.position
        self.metrics = {key: math.nan if value is None else value for key, value in loaded.record.metrics.items()}
        rank = self.collective.rank
        if len(state.running) == self.collective.size:
            self.rank_state.write(state.rank_floats[rank], state.rank_counters[rank])
            self.running.copy_(state.running[rank])
        elif self.leader:  # another number of ranks: the mean statistics are in the weights, the sums go on here
            self.warn(f"the checkpoint is of {len(state.running)} ranks: the curves go on, but not to the last bit")
            self.running.copy_(state.running.sum(dim=0))

    def leave(self) -> AttemptExit:
        """Save and ask for another attempt. A validation that is due here is the next attempt's first act."""
        reasons = [reason for reason in self.collective.gather_json(self.stop_reason) if reason]
        self.save(self.snapshot_is_due(self.position.step))
        self.end_epoch()
        epoch = self.position.step / self.plan.steps_per_epoch
        self.journal(Event.STOPPED, reason=reasons[0] if reasons else "a rank asked to stop")
        self.say(f"saved after epoch {epoch:.4g} of {self.spec.training.epochs} and leaving: {', '.join(reasons)}")
        return AttemptExit.CONTINUE

    def give_up(self) -> AttemptExit:
        """The loss is not a finite number on some rank."""
        epoch = self.position.step / self.plan.steps_per_epoch
        reason = (
            f"the training loss is not a finite number any more in epoch {math.floor(epoch) + 1} "
            f"(step {self.position.step + 1}, learning rate {self.rate(self.position.step):.3g})"
        )
        advice = (
            f"Try a lower learning rate, for example learning_rate.base: {self.spec.learning_rate.base / 10:.3g}, "
            "or a warm-up (learning_rate.warmup_epochs: 1); if that does not help, look for odd pictures in the data."
        )
        self.say(f"{reason}\n  → {advice}")
        self.journal(Event.FAILED, code=int(AttemptExit.BAD_CONFIGURATION), reason=f"{reason}. {advice}")
        return AttemptExit.BAD_CONFIGURATION

    def finish(self) -> AttemptExit:
        best = self.position.best
        details: dict[str, Any] = {}
        if best is not None:
            details = {
                "best_epoch": best.epoch, "best_measure": best.measure, "best_value": best.value,
                "checkpoint": best.checkpoint,
            }  # fmt: skip
            self.say(f"finished; best {measure_in_words(best.measure, best.value)} after epoch {best.epoch:.4g}")
        self.journal(Event.FINISHED, code=int(AttemptExit.FINISHED), **details)
        return AttemptExit.FINISHED

    # ---- What rank 0 does for all

    def journal(self, event: Event, **details: Any) -> None:
        if self.leader:
            record(self.run_directory, event, attempt=self.attempt.number, **details)

    def warn(self, message: str) -> None:
        self.say(f"warning: {message}")
        self.journal(Event.WARNING, message=message)

    def say(self, line: str) -> None:
        if self.leader:
            print(line, flush=True)


def is_due(step: int, every: float) -> bool:
    """Whether ``step`` is one of the multiples of ``every`` steps, rounded; every step if ``every`` is below one."""
    return step > 0 and round(round(step / every) * every) == step


def derived_seed(*parts: object) -> int:
    """A seed for torch that is a function of ``parts`` alone."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _split_and_name(key: str) -> tuple[str, str]:
    """``val_top5_accuracy`` is ``top5_accuracy`` of the split ``val``."""
    split, _, name = key.partition("_")
    return split, name
