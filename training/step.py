"""One step as a compiled function: gradients of the local rows, one grouped allreduce, one update."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training.accumulate import sum_in_parts
from training.distributed import World
from training.feed import Batch
from training.gradients import Communication, Exchange, Gradient, global_norm, lookups_per_row, may_be_sparse, on_values
from training.models import Features, Label, Model, ModelColumns
from training.models.dropout import Dropout, row_keys
from training.optimizers import Optimizer
from training.timing import timed


@dataclass(frozen=True)
class StepResult:
    """Of the whole global batch: mean loss, norm of the gradient, how many ranks could not read their part, and how many
    were told to stop. Of this rank: the seconds of its allreduce, waiting for the others included. Where losses are scaled,
    the scale that the next step has; a ``skipped`` step changed nothing, since its scaled gradient overflowed."""

    loss: float
    gradient_norm: float
    failed_ranks: int
    stopping_ranks: int = 0
    allreduce_seconds: float = 0.0
    loss_scale: float | None = None
    skipped: bool = False


class Step:
    """Gradients are sums over rows, allreduced as sums in the order of the model's variables, and divided by the sum of
    weights of all rows: the result is the mean over the global batch whatever share of it a rank has, none too.

    A rank's rows are worked through in ``accumulate`` parts. The mean is clipped to ``clip_norm``, the norm of all gradients
    together (Pascanu, Mikolov, Bengio 2013); the norm that is told is from before. ``label_smoothing`` s mixes a binary label
    with the even odds, (1 - s) label + s / 2, and gives each of K classes s / K (Szegedy et al. 2016).

    ``batch_rows``, the rows of a global batch, tell whether a table's gradient is worth sending by its rows (never with 0, and
    not of parts), and what a scaled loss is divided by, so that float16 holds gradients of any size of batch.
    ``compression`` and the sparse gradients are ``Exchange``'s. Without ``clock`` the allreduce is not timed: TensorFlow has
    no clock in its deterministic mode."""

    def __init__(self, model: Model, optimizer: Optimizer, world: World, seed: int, *, accumulate: int = 1,
                 clip_norm: float | None = None, label_smoothing: float = 0.0, batch_rows: int = 0,
                 compression: str = "none", sparse_gradients: str = "auto", clock: bool = True) -> None:  # fmt: skip
        self._optimizer, self._seed = optimizer, seed
        self._columns = model.columns
        variables, loss_scale = model.variables, optimizer.loss_scale
        dtype = variables[0].dtype

        self._draws = True

        def scaled(total: tf.Tensor) -> tf.Tensor:
            # By a power of two, so that unscaling loses no bit.
            return total if loss_scale is None else total * (loss_scale.scale / 2.0 ** max(batch_rows - 1, 0).bit_length())

        def sums(floats: tf.Tensor, ids: tf.Tensor, label: tf.Tensor, weight: tf.Tensor, keys: tf.Tensor,
                 *cells: tf.Tensor) -> list[Gradient]:  # fmt: skip
            features = _features(model.columns, floats, ids, cells)
            dropouts = [Dropout(keys)]
            with tf.GradientTape() as tape:
                scores = tf.cast(model.scores(features, dropouts[0]), dtype)
                losses = model.losses(scores, _target(label, label_smoothing, model.columns.label, scores.dtype))
                weights = tf.cast(weight, losses.dtype)
                if model.spans_batch:  # what each row scores alone is then not computed: the graph is pruned of it
                    dropouts.append(Dropout(keys))
                    losses, weights = model.batch_losses(features, label, weights, dropouts[1], world.gather_tensors)
                total, weight_sum = tf.reduce_sum(losses * weights), tf.reduce_sum(weights)
                target = scaled(total)
            self._draws = any(dropout.draws for dropout in dropouts)
            gradients = tape.gradient(target, variables, unconnected_gradients="zero")
            return [*gradients, total, weight_sum]

        lookups: list[int] = []
        wanted = sparse_gradients == "auto" and accumulate == 1 and (world.size > 1 or optimizer.takes_sparse)
        if wanted and batch_rows and may_be_sparse(variables, batch_rows):
            lookups = lookups_per_row(sums, [*_numbers(model.columns), *_LABELLED, *_cells(model.columns)], len(variables))
        exchange = Exchange(world, variables, compression=compression, batch_rows=batch_rows, lookups=lookups,
                            keeps_rows=optimizer.takes_sparse)  # fmt: skip

        def local_sums(*rows: tf.Tensor) -> list[Gradient]:
            *gradients, total, weights = sums(*rows)
            return [*exchange.local(gradients), total, weights]

        # A free number of rows: the short last batch does not retrace.
        # One flat list: TensorFlow would go through a nested one at each step.
        @tf.function(input_signature=[*_numbers(model.columns), *_LABELLED, *_RATES, *_cells(model.columns)])
        def run(floats: tf.Tensor, ids: tf.Tensor, label: tf.Tensor, weight: tf.Tensor, keys: tf.Tensor, rates: tf.Tensor,
                told: tf.Tensor, *cells: tf.Tensor) -> tf.Tensor:  # fmt: skip
            number = tf.zeros([], dtype)
            rows = (floats, ids, label, weight, keys, *cells)
            *gradients, total, weights = sum_in_parts(local_sums, rows, accumulate, [*variables, number, number])
            facts = tf.concat([[total, weights], tf.cast(told, total.dtype)], 0)
            seconds = tf.zeros([], tf.float64)
            if clock and world.size > 1:
                (gradients, facts), seconds = timed([gradients, facts], lambda: exchange(gradients, facts))
            else:
                gradients, facts = exchange(gradients, facts)
            weights = scaled(facts[1])
            gradients = [on_values(lambda g: tf.math.divide_no_nan(g, weights), g) for g in gradients]  # it may weigh nothing
            norm = global_norm(gradients)
            if clip_norm is not None:
                most = tf.constant(clip_norm, norm.dtype)
                gradients = [on_values(lambda g: g * (most / tf.maximum(norm, most)), g) for g in gradients]
            result = [tf.math.divide_no_nan(facts[0], facts[1]), norm, facts[2], facts[3], seconds]
            if loss_scale is None:
                optimizer.apply(gradients, rates)
            else:
                loss_scale.update(tf.math.is_finite(norm), lambda: optimizer.apply(gradients, rates))
                result.append(loss_scale.scale)
            return tf.stack([tf.cast(figure, tf.float64) for figure in result])

        self._run = run
        #: What the ranks send each other in a step.
        self.communication: Communication = exchange.communication

    def __call__(self, batch: Batch | None, global_step: int, learning_rate: float, *, stopping: bool = False) -> StepResult:
        """One step with this rank's part of the batch; ``None`` tells the others that it could not be read, and
        ``stopping`` that this rank was told to stop."""
        shown = batch if batch is not None else empty_batch(self._columns)
        rates = self._optimizer.rates(learning_rate, global_step)
        keys = row_keys(shown.output, self._seed, global_step) if self._draws else _NO_KEYS
        told = np.array([batch is None, stopping], np.float32)
        floats, ids, label, weight, cells = _inputs(shown, self._columns)
        result = self._run(floats, ids, label, weight, keys, rates, told, *cells).numpy().tolist()
        loss, norm, failures, stops, seconds, *scale = result
        if not scale:
            return StepResult(loss, norm, round(failures), round(stops), seconds)
        return StepResult(loss, norm, round(failures), round(stops), seconds, scale[0], not math.isfinite(norm))

    @property
    def num_traces(self) -> int:
        """How often the step was compiled."""
        return int(self._run.experimental_get_tracing_count())


class Predictor:
    """A model's scores of a batch."""

    def __init__(self, model: Model) -> None:
        @tf.function(input_signature=[*_numbers(model.columns), *_cells(model.columns)])
        def run(floats: tf.Tensor, ids: tf.Tensor, *cells: tf.Tensor) -> tf.Tensor:
            return model.scores(_features(model.columns, floats, ids, cells))

        self._run, self._model = run, model

    def __call__(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Probabilities, or values in the label's unit, of the batch's rows."""
        floats, ids, _, _, cells = _inputs(batch, self._model.columns)
        return self._model.predictions(self._run(floats, ids, *cells).numpy())


#: What this process may run on, as it was started.
_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
#: For a model without dropout, whose graph makes no use of them.
_NO_KEYS = np.empty(0, np.uint32)
#: Of each row: label, weight, and what its dropout is drawn from.
_LABELLED = [tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.uint32)]
#: The optimizer's rates, and what this rank tells the others: that its part could not be read, that it was told to stop.
_RATES = [tf.TensorSpec([3], tf.float64), tf.TensorSpec([2], tf.float32)]


def _target(label: tf.Tensor, smoothing: float, facts: Label, dtype: tf.DType) -> tf.Tensor:
    """What a score is held against: the label, smoothed; of several classes then the share of each, [rows, classes]."""
    if not smoothing:
        return label if facts.num_classes else tf.cast(label, dtype)  # a small float type would not hold a class's number
    if facts.num_classes:
        label = tf.one_hot(tf.cast(label, tf.int32), facts.num_classes)
    return tf.cast(label, dtype) * tf.constant(1 - smoothing, dtype) + tf.constant(smoothing / (facts.num_classes or 2), dtype)


def _numbers(columns: ModelColumns) -> list[tf.TensorSpec]:
    """Floats and ids, with a free number of rows."""
    return [tf.TensorSpec([None, len(columns.floats)], tf.float32), tf.TensorSpec([None, len(columns.ids)], tf.int32)]


def _cells(columns: ModelColumns) -> list[tf.TensorSpec]:
    """The other features, in the order of their columns."""
    dtypes = {"array": tf.float32, "tokens": tf.int32, "image": tf.float32}
    return [tf.TensorSpec([None, *(c.shape or ())], dtypes[c.kind]) for c in columns.binary]


def _features(columns: ModelColumns, floats: tf.Tensor, ids: tf.Tensor, cells: Sequence[tf.Tensor]) -> Features:
    kinds: dict[str, dict[str, tf.Tensor]] = {"array": {}, "tokens": {}, "image": {}}
    for column, cell in zip(columns.binary, cells, strict=True):
        kinds[column.kind][column.name] = cell
    return Features(floats, ids, kinds["array"], kinds["tokens"], kinds["image"])


def _inputs(batch: Batch, columns: ModelColumns) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """Floats, ids, label, weight, and the other features in the order of their columns."""
    tensors = batch.tensors()
    cells = {**tensors.arrays, **tensors.tokens, **tensors.images}
    weight = tensors.weight if tensors.weight is not None else _ones(batch.num_rows)
    return tensors.floats, tensors.ids, tensors.label, weight, [cells[c.name] for c in columns.binary]


@lru_cache(maxsize=4)
def _ones(rows: int) -> tf.Tensor:
    """The weights of rows that have none: batches are of one size, but for the last."""
    return tf.ones(rows, tf.float32)


def empty_batch(columns: ModelColumns) -> Batch:
    """A rank's part of a batch of which it has no row."""
    specifications = [*_numbers(columns), *_cells(columns)]
    floats, ids, *cells = (np.empty((0, *s.shape[1:]), s.dtype.as_numpy_dtype) for s in specifications)
    features = _features(columns, floats, ids, cells)
    no_row, index = np.empty(0, np.float32), np.empty(0, np.int64)
    return Batch(0, floats, ids, no_row, None, index, index, 0,
                 dict(features.arrays), dict(features.tokens), dict(features.images))  # fmt: skip


def set_threads(world: World) -> None:
    """Shares the machine's cores among the ranks on it: as many threads, and each rank on cores of its own, which spares it
    the others' moves from core to core (two ranks on two cores: steps of 0.41 s in place of 0.5 to 0.7). TensorFlow's number
    of threads stays as it was once it has started."""
    cores = share_of_cores(_CORES, world.local_rank, world.local_size)
    if hasattr(os, "sched_setaffinity"):
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread), cores)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(len(cores))
        tf.config.threading.set_inter_op_parallelism_threads(max(2, len(cores)))
    except RuntimeError:
        pass


def share_of_cores(cores: Sequence[int], local_rank: int, local_size: int) -> list[int]:
    """Consecutive cores, as even as can be; where ranks are more than cores all of them, since they must be shared anyhow."""
    if local_size > len(cores):
        return list(cores)
    return list(cores[local_rank * len(cores) // local_size : (local_rank + 1) * len(cores) // local_size])


def set_determinism(deterministic: bool) -> None:
    """Has TensorFlow choose kernels whose results do not depend on the order in which threads end, for the rest of the
    process. An operation that has none raises UnimplementedError when it runs."""
    if deterministic:
        tf.config.experimental.enable_op_determinism()
