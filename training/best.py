"""Which checkpoint is the best: that of the epoch with the least validation loss."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lakering.errors import InputError, IntegrityError
from lakering.lake import Lake
from training.checkpoint import FOLDER, INDEX, NAME

JSON = "best.json"
#: The first of these that an epoch's figures have is what epochs are compared by; less is better.
LOSSES = ("validation_log_loss", "validation_rmse")


@dataclass(frozen=True)
class Best:
    """The name of a checkpoint, the epoch that it ended, and the figure by which that is the best."""

    checkpoint: str
    epoch: int
    metric: str
    value: float

    @property
    def facts(self) -> dict[str, Any]:
        return asdict(self)


def read_best(lake: Lake, run: tuple[str, ...]) -> Best | None:
    """The best so far; None when there is none, or its checkpoint is gone."""
    try:
        facts = lake.storage.read_json(*run, JSON)
        best = Best(str(facts["checkpoint"]), int(facts["epoch"]), str(facts["metric"]), float(facts["value"]))
    except (InputError, IntegrityError, KeyError, TypeError, ValueError):
        return None
    if not NAME.fullmatch(best.checkpoint):
        return None
    return best if lake.storage.exists(*run, FOLDER, best.checkpoint, INDEX) else None


def better(best: Best | None, checkpoint: str, epochs: list[dict[str, Any]]) -> Best | None:
    """The best once the last of ``epochs`` ended with ``checkpoint``. A best of that checkpoint or of a later one is from
    before a training went on from an earlier checkpoint, and no longer counts."""
    best = best if best is not None and best.checkpoint < checkpoint else None
    figures = epochs[-1]
    metric = next((name for name in LOSSES if figures.get(name) is not None), None)
    if metric is None or (best is not None and best.metric == metric and best.value <= figures[metric]):
        return best
    return Best(checkpoint, figures["epoch"], metric, figures[metric])


def write_best(lake: Lake, run: tuple[str, ...], best: Best) -> None:
    lake.storage.write_json(best.facts, *run, JSON)
