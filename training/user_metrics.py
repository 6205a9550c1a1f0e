"""Metrics of the user's own, beside those of the label's kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lakering.errors import SettingError
from training.metrics import Metrics
from training.models.base import Label
from training.user_code import load


def read_metrics(code: Mapping[str, Any]) -> tuple[Callable[[Label], Metrics], ...]:
    """The classes that ``training.metrics`` names; each is made with the label. Raises SettingError when one is not there."""
    return tuple(load(named, code["folder"]) for named in code["metrics"])


class Together:
    """Several metrics as one: their states one behind the other, and the figures of all."""

    def __init__(self, first: Metrics, others: Sequence[Metrics]) -> None:
        self.first = first
        self._all = [first, *others]
        for each in others:
            state = np.asarray(getattr(each, "state", None))
            if state.dtype != np.float64 or state.ndim != 1:
                raise SettingError(f"{type(each).__name__}.state must be one float64 vector, so that ranks can be summed; it is "
                                   f"{state.dtype} of {list(state.shape)}",
                                   next_step="self.state = numpy.zeros(N)")  # fmt: skip

    @property
    def state(self) -> npt.NDArray[np.float64]:
        return np.concatenate([each.state for each in self._all])

    @state.setter
    def state(self, state: npt.NDArray[np.float64]) -> None:
        ends = np.cumsum([len(each.state) for each in self._all])
        for each, part in zip(self._all, np.split(state, ends[:-1]), strict=True):
            each.state = part

    def add(self, predictions: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> None:
        for each in self._all:
            each.add(predictions, label, weight)

    def figures(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for each in self._all:
            figures = each.figures()
            for name in figures.keys() & found.keys():
                raise SettingError(f"{type(each).__name__} gives the figure {name!r}, which is there already",
                                   next_step="give it another name")  # fmt: skip
            found |= figures
        return found


def with_own(metrics: Metrics, label: Label, own: Sequence[Callable[[Label], Metrics]]) -> Metrics:
    """The label's metrics, and beside them the user's own, if any."""
    return Together(metrics, [make(label) for make in own]) if own else metrics


def of_label(metrics: Metrics) -> Metrics:
    """The label's metrics alone."""
    return metrics.first if isinstance(metrics, Together) else metrics
