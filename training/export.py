"""A trained model on storage: weights as plain arrays, and a JSON of what is needed to score with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lakering.errors import SettingError, StageError
from lakering.lake import RUNS, Lake
from recipes.training import ImageSettings
from training.checkpoint import Arrays, read_arrays, write_arrays
from training.loop import set_weights
from training.models import Model, ModelColumns, build_model

FOLDER, JSON, WEIGHTS = "model", "model.json", "weights.npz"


def write_model(lake: Lake, run: tuple[str, ...], model: Model, weights: Arrays, *, section: dict[str, Any],
                snapshot: str, seed: int, precision: str, images: Mapping[str, ImageSettings],
                user_code: Mapping[str, str]) -> None:  # fmt: skip
    """Writes ``model/weights.npz`` and, last, ``model/model.json``. ``images`` tell how the model's images are decoded,
    ``user_code`` the versions of the user's own modules."""
    files = {WEIGHTS: write_arrays(lake, weights, *run, FOLDER, WEIGHTS)}
    facts = {"model": section, "columns": model.columns.to_json(), "precision": precision, "seed": seed,
             "snapshot": snapshot, "files": files, "user_code": dict(user_code),
             "images": {name: settings.model_dump(mode="json") for name, settings in images.items()}}  # fmt: skip
    lake.storage.write_json(facts, *run, FOLDER, JSON)


def newest_run(lake: Lake, recipe: str, run_id: str | None = None) -> str:
    """The asked run, or the newest that has a model. Raises StageError, with the command to run first, without one."""
    chosen = run_id or lake.newest(RUNS, recipe, marker=f"{FOLDER}/{JSON}")
    if chosen is None or not lake.storage.exists(*lake.run(recipe, chosen), FOLDER, JSON):
        which = f"run {run_id!r} of recipe '{recipe}' with a trained model" if run_id else f"trained model of recipe '{recipe}'"
        raise StageError(
            f"no {which} in {lake.storage.root}",
            next_step="spark-submit --properties-file spark-defaults.conf training/jobs/train.py --recipe FILE",
        )
    return chosen


def read_model(lake: Lake, run: tuple[str, ...], code: Mapping[str, Any] | None = None) -> tuple[Model, dict[str, Any]]:
    """The model of a complete run, ready to score, and the facts that stand beside it. ``code`` tells which modules of the
    user's own may be imported (``training.user_code``). Raises IntegrityError when its weights are not those that were
    written, SettingError when it is of a module that the recipe does not name."""
    facts: dict[str, Any] = lake.storage.read_json(*run, FOLDER, JSON)
    weights = read_arrays(lake, facts["files"][WEIGHTS], *run, FOLDER, WEIGHTS)
    columns = ModelColumns.from_json(facts["columns"])
    module, folder = facts["model"].get("module"), code["folder"] if code else None
    if module is not None and (code is None or module not in code["modules"]):
        raise SettingError(f"run {run[-1]} has a model of the module {module!r}, which the recipe does not name: what the "
                           "files of a run alone name is not imported",
                           next_step="evaluate with the recipe that it was trained with")  # fmt: skip
    model = build_model(facts["model"], columns, seed=facts["seed"], precision=facts["precision"], folder=folder)
    set_weights(model, weights)
    return model, facts


def read_images(facts: dict[str, Any]) -> dict[str, ImageSettings]:
    """How a model's images are decoded, from the facts that stand beside it; none for a model of before there were any."""
    return {name: ImageSettings.model_validate(settings) for name, settings in facts.get("images", {}).items()}
