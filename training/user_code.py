"""Modules of the user's own that a recipe names: a model, a loss, metrics. They are Python that this process runs, so only what
the recipe at hand names is imported, never what stands in an artifact alone.

A module is looked for in the recipe's folder, then on PYTHONPATH; the folder is on ``sys.path`` during the import alone.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from lakering.errors import SettingError, nearest
from recipes import Recipe

#: Modules that were imported from here, with the version of their code.
_imported: dict[str, str] = {}


def user_code(recipe: Recipe) -> dict[str, Any]:
    """Plain values by which ranks find a recipe's own modules: its ``folder``, the ``modules`` that it names, and which of their
    classes are its ``metrics``."""
    training = recipe.section("training")["training"]
    model = recipe.settings.model.options if recipe.settings.model is not None else {}
    named = [model, training["loss"] or {}, *training["metrics"]]
    return {"folder": str(recipe.path.parent.absolute()), "metrics": training["metrics"],
            "modules": sorted({str(each["module"]) for each in named if each.get("module")})}  # fmt: skip


def validate_user_code(recipe: Recipe) -> None:
    """Imports a recipe's own loss and metrics. Raises SettingError with file and line when one is not there."""
    training, folder = recipe.section("training")["training"], str(recipe.path.parent.absolute())
    places: dict[tuple[str | int, ...], Any] = {("training", "loss"): training["loss"]}
    places |= {("training", "metrics", i): each for i, each in enumerate(training["metrics"])}
    for at, named in places.items():
        if named is not None:
            with located(recipe, at):
                load(named, folder)


@contextmanager
def located(recipe: Recipe, at: tuple[str | int, ...]) -> Iterator[None]:
    """Inside, a SettingError gets the file and line of a recipe's key."""
    try:
        yield
    except SettingError as error:
        raise recipe.document.error(at, error.message) from error


def load(named: Mapping[str, Any], folder: str | None) -> Any:
    """The callable ``name`` of ``module``. Raises SettingError when either is not there, or the import fails."""
    module, name = named["module"], named["name"]
    with _on_path(folder):
        version, spec = _version(module, folder), _find(module, folder)
        top = module.partition(".")[0]
        if _imported.get(top) not in (None, version):  # it was changed, or another recipe's has its name
            for known in [each for each in sys.modules if each.partition(".")[0] == top]:
                del sys.modules[known]
        elif top not in _imported and top in sys.modules and getattr(sys.modules[top], "__file__", None) != spec.origin:
            raise SettingError(f"module {module!r} ({spec.origin}) has the name of another that is imported already: rename it")
        try:
            found = importlib.import_module(module)
        except Exception as error:
            raise SettingError(f"module {module!r} cannot be imported: {type(error).__name__}: {error}") from error
        _imported[top] = version
    if not hasattr(found, name):
        public = [each for each in vars(found) if not each.startswith("_")]
        raise SettingError(f"module {module!r} ({found.__file__}) has no {name!r}{nearest(name, public)}")
    if not callable(getattr(found, name)):
        raise SettingError(f"{module}.{name} is a {type(getattr(found, name)).__name__}, where a class or a function is expected")
    return getattr(found, name)


def versions(code: Mapping[str, Any]) -> dict[str, str]:
    """By module a fingerprint of its file, or of all files of its package."""
    with _on_path(code["folder"]):
        return {module: _version(module, code["folder"]) for module in code["modules"]}


def _version(module: str, folder: str | None) -> str:
    spec = _find(module, folder)
    origin = Path(spec.origin or "")
    root = next(iter(spec.submodule_search_locations or ()), None)
    digest = hashlib.sha256()
    for source in sorted(Path(root).rglob("*.py")) if root is not None else [origin]:
        digest.update(f"{source.relative_to(root or origin.parent)}\0".encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _find(module: str, folder: str | None) -> ModuleSpec:
    top = module.partition(".")[0]
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(top)
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        raise SettingError(f"module {module!r} is found neither in the recipe's folder {folder} nor on PYTHONPATH; put {top}.py "
                           "there, and under Spark send it along: --py-files")  # fmt: skip
    return spec


@contextmanager
def _on_path(folder: str | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
