"""The trainings by which numbers of ranks are compared, on one rank or under ``horovodrun``: one start of Horovod for all.

exact_ranks.py FOLDER OUTPUT CASE...

FOLDER holds a toy; each rank writes ``OUTPUT-RANK.json``: by case its losses and a hash of its weights.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from recipes import read_recipe
from training.checkpoint import hash_arrays, newest_checkpoint
from training.distributed.world import HorovodWorld, World
from training.loop import Loop
from training.requests import lake_of, train_request
from training.steplog import read_steps
from training.train import train

#: The models that must be exact: to add one, add its section. Each has all the chance in it that it may have.
MODELS = {
    "wide_and_deep": "{name: wide_and_deep, hidden: [16, 8], dropout: 0.2, embedding_dropout: 0.1, max_embedding: 4}",
    "dlrm": "{name: dlrm, width: 4, bottom: [8], top: [8], dropout: 0.1}",
    "two_tower": "{name: two_tower, query: [x0, x1, b], item: [a], hidden: [8], dimension: 4, dropout: 0.2}",
}
#: Rows of the row groups of each file: 41 batches of 50 an epoch, the last of 33 rows.
SIZES = {"train": [[400, 230], [370, 310, 150], [573]]}
#: With their learning rates.
OPTIMIZERS = {"sgd": 0.1, "momentum": 0.02, "adam": 0.01, "adamw": 0.01, "lamb": 0.01, "lars": 5.0}
LONG = ("training.precision=float64", "training.global_batch_size=50", "training.epochs=5", "training.weight_decay=0.01",
        "training.checkpoint_every=1000")  # fmt: skip


def optimizer_of(name: str) -> list[str]:
    if name == "momentum":
        return ["training.optimizer=sgd", "training.momentum=0.9", f"training.learning_rate={OPTIMIZERS[name]}"]
    momentum = ["training.momentum=0.9"] if name == "lars" else []
    return [f"training.optimizer={name}", f"training.learning_rate={OPTIMIZERS[name]}", *momentum]


#: By name: a model, and what is set.
CASES: dict[str, tuple[str, list[str]]] = {
    **{name: ("wide_and_deep", [*LONG, *optimizer_of(name)]) for name in OPTIMIZERS},
    **{name: (name, [*LONG, *optimizer_of("adam")]) for name in MODELS if name != "wide_and_deep"},
    "float32": ("wide_and_deep", ["training.global_batch_size=100", "training.epochs=1", *optimizer_of("adam")]),
    # After one step from no velocity, the velocity is the gradient. One batch of all rows.
    "gradient": ("wide_and_deep", ["training.global_batch_size=2040", "training.epochs=1", *optimizer_of("momentum")]),
    # The last: what it switches on stays on.
    "deterministic": ("wide_and_deep", ["training.deterministic=true", "training.global_batch_size=500",
                                        "training.epochs=3", *optimizer_of("adam")]),
}  # fmt: skip


def write_recipes(recipe: Path) -> None:
    """One for each model, beside the toy's."""
    text = recipe.read_text()
    start = text.index("model: {")
    end = text.index("\n", start)
    for name, section in MODELS.items():
        recipe.with_name(f"{name}.yaml").write_text(f"{text[:start]}model: {section}{text[end:]}")


def run_case(world: World, folder: Path, model: str, overrides: list[str]) -> dict[str, Any]:
    held: list[str] = []
    train_loop = Loop.train

    def train_and_hash(loop: Loop) -> None:
        train_loop(loop)
        held.append(hash_arrays(loop.weights(), loop.slots()))

    Loop.train = train_and_hash  # type: ignore[method-assign, assignment]
    try:
        request = train_request(read_recipe(folder / f"{model}.yaml", overrides=overrides), new=True)
        run = train(world, request)["run"]
    finally:
        Loop.train = train_loop  # type: ignore[method-assign]
    lake = lake_of(request)
    steps = read_steps(lake, lake.run("toy", run))
    checkpoint, _ = newest_checkpoint(lake, lake.run("toy", run))
    assert checkpoint is not None
    found = {"losses": [s["loss"] for s in steps], "rows": [s["rows"] for s in steps], "weights": held[0]}
    if len(steps) == 1:
        found["velocity"] = np.concatenate([slot.ravel() for slot in checkpoint.optimizer.values()]).tolist()
    return found


def main(folder: str, output: str, *cases: str) -> None:
    world = HorovodWorld() if "HOROVOD_RANK" in os.environ else World()
    seen = {case: run_case(world, Path(folder), *CASES[case]) for case in cases}
    Path(folder, f"{output}-{world.rank}.json").write_text(json.dumps(seen))
    world.gather("", "end")
    world.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
