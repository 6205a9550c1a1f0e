"""Whether a run may be gone on with: it was made from what this training would be made from."""

from __future__ import annotations

from typing import Any

from lakering.errors import InputError, TrainingError, nearest
from lakering.lake import Lake
from lakering.names import fingerprint, validate_identifier
from lakering.record import read_record


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
