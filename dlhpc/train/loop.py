"""The training, from top to bottom: resume or start → steps → validations and checkpoints → finish.

Nothing random has a state: the order of the samples, their augmentation, dropout and the learning rate are functions
of (seed, step, rank). So a checkpoint needs only weights, optimiser, and what each rank has summed up so far, and a run
that was cut at any moment goes on to the same curves, to the last bit on the same hardware.

This module says what happens when. A step is in ``step``, what becomes of measurements in ``measuring``, how an attempt
begins in ``beginning``, what is settled on the node in ``trials`` and ``chosen``.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch

from dlhpc.data.batches import TrainingBatches, default_threads, evaluation_batches
from dlhpc.data.packed import Packed
from dlhpc.errors import AttemptExit
from dlhpc.runs.journal import Event
from dlhpc.runs.measures import measure_in_words
from dlhpc.train.attempt import Attempt, Teller, derived_seed
from dlhpc.train.beginning import begin
from dlhpc.train.checkpoint import Checkpoints, Pending, describe
from dlhpc.train.chosen import Chosen, read_chosen, write_chosen
from dlhpc.train.collective import Collective
from dlhpc.train.evaluate import RankState, evaluate
from dlhpc.train.feed import DeviceStep, feed_steps, making
from dlhpc.train.measuring import early_end, new_best, write_curves, write_evaluation
from dlhpc.train.memory import does_not_suffice
from dlhpc.train.optimisers import state_of
from dlhpc.train.position import TrainerState
from dlhpc.train.precision import check_precision
from dlhpc.train.progress import Clock, progress_line
from dlhpc.train.provenance import this_rank, write_provenance
from dlhpc.train.saver import Saver
from dlhpc.train.schedule import rate_at
from dlhpc.train.step import Outcome, Stepper
from dlhpc.train.stop import StopRequests
from dlhpc.train.system import Meter, over_ranks
from dlhpc.train.tasks import make_task
from dlhpc.train.trials import choose, missing_compiler, use_compiled

__all__ = ["Attempt", "Training", "is_due"]


class Training:
    """One attempt on one rank. ``run()`` gives the exit code that all ranks agree on."""

    def __init__(
        self, attempt: Attempt, packed: Packed, collective: Collective, stop: StopRequests, device: torch.device
    ) -> None:
        self.attempt, self.packed, self.collective, self.stop, self.device = attempt, packed, collective, stop, device
        self.plan, self.spec = attempt.plan, attempt.spec
        self.teller = Teller(attempt, leader=collective.rank == 0)
        training = self.spec.training

        torch.manual_seed(derived_seed(training.seed, "weights"))
        self.task = make_task(self.spec, packed)
        self.model = self.task.model.to(device)
        if training.sync_batch_norm and collective.size > 1:
            from dlhpc.train.sync_norm import convert_sync_norm

            convert_sync_norm(self.model, collective)
        self.model.train()
        self.rank_state = RankState(self.model)
        self.stepper = Stepper(self.task, self.spec, collective, device)
        self.checkpoints = Checkpoints(attempt.run, training.keep_every, describe(self.spec, packed))
        self.saver = Saver(self.checkpoints, self.tell_of_checkpoint)
        self.stepper.before_update = self.saver.release

        self.validation_every = training.validation_interval * self.plan.steps_per_epoch
        self.snapshot_every = training.snapshot_interval * self.plan.steps_per_epoch
        threads = default_threads(packed, self.spec.augment, self.plan.cores_per_rank)
        self.making = {"threads": threads, **making(device)}
        self.chosen = Chosen()
        self.clock = Clock()
        self.meter = Meter(device, collective.local_rank)
        self.metered = any(collective.gather_json(not self.meter.silent))
        self.stop_reason: str | None = None

    def run(self) -> AttemptExit:
        """Train to the end, or until something asks to stop."""
        self.resume_or_start()
        if self.is_complete():
            self.teller.say(f"training is complete already: {self.position.step} steps are done")
            return self.finish()
        self.settle()
        self.measure_and_save()  # what was due where the last attempt had to leave
        while not self.is_complete():
            outcome = self.train()
            if outcome.out_of_memory:
                self.halve_batch()
            elif not outcome.finite:
                return self.give_up()
            elif outcome.stop:
                return self.leave()
        return self.finish()

    def train(self) -> Outcome:
        """Steps until training is complete, or one of them ends otherwise than well."""
        position, outcome = self.position, Outcome()
        while not self.is_complete():
            epoch, first_step = divmod(position.step, self.plan.steps_per_epoch)
            with contextlib.closing(self.steps(epoch, first_step)) as steps:
                for step in steps:
                    outcome = self.train_step(step)
                    if outcome.out_of_memory or not outcome.finite:
                        return outcome
                    position.step += 1
                    if outcome.stop:
                        return outcome
                    self.measure_and_save()
                    if position.ended is not None:
                        return outcome
        return outcome

    def steps(self, epoch: int, first_step: int) -> Generator[DeviceStep]:
        """The steps of ``epoch`` (from 0), beginning with ``first_step``, where the network is."""
        return feed_steps(self.batches.epoch(epoch, first_step), self.device, empty=self.stepper.sync_norm)

    def make_batches(self) -> TrainingBatches:
        """This rank's share of the training set, in portions of the size that was settled."""
        return TrainingBatches(
            self.packed, self.spec.augment, self.spec.training.seed, self.collective.rank, self.collective.size,
            self.plan.steps_per_epoch, self.chosen.accumulate(self.spec.training), **self.making,
        )  # fmt: skip

    def train_step(self, step: DeviceStep) -> Outcome:
        """One optimiser step. With a loss that is not finite, weights stay as they are."""
        began = time.perf_counter()
        number = self.position.step
        self.stop_reason = self.stop.reason(self.collective.rank, self.seconds_needed())
        seed = derived_seed(self.spec.training.seed, "dropout", number, self.collective.rank)
        outcome = self.stepper.take(step, number, seed, self.rate(number), stop=self.stop_reason is not None)
        if not outcome.out_of_memory:
            self.clock.step(step.global_count, time.perf_counter() - began)
        return outcome

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, counted from 0."""
        progress, epoch = step / self.plan.total_steps, self.attempt.epoch_of(step + 1)
        return rate_at(self.spec.learning_rate, self.plan.base_rate, progress, epoch)

    def seconds_needed(self) -> float:
        """From now on: one more step, the validation that may follow it, and saving."""
        saving = max(self.plan.save_margin_seconds, 2 * self.saver.seconds)
        validating = self.clock.validation_seconds if self.validation_is_due(self.position.step + 1) else 0.0
        return saving + self.clock.step_seconds + validating

    def validation_is_due(self, step: int) -> bool:
        return is_due(step, self.validation_every) or step == self.plan.total_steps

    def snapshot_is_due(self, step: int) -> bool:
        return is_due(step, self.snapshot_every) or step == self.plan.total_steps

    def is_complete(self) -> bool:
        position = self.position
        return position.ended is not None or position.measured_step == position.step == self.plan.total_steps

    # ---- Between two steps

    def measure_and_save(self) -> None:
        """The validation, checkpoint and epoch line that are due after the steps done so far, each once."""
        position, step = self.position, self.position.step
        measured = best = False
        if self.validation_is_due(step) and position.measured_step < step:
            best = self.validate()
            measured = True
        snapshot = self.snapshot_is_due(step) and position.saved_step < step
        if snapshot or best or (measured and self.is_complete()):
            self.save(snapshot)
        self.end_epoch()

    def validate(self) -> bool:
        """Measure, and write points and tables; gives whether this is the best so far."""
        began = time.perf_counter()
        position, stepper, task = self.position, self.stepper, self.task
        found, batch_size = self.evaluate()
        if batch_size < self.evaluation_batch():
            self.settled(replace(self.chosen, evaluation_batch=batch_size))
            self.teller.warn(f"memory did not suffice for measuring: it now takes {batch_size} samples at a time")
        *sums, samples = self.collective.sum(stepper.running.cpu().clone()).tolist()
        stepper.running.zero_()
        trained = task.train_metrics(sums, max(1.0, samples))
        self.metrics = {f"train_{name}": value for name, value in trained.items()}
        self.metrics["train_learning_rate"] = self.rate(position.step - 1)
        self.metrics |= {f"val_{name}": value for name, value in found.metrics.items()}
        position.measured_step = position.step
        best = new_best(self.attempt, position, self.metrics)
        if self.teller.leader:
            write_curves(self.attempt, position.step, self.metrics)
            if best is not None:
                write_evaluation(self.attempt, position.step, found)
        position.best = best or position.best
        if position.step < self.plan.total_steps:
            position.ended = early_end(self.attempt, position, self.metrics)
        self.clock.validation_seconds = time.perf_counter() - began
        return best is not None

    def evaluate(self) -> Any:
        """The validation set through the weights that are saved for prediction."""
        rank, ranks = self.collective.rank, self.collective.size
        with self.averaged_weights(), self.rank_state.averaged(self.collective):
            return evaluate(
                self.task,
                lambda size: evaluation_batches(
                    self.packed, "val", self.spec.augment, size, rank, ranks, **self.making
                ),
                self.evaluation_batch(),
                self.stepper.precision,
                self.device,
                self.collective,
            )

    def evaluation_batch(self) -> int:
        return self.chosen.evaluation_batch or self.chosen.batch_size(self.spec.training)

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the network holds the moving average of its weights, where there is one."""
        return contextlib.nullcontext() if self.stepper.average is None else self.stepper.average.in_place()

    def save(self, snapshot: bool) -> None:
        """Begin to write a checkpoint; all ranks take part, a thread of rank 0 writes."""
        position, stepper = self.position, self.stepper
        if stepper.scale is not None:
            position.loss_scale, position.scale_steps = stepper.scale.value, stepper.scale.steps
        position.saved_step = position.step
        position.snapshots += snapshot
        floats, counters = self.rank_state.gather(self.collective)
        running = self.collective.gather(stepper.running.cpu())
        state = TrainerState(state_of(stepper.optimiser), floats, counters, running)
        with self.averaged_weights():
            if stepper.average is not None:
                state.averaged_floats = self.rank_state.gather(self.collective)[0]
                state.raw = stepper.average.trained()
            with self.rank_state.averaged(self.collective):
                if self.teller.leader:
                    weights = self.model.state_dict()
                    # Statistics change with the next forward pass, and right after this block: they are copied.
                    weights |= {name: one.clone() for name, one in self.model.named_buffers() if name in weights}
                    metrics = self.metrics if position.measured_step == position.step else {}
                    steps = self.plan.steps_per_epoch
                    pending = self.checkpoints.prepare(position, steps, metrics, weights, state, snapshot=snapshot)
                    self.saver.start(pending)

    def tell_of_checkpoint(self, written: Pending) -> None:
        """Called by the thread that has written it."""
        step = int(written.manifest["step"])
        epoch = self.attempt.epoch_of(step)
        self.teller.journal(Event.CHECKPOINTED, epoch=epoch, step=step, checkpoint=written.name)

    def end_epoch(self) -> None:
        """At the end of an epoch: what it took, as points, as a line for people and as one for the journal."""
        epoch, rest = divmod(self.position.step, self.plan.steps_per_epoch)
        if (rest and self.position.ended is None) or not self.clock.epoch_samples:
            return
        system = over_ranks(self.collective.gather_json(self.meter.epoch())) if self.metered else {}
        if self.teller.leader:
            seconds, rate = self.clock.epoch_seconds, self.clock.samples_per_second
            system = {"seconds": self.clock.epoch_wall_seconds, "samples_per_second": rate, **system}
            write_curves(self.attempt, self.position.step, {f"system_{name}": one for name, one in system.items()})
            epochs = self.spec.training.epochs
            remaining = self.clock.seconds_left(self.plan.total_steps - self.position.step)
            self.teller.say(progress_line(epoch, epochs, self.metrics, remaining))
            self.teller.journal(
                Event.EPOCH, durable=False, epoch=epoch, epochs=epochs, seconds=round(seconds, 3),
                pictures_per_second=round(rate, 1),
            )  # fmt: skip
        self.clock.new_epoch()

    # ---- Beginning, settling, ending

    def resume_or_start(self) -> None:
        # Every rank says where it is before anything is written.
        ranks = self.collective.gather_json(this_rank(self.device))
        if self.teller.leader:
            hosts = list(dict.fromkeys(rank["host"] for rank in ranks))
            job_id = os.environ.get("DLHPC_JOB_ID") or None
            self.teller.journal(Event.STARTED, job_id=job_id, hosts=hosts, ranks=self.collective.size)
            write_provenance(self.attempt.run, self.plan, self.packed, self.collective, self.attempt.number, ranks)
        found = begin(self.attempt, self.teller, self.checkpoints, self.stepper, self.rank_state, self.collective)
        self.position, self.metrics = found.position, found.metrics

    def settle(self) -> None:
        """Take what earlier attempts chose for this run, or choose."""
        training = self.spec.training
        mine = vars(read_chosen(self.attempt.run, training)) if self.teller.leader else None
        self.chosen = Chosen(**self.collective.share_json(mine))
        self.batches = self.make_batches()
        if (training.precision == "auto" or training.compile != "no") and not self.chosen.seconds:
            epoch, first_step = divmod(self.position.step, self.plan.steps_per_epoch)
            with contextlib.closing(self.steps(epoch, first_step)) as steps:
                left = self.plan.total_steps - self.position.step
                first = next(steps)
                self.settled(choose(self.chosen, training, self.stepper, first, left, self.collective, self.teller))
        check_precision(self.chosen.precision or "fp32", self.device)
        self.stepper.use(self.chosen.precision or "fp32", self.stepper.scale)
        if self.chosen.compile:
            lacking = next(filter(None, self.collective.gather_json(missing_compiler(self.device))), "")
            if lacking:
                self.teller.warn(f"{lacking}: training without")
            use_compiled(self.stepper, not lacking)
        self.clock = Clock()  # what was tried here is no part of an epoch

    def settled(self, chosen: Chosen) -> None:
        self.chosen = chosen
        if self.teller.leader:
            write_chosen(self.attempt.run, chosen)

    def halve_batch(self) -> None:
        """A step did not fit into the memory of some rank: smaller portions, more of them, the same global batch."""
        training = self.spec.training
        size = self.chosen.batch_size(training)
        share = -(-self.plan.global_batch // self.collective.size)
        if size == 1 or self.chosen.accumulate(training) >= share:
            raise does_not_suffice("training")
        self.settled(replace(self.chosen, halvings=self.chosen.halvings + 1))
        self.batches = self.make_batches()
        self.teller.warn(
            f"memory does not suffice for {size} samples at a time : "
            f"going on with {self.chosen.batch_size(training)} and accumulate: {self.chosen.accumulate(training)}; "
            "the global batch stays the same"
        )

    def leave(self) -> AttemptExit:
        """Save and ask for another attempt. A validation that is due here is the next attempt's first act."""
        reasons = [reason for reason in self.collective.gather_json(self.stop_reason) if reason]
        self.save(self.snapshot_is_due(self.position.step))
        self.end_epoch()
        self.saver.wait()
        epoch = self.attempt.epoch_of(self.position.step)
        self.teller.journal(Event.STOPPED, reason=reasons[0] if reasons else "a rank asked to stop")
        epochs = self.spec.training.epochs
        self.teller.say(f"saved after epoch {epoch:.4g} of {epochs} and leaving: {', '.join(reasons)}")
        return AttemptExit.CONTINUE

    def give_up(self) -> AttemptExit:
        """The loss is not a finite number on some rank."""
        self.saver.wait()
        step = self.position.step
        reason = (
            f"the training loss is not a finite number any more in epoch {math.floor(self.attempt.epoch_of(step)) + 1} "
            f"(step {step + 1}, learning rate {self.rate(step):.3g})"
        )
        advice = (
            f"Try a lower learning rate, for example learning_rate.base: {self.spec.learning_rate.base / 10:.3g}, "
            "or a warm-up (learning_rate.warmup_epochs: 1); if that does not help, look for odd samples in the data."
        )
        if self.stepper.precision == "fp16":
            advice += " Numbers in fp16 end at 65504: training.precision: bf16 has the range of fp32."
        self.teller.say(f"{reason}\n  → {advice}")
        self.teller.journal(Event.FAILED, code=int(AttemptExit.BAD_CONFIGURATION), reason=f"{reason}. {advice}")
        return AttemptExit.BAD_CONFIGURATION

    def finish(self) -> AttemptExit:
        self.saver.wait()
        best, ended = self.position.best, self.position.ended
        details: dict[str, Any] = {} if ended is None else {"reason": ended}
        if ended is not None:
            self.teller.say(ended)
        if best is not None:
            details |= {
                "best_epoch": best.epoch, "best_measure": best.measure, "best_value": best.value,
                "checkpoint": best.checkpoint,
            }  # fmt: skip
            self.teller.say(f"finished; best {measure_in_words(best.measure, best.value)} after epoch {best.epoch:.4g}")
        self.teller.journal(Event.FINISHED, code=int(AttemptExit.FINISHED), **details)
        return AttemptExit.FINISHED


def is_due(step: int, every: float) -> bool:
    """Whether ``step`` is one of the multiples of ``every`` steps, rounded; every step if ``every`` is below one."""
    return step > 0 and round(round(step / every) * every) == step
