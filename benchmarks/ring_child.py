"""Processes of benchmarks/ring.py. Each writes what it found as JSON to FOLDER/RANK.json.

KIND FOLDER FACTS [RANK]

ours      a rank under horovodrun: our loop on batches in memory
bare      one of two processes that share nothing but the moment at which they start: a bare function, each on its half
mwms      one of two workers of TensorFlow's MultiWorkerMirroredStrategy: the same function, summed by it
grouped   a rank under horovodrun: small tensors summed as the step does
single    the same, an allreduce for each tensor
train     trains a recipe as the job does, and tells the most memory that it took
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks.ring_work import Sizes, bare_step, batches_for, model_for, settings_of, train_bare, train_ours
from recipes import read_recipe
from training.distributed import World
from training.distributed.world import HorovodWorld
from training.optimizers import Optimizer
from training.requests import lake_of, train_request
from training.step import set_threads
from training.steplog import read_steps
from training.train import train

TENSORS, LENGTH = 200, 1_000


def sizes_of(facts: dict[str, Any]) -> Sizes:
    return Sizes(tuple(facts["hidden"]), facts["batch"], facts["steps"], facts["warm"])


def one_thread() -> None:
    """As a rank has on a machine of two cores."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)


def wait_for_both(folder: Path, rank: int) -> None:
    (folder / f"ready-{rank}").touch()
    while not all((folder / f"ready-{other}").exists() for other in (0, 1)):
        time.sleep(0.001)


def ours(folder: Path, facts: dict[str, Any], rank: int) -> dict[str, Any]:
    world = HorovodWorld()
    set_threads(world)
    trained = train_ours(world, folder / "lake", sizes_of(facts))
    world.close()
    return trained.__dict__


def bare(folder: Path, facts: dict[str, Any], rank: int) -> dict[str, Any]:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    one_thread()
    sizes = sizes_of(facts)
    model = model_for(sizes)
    optimizer = Optimizer(settings_of(sizes), model.variables)
    step = tf.function(bare_step(model, optimizer, sizes.batch // 2))
    return train_bare(sizes, batches_for(sizes, rank, 2), step, optimizer, lambda: wait_for_both(folder, rank)).__dict__


def mwms(folder: Path, facts: dict[str, Any], rank: int) -> dict[str, Any]:
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": facts["workers"]}, "task": {"type": "worker", "index": rank}})
    one_thread()
    sizes = sizes_of(facts)
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation.RING
    )
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    with strategy.scope():
        model = model_for(sizes)
    optimizer = Optimizer(settings_of(sizes), model.variables)

    def reduce(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors, options))

    replica = bare_step(model, optimizer, sizes.batch, reduce)

    @tf.function
    def step(*arguments: tf.Tensor) -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(replica, args=arguments))[0]

    return train_bare(sizes, batches_for(sizes, rank, 2), step, optimizer).__dict__


def fused(folder: Path, facts: dict[str, Any], single: bool) -> dict[str, Any]:
    import horovod.tensorflow as hvd

    world = HorovodWorld()
    set_threads(world)

    @tf.function(input_signature=[tf.TensorSpec([TENSORS, LENGTH], tf.float32)])
    def run(rows: tf.Tensor) -> tf.Tensor:
        tensors = tf.unstack(rows)
        if single:
            return tf.stack([hvd.allreduce(tensor, op=hvd.Sum, name=f"t{i}") for i, tensor in enumerate(tensors)])
        return tf.stack(world.sum_tensors(tensors, "t"))

    rows = tf.reshape(tf.range(TENSORS * LENGTH, dtype=tf.float32), [TENSORS, LENGTH]) * (world.rank + 1)
    expected = tf.reshape(tf.range(TENSORS * LENGTH, dtype=tf.float32), [TENSORS, LENGTH]) * 3
    gaps = []
    for number in range(facts["warm"] + facts["steps"]):
        started = time.perf_counter()
        found = run(rows)
        tf.debugging.assert_equal(found, expected)
        if number >= facts["warm"]:
            gaps.append(time.perf_counter() - started)
    world.gather("", "end")
    world.close()
    return {"gaps": gaps}


def train_recipe(folder: Path, facts: dict[str, Any], rank: int) -> dict[str, Any]:
    request = train_request(read_recipe(facts["recipe"]), new=True)
    run = train(World(), request)["run"]
    lake = lake_of(request)
    steps = read_steps(lake, lake.run(request["recipe"], run))
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return {"rows": sum(step["rows"] for step in steps), "steps": len(steps), "peak_mib": peak}


KINDS = {"ours": ours, "bare": bare, "mwms": mwms, "train": train_recipe,
         "grouped": lambda folder, facts, rank: fused(folder, facts, single=False),
         "single": lambda folder, facts, rank: fused(folder, facts, single=True)}  # fmt: skip


def main(kind: str, folder: str, facts: str, rank: str = "0") -> None:
    number = int(os.environ.get("HOROVOD_RANK", rank))
    found = KINDS[kind](Path(folder), json.loads(facts), number)
    Path(folder, f"{number}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
