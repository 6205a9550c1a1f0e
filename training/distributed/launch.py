"""One function, on as many ranks as asked for: in this process, in those of ``horovodrun``, or in tasks of Spark."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from lakering.errors import LakeringError, SettingError, TrainingError
from training.distributed.modes import Mode, detect_mode, validate_ranks
from training.distributed.world import STALL_SECONDS, HorovodWorld, World, _from_json, _to_json

Request = dict[str, Any]
#: Seconds that executors of a cluster have to register before we say that there are too few slots.
SLOT_WAIT = 60.0


def launch(function: str, request: Request, ranks: int | None = None, network_interface: str | None = None,
           stall_seconds: int = STALL_SECONDS) -> dict[str, Any]:  # fmt: skip
    """Calls ``module:name`` with (world, request) on every rank and returns rank 0's result; request and result are
    JSON-like. Under spark-submit one rank runs in the driver, several in one task slot each. A rank for which the others
    wait longer than ``stall_seconds`` ends the run.

    Raises the LakeringError that a rank ended with; SettingError when there are fewer slots than ranks."""
    if stall_seconds < 10:
        raise SettingError(f"--stall-seconds {stall_seconds}: expected 10 or more")
    mode = detect_mode()
    size = validate_ranks(mode, ranks)
    if mode == "spark" and size > 1:
        return _on_spark(function, json.dumps(request), size, network_interface, stall_seconds)
    world = HorovodWorld(stall_seconds) if mode == "horovodrun" and size > 1 else World()
    try:
        result = _call(function, world, request)
    except BaseException as failure:
        world.close(failure)
        raise
    world.close()
    return {**result, "launch": describe(mode, size)}


def num_ranks(ranks: int | None = None) -> int:
    """How many ranks ``launch`` would call on. Raises SettingError when this launcher cannot give as many."""
    return validate_ranks(detect_mode(), ranks)


def describe(mode: Mode, size: int) -> str:
    """How a training runs, for the summary."""
    if mode == "spark":
        return f"spark, {size} tasks" if size > 1 else "spark, one rank in the driver"
    return f"{mode}, {size} ranks" if size > 1 else f"{mode}, one rank"


def _call(function: str, world: World, request: Request) -> dict[str, Any]:
    module, _, name = function.partition(":")
    work: Callable[[World, Request], dict[str, Any]] = getattr(importlib.import_module(module), name)
    return work(world, request)


def spark_rank(function: str, request: str, stall_seconds: int) -> str:
    """Runs in each of Spark's tasks. An error goes back as a result: raised, Spark would wrap its text in its own."""
    world = HorovodWorld(stall_seconds)
    try:
        result = _call(function, world, json.loads(request))
    except Exception as failure:
        world.close(failure)
        return json.dumps(
            {"rank": world.rank, "error": _to_json(failure, world.rank), "ours": isinstance(failure, LakeringError)}
        )
    world.close()
    return json.dumps({"rank": world.rank, "result": result})


def _on_spark(function: str, request: str, size: int, network_interface: str | None, stall_seconds: int) -> dict[str, Any]:
    from pyspark.sql import SparkSession

    session = SparkSession.builder.getOrCreate()
    context = session.sparkContext
    _validate_slots(context, size)
    # Imported after the check: it takes seconds, and imports TensorFlow.
    import horovod.spark

    local = str(context.master).startswith("local")
    nics = network_interface or ("lo" if local else None)  # by itself Horovod listens on all of them
    executable = session.conf.get("spark.pyspark.python", None) or os.environ.get("PYSPARK_PYTHON") or sys.executable
    try:
        texts = horovod.spark.run(spark_rank, args=(function, request, stall_seconds), num_proc=size, use_gloo=True, verbose=0,
                                  nics={nics} if nics else None, executable=executable, start_timeout=120)  # fmt: skip
    except Exception as error:
        raise lost_rank(str(error)) from error
    results = [json.loads(text) for text in texts]
    failures = [found for found in results if "error" in found]
    # When one rank fails, the others fail for want of it: the one that names its reason is shown.
    for found in sorted(failures, key=lambda found: not found["ours"]):
        raise _from_json(json.loads(found["error"]))
    return {**results[0]["result"], "launch": describe("spark", size)}


def lost_rank(text: str) -> TrainingError:
    """What Horovod's text about ended processes means. The driver knows the rank; the ranks that saw it die, the host."""
    found = re.search(r"Process name: (\d+)\s+Exit code: (-?\d+)", text)
    if not found:
        return TrainingError(f"a rank died, or could not be started: {text}")
    return TrainingError(f"rank {found[1]} ended with exit code {found[2]}",
                         next_step="the executors' standard error tells the host, on the line 'ending: ...'")  # fmt: skip


def _validate_slots(context: Any, size: int) -> None:
    """Horovod would wait ten minutes for slots. Executors that are still starting get a minute."""
    if context.getConf().get("spark.dynamicAllocation.enabled", "false") == "true":
        return
    wait_until = time.monotonic() + (0 if context.master.startswith("local") else SLOT_WAIT)
    while (slots := _num_slots(context)) < size:
        if time.monotonic() > wait_until:
            raise SettingError(
                f"--ranks {size}, but {context.master} has {slots} task slots",
                next_step=f"ask for at most {slots} ranks, or give Spark more executors or cores (--master 'local[{size}]', "
                "--num-executors, --executor-cores)",
            )
        time.sleep(0.5)


def _num_slots(context: Any) -> int:
    """How many tasks can run at once: what Spark itself asks before it starts a barrier stage."""
    scala = context._jsc.sc()
    return int(scala.maxNumConcurrentTasks(scala.resourceProfileManager().defaultResourceProfile()))
