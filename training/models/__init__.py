"""The models that a recipe can name: each a file with its typed settings. Any of them trains under the one loop."""

from __future__ import annotations

from typing import Any

from lakering.errors import SettingError, nearest
from recipes.recipe import Recipe
from recipes.training import Training
from training.models.base import Features, Label, Model, ModelColumns
from training.models.cnn import CNN, CNNSettings
from training.models.dlrm import DLRM, DLRMSettings
from training.models.text_transformer import TextTransformer, TextTransformerSettings
from training.models.two_tower import TwoTower, TwoTowerSettings
from training.models.wide_and_deep import WideAndDeep, WideAndDeepSettings
from training.user_code import located

MODELS: dict[str, tuple[type[Any], type[Model]]] = {
    "wide_and_deep": (WideAndDeepSettings, WideAndDeep),
    "dlrm": (DLRMSettings, DLRM),
    "text_transformer": (TextTransformerSettings, TextTransformer),
    "cnn": (CNNSettings, CNN),
    "two_tower": (TwoTowerSettings, TwoTower),
}

#: How a recipe writes a feature of a kind.
_FEATURE = {"array": "as: array", "tokens": "as: text", "image": "as: image"}

__all__ = [
    "MODELS",
    "Features",
    "Label",
    "Model",
    "ModelColumns",
    "build_model",
    "read_model_section",
    "validate_whole_batches",
]


def read_model_section(recipe: Recipe) -> dict[str, Any]:
    """The recipe's ``model`` section, defaults filled in. Raises SettingError with file, line and nearest name."""
    name = recipe.model().name
    if "module" in recipe.model().options:
        from training.models.own import OwnSettings, own_model  # not above: it imports Keras, which takes seconds

        own: dict[str, Any] = recipe.document.validate(OwnSettings, ("model",)).model_dump(mode="json")
        with located(recipe, ("model",)):
            own_model(own, str(recipe.path.parent.absolute()))
        return own
    if name not in MODELS:
        raise recipe.document.error(("model", "name"), f"no model is named {name!r}{nearest(name, MODELS)}")
    settings = recipe.document.validate(MODELS[name][0], ("model",))
    section: dict[str, Any] = settings.model_dump(mode="json")
    return section


def build_model(section: dict[str, Any], columns: ModelColumns, *, seed: int, precision: str = "float32",
                folder: str | None = None) -> Model:  # fmt: skip
    """The model that a section of a recipe names, its variables set from the seed alone. A module of the user's own is looked for
    in ``folder``.

    Raises SettingError when there is no such model, or when it cannot take a column."""
    settings, model = _chosen(section, folder)
    left = [f"{column.name} ({column.kind})" for column in columns.binary if column.kind not in model.takes]
    if left:
        kinds = ", ".join(("float", "id", *model.takes))
        raise SettingError(f"model {section['name']!r} takes columns of the kinds {kinds}, and cannot take {', '.join(left)}",
                           next_step="leave these features out of the recipe and build its examples again, or name a model that "
                           "takes them")  # fmt: skip
    _validate_needs(section["name"], model, columns)
    return model(settings, columns, seed=seed, precision=precision)


def _chosen(section: dict[str, Any], folder: str | None) -> tuple[Any, type[Model]]:
    if "module" in section:
        from training.models.own import own_model

        return own_model(section, folder)
    if section["name"] not in MODELS:
        raise SettingError(f"no model is named {section['name']!r}{nearest(section['name'], MODELS)}")
    settings, model = MODELS[section["name"]]
    return settings.model_validate(section), model


def _validate_needs(name: str, model: type[Model], columns: ModelColumns) -> None:
    for kind in model.needs:
        if all(column.kind != kind for column in columns.binary):
            raise SettingError(f"model {name!r} needs a column of the kind {kind}, and the examples have none",
                               next_step=f"give the recipe a feature '{_FEATURE[kind]}' and build its examples again, or name "
                               "another model")  # fmt: skip
    for column in columns.binary:
        if column.kind == "image" and column.shape is None:
            raise SettingError(f"model {name!r} takes the image column {column.name}, and nothing tells how to decode it",
                               next_step=f"set training.images: {{{column.name}: {{size: [HEIGHT, WIDTH]}}}}")  # fmt: skip


def validate_whole_batches(model: Model, name: str, settings: Training) -> None:
    """Raises SettingError for settings that a model which spans the batch cannot be trained with."""
    if not model.spans_batch:
        return
    if settings.accumulate > 1:
        raise SettingError(f"training.accumulate is {settings.accumulate}, and model {name!r} compares all rows of a batch: "
                           "worked through in parts, each part would be a batch of its own",
                           next_step="leave accumulate out; to save memory, lower training.global_batch_size or train on more "
                           "ranks")  # fmt: skip
    if settings.label_smoothing:
        raise SettingError(f"training.label_smoothing is {settings.label_smoothing:g}, and model {name!r} has a loss of its own",
                           next_step="leave label_smoothing out")  # fmt: skip
