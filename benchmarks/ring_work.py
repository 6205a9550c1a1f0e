"""What the contestants of benchmarks/ring.py train: one model on batches in memory, by our loop or by a bare function."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tensorflow as tf

from benchmarks.feed_table import Shape, manifest_of
from lakering.lake import Lake
from lakering.manifest import ROW_GROUP_SCHEMA, Manifest
from lakering.storage import Storage
from recipes.training import Training
from training.distributed import World
from training.feed import Batch, Feed, Order
from training.feed.blocks import ALIGNMENT
from training.loop import Loop
from training.models import Features, Model, ModelColumns, build_model
from training.optimizers import Optimizer
from training.steplog import read_steps

FLOATS = 26
#: Different batches in memory; a longer training has them again.
BATCHES = 4
RATE = 1e-4


@dataclass(frozen=True)
class Sizes:
    """Of a training: units of the hidden layers, rows of a global batch, timed steps, and those before them."""

    hidden: tuple[int, ...]
    batch: int
    steps: int
    warm: int = 3

    @property
    def all_steps(self) -> int:
        return self.warm + self.steps


@dataclass(frozen=True)
class Trained:
    """``gaps`` are the seconds from step to step, those of ``warm`` left out; ``losses`` are of every step."""

    gaps: list[float]
    losses: list[float]


@dataclass(kw_only=True)
class MemoryFeed(Feed):
    """A feed whose batches are there before the first is asked for. ``moments`` are when each was asked for, and the end."""

    batches: list[Batch]
    moments: list[float] = field(default_factory=list)

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch]:
        for step in range(start_step, self.num_steps):
            self.moments.append(time.perf_counter())
            yield replace(self.batches[step % len(self.batches)], step=step)
        self.moments.append(time.perf_counter())


def settings_of(sizes: Sizes, **changed: Any) -> Training:
    never = 10**9
    return Training(
        **{"global_batch_size": sizes.batch, "epochs": 1, "learning_rate": RATE, "checkpoint_every": never, **changed}
    )


def manifest_for(sizes: Sizes) -> Manifest:
    """Of a table that nobody wrote, with rows for all steps."""
    rows = sizes.batch * sizes.all_steps
    group = {"split": "train", "path": "none.parquet", "file_bytes": 0, "row_group": 0, "num_rows": rows}
    return manifest_of(Shape(rows, FLOATS, (), rows), pa.Table.from_pylist([group], schema=ROW_GROUP_SCHEMA))


def model_for(sizes: Sizes) -> Model:
    section = {"name": "wide_and_deep", "hidden": sizes.hidden, "dropout": 0.0, "embedding_dropout": 0.0}
    return build_model(section, ModelColumns.of(manifest_for(sizes)), seed=3)


def batches_for(sizes: Sizes, rank: int = 0, ranks: int = 1) -> list[Batch]:
    """A rank's rows, the ``rank``-th of as many equal parts of each batch."""
    random = np.random.default_rng(7)
    first, last = sizes.batch * rank // ranks, sizes.batch * (rank + 1) // ranks
    found = []
    for number in range(BATCHES):
        floats = random.standard_normal((sizes.batch, FLOATS), np.float32)
        label = (floats[:, 0] + random.standard_normal(sizes.batch, np.float32) > 0).astype(np.float32)
        ids = np.empty((last - first, 0), np.int32)
        found.append(Batch(number, aligned(floats[first:last]), ids, aligned(label[first:last]), None, np.empty(0, np.int64),
                           np.arange(first, last), sizes.batch))  # fmt: skip
    return found


def aligned(array: npt.NDArray) -> npt.NDArray:
    """A copy in memory that TensorFlow can share, as a feed's is."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    at = -memory.__array_interface__["data"][0] % ALIGNMENT
    copy = memory[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


def train_ours(world: World, folder: Path, sizes: Sizes, **changed: Any) -> Trained:
    """By our loop, log of steps and last checkpoint included, though they are not timed. ``folder`` is the lake's; the
    losses are rank 0's to read."""
    manifest, settings = manifest_for(sizes), settings_of(sizes, **changed)
    order = Order(seed=3, batch_size=sizes.batch, window=1, lanes=2)
    lake = Lake(Storage(str(folder)))
    feed = MemoryFeed(lake=lake, manifest=manifest, split="train", order=order, rank=world.rank, ranks=world.size, row_ids=False,
                      batches=batches_for(sizes, world.rank, world.size))  # fmt: skip
    run = lake.run("bench", f"r{time.time_ns() if world.rank == 0 else 0}")
    loop = Loop(world=world, lake=lake, run=run, model=model_for(sizes), settings=settings, feed=feed, validation=None,
                made_from={})  # fmt: skip
    loop.train()
    losses = [step["loss"] for step in read_steps(lake, run)] if world.rank == 0 else []
    return Trained(np.diff(feed.moments)[sizes.warm :].tolist(), losses)


#: Gradients and the loss, summed over all workers.
Reduce = Callable[[list[tf.Tensor]], list[tf.Tensor]]


def bare_step(model: Model, optimizer: Optimizer, rows: int, reduce: Reduce = list) -> Callable[..., tf.Tensor]:
    """What one would write by hand: the mean loss over ``rows``, its gradients, the optimizer's update."""
    variables = list(model.variables)

    def step(floats: tf.Tensor, ids: tf.Tensor, label: tf.Tensor, rates: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.losses(model.scores(Features(floats, ids)), label)) / rows
        *gradients, loss = reduce([*tape.gradient(loss, variables), loss])
        optimizer.apply(gradients, rates)
        return loss

    return step


def train_bare(sizes: Sizes, batches: list[Batch], step: Callable[..., tf.Tensor], optimizer: Optimizer,
               ready: Callable[[], None] = lambda: None) -> Trained:  # fmt: skip
    """By a bare function on batches that are tensors already. ``ready`` is called before the first timed step."""
    tensors = [batch.tensors()[:3] for batch in batches]
    moments, losses = [], []
    for number in range(sizes.all_steps):
        if number == sizes.warm:
            ready()
        if number >= sizes.warm:
            moments.append(time.perf_counter())
        losses.append(float(step(*tensors[number % len(tensors)], optimizer.rates(RATE, number))))
    moments.append(time.perf_counter())
    return Trained(np.diff(moments).tolist(), losses)
