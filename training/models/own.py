"""A user's own model, named by module: ``model: {module: my_models, name: Tower, settings: {...}}``.

``name`` is either a subclass of ``Model`` with its ``Settings`` beside it, or a class or function that makes a Keras model:
``Tower(columns, **settings)``, with ``columns`` the ``ModelColumns`` (of numbers their mean and deviation, of ids their number).
The Keras model takes a dict of tensors by column:

    floats   float32 [rows, 1], as they are: not normalised
    ids      int32 [rows, 1], from 0 to below the column's ``num_ids``
    arrays   float32 [rows, *shape]; images float32 [rows, height, width, channels]; tokens int32 [rows, length]

and gives scores [rows], [rows, 1], or for several classes [rows, classes]: log-odds, not probabilities; of a regression's label
deviations from its mean. A functional model is handed the columns that its inputs are named after.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field

from lakering.documents import Settings
from lakering.errors import SettingError, nearest
from recipes.settings import Name
from recipes.training import ModuleName
from training.models.base import Features, Model, ModelColumns
from training.models.dropout import Dropout
from training.user_code import load

_dropout: ContextVar[Dropout | None] = ContextVar("dropout", default=None)


class OwnSettings(Settings):
    """``settings``: keyword arguments of what is named, or fields of its ``Settings``."""

    module: ModuleName
    name: Name
    settings: dict[str, Any] = Field({})


@dataclass(frozen=True)
class KerasSettings:
    make: Callable[..., Any]
    settings: dict[str, Any]
    where: str


class RowDropout(keras.layers.Layer):
    """Dropout for a Keras model that draws the same for a row on whichever rank it is, as the other models' does."""

    def __init__(self, rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.rate = rate

    def call(self, values: Any) -> Any:
        dropout = _dropout.get()
        return values if dropout is None else dropout.apply(values, self.rate)


class KerasModel(Model):
    """A Keras model as the loop takes one. Its trainable weights are its variables, in Keras's order."""

    takes = ("array", "tokens", "image")

    def __init__(self, settings: KerasSettings, columns: ModelColumns, *, seed: int, precision: str) -> None:
        if keras.backend.backend() != "tensorflow":
            raise SettingError(f"Keras computes with {keras.backend.backend()}, and training with TensorFlow",
                               next_step="unset KERAS_BACKEND, or set it to tensorflow")  # fmt: skip
        self.columns, self._where, self._precision = columns, settings.where, precision
        self._dtype = tf.float64 if precision == "float64" else tf.float32
        keras.utils.set_random_seed(seed % 2**32)
        with _policy(precision):
            try:
                self._keras = settings.make(columns, **settings.settings)
            except TypeError as error:
                raise SettingError(f"{self._where}(columns, **settings) with settings {settings.settings}: {error}") from error
        if not isinstance(self._keras, keras.Model):
            raise SettingError(f"{self._where} gave a {type(self._keras).__name__}, where a keras.Model is expected")
        self._validate_inputs()
        self._build()
        self._validate()
        self._variables = [self._named(i, weight) for i, weight in enumerate(self._keras.trainable_weights)]

    @property
    def variables(self) -> Sequence[tf.Variable]:
        return self._variables

    def scores(self, features: Features, dropout: Dropout | None = None) -> tf.Tensor:
        given = by_column(features, self.columns)
        token = _dropout.set(dropout)
        try:
            with _policy(self._precision):
                # A functional model takes its own inputs, in whatever structure they were given to it.
                taken = given if self._inputs is None else keras.tree.map_structure(lambda t: given[t.name], self._keras.input)
                found = self._keras(taken, training=dropout is not None)
        finally:
            _dropout.reset(token)
        if not tf.is_tensor(found):
            raise SettingError(f"{self._where} gives a {type(found).__name__}, where one tensor of scores is expected")
        classes = self.columns.label.num_classes
        if found.shape.rank == 2 and found.shape[1] == 1 and not classes:
            found = tf.squeeze(found, axis=1)
        expected = [classes] if classes else []
        if found.shape.rank is None or found.shape[1:].as_list() != expected:
            wanted = f"[rows, {classes}]" if classes else "[rows] or [rows, 1]"
            raise SettingError(f"{self._where} gives scores of shape {found.shape}, where {wanted} is expected")
        return tf.cast(found, self._dtype)

    def _validate_inputs(self) -> None:
        self._inputs, names = getattr(self._keras, "inputs", None), self.columns.names
        for name in [tensor.name for tensor in self._inputs or ()]:
            if name not in names:
                raise SettingError(f"{self._where} has an input {name!r}, and no column is named so{nearest(name, names)}")

    def _build(self) -> None:
        try:
            self.scores(two_rows(self.columns), Dropout(tf.zeros(2, tf.uint32)))
        except SettingError:
            raise
        except Exception as error:
            raise SettingError(f"{self._where} fails on a batch of two rows: {type(error).__name__}: {error}") from error

    def _validate(self) -> None:
        made = self._keras
        if any(isinstance(layer, keras.layers.BatchNormalization) for layer in made._flatten_layers()):
            raise SettingError(f"{self._where} has a BatchNormalization: its statistics would be those of each rank's rows alone",
                               next_step="use LayerNormalization or GroupNormalization")  # fmt: skip
        if made.non_trainable_weights:
            names = ", ".join(weight.path for weight in made.non_trainable_weights[:5])
            raise SettingError(f"{self._where} has weights that are not trained ({names}), which no checkpoint would hold",
                               next_step="make them trainable, or constants: Normalization(mean=..., variance=...)")  # fmt: skip
        if made.losses:
            raise SettingError(f"{self._where} adds losses of its own (a regularizer, add_loss), which would not be counted",
                               next_step="use training.weight_decay, or training.loss")  # fmt: skip
        if not made.trainable_weights:
            raise SettingError(f"{self._where} has no weights to train")
        others = sorted({str(weight.dtype) for weight in made.trainable_weights} - {self._dtype.name})
        if others:
            raise SettingError(f"{self._where} has weights of type {', '.join(others)}; with training.precision "
                               f"{self._precision} all are {self._dtype.name}",
                               next_step="leave their dtype to Keras")  # fmt: skip
        if len(made.variables) > len(made.weights):
            print(f"warning: {self._where} draws random numbers by Keras's own seeds (such as its Dropout): on several ranks, "
                  "and after a resume, the losses are not those of one run on one rank. training.models.own.RowDropout's are",
                  file=sys.stderr, flush=True)  # fmt: skip

    def _named(self, place: int, weight: Any) -> tf.Variable:
        """Keras's names may repeat, and count on from model to model: the place is what tells variables apart."""
        variable = weight.value
        variable.name_in_model = f"{place:03d}/{re.sub(r'_[0-9]+$', '', weight.name)}"
        return variable


def own_model(section: dict[str, Any], folder: str | None) -> tuple[Any, type[Model]]:
    """The settings and the class of a model that is named by module. Raises SettingError when it is not there, or its settings
    are wrong."""
    where = f"{section['module']}.{section['name']}"
    found = load(section, folder)
    if not (isinstance(found, type) and issubclass(found, Model)):
        return KerasSettings(found, section["settings"], where), KerasModel
    kind = getattr(found, "Settings", None)
    if not (isinstance(kind, type) and issubclass(kind, Settings)):
        raise SettingError(f"{where} is a Model without its Settings; give the class 'Settings', a subclass of "
                           "lakering.documents.Settings")  # fmt: skip
    try:
        return kind.model_validate(section["settings"]), found
    except ValueError as error:
        raise SettingError(f"{where}: its settings are wrong: {error}") from error


def with_loss(model: Model, named: dict[str, Any], folder: str | None) -> None:
    """Gives a model the user's loss: ``name(label, score)``, tensors of the rows, to the loss of each row.

    Raises SettingError when it is not there, or does not give one number a row."""
    where = f"training.loss {named['module']}.{named['name']}"
    if model.spans_batch:
        raise SettingError(f"{where} is given, and the model has a loss of its own, over the whole batch",
                           next_step="leave training.loss out, or name another model")  # fmt: skip
    loss = load(named, folder)
    scores = model.scores(two_rows(model.columns))
    try:
        found = tf.convert_to_tensor(loss(tf.zeros(2, scores.dtype), scores))
    except Exception as error:
        raise SettingError(f"{where} fails on two rows: {type(error).__name__}: {error}") from error
    if found.shape.as_list() != [2] or not found.dtype.is_floating:
        raise SettingError(f"{where} gives {found.dtype.name} of shape {found.shape.as_list()} for two rows, where a number for "
                           "each row is expected ([2]): take no mean over the rows")  # fmt: skip
    model.own_loss = loss


def by_column(features: Features, columns: ModelColumns) -> dict[str, tf.Tensor]:
    given = {column.name: features.floats[:, i : i + 1] for i, column in enumerate(columns.floats)}
    given |= {column.name: features.ids[:, i : i + 1] for i, column in enumerate(columns.ids)}
    return {**given, **features.arrays, **features.tokens, **features.images}


def two_rows(columns: ModelColumns) -> Features:
    """Zeros in the shape of a batch."""
    cells: dict[str, dict[str, tf.Tensor]] = {"array": {}, "tokens": {}, "image": {}}
    for column in columns.binary:
        dtype = tf.int32 if column.kind == "tokens" else tf.float32
        cells[column.kind][column.name] = tf.zeros([2, *(column.shape or ())], dtype)
    floats = tf.constant(np.array([[c.mean for c in columns.floats]] * 2).reshape(2, -1), tf.float32)
    return Features(floats, tf.zeros([2, len(columns.ids)], tf.int32), cells["array"], cells["tokens"], cells["image"])


@contextmanager
def _policy(precision: str) -> Iterator[None]:
    """Inside, Keras makes its layers with a precision."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64" if precision == "float64" else "float32")
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
