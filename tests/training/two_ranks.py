"""Runs under ``horovodrun -np 2``: one start of Horovod for all that needs two ranks. Writes what it saw, rank by rank.

two_ranks.py LAKE_RECIPE OUTPUT_FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lakering.errors import IntegrityError, LakeringError
from lakering.manifest import read_manifest
from recipes import read_recipe
from tests.training.exchanges import exchanges
from training.distributed.world import HorovodWorld
from training.evaluate import evaluate, evaluate_request
from training.feed import Feed
from training.loop import Loop
from training.requests import lake_of, train_request
from training.step import Step
from training.train import train

#: All that a recipe for large batches may ask of a step.
LARGE_BATCH = ("training.optimizer=lamb", "training.weight_decay=0.01", "training.clip_norm=0.05", "training.accumulate=3",
               "training.label_smoothing=0.1", "training.precision=float64")  # fmt: skip
SLICES = "evaluation.slices=[a, x1]"
STOPS_EARLY = ("training.epochs=9", "training.early_stopping={metric: validation_log_loss, patience: 1, min_delta: 0.3}")

#: A row's loss depends on the rows of the other rank; the last batch is short.
TWO_TOWERS = ("model={name: two_tower, query: [x0, x1, b], item: [a], hidden: [8], dimension: 4, dropout: 0.2}",
              "training.precision=float64", "training.epochs=3")  # fmt: skip


def error_of(work: Any) -> str:
    try:
        work()
    except LakeringError as error:
        return f"{type(error).__name__}: {error.message}"
    except OSError as error:
        return str(error)
    return "no error"


def fail_on_rank_1(world: HorovodWorld) -> Any:
    def work() -> str:
        if world.rank == 1:
            raise IntegrityError("file x is cut")
        return "fine"

    return work


def train_with_a_feed_that_breaks(world: HorovodWorld, request: dict[str, Any]) -> None:
    """On rank 1 alone, at its third batch."""
    epoch = Feed.epoch

    def breaking(feed: Feed, *args: int) -> Any:
        for batch in epoch(feed, *args):
            if batch.step == 3 and world.rank == 1:
                raise IntegrityError("train-1.parquet, row group 0 cannot be read")
            yield batch

    Feed.epoch = breaking  # type: ignore[method-assign, assignment]
    try:
        train(world, {**request, "new": True})
    finally:
        Feed.epoch = epoch  # type: ignore[method-assign]


def train_with_a_weight_that_changes(world: HorovodWorld, request: dict[str, Any]) -> None:
    """On rank 1 alone, after its second step, by the least that its floats can change."""
    train_loop, epoch = Loop.train, Feed.epoch

    def train_and_change(loop: Loop) -> None:
        def changing(feed: Feed, *args: int) -> Any:
            for batch in epoch(feed, *args):
                if batch.step == 2 and world.rank == 1 and feed is loop.feed:
                    variable = next(v for v in loop.model.variables if "dense_0/weight" in v.name)
                    variable.assign(np.nextafter(variable.numpy(), np.float32(9)))
                yield batch

        Feed.epoch = changing  # type: ignore[method-assign, assignment]
        train_loop(loop)

    Loop.train = train_and_change  # type: ignore[method-assign, assignment]
    try:
        train(world, {**request, "new": True, "training": {**request["training"], "compare_every": 3}})
    finally:
        Loop.train, Feed.epoch = train_loop, epoch  # type: ignore[method-assign]


def train_on_a_broken_file(world: HorovodWorld, request: dict[str, Any]) -> None:
    """It has its size and its footer, and other bytes in its first row group."""
    lake = lake_of(request)
    path = Path(lake.storage.path(read_manifest(lake, request["recipe"]).table, "train-1.parquet"))

    whole = path.read_bytes()
    world.gather("", "seen whole")
    world.from_first("break", lambda: path.write_bytes(whole[:4] + bytes(396) + whole[400:]))
    try:
        train(world, {**request, "new": True})
    finally:
        world.from_first("mend", lambda: path.write_bytes(whole))


def watched_training(world: HorovodWorld, recipe_path: str) -> dict[str, Any]:
    """With profiled steps, and rank 1 made slow between its batches and its steps."""
    call = Step.__call__

    def slow(step: Step, *arguments: Any, **options: Any) -> Any:
        if world.rank == 1:
            time.sleep(0.5)
        return call(step, *arguments, **options)

    Step.__call__ = slow  # type: ignore[method-assign, assignment]
    try:
        recipe = read_recipe(recipe_path, overrides=["training.epochs=2", "training.seed=19"])
        return train(world, train_request(recipe, profile="4:6"))
    finally:
        Step.__call__ = call  # type: ignore[method-assign]


def main(recipe_path: str, output: str) -> None:
    world = HorovodWorld(profiled=True)
    recipe = read_recipe(recipe_path)
    request = train_request(recipe)
    seen: dict[str, Any] = {"size": world.size}
    seen["gather"] = world.gather(f"rank {world.rank}" * (world.rank + 1), "texts")
    seen["broadcast"] = world.broadcast(np.array([world.rank + 5]), "array").tolist()
    seen["sum"] = world.sum(np.array([[0.1, world.rank]]), "array").tolist()
    seen["agree"] = error_of(lambda: world.agree({"recipe": f"r{world.rank}", "code": "c"}))
    seen["together"] = error_of(lambda: world.together("work", fail_on_rank_1(world)))
    seen["from_first"] = error_of(lambda: world.from_first("first", lambda: Path("/nowhere/at/all").read_text()))
    seen["run"] = train(world, request)["run"]
    seen["cores"] = [sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")]
    seen["again"] = train(world, request)["made"]
    seen["evaluation"] = evaluate(world, evaluate_request(read_recipe(recipe_path, overrides=[SLICES])))
    seen["stopped early"] = train(world, train_request(read_recipe(recipe_path, overrides=STOPS_EARLY)))["record"]["metrics"]
    seen["watched"] = watched_training(world, recipe_path)
    seen["large batch"] = train(world, train_request(read_recipe(recipe_path, overrides=LARGE_BATCH), scale_batch=2))["run"]
    seen["exchanges"] = exchanges(world, request)
    towers = train_request(read_recipe(recipe_path, overrides=TWO_TOWERS))
    seen["two towers"] = train(world, towers)["run"]
    seen["two towers, broken feed"] = error_of(lambda: train_with_a_feed_that_breaks(world, towers))
    seen["other recipe"] = error_of(
        lambda: train(world, {**request, "new": True, "training": {**request["training"], "learning_rate": 1 + world.rank}})
    )
    seen["broken feed"] = error_of(lambda: train_with_a_feed_that_breaks(world, request))
    seen["not finite"] = error_of(lambda: train(world, train_request(read_recipe(f"{output}/nan/toy.yaml"))))
    seen["changed weight"] = error_of(lambda: train_with_a_weight_that_changes(world, request))
    started = time.monotonic()
    seen["broken file"] = error_of(lambda: train_on_a_broken_file(world, request))
    seen["broken file's seconds"] = time.monotonic() - started
    Path(output, f"rank-{world.rank}.json").write_text(json.dumps(seen))
    world.gather("", "end")
    world.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
