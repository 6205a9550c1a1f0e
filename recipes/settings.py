"""The typed sections of a recipe, but for a training's (``recipes.training``).

What a key means stands beside it; what it may be is checked when it is read."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, StrictInt, Tag, field_validator, model_validator

from lakering.documents import Settings
from lakering.durations import Duration
from lakering.errors import SettingError
from lakering.names import validate_name


def parse_bound(text: str) -> datetime.datetime:
    """The instant in a bound such as ``< 2013-09-01`` (UTC). Raises ValueError on anything else."""
    if not re.fullmatch(r"< \d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}:\d{2})?", text):
        raise ValueError(text)
    return datetime.datetime.fromisoformat(text.removeprefix("< ")).replace(tzinfo=datetime.UTC)


def _name(text: str) -> str:
    try:
        return validate_name(text, "name")
    except SettingError as error:
        raise ValueError(error.message) from None  # so that the document can tell the line


def _int64(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise ValueError("more than 64 bits hold")
    return value


Name = Annotated[str, AfterValidator(_name)]
#: A validator, since bounds here would take the place of those that a setting has.
Int = Annotated[StrictInt, AfterValidator(_int64)]


class Source(Settings):
    """Where rows come from: a file, a folder or a glob. Relative paths are relative to the recipe."""

    files: str
    format: Literal["csv", "json", "parquet", "images"]


def _topic_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", text) or text in (".", ".."):
        raise ValueError("a topic's name is of letters, digits, '.', '_' and '-', 249 at most")
    return text


class TopicSource(Settings):
    """Where rows come from: the messages of a Kafka topic, of which a micro-batch takes so many at most, or so many bytes of
    them: since Spark's connector knows no limit by bytes, it is told as a number of messages of the size that the newest of
    the topic have when the stream starts.

    Of ``avro`` each message is bare, written with the schema in ``schema_file``; without one it names its schema by a number,
    which ``kafka.registry`` knows. Relative paths are relative to the recipe."""

    topic: Annotated[str, AfterValidator(_topic_name)]
    format: Literal["json", "avro"]
    schema_file: str | None = None
    max_offsets_per_trigger: Int = Field(1_000_000, ge=1)
    max_bytes_per_trigger: Int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _schema_of_avro(self) -> TopicSource:
        if self.schema_file is not None and self.format != "avro":
            raise ValueError(f"schema_file is of format: avro; the format is {self.format}")
        return self


def _source_kind(value: Any) -> str | None:
    if isinstance(value, Settings):
        return type(value).__name__
    found = [kind for key, kind in (("files", "Source"), ("topic", "TopicSource")) if isinstance(value, dict) and key in value]
    return found[0] if len(found) == 1 else None


AnySource = Annotated[
    Annotated[Source, Tag("Source")] | Annotated[TopicSource, Tag("TopicSource")],
    Discriminator(
        _source_kind,
        custom_error_type="source_kind",
        custom_error_message="a source has exactly one of the keys files, topic",
    ),
]


class TableSettings(Settings):
    contract: str
    sources: tuple[AnySource, ...] = Field(min_length=1)

    @property
    def files(self) -> tuple[Source, ...]:
        """What batch ingest reads."""
        return tuple(source for source in self.sources if isinstance(source, Source))

    @property
    def topics(self) -> tuple[TopicSource, ...]:
        """What stream ingest reads."""
        return tuple(source for source in self.sources if isinstance(source, TopicSource))

    @model_validator(mode="after")
    def _each_topic_once(self) -> TableSettings:
        twice = [name for name, count in Counter(source.topic for source in self.topics).items() if count > 1]
        if twice:
            raise ValueError(f"sources name topic {twice[0]!r} more than once")
        return self


class Predict(Settings):
    """What is predicted, when, and for which rows. A label of ``kind: multiclass`` is one of ``classes``, texts or whole
    numbers: their order gives them the numbers 0, 1, ...; rows of any other value are left out, and counted."""

    label: str
    kind: Literal["binary", "multiclass", "regression"] = "binary"
    classes: tuple[str, ...] | None = Field(None, min_length=2, max_length=1000)
    moment: str
    where: str | None = None
    weight: str | None = None

    @field_validator("classes", mode="before")
    @classmethod
    def _texts(cls, classes: Any) -> Any:
        if not isinstance(classes, list | tuple):
            return classes
        return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in classes]

    @model_validator(mode="after")
    def _fitting(self) -> Predict:
        if self.kind == "multiclass" and self.classes is None:
            raise ValueError("kind: multiclass needs classes, the label's values, such as classes: [red, green, blue]")
        if self.kind != "multiclass" and self.classes is not None:
            raise ValueError(f"classes are of kind: multiclass; the label's kind is {self.kind}")
        twice = [name for name, count in Counter(self.classes or ()).items() if count > 1]
        if twice:
            raise ValueError(f"classes name {', '.join(map(repr, twice))} more than once")
        return self


class FeatureColumn(Settings):
    """A column of a joined table, or the same written as its bare name.

    ``text`` are the ids of its words, the first ``length`` of them: lower-cased, cut where neither a letter nor a digit
    stands. ``array`` are the numbers of an array column in its contract's shape, as float32. ``image`` are the bytes of a
    binary column as they are."""

    column: Name
    as_: Literal["number", "id", "text", "array", "image"] = Field("number", alias="as")
    length: Int = Field(64, ge=1)


class IdSettings(Settings):
    """How ids, of values and of a text's words, are learnt: what is seen less often than ``min_count`` in train shares
    ``buckets`` hashed buckets."""

    min_count: Int = Field(2, ge=1)
    buckets: Int = Field(1, ge=1, le=1_000_000)
    max_size: Int = Field(1_000_000, ge=1)


class ColumnFeature(FeatureColumn):
    """A column of the main table as it is."""

    ids: IdSettings = IdSettings()


class ExpressionFeature(Settings):
    """A value worked out of columns of the main table."""

    expression: str
    name: Name
    as_: Literal["number", "id", "text"] = Field("number", alias="as")
    length: Int = Field(64, ge=1)
    ids: IdSettings = IdSettings()


class JoinedColumns(Settings):
    on: dict[Name, Name] = Field(min_length=1)
    columns: tuple[FeatureColumn, ...] = Field(min_length=1)
    prefix: Name | None = None
    ids: IdSettings = IdSettings()

    @field_validator("columns", mode="before")
    @classmethod
    def _bare_names(cls, columns: Any) -> Any:
        return [{"column": c} if isinstance(c, str) else c for c in columns] if isinstance(columns, list) else columns


class AsofFeature(JoinedColumns):
    """The newest row of a ``keep`` table that was known at the moment and is not older than ``at_most``."""

    asof: Name
    at_most: Duration


class LookupFeature(JoinedColumns):
    """The row of a ``replace`` table with this key: its value of today, not of the moment."""

    lookup: Name


class AggregateFeature(Settings):
    """A figure over the rows of a table that share the values of ``by`` and became known within ``window`` before the
    moment. The value is an expression; ``name`` defaults to a column's name; ``where`` leaves rows out."""

    aggregate: str
    where: str | None = None
    by: tuple[Name, ...] = ()
    window: Duration
    functions: tuple[Literal["avg", "count", "sum", "last"], ...] = Field(min_length=1)
    name: Name | None = None
    table: Name | None = None

    @model_validator(mode="after")
    def _named(self) -> AggregateFeature:
        if self.name is None:
            try:
                validate_name(self.aggregate, "an aggregate over an expression needs a 'name';")
            except SettingError as error:
                raise ValueError(error.message) from None
        return self


FEATURE_KINDS = {"column": "ColumnFeature", "expression": "ExpressionFeature", "asof": "AsofFeature",
                 "lookup": "LookupFeature", "aggregate": "AggregateFeature"}  # fmt: skip


def _kind(value: Any) -> str | None:
    if isinstance(value, Settings):
        return type(value).__name__
    found = [FEATURE_KINDS[key] for key in FEATURE_KINDS if key in value] if isinstance(value, dict) else []
    return found[0] if len(found) == 1 else None


Feature = Annotated[
    Annotated[ColumnFeature, Tag("ColumnFeature")]
    | Annotated[ExpressionFeature, Tag("ExpressionFeature")]
    | Annotated[AsofFeature, Tag("AsofFeature")]
    | Annotated[LookupFeature, Tag("LookupFeature")]
    | Annotated[AggregateFeature, Tag("AggregateFeature")],
    Discriminator(
        _kind,
        custom_error_type="feature_kind",
        custom_error_message=f"a feature has exactly one of the keys {', '.join(FEATURE_KINDS)}",
    ),
]


class TimeSplit(Settings):
    """By the moment: rows before ``train`` train, rows before ``validation`` validate, the rest tests."""

    by: Literal["time"]
    train: str
    validation: str
    test: Literal["rest"] = "rest"

    @field_validator("train", "validation")
    @classmethod
    def _bound(cls, text: str) -> str:
        try:
            parse_bound(text)
        except ValueError:
            raise ValueError("expected a bound such as '< 2013-09-01' (UTC)") from None
        return text

    @model_validator(mode="after")
    def _ordered(self) -> TimeSplit:
        if parse_bound(self.train) >= parse_bound(self.validation):
            raise ValueError(f"train ({self.train}) must end before validation ({self.validation})")
        return self


class HashSplit(Settings):
    """By a seeded hash of columns of the main table (rows alike in them fall into one split)."""

    by: Literal["hash"]
    of: tuple[Name, ...] = Field(min_length=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _room_for_train(self) -> HashSplit:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation ({self.validation}) and test ({self.test}) leave nothing to train on")
        return self


class Examples(Settings):
    from_: Name = Field(alias="from")
    predict: Predict
    features: tuple[Feature, ...] = Field(min_length=1)
    split: Annotated[TimeSplit | HashSplit, Field(discriminator="by")]
    format: Literal["delta", "parquet"] = "delta"
    row_group_rows: Int = Field(65536, ge=1)
    row_groups_per_file: Int = Field(4, ge=1)
    seed: Int = 17


class Storage(Settings):
    endpoint: str | None = None
    region: str | None = None
    path_style: bool = False
