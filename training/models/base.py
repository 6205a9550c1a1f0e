"""What every model is given, and what the loop asks of it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lakering.errors import IntegrityError
from lakering.manifest import Manifest, share_name
from recipes.training import ImageSettings
from training.models.dropout import Dropout

#: ``World.gather_tensors``: all ranks' rows of a tensor, and the index of this rank's first.
Gather = Callable[[tf.Tensor, str], tuple[tf.Tensor, tf.Tensor | int]]
QUANTILE = re.compile(r"[qp]_?(\d+(?:[._]\d+)?)")


@dataclass(frozen=True)
class FloatColumn:
    """A float column and what was learnt of it on the train split. ``edges`` ascend strictly, from min to max."""

    name: str
    mean: float
    std: float
    edges: tuple[float, ...]


@dataclass(frozen=True)
class IdColumn:
    """Ids in [0, num_ids)."""

    name: str
    num_ids: int


@dataclass(frozen=True)
class BinaryColumn:
    """An array, tokens or an image (see ``lakering.manifest.Column``). ``shape`` is of one cell as a model takes it: an
    image's height, width and channels, or None where nobody told how to decode it."""

    name: str
    kind: str
    shape: tuple[int, ...] | None = None
    num_ids: int | None = None


@dataclass(frozen=True)
class Label:
    """``mean`` and ``std`` are the train split's: a base rate, or what a regression's label is normalised by. Of a label of
    several classes, ``classes`` are their names and ``shares`` their shares of the train split; the label is a class's number."""

    name: str
    kind: Literal["binary", "multiclass", "regression"]
    mean: float
    std: float
    classes: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def num_classes(self) -> int:
        """0 but for a label of several classes."""
        return len(self.classes)


@dataclass(frozen=True)
class ModelColumns:
    """The columns of a batch, in order. JSON-like, and stored with the model: a scorer needs no manifest."""

    floats: tuple[FloatColumn, ...]
    ids: tuple[IdColumn, ...]
    label: Label
    binary: tuple[BinaryColumn, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest, images: Mapping[str, ImageSettings] | None = None) -> ModelColumns:
        """The columns of a snapshot whose ``images`` are decoded so."""
        floats = tuple(_float_column(name, manifest.statistics.get(name)) for name in manifest.float_columns)
        ids = tuple(IdColumn(c.name, int(c.num_ids or 0)) for c in manifest.id_columns)
        facts = manifest.statistics.get(manifest.label)
        if facts is None:
            raise IntegrityError(f"snapshot {manifest.id} holds no statistics of its label {manifest.label}")
        shapes = {name: (*settings.size, settings.channels) for name, settings in (images or {}).items()}
        binary = tuple(BinaryColumn(c.name, c.kind, shapes.get(c.name, c.shape), c.num_ids) for c in manifest.binary_columns)
        classes = manifest.classes or ()
        shares = tuple(facts[share_name(number)] for number in range(len(classes)))
        label = Label(manifest.label, manifest.label_kind, facts["mean"], facts["std"] or 1.0, classes, shares)
        return cls(floats, ids, label, binary)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> ModelColumns:
        floats = tuple(FloatColumn(**{**c, "edges": tuple(c["edges"])}) for c in facts["floats"])
        binary = tuple(BinaryColumn(**{**c, "shape": c["shape"] and tuple(c["shape"])}) for c in facts["binary"])
        many = {name: tuple(facts["label"].get(name, ())) for name in ("classes", "shares")}
        return cls(floats, tuple(IdColumn(**c) for c in facts["ids"]), Label(**{**facts["label"], **many}), binary)

    @property
    def names(self) -> list[str]:
        return [column.name for columns in (self.floats, self.ids, self.binary) for column in columns]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _float_column(name: str, facts: dict[str, float] | None) -> FloatColumn:
    if facts is None:
        raise IntegrityError(f"the snapshot holds no statistics of {name}")
    if not facts.get("count", 1):
        return FloatColumn(name, 0.0, 1.0, (0.0,))
    quantiles = [value for key, value in facts.items() if QUANTILE.fullmatch(key)]
    if not quantiles:
        spread = [facts["mean"] + facts["std"] * z for z in (-2, -1, -0.5, 0, 0.5, 1, 2)]
        quantiles = [min(max(value, facts["min"]), facts["max"]) for value in spread]
    edges = np.unique(np.array([facts["min"], *quantiles, facts["max"]], np.float32))
    return FloatColumn(name, facts["mean"], facts["std"] or 1.0, tuple(float(edge) for edge in edges))


class Features(NamedTuple):
    """A batch's features as a model takes them, columns in the order of ``ModelColumns``: ``floats`` float32
    [rows, floats], ``ids`` int32 [rows, ids]. By column, ``arrays`` are float32 [rows, *shape], ``tokens`` int32
    [rows, length] (0 is padding), ``images`` float32 [rows, height, width, channels]."""

    floats: tf.Tensor
    ids: tf.Tensor
    arrays: Mapping[str, tf.Tensor] = {}
    tokens: Mapping[str, tf.Tensor] = {}
    images: Mapping[str, tf.Tensor] = {}


class Model(ABC):
    """A model: variables in a fixed order with unique names, and scores for rows.

    A score is the log-odds of a binary label; of a regression's label, its distance from the mean in deviations; of a label of
    several classes there is one for each, of which the softmax is its probability. Rows are independent of each other (no
    normalisation over a batch), so that ranks may share a batch in any way."""

    columns: ModelColumns
    #: The kinds of columns, beside floats and ids, that the model takes: array, tokens, image.
    takes: ClassVar[tuple[str, ...]] = ()
    #: The kinds of which there must be a column.
    needs: ClassVar[tuple[str, ...]] = ()
    #: Whether a row's loss depends on the other rows of the global batch: it is then trained by ``batch_losses``.
    spans_batch: ClassVar[bool] = False
    #: What the recipe names in place of the label's loss, from (label, scores), and beside its metrics.
    own_loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None
    own_metrics: Sequence[Callable[[Label], Any]] = ()

    @abstractmethod
    def __init__(self, settings: Any, columns: ModelColumns, *, seed: int, precision: str) -> None:
        """Makes the variables; ``seed`` alone decides their values. ``precision`` is float32 or float64, or mixed_float16 or
        mixed_bfloat16: float32 variables, and the model computed in half precision (Micikevicius et al. 2018, "Mixed
        Precision Training")."""

    @property
    @abstractmethod
    def variables(self) -> Sequence[tf.Variable]:
        """In the order in which they were made."""

    @abstractmethod
    def scores(self, features: Features, dropout: Dropout | None = None) -> tf.Tensor:
        """Scores of the rows, in the variables' type: [rows], or [rows, classes]. ``dropout`` is None outside training."""

    def losses(self, scores: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Loss of each row: the user's own, log loss, or the squared error in deviations. Of several classes the label is a
        class's number, or (where labels are smoothed) the share of each class: [rows, classes]."""
        if self.own_loss is not None:
            return tf.cast(self.own_loss(label, scores), scores.dtype)
        if self.columns.label.kind == "multiclass":
            if label.shape.rank == 1:
                return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.cast(label, tf.int32), logits=scores)
            return tf.nn.softmax_cross_entropy_with_logits(labels=tf.cast(label, scores.dtype), logits=scores)
        label = tf.cast(label, scores.dtype)
        if self.columns.label.kind == "binary":
            return tf.nn.sigmoid_cross_entropy_with_logits(labels=label, logits=scores)
        mean, std = self.columns.label.mean, self.columns.label.std
        return tf.square(scores - (label - tf.cast(mean, scores.dtype)) / tf.cast(std, scores.dtype))

    def batch_losses(self, features: Features, label: tf.Tensor, weight: tf.Tensor, dropout: Dropout,
                     gather: Gather) -> tuple[tf.Tensor, tf.Tensor]:  # fmt: skip
        """Of a model that spans the batch: the losses of this rank's rows, and what each counts for in the mean over the global
        batch. Every rank calls ``gather`` equally often, with the same names, also for a part of no row."""
        raise NotImplementedError(f"{type(self).__name__} declares spans_batch, and has no batch_losses")

    def predictions(self, scores: npt.NDArray) -> npt.NDArray[np.float64]:
        """Probabilities ([rows, classes] of several), or values in the label's own unit."""
        scores = np.asarray(scores, np.float64)
        if self.columns.label.kind == "multiclass":
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            return odds / odds.sum(axis=1, keepdims=True)
        if self.columns.label.kind == "binary":
            return 1 / (1 + np.exp(-scores))
        return self.columns.label.mean + self.columns.label.std * scores
