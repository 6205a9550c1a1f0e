"""The hold-out: the model's figures over all ranks, baselines on the same rows and columns, and one report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lakering.errors import InputError
from lakering.lake import Lake
from lakering.manifest import Manifest, read_manifest, validate_files
from lakering.record import write_record
from recipes import Recipe
from recipes.training import Evaluation, ImageSettings
from training.baselines import base_rate_metrics, tree_metrics
from training.distributed import World
from training.export import newest_run, read_images, read_model
from training.feed import Batch, Feed, Order
from training.feed.plan import default_lanes
from training.loop import evaluate as evaluate_split
from training.metrics import COMPARED_BY, Metrics
from training.models import Model
from training.report import Findings, write_report
from training.requests import Request, lake_of, lake_request
from training.slices import Slices, choose_slices, read_id_names, validate_slices
from training.step import Predictor, set_threads
from training.steplog import plain, read_steps
from training.user_code import validate_user_code, versions
from training.user_metrics import of_label, read_metrics

BATCH = 8192
#: Fewer rows where they hold images, which are many numbers each.
IMAGE_BATCH = 128
FOLDER, FIGURES, REPORT = "evaluation", "figures.json", "report.html"


def evaluate_request(recipe: Recipe, run: str | None = None) -> Request:
    """What ``evaluate`` takes."""
    validate_user_code(recipe)
    return {**lake_request(recipe), "run": run, "evaluation": recipe.section("evaluation")["evaluation"]}


def evaluate(world: World, request: Request) -> dict[str, Any]:
    """Evaluates a run's model on the split that the recipe names.

    Returns ``run``, ``snapshot``, ``split``, ``figures`` per contestant, ``verdict``, ``slices`` where any are asked for, and
    the ``report``'s path (on rank 0). A model that is worse than a baseline is told of in ``verdict``; it is no error. Raises
    StageError without a trained model, IntegrityError when the model or the snapshot's files are not what they were, SettingError
    for slices of a column that is not there."""
    lake, settings = lake_of(request), Evaluation.model_validate(request["evaluation"])
    set_threads(world)
    recipe = request["recipe"]
    run_id, model, facts, manifest = choose_model(world, lake, request)
    wide, manifest = manifest.with_columns([*model.columns.names, *settings.slices]), manifest.with_columns(model.columns.names)
    run = lake.run(recipe, run_id)

    def feed_of(columns: Manifest, images: Mapping[str, ImageSettings] | None = None) -> Feed:
        return _feed(lake, columns, settings.split, world, images)

    sliced = choose_slices(world, wide, settings.slices, feed_of, settings.slice_values)
    slices = Slices(sliced, model.columns.label)
    predict = _narrowed(Predictor(model), wide, manifest)
    metrics = evaluate_split(world, feed_of(wide, read_images(facts)), model, predict, slices.add)
    slices.join(world)
    ranges = _ranges(world, feed_of(manifest.only("float")), model)
    if world.rank:
        return {}
    contestants: dict[str, Metrics] = {"model": metrics, "base rate": base_rate_metrics(lake, manifest, settings.split)}
    tree_facts: dict[str, Any] = {}
    if settings.trees and manifest.only("float", "id").columns:
        contestants["boosted trees"], tree_facts = tree_metrics(lake, manifest, settings, facts["seed"])
    figures = {name: {**plain(found.figures()), **(tree_facts if name == "boosted trees" else {})}
               for name, found in contestants.items()}  # fmt: skip
    result = {"recipe": recipe, "run": run_id, "snapshot": facts["snapshot"], "split": settings.split, "figures": figures,
              "verdict": verdict(figures, model.columns.label.kind)}  # fmt: skip
    if settings.slices:
        result["slices"] = plain(slices.tables(read_id_names(lake, wide, sliced)))
    if settings.trees and "boosted trees" not in figures:
        result["verdict"]["against_boosted_trees"] = "not made: the examples have neither floats nor ids"
    findings = Findings(result=result, label=model.columns.label,
                        contestants={name: of_label(found) for name, found in contestants.items()}, ranges=ranges,
                        steps=read_steps(lake, run), facts=facts)  # fmt: skip
    write_report(lake, findings, *run, FOLDER, REPORT)
    lake.storage.write_json(plain({**result, "ranges": ranges}), *run, FOLDER, FIGURES)
    write_record(lake, recipe, run_id, evaluation=plain(result))
    return {**result, "report": lake.storage.path(*run, FOLDER, REPORT)}


def choose_model(world: World, lake: Lake, request: Request) -> tuple[str, Model, dict[str, Any], Manifest]:
    """The run that a request means, its model with the facts beside it, and its snapshot; nothing is written.

    Raises StageError without a trained model, IntegrityError when it or the snapshot is not what it was, InputError when
    the split has no rows."""
    recipe, settings = request["recipe"], Evaluation.model_validate(request["evaluation"])
    run_id: str = world.from_first("run", lambda: newest_run(lake, recipe, request["run"]))
    code = request["user_code"]
    model, facts = world.together("model", lambda: read_model(lake, lake.run(recipe, run_id), code))
    model.own_metrics = world.together("metrics", lambda: read_metrics(code))
    module = facts["model"].get("module")
    if module is not None and world.rank == 0 and versions(code)[module] != facts["user_code"][module]:
        print(f"warning: module {module!r} has changed since run {run_id} was trained with it", file=sys.stderr, flush=True)
    world.agree({"model": facts["files"]["weights.npz"]["sha256"], "snapshot": facts["snapshot"]})
    manifest = world.together("manifest", lambda: _snapshot(lake, recipe, facts["snapshot"], settings.split))
    validate_slices(manifest, settings.slices)
    return run_id, model, facts, manifest


def verdict(figures: dict[str, dict[str, Any]], kind: str) -> dict[str, str]:
    """How the model compares with each baseline in the metric that counts, said in words."""
    metric, better = COMPARED_BY[kind]
    ours = figures["model"][metric]
    said = {}
    for name in figures.keys() - {"model"}:
        theirs = figures[name][metric]
        if ours is None or theirs is None:
            said[f"against_{name.replace(' ', '_')}"] = f"{metric} cannot be told: the split holds one class alone"
            continue
        lead = (ours - theirs) * better
        words = "better" if lead > 0 else "WORSE" if lead < 0 else "equal,"
        said[f"against_{name.replace(' ', '_')}"] = f"{words} by {abs(lead):.4f} {metric} ({ours:.4f} against {theirs:.4f})"
    return dict(sorted(said.items()))


def _narrowed(predictor: Predictor, wide: Manifest, manifest: Manifest) -> Callable[[Batch], npt.NDArray[np.float64]]:
    """The predictor for batches with more floats and ids than its model was trained on."""
    if wide.columns == manifest.columns:
        return predictor
    floats = [wide.float_columns.index(name) for name in manifest.float_columns]
    ids = [wide.id_columns.index(column) for column in manifest.id_columns]

    def predict(batch: Batch) -> npt.NDArray[np.float64]:
        return predictor(replace(batch, floats=batch.floats[:, floats], ids=batch.ids[:, ids]))

    return predict


def _snapshot(lake: Lake, recipe: str, snapshot: str, split: str) -> Manifest:
    manifest = read_manifest(lake, recipe, snapshot)
    validate_files(lake, manifest)
    if not manifest.num_rows.get(split):
        raise InputError(f"snapshot {manifest.id} has no rows in its {split} split; it has {manifest.num_rows}",
                         next_step="choose another split (--set evaluation.split=validation)")  # fmt: skip
    return manifest


def _feed(lake: Lake, manifest: Manifest, split: str, world: World, images: Mapping[str, ImageSettings] | None = None) -> Feed:
    batch = IMAGE_BATCH if images else BATCH
    order = Order(seed=0, batch_size=batch, window=16, lanes=default_lanes(batch))
    return Feed(lake=lake, manifest=manifest, split=split, order=order, rank=world.rank, ranks=world.size, row_ids=False,
                images=images or {})  # fmt: skip


def _ranges(world: World, feed: Feed, model: Model) -> list[dict[str, Any]]:
    """Of each float column: what was learnt on train, and min, mean, max and the share beyond train's range here."""
    columns = model.columns.floats
    low = np.array([c.edges[0] for c in columns])
    high = np.array([c.edges[-1] for c in columns])
    least, most = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
    sums = np.zeros((2, len(columns)))

    def read() -> None:
        with closing(feed.epoch(0)) as batches:
            for batch in batches:
                if batch.num_rows:
                    np.minimum(least, batch.floats.min(0), out=least)
                    np.maximum(most, batch.floats.max(0), out=most)
                    sums[:] += batch.floats.sum(0, dtype=np.float64), ((batch.floats < low) | (batch.floats > high)).sum(0)

    world.together("ranges", read)
    # Extremes by a sum: each rank fills its own row. What a rank did not see stays beyond all others.
    table = np.zeros((2, world.size, len(columns)))
    table[:, world.rank] = np.clip(least, -3.5e38, 3.5e38), np.clip(most, -3.5e38, 3.5e38)
    table, sums = world.sum(table, "extremes"), world.sum(sums, "ranges")
    means, beyond = sums / max(feed.num_rows, 1)
    return [
        {"column": c.name, "train_min": c.edges[0], "train_mean": c.mean, "train_max": c.edges[-1],
         "min": float(table[0, :, i].min()), "mean": float(means[i]), "max": float(table[1, :, i].max()),
         "share_out_of_range": float(beyond[i])}
        for i, c in enumerate(columns)
    ]  # fmt: skip
