"""Runs under spark-submit: several launches in one session, or a training that is killed from outside.

spark_ranks.py gpus OUTPUT                               writes what ranks were given, and the errors of launches
spark_ranks.py train OUTPUT RECIPE [MIN:MAX]             writes the result of a training on two ranks
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import training.distributed.spark
import training.saver
import training.train
from lakering.errors import LakeringError
from recipes import read_recipe
from training.distributed import Elastic, World, launch
from training.requests import train_request


def tell(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """What each rank was given."""
    facts = [world.device, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER"), world.local_rank]
    return {"told": [json.loads(text) for text in world.gather(json.dumps(facts), "told")]}


def error_of(ranks: int, device: Any) -> str:
    try:
        launch("tests.training.spark_ranks:tell", {}, ranks, device=device)
    except LakeringError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def gpus() -> dict[str, Any]:
    return {**launch("tests.training.spark_ranks:tell", {}, 2, device="cpu"),
            "one": launch("tests.training.spark_ranks:tell", {}, device="cpu"),
            "no gpu": error_of(2, "auto"), "too many": error_of(3, "cpu")}  # fmt: skip


def train_evenly(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Trains, and leaves out no checkpoint, however long one takes: steps are logged with them."""
    training.saver.LEAST_WAIT = 60.0
    return training.train.train(world, request)


def train(recipe: str, elastic: str = "") -> dict[str, Any]:
    training.distributed.spark.SLOT_WAIT = 300.0  # on a busy machine the second executor may come late
    request = train_request(read_recipe(recipe, overrides=("training.epochs=60", "training.checkpoint_every=10")))
    return launch("tests.training.spark_ranks:train_evenly", request, 2, elastic=Elastic.parse(elastic) if elastic else None)


def main(what: str, output: str, *arguments: str) -> int:
    try:
        result = gpus() if what == "gpus" else train(*arguments)
    except LakeringError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    Path(output).write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
