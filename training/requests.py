"""What a job asks of its ranks: plain values, since a rank may be on a machine without the recipe's file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lakering.errors import SettingError
from lakering.lake import Lake
from lakering.storage import Storage, StorageSettings
from recipes import Recipe
from training.distributed.notice import validate_place
from training.models import read_model_section
from training.profile import read_range
from training.schedules import with_scaled_batch
from training.user_code import user_code, validate_user_code

Request = dict[str, Any]


def lake_request(recipe: Recipe) -> Request:
    """What a rank needs to find the lake, and the recipe's own modules."""
    storage = recipe.lake.storage
    return {"recipe": recipe.name, "lake": storage.root, "storage": asdict(storage.settings), "user_code": user_code(recipe)}


def lake_of(request: Request) -> Lake:
    return Lake(Storage(request["lake"], StorageSettings(**request["storage"])))


def train_request(recipe: Recipe, *, snapshot: str | None = None, new: bool = False, scale_batch: int | None = None,
                  profile: str | None = None, resume: str | None = None, spot_notice: str | None = None) -> Request:  # fmt: skip
    """What ``train`` takes; with ``scale_batch`` for so many times the recipe's batch, the learning rate scaled with it.
    ``profile`` is FIRST:LAST, the steps to profile; ``resume`` names the run to go on with, ``spot_notice`` where a
    termination notice appears (``distributed.notice``).

    Raises SettingError when the recipe names no model, or a wrong one, and for flags that cannot be."""
    if resume is not None and new:
        raise SettingError(f"--resume {resume} goes on with a run, and --new makes one: give one of them")
    if spot_notice is not None:
        validate_place(spot_notice)
    model = read_model_section(recipe)
    validate_user_code(recipe)
    section = recipe.section("training", "feed")
    if scale_batch is not None:
        section["training"] = with_scaled_batch(section["training"], scale_batch)
    if section["feed"]["cache_folder"] is not None:
        section["feed"]["cache_folder"] = recipe.resolve(section["feed"]["cache_folder"])
    return {**lake_request(recipe), "model": model, **section, "snapshot": snapshot, "new": new, "resume": resume,
            "spot_notice": spot_notice, "profile": None if profile is None else read_range(profile)}  # fmt: skip
