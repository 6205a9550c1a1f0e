"""Ranks under spark-submit: the tasks of one barrier stage, which Spark starts together and ends together.

Each task starts its rank as a process of its own, tells it of the others, hands it its order (on standard input) and
gives back what it answered. A rank's standard output and error are the executor's standard error."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import psutil
from pyspark import BarrierTaskContext, SparkConf, SparkContext

from lakering.errors import LakeringError, SettingError, TrainingError
from training.distributed.devices import gpu_environment
from training.distributed.launcher import SPARK_TASK
from training.distributed.peers import address_of
from training.distributed.world import _from_json, _to_json

Json = dict[str, Any]
#: Seconds that executors of a cluster have to register before we say that there are too few slots.
SLOT_WAIT = 60.0
#: Seconds between two looks at the stage.
INTERVAL = 0.5
#: Under ``elastic``: how often the ranks are started again, and the seconds before, in which those of before end and
#: lost executors are replaced.
RELAUNCHES, PAUSE = 5, 10.0


class LostRank(TrainingError):
    """A rank's process, or its executor, ended before its work did: what may be tried again."""


def wants_gpu(conf: SparkConf) -> bool:
    """Whether each task is assigned a GPU. Raises SettingError unless it is exactly one."""
    amount = conf.get("spark.task.resource.gpu.amount", None)
    if amount is not None and float(amount) != 1:
        raise SettingError(f"spark.task.resource.gpu.amount is {amount}: expected 1",
                           next_step="set it to 1: a rank trains on one GPU of its own")  # fmt: skip
    return amount is not None


def run_on_spark(context: SparkContext, order: Json, ranks: int, elastic: tuple[int, int] | None = None) -> tuple[Json, int]:
    """Runs a rank in each of so many tasks; returns rank 0's result, and their number. ``order`` is what
    ``training.distributed.rank`` takes, and ``network_interface`` (None: on each host the one that Spark uses).

    With ``elastic``, (least, most), as many as slots allow; when one is lost, they are started again with those that
    are left, and go on from the newest checkpoint. Raises the error that a rank ended with, LostRank when one was
    killed, SettingError when there are too few slots."""
    wants_gpu(context.getConf())
    for relaunch in range(RELAUNCHES + 1):
        size = wait_for_slots(context, *(elastic or (ranks, ranks)), patience=PAUSE if relaunch else SLOT_WAIT)
        try:
            return _result(_run_stage(context, order, size)), size
        except LostRank as lost:
            # Of a new run nobody knows whether it had begun: without --new it is found, if it had.
            if elastic is None or relaunch == RELAUNCHES or order["request"].get("new"):
                raise
            print(f"warning: {lost.message}; starting again from the newest checkpoint, with {elastic[0]} to {elastic[1]} "
                  f"ranks (time {relaunch + 1} of {RELAUNCHES})", file=sys.stderr, flush=True)  # fmt: skip
            time.sleep(PAUSE)
    raise AssertionError("the last turn returns or raises")


def wait_for_slots(context: SparkContext, least: int, most: int, *, patience: float = SLOT_WAIT) -> int:
    """How many ranks can start: ``most``, or after ``patience`` seconds for executors that are still starting as many
    as there are slots (of cores, and of GPUs where tasks take them). Raises SettingError for fewer than ``least``."""
    conf = context.getConf()
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise SettingError("spark.dynamicAllocation.enabled is true: ranks start all at once or not at all",
                           next_step=f"--conf spark.dynamicAllocation.enabled=false --num-executors {most}")  # fmt: skip
    executors = int(conf.get("spark.executor.instances", "0") or 0)
    wait_until = time.monotonic() + (0 if str(context.master).startswith("local[") else patience)
    while (slots := _num_slots(context)) < most and time.monotonic() < wait_until:
        if executors and _num_executors(context) >= executors:
            break
        time.sleep(INTERVAL)
    if slots < least:
        gpus, asked = wants_gpu(conf), f"--ranks {least}" if least == most else f"--elastic {least}:{most}"
        each = ", each with a GPU (spark.executor.resource.gpu.amount)" if gpus else ""
        raise SettingError(
            f"{asked}, but {context.master} has {slots} task slots{each}",
            next_step=f"ask for at most {slots} ranks, or give Spark more executors or {'GPUs' if gpus else 'cores'} "
            f"(--master 'local[{least}]', --num-executors, --executor-cores)",
        )
    return min(slots, most)


def _num_slots(context: SparkContext) -> int:
    """How many tasks can run at once: what Spark itself asks before it starts a barrier stage."""
    scala = context._jsc.sc()
    return int(scala.maxNumConcurrentTasks(scala.resourceProfileManager().defaultResourceProfile()))


def _num_executors(context: SparkContext) -> int:
    return int(context._jsc.sc().getExecutorMemoryStatus().size()) - 1


def _run_stage(context: SparkContext, order: Json, size: int) -> list[Json]:
    """What every rank answered. Spark would try a stage that failed three times more, blindly: it is cancelled."""
    group, answers, errors = f"ranks-{uuid.uuid4().hex}", list[str](), list[Exception]()

    def run() -> None:
        try:
            context.setJobGroup(group, f"{size} ranks")
            tasks = context.parallelize(range(size), size).barrier()
            answers.extend(tasks.mapPartitions(partial(rank_task, json.dumps(order))).collect())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="ranks", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(INTERVAL)
            if (failure := _failure(context, group)) is not None:
                raise failure
    finally:
        if thread.is_alive():
            context.cancelJobGroup(group)
            thread.join(30)
    if errors:
        raise TrainingError(f"Spark could not run the ranks: {errors[0]}") from errors[0]
    return [json.loads(answer) for answer in answers]


def _failure(context: SparkContext, group: str) -> TrainingError | None:
    """Why the stage failed: ranks answer with their errors, so a task fails only when it, or its executor, is gone."""
    tracker = context.statusTracker()
    for job in tracker.getJobIdsForGroup(group):
        known = tracker.getJobInfo(job)
        for stage in known.stageIds if known else ():
            info = tracker.getStageInfo(stage)
            if info and (info.numFailedTasks or info.currentAttemptId):
                return _failed_task(context, stage)
    return None


def _failed_task(context: SparkContext, stage: int) -> TrainingError:
    """The first attempt's task that did not only end because another had failed."""
    tasks = context._jsc.sc().statusStore().taskList(stage, 0, 10_000)
    found = [tasks.apply(number) for number in range(tasks.size())]
    told = [(task.index(), task.host(), task.errorMessage().get()) for task in found if task.errorMessage().isDefined()]
    signs = ("ExecutorLost", "worker exited", "Traceback")
    told.sort(key=lambda task: next((number for number, sign in enumerate(signs) if sign in task[2]), len(signs)))
    if not told:
        return LostRank("a task of Spark failed, and with it all ranks")
    rank, host, reason = told[0]
    if "Traceback" in reason and "worker exited" not in reason:
        return TrainingError(f"rank {rank} on {host} could not be started: {reason.strip().splitlines()[-1]}", next_step=(
            "executors need this project and its libraries in their Python (spark.pyspark.python)"))  # fmt: skip
    return LostRank(f"rank {rank} on {host} is gone with its Spark executor: {reason.strip().splitlines()[0]}",
                    next_step="run the same again: it goes on from the newest checkpoint")  # fmt: skip


def _result(outcomes: list[Json]) -> Json:
    """Rank 0's result, or the error that explains the others': when one rank fails, the rest fail for want of it."""
    failures = sorted((found for found in outcomes if "result" not in found), key=_how_telling)
    if not failures:
        return dict(next(found for found in outcomes if found["rank"] == 0)["result"])
    first = failures[0]
    if "error" in first:
        raise _from_json(first["error"])
    status = first["ended"]
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    raise LostRank(f"rank {first['rank']} on {first['host']} {how}; its executor's standard error may tell why",
                   next_step="run the same again: it goes on from the newest checkpoint")  # fmt: skip


def _how_telling(found: Json) -> int:
    if "ended" in found:
        return 0 if found["ended"] < 0 else 3
    return 1 if found["ours"] else 2


def rank_task(text: str, _: Iterator[int]) -> Iterator[str]:
    """Runs in each of the stage's tasks: starts the rank of the task's number, and yields its outcome as JSON."""
    order, context, host = json.loads(text), BarrierTaskContext.get(), socket.gethostname()
    rank = context.partitionId()
    with contextlib.ExitStack() as held:
        here: Json = {"host": host}
        try:
            interface = order["network_interface"] or interface_of(context.getTaskInfos()[rank].address)
            here["address"] = address_of(interface)
            if rank == 0:
                here["port"] = held.enter_context(rendezvous(here["address"]))
        except LakeringError as error:
            here["error"] = _to_json(error, rank)
        everyone = [json.loads(told) for told in context.allGather(json.dumps(here))]
        errors = [json.loads(told["error"]) for told in everyone if "error" in told]
        if errors:
            yield json.dumps({"rank": rank, "host": host, "error": errors[0], "ours": True})
            return
        environment = {**rank_environment(rank, everyone), "HOROVOD_GLOO_IFACE": interface, "NCCL_SOCKET_IFNAME": interface}
        gpus = context.resources().get("gpu")
        if gpus:
            environment |= gpu_environment(gpus.addresses[0])
        outcome = _run_rank(text, environment)
        context.barrier()  # until then the others may need the rendezvous
        yield json.dumps({"rank": rank, "host": host, **outcome})


def _run_rank(order: str, environment: dict[str, str]) -> Json:
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, "-m", "training.distributed.rank"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env={**os.environ, **paths, **environment})  # fmt: skip
    answer, _ = process.communicate(order.encode())
    return dict(json.loads(answer)) if answer else {"ended": process.returncode}


def rank_environment(rank: int, everyone: list[Json]) -> dict[str, str]:
    """What Horovod reads to find the others: its place among all, among those of its host, and among those that have
    its place on the other hosts. ``everyone`` holds each rank's host, and of rank 0 the rendezvous."""
    hosts = [told["host"] for told in everyone]
    places = [hosts[:number].count(host) for number, host in enumerate(hosts)]
    alike = [number for number, place in enumerate(places) if place == places[rank]]
    numbers = {"RANK": rank, "SIZE": len(hosts), "LOCAL_RANK": places[rank], "LOCAL_SIZE": hosts.count(hosts[rank]),
               "CROSS_RANK": alike.index(rank), "CROSS_SIZE": len(alike),
               "GLOO_RENDEZVOUS_PORT": everyone[0]["port"]}  # fmt: skip
    texts = {"HOSTNAME": hosts[rank], "CONTROLLER": "gloo", "CPU_OPERATIONS": "gloo",
             "GLOO_RENDEZVOUS_ADDR": everyone[0]["address"]}  # fmt: skip
    return {SPARK_TASK: "1", **{f"HOROVOD_{name}": str(value) for name, value in {**numbers, **texts}.items()}}


@contextlib.contextmanager
def rendezvous(address: str) -> Iterator[int]:
    """The port of a server, on this address alone, where ranks leave word of how to reach them."""
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    with RendezvousHTTPServer((address, 0), RendezvousHandler, False) as server:
        thread = threading.Thread(target=server.serve_forever, name="rendezvous", daemon=True)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


def interface_of(address: str) -> str:
    """The network interface that has a ``host:port``'s host. Raises TrainingError when none has."""
    host = address.rpartition(":")[0]
    try:
        wanted = socket.gethostbyname(host)
    except OSError:
        wanted = host
    for name, found in psutil.net_if_addrs().items():
        if wanted in [one.address for one in found]:
            return name
    raise TrainingError(f"no network interface of {socket.gethostname()} has Spark's address {host}",
                        next_step="name the one that ranks talk over with --network-interface")  # fmt: skip
