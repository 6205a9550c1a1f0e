"""The one training loop, the same for every model, launch mode and number of ranks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lakering.errors import StoppedError, TrainingError
from lakering.lake import Lake
from recipes.training import Training
from training.agreement import validate_same
from training.checkpoint import Arrays, Checkpoint, hash_arrays
from training.distributed import World
from training.distributed.notice import Notice
from training.early_stopping import stopping_reason
from training.feed import Batch, Feed
from training.metrics import build_metrics
from training.models import Model
from training.not_finite import explain
from training.optimizers import Optimizer, name_of
from training.profile import Profile
from training.saver import Copies, Saver
from training.schedules import learning_rate
from training.step import Predictor, Step, StepResult
from training.steplog import StepLog, plain
from training.timing import StepTimes, time_facts
from training.user_metrics import with_own
from training.watch import Watch

log = logging.getLogger("training")


@dataclass
class Progress:
    """Where a training stands: the next step to do, and the validation figures of the epochs done."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    last_loss: float = math.nan


@dataclass(kw_only=True)
class Loop:
    """Trains ``model`` on ``feed`` from ``progress`` on; rank 0 writes checkpoints and the log of steps into ``run``.

    ``made_from`` is what a checkpoint tells of its origin: snapshot, recipe sections, code version."""

    world: World
    lake: Lake
    run: tuple[str, ...]
    model: Model
    settings: Training
    feed: Feed
    validation: Feed | None
    made_from: dict[str, Any]
    profile: Profile | None = None
    progress: Progress = field(default_factory=Progress)
    spot_notice: str | None = None

    def __post_init__(self) -> None:
        self.optimizer = Optimizer(self.settings, self.model.variables)
        self.times = StepTimes()
        self.seconds = 0.0
        self.steps_done = 0
        self.agreed_at = 0

    def weights(self) -> Arrays:
        return {name_of(variable): variable.numpy() for variable in self.model.variables}

    def slots(self) -> Arrays:
        return {name: variable.numpy() for name, variable in self.optimizer.slots.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes up weights, optimizer state and position. The checkpoint must be of the same model."""
        for variable in self.model.variables:
            variable.assign(checkpoint.weights[name_of(variable)])
        for name, variable in self.optimizer.slots.items():
            variable.assign(checkpoint.optimizer[name])
        facts = checkpoint.facts
        last_loss = facts.get("last_loss")
        self.progress = Progress(
            facts["epoch"], facts["step"], facts["global_step"], facts["epochs"], math.nan if last_loss is None else last_loss
        )

    def validate_agreement(self, **facts: str) -> None:
        """Raises TrainingError unless all ranks hold the same weights, optimizer state, position and other facts."""
        at = f"epoch {self.progress.epoch}, step {self.progress.step}"
        self.world.agree({**facts, "position": at, "weights": hash_arrays(self.weights(), self.slots())})
        self.agreed_at = self.progress.global_step

    def compare_weights(self) -> None:
        """Raises TrainingError, with the rank, the variable and the last step at which they agreed, unless the weights and
        optimizer state of all ranks are the same."""
        variables = {name_of(variable): variable for variable in self.model.variables} | self.optimizer.slots
        validate_same(self.world, variables, global_step=self.progress.global_step, agreed_at=self.agreed_at)
        self.agreed_at = self.progress.global_step

    def train(self) -> None:
        """Runs to the last step of the last epoch, or until early stopping ends it after an epoch.

        Raises TrainingError when a loss is not finite, with the newest checkpoint from before it left in place;
        StoppedError on all ranks when one of them is told to stop, once a checkpoint is written; UnsavedError when the last
        one could not be."""
        self.steps = StepLog(self.lake, self.run, self.progress.global_step, tensorboard=self.settings.tensorboard)
        if self.world.rank == 0:
            self.steps.drop_after()
        settings = self.settings
        self.saver = Saver(self.lake, self.run, self.steps, keep=settings.keep_checkpoints, keep_best=settings.keep_best,
                           epoch_steps=self.feed.num_steps)  # fmt: skip
        if self.world.rank == 0:
            variables = {name_of(variable): variable for variable in self.model.variables}
            self._copies = {"weights": Copies(variables), "slots": Copies(self.optimizer.slots)}
        self.notice = Notice(self.spot_notice)
        step = Step(self.model, self.optimizer, self.world, settings.seed, accumulate=settings.accumulate,
                    clip_norm=settings.clip_norm, label_smoothing=settings.label_smoothing,
                    batch_rows=settings.global_batch_size, compression=settings.compression,
                    sparse_gradients=settings.sparse_gradients, clock=not settings.deterministic)  # fmt: skip
        self.communication = step.communication.facts()
        if self.world.rank == 0:
            log.info(str(step.communication), extra={"facts": self.communication})
        predictor = Predictor(self.model)
        total = self.settings.epochs * self.feed.num_steps
        watch = Watch(total, self.progress.global_step, shown=self.world.rank == 0)
        with ExitStack() as held:
            if self.profile is not None:
                held.callback(self.profile.close)
            for part in (watch, self.feed, self.saver):
                held.enter_context(closing(part))
            held.enter_context(self.world.watch())
            held.enter_context(self.notice)
            while self.progress.epoch < self.settings.epochs and self.stopped_early() is None:
                times = StepTimes()
                self._train_epoch(step, total, watch, times)
                self._stop_if_told(total)  # a validation may take longer than the notice
                self._end_epoch(predictor, times)
            self.world.from_first("checkpoint", self.saver.finish)

    def _train_epoch(self, step: Step, total: int, watch: Watch, times: StepTimes) -> None:
        progress = self.progress
        before = replace(self.feed.statistics)
        started = time.perf_counter()
        self.world.doing(f"waiting for the input of global step {progress.global_step}")
        with closing(_guarded(self.feed.epoch(progress.epoch, progress.step))) as batches:
            times.ask()
            for found in batches:
                if self.profile is not None:
                    self.profile.before(progress.global_step)
                times.begin()
                batch, failure = (found, None) if isinstance(found, Batch) else (None, found)
                rate = learning_rate(self.settings, progress.global_step, total)
                self.world.doing(f"in global step {progress.global_step}", waiting=True)
                result = step(batch, progress.global_step, rate, stopping=self.notice.given is not None)
                if result.failed_ranks:
                    self.world.raise_together("feed", failure)
                if not (math.isfinite(result.loss) and (result.skipped or math.isfinite(result.gradient_norm))):
                    raise self._not_finite(result.loss, result.gradient_norm, batch)
                if result.skipped and (result.loss_scale or 0) < 1:
                    raise self._scale_too_small()
                rows = batch.global_rows if batch is not None else 0
                times.end(rows, result.allreduce_seconds)
                if self.profile is not None:
                    self.profile.after(progress.global_step)
                self._log_step(result, rate, rows, times)
                progress.step += 1
                progress.global_step += 1
                progress.last_loss = result.loss
                self.steps_done += 1
                self.saver.step_done()
                watch.step(progress.global_step, progress.epoch, result.loss, rows)
                self.world.reached(progress.global_step)
                if result.stopping_ranks and progress.global_step < total:
                    self._stop(total)
                going_on = progress.step < self.feed.num_steps
                saves = going_on and progress.global_step % self.settings.checkpoint_every == 0
                if saves or progress.global_step % self.settings.compare_every == 0:
                    self.compare_weights()  # before they are saved: a checkpoint is of weights that all ranks had
                if saves:
                    self.save()
                elif going_on and progress.global_step % self.settings.commit_every == 0:
                    self.world.commit(self.capture, self.steps.flush)
                self.world.doing(f"waiting for the input of global step {progress.global_step}")
                times.ask()
        times.seconds = time.perf_counter() - started
        self.seconds += time.perf_counter() - started
        fed = self.feed.statistics.since(before).facts()
        del fed["row_groups_read_by_another_rank_too"]  # a sum over the ranks alone tells it
        log.info("epoch fed", extra={"facts": {"epoch": progress.epoch, "rank": self.world.rank, **fed}})

    def _end_epoch(self, predictor: Predictor, times: StepTimes) -> None:
        with times.validating():
            figures = self.validate(predictor)
        self.progress.epochs.append({"epoch": self.progress.epoch, "train_loss": self.progress.last_loss, **figures})
        if self.world.rank == 0:
            self.steps.add_epoch(self.progress.global_step - 1, figures)
        spent = time_facts(self.world, times)
        log.info("epoch done", extra={"facts": {"epoch": self.progress.epoch, **figures, **spent}})
        self.progress.epoch += 1
        self.progress.step = 0
        self.compare_weights()
        stopped = self.stopped_early()
        self.world.agree({"early stopping": stopped or "goes on"})
        last = self.progress.epoch == self.settings.epochs or stopped is not None
        with times.pausing():
            self.save(must=self.settings.keep_best or last)
        self.times.add(times)

    def stopped_early(self) -> str | None:
        """Why the training ends before its last epoch, in words."""
        if self.progress.step or self.progress.epoch >= self.settings.epochs:
            return None
        return stopping_reason(self.settings.early_stopping, self.progress.epochs)

    def validate(self, predictor: Predictor) -> dict[str, float]:
        """The metrics of the validation split, over all ranks; empty without such a split."""
        if self.validation is None:
            return {}
        metrics = evaluate(self.world, self.validation, self.model, predictor)
        return {f"validation_{name}": value for name, value in metrics.figures().items()}

    def capture(self) -> Checkpoint:
        """All that ``restore`` takes up, copied: the next step does not change it."""
        return self._checkpoint(self.weights(), self.slots())

    def _checkpoint(self, weights: Arrays, slots: Arrays) -> Checkpoint:
        progress = self.progress
        facts = {"epoch": progress.epoch, "step": progress.step, "global_step": progress.global_step,
                 "epochs": plain(progress.epochs), "last_loss": plain(progress.last_loss),
                 # Whatever is drawn at random is drawn from the seed, a position and a row: there is no other state.
                 "random": {"seed": self.settings.seed}, **self.made_from}  # fmt: skip
        return Checkpoint(weights, slots, facts)

    def save(self, *, must: bool = False) -> None:
        """Copies a checkpoint on rank 0, which a thread writes; see ``Saver.save``."""
        if self.world.rank == 0:
            self.saver.save(self.progress.global_step, self._copied, must=must)
        self.world.commit(self.capture, self.steps.flush)

    def _copied(self) -> Checkpoint:
        return self._checkpoint(self._copies["weights"].take(), self._copies["slots"].take())

    def _stop_if_told(self, total: int) -> None:
        if any(self.world.gather(self.notice.given or "", "notice")):
            self._stop(total)

    def _stop(self, total: int) -> None:
        """Ends the training on all ranks, which are at the same step."""
        told = enumerate(self.world.gather(self.notice.given or "", "notice"))
        why = "; ".join(f"rank {rank}: {given}" for rank, given in told if given)
        self.save(must=True)
        self.world.from_first("checkpoint", self.saver.finish)
        raise StoppedError(f"a termination notice ({why}) stopped the training after {self.progress.global_step:,} of {total:,} "
                           "steps, and all of them are saved",
                           next_step="run the same command again: it goes on from there, on any number of ranks")  # fmt: skip

    def _log_step(self, result: StepResult, rate: float, rows: int, times: StepTimes) -> None:
        if self.world.rank == 0:
            at = self.progress
            facts = {"time": time.time(), "global_step": at.global_step, "epoch": at.epoch, "step": at.step, "loss": result.loss,
                     "rows": rows, "learning_rate": rate, "gradient_norm": result.gradient_norm,
                     "rows_per_second": rows / times.last, "seconds": times.last, "input_seconds": times.last_input,
                     "allreduce_seconds": times.last_allreduce}  # fmt: skip
            if result.loss_scale is not None:
                facts |= {"loss_scale": result.loss_scale, "skipped": result.skipped}
            self.steps.add(facts)
            if log.isEnabledFor(logging.INFO):
                log.info("step", extra={"facts": facts})

    def _scale_too_small(self) -> TrainingError:
        at = self.progress
        return TrainingError(
            f"epoch {at.epoch}, step {at.step}: the loss scale has fallen below 1, and the gradient still overflows",
            next_step="take training.precision mixed_bfloat16, whose range is float32's, or float32; or lower "
            "training.learning_rate or scale the features; the newest checkpoint is from before this step",
        )

    def _not_finite(self, loss: float, norm: float, batch: Batch | None) -> TrainingError:
        at = self.progress
        found, next_step = explain(self.world, self.feed, self.model.columns, batch, at.epoch, at.step)
        return TrainingError(f"epoch {at.epoch}, step {at.step}: the loss is {loss} and the gradient's norm {norm}; {found}",
                             next_step=f"{next_step}; the newest checkpoint is from before this step")  # fmt: skip


def evaluate(world: World, feed: Feed, model: Model, predictor: Callable[[Batch], npt.NDArray[np.float64]],
             also: Callable[[Batch, npt.NDArray[np.float64]], None] | None = None) -> Any:  # fmt: skip
    """The metrics of a split over all ranks; rows are independent, so their order does not matter. ``also`` is handed this
    rank's batches and their predictions."""
    metrics = with_own(build_metrics(model.columns.label), model.columns.label, model.own_metrics)

    def read() -> None:
        with closing(feed.epoch(0)) as batches:
            for batch in batches:
                if batch.num_rows:
                    predictions = predictor(batch)
                    metrics.add(predictions, batch.label, batch.weight)
                    if also is not None:
                        also(batch, predictions)

    world.together("evaluate", read)
    feed.close()
    metrics.state = world.sum(metrics.state, "metrics")
    return metrics


def _guarded(batches: Generator[Batch]) -> Generator[Batch | Exception]:
    """The batches, and in place of one that cannot be had its error: the step tells it to the other ranks."""
    with closing(batches):
        try:
            yield from batches
        except Exception as error:
            yield error


def set_weights(model: Model, weights: Arrays) -> None:
    """Sets a model's variables by name. Raises TrainingError when the names or shapes are of another model."""
    for variable in model.variables:
        stored = weights.get(name_of(variable))
        if stored is None or stored.shape != tuple(variable.shape):
            raise TrainingError(f"weights hold no {name_of(variable)} of shape {tuple(variable.shape)}")
        variable.assign(stored)


def broadcast_weights(world: World, variables: list[tf.Variable]) -> None:
    """Gives all ranks rank 0's values."""
    for i, variable in enumerate(variables):
        variable.assign(np.asarray(world.broadcast(variable.numpy(), f"broadcast.{i}")))
