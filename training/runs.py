"""Which run a request means: the one under way, the one named, or the newest of the same snapshot, recipe and code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lakering.errors import InputError, TrainingError, nearest
from lakering.lake import RUNS, Lake
from lakering.manifest import Manifest, read_manifest, validate_files
from lakering.names import code_version, fingerprint, validate_identifier
from lakering.record import read_record
from training.distributed import World
from training.requests import Request
from training.user_code import versions

#: A run's status once its model is there.
COMPLETE = "complete"


@dataclass(frozen=True)
class Chosen:
    """What a request comes to. ``made_from`` is what the run is named by; a ``complete`` one is not trained again."""

    manifest: Manifest
    made_from: dict[str, Any]
    run: str
    complete: bool


def choose_run(world: World, lake: Lake, request: Request) -> Chosen:
    """The snapshot that a request means and the run that follows from it, the same on every rank; nothing is written.

    Raises StageError without a snapshot, IntegrityError when its files are gone."""
    manifest = _snapshot(world, lake, request)
    own = world.together("user code", lambda: versions(request["user_code"]))
    code = "-".join([code_version("training", "lakering", "recipes"), *([fingerprint(own, 12)] if own else [])])
    made_from = {"snapshot": manifest.id, "model": request["model"], "training": request["training"], "code": code}
    found = world.from_first("run", lambda: _choose_run(lake, request, made_from, world.memory.get("run")))
    return Chosen(manifest, made_from, found["run"], found["complete"])


def _snapshot(world: World, lake: Lake, request: Request) -> Manifest:
    """The asked snapshot, or the newest one; its files are looked at before anything else is done."""

    def choose() -> str:
        manifest = read_manifest(lake, request["recipe"], request["snapshot"])
        validate_files(lake, manifest)
        if not manifest.num_rows.get("train"):
            raise InputError(f"snapshot {manifest.id} has no rows to train on; it has {manifest.num_rows or 'none'}")
        return manifest.id

    snapshot = world.from_first("snapshot", choose)
    return world.together("manifest", lambda: read_manifest(lake, request["recipe"], snapshot))


def _choose_run(lake: Lake, request: Request, made_from: dict[str, Any], under_way: str | None) -> dict[str, Any]:
    """The run under way, of an elastic training; that which is named; else the newest of this fingerprint, or with ``--new``
    the next: BASE, BASE-2, BASE-3, ..."""
    base, known = fingerprint(made_from), lake.storage.list(RUNS, request["recipe"])
    numbers = [1] if base in known else []
    numbers += [int(name[len(base) + 1 :]) for name in known if name.startswith(f"{base}-") and name[len(base) + 1 :].isdigit()]
    number = max(numbers, default=0) + 1 if request["new"] or not numbers else max(numbers)
    run = under_way or (base if number == 1 else f"{base}-{number}")
    if request.get("resume") and not under_way:
        run = named_run(lake, request["recipe"], request["resume"], made_from, known)
    record = read_record(lake, request["recipe"], run)
    return {"run": run, "complete": bool(record) and record["status"] == COMPLETE if record else False}


def named_run(lake: Lake, recipe: str, run: str, made_from: dict[str, Any], known: list[str]) -> str:
    """The run that ``--resume`` names. Raises InputError when it is none of the ``known`` ones, TrainingError when it was
    made from something else."""
    validate_identifier(run, "run")
    if run not in known:
        raise InputError(f"--resume {run}: recipe '{recipe}' has no such run in {lake.storage.root}{nearest(run, known)}",
                         next_step="leave --resume out: a run of the same inputs is found by itself")  # fmt: skip
    record = read_record(lake, recipe, run)
    if record is not None:
        validate_origin(f"run {run}", record["inputs"], made_from)
    elif run.partition("-")[0] != fingerprint(made_from):
        raise TrainingError(f"run {run} has no record, and its name is of other inputs than {fingerprint(made_from)}",
                            next_step="leave --resume out")  # fmt: skip
    return run


def validate_origin(what: str, origin: dict[str, Any], made_from: dict[str, Any]) -> None:
    """Raises TrainingError, with both sides, where something was made from other things than this training would be."""
    for name, ours in made_from.items():
        theirs = origin.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            differ = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
            pairs = [(f"{name}.{key}", theirs.get(key), ours.get(key)) for key in differ]
        else:
            pairs = [(name, theirs, ours)] if theirs != ours else []
        if pairs:
            both = "; ".join(f"{key} {left}, this training has {right}" for key, left, right in pairs)
            raise TrainingError(
                f"{what} was made with {both}",
                next_step="train anew (--new), or go on with the recipe, snapshot and code of the run",
            )
