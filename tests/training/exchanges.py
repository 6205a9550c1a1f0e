"""Models whose gradients are known or large, and what two ranks make of them: run by ``two_ranks.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from lakering.manifest import read_manifest
from recipes.training import Training
from training.distributed import World
from training.feed import Feed, Order
from training.gradients import Exchange
from training.models import Features, Model, ModelColumns
from training.optimizers import Optimizer
from training.requests import lake_of
from training.step import Step

ORDER = Order(seed=1, batch_size=100, window=2, lanes=10)
NUM_IDS = 60_000


class Steep(Model):
    """One weight, which starts at 0, with a float16 gradient of the slope's square a row, and a loss of 1 whatever it is."""

    def __init__(self, columns: ModelColumns, slope: float) -> None:
        self.columns, self._slope = columns, slope
        self._weight = tf.Variable(0.0, name="weight")

    @property
    def variables(self):
        return [self._weight]

    def scores(self, features, dropout=None):
        slope = tf.constant(self._slope, tf.float16)
        steep = tf.cast(self._weight, tf.float16) * slope * slope
        return tf.cast(steep - tf.stop_gradient(steep), tf.float32) + tf.zeros_like(features.floats[:, 0])

    def losses(self, scores, label):
        return scores + 1.0


class Table(Model):
    """A large table of which a batch has few rows, some of them on both ranks, and a small one."""

    def __init__(self, columns: ModelColumns) -> None:
        self.columns = columns
        values = np.random.default_rng(0).normal(size=(NUM_IDS, 4)) * 0.1
        self._table = tf.Variable(values, name="table", dtype=tf.float64)
        self._small = tf.Variable(values[:300], name="small", dtype=tf.float64)
        self._out = tf.Variable(values[0], name="out", dtype=tf.float64)

    @property
    def variables(self):
        return [self._table, self._small, self._out]

    def scores(self, features: Features, dropout=None):
        a, b = tf.unstack(features.ids, num=2, axis=1)
        found = tf.gather(self._table, tf.stack([200 * b, 7 * a], axis=1))
        return tf.linalg.matvec(tf.reduce_sum(tf.sin(found), axis=1) + tf.gather(self._small, b), self._out)


def local_gradients(rank: int) -> list[np.ndarray]:
    """A rank's sums over 50,000 rows of gradients that are large, that are small, and that are not at all."""
    random = np.random.default_rng(rank)
    large = (random.normal(size=(50_000, 8)) * 1e4 + 3e3).sum(0)
    return [large.astype(np.float32), (random.normal(size=(3, 4)) * 1e-9).astype(np.float32), np.zeros(2, np.float32)]


def fp16_sums(world: World) -> dict[str, Any]:
    """The sums of ``local_gradients`` and of facts; then those of gradients of which rank 1 has one that is infinite."""
    gradients = local_gradients(world.rank)
    variables = [tf.Variable(g, name=f"v{i}") for i, g in enumerate(gradients)]
    exchange = Exchange(world, variables, compression="fp16")
    run = tf.function(exchange)
    sums, facts = run([tf.constant(g) for g in gradients], tf.constant([16_777_213.0 + world.rank, 0.0, 1.0]))
    gradients[1][0, 0] = np.inf if world.rank == 1 else 0
    (_, broken, _), _ = run([tf.constant(g) for g in gradients], tf.constant([1.0, 1.0, 0.0]))
    return {"sums": [g.numpy().tolist() for g in sums], "facts": facts.numpy().tolist(),
            "broken is finite": bool(np.isfinite(broken.numpy()[0, 0])), "says": str(exchange.communication)}  # fmt: skip


def table_after_steps(world: World, feed: Feed, manifest: Any, optimizer: str, **options: Any) -> tuple[list[np.ndarray], Step]:
    """The weights after some steps, to the last of which rank 1 gives nothing."""
    model = Table(ModelColumns.of(manifest))
    settings = Training(optimizer=optimizer)
    step = Step(model, Optimizer(settings, model.variables), world, seed=1, batch_rows=100, **options)
    for batch in feed.epoch(0):
        step(batch if batch.step < 6 or world.rank == 0 else None, batch.step, 0.1)
    return [variable.numpy() for variable in model.variables], step


def exchanges(world: World, request: dict[str, Any]) -> dict[str, Any]:
    lake = lake_of(request)
    manifest = read_manifest(lake, request["recipe"])
    feed = Feed(lake=lake, manifest=manifest, split="train", order=ORDER, rank=world.rank, ranks=world.size)
    seen: dict[str, Any] = {"fp16": fp16_sums(world)}
    for optimizer in ("sgd", "adam"):
        start = Table(ModelColumns.of(manifest)).variables[0].numpy()
        dense, _ = table_after_steps(world, feed, manifest, optimizer, sparse_gradients="dense")
        sparse, step = table_after_steps(world, feed, manifest, optimizer)
        short, _ = table_after_steps(world, feed, manifest, optimizer, compression="fp16")
        seen[optimizer] = {
            "moved": float(np.abs(dense[0] - start).max()), "traces": step.num_traces,
            "sparse": max(float(np.abs(a - b).max()) for a, b in zip(dense, sparse, strict=True)),
            "fp16": max(float(np.abs(a - b).max()) for a, b in zip(dense, short, strict=True)),
            "sums": [float(values.sum()) for values in (*sparse, *short)], "communication": step.communication.facts(),
        }  # fmt: skip
    seen["overflows"] = overflows(world, feed, manifest)
    return seen


def overflows(world: World, feed: Feed, manifest: Any) -> list[tuple[bool, float | None, float]]:
    """Of steps with a gradient that overflows on rank 1 alone: skipped, the scale after it, and the weight."""
    model = Steep(ModelColumns.of(manifest), 20.0 if world.rank == 1 else 0.5)
    optimizer = Optimizer(Training(optimizer="sgd", precision="mixed_float16"), model.variables)
    step = Step(model, optimizer, world, seed=1, batch_rows=100)
    batch = next(iter(feed.epoch(0)))
    seen = []
    for i in range(9):
        result = step(batch, i, 1e-4)
        seen.append((result.skipped, result.loss_scale, float(model.variables[0].numpy())))
    return seen
