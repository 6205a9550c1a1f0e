"""Reads a recipe: one YAML that says where a data set's data is, its features, its model and its training."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from lakering.documents import Document, Settings, read_document, with_overrides
from lakering.lake import Lake
from lakering.storage import Storage, StorageSettings
from recipes.kafka import Kafka
from recipes.settings import Examples, Name, TableSettings, TopicSource
from recipes.settings import Storage as StorageSection
from recipes.training import Evaluation, FeedSettings, ModelSettings, Training
from schemas import Contract, read_contract

DEFAULT_LAKE = "lake"


class RecipeSettings(Settings):
    name: Name
    lake: str | None = None
    storage: StorageSection = StorageSection()
    kafka: Kafka | None = None
    tables: dict[Name, TableSettings] = Field(min_length=1)
    examples: Examples | None = None
    model: ModelSettings | None = None
    training: Training = Training()
    feed: FeedSettings = FeedSettings()
    evaluation: Evaluation = Evaluation()


@dataclass(frozen=True)
class Recipe:
    """A recipe as read: its settings, and the document that they stand in, for errors that name file and line."""

    document: Document
    settings: RecipeSettings
    lake_override: str | None = None

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def path(self) -> Path:
        return self.document.path

    @property
    def lake(self) -> Lake:
        """``--lake``, else the recipe's ``lake`` (relative to the recipe), else ``./lake``."""
        chosen = self.lake_override or (self.resolve(self.settings.lake) if self.settings.lake else DEFAULT_LAKE)
        return Lake(Storage(chosen, StorageSettings(**self.settings.storage.model_dump())))

    @property
    def kafka(self) -> Kafka | None:
        """How to reach the brokers, with paths as the recipe means them; None when it names none."""
        return self.settings.kafka and self.settings.kafka.resolved(self.resolve)

    def resolve(self, path: str) -> str:
        """A path as the recipe means it: relative to the recipe's own folder; URLs stay as they are."""
        return path if "://" in path or os.path.isabs(path) else os.path.normpath(self.path.parent.absolute() / path)

    def examples(self) -> Examples:
        if self.settings.examples is None:
            raise self.document.error((), "key 'examples' is missing: it says what the model learns from")
        return self.settings.examples

    def model(self) -> ModelSettings:
        if self.settings.model is None:
            raise self.document.error((), "key 'model' is missing, such as model: {name: wide_and_deep}")
        return self.settings.model

    def contract(self, table: str) -> Contract:
        """The contract of one of the recipe's tables. Raises SettingError when it is wrong or is another table's."""
        at = ("tables", table, "contract")
        contract = read_contract(self.resolve(self.settings.tables[table].contract))
        if contract.table != table:
            raise self.document.error(
                at, f"{contract.document.path} is the contract of table '{contract.table}', not of '{table}'"
            )
        return contract

    def section(self, *names: str) -> dict[str, Any]:
        """Sections as plain values with all defaults filled in, for fingerprints and records."""
        return self.settings.model_dump(mode="json", by_alias=True, include=set(names))


def read_recipe(path: str | os.PathLike[str], *, overrides: Iterable[str] = (), lake: str | None = None) -> Recipe:
    """Reads and validates a recipe; ``overrides`` are ``key=value`` strings (``--set``).

    Raises InputError when the file is missing, SettingError when it is wrong."""
    document = with_overrides(read_document(path, variables=os.environ.get), overrides)
    settings = document.validate(RecipeSettings)
    _validate_registry(document, settings)
    return Recipe(document, settings, lake)


def _validate_registry(document: Document, settings: RecipeSettings) -> None:
    if settings.kafka is not None and settings.kafka.registry is not None:
        return
    for table, source_settings in settings.tables.items():
        for index, source in enumerate(source_settings.sources):
            if isinstance(source, TopicSource) and source.format == "avro" and source.schema_file is None:
                text = "format: avro needs the writer's schema: set schema_file, or kafka.registry where messages name theirs"
                raise document.error(("tables", table, "sources", index), text)
