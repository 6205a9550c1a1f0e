"""Runs under ``horovodrun -np 2``: one start of Horovod for all that needs two ranks. Writes what it saw, rank by rank.

two_ranks.py LAKE_RECIPE OUTPUT_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lakering.errors import IntegrityError, LakeringError
from recipes import read_recipe
from training.distributed.world import HorovodWorld
from training.evaluate import evaluate, evaluate_request
from training.feed import Feed
from training.train import train, train_request


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


def main(recipe_path: str, output: str) -> None:
    world = HorovodWorld()
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
    seen["again"] = train(world, request)["made"]
    seen["evaluation"] = evaluate(world, evaluate_request(recipe))
    seen["other recipe"] = error_of(
        lambda: train(world, {**request, "new": True, "training": {**request["training"], "learning_rate": 1 + world.rank}})
    )
    seen["broken feed"] = error_of(lambda: train_with_a_feed_that_breaks(world, request))
    Path(output, f"rank-{world.rank}.json").write_text(json.dumps(seen))
    world.gather("", "end")
    world.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
