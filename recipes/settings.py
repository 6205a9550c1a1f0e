"""The typed sections of a recipe. What a key means stands beside it; what it may be is checked when it is read."""

from __future__ import annotations

import datetime
import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, StrictInt, Tag, field_validator, model_validator

from lakering.documents import Settings
from lakering.errors import SettingError
from lakering.names import validate_name

#: Pillow itself warns of larger images.
MAX_PIXELS = 89_478_485
MAX_MIB = 1 << 30
MAX_SECONDS = 10_000 * 366 * 86400
UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}


def parse_bound(text: str) -> datetime.datetime:
    """The instant in a bound such as ``< 2013-09-01`` (UTC). Raises ValueError on anything else."""
    if not re.fullmatch(r"< \d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}:\d{2})?", text):
        raise ValueError(text)
    return datetime.datetime.fromisoformat(text.removeprefix("< ")).replace(tzinfo=datetime.UTC)


def _duration(text: str) -> str:
    parse_duration(text)
    return text


def parse_duration(text: str) -> int:
    """Seconds in a duration such as ``3 hours``. Raises ValueError on anything else."""
    match = re.fullmatch(r"(\d{1,9}) +(second|minute|hour|day|week)s?", text.strip())
    if not match or int(match[1]) == 0:
        raise ValueError(f"expected a duration such as '3 hours' (units: {', '.join(UNITS)})")
    seconds = int(match[1]) * UNITS[match[2]]
    if seconds > MAX_SECONDS:
        raise ValueError("longer than 10,000 years, which is all the time there is")
    return seconds


Duration = Annotated[str, AfterValidator(_duration)]


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
Pixels = Annotated[StrictInt, Field(ge=1, le=8192)]


class Source(Settings):
    """Where rows come from: a file, a folder or a glob. Relative paths are relative to the recipe."""

    files: str
    format: Literal["csv", "json", "parquet", "images"]


class TableSettings(Settings):
    contract: str
    sources: tuple[Source, ...] = Field(min_length=1)


class Predict(Settings):
    """What is predicted, when, and for which rows."""

    label: str
    kind: Literal["binary", "regression"] = "binary"
    moment: str
    where: str | None = None
    weight: str | None = None


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


class Normalise(Settings):
    """``(value / 255 - mean) / std``, per channel or one figure for all."""

    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(min_length=1, max_length=3)
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(min_length=1, max_length=3)


class ImageSettings(Settings):
    """How an image column becomes float32 of [height, width, channels]: read, turned upright, cropped, resized,
    normalised. Random crops and flips are drawn in training alone; every other split takes the centre."""

    size: tuple[Pixels, ...] = Field(min_length=2, max_length=2, description="height, width")
    channels: Literal[1, 3] = 3
    crop: Literal["center", "random"] = Field("center", description="the largest box of the size's shape, or a random one")
    scale: tuple[float, ...] = Field(
        (0.25, 1.0), min_length=2, max_length=2, description="of random crops: least and largest share of the image's area"
    )
    flip: bool = Field(False, description="mirror every second image, left to right")
    normalise: Normalise | None = Field(None, description="without it, values lie in 0..1")
    on_error: Literal["fail", "skip"] = Field("fail", description="skip: a broken image is zeros, and its row weighs nothing")
    max_pixels: Int = Field(50_000_000, ge=1, le=MAX_PIXELS, description="a larger image is refused before it is decoded")

    @model_validator(mode="after")
    def _fitting(self) -> ImageSettings:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale must be two shares of the area, 0 < least <= largest <= 1; got {low}, {high}")
        for name, values in self.normalise or ():
            if len(values) not in (1, self.channels):
                raise ValueError(f"normalise.{name} has {len(values)} figures for {self.channels} channels")
        return self


class StepDecay(Settings):
    """``schedule: step``: the learning rate is multiplied by ``factor`` at each of ``at_epochs``, which may be fractions
    (2.5: in the middle of the third epoch), so that they hold for any batch size."""

    at_epochs: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    factor: float = Field(0.1, gt=0, lt=1)

    @field_validator("at_epochs")
    @classmethod
    def _ascending(cls, epochs: tuple[float, ...]) -> tuple[float, ...]:
        if any(a >= b for a, b in pairwise(epochs)):
            raise ValueError(f"epochs must ascend, and {', '.join(f'{epoch:g}' for epoch in epochs)} do not")
        return epochs


class LearningRateScaling(Settings):
    """``learning_rate`` and ``warmup_steps`` are those of batches of ``base_batch_size`` rows: the rate grows with
    global_batch_size, or with its square root; warm-up takes the same number of rows."""

    rule: Literal["linear", "square_root"]
    base_batch_size: Int = Field(ge=1)


class Training(Settings):
    """How the model is trained. ``lanes`` and ``window`` (row groups in a shuffle block) order the rows; neither
    depends on the number of ranks. ``lanes`` 0 means the largest divisor of the batch up to 1024."""

    global_batch_size: Int = Field(4096, ge=1)
    epochs: Int = Field(3, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    scale_learning_rate: LearningRateScaling | None = Field(None, description="with the batch; not at all by default")
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_decay: StepDecay | None = None
    warmup_steps: Int = Field(0, ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "lamb", "lars"] = "adam"
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd and lars")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(None, gt=0, description="the most that the norm of all gradients together may be")
    accumulate: Int = Field(1, ge=1, description="parts that a batch is worked through in, to save memory")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of binary labels: 0 and 1 become s/2 and 1 - s/2")
    precision: Literal["float32", "float64"] = "float32"
    seed: Int = Field(17, ge=0)
    window: Int = Field(16, ge=1)
    lanes: Int = Field(0, ge=0)
    drop_last: bool = Field(False, description="leave out a short last batch")
    columns: tuple[Name, ...] | None = Field(None, min_length=1, description="the features to train on; all of them by default")
    images: dict[Name, ImageSettings] = Field({}, description="how image columns are decoded")
    checkpoint_every: Int = Field(200, ge=1, description="steps")
    keep_checkpoints: Int = Field(3, ge=1)

    @model_validator(mode="after")
    def _fitting(self) -> Training:
        if self.momentum and self.optimizer not in ("sgd", "lars"):
            raise ValueError(f"momentum ({self.momentum:g}) is of sgd and lars; {self.optimizer} has its own: leave it out")
        if (self.schedule == "step") != (self.step_decay is not None):
            has = "has no" if self.step_decay is None else "does not use"
            raise ValueError(f"schedule: {self.schedule} {has} step_decay; write schedule: step with step_decay: "
                             "{at_epochs: [2, 3], factor: 0.1}, or neither")  # fmt: skip
        if self.accumulate > self.global_batch_size:
            raise ValueError(f"accumulate ({self.accumulate:,}) cuts a batch into more parts than it has rows "
                             f"(global_batch_size {self.global_batch_size:,})")  # fmt: skip
        return self


class FeedSettings(Settings):
    """How a training is fed: what it reads, and in which order, does not depend on these. Memory is for each rank."""

    reading_threads: Int = Field(1, ge=1, le=64, description="as many as read_ahead has room for their row groups")
    read_ahead: Int = Field(64, ge=0, le=MAX_MIB, description="MiB that may be read beyond two windows")
    cache: Literal["none", "memory", "disk"] = Field("none", description="where row groups are kept, decoded, for later epochs")
    cache_mib: Int = Field(4096, ge=1, le=MAX_MIB, description="the most that the cache takes")
    cache_folder: str | None = Field(None, min_length=1, description="of the disk cache; ranks and trainings may share it")

    @model_validator(mode="after")
    def _folder_for_disk(self) -> FeedSettings:
        if self.cache == "disk" and self.cache_folder is None:
            raise ValueError("cache: disk needs a cache_folder")
        if "://" in (self.cache_folder or ""):
            raise ValueError(f"cache_folder {self.cache_folder} must be a local folder")
        return self


class Evaluation(Settings):
    split: Literal["train", "validation", "test"] = "test"
    trees: bool = Field(True, description="train boosted trees on the same columns, as a baseline")
    max_tree_rows: Int = Field(2_000_000, ge=1)


class Storage(Settings):
    endpoint: str | None = None
    region: str | None = None
    path_style: bool = False


class ModelSettings(Settings):
    """The model's name; its other keys are checked by the model itself, in ``training/models``."""

    model_config = Settings.model_config | {"extra": "allow"}
    name: Name

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})
