"""One function, on as many ranks as asked for: in this process, in those of ``horovodrun``, or in tasks of Spark."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from lakering.errors import SettingError
from training.distributed.devices import Device, pin_device, tell_allreduce
from training.distributed.elastic import Elastic, Work, run_elastic
from training.distributed.launcher import end_with_launcher
from training.distributed.modes import Mode, detect_mode, validate_ranks
from training.distributed.world import STALL_SECONDS, HorovodWorld, World, _attempt

Request = dict[str, Any]


def launch(function: str, request: Request, ranks: int | None = None, network_interface: str | None = None,
           stall_seconds: int = STALL_SECONDS, elastic: Elastic | None = None,
           device: Device = "auto") -> dict[str, Any]:  # fmt: skip
    """Calls ``module:name`` with (world, request) on every rank and returns rank 0's result; request and result are
    JSON-like. Under spark-submit one rank runs in the driver, unless tasks are assigned GPUs; several in one task slot
    each. A rank for which the others wait longer than ``stall_seconds`` ends the run. With ``elastic``, ranks that die do
    not, and others may join (under Spark: see ``run_on_spark``).

    Raises the LakeringError that a rank ended with; SettingError when there are fewer slots than ranks."""
    if stall_seconds < 10:
        raise SettingError(f"--stall-seconds {stall_seconds}: expected 10 or more")
    mode = detect_mode()
    size = validate_ranks(mode, ranks)
    if elastic is not None:
        elastic.validate(mode)
    if mode == "spark":
        from pyspark import SparkConf
        from pyspark.sql import SparkSession

        from training.distributed.spark import run_on_spark, wants_gpu

        if size > 1 or elastic or (device != "cpu" and wants_gpu(SparkConf())):
            context = SparkSession.builder.getOrCreate().sparkContext
            local = str(context.master).startswith("local")
            order = {"function": function, "request": request, "stall_seconds": stall_seconds, "device": device,
                     "network_interface": network_interface or ("lo" if local else None)}  # fmt: skip
            bounds = (elastic.least, elastic.most) if elastic else None
            result, size = run_on_spark(context, order, size, bounds)
            return {**result, "launch": f"spark, {size} {'task' if size == 1 else 'tasks'}"}
    if elastic is not None:
        result = run_elastic(_on_device(_find(function), device), request, elastic, stall_seconds)
        return {**result, "launch": f"horovodrun, elastic, {elastic.least} to {elastic.most} ranks"}
    if mode != "python" and size == 1:  # one of several ranks sees to it itself
        end_with_launcher(0, in_spark=mode == "spark")
    result = work_as_rank(function, request, mode == "horovodrun" and size > 1, stall_seconds, device)
    return {**result, "launch": describe(mode, size)}


def work_as_rank(function: str, request: Request, distributed: bool, stall_seconds: int, device: Device) -> dict[str, Any]:
    """The life of one rank in this process: pinned to its device before TensorFlow starts, joined with the others if it
    is one of several, and left with them."""
    pinned, failure = _attempt(lambda: pin_device(device, *_place()))
    world = HorovodWorld(stall_seconds, profiled=bool(request.get("profile"))) if distributed else World()
    try:
        world.raise_together("device", failure)
        world.device = pinned or world.device
        if world.rank == 0 and world.size > 1:
            tell_allreduce(world.device)
        result = _call(function, world, request)
    except BaseException as reason:
        world.close(reason)
        raise
    world.close()
    return result


def num_ranks(ranks: int | None = None) -> int:
    """How many ranks ``launch`` would call on. Raises SettingError when this launcher cannot give as many."""
    return validate_ranks(detect_mode(), ranks)


def describe(mode: Mode, size: int) -> str:
    """How a training runs, for the summary."""
    if mode == "spark":
        return "spark, one rank in the driver"
    return f"{mode}, {size} ranks" if size > 1 else f"{mode}, one rank"


def _find(function: str) -> Callable[[World, Request], dict[str, Any]]:
    module, _, name = function.partition(":")
    work: Callable[[World, Request], dict[str, Any]] = getattr(importlib.import_module(module), name)
    return work


def _call(function: str, world: World, request: Request) -> dict[str, Any]:
    return _find(function)(world, request)


def _place() -> tuple[int, int, int]:
    """This rank, its number on its host, and how many there are on it."""
    rank, local_rank, local_size = (int(os.environ.get(f"HOROVOD_{name}", default)) for name, default in
                                    (("RANK", 0), ("LOCAL_RANK", 0), ("LOCAL_SIZE", 1)))  # fmt: skip
    return rank, local_rank, local_size


def _on_device(work: Work, device: Device) -> Work:
    """The work of a process that goes from world to world: pinned once, since TensorFlow starts once."""
    pinned = pin_device(device, *_place())

    def pinned_work(world: World, request: Request) -> dict[str, Any]:
        world.device = pinned
        return work(world, request)

    return pinned_work
