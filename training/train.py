"""A training from its request to its record; called on every rank (``training.distributed.launch``)."""

from __future__ import annotations

import json
import logging
import platform
import socket
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, astuple
from typing import Any

import numpy as np
import tensorflow as tf

from lakering import __version__
from lakering.errors import SettingError, UnsavedError
from lakering.lake import Lake
from lakering.lock import storage_lock
from lakering.manifest import Manifest
from lakering.names import fingerprint
from lakering.record import LOCK, read_record, write_record
from recipes.training import Training
from training.best import read_best
from training.checkpoint import Arrays, Checkpoint, newest_checkpoint, read_checkpoint
from training.distributed import World
from training.early_stopping import validate_early_stopping
from training.export import FOLDER, JSON, write_model
from training.feed import Feed, FeedStatistics, Order
from training.feed.plan import default_lanes
from training.loop import Loop, broadcast_weights
from training.metrics import build_metrics
from training.models import ModelColumns, build_model, validate_whole_batches
from training.profile import Profile
from training.requests import Request, lake_of
from training.runs import COMPLETE, choose_run, validate_origin
from training.schedules import derive
from training.step import set_determinism, set_threads
from training.steplog import plain
from training.timing import time_facts
from training.user_code import versions
from training.user_metrics import read_metrics, with_own

log = logging.getLogger("training")
#: The share of its time that a training waits for input, above which this is told.
BOTTLENECK = 0.2


def train(world: World, request: Request) -> dict[str, Any]:
    """Trains, or goes on with the run of the same snapshot, recipe and code; a complete one is only reported.

    Returns ``run``, ``made`` and the run's ``record``. Raises StageError without a snapshot, IntegrityError when its
    files are gone, TrainingError when ranks disagree or a loss is not finite."""
    lake, settings = lake_of(request), Training.model_validate(request["training"])
    set_threads(world)
    set_determinism(settings.deterministic)
    chosen = choose_run(world, lake, request)
    run_id = world.memory.setdefault("run", chosen.run)
    if chosen.complete:
        notes = ["no step was profiled: the run is complete (--new trains again)"] if request.get("profile") else []
        world.from_first("newest", lambda: lake.make_newest(*lake.run(request["recipe"], run_id), FOLDER, JSON))
        return {"run": run_id, "made": False, "record": read_record(lake, request["recipe"], run_id), "notes": notes}
    with ExitStack() as held:
        lock = storage_lock(lake.storage, *lake.run(request["recipe"], run_id), LOCK, what=f"run {run_id}", wait=False)
        world.from_first("lock", lambda: held.enter_context(lock))
        record, notes = _train(world, lake, request, chosen.manifest, settings, run_id, chosen.made_from)
    return {"run": run_id, "made": True, "record": record, "notes": notes}


def _train(world: World, lake: Lake, request: Request, manifest: Manifest, settings: Training, run_id: str,
           made_from: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    started = world.memory.setdefault("started", time.time())
    loop = build_loop(world, lake, request, manifest, settings, run_id, made_from)
    notes: list[str] = []
    checkpoint = world.recover(lambda: _newest_step(lake, loop.run))
    if checkpoint is None:
        checkpoint, notes = world.together("restore", lambda: newest_checkpoint(lake, loop.run))
    if world.size > settings.window:
        notes.append(f"{world.size} ranks share windows of {settings.window} row groups: each row group is read by "
                     f"several ranks; raise training.window to {4 * world.size}")  # fmt: skip
    _say(world, notes)
    if world.rank == 0:
        log.info("training", extra={"facts": {"run": run_id, "steps": settings.epochs * loop.feed.num_steps,
                                              **derive(settings).facts(settings)}})  # fmt: skip
    _begin(world, loop, checkpoint, made_from)
    resumed_at = world.memory.setdefault("resumed_at", loop.progress.global_step)
    world.from_first("record", lambda: write_record(
        lake, request["recipe"], run_id, **_facts(world, loop, manifest, made_from), status="running"))  # fmt: skip
    _announce(world, loop)
    loop.train()
    notes += loop.saver.notes
    fed = {**feed_facts(world, loop.feed.statistics, loop.seconds), **time_facts(world, loop.times)}
    if fed["waiting_for_input_share"] > BOTTLENECK:
        notes.append(f"input is the bottleneck: the training waited for it {fed['waiting_for_input_share']:.0%} of its time; "
                     "give it more feed.reading_threads (and feed.read_ahead for them), or a feed.cache")  # fmt: skip
    if loop.profile is not None:
        notes += loop.profile.notes
    return world.from_first("model", lambda: _finish(loop, request, manifest, run_id, resumed_at, started, fed)), notes


def _newest_step(lake: Lake, run: tuple[str, ...]) -> int:
    """The global step of the newest checkpoint that is whole; -1 for none."""
    checkpoint, _ = newest_checkpoint(lake, run)
    return -1 if checkpoint is None else checkpoint.global_step


def _announce(world: World, loop: Loop) -> None:
    """One line and one log record on rank 0: who trains on what, for how long, and where its record goes."""
    there = world.gather(json.dumps([socket.gethostname(), world.device]), "announce")
    if world.rank != 0:
        return
    hosts = Counter(" ".join(json.loads(text)) for text in there)
    facts = {"ranks": world.size, "hosts": dict(hosts), "snapshot": loop.made_from["snapshot"], "step": loop.progress.global_step,
             "global_batch_size": loop.settings.global_batch_size, "steps": loop.settings.epochs * loop.feed.num_steps,
             "record": loop.lake.storage.path(*loop.run)}  # fmt: skip
    log.info("training starts", extra={"facts": facts})
    where = ", ".join(f"{count} on {host}" for host, count in hosts.items())
    print(f"training: {world.size} {'rank' if world.size == 1 else 'ranks'} ({where}), snapshot {facts['snapshot']}, "
          f"global batch {facts['global_batch_size']:,}, steps {facts['step']:,} to {facts['steps']:,}, "
          f"record in {facts['record']}", file=sys.stderr, flush=True)  # fmt: skip


def feed_facts(world: World, statistics: FeedStatistics, seconds: float) -> dict[str, float]:
    """What the feeds of all ranks did together, called on every rank."""
    together = FeedStatistics(*world.sum(np.array(astuple(statistics), np.float64), "feed"))
    return {**together.facts(), "rows_per_second": together.rows / seconds if seconds else 0.0}


def build_loop(world: World, lake: Lake, request: Request, manifest: Manifest, settings: Training, run_id: str,
               made_from: dict[str, Any]) -> Loop:  # fmt: skip
    """The loop of one rank at its start: model, feeds and optimizer. Raises SettingError for more ranks than lanes."""
    order = Order(seed=settings.seed, batch_size=settings.global_batch_size, window=settings.window,
                  lanes=settings.lanes or default_lanes(settings.global_batch_size))  # fmt: skip

    if settings.columns is not None:
        manifest = manifest.with_columns(settings.columns)

    def feed(split: str, drop_last: bool = False, **changed: Any) -> Feed:
        return Feed(lake=lake, manifest=manifest, split=split, order=order, rank=world.rank, ranks=world.size,
                    drop_last=drop_last, row_ids=False, images=settings.images, augment=split == "train",
                    **{**request["feed"], **changed})  # fmt: skip

    train_feed = feed("train", settings.drop_last)
    if not train_feed.num_steps:
        raise SettingError(f"training.drop_last leaves no batch: the {train_feed.num_rows:,} rows of train are fewer than "
                           f"training.global_batch_size {settings.global_batch_size:,}")  # fmt: skip
    columns = ModelColumns.of(manifest, settings.images)
    if settings.keep_best and not manifest.num_rows.get("validation"):
        raise SettingError("training.keep_best compares epochs by validation loss, and the snapshot has no validation split",
                           next_step="leave keep_best out, or give examples.split a validation share")  # fmt: skip
    if settings.label_smoothing and columns.label.kind == "regression":
        raise SettingError(f"training.label_smoothing is {settings.label_smoothing:g}, and label {columns.label.name!r} is not "
                           "binary", next_step="leave it out: it is for labels of 0 and 1, or of classes")  # fmt: skip
    model = build_model(request["model"], columns, seed=settings.seed, precision=settings.precision,
                        folder=request["user_code"]["folder"])  # fmt: skip
    validate_whole_batches(model, request["model"]["name"], settings)
    if settings.loss is not None:
        from training.models.own import with_loss  # not above: it imports Keras, which takes seconds

        with_loss(model, settings.loss.model_dump(), request["user_code"]["folder"])
    model.own_metrics = read_metrics(request["user_code"])
    # The memory cache is the training's: what validation would keep is given back after each of its passes.
    cache = "none" if request["feed"]["cache"] == "memory" else request["feed"]["cache"]
    validation = feed("validation", cache=cache) if manifest.num_rows.get("validation") else None
    if settings.early_stopping is not None:
        metrics = with_own(build_metrics(columns.label), columns.label, model.own_metrics)
        names = None if validation is None else metrics.figures()
        validate_early_stopping(settings.early_stopping, names)
    run = lake.run(request["recipe"], run_id)
    profile = None
    if request.get("profile"):
        profile = Profile(world, lake, run, tuple(request["profile"]))
        profile.validate(0, settings.epochs * train_feed.num_steps)
    return Loop(world=world, lake=lake, run=run, model=model, settings=settings, feed=train_feed, validation=validation,
                made_from=made_from, profile=profile, spot_notice=request.get("spot_notice"))  # fmt: skip


def _begin(world: World, loop: Loop, checkpoint: Checkpoint | None, made_from: dict[str, Any]) -> None:
    """Sets every rank to the same start, and proves it before the first step."""
    if checkpoint is not None:
        validate_origin(f"the checkpoint at global step {checkpoint.global_step:,}", checkpoint.facts, made_from)
        loop.restore(checkpoint)
        if loop.profile is not None:
            loop.profile.validate(loop.progress.global_step, loop.settings.epochs * loop.feed.num_steps)
    broadcast_weights(world, list(loop.model.variables))
    recipe = fingerprint({"model": made_from["model"], "training": made_from["training"]})
    loop.validate_agreement(recipe=recipe, code=made_from["code"], snapshot=made_from["snapshot"])


def _facts(world: World, loop: Loop, manifest: Manifest, made_from: dict[str, Any]) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "lakering": __version__}
    rows = {"rows": manifest.num_rows, "steps_per_epoch": loop.feed.num_steps,
            "parameters": int(sum(variable.shape.num_elements() for variable in loop.model.variables))}  # fmt: skip
    order = asdict(loop.feed.order)
    resets = {"resets": world.memory["resets"]} if "resets" in world.memory else {}
    return {**resets, "inputs": {**made_from, "build": manifest.build, "version": manifest.version}, "ranks": world.size,
            "versions": versions, "counts": rows, "order": order,
            "derived": derive(loop.settings).facts(loop.settings)}  # fmt: skip


def _finish(
    loop: Loop, request: Request, manifest: Manifest, run_id: str, resumed_at: int, started: float, fed: dict[str, Any]
) -> dict[str, Any]:
    """Exports the model, then completes the record."""
    settings = loop.settings
    best = read_best(loop.lake, loop.run) if settings.keep_best else None
    weights = loop.weights()
    if best is not None and settings.export == "best":
        weights = read_checkpoint(loop.lake, loop.run, best.checkpoint).weights
    _write_model(loop, weights, section=request["model"], snapshot=manifest.id, seed=settings.seed, precision=settings.precision,
                 images=settings.images, user_code=versions(request["user_code"]))  # fmt: skip
    timings = {"seconds": time.time() - started, "step_seconds": loop.seconds / max(loop.steps_done, 1), **fed}
    metrics = {"epochs": loop.progress.epochs, "final": loop.progress.epochs[-1], "stopped_early": loop.stopped_early()}
    if best is not None:
        metrics |= {"best": best.facts, "exported": settings.export}
    return write_record(loop.lake, request["recipe"], run_id, status=COMPLETE, timings=plain(timings), metrics=plain(metrics),
                        steps=loop.progress.global_step, resumed_at=resumed_at, communication=loop.communication,
                        profile=loop.profile.facts if loop.profile is not None else None,
                        **(loop.optimizer.loss_scale.facts() if loop.optimizer.loss_scale else {}))  # fmt: skip


def _write_model(loop: Loop, weights: Arrays, **facts: Any) -> None:
    try:
        write_model(loop.lake, loop.run, loop.model, weights, **facts)
    except OSError as error:
        raise UnsavedError(f"the model cannot be written to {loop.lake.storage.path(*loop.run)}: {error.strerror or error}",
                           next_step="make room where the lake lies, then run the same command again: the training is "
                           "done and saved, and only its model is written") from error  # fmt: skip


def _say(world: World, notes: list[str]) -> None:
    if world.rank == 0:
        for note in notes:
            print(f"warning: {note}", file=sys.stderr, flush=True)
