"""The gradients of all ranks: what is sent of each variable's, and how it is summed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import tensorflow as tf

from training.distributed import World
from training.optimizers import name_of

#: Dense, or the rows that a batch has of a table, each once.
Gradient: TypeAlias = "tf.Tensor | tf.IndexedSlices"
ID_BYTES = 8
#: Bytes that a sparse gradient must save: its two collectives take a millisecond, in which a fast network sends as many.
WORTH = 1 << 18
MIB = 1 << 20


@dataclass(frozen=True)
class Communication:
    """What a rank hands over for the sums of a step. Bytes are those of the tensors, whatever way they travel; ``sparse``
    holds for each variable that is sent by its rows the most bytes that all ranks together may send."""

    ranks: int
    dense_tensors: int
    dense_bytes: int
    sparse: dict[str, int]
    compression: str

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.ranks == 1:
            return "communication: none, one rank"
        parts = [f"{self.dense_tensors} dense tensors {self.dense_bytes / MIB:.1f} MiB"]
        if self.sparse:
            parts.append(f"{len(self.sparse)} sparse <= {sum(self.sparse.values()) / MIB:.1f} MiB")
        return f"communication: {', '.join(parts)} a step" + (", as fp16" if self.compression == "fp16" else "")


class Exchange:
    """Sums gradients over all ranks: the dense ones by one grouped allreduce in the order of the variables, those of large
    tables by an allgather of the rows that the batch has.

    ``lookups`` is for each variable how many of its rows one row of a batch may look up, 0 for one whose gradient is dense
    (``lookups_per_row``). A variable is sent by its rows where the most that a global batch of ``batch_rows`` can need is
    fewer bytes than the variable has. That bound is known to all ranks before the first step, so they choose alike without
    asking each other. With ``keeps_rows`` the sum stays one of rows, else it becomes dense.

    ``compression: fp16`` halves the bytes on the wire. Each tensor is multiplied by a power of two before it is cast: one that
    takes the sum over the ranks of its largest absolute value, which no partial sum exceeds, to just below 2^15. So no sum can
    leave float16 (65,504), and what was not finite stays so. That takes a small allreduce of the maxima before, in which the
    step's facts travel, as always in their own type."""

    def __init__(self, world: World, variables: Sequence[tf.Variable], *, compression: str = "none", batch_rows: int = 0,
                 lookups: Sequence[int] = (), keeps_rows: bool = False) -> None:  # fmt: skip
        self._world, self._variables, self._keeps_rows = world, variables, keeps_rows
        self._fp16 = compression == "fp16" and world.size > 1
        most = [_most_bytes(v, rows * batch_rows, world.size, self._fp16) for v, rows in zip(variables, lookups, strict=False)]
        most += [0] * (len(variables) - len(most))
        sizes = [_row_bytes(v, self._fp16) * _num_rows(v) for v in variables]
        self._by_rows = [0 < rows <= size - WORTH for rows, size in zip(most, sizes, strict=True)]
        self.communication = Communication(
            world.size, self._by_rows.count(False),
            sum(size for size, by_rows in zip(sizes, self._by_rows, strict=True) if not by_rows),
            {name_of(v): rows for v, rows, chosen in zip(variables, most, self._by_rows, strict=True) if chosen},
            "fp16" if self._fp16 else "none")  # fmt: skip

    def local(self, gradients: Sequence[Gradient]) -> list[Gradient]:
        """One rank's gradients, as they are sent: every id of a sparse one once, its rows summed."""
        pairs = zip(gradients, self._by_rows, strict=True)
        return [_distinct(g) if by_rows else tf.convert_to_tensor(g) for g, by_rows in pairs]

    def __call__(self, gradients: Sequence[Gradient], facts: tf.Tensor) -> tuple[list[Gradient], tf.Tensor]:
        """The sums over all ranks of ``local`` gradients and of a vector of facts."""
        values, scales = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients], None
        if self._fp16:
            facts, scales = self._agreed_scales(values, facts)
            values = [tf.cast(value * scales[i], tf.float16) for i, value in enumerate(values)]
        dense = [value for value, by_rows in zip(values, self._by_rows, strict=True) if not by_rows]
        *sums, facts = [*self._world.sum_tensors(dense, "step"), facts] if self._fp16 else (
            self._world.sum_tensors([*dense, facts], "step"))  # fmt: skip
        tables = [i for i, by_rows in enumerate(self._by_rows) if by_rows]
        rows = self._world.gather_rows([values[i] for i in tables], "step.rows") if tables else []
        ids = self._world.gather_rows([gradients[i].indices for i in tables], "step.ids") if tables else []
        left, found = iter(sums), dict(zip(tables, zip(rows, ids, strict=True), strict=True))
        summed: list[Gradient] = []
        for i, variable in enumerate(self._variables):
            value, at = found.get(i) or (next(left), None)
            if scales is not None:
                value = tf.cast(value, variable.dtype) / scales[i]
            summed.append(value if at is None else self._merged(variable, value, at))
        return summed, facts

    def _agreed_scales(self, values: Sequence[tf.Tensor], facts: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The facts, summed, and the power of two that each tensor is multiplied by, the same on all ranks."""
        maxima = [tf.maximum(tf.reduce_max(tf.abs(value)), 0) for value in values]  # of no row it is minus infinity
        (both,) = self._world.sum_tensors([tf.concat([facts, tf.stack(maxima)], 0)], "step.facts")
        number = int(facts.shape[0])
        scales = tf.cast(powers_of_two(tf.cast(both[number:], tf.float32)), facts.dtype)
        return both[:number], tf.unstack(scales, num=len(values))

    def _merged(self, variable: tf.Variable, rows: tf.Tensor, ids: tf.Tensor) -> Gradient:
        """The rows of all ranks, which stand in the order of ranks, summed where several have the same id."""
        if self._keeps_rows:
            gathered = tf.IndexedSlices(rows, ids, tf.shape(variable, out_type=tf.int64))
            return _distinct(gathered) if self._world.size > 1 else gathered
        with tf.device("CPU:0"):  # a GPU adds in any order, and the ranks would drift apart
            return tf.math.unsorted_segment_sum(rows, ids, variable.shape[0])


def powers_of_two(bounds: tf.Tensor) -> tf.Tensor:
    """For float32 values from 0 the power of two that takes each into [2^14, 2^15), at most 2^100; made of the bits of the
    exponent, so that machines of different kinds agree. Values that are not finite get a finite one."""
    exponent = tf.bitwise.bitwise_and(tf.bitwise.right_shift(tf.bitcast(bounds, tf.int32), 23), 255)
    biased = tf.clip_by_value(2 * 127 + 14 - exponent, 1, 127 + 100)
    return tf.bitcast(tf.bitwise.left_shift(biased, 23), tf.float32)


def on_values(function: Callable[[tf.Tensor], tf.Tensor], gradient: Gradient) -> Gradient:
    """A gradient with a function applied to its numbers; those of the rows that a sparse one leaves out are 0."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(function(gradient.values), gradient.indices, gradient.dense_shape)
    return function(gradient)


def global_norm(gradients: Sequence[Gradient]) -> tf.Tensor:
    """Of all gradients together; a sparse one has each id once."""
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    # l2_loss is half the sum of squares, in one pass.
    return tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(value) for value in values]))


def may_be_sparse(variables: Sequence[tf.Variable], batch_rows: int) -> bool:
    """Whether any variable is so large that its gradient could be sent by rows, would each row of a batch look up one."""
    return any(_row_bytes(v, False) * _num_rows(v) >= WORTH + _most_bytes(v, batch_rows, 1, False) for v in variables)


def lookups_per_row(sums: Callable[..., Sequence[Any]], signature: Sequence[tf.TensorSpec], number: int) -> list[int]:
    """Of the first ``number`` gradients that ``sums`` returns, how many rows of the variable one row of a batch looks up; 0
    where the gradient is dense. Traces ``sums`` for a batch of one row, and runs nothing."""
    found: list[int] = []

    def trace(*rows: tf.Tensor) -> None:
        gradients = list(sums(*rows))[:number]
        found[:] = [int(g.values.shape[0] or 0) if isinstance(g, tf.IndexedSlices) else 0 for g in gradients]

    one_row = [tf.TensorSpec([1, *specification.shape[1:]], specification.dtype) for specification in signature]
    tf.function(trace, autograph=False).get_concrete_function(*one_row)
    return found


def _distinct(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    ids, where = tf.unique(tf.cast(gradient.indices, tf.int64))
    return tf.IndexedSlices(tf.math.unsorted_segment_sum(gradient.values, where, tf.size(ids)), ids, gradient.dense_shape)


def _num_rows(variable: tf.Variable) -> int:
    return int(variable.shape[0]) if variable.shape.rank else 1


def _row_bytes(variable: tf.Variable, fp16: bool) -> int:
    return int(variable.shape.num_elements()) // max(_num_rows(variable), 1) * (2 if fp16 else variable.dtype.size)


def _most_bytes(variable: tf.Variable, lookups: int, ranks: int, fp16: bool) -> int:
    """The most bytes that all ranks together send of a table by its rows, after as many lookups."""
    return min(lookups, ranks * _num_rows(variable)) * (_row_bytes(variable, fp16) + ID_BYTES)
